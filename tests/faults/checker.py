"""Proves that nothing was lost, doubled or invented, from what stands in the logs and journals.

The rules, by number:

    1  acknowledged trades stand where they were acknowledged; whatever stands in the topic was
       journaled; what was not sent is absent; the order of each key is that of the journal
    2  every record has one fate: dead letters equal their originals, misplaced trades are re-keyed
    3  positions equal the oracle, from the record with the highest source offset
    4  a committed offset is never ahead of acknowledged effects, at the end and while it ran

and of a ledger those of `ledger_rules`, from 5 on.
"""

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Any, Final

from tests.faults.journal import Attempt, State, digest
from tests.faults.ledger_rules import check_tables, topic_differs
from tests.faults.oracle import REKEYED_FROM, Expected, Fate, Model, Place, expect
from tests.faults.reading import LogRecord
from tests.faults.tables import LedgerSample, Tables

SHOWN: Final = 20
FINDINGS: Final = (
    "lost", "doubled", "invented", "wrong", "damaged", "overtaken", "ahead", "quarantine"
)  # fmt: skip
"""What a finding can be."""
_NEVER: Final = 1 << 62
_UNREADABLE: Final = b"batch-unreadable"


@dataclass(frozen=True, slots=True)
class Sample:
    """The commits of a group at one moment, and the ends of the logs a moment later."""

    at_ns: int
    committed: Mapping[int, int]
    source_ends: Mapping[int, int]
    position_ends: Mapping[int, int]
    letter_ends: Mapping[int, int]


@dataclass(kw_only=True)
class Evidence:
    """Everything that is known when faults have stopped.

    Attributes:
        topic: Name of the source topic.
        partitions: Of each topic; more that were added to the source are not looked at.
        source: Records of the source topic, in partition and offset order; likewise `letters`, the
            dead letters, and `positions`.
        committed: The group's commits.
        attempts: The journal; `None` where nobody kept one.
        samples: Commits and ends while it ran; of no use once the positions were compacted.
        window: Of the rule for trades sent twice.
        holes: Offsets of the batch that nobody can read, by partition: its bytes are quarantined.
        tables: The ledger, where there is one.
        ledger_samples: The ledger while it ran.
        is_deadline_over: As of `expect`.
    """

    topic: str
    partitions: int
    source: Sequence[LogRecord]
    letters: Sequence[LogRecord]
    positions: Sequence[LogRecord]
    committed: Mapping[int, int]
    attempts: Sequence[Attempt] | None = None
    samples: Sequence[Sample] = ()
    window: int = 0
    holes: Mapping[int, range] = field(default_factory=dict)
    tables: Tables | None = None
    ledger_samples: Sequence[LedgerSample] = ()
    is_deadline_over: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `digest` names a value to look for on the brokers' disks."""

    rule: int
    what: str
    digest: str | None = None


@dataclass
class Verdict:
    """What was counted, and what is wrong; nothing may be."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def blame(self, rule: int, kind: str, what: str, sha: str | None = None) -> None:
        """Note something wrong, and count it."""
        self.counts[kind] += 1
        self.findings.append(Finding(rule, f"{kind}: {what}", sha))

    def report(self) -> str:
        """Say what was counted, and the first of what is wrong."""
        lines = [", ".join(f"{name} {count:,}" for name, count in self.counts.items())]
        lines += [f"rule {finding.rule}, {finding.what}" for finding in self.findings[:SHOWN]]
        if len(self.findings) > SHOWN:
            lines.append(f"and {len(self.findings) - SHOWN} more")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Stored:
    """A position record, decoded."""

    record: LogRecord
    state: dict[str, Any]

    @property
    def key(self) -> str:
        """Key of the position."""
        return (self.record.key or b"").decode()

    @property
    def age(self) -> tuple[int, int]:
        """How new it is: generation, source offset."""
        return int(self.state.get("generation", 0)), int(self.state["source"]["offset"])


def stored_positions(records: Iterable[LogRecord]) -> list[Stored]:
    """Decode position records, without heartbeats."""
    decoded = (
        Stored(record, json.loads(record.value)) for record in records if record.value is not None
    )
    return [stored for stored in decoded if stored.state["type"] == "position"]


def newest_positions(stored: Iterable[Stored]) -> dict[str, Stored]:
    """Give the state of each key: that of the record with the highest source offset."""
    newest: dict[str, Stored] = {}
    for one in stored:
        if one.key not in newest or one.age >= newest[one.key].age:
            newest[one.key] = one
    return newest


def check(evidence: Evidence) -> Verdict:
    """Apply every rule."""
    verdict = Verdict()
    tables = evidence.tables
    rows = None if tables is None else tables.first_versions
    expected = expect(
        evidence.source,
        evidence.partitions,
        window=evidence.window,
        rows=rows,
        is_deadline_over=evidence.is_deadline_over,
    )
    verdict.counts["records"] = len(evidence.source)
    verdict.counts.update(fate.value for fate in expected.fates.values())
    _check_offsets(verdict, evidence)
    stored = stored_positions(evidence.positions)
    if evidence.attempts is not None:
        _check_journal(verdict, evidence, evidence.attempts)
    letters = _check_letters(verdict, evidence, expected)
    _check_rekeyed(verdict, evidence, expected)
    _check_positions(verdict, expected, stored)
    _check_commits(verdict, evidence, expected, stored, letters)
    if tables is not None:
        _check_ledger(verdict, evidence, tables, expected, stored=stored, letters=letters)
    return verdict


# -- rule 1


def _check_journal(verdict: Verdict, evidence: Evidence, attempts: Sequence[Attempt]) -> None:
    verdict.counts.update(attempt.state.value for attempt in attempts)
    unclaimed = {
        (record.partition, record.offset): (_text(record.key), digest(record.value))
        for record in evidence.source
        if REKEYED_FROM not in record.headers
    }
    may_be_there: Counter[tuple[str, str]] = Counter()
    not_sent = {(a.key, a.digest) for a in attempts if a.state is State.NOT_SENT}
    last: dict[tuple[str, str], Attempt] = {}
    for attempt in attempts:
        content = (attempt.key, attempt.digest)
        if attempt.state is State.UNKNOWN:
            may_be_there[content] += 1
        if attempt.state is not State.OK:
            continue
        place = (attempt.partition, attempt.offset)
        if attempt.partition >= evidence.partitions:
            continue  # one that was added, which nobody may read
        if attempt.offset in evidence.holes.get(attempt.partition, ()):
            continue
        if unclaimed.pop(place, None) != content:
            verdict.blame(1, "lost", f"{attempt.trade_id} was stored at {place}", attempt.digest)
        _check_order(verdict, last, attempt)
    for place, content in unclaimed.items():
        may_be_there[content] -= 1
        if may_be_there[content] < 0:
            why = "was not sent" if content in not_sent else "is in no journal"
            verdict.blame(1, "invented", f"the record at {place} {why}")


def _check_order(verdict: Verdict, last: dict[tuple[str, str], Attempt], attempt: Attempt) -> None:
    if attempt.is_repeat or not attempt.key:
        return
    before = last.get((attempt.run, attempt.key))
    if before and (before.partition, before.offset) >= (attempt.partition, attempt.offset):
        verdict.blame(
            1,
            "overtaken",
            f"{attempt.trade_id} at {attempt.partition}/{attempt.offset} was sent after"
            f" {before.trade_id} at {before.partition}/{before.offset}",
        )
    last[attempt.run, attempt.key] = attempt


def _text(key: bytes | None) -> str:
    return (key or b"").decode("utf-8", "backslashreplace")


# -- rule 2


def _check_offsets(verdict: Verdict, evidence: Evidence) -> None:
    """Nobody uses transactions here and nothing is compacted: offsets have no gaps."""
    expected_next: Counter[int] = Counter()
    for record in evidence.source:
        hole = evidence.holes.get(record.partition, range(0))
        if expected_next[record.partition] == hole.start:
            expected_next[record.partition] += len(hole)
        if record.offset != expected_next[record.partition]:
            verdict.blame(2, "lost", f"offsets before {record.partition}/{record.offset}")
        expected_next[record.partition] = record.offset + 1


def _check_letters(
    verdict: Verdict, evidence: Evidence, expected: Expected
) -> dict[Place, LogRecord]:
    """Compare the dead letters with their originals; give the first one of each."""
    refused = {place for place, fate in expected.fates.items() if fate is Fate.DEAD_LETTERED}
    originals = {
        place: record
        for record in evidence.source
        if (place := (record.partition, record.offset)) in refused
    }
    first: dict[Place, LogRecord] = {}
    pointers: set[Place] = set()
    for letter in evidence.letters:
        origin = (
            int(letter.headers["__dlq.errors.partition"] or -1),
            int(letter.headers["__dlq.errors.offset"] or -1),
        )
        if origin in first:
            verdict.counts["letters_repeated"] += 1
        if letter.headers["x-dlq-reason"] == _UNREADABLE:
            pointers.add(origin)
            continue
        original = originals.get(origin)
        if original is None:
            verdict.blame(2, "invented", f"dead letter of {origin}, which is no poison")
        elif problem := _difference(letter, original, evidence.topic):
            verdict.blame(2, "damaged", f"dead letter of {origin}: {problem}")
        elif not expected.allows(origin, reason := _text(letter.headers["x-dlq-reason"])):
            verdict.blame(2, "damaged", f"dead letter of {origin} says {reason}")
        first.setdefault(origin, letter)
    holes = {(partition, hole.start) for partition, hole in evidence.holes.items()}
    verdict.counts["quarantined"] = sum(len(hole) for hole in evidence.holes.values())
    for place in pointers ^ holes:
        verdict.blame(2, "quarantine", f"pointer to an unreadable batch at {place}, or none")
    for place in sorted(refused - first.keys()):
        verdict.blame(2, "lost", f"no dead letter of {place}", digest(originals[place].value))
    return first


def _difference(letter: LogRecord, original: LogRecord, topic: str) -> str:
    is_equal = {
        "topic": letter.headers["__dlq.errors.topic"] == topic.encode(),
        "partition": letter.partition == original.partition,
        "key": letter.key == original.key,
        "value": letter.value == (original.value or b""),
        "null": ("x-dlq-value-was-null" in letter.headers) == (original.value is None),
        "headers": original.headers.items() <= letter.headers.items(),
    }
    return ", ".join(name for name, equal in is_equal.items() if not equal)


def _check_rekeyed(verdict: Verdict, evidence: Evidence, expected: Expected) -> None:
    misplaced = {place for place, fate in expected.fates.items() if fate is Fate.REKEYED}
    records = {(record.partition, record.offset): record for record in evidence.source}
    for origin in sorted(expected.origins.keys() - misplaced):
        verdict.blame(2, "invented", f"re-keyed from {origin}, which is no misplaced trade")
    for origin in sorted(misplaced):
        copies = expected.origins.get(origin)
        if copies is None:
            value = records[origin].value
            verdict.blame(2, "lost", f"misplaced trade at {origin} not re-keyed", digest(value))
            continue
        verdict.counts["rekeyed_again"] += len(copies) - 1
        if any(records[copy].value != records[origin].value for copy in copies):
            verdict.blame(2, "damaged", f"trade re-keyed from {origin}")


# -- rule 3


def _check_positions(verdict: Verdict, expected: Expected, stored: Sequence[Stored]) -> None:
    newest = newest_positions(stored)
    verdict.counts["positions"] = len(newest)
    verdict.counts["late_writes"] = _late_writes(stored)
    for key in sorted(newest.keys() - expected.models.keys()):
        verdict.blame(3, "invented", f"position {key}")
    for key, model in sorted(expected.models.items()):
        if key not in newest:
            verdict.blame(3, "lost", f"position {key} with {model.trades} trades")
            continue
        trades = int(newest[key].state["trade_count"])
        if trades != model.trades:
            kind = "lost" if trades < model.trades else "doubled"
            verdict.blame(3, kind, f"position {key} has {trades} of {model.trades} trades")
        elif problem := _position_difference(newest[key], model):
            verdict.blame(3, "wrong", f"position {key}: {problem}")


def _late_writes(stored: Iterable[Stored]) -> int:
    newest: dict[str, tuple[int, int]] = {}
    late = 0
    for one in stored:
        late += one.age < newest.get(one.key, one.age)
        newest[one.key] = max(newest.get(one.key, one.age), one.age)
    return late


def _position_difference(stored: Stored, model: Model) -> str:
    amounts = {
        name: Fraction(stored.state.get(name, "0"))
        for name in ("quantity", "mark", "realized_pnl", "unrealized_pnl")
    }
    total = amounts["realized_pnl"] + amounts["unrealized_pnl"]
    source, state = stored.state["source"], model.state
    is_equal = {
        "quantity": amounts["quantity"] == state.quantity,
        "mark": amounts["mark"] == state.mark,
        # Exact in sum; the split between the two may differ in the 24th decimal a close.
        "total": total == state.realized + state.quantity * state.mark - state.cost,
        "realized": abs(amounts["realized_pnl"] - state.realized)
        <= model.trades * Fraction(1, 10**24),
        "source": (source["partition"], source["offset"]) == model.last,
        "partition": stored.record.partition == model.last[0],
    }
    return ", ".join(name for name, equal in is_equal.items() if not equal)


# -- rule 4


@dataclass
class _Cover:
    """Up to where each log has to reach for a commit to be honest.

    Lists by source partition; item `n` is the end that a commit of offset `n` needs: of the
    positions and the dead letters in the same partition, and of each partition of the source.
    """

    positions: dict[int, list[int]]
    letters: dict[int, list[int]]
    source: dict[int, dict[int, list[int]]]


def _cover(
    evidence: Evidence,
    expected: Expected,
    stored: Sequence[Stored],
    letters: Mapping[Place, LogRecord],
) -> _Cover:
    reached = _reached(stored)
    needs: dict[int, list[tuple[int, int, dict[int, int]]]] = defaultdict(list)
    for (partition, offset), fate in expected.fates.items():
        # A source without transactions has no gaps; where it had one, nothing is needed there.
        of_partition = needs[partition]
        of_partition += [(0, 0, {})] * (offset - len(of_partition))
        position = letter = 0
        copy: dict[int, int] = {}
        if (partition, offset) in expected.waited:
            pass  # the ledger has it, until all that it came to is acknowledged
        elif fate is Fate.BOOKED:
            offsets, ends = reached.get(expected.booked[partition, offset].key, ([], []))
            index = bisect_left(offsets, offset)
            position = ends[index] if index < len(ends) else _NEVER
        elif fate is Fate.DEAD_LETTERED:
            found = letters.get((partition, offset))
            letter = _NEVER if found is None else found.offset + 1
        elif fate is Fate.REKEYED:
            copies = expected.origins.get((partition, offset))
            copy = {copies[0][0]: copies[0][1] + 1} if copies else {partition: _NEVER}
        of_partition.append((position, letter, copy))
    return _Cover(
        {p: [0, *accumulate((n[0] for n in of), max)] for p, of in needs.items()},
        {p: [0, *accumulate((n[1] for n in of), max)] for p, of in needs.items()},
        {
            p: {
                home: [0, *accumulate((n[2].get(home, 0) for n in of), max)]
                for home in range(evidence.partitions)
            }
            for p, of in needs.items()
        },
    )


def _reached(stored: Iterable[Stored]) -> dict[str, tuple[list[int], list[int]]]:
    """Give, by key, ascending source offsets and the end of the log that first covers each."""
    reached: dict[str, tuple[list[int], list[int]]] = {}
    for one in stored:
        offsets, ends = reached.setdefault(one.key, ([], []))
        if not offsets or one.age[1] > offsets[-1]:
            offsets.append(one.age[1])
            ends.append(one.record.offset + 1)
    return reached


def _check_commits(
    verdict: Verdict,
    evidence: Evidence,
    expected: Expected,
    stored: Sequence[Stored],
    letters: Mapping[Place, LogRecord],
) -> None:
    cover = _cover(evidence, expected, stored, letters)
    everything = dict.fromkeys(range(evidence.partitions), _NEVER - 1)
    last = Sample(0, evidence.committed, everything, everything, everything)
    verdict.counts["samples"] = len(evidence.samples)
    for sample in (*evidence.samples, last):
        when = "while it ran" if sample is not last else "at the end"
        for partition, committed in sample.committed.items():
            needs = {
                "positions": (cover.positions, sample.position_ends),
                "dead letters": (cover.letters, sample.letter_ends),
            }
            for what, (needed, ends) in needs.items():
                if _at(needed.get(partition, []), committed) > ends[partition]:
                    verdict.blame(
                        4, "ahead", f"{when}, commit {committed} of {partition} before its {what}"
                    )
            for home, needed_copies in cover.source.get(partition, {}).items():
                if _at(needed_copies, committed) > sample.source_ends[home]:
                    verdict.blame(
                        4, "ahead", f"{when}, commit {committed} of {partition} before re-keying"
                    )


def _at(needed: Sequence[int], committed: int) -> int:
    return needed[min(committed, len(needed) - 1)] if needed else 0


# -- rules of the ledger


def _check_ledger(
    verdict: Verdict,
    evidence: Evidence,
    tables: Tables,
    expected: Expected,
    *,
    stored: Sequence[Stored],
    letters: Mapping[Place, LogRecord],
) -> None:
    ends = dict.fromkeys(range(evidence.partitions), 0)
    for record in evidence.source:
        ends[record.partition] = record.offset + 1
    reasons = {
        place: (letter.headers["x-dlq-reason"] or b"").decode() for place, letter in letters.items()
    }
    verdict.counts["rows"] = len(tables.trades)
    verdict.counts["corrections"] = len(tables.corrections)
    verdict.counts["released"] = sum(at is not None for at in expected.waited.values())
    verdict.counts.update(expected.reasons.values())
    verdict.counts["ledger_samples"] = len(evidence.ledger_samples)
    for rule, kind, what in check_tables(
        tables,
        evidence.ledger_samples,
        expected=expected,
        reasons=reasons,
        ends=ends,
        committed=evidence.committed,
    ):
        verdict.blame(rule, kind, what)
    newest = newest_positions(stored)
    for row in tables.positions:
        if row.key not in newest:
            verdict.blame(6, "lost", f"position {row.key} is in the table and not in the topic")
        elif problem := topic_differs(row, newest[row.key].state):
            verdict.blame(6, "wrong", f"position {row.key} in table and topic: {problem}")
