"""The load changes trades in every way, and the product makes of it what the oracle does."""

import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from app.codec import read_plain, trade_ids
from app.headers import Origin
from app.ledger_codec import LedgerRows, read_fills, read_position
from app.ledger_processor import LedgerProcessor
from app.memory_io import MemoryDatabase, MemoryLedger
from app.ports import LedgerWrite, RecordBatch
from app.services import BatchResult
from app.timestamps import format_timestamp
from tests.faults.changes import position_key
from tests.faults.ledger_rules import check_snapshots
from tests.faults.load import Trades
from tests.faults.oracle import (
    LIFE_CYCLE,
    Expected,
    Fate,
    expect,
    good_event,
    partition_of,
)
from tests.faults.reading import LogRecord
from tests.faults.tables import LedgerSample, PositionRow, Sums
from tests.test_services import TIME_MS, StoredRecord

PARTITIONS = 3
COUNT = 1_500
_EVERY_NS = 3_000_000
_ON_ITS_WAY = 20
"""Records that come before the copy of a re-keyed one, on average."""


def log_of(seed: int) -> list[LogRecord]:
    """Give what a load leaves in a topic, and workers that re-key what is misplaced there."""
    trades = Trades(
        ids="x", seed=seed, keys=12, poison=0.02, foreign=0.05, twice_after=0,
        changes=0.3, early=0.2, orphans=0.02, partitions=PARTITIONS,
    )  # fmt: skip
    draw = random.Random(seed)
    logs: dict[int, list[LogRecord]] = {number: [] for number in range(PARTITIONS)}
    copies: list[LogRecord] = []

    def append(partition: int, record: LogRecord) -> LogRecord:
        record = replace(record, partition=partition, offset=len(logs[partition]))
        logs[partition].append(record)
        return record

    for number in range(COUNT):
        made = trades.next_trade(format_timestamp(TIME_MS * 1_000_000 + number * _EVERY_NS))
        partition = partition_of(made.key, PARTITIONS)
        record = append(partition, LogRecord(0, 0, made.key, made.value, {}))
        if (event := good_event(made.value)) is not None and home_of(event) != partition:
            origin = Origin("t", partition, record.offset).to_header()
            copies += [replace(record, headers=dict([origin]))] * draw.choice((1, 1, 1, 2))
        while copies and draw.random() * _ON_ITS_WAY < len(copies):
            append(home_of(good_event(copies[0].value)), copies.pop(0))
    for copy in copies:
        append(home_of(good_event(copy.value)), copy)
    return [record for log in logs.values() for record in log]


def home_of(event: dict[str, Any] | None) -> int:
    """Give the partition of its position."""
    assert event is not None, "what is misplaced can be read"
    return partition_of(position_key(event).encode(), PARTITIONS)


def judged(records: Sequence[LogRecord]) -> Expected:
    """Ask the oracle."""
    return expect(records, PARTITIONS, rows={})


@pytest.mark.parametrize("seed", range(3))
def test_everything_comes_that_can_become_of_a_change(seed: int) -> None:
    """Each fate, and each reason but those of what a load never does."""
    expected = judged(log_of(seed))
    assert set(expected.fates.values()) == set(Fate)
    never = {"orphan-lifecycle", "version-invalid", "lifecycle-unavailable"}
    assert set(expected.reasons.values()) == LIFE_CYCLE - never
    actions = Counter(booked.action for booked in expected.booked.values())
    assert min(actions["AMEND"], actions["CANCEL"]) > COUNT // 50
    assert len(expected.corrections) == actions["AMEND"] + actions["CANCEL"]


def test_everything_comes_that_can_become_of_what_came_too_early() -> None:
    """In the end it is booked, refused, known or still waits."""
    came_to: Counter[str] = Counter()
    for seed in range(3):
        expected = judged(log_of(seed))
        came_to.update(
            expected.reasons.get(place, expected.fates[place].value) for place in expected.waited
        )
    assert came_to.keys() == {
        *("booked", "duplicate", "parked"),
        *("version-conflict", "after-cancel", "key-changed"),
    }
    assert came_to["booked"] > COUNT // 50


@pytest.mark.parametrize("seed", range(3))
async def test_product_and_oracle_agree_on_a_load(seed: int) -> None:
    """On fates, rows, positions, corrections and what waits, however the log comes in batches."""
    records = log_of(seed)
    expected = judged(records)
    database, draw = MemoryDatabase(), random.Random(seed)
    fates: Counter[str] = Counter()
    samples: list[LedgerSample] = []
    for partition in range(PARTITIONS):
        own = [record for record in records if record.partition == partition]
        async for result in _processed(own, MemoryLedger(database), draw):
            fates.update({fate.value: count for fate, count in result.fates.items()})
            fates[Fate.REKEYED] += len(result.misplaced)
            samples.append(_sample(database))
    assert list(check_snapshots(samples, expected)) == []
    due = Counter(fate.value for fate in expected.fates.values())
    assert (
        fates
        | Counter(
            {Fate.DEAD_LETTERED: len(database.dead_letters), Fate.PARKED: len(database.parked)}
        )
        == due
    )
    letters = {place: row["reason"] for place, row in database.dead_letters.items()}
    assert {place for place, fate in expected.fates.items() if fate is Fate.DEAD_LETTERED} == (
        letters.keys()
    )
    assert all(expected.allows(place, reason) for place, reason in letters.items())
    assert {place for place, fate in expected.fates.items() if fate is Fate.PARKED} == (
        database.parked.keys()
    )
    assert {
        place: (row["trade_id"], int(row["version"]), row["action"], int(row["executed_ns"]))
        for place, row in database.trades.items()
    } == {
        place: (one.event["trade_id"], one.version, one.action, one.executed_ns)
        for place, one in expected.booked.items()
    }
    assert {
        place: (row["key"], *(Fraction(row[name]) for name in _CHANGED))
        for place, row in database.corrections.items()
    } == {
        place: (key, *before[:3], *after[:3])
        for place, (key, before, after) in expected.corrections.items()
    }
    assert {key: _model_of(line) for (_, key), line in database.positions.items()} == {
        key: (*model.state, model.trades, model.last[1]) for key, model in expected.models.items()
    }


_CHANGED = [
    f"{what}_{when}"
    for when in ("before", "after")
    for what in ("quantity", "open_cost", "realized")
]


def _sample(database: MemoryDatabase) -> LedgerSample:
    sums: dict[int, Sums] = defaultdict(Sums)
    for (partition, offset), row in database.trades.items():
        notional = Fraction(row["price"]) * Fraction(row["quantity"])
        sums[partition] = sums[partition].and_one(offset, notional)
    positions = []
    for (partition, key), line in database.positions.items():
        quantity, cost, realized, mark, trades, offset = _model_of(line)
        place = (partition, offset)
        positions.append(PositionRow(place, key, quantity, cost, realized, mark, trades))
    return LedgerSample(
        0,
        {},
        {partition: offset or 0 for partition, offset in database.next_offsets.items()},
        positions,
        sums,
        sum(map(len, database.versions.values())),
        Counter(partition for partition, _ in database.corrections),
        {place for place, row in database.parked.items() if row["reason"] is None},
    )


def _model_of(line: str) -> tuple[Fraction, Fraction, Fraction, Fraction, int, int]:
    position = read_position(line)
    return (
        Fraction(position.quantity_e8, 10**8),
        Fraction(position.open_cost_e24, 10**24),
        Fraction(position.realized_e24, 10**24),
        Fraction(position.mark_e8, 10**8),
        position.trade_count,
        position.source_offset,
    )


async def _processed(
    records: Sequence[LogRecord], ledger: MemoryLedger, draw: random.Random
) -> AsyncIterator[BatchResult]:
    """Process and store the log of a partition in batches at random, in several lives.

    A life ends between the refusal of what has waited and the acknowledgement of its dead letter.
    """
    partition, start, processor = records[0].partition, 0, None
    late: list[int] = []
    await ledger.claim(partition)
    while start < len(records) or late:
        if processor is None or draw.random() < 0.1:
            processor = LedgerProcessor(
                await ledger.positions(partition),
                belongs=lambda key: partition_of(key.encode(), PARTITIONS) == partition,
            )
            processor.restore(await ledger.parked(partition))
            late = [record.offset for record in processor.overdue(0, at_most=COUNT)]
        stop = min(len(records), start + draw.randint(1, 60))
        values = [
            StoredRecord(n, records[n].value, headers=tuple(records[n].headers.items()))
            for n in range(start, stop)
        ]
        batch = RecordBatch.of(partition, 1, values, stop)
        events = read_plain(batch.values, batch.headers)
        ids = trade_ids(batch.values, events)
        for key in processor.missing_histories(batch, events, ids):
            lines = await ledger.history(partition, key)
            processor.load_history(key, None if lines is None else read_fills(lines))
        events = processor.recall(await ledger.find(ids), events)
        result = processor.process_batch(batch, events=events)
        rows = result.rows or LedgerRows(partition, "USD")
        for refusal in result.refusals:
            rows.add_refusal(batch.offsets[refusal.index], refusal)
        write = LedgerWrite(
            expected=start or None,
            next_offset=stop,
            plain_trades=rows.plain_trades,
            trades=rows.trades,
            corrections=rows.corrections,
            dead_letters=rows.dead_letters,
            positions=list(result.changed.values()),
            parked=list(rows.parked.values()),
            refused={one.offset: one.refusal for one in result.late_refusals if one.refusal},
            released=[*rows.released, *late],
        )
        assert await ledger.write({partition: write}) == {}
        late = [record.offset for record in result.late_refusals]
        processor.identity.settle()
        yield result
        start = stop
