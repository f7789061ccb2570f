"""The checker is content with a sound history, and finds each kind of damage in a spoilt one."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.partitioner import murmur2

from tests.faults.checker import Evidence, Sample, check
from tests.faults.journal import Attempt, State, digest
from tests.faults.oracle import REKEYED_FROM, Fate, expect, partition_of
from tests.faults.reading import LogRecord
from tests.faults.tables import Tables

TOPIC = "events"
PARTITIONS = 2
HOME = {key: partition_of(key.encode(), PARTITIONS) for key in ("A", "B", "C", "D", "E")}
AT_0 = next(key for key, partition in HOME.items() if partition == 0)
AT_1 = next(key for key, partition in HOME.items() if partition == 1)
MISPLACED, POISON = (0, 2), (0, 3)


def trade(number: int, symbol: str, price: str = "10", **more: Any) -> bytes:
    """Write a good trade."""
    side = "BUY" if number % 2 else "SELL"
    event = {"trade_id": f"GOOD-{number}", "symbol": symbol, "side": side, "price": price,
             "quantity": "2", "timestamp": "2026-03-02T09:30:00Z"}  # fmt: skip
    return json.dumps(event | more).encode()


def position(offset: int, key: str, place: tuple[int, int], **state: Any) -> LogRecord:
    """Write a position record as the product does."""
    value = {"type": "position", "group": "g", "symbol": key, "trade_count": 1,
             "source": {"topic": TOPIC, "partition": place[0], "offset": place[1]}}  # fmt: skip
    return LogRecord(place[0], offset, key.encode(), json.dumps(value | state).encode(), {})


def letter(offset: int, original: LogRecord, reason: bytes = b"body-not-json") -> LogRecord:
    """Write the dead letter of a record."""
    headers = {
        "__dlq.errors.topic": TOPIC.encode(),
        "__dlq.errors.partition": str(original.partition).encode(),
        "__dlq.errors.offset": str(original.offset).encode(),
        "x-dlq-reason": reason,
    }
    return LogRecord(original.partition, offset, original.key, original.value, headers)


def sound() -> Evidence:
    """Give a history of two bookings, a misplaced trade, a poisoned record and one sent twice."""
    values = [trade(1, AT_0), trade(2, AT_0, "12"), trade(3, AT_1), b"{"]
    source = [LogRecord(0, n, AT_0.encode(), value, {}) for n, value in enumerate(values)]
    source.append(LogRecord(0, 4, AT_0.encode(), trade(1, AT_0, published_at="later"), {}))
    moved = {REKEYED_FROM: f"{TOPIC}/0/2".encode()}
    source += [LogRecord(1, n, AT_1.encode(), values[2], moved) for n in range(2)]
    attempts = [
        Attempt("load-0", AT_0, n + 1, f"T{n}", digest(r.value), 0, State.OK, r.partition, r.offset)
        for n, r in enumerate(source[:5])
    ]
    flat = {"quantity": "0", "mark": "12", "realized_pnl": "4", "unrealized_pnl": "0"}
    opened = {"quantity": "2", "mark": "10", "realized_pnl": "0", "unrealized_pnl": "0"}
    return Evidence(
        topic=TOPIC,
        partitions=PARTITIONS,
        source=source,
        letters=[letter(0, source[3]), letter(1, source[3])],
        positions=[
            position(0, AT_0, (0, 0), **opened),
            position(1, AT_0, (0, 1), **flat, trade_count=2),
            position(0, AT_1, (1, 0), **opened),
        ],
        committed={0: 5, 1: 2},
        attempts=attempts,
        samples=[Sample(0, {0: 1}, {0: 5, 1: 0}, {0: 1, 1: 0}, {0: 0, 1: 0})],
        window=100,
    )


def test_a_sound_history_has_no_findings() -> None:
    """Every fate is counted, and repeats of dead letters and re-keyed trades are allowed."""
    verdict = check(sound())
    assert not verdict.findings, verdict.report()
    assert {fate: verdict.counts[fate] for fate in Fate} == {
        Fate.BOOKED: 3, Fate.DUPLICATE: 2, Fate.STALE: 0, Fate.DEAD_LETTERED: 1, Fate.REKEYED: 1,
        Fate.PARKED: 0,
    }  # fmt: skip
    assert verdict.counts["letters_repeated"] == verdict.counts["rekeyed_again"] == 1
    assert verdict.counts["ok"] == 5


def _state(evidence: Evidence, index: int, **changes: Any) -> None:
    record = evidence.positions[index]
    state = json.loads(record.value or b"") | changes
    positions = list(evidence.positions)
    positions[index] = replace(record, value=json.dumps(state).encode())
    evidence.positions = positions


def _attempt(evidence: Evidence, index: int, **changes: Any) -> None:
    assert evidence.attempts is not None
    attempts = list(evidence.attempts)
    attempts[index] = replace(attempts[index], **changes)
    evidence.attempts = attempts


def _source(evidence: Evidence, index: int, **changes: Any) -> None:
    source = list(evidence.source)
    source[index] = replace(source[index], **changes)
    evidence.source = source


def _letter(evidence: Evidence, **changes: Any) -> None:
    evidence.letters = [replace(evidence.letters[0], **changes)]


def _ahead(evidence: Evidence, **changes: Any) -> None:
    evidence.samples = [replace(evidence.samples[0], **changes)]


DAMAGE: dict[str, tuple[int, str, Callable[[Evidence], Any]]] = {
    "acknowledged, not in the topic": (1, "lost", lambda e: _attempt(e, 1, offset=9)),
    "acknowledged, another content": (1, "lost", lambda e: _attempt(e, 0, digest="other")),
    "in the topic, in no journal": (1, "invented", lambda e: _attempt(e, 4, state=State.NOT_SENT)),
    "sent later, stored earlier": (
        1, "overtaken",
        lambda e: setattr(e, "attempts", [*reversed((e.attempts or [])[:2]),
                                          *(e.attempts or [])[2:]])),
    "a gap in the source": (2, "lost", lambda e: setattr(e, "source", e.source[1:])),
    "no dead letter": (2, "lost", lambda e: setattr(e, "letters", [])),
    "a dead letter of a good trade": (
        2, "invented", lambda e: setattr(e, "letters", [*e.letters, letter(2, e.source[0])])),
    "other bytes in a dead letter": (2, "damaged", lambda e: _letter(e, value=b"[")),
    "another key in a dead letter": (2, "damaged", lambda e: _letter(e, key=None)),
    "a dead letter in another partition": (2, "damaged", lambda e: _letter(e, partition=1)),
    "a conflict that is none": (
        2, "damaged", lambda e: setattr(e, "letters",
                                        [letter(0, e.source[3], b"version-conflict")])),
    "a quarantine of readable records": (
        2, "quarantine", lambda e: setattr(e, "letters",
                                           [*e.letters, letter(2, e.source[0],
                                                               b"batch-unreadable")])),
    "a misplaced trade that stayed": (2, "lost", lambda e: setattr(e, "source", e.source[:5])),
    "other bytes in a re-keyed trade": (
        2, "damaged", lambda e: _source(e, 6, value=trade(3, AT_1, "11"))),
    "re-keyed from a booked trade": (
        2, "invented", lambda e: _source(e, 6, headers={REKEYED_FROM: b"events/0/0"})),
    "no position": (3, "lost", lambda e: setattr(e, "positions", e.positions[:2])),
    "a position too many": (
        3, "invented", lambda e: setattr(e, "positions",
                                         [*e.positions, position(1, "Z", (1, 1))])),
    "a trade that was not booked": (3, "lost", lambda e: _state(e, 1, trade_count=1)),
    "a trade booked twice": (3, "doubled", lambda e: _state(e, 1, trade_count=3)),
    "another quantity": (3, "wrong", lambda e: _state(e, 1, quantity="1")),
    "a cent of PnL": (3, "wrong", lambda e: _state(e, 1, realized_pnl="4.01")),
    "PnL in the wrong place": (
        3, "wrong", lambda e: _state(e, 1, realized_pnl="3", unrealized_pnl="1")),
    "a position that covers too much": (
        3, "wrong",
        lambda e: _state(e, 1, source={"topic": TOPIC, "partition": 0, "offset": 2})),
    "a commit before its position": (4, "ahead", lambda e: _ahead(e, committed={0: 2})),
    "a commit before its dead letter": (
        4, "ahead", lambda e: _ahead(e, committed={0: 4}, position_ends={0: 2, 1: 0},
                                     source_ends={0: 5, 1: 1})),
    "a commit before its re-keyed trade": (
        4, "ahead", lambda e: _ahead(e, committed={0: 3}, position_ends={0: 2, 1: 0})),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(name: str) -> None:
    """Each kind of damage leads to a finding of its rule and kind."""
    rule, kind, spoil = DAMAGE[name]
    evidence = copy.deepcopy(sound())
    spoil(evidence)
    found = check(evidence).findings
    assert any(f.rule == rule and f.what.startswith(kind) for f in found), found


def test_an_unknown_outcome_may_be_either() -> None:
    """A record of an unknown attempt may be there, once; a second one is invented."""
    evidence = sound()
    _attempt(evidence, 4, state=State.UNKNOWN)
    assert not check(evidence).findings
    evidence.source = [*evidence.source[:5], replace(evidence.source[4], offset=5),
                       *evidence.source[5:]]  # fmt: skip
    assert [f.what.split(":")[0] for f in check(evidence).findings] == ["invented"]


def test_the_highest_source_offset_counts_and_not_the_last_record() -> None:
    """A late write of an older state does no harm, and is counted."""
    evidence = sound()
    evidence.positions = [*evidence.positions, replace(evidence.positions[0], offset=2)]
    verdict = check(evidence)
    assert not verdict.findings
    assert verdict.counts["late_writes"] == 1


def test_a_quarantined_batch_leaves_a_hole_with_a_pointer() -> None:
    """Records that nobody can read are no gap where a pointer tells of them."""
    evidence = sound()
    evidence.source = [r for r in evidence.source if r.partition == 0] + [
        replace(record, offset=record.offset + 3) for record in evidence.source if record.partition
    ]
    _state(evidence, 2, source={"topic": TOPIC, "partition": 1, "offset": 3})
    evidence.holes = {1: range(3)}
    evidence.committed = {0: 5, 1: 5}
    assert [f.what.split(":")[0] for f in check(evidence).findings] == ["quarantine"]
    gone = LogRecord(1, 0, None, b"", {})
    evidence.letters = [*evidence.letters, letter(0, gone, b"batch-unreadable")]
    assert not check(evidence).findings


def test_sent_twice_depends_on_blocks_of_the_window() -> None:
    """In the same block or the next one it is a duplicate, or a conflict; later it is new."""
    again = trade(1, AT_0, published_at="later")
    values = [trade(1, AT_0), again, trade(5, AT_0), trade(7, AT_0), again,
              *(trade(n, AT_0) for n in range(11, 16)), again, trade(15, AT_0, "11")]  # fmt: skip
    records = [LogRecord(0, n, None, value, {}) for n, value in enumerate(values)]
    expected = expect(records, 1, window=3)
    duplicates = [n for (_, n), fate in expected.fates.items() if fate is Fate.DUPLICATE]
    assert duplicates == [1, 4]  # 10 stands two blocks after 4
    assert expected.reasons == {(0, 11): "version-conflict"}
    assert expect(records, 1).models[AT_0].trades == len(records)


def test_trade_is_compared_with_the_first_of_its_id_in_a_block() -> None:
    """What is a conflict in one block is the trade to the next one: older blocks are forgotten."""
    other = trade(1, AT_0, "11")
    values = [trade(1, AT_0), trade(2, AT_0), other, trade(3, AT_0), other]
    records = [LogRecord(0, n, None, value, {}) for n, value in enumerate(values)]
    expected = expect(records, 1, window=2)
    assert expected.reasons == {(0, 2): "version-conflict"}
    assert expected.fates[0, 4] is Fate.DUPLICATE


def test_keys_are_placed_as_the_java_client_does() -> None:
    """Our own hash agrees with the client's."""
    for size in range(40):
        key = bytes(range(200, 200 + size))
        assert partition_of(key, 97) == (murmur2(key) & 0x7FFFFFFF) % 97


def test_a_commit_may_pass_what_waits_and_not_what_lets_it_go_on() -> None:
    """The AMEND is in the ledger; the position that it makes has to be there with its NEW."""
    values = [trade(1, AT_0, action="AMEND", version=2), trade(1, AT_0)]
    state = {"quantity": "2", "mark": "10", "realized_pnl": "0", "unrealized_pnl": "0"}
    evidence = Evidence(
        topic=TOPIC,
        partitions=1,
        source=[LogRecord(0, n, AT_0.encode(), value, {}) for n, value in enumerate(values)],
        letters=[],
        positions=[position(0, AT_0, (0, 1), **state)],
        committed={0: 2},
        tables=Tables(),
    )
    for committed, due in ((1, []), (2, [4])):
        evidence.samples = [Sample(0, {0: committed}, {0: 2}, {0: 0}, {0: 0})]
        found = check(evidence).findings
        assert [finding.rule for finding in found if finding.rule <= 4] == due
