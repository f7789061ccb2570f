"""What the tables of a ledger have to hold, given what the topic has to come to.

The rules, by number, after those of `checker`:

    5  every booked event is one row at its place, as it was sent, of the execution time that its
       trade had first; no version of an id is there twice; the fills are the last version of each
       trade that is not cancelled; the rows of dead letters are the dead letters; parked is what
       waits for an event that has not come, and nothing else
    6  positions equal the oracle exactly, and the positions topic says the same at the end; in any
       snapshot while it ran they are the fold of the trades in it; each event that changed a trade
       has a correction, of what its position was before and after

       An event is in a snapshot if the offset of its partition there is beyond it or, where it came
       too early, beyond the event that let it go on; until then it is parked there
    7  the offsets are the ends of the topic; Kafka's commits are never ahead of them
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from tests.faults.oracle import (
    ORPHAN,
    Booked,
    Correction,
    Expected,
    Fate,
    Model,
    Place,
    State,
)
from tests.faults.tables import (
    Amounts,
    CorrectionRow,
    LedgerSample,
    PositionRow,
    Sums,
    Tables,
    TradeRow,
)

_NO_FEES: Final = Fraction(0)  # the load has none
Blame = tuple[int, str, str]
"""Rule, kind, and what it is."""


def check_tables(
    tables: Tables,
    samples: Sequence[LedgerSample],
    *,
    expected: Expected,
    reasons: Mapping[Place, str],
    ends: Mapping[int, int],
    committed: Mapping[int, int],
) -> Iterator[Blame]:
    """Find what is wrong.

    Args:
        tables: The ledger at the end.
        samples: The ledger while it ran, in the order of time.
        expected: What the topic has to come to.
        reasons: Of the dead letters in their topic, by the place of what they were.
        ends: Of the source topic.
        committed: Kafka's commits at the end.
    """
    yield from _trades(tables, expected)
    yield from _versions(tables, expected)
    yield from _fills(tables, expected)
    yield from _letters(tables, expected, reasons)
    yield from _parked(tables, expected)
    yield from _positions(tables, expected)
    yield from _corrections(tables, expected)
    yield from _offsets(tables, ends, committed)
    yield from _commits(samples)
    yield from check_snapshots(samples, expected)


# -- rule 5


def _trades(tables: Tables, expected: Expected) -> Iterator[Blame]:
    due = {place: (_id(booked), booked.version) for place, booked in expected.booked.items()}
    versions = set(due.values())
    found = set()
    for row in tables.trades:
        found.add(row.place)
        booked = expected.booked.get(row.place)
        if booked is None:
            kind = "doubled" if (row.trade_id, row.version) in versions else "invented"
            yield 5, kind, f"row of {row.trade_id} at {row.place}"
        elif problem := _row_differs(row, booked):
            yield 5, "damaged", f"row of {row.trade_id} at {row.place}: {problem}"
    for place in sorted(due.keys() - found):
        yield 5, "lost", f"no row of {due[place]} at {place}"
    counts = Counter((row.trade_id, row.version) for row in tables.trades)
    for version, count in counts.items():
        if count > 1:
            yield 5, "doubled", f"{version} has {count} rows"


def _row_differs(row: TradeRow, booked: Booked) -> str:
    event = booked.event
    is_equal = {
        "trade_id": row.trade_id == event["trade_id"],
        "book": row.book == event.get("book", ""),
        "symbol": row.symbol == event["symbol"],
        "side": row.side == event["side"],
        "price": row.price == Fraction(event["price"]),
        "quantity": row.quantity == Fraction(event["quantity"]),
        "action": row.action == booked.action,
        "version": row.version == booked.version,
        "executed": row.executed_ns == booked.executed_ns,
    }
    return _unequal(is_equal)


def _id(booked: Booked) -> str:
    return str(booked.event["trade_id"])


def _versions(tables: Tables, expected: Expected) -> Iterator[Blame]:
    due = {(_id(booked), booked.version, place) for place, booked in expected.booked.items()}
    for one in sorted(due ^ set(tables.ids)):
        yield 5, "lost" if one in due else "invented", f"version {one}"
    if len(tables.ids) != len({(trade_id, version) for trade_id, version, _ in tables.ids}):
        yield 5, "doubled", "versions of trades"


def _fills(tables: Tables, expected: Expected) -> Iterator[Blame]:
    last = {_id(booked): booked for booked in expected.booked.values()}
    due = {booked.place for booked in last.values() if booked.action != "CANCEL"}
    for place in sorted(due ^ set(tables.fills)):
        yield 5, "lost" if place in due else "invented", f"fill at {place}"
    if len(tables.fills) != len(set(tables.fills)):
        yield 5, "doubled", "fills"


def _letters(tables: Tables, expected: Expected, reasons: Mapping[Place, str]) -> Iterator[Blame]:
    refused = {place for place, fate in expected.fates.items() if fate is Fate.DEAD_LETTERED}
    for place in sorted(refused - tables.letters.keys()):
        yield 5, "lost", f"no row of the dead letter {place}"
    for place, reason in sorted(tables.letters.items()):
        if place not in refused:
            yield 5, "invented", f"row of a dead letter {place}"
        elif not expected.allows(place, reason) or reason != reasons.get(place):
            yield 5, "damaged", f"row of the dead letter {place} says {reason}"


def _parked(tables: Tables, expected: Expected) -> Iterator[Blame]:
    due = {place for place, fate in expected.fates.items() if fate is Fate.PARKED}
    for place in sorted(due - tables.parked.keys()):
        yield 5, "lost", f"{place} waits and is not parked"
    for place, reason in sorted(tables.parked.items()):
        if place not in due:
            yield 5, "doubled", f"{place} is parked, and {expected.fates.get(place)}"
        elif reason:
            yield 5, "wrong", f"{place} waits and is refused as {reason}"


# -- rule 6


def _positions(tables: Tables, expected: Expected) -> Iterator[Blame]:
    rows = {row.key: row for row in tables.positions}
    if len(rows) != len(tables.positions):
        yield 6, "doubled", "a key of the positions in several partitions"
    yield from _compared(rows, expected.models, "at the end")


def _compared(
    rows: Mapping[str, PositionRow], models: Mapping[str, Model], when: str
) -> Iterator[Blame]:
    for key in sorted(rows.keys() - models.keys()):
        yield 6, "invented", f"position {key} in the table {when}"
    for key, model in sorted(models.items()):
        row = rows.get(key)
        if row is None:
            yield 6, "lost", f"position {key} with {model.trades} trades is not in the table {when}"
        elif row.trades != model.trades:
            kind = "lost" if row.trades < model.trades else "doubled"
            what = f"position {key} in the table has {row.trades} of {model.trades} trades {when}"
            yield 6, kind, what
        elif problem := _row_unlike(row, model):
            yield 6, "wrong", f"position {key} in the table {when}: {problem}"


def _row_unlike(row: PositionRow, model: Model) -> str:
    is_equal = {
        "quantity": row.quantity == model.state.quantity,
        "cost": row.cost == model.state.cost,
        "realized": row.realized == model.state.realized,
        "mark": row.mark == model.state.mark,
        "source": row.place == model.last,
    }
    return _unequal(is_equal)


def _corrections(tables: Tables, expected: Expected) -> Iterator[Blame]:
    found = set()
    for row in tables.corrections:
        if row.place in found:
            yield 6, "doubled", f"correction at {row.place}"
        found.add(row.place)
        correction = expected.corrections.get(row.place)
        if correction is None:
            yield 6, "invented", f"correction of {row.key} at {row.place}"
        elif problem := _correction_differs(row, correction):
            yield 6, "wrong", f"correction of {row.key} at {row.place}: {problem}"
    for place in sorted(expected.corrections.keys() - found):
        yield 6, "lost", f"no correction of {expected.corrections[place].key} at {place}"


def _correction_differs(row: CorrectionRow, correction: Correction) -> str:
    is_equal = {
        "key": row.key == correction.key,
        "before": row.before == _amounts(correction.before),
        "after": row.after == _amounts(correction.after),
    }
    return _unequal(is_equal)


def _amounts(state: State) -> Amounts:
    return state.quantity, state.cost, state.realized, _NO_FEES


def topic_differs(row: PositionRow, state: Mapping[str, Any]) -> str:
    """Say in what a position of the table and of the topic differ."""
    source = state["source"]
    is_equal = {
        "quantity": row.quantity == Fraction(state.get("quantity", "0")),
        "realized": row.realized == Fraction(state.get("realized_pnl", "0")),
        "unrealized": row.quantity * row.mark - row.cost
        == Fraction(state.get("unrealized_pnl", "0")),
        "mark": row.mark == Fraction(state.get("mark", "0")),
        "trades": row.trades == int(state["trade_count"]),
        "source": row.place == (int(source["partition"]), int(source["offset"])),
    }
    return _unequal(is_equal)


def _unequal(is_equal: Mapping[str, bool]) -> str:
    return ", ".join(name for name, equal in is_equal.items() if not equal)


def check_snapshots(samples: Sequence[LedgerSample], expected: Expected) -> Iterator[Blame]:
    """Find what is wrong while it ran; see `check_tables`."""
    booked: dict[int, list[Booked]] = defaultdict(list)
    for one in expected.booked.values():
        booked[one.place[0]].append(one)
    for sample in samples:
        yield from _waiting(sample, expected)
        if sample.ids != (rows := sum(sums.count for sums in sample.sums.values())):
            yield 6, "wrong", f"while it ran, {sample.ids} ids of {rows} rows"
    for partition in sorted({number for sample in samples for number in sample.next_offsets}):
        yield from _snapshots_of(partition, booked[partition], samples, expected)


def _snapshots_of(
    partition: int, booked: Sequence[Booked], samples: Sequence[LedgerSample], expected: Expected
) -> Iterator[Blame]:
    """Fold the events of one partition once, as booked, and stop at the offset of each snapshot."""
    models: dict[str, Model] = defaultdict(Model)
    sums = Sums()
    reached = index = corrections = 0
    for sample in samples:
        next_offset = sample.next_offsets.get(partition, 0)
        if next_offset < reached:
            yield 7, "wrong", f"offset {next_offset} of {partition} after {reached}"
            continue
        reached = next_offset
        while index < len(booked):
            one = booked[index]
            if expected.booked_at(one.place)[1] >= next_offset:
                break
            event = one.event
            models[one.key].book(one)
            corrections += one.place in expected.corrections
            notional = Fraction(event["price"]) * Fraction(event["quantity"])
            sums = sums.and_one(one.place[1], notional)
            index += 1
        when = f"while it ran, at offset {next_offset} of {partition}"
        if (found := sample.sums.get(partition, Sums())) != sums:
            kind = "lost" if found.count < sums.count else "doubled"
            yield 6, kind, f"{found.count} of {sums.count} rows {when}"
        if (number := sample.corrections.get(partition, 0)) != corrections:
            kind = "lost" if number < corrections else "doubled"
            yield 6, kind, f"{number} of {corrections} corrections {when}"
        rows = {row.key: row for row in sample.positions if row.place[0] == partition}
        yield from _compared(rows, models, when)


def _waiting(sample: LedgerSample, expected: Expected) -> Iterator[Blame]:
    def is_passed(place: Place) -> bool:
        return place[1] < sample.next_offsets.get(place[0], 0)

    found = set(sample.waiting)
    due = {
        place
        for place, at in expected.waited.items()
        if is_passed(place) and (at is None or not is_passed(at))
    }
    # When the time of an orphan is over the log does not say.
    missing = {place for place in due - found if expected.reasons.get(place) != ORPHAN}
    for place in sorted(missing):
        yield 6, "lost", f"while it ran, {place} waited and was not parked"
    for place in sorted(found - due):
        yield 6, "doubled", f"while it ran, {place} was parked, and passed or not reached"


# -- rule 7


def _offsets(
    tables: Tables, ends: Mapping[int, int], committed: Mapping[int, int]
) -> Iterator[Blame]:
    for partition, end in ends.items():
        held = tables.next_offsets.get(partition, 0)
        if held != end:
            kind = "lost" if held < end else "invented"
            yield 7, kind, f"the table is at {held} of {partition}, which ends at {end}"
        if committed.get(partition, 0) > held:
            yield (
                7,
                "ahead",
                f"commit {committed[partition]} of {partition}, the table is at {held}",
            )


def _commits(samples: Sequence[LedgerSample]) -> Iterator[Blame]:
    for sample in samples:
        for partition, committed in sample.committed.items():
            held = sample.next_offsets.get(partition, 0)
            if committed > held:
                what = f"commit {committed} of {partition}, the table was at {held}"
                yield 7, "ahead", f"while it ran, {what}"
