"""Topics of a benchmark: filled once for all contestants, and looked at afterwards from outside."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from app.config import Settings
from app.headers import DLQ_REASON
from app.kafka_io.groups import committed_offsets
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.publisher import KafkaPublisher
from app.kafka_io.topics import TopicAdmin
from app.ports import OutgoingRecord, Record, SendOutcome, SendState
from app.stores.changelog import Changelog
from benchmarks.rounds import GateError, say
from benchmarks.workload import Expected, Oracle, Workload

PARTITIONS: Final = 8
_CHUNKS_IN_FLIGHT: Final = 4
_PER_BATCH: Final = 250  # records that a partition gets with each chunk, at any number of them


@dataclass(frozen=True)
class Backlog:
    """A topic that holds `count` records and gets no more, and what they come to."""

    topic: str
    count: int
    partitions: int
    expected: Expected


def settings_of(
    bootstrap: str, topic: str, *, run: str = "none", partitions: int = PARTITIONS
) -> Settings:
    """Give the settings of one run: a group, dead letters and positions of its own."""
    return Settings(
        kafka_bootstrap_servers=bootstrap,
        kafka_topic=topic,
        dlq_topic=f"{topic}-{run}-dlq",
        positions_topic=f"{topic}-{run}-positions",
        kafka_group_id=f"{topic}-{run}",
        kafka_partitions=partitions,
    )


class Backlogs:
    """Makes each backlog once, and gives it to everybody who asks for the same again."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._made: dict[tuple[Workload, int, int, str], Backlog] = {}

    @property
    def topics(self) -> set[str]:
        """The topics that hold them."""
        return {backlog.topic for backlog in self._made.values()}

    def get(
        self,
        workload: Workload,
        count: int,
        *,
        partitions: int = PARTITIONS,
        codec: str = "zstd",
    ) -> Backlog:
        """Give a topic with so many trades of a workload, written by our own publisher."""
        asked = (workload, count, partitions, codec)
        if asked not in self._made:
            topic = f"trades-{len(self._made)}"
            say(f"  writing {count:,} trades to {topic} ({partitions} partitions, {codec})")
            settings = settings_of(self._bootstrap, topic, partitions=partitions)
            expected = asyncio.run(_fill(settings, workload, count, codec))
            self._made[asked] = Backlog(topic, count, partitions, expected)
        return self._made[asked]


async def _fill(settings: Settings, workload: Workload, count: int, codec: str) -> Expected:
    oracle = Oracle()
    refused: Counter[str] = Counter()

    def records() -> Iterable[OutgoingRecord]:
        for trade, value, reason in workload.records(count):
            if reason is None:
                oracle.book(trade.key, trade.signed_quantity, trade.cents)
            else:
                refused[reason] += 1
            yield OutgoingRecord(settings.kafka_topic, trade.key, value)

    def make_producer(**options: Any) -> AIOKafkaProducer:  # noqa: ANN401 - aiokafka is untyped
        kind = None if codec == "none" else codec
        return AIOKafkaProducer(**{**options, "compression_type": kind})

    await TopicAdmin(settings).ensure()
    size = max(2_000, _PER_BATCH * settings.kafka_partitions)
    source = iter(records())
    chunks = iter(lambda: list(islice(source, size)), [])
    async with KafkaPublisher(settings, make_producer) as publisher:
        async for outcomes in publish_all(publisher, chunks):
            if any(outcome.state is not SendState.OK for outcome in outcomes):
                raise GateError(f"{settings.kafka_topic} could not be filled")
    return oracle.expected(refused)


async def publish_all(
    publisher: KafkaPublisher, chunks: Iterable[Sequence[OutgoingRecord]]
) -> AsyncIterator[list[SendOutcome]]:
    """Publish chunks in order, some of them in flight, and give what became of each."""
    in_flight: deque[asyncio.Task[list[SendOutcome]]] = deque()
    for chunk in chunks:
        in_flight.append(asyncio.ensure_future(publisher.publish(chunk)))
        await asyncio.sleep(0)
        if len(in_flight) >= _CHUNKS_IN_FLIGHT:
            yield await in_flight.popleft()
    while in_flight:
        yield await in_flight.popleft()


def make_topics(settings: Settings) -> None:
    """Create what is missing of the three topics."""
    asyncio.run(TopicAdmin(settings).ensure())


def delete_topics(used: Sequence[Settings], *, keep: set[str]) -> None:
    """Delete the topics of some runs, but for those that others read as well."""
    names = {
        name for of in used for name in (of.kafka_topic, of.dlq_topic, of.positions_topic)
    } - keep
    if names:
        asyncio.run(TopicAdmin(used[0]).delete(sorted(names)))


def write_positions_again(settings: Settings, count: int) -> None:
    """Write the positions of a group again, until the topic has so many records."""
    asyncio.run(_write_positions_again(settings, count))


async def _write_positions_again(settings: Settings, count: int) -> None:
    reader = KafkaLogReader(settings)
    changelog = Changelog.of(reader, settings)
    records: list[OutgoingRecord] = []
    held = 0
    for partition, (_, end) in (await reader.offset_ranges(settings.positions_topic)).items():
        restored = await changelog.restore(partition)
        records += changelog.records(partition, restored.positions.values())
        held += end
    chunks = (records for _ in range(held, count, len(records)))
    async with KafkaPublisher(settings) as publisher:
        async for outcomes in publish_all(publisher, chunks):
            if any(outcome.state is not SendState.OK for outcome in outcomes):
                raise GateError(f"{settings.positions_topic} could not be filled")


def end_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """Give the offset after the last record of each partition."""
    ranges = asyncio.run(KafkaLogReader(settings).offset_ranges(topic))
    return {partition: end for partition, (_, end) in ranges.items()}


def check_committed(settings: Settings) -> None:
    """Gate: the group has committed every partition up to its end.

    Raises:
        GateError: It has not.
    """
    ends = {p: end for p, end in end_offsets(settings, settings.kafka_topic).items() if end}
    committed = asyncio.run(committed_offsets(settings))
    behind = {
        p: (committed.get(p, 0), end) for p, end in ends.items() if committed.get(p, 0) != end
    }
    if behind:
        raise GateError(f"committed and end offset differ: {behind}")


def check_dead_letters(settings: Settings, expected: Counter[str]) -> None:
    """Gate: the dead letters are those that were expected, each with its reason.

    Raises:
        GateError: They are not.
    """
    found = asyncio.run(_reasons(settings))
    if found != expected:
        raise GateError(f"dead letters {dict(found)} instead of {dict(expected)}")


async def _reasons(settings: Settings) -> Counter[str]:
    reader = KafkaLogReader(settings)
    reasons: Counter[str] = Counter()
    for partition, (start, end) in (await reader.offset_ranges(settings.dlq_topic)).items():
        async for record in reader.read(settings.dlq_topic, partition, start, end):
            reasons[_reason(record)] += 1
    return reasons


def _reason(record: Record) -> str:
    return next((v.decode() for k, v in record.headers if k == DLQ_REASON and v), "none")
