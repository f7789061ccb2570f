"""A broker in memory with consumers on it, for tests of the loop."""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from app.config import Settings
from app.consumer import TradeConsumer
from app.health import Health
from app.memory_io import (
    MemoryBroker,
    MemoryDatabase,
    MemoryLedger,
    MemoryLogReader,
    MemoryPublisher,
    MemoryRecord,
    MemorySource,
    partition_for,
)
from app.metrics import ConsumerMetrics
from app.ports import Ledger
from app.reference_file import ReferenceFile
from app.stats import ConsumerStats
from app.stores.changelog import Changelog

NOW_MS: Final = 1_790_000_000_000
GROUP: Final = "risk"
TRADES: Final = "trades"
DEAD_LETTERS: Final = "dead-letters"
POSITIONS: Final = "positions"
PARTITIONS: Final = 2
PATIENCE_S: Final = 60.0


def symbols_of(partition: int, count: int) -> list[str]:
    """Give the first names whose home is a partition."""
    names = (f"S{i}" for i in itertools.count())
    at_home = (n for n in names if partition_for(n.encode(), PARTITIONS) == partition)
    return list(itertools.islice(at_home, count))


def trade(
    symbol: str, side: str = "BUY", price: str = "10", quantity: str = "1", **more: Any
) -> bytes:
    """Give the bytes of a trade event."""
    event = {
        "trade_id": f"{symbol}-{side}-{price}-{quantity}",
        "symbol": symbol,
        "side": side,
        "price": price,
        "quantity": quantity,
        "timestamp": "2026-09-01T10:00:00Z",
    }
    return json.dumps(event | more).encode()


@dataclass
class Worker:
    """One consumer with clients of its own, run as a task."""

    source: MemorySource
    publisher: MemoryPublisher
    reader: MemoryLogReader
    consumer: TradeConsumer
    health: Health
    ledger: MemoryLedger | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[ConsumerStats] | None = None

    async def start(self, *, until_caught_up: bool = False) -> None:
        """Join the group and run."""
        await self.source.start()
        self.task = asyncio.ensure_future(
            self.consumer.run(self.stop, until_caught_up=until_caught_up)
        )

    async def finish(self) -> ConsumerStats:
        """Stop in an orderly way and leave the group; raises what the run has raised."""
        self.stop.set()
        return await self.finish_by_itself()

    async def finish_by_itself(self) -> ConsumerStats:
        """Wait for a run that ends when it has caught up, and leave the group."""
        assert self.task is not None
        try:
            return await self.task
        finally:
            await self.source.stop()

    async def crash(self) -> None:
        """Die at whatever await the run has come to, and be forgotten by the group."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.source.crash()


class World:
    """Three topics in memory, and workers of one group on them.

    Args:
        database: Where they keep a ledger, if anywhere.
        settings: That differ from those of most tests.

    Attributes:
        now_ns: The clock of all of them, and of the broker.
    """

    def __init__(self, database: MemoryDatabase | None = None, **settings: Any) -> None:
        self.database = database
        self.now_ns = NOW_MS * 1_000_000
        self.broker = MemoryBroker(
            {TRADES: PARTITIONS, DEAD_LETTERS: PARTITIONS, POSITIONS: PARTITIONS},
            now_ms=lambda: self.now_ns // 1_000_000,
        )
        self.settings = Settings.model_validate(
            {
                "kafka_topic": TRADES,
                "dlq_topic": DEAD_LETTERS,
                "positions_topic": POSITIONS,
                "kafka_group_id": GROUP,
                "commit_interval_ms": 10,
                "consumer_chunk_records": 3,
                "dedupe_window": 0,  # most tests do not care which trade it is
            }
            | settings
        )

    def worker(
        self, on: Ledger | None = None, reference_file: ReferenceFile | None = None
    ) -> Worker:
        """Make a worker, not started; in a running loop, whose clock it takes.

        Args:
            on: A ledger in the place of one in the world's database.
            reference_file: Data by which trades are marked, if any.
        """
        source = MemorySource(self.broker, TRADES, self.settings.kafka_group_id)
        publisher = MemoryPublisher(self.broker)
        reader = MemoryLogReader(self.broker)
        ledger = None if self.database is None else MemoryLedger(self.database)
        health = Health(dead_after_s=60.0, monotonic=asyncio.get_running_loop().time)
        consumer = TradeConsumer(
            source=source,
            publisher=publisher,
            changelog=Changelog.of(reader, self.settings),
            partition_of=source.partition_of,
            settings=self.settings,
            ledger=on or ledger,
            reference_file=reference_file,
            health=health,
            metrics=ConsumerMetrics(topic=TRADES),
            now_ns=lambda: self.now_ns,
            monotonic=asyncio.get_running_loop().time,
        )
        return Worker(source, publisher, reader, consumer, health, ledger)

    async def consume(self) -> ConsumerStats:
        """Run one worker until it has caught up, and let it leave."""
        worker = self.worker()
        await worker.start(until_caught_up=True)
        return await worker.finish_by_itself()

    @property
    def committed(self) -> dict[int, int]:
        """The group's committed offsets."""
        return self.broker.committed(self.settings.kafka_group_id, TRADES)

    @property
    def ends(self) -> dict[int, int]:
        """End offsets of the trades."""
        return {p: self.broker.offset_range(TRADES, p)[1] for p in range(PARTITIONS)}

    def changelog(self) -> Changelog:
        """Give the group's changelog, to restore from."""
        return Changelog.of(MemoryLogReader(self.broker), self.settings)

    def newest_positions(self) -> dict[str, dict[str, Any]]:
        """Give, of each key, the record that covers most of the source: read as plain JSON."""
        newest: dict[str, dict[str, Any]] = {}
        for record in self.broker.records(POSITIONS):
            body = body_of(record)
            if body["type"] == "position":
                key = (record.key or b"").decode()
                held = newest.get(key)
                if held is None or body["source"]["offset"] >= held["source"]["offset"]:
                    newest[key] = body
        return newest


def body_of(record: MemoryRecord) -> dict[str, Any]:
    """Read a record's value as a JSON object."""
    body: dict[str, Any] = json.loads(record.value or b"{}")
    return body


def headers_of(record: MemoryRecord) -> dict[str, str]:
    """Give the headers of a record as text; of equal names the last."""
    return {name: (value or b"").decode() for name, value in record.headers}


async def until(condition: Callable[[], bool]) -> None:
    """Wait in virtual time until something holds.

    Raises:
        TimeoutError: It does not come to hold.
    """
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - no event says when it holds
            await asyncio.sleep(0.05)  # of virtual time
