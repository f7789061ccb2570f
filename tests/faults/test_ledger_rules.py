"""The rules of the ledger are content with sound tables, and find each kind of damage in others."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest

from tests.faults.ledger_rules import check_tables, topic_differs
from tests.faults.oracle import Fate, Place, State, expect
from tests.faults.reading import LogRecord
from tests.faults.tables import CorrectionRow, LedgerSample, PositionRow, Sums, Tables, TradeRow

FIRST, SECOND, OTHER, POISON, CONFLICT = (0, 0), (0, 1), (0, 2), (0, 3), (0, 4)
AMENDED, CANCELLED, AFTER = (0, 6), (0, 7), (0, 8)
EARLY, ORPHANED, AWAITED = (0, 9), (0, 10), (0, 11)
SECOND_NS = 1_772_443_800 * 10**9  # 2026-03-02T09:30:00Z


def trade(
    trade_id: str, side: str, price: str, quantity: str, symbol: str = "S", **more: Any
) -> LogRecord:
    """Give a good event; its place is set later."""
    event = {"trade_id": trade_id, "symbol": symbol, "side": side, "price": price,
             "quantity": quantity, "timestamp": "2026-03-02T09:30:00Z"}  # fmt: skip
    return LogRecord(0, 0, None, json.dumps(event | more | {"note": "GOOD"}).encode(), {})


def log(*records: LogRecord) -> list[LogRecord]:
    """Put records one after the other into partition 0."""
    return [replace(record, offset=offset) for offset, record in enumerate(records)]


RECORDS = log(
    trade("T1", "BUY", "10", "3"),
    trade("T2", "SELL", "11", "1"),
    trade("T3", "BUY", "0.5", "2", symbol="R"),
    LogRecord(0, 0, None, b"{", {}),
    trade("T1", "BUY", "10", "4"),
    trade("T2", "SELL", "11", "1"),
    trade("T1", "BUY", "8", "3", action="AMEND", version=2, timestamp="2026-03-02T10:00:00Z"),
    trade("T3", "BUY", "0.5", "2", symbol="R", action="CANCEL", version=2),
    trade("T3", "BUY", "0.5", "2", symbol="R", action="AMEND", version=3),
    trade("T4", "BUY", "5", "2", symbol="Q", action="AMEND", version=2),
    trade("T5", "BUY", "1", "1", symbol="Q", action="CANCEL", version=2),
    trade("T4", "BUY", "4", "2", symbol="Q"),
)


@dataclass
class History:
    """Tables, and what else the rules are told."""

    tables: Tables
    samples: list[LedgerSample]
    reasons: dict[Place, str]
    committed: dict[int, int]
    is_deadline_over: bool = False

    def findings(self) -> list[str]:
        """Apply the rules; give rule and kind of what they find."""
        expected = expect(
            RECORDS,
            1,
            rows=self.tables.first_versions,
            is_deadline_over=self.is_deadline_over,
        )
        found = check_tables(
            self.tables,
            self.samples,
            expected=expected,
            reasons=self.reasons,
            ends={0: 12},
            committed=self.committed,
        )
        return [f"{rule} {kind}" for rule, kind, _ in found]


def sound() -> History:
    """Give what the records have to come to, and a snapshot of when two of them were booked."""

    def position(place: Place, key: str, *amounts: str, trades: int) -> PositionRow:
        quantity, cost, realized, mark = map(Fraction, amounts)
        return PositionRow(place, key, quantity, cost, realized, mark, trades)

    def row(place: Place, side: str, price: str, quantity: str, *, of: tuple[str, str],
            action: str = "NEW") -> TradeRow:  # fmt: skip
        (trade_id, symbol), version = of, 1 if action == "NEW" else 2
        amounts = Fraction(price), Fraction(quantity)
        return TradeRow(place, trade_id, "", symbol, side, *amounts, action, version, SECOND_NS)

    def correction(place: Place, key: str, *amounts: str) -> CorrectionRow:
        numbers = tuple(map(Fraction, amounts))
        return CorrectionRow(place, key, numbers[:4], numbers[4:])

    letters = {POISON: "body-not-json", CONFLICT: "version-conflict", AFTER: "after-cancel"}
    before = position(SECOND, "S", "2", "20", "1", "11", trades=2)
    changed = [
        position(AMENDED, "S", "2", "16", "3", "11", trades=2),
        position(CANCELLED, "R", "0", "0", "0", "0", trades=0),
    ]
    return History(
        Tables(
            next_offsets={0: 12},
            positions=[
                position(AMENDED, "S", "2", "16", "3", "11", trades=2),
                position(CANCELLED, "R", "0", "0", "0", "0", trades=0),
                position(AWAITED, "Q", "2", "10", "0", "5", trades=1),
            ],
            trades=[
                row(FIRST, "BUY", "10", "3", of=("T1", "S")),
                row(SECOND, "SELL", "11", "1", of=("T2", "S")),
                row(OTHER, "BUY", "0.5", "2", of=("T3", "R")),
                row(AMENDED, "BUY", "8", "3", of=("T1", "S"), action="AMEND"),
                row(CANCELLED, "BUY", "0.5", "2", of=("T3", "R"), action="CANCEL"),
                row(EARLY, "BUY", "5", "2", of=("T4", "Q"), action="AMEND"),
                row(AWAITED, "BUY", "4", "2", of=("T4", "Q")),
            ],
            ids=[("T1", 1, FIRST), ("T2", 1, SECOND), ("T3", 1, OTHER), ("T1", 2, AMENDED),
                 ("T3", 2, CANCELLED), ("T4", 1, AWAITED), ("T4", 2, EARLY)],
            fills=[SECOND, AMENDED, EARLY],
            corrections=[
                correction(AMENDED, "S", "2", "20", "1", "0", "2", "16", "3", "0"),
                correction(CANCELLED, "R", "2", "1", "0", "0", "0", "0", "0", "0"),
                correction(EARLY, "Q", "2", "8", "0", "0", "2", "10", "0", "0"),
            ],
            letters=dict(letters),
            parked={ORPHANED: ""},
        ),
        [
            LedgerSample(0, {}, {}, [], {}, 0, {}),
            LedgerSample(1, {0: 1}, {0: 2}, [before], {0: Sums(2, 1, 1, Fraction(41))}, 2, {}),
            LedgerSample(
                2, {0: 2}, {0: 7},
                [position(AMENDED, "S", "2", "16", "3", "11", trades=2),
                 position(OTHER, "R", "2", "1", "0", "0.5", trades=1)],
                {0: Sums(4, 9, 41, Fraction(66))}, 4, {0: 1},
            ),
            LedgerSample(
                3, {0: 9}, {0: 11}, changed,
                {0: Sums(5, 16, 90, Fraction(67))}, 5, {0: 2}, {EARLY, ORPHANED},
            ),
            LedgerSample(
                4, {0: 9}, {0: 12},
                [*changed, position(AWAITED, "Q", "2", "10", "0", "5", trades=1)],
                {0: Sums(7, 36, 292, Fraction(85))}, 7, {0: 3}, {ORPHANED},
            ),
        ],
        letters,
        {0: 12},
    )  # fmt: skip


def test_sound_tables_have_no_findings() -> None:
    """The fates are those of a ledger that has no window."""
    assert sound().findings() == []
    fates = expect(RECORDS, 1, rows=sound().tables.first_versions).fates
    assert [fates[0, offset] for offset in range(12)] == [
        *(Fate.BOOKED, Fate.BOOKED, Fate.BOOKED),
        *(Fate.DEAD_LETTERED, Fate.DEAD_LETTERED, Fate.DUPLICATE),
        *(Fate.BOOKED, Fate.BOOKED, Fate.DEAD_LETTERED),
        *(Fate.BOOKED, Fate.PARKED, Fate.BOOKED),
    ]


def _changed(index: int, of: str, **changes: Any) -> Callable[[History], None]:
    def spoil(history: History) -> None:
        rows = getattr(history.tables, of)
        rows[index] = replace(rows[index], **changes)

    return spoil


def _sampled(index: int = 1, **changes: Any) -> Callable[[History], None]:
    def spoil(history: History) -> None:
        history.samples[index] = replace(history.samples[index], **changes)

    return spoil


DAMAGES: dict[str, tuple[Callable[[History], Any], str]] = {
    "a row is missing": (lambda h: h.tables.trades.pop(), "5 lost"),
    "a row is there twice": (lambda h: h.tables.trades.append(h.tables.trades[0]), "5 doubled"),
    "a row of a duplicate": (
        lambda h: h.tables.trades.append(replace(h.tables.trades[1], place=(0, 5))),
        "5 doubled",
    ),
    "a row of nothing": (
        lambda h: h.tables.trades.append(replace(h.tables.trades[1], place=(0, 12), trade_id="X")),
        "5 invented",
    ),
    "another price": (_changed(0, "trades", price=Fraction(9)), "5 damaged"),
    "another action": (_changed(3, "trades", action="NEW"), "5 damaged"),
    "another version": (_changed(3, "trades", version=3), "5 damaged"),
    "a change of the execution time": (
        _changed(3, "trades", executed_ns=SECOND_NS + 1),
        "5 damaged",
    ),
    "a row of what came after the end": (
        lambda h: h.tables.trades.append(replace(h.tables.trades[4], place=AFTER, version=3)),
        "5 invented",
    ),
    "a fill is missing": (lambda h: h.tables.fills.pop(), "5 lost"),
    "a fill of an older version": (lambda h: h.tables.fills.append(FIRST), "5 invented"),
    "a fill of a cancelled trade": (lambda h: h.tables.fills.append(CANCELLED), "5 invented"),
    "a fill is there twice": (lambda h: h.tables.fills.append(SECOND), "5 doubled"),
    "another reason of a change": (
        lambda h: (
            h.tables.letters.update({AFTER: "key-changed"}),
            h.reasons.update({AFTER: "key-changed"}),
        ),
        "5 damaged",
    ),
    "a version is there twice": (lambda h: h.tables.ids.append(("T1", 2, CANCELLED)), "5 doubled"),
    "a correction is missing": (lambda h: h.tables.corrections.pop(), "6 lost"),
    "a correction of nothing": (
        lambda h: h.tables.corrections.append(replace(h.tables.corrections[0], place=SECOND)),
        "6 invented",
    ),
    "a correction is there twice": (
        lambda h: h.tables.corrections.append(h.tables.corrections[0]),
        "6 doubled",
    ),
    "a correction of another position": (_changed(0, "corrections", key="R"), "6 wrong"),
    "a correction from elsewhere": (
        lambda h: _changed(0, "corrections", before=h.tables.corrections[0].after)(h),
        "6 wrong",
    ),
    "a correction to elsewhere": (
        lambda h: _changed(0, "corrections", after=h.tables.corrections[0].before)(h),
        "6 wrong",
    ),
    "a change that is in no position": (
        _changed(0, "positions", cost=Fraction(20), realized=Fraction(1)),
        "6 wrong",
    ),
    "a cancelled trade in a position": (_changed(1, "positions", trades=1), "6 doubled"),
    "a snapshot without its correction": (_sampled(2, corrections={}), "6 lost"),
    "a snapshot with a correction too many": (_sampled(2, corrections={0: 2}), "6 doubled"),
    "a snapshot before a change that it has": (
        lambda h: _sampled(2, positions=[h.samples[1].positions[0], h.samples[2].positions[1]])(h),
        "6 wrong",
    ),
    "an id is missing": (lambda h: h.tables.ids.pop(), "5 lost"),
    "an id of nothing": (lambda h: h.tables.ids.append(("X", 1, FIRST)), "5 invented"),
    "a dead letter is missing": (lambda h: h.tables.letters.pop(POISON), "5 lost"),
    "a dead letter of a trade": (lambda h: h.tables.letters.update({FIRST: "x"}), "5 invented"),
    "another reason": (lambda h: h.tables.letters.update({POISON: "x"}), "5 damaged"),
    "a position is missing": (lambda h: h.tables.positions.pop(), "6 lost"),
    "a position of nothing": (
        lambda h: h.tables.positions.append(replace(h.tables.positions[0], key="X")),
        "6 invented",
    ),
    "a trade is not in a position": (_changed(0, "positions", trades=1), "6 lost"),
    "a trade is twice in a position": (_changed(0, "positions", trades=3), "6 doubled"),
    "a cost is off by the last digit": (
        _changed(0, "positions", cost=16 + Fraction(1, 10**24)),
        "6 wrong",
    ),
    "a position of another offset": (_changed(0, "positions", place=FIRST), "6 wrong"),
    "the offset is behind": (lambda h: h.tables.next_offsets.update({0: 8}), "7 lost"),
    "the offset is beyond the end": (lambda h: h.tables.next_offsets.update({0: 13}), "7 invented"),
    "a commit is ahead": (lambda h: h.committed.update({0: 13}), "7 ahead"),
    "a commit was ahead": (_sampled(committed={0: 3}), "7 ahead"),
    "the offset went back": (lambda h: h.samples.reverse(), "7 wrong"),
    "a snapshot without its positions": (_sampled(positions=[]), "6 lost"),
    "a snapshot with other trades": (_sampled(sums={0: Sums(2, 2, 4, Fraction(41))}), "6 doubled"),
    "a snapshot with too few trades": (_sampled(sums={}), "6 lost"),
    "a snapshot with an id too many": (_sampled(ids=3), "6 wrong"),
    "a snapshot ahead of its trades": (_sampled(next_offsets={0: 3}), "6 lost"),
    "what waits is nowhere": (lambda h: h.tables.parked.clear(), "5 lost"),
    "what waits is about to be refused": (
        lambda h: h.tables.parked.update({ORPHANED: "orphan-lifecycle"}),
        "5 wrong",
    ),
    "what is booked waits still": (lambda h: h.tables.parked.update({EARLY: ""}), "5 doubled"),
    "what was not sent waits": (lambda h: h.tables.parked.update({(0, 12): ""}), "5 doubled"),
    "a position at what came last into it": (_changed(2, "positions", place=EARLY), "6 wrong"),
    "a snapshot without what waits": (_sampled(3, waiting={ORPHANED}), "6 lost"),
    "a snapshot where what is booked waits": (_sampled(4, waiting={EARLY, ORPHANED}), "6 doubled"),
    "a snapshot with what is not reached": (_sampled(1, waiting={EARLY}), "6 doubled"),
    "a snapshot with what waits booked": (
        _sampled(3, sums={0: Sums(6, 25, 171, Fraction(77))}),
        "6 doubled",
    ),
    "a snapshot with a correction of what waits": (_sampled(3, corrections={0: 3}), "6 doubled"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(name: str) -> None:
    """Each one by the rule that it breaks."""
    history = copy.deepcopy(sound())
    spoil, kind = DAMAGES[name]
    spoil(history)
    assert kind in history.findings()


def test_when_the_deadline_is_over_what_waits_in_vain_is_a_dead_letter() -> None:
    """When that became of it nobody can say: a snapshot may have it parked, or not."""
    history = sound()
    history.is_deadline_over = True
    assert history.findings() == ["5 lost", "5 doubled"]
    del history.tables.parked[ORPHANED]
    history.tables.letters[ORPHANED] = history.reasons[ORPHANED] = "orphan-lifecycle"
    assert history.findings() == []
    _sampled(4, waiting=())(history)
    assert history.findings() == []
    _sampled(3, waiting={ORPHANED})(history)
    assert history.findings() == ["6 lost"], "its NEW comes in time"


def test_of_several_partitions_the_ledger_says_which_trade_was_first() -> None:
    """The others are conflicts where they say something else; never is one booked in two."""
    symbols = {0: "A", 1: "E"}
    records = [
        replace(trade("T1", "BUY", "10", "3", symbol=symbol), partition=partition)
        for partition, symbol in symbols.items()
    ]
    homes = expect(records, 2).fates
    assert set(homes.values()) == {Fate.BOOKED}, "each symbol is at home in its partition"
    for winner, loser in (((0, 0), (1, 0)), ((1, 0), (0, 0))):
        expected = expect(records, 2, rows={"T1": winner})
        assert expected.fates == {winner: Fate.BOOKED, loser: Fate.DEAD_LETTERED}
        assert expected.reasons == {loser: "version-conflict"}


def test_table_and_topic_are_compared_to_the_last_digit() -> None:
    """What the topic leaves out is zero."""
    row = sound().samples[1].positions[0]
    state = {
        "quantity": "2", "realized_pnl": "1", "unrealized_pnl": "2", "mark": "11",
        "trade_count": 2, "source": {"partition": 0, "offset": 1},
    }  # fmt: skip
    assert topic_differs(row, state) == ""
    assert topic_differs(row, state | {"realized_pnl": "1.000000000000000000000001"}) == "realized"


TABLE: dict[str, tuple[list[LogRecord], list[str]]] = {
    "a life": (
        [
            trade("T", "BUY", "1", "1"),
            trade("T", "BUY", "2", "1", action="AMEND", version=2),
            trade("T", "BUY", "2.0", "1", action="AMEND", version=2),
            trade("T", "BUY", "1", "1"),
            trade("T", "BUY", "3", "1"),
            trade("T", "BUY", "3", "1", action="AMEND", version=2),
            trade("T", "BUY", "2", "1", action="CANCEL", version=3),
            trade("T", "BUY", "2", "1", action="CANCEL", version=3),
            trade("T", "BUY", "2", "1", action="AMEND", version=4),
        ],
        ["booked", "booked", "duplicate", "stale", "version-conflict", "version-conflict",
         "booked", "duplicate", "after-cancel"],
    ),
    "numbers that are none": (
        [
            trade("T", "BUY", "1", "1", version=2),
            trade("T", "BUY", "1", "1", action="AMEND", version=1),
            trade("T", "BUY", "1", "1"),
            trade("T", "BUY", "1", "1", version=2),
        ],
        ["version-invalid", "version-invalid", "booked", "version-invalid"],
    ),
    "what comes before what it needs": (
        [
            trade("T", "BUY", "1", "1", action="AMEND", version=2),
            trade("T", "BUY", "1", "1", action="CANCEL"),
            trade("T", "BUY", "1", "1"),
            trade("T", "BUY", "2", "1", action="AMEND", version=3),
        ],
        ["booked", "booked", "booked", "version-conflict"],
    ),
    "versions in the wrong order": (
        [
            trade("T", "BUY", "3", "1", action="AMEND", version=4),
            trade("T", "BUY", "1", "1"),
            trade("T", "BUY", "2", "1", action="CANCEL", version=3),
            trade("T", "BUY", "2", "1", action="CANCEL", version=3),
            trade("T", "BUY", "1", "1", symbol="R", action="AMEND", version=3),
            trade("T", "BUY", "2", "1", action="AMEND", version=3),
            trade("T", "BUY", "2", "1", action="AMEND", version=2),
        ],
        ["after-cancel", "booked", "booked", "duplicate", "key-changed", "version-conflict",
         "booked"],
    ),
    "what waits without a number": (
        [
            trade("T", "BUY", "4", "1", action="AMEND"),
            trade("T", "BUY", "2", "1", action="AMEND", version=2),
            trade("T", "BUY", "2", "1", action="AMEND"),
            trade("T", "BUY", "6", "1", action="AMEND", version=4),
            trade("T", "BUY", "1", "1"),
        ],
        ["booked", "booked", "duplicate", "booked", "booked"],
    ),
    "what never comes": (
        [
            trade("T", "BUY", "1", "1", action="CANCEL"),
            trade("T", "BUY", "2", "1", action="AMEND", version=2),
            trade("U", "BUY", "1", "1"),
            trade("U", "BUY", "2", "1", action="AMEND", version=3),
        ],
        ["parked", "parked", "booked", "parked"],
    ),
    "changes without a number": (
        [
            trade("T", "BUY", "1", "1"),
            trade("T", "BUY", "2", "1", action="AMEND"),
            trade("T", "BUY", "2", "1", action="AMEND"),
            trade("T", "BUY", "3", "1", action="AMEND", version=3),
            trade("T", "BUY", "2", "1", action="AMEND"),
        ],
        ["booked", "booked", "duplicate", "booked", "duplicate"],
    ),
    "another position": (
        [
            trade("T", "BUY", "1", "1"),
            trade("T", "BUY", "1", "1", symbol="R", action="AMEND", version=2),
            trade("T", "BUY", "1", "1", action="AMEND", version=2, book="B"),
        ],
        ["booked", "key-changed", "key-changed"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_the_life_cycle_table_decides(name: str) -> None:
    """Each row of it, from the top."""
    records, due = TABLE[name]
    expected = expect(log(*records), 1, rows={})
    assert due == [
        expected.reasons.get(place, fate.value) for place, fate in expected.fates.items()
    ]


def test_a_change_folds_the_position_in_the_order_of_execution() -> None:
    """What comes later is put on top, whatever its time; fills of one instant are as in the log."""
    records = log(
        trade("T1", "BUY", "10", "2", timestamp="2026-03-02T09:30:02Z"),
        trade("T2", "SELL", "20", "2", timestamp="2026-03-02T09:30:01.000000001Z"),
        trade("T3", "SELL", "12", "1", timestamp="2026-03-02T10:30:01.000000001+01:00"),
        trade("T1", "BUY", "11", "2", action="AMEND", timestamp="2026-03-02T09:30:00Z"),
        trade("T4", "BUY", "13", "1", timestamp="2026-03-02T09:30:00Z"),
        trade("T2", "SELL", "20", "2", action="CANCEL"),
    )
    expected = expect(records, 1, rows={})
    arrived = State(Fraction(-1), Fraction(-12), Fraction(20), Fraction(12))
    # Sold 2 at 20 and 1 at 12: short 3 for 52; 2 are bought back at 11.
    share = round(Fraction(52 * 2, 3), 24)
    amended = State(Fraction(-1), share - 52, share - 22, Fraction(11))
    assert expected.corrections[0, 3] == ("S", arrived, amended)
    on_top = State(Fraction(0), Fraction(0), 52 - 22 - Fraction(13), Fraction(13))
    # 1 bought at 13 and sold at 12; 2 bought at 11.
    cancelled = State(Fraction(2), Fraction(22), Fraction(-1), Fraction(11))
    assert expected.corrections[0, 5] == ("S", on_top, cancelled)
    assert expected.models["S"].trades == 3
