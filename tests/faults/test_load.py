"""The load changes trades in every way, and the product makes of it what the oracle does."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from fractions import Fraction

import pytest

from app.codec import read_plain, trade_ids
from app.ledger_codec import read_fills, read_position
from app.ledger_processor import LedgerProcessor
from app.memory_io import MemoryDatabase, MemoryLedger
from app.ports import LedgerWrite, RecordBatch
from app.services import BatchResult
from app.timestamps import format_timestamp
from tests.faults.load import Trades
from tests.faults.oracle import (
    LIFE_CYCLE,
    Expected,
    Fate,
    Place,
    expect,
    good_event,
    partition_of,
)
from tests.faults.reading import LogRecord
from tests.test_services import TIME_MS, StoredRecord

PARTITIONS = 3
COUNT = 1_500
_EVERY_NS = 3_000_000


def log_of(seed: int) -> list[LogRecord]:
    """Give what a load leaves in a topic whose records all stand where they belong."""
    trades = Trades(
        ids="x", seed=seed, keys=12, poison=0.02, foreign=0.0, twice_after=0,
        changes=0.3, partitions=PARTITIONS,
    )  # fmt: skip
    logs: dict[int, list[LogRecord]] = {number: [] for number in range(PARTITIONS)}
    for number in range(COUNT):
        made = trades.next_trade(format_timestamp(TIME_MS * 1_000_000 + number * _EVERY_NS))
        log = logs[partition := partition_of(made.key, PARTITIONS)]
        log.append(LogRecord(partition, len(log), made.key, made.value, {}))
    return [record for log in logs.values() for record in log]


def first_places(records: Sequence[LogRecord]) -> dict[str, Place]:
    """Give the first place of each trade."""
    places: dict[str, Place] = {}
    for record in records:
        if (event := good_event(record.value)) is not None:
            places.setdefault(event["trade_id"], (record.partition, record.offset))
    return places


def judged(records: Sequence[LogRecord]) -> Expected:
    """Ask the oracle."""
    return expect(records, PARTITIONS, rows=first_places(records))


@pytest.mark.parametrize("seed", range(3))
def test_everything_comes_that_can_become_of_a_change(seed: int) -> None:
    """Each fate, and each reason but those of what a load never does."""
    expected = judged(log_of(seed))
    assert set(expected.fates.values()) == set(Fate) - {Fate.REKEYED}
    never = {"orphan-lifecycle", "version-invalid", "lifecycle-unavailable"}
    assert set(expected.reasons.values()) == LIFE_CYCLE - never
    actions = Counter(booked.action for booked in expected.booked.values())
    assert min(actions["AMEND"], actions["CANCEL"]) > COUNT // 50
    assert len(expected.corrections) == actions["AMEND"] + actions["CANCEL"]


@pytest.mark.parametrize("seed", range(3))
async def test_product_and_oracle_agree_on_a_load(seed: int) -> None:
    """On fates, reasons, rows, positions and corrections, however the log comes in batches."""
    records = log_of(seed)
    expected = judged(records)
    database, draw = MemoryDatabase(), random.Random(seed)
    fates: Counter[str] = Counter()
    reasons: dict[Place, str] = {}
    for partition in range(PARTITIONS):
        own = [record for record in records if record.partition == partition]
        async for result, batch in _processed(own, MemoryLedger(database), draw):
            fates.update({fate.value: count for fate, count in result.fates.items()})
            reasons |= {
                (partition, batch.offsets[refusal.index]): refusal.reason
                for refusal in result.refusals
            }
    letters = {place for place, fate in expected.fates.items() if fate is Fate.DEAD_LETTERED}
    assert reasons.keys() == letters
    assert all(expected.allows(place, reason) for place, reason in reasons.items())
    assert fates == Counter(f.value for f in expected.fates.values() if f is not Fate.DEAD_LETTERED)
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


def _model_of(line: str) -> tuple[Fraction | int, ...]:
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
) -> AsyncIterator[tuple[BatchResult, RecordBatch]]:
    """Process and store the log of a partition in batches at random, in several lives."""
    partition, start, processor = records[0].partition, 0, None
    await ledger.claim(partition)
    while start < len(records):
        if processor is None or draw.random() < 0.1:
            processor = LedgerProcessor(await ledger.positions(partition))
        stop = min(len(records), start + draw.randint(1, 60))
        values = [StoredRecord(n, records[n].value) for n in range(start, stop)]
        batch = RecordBatch.of(partition, 1, values, stop)
        events = read_plain(batch.values)
        ids = trade_ids(batch.values, events)
        for key in processor.missing_histories(batch, events, ids):
            lines = await ledger.history(partition, key)
            processor.load_history(key, None if lines is None else read_fills(lines))
        events = processor.recall(await ledger.find(ids), events)
        result = processor.process_batch(batch, events=events)
        assert result.rows is not None
        write = LedgerWrite(
            expected=start or None,
            next_offset=stop,
            plain_trades=result.rows.plain_trades,
            trades=result.rows.trades,
            corrections=result.rows.corrections,
            positions=list(result.changed.values()),
        )
        assert await ledger.write({partition: write}) == {}
        processor.identity.settle()
        yield result, batch
        start = stop
