"""`python -m benchmarks.ledger_tasks`: what else a ledger has to do in time, without a broker.

To change a trade of a position with many fills; to restore many positions; to hold the analytics
copy against the ledger. PostgreSQL is the embedded one, with durable commits; the copy is in this
process.
"""

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

import asyncpg
import typer

from app.codec import changed_ids, read_plain
from app.config import Settings
from app.consumer import TradeConsumer
from app.copier import TradeCopier
from app.embedded.postgres import EmbeddedPostgres
from app.ledger_codec import read_fills
from app.ledger_processor import LedgerProcessor
from app.lifecycle import spare_the_collector
from app.memory_io import MemoryBroker, MemoryLogReader, MemoryPublisher, MemorySource
from app.memory_io.broker import MemoryRecord
from app.ports import LedgerWrite, RecordBatch
from app.reconcile import Reconciler
from app.stores.changelog import Changelog
from app.stores.clickhouse import open_copy
from app.stores.database import migrate_database, new_pool, recreate_database
from app.stores.ledger_digests import open_digests
from app.stores.postgres import PostgresLedger
from app.utils import configure_logging
from benchmarks import machine
from benchmarks.rounds import say
from benchmarks.workload import Workload

_TOPIC: Final = "trades"
_FILLS: Final = 10_000
_AMENDS: Final = 20
_POSITIONS: Final = """
INSERT INTO positions (source_partition, key, book, symbol, currency, quantity, open_cost,
    multiplier, realized, fees, mark, mark_ns, trade_count, source_offset, generation)
SELECT 0, 'B' || n % 1000 || '|S' || n / 1000, 'B' || n % 1000, 'S' || n / 1000, 'USD',
    100 + n, (100 + n) * 12.34, 1, n * 0.01, 0.5, 12.50, 1780000000000000000, 10, n, 1
FROM generate_series(0, $1 - 1) AS n
"""


@asynccontextmanager
async def ledger_on(server: EmbeddedPostgres) -> AsyncIterator[PostgresLedger]:
    """Give a new ledger for the block."""
    await recreate_database(server.url, "bench")
    await migrate_database(server.url_of("bench"))
    pool = await new_pool(server.url_of("bench"))
    try:
        yield PostgresLedger(pool)
    finally:
        await pool.close()


# -- a change of a trade


class _Desk:
    """Asks, judges and writes records of partition 0, one batch after the other."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self._ledger = ledger
        self._next_offset = 0
        self._processor = LedgerProcessor()

    async def restart(self) -> None:
        """Forget everything, as a worker that takes the partition over."""
        self._processor = LedgerProcessor(await self._ledger.positions(0))

    async def book(self, values: Sequence[bytes]) -> None:
        """Take records to the end."""
        expected = await self._ledger.claim(0)
        first, self._next_offset = self._next_offset, self._next_offset + len(values)
        now_ns = time.time_ns()
        records = [
            MemoryRecord(first + n, now_ns // 1_000_000, None, value)
            for n, value in enumerate(values)
        ]
        batch = RecordBatch.of(0, 1, records, self._next_offset)
        events = read_plain(batch.values, batch.headers)
        ids = changed_ids(batch.values, events)
        for key in self._processor.missing_histories(batch, events, ids):
            lines = await self._ledger.history(0, key)
            assert lines is not None
            self._processor.load_history(key, read_fills(lines))
        events = self._processor.recall(await self._ledger.find(ids), events)
        result = self._processor.process_batch(batch, events=events, now_ns=now_ns)
        assert result.rows is not None
        assert not result.refusals
        rows = result.rows
        lost = await self._ledger.write(
            {
                0: LedgerWrite(
                    expected=expected,
                    next_offset=self._next_offset,
                    plain_trades=rows.plain_trades,
                    trades=rows.trades,
                    corrections=rows.corrections,
                    positions=list(result.changed.values()),
                )
            }
        )
        assert not lost


def _trade(number: int, **more: object) -> bytes:
    event = {
        "trade_id": f"T{number}",
        "book": "BOOK-01",
        "symbol": "S010",
        "side": "SELL" if number % 3 == 0 else "BUY",
        "price": f"{100 + number % 50}.25",
        "quantity": "100",
        "timestamp": f"2026-03-02T10:{number // 60 % 60:02}:{number % 60:02}.{number:09d}Z",
    }
    return json.dumps(event | more).encode()


async def amends(server: EmbeddedPostgres) -> dict[str, float]:
    """Change a trade of a position with 10,000 fills; seconds from the record to the commit."""
    async with ledger_on(server) as ledger:
        desk = _Desk(ledger)
        for start in range(0, _FILLS, 500):
            await desk.book([_trade(number) for number in range(start, start + 500)])
        taken_s: dict[str, list[float]] = {"first": [], "next": []}
        for number in range(_AMENDS):
            await desk.restart()
            for which, changed in (("first", number), ("next", number + _AMENDS)):
                began_s = time.perf_counter()
                await desk.book([_trade(changed, action="AMEND", version=2, price="99.75")])
                taken_s[which].append(time.perf_counter() - began_s)
        return {
            "amend, the fills read from the ledger, median": statistics.median(taken_s["first"]),
            "amend, the fills read from the ledger, longest": max(taken_s["first"]),
            "amend, the fills at hand, median": statistics.median(taken_s["next"]),
        }


# -- a takeover


async def restore(server: EmbeddedPostgres, count: int) -> dict[str, float]:
    """Restore the positions of one partition; seconds until they can be traded."""
    async with ledger_on(server) as ledger:
        connection = await asyncpg.connect(server.url_of("bench"))
        await connection.execute(_POSITIONS, count)
        await connection.execute("VACUUM ANALYZE positions")
        await connection.close()
        began_s = time.perf_counter()
        processor = LedgerProcessor(await ledger.positions(0))
        taken_s = time.perf_counter() - began_s
        assert len(processor.positions) == count
        return {f"restore of {count:,} positions": taken_s}


# -- a comparison


async def reconcile(server: EmbeddedPostgres, count: int, folder: Path) -> dict[str, float]:
    """Hold a copy against the ledger, both of the same trades; seconds until all is compared."""
    settings = Settings.model_validate(
        {"clickhouse_url": "embedded", "kafka_topic": _TOPIC, "kafka_partitions": 8}
    )
    broker = MemoryBroker()
    for topic, partitions in (
        (_TOPIC, 8), (settings.dlq_topic, 1), (settings.positions_topic, 8),
    ):  # fmt: skip
        broker.create_topic(topic, partitions)
    say(f"  {count:,} trades into a topic in memory, the ledger and the copy")
    for trade, value, _ in Workload().records(count):
        broker.append(_TOPIC, value, key=trade.key)
    reader = MemoryLogReader(broker)
    async with ledger_on(server) as ledger:
        source = MemorySource(broker, _TOPIC, settings.kafka_group_id)
        consumer = TradeConsumer(
            source=source,
            publisher=MemoryPublisher(broker),
            changelog=Changelog.of(reader, settings),
            partition_of=source.partition_of,
            settings=settings,
            ledger=ledger,
        )
        await source.start()
        await consumer.run(asyncio.Event(), until_caught_up=True)
        await source.stop()
        async with (
            open_copy(settings, rebuild=True, data_dir=folder) as copy,
            open_digests(server.url_of("bench")) as digests,
        ):
            copied = MemorySource(broker, _TOPIC, settings.clickhouse_group_id)
            await copied.start()
            copier = TradeCopier(source=copied, store=copy, settings=settings)
            await copier.run(asyncio.Event(), until_caught_up=True)
            await copied.stop()
            reconciler = Reconciler(copy=copy, reader=reader, settings=settings, ledger=digests)
            began_s = time.perf_counter()
            result = await reconciler.run()
            taken_s = time.perf_counter() - began_s
        assert result.is_equal, result.to_text()
        assert result.rows == count
        return {f"comparison of {count:,} rows": taken_s}


def main(
    *,
    count: Annotated[int, typer.Option(help="Positions, and rows.", min=1)] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure them once each, in seconds."""
    configure_logging("ERROR")
    spare_the_collector()  # as a worker does
    folder = Path(tempfile.mkdtemp(prefix="bench-ledger-tasks-"))
    folder.chmod(0o711)  # PostgreSQL never runs as root
    try:
        with EmbeddedPostgres(folder / "postgres", notify=lambda _: None) as server:
            tasks: list[Callable[[], dict[str, float]]] = [
                lambda: asyncio.run(amends(server)),
                lambda: asyncio.run(restore(server, count)),
                lambda: asyncio.run(reconcile(server, count, folder / "copy")),
            ]
            taken = {name: seconds for task in tasks for name, seconds in task().items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        json.dump({"machine": machine.describe(), "seconds": taken}, sys.stdout)
        return
    for name, seconds in taken.items():
        print(f"{name:50}{seconds:>10.3f} s")


if __name__ == "__main__":
    typer.run(main)
