"""What a record costs without a broker, stage by stage; each stage is the application's own code.

`python -m benchmarks.hot_path STAGE ROUNDS` runs one stage that often, for a profiler to count.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from app.approved import WHOLE_UNITS
from app.codec import decode_plain, read_plain
from app.config import Settings
from app.kafka_io.options import MAX_BATCH_BYTES
from app.kafka_io.raw_batches import RawBatch
from app.ledger_codec import copy_text
from app.ledger_processor import LedgerProcessor
from app.models import Fate
from app.ports import RecordBatch
from app.position_codec import encode_position
from app.services import TradeProcessor
from app.simulator import TradeSimulator
from app.timestamps import format_timestamp
from benchmarks.fused import FusedPipeline

RECORDS: Final = 20_000
_CHUNK: Final = 500
_START_NS: Final = 1_780_000_000_123_456_000
_STEP_NS: Final = 10_000
_ZSTD: Final = 4


@dataclass(frozen=True, slots=True)
class _Stored:
    """A record as the broker gives it; the values of a batch are asked of it as a whole."""

    value: bytes
    timestamp: int = _START_NS // 1_000_000
    offset: int = 0
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def bodies() -> list[tuple[bytes, bytes]]:
    """Give keys and values of trades over 2,000 position keys, 10 us apart."""
    simulator = TradeSimulator(run_id="T19a2b3c4d5-abc123", seed=1, books=10, symbols=200)
    trades = (
        simulator.next_trade(format_timestamp(_START_NS + n * _STEP_NS)) for n in range(RECORDS)
    )
    return [(trade.key, trade.value) for trade in trades if trade.value is not None]


def pipeline() -> Callable[[], None]:
    """Decode, check and book, in the layers of the application."""
    values = [value for _, value in bodies()]
    processor = TradeProcessor(dedupe_window=Settings().dedupe_window)
    offset = count(0, RECORDS)
    records = list(map(_Stored, values))

    def run() -> None:
        base = next(offset)
        for start in range(0, RECORDS, _CHUNK):
            first = base + start
            offsets = range(first, first + _CHUNK)
            chunk = values[start : start + _CHUNK]
            result = processor.process_batch(
                RecordBatch(
                    0, 1, records[start : start + _CHUNK], chunk, offsets, {}, first + _CHUNK
                )
            )
            assert result.fates[Fate.BOOKED] == _CHUNK

    return run


def ledger() -> Callable[[], None]:
    """The same where there is a ledger: with the bytes that the database gets of each trade."""
    values = [value for _, value in bodies()]
    processor = LedgerProcessor(recent=Settings().dedupe_window)
    offset = count(0, RECORDS)
    records = list(map(_Stored, values))

    def run() -> None:
        base = next(offset)
        lines = []
        for start in range(0, RECORDS, _CHUNK):
            first, stop = base + start, start + _CHUNK
            offsets = range(first, first + _CHUNK)
            batch = RecordBatch(
                0, 1, records[start:stop], values[start:stop], offsets, {}, first + _CHUNK
            )
            events = processor.recall({}, read_plain(batch.values, batch.headers))
            result = processor.process_batch(batch, events=events, now_ns=_START_NS)
            assert result.fates[Fate.BOOKED] == _CHUNK
            assert result.rows is not None
            lines += result.rows.plain_trades
            processor.window.settle()  # as a flush does
        copy_text(lines)

    return run


def fused() -> Callable[[], None]:
    """The same in one loop written by hand."""
    values = [value for _, value in bodies()]
    pipeline, offset = FusedPipeline(), count(0, RECORDS)

    def run() -> None:
        base = next(offset)
        for start in range(0, RECORDS, _CHUNK):
            first = base + start
            chunk = values[start : start + _CHUNK]
            pipeline.process(chunk, range(first, first + _CHUNK), 2 * _START_NS)

    return run


def money() -> Callable[[], None]:
    """From the text of price and quantity to scaled integers, as the pipeline does it."""
    values = [value for _, value in bodies()]
    events = [event for event in decode_plain(values) if event is not None]

    for event in events:
        WHOLE_UNITS.read(event.quantity, event.price)

    def run() -> None:
        for event in events:
            approved = WHOLE_UNITS
            approved.quantities[event.side][event.quantity]
            approved.values[event.price]

    return run


def batch() -> Callable[[], None]:
    """From a stored zstd batch to values, offsets and headers."""
    builder = BatchBuilder(MAX_BATCH_BYTES, _ZSTD)
    size = 0
    for key, value in bodies():
        if builder.append(timestamp=1, key=key, value=value, headers=[]) is None:
            break
        size += 1
    stored = bytes(builder._build())  # noqa: SLF001 - as the client's sender does

    def run() -> None:
        for _ in range(RECORDS // size):
            native = DefaultRecordBatch(stored)
            records = RawBatch(0, native, 0, native.next_offset).records()
            RecordBatch.of(0, 1, records, native.next_offset)

    return run


def positions() -> Callable[[], None]:
    """From a holding to the record of its position; counted for each position, not each trade."""
    processor = TradeProcessor()
    values = [value for _, value in bodies()]
    result = processor.process_batch(
        RecordBatch(0, 1, list(map(_Stored, values)), values, range(RECORDS), {}, RECORDS)
    )
    holdings = (result.touched * RECORDS)[:RECORDS]

    def run() -> None:
        for holding in holdings:
            encode_position(holding.position(), group="g", topic="trade-events", partition=1)

    return run


STAGES: Final[dict[str, Callable[[], Callable[[], None]]]] = {
    "pipeline": pipeline,
    "ledger": ledger,
    "fused": fused,
    "money": money,
    "batch": batch,
    "positions": positions,
}


def nanoseconds(stages: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Time stages in turns; give ns of CPU a record for each round."""
    runs = {stage: STAGES[stage]() for stage in stages}
    timed: dict[str, list[float]] = {stage: [] for stage in stages}
    for stage, run in runs.items():
        run()
        timed[stage].clear()
    for _ in range(rounds):
        for stage, run in runs.items():
            started_ns = time.process_time_ns()
            run()
            timed[stage].append((time.process_time_ns() - started_ns) / RECORDS)
    return timed


if __name__ == "__main__":
    stage_run = STAGES[sys.argv[1]]()
    for _ in range(int(sys.argv[2])):
        stage_run()
