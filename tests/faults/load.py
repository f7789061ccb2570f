"""A producer under test: seeded trades through the product's own loop and publisher, journaled.

Run as `python -m tests.faults.load RUN FOLDER [options]`; prints its counts as JSON.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from aiokafka import AIOKafkaProducer
from confluent_kafka import KafkaError, Producer

from app.config import Settings
from app.kafka_io.connect import until_connected
from app.kafka_io.publisher import KafkaPublisher
from app.lifecycle import run_program, run_with_stop, start_up
from app.ports import OutgoingRecord, Publisher, SendOutcome, SendState
from app.producer import TradeProducer
from app.simulator import SimulatedTrade
from tests.faults.changes import Changes, Event, position_key, terms
from tests.faults.journal import JournalWriter, digest
from tests.faults.reading import QUIET

_CONNECT_TIMEOUT_S: Final = 60.0
_FLUSH_S: Final = 60.0
_TRADE_ID: Final = re.compile(rb'"trade_id":"([^"]*)"')
_CHANGE: Final = re.compile(rb'"action":"[A-Z]+"(,"version":\d+)?')
_IN_SECONDS: Final = 0.3
"""Share of trades whose execution time is a whole second, where trades are changed."""
POISON: Final[tuple[Callable[[bytes], bytes | None], ...]] = (
    lambda value: value[:-5],
    lambda value: value.replace(b'"symbol":"', b'"symbol":"\xff'),
    lambda _: None,
    lambda _: b"",
    lambda value: value[:-1] + b',"price":"1"}',
    lambda value: value.replace(b'"side":"', b'"side":"X'),
    lambda value: value.replace(b'"quantity":"', b'"quantity":"-'),
    lambda value: value.replace(b'"symbol"', b'"cymbol"'),
    lambda value: value + b" " * 70_000,
)
"""Ways to spoil a trade."""


class Trades:
    """Makes trades for `TradeProducer`, the same for the same seed but for ids and times.

    Args:
        ids: Begins every trade id, after `GOOD` or `BAD`.
        seed: Of everything random.
        keys: Number of positions.
        poison: Share of records that are spoilt.
        foreign: Share of records with another key than that of their position, or none.
        twice_after: Each event comes once more after so many others; 0 for never.
        changes: Share of events that change a trade that was sent before; see `Changes`. Then many
            trades are executed at the same time, or before others that came before them.
        early: As of `Changes`, like `orphans`.
        orphans: See `early`.
        partitions: Of the topic.
    """

    def __init__(
        self,
        *,
        ids: str,
        seed: int,
        keys: int,
        poison: float,
        foreign: float,
        twice_after: int,
        changes: float = 0.0,
        early: float = 0.0,
        orphans: float = 0.0,
        partitions: int = 1,
    ) -> None:
        self._ids = ids
        self._draw = random.Random(seed)
        self._keys = [(f"BOOK{n % 3}" if n % 4 else "", f"S{n}") for n in range(keys)]
        self._poison = poison
        self._foreign = foreign
        self._twice_after = twice_after
        self._share_of_changes = changes
        self._changes = Changes(
            self._draw, self._keys, partitions=partitions, early=early, orphans=orphans
        )
        self._again: list[SimulatedTrade] = []
        self._count = 0

    def next_trade(self, due: str) -> SimulatedTrade:
        """Make the next trade, or repeat the one whose turn has come."""
        if len(self._again) > self._twice_after:
            return self._again.pop(0)
        made = self._next(due)
        if self._twice_after:
            # A sender that sends again may stamp anew.
            value = made.value and made.value.replace(b'"published_at":"2', b'"published_at":"3')
            self._again.append(SimulatedTrade(made.key, value, None))
        return made

    def _next(self, due: str) -> SimulatedTrade:
        # Nothing more is drawn where nothing is changed: each seed goes on to make what it made.
        if self._share_of_changes:
            event = self._changes.overtaken()
            if event is None and self._draw.random() < self._share_of_changes:
                event = self._changes.next_event(due)
            if event is not None:
                return SimulatedTrade(self._key(event).encode(), _body(event, due), None)
        return self._new(due)

    def _key(self, event: Event) -> str:
        is_foreign = self._draw.random() < self._foreign
        return f"order-{self._count}" if is_foreign else position_key(event)

    def _new(self, due: str) -> SimulatedTrade:
        draw = self._draw
        self._count += 1
        is_poison = draw.random() < self._poison
        book, symbol = draw.choice(self._keys)
        event: Event = {
            "trade_id": f"{'BAD' if is_poison else 'GOOD'}-{self._ids}-{self._count}",
            "symbol": symbol,
            **terms(draw),
            "timestamp": due,
        }
        if book:
            event["book"] = book
        if draw.random() < 0.1:
            event["strategy_id"] = "not a common field"
        key = self._key(event)
        if self._share_of_changes:
            if draw.random() < _IN_SECONDS:
                event["timestamp"] = f"{due[:19]}Z"
            if not is_poison:
                is_rekeyed = key != position_key(event)
                event = self._changes.instead(event, due, is_rekeyed=is_rekeyed)
        body = _body(event, due)
        value = draw.choice(POISON)(body) if is_poison else body
        return SimulatedTrade(key.encode(), value, None)


def _body(event: Event, due: str) -> bytes:
    return json.dumps(event | {"published_at": due}, separators=(",", ":")).encode()


class JournalingPublisher:
    """Journals every attempt of the publisher behind it."""

    def __init__(self, publisher: Publisher, journal: JournalWriter) -> None:
        self._publisher = publisher
        self._journal = journal
        self._sequences: Counter[str] = Counter()
        self._numbered: dict[tuple[str, str, bytes], int] = {}

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic."""
        return await self._publisher.partition_count(topic)

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        """Publish as the publisher behind it does."""
        entries = [self._entry(record) for record in records]
        numbers = self._journal.sending(entries, time.monotonic_ns())
        outcomes = await self._publisher.publish(records)
        self._journal.known(
            (
                (number, outcome.state.value, outcome.partition, outcome.offset)
                for number, outcome in zip(numbers, outcomes, strict=True)
            ),
            time.monotonic_ns(),
        )
        return outcomes

    def _entry(self, record: OutgoingRecord) -> tuple[str, int, str, str]:
        key, sha = (record.key or b"").decode(), digest(record.value)
        found = _TRADE_ID.search(record.value or b"")
        trade_id = found.group(1).decode("ascii", "replace") if found else "-"
        # A repeat is known by its trade and version: values without may be equal by chance.
        version = _CHANGE.search(record.value or b"")
        identity = (key, trade_id, version.group() if version else b"")
        if trade_id == "-" or identity not in self._numbered:
            self._sequences[key] += 1
            self._numbered[identity] = self._sequences[key]
        return key, self._numbered[identity], trade_id, sha


class StrangersPublisher:
    """Publishes with librdkafka and its default partitioner, which is not ours."""

    def __init__(self, settings: Settings) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": 60_000,
                **QUIET,
            }
        )

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic."""
        return len(self._producer.list_topics(topic, timeout=10).topics[topic].partitions)

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        """Send records and wait for what becomes of each."""
        outcomes = [SendOutcome(SendState.UNKNOWN)] * len(records)
        for index, record in enumerate(records):

            def delivered(error: KafkaError | None, message: Any, index: int = index) -> None:
                if error is None:
                    place = message.partition(), message.offset()
                    outcomes[index] = SendOutcome(SendState.OK, *place)

            self._producer.produce(record.topic, record.value, record.key, on_delivery=delivered)
        await asyncio.to_thread(self._producer.flush, _FLUSH_S)
        return outcomes


def main(
    run: Annotated[str, typer.Argument(help="Name of this run.")],
    folder: Annotated[Path, typer.Argument(help="Of the journals.")],
    *,
    count: Annotated[int, typer.Option(min=1)] = 1_000,
    rate: Annotated[float, typer.Option(min=0, help="Trades a second; 0 is unbounded.")] = 500.0,
    seed: int = 1,
    keys: Annotated[int, typer.Option(min=1)] = 40,
    poison: float = 0.02,
    foreign: float = 0.0,
    twice_after: int = 0,
    changes: Annotated[float, typer.Option(help="Share of AMEND and CANCEL.")] = 0.0,
    early: Annotated[float, typer.Option(help="Chance to be overtaken by a change.")] = 0.0,
    orphans: Annotated[float, typer.Option(help="Chance that only a change comes.")] = 0.0,
    ids: Annotated[str, typer.Option(help="Begins every trade id; the run's name without.")] = "",
    stranger: Annotated[bool, typer.Option("--stranger", help="Use librdkafka.")] = False,
) -> None:
    """Publish trades until the count is reached or a signal comes."""
    settings = start_up()
    trades = Trades(
        ids=ids or run,
        seed=seed,
        keys=keys,
        poison=poison,
        foreign=foreign,
        twice_after=twice_after,
        changes=changes,
        early=early,
        orphans=orphans,
        partitions=settings.kafka_partitions,
    )
    made = 0

    def make_producer(**options: Any) -> AIOKafkaProducer:
        nonlocal made
        made += 1
        return AIOKafkaProducer(**options)

    async def publish(stop: asyncio.Event) -> dict[str, Any]:
        with JournalWriter(folder, run) as journal:
            if stranger:
                return await produce(StrangersPublisher(settings), journal, stop)
            publisher = KafkaPublisher(settings, make_producer)
            await until_connected(publisher.start, timeout_s=_CONNECT_TIMEOUT_S)
            try:
                return await produce(publisher, journal, stop)
            finally:
                await publisher.stop()

    async def produce(
        publisher: Publisher, journal: JournalWriter, stop: asyncio.Event
    ) -> dict[str, Any]:
        journaling = JournalingPublisher(publisher, journal)
        producer = TradeProducer(journaling, topic=settings.kafka_topic, simulator=trades)  # type: ignore[arg-type]  # fits as far as it is used
        summary = await producer.run(stop, count=count, rate=rate or None)
        return summary.to_json() | {"producers": made}

    grace_s = settings.shutdown_graceful_timeout_s
    typer.echo(json.dumps(asyncio.run(run_with_stop(publish, grace_s=grace_s))))


if __name__ == "__main__":
    run_program(main)
