"""Whole batches and the client's public calls: two ways to read, one stream, on a real broker."""

import asyncio
import itertools
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Consumer, Producer, TopicPartition

from app.config import Settings
from app.errors import TopicError, TransportError, UnreadableError
from app.kafka_io import batch_consumer
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.raw_batches import RawBatchConsumer
from app.ports import Record, RecordBatch
from tests.contract.backend import PATIENCE_S, POLL_S, opened, settle

pytestmark = pytest.mark.integration

Row = tuple[int, bytes | None, bytes | None, int, list[tuple[str, bytes | None]]]
"""Offset, key, value, timestamp and headers of a record."""

BASE_OFFSET: Final = struct.Struct(">q")
LENGTH: Final = struct.Struct(">i")
CRC_FIELD: Final = slice(17, 21)  # of a record batch of magic 2; it covers everything after it
HEAD_SIZE: Final = 61
_names = itertools.count()
both = pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "getmany"])


@pytest.fixture
def one_batch_a_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls give as little as they can, so that much is left that is fetched and not given."""
    monkeypatch.setattr(batch_consumer, "_RECORDS_A_POLL", 1)


async def new_topic(bootstrap: str, *, partitions: int = 1, **config: str) -> str:
    """Create a topic; in its settings `_` stands for a dot."""
    topic = f"paths-{next(_names)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        configs = {name.replace("_", "."): value for name, value in config.items()}
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=configs)])
    finally:
        await admin.close()
    return topic


Sent = tuple[bytes | None, bytes | None, int | None, list[tuple[str, bytes | None]]]
"""Key, value, timestamp and headers of a record to write."""


def numbered(start: int, stop: int, key: bytes | None = b"k") -> list[Sent]:
    """Give records that say their number."""
    return [(key, str(number).encode(), None, []) for number in range(start, stop)]


@asynccontextmanager
async def producing(bootstrap: str, codec: str | None = None) -> AsyncIterator[Callable[..., Any]]:
    """Give a function that writes each of the lists that it gets as one batch."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        compression_type=codec,
        max_batch_size=8 * 1024 * 1024,
        max_request_size=8 * 1024 * 1024,
    )

    async def write(topic: str, *batches: Sequence[Sent], partition: int = 0) -> None:
        for records in batches:
            builder = producer.create_batch()
            for key, value, timestamp, headers in records:
                stored = builder.append(key=key, value=value, timestamp=timestamp, headers=headers)
                assert stored is not None
            await (await producer.send_batch(builder, topic, partition=partition))

    async with producer:
        yield write


@asynccontextmanager
async def member(
    bootstrap: str, topic: str, *, is_raw: bool, group: str = ""
) -> AsyncIterator[KafkaSource]:
    """Join a group of its own, or the one that is named, and leave it at the end."""
    source = KafkaSource(
        Settings.model_validate(
            {
                "kafka_bootstrap_servers": bootstrap,
                "kafka_topic": topic,
                "kafka_group_id": group or f"{topic}-{next(_names)}",
                "kafka_session_timeout_ms": 6_000,
                "kafka_raw_batches": is_raw,
            }
        )
    )
    await source.start()
    try:
        assert source.is_raw is is_raw
        yield source
    finally:
        await source.stop()


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Give all that a record is asked for, in comparable form."""
    return [(r.offset, r.key, r.value, r.timestamp, [*r.headers]) for r in records]


def check_batch(source: KafkaSource, batch: RecordBatch, at: int) -> None:
    """Hold one batch to what it promises of itself; `at` is where its partition stood."""
    offsets = [record.offset for record in batch.records]
    assert batch.epoch == source.assignment.epoch
    assert offsets == sorted(set(offsets))
    assert all(at <= offset < batch.next_offset for offset in offsets)
    assert batch.next_offset > at
    assert list(batch.offsets) == offsets
    assert list(batch.values) == [record.value for record in batch.records]
    assert batch.headers == {n: r.headers for n, r in enumerate(batch.records) if r.headers}


async def drain(source: KafkaSource, starts: Mapping[int, int]) -> dict[int, list[Row]]:
    """Seek partitions and read each up to its end; control records at the end are passed too."""
    ends = await source.offset_ranges(starts)
    for partition, offset in starts.items():
        source.seek(partition, offset)
    rows: dict[int, list[Row]] = {partition: [] for partition in starts}
    at = dict(starts)
    async with asyncio.timeout(PATIENCE_S):
        while any(at[partition] < ends[partition][1] for partition in starts):
            for batch in await source.poll(timeout_s=POLL_S):
                check_batch(source, batch, at[batch.partition])
                rows[batch.partition] += rows_of(batch.records)
                at[batch.partition] = batch.next_offset
    assert at == {partition: ends[partition][1] for partition in starts}
    return rows


async def read_by_both(
    bootstrap: str, topic: str, *starts: Mapping[int, int]
) -> list[dict[int, list[Row]]]:
    """Read a topic from each of some starts, in both ways, which have to agree."""
    found = []
    for is_raw in (True, False):
        async with member(bootstrap, topic, is_raw=is_raw) as source:
            await settle(source, condition=lambda: bool(source.assignment.partitions))
            found.append([await drain(source, start) for start in starts])
    raw, public = found
    assert raw == public
    return raw


def read_by_another_client(bootstrap: str, topic: str, start: int, end: int) -> list[Row]:
    """Read partition 0 with librdkafka."""
    config = {"bootstrap.servers": bootstrap, "group.id": "outside", "enable.partition.eof": True}
    consumer = Consumer(config)
    consumer.assign([TopicPartition(topic, 0, start)])
    rows: list[Row] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error():
            break  # the end
        headers: Any = message.headers() or []
        stamp = message.timestamp()[1]
        rows.append((message.offset() or 0, message.key(), message.value(), stamp, [*headers]))
    consumer.close()
    return [row for row in rows if row[0] < end]


# -- one stream


async def test_records_of_every_form_are_the_same(bootstrap: str) -> None:
    """Null and empty keys and values, repeated and odd headers, and timestamps come through."""
    topic = await new_topic(bootstrap, partitions=2)
    now_ms = time.time_ns() // 1_000_000
    odd: list[Sent] = [
        (None, b"v", now_ms, []),
        (b"", b"", now_ms - 5_000, []),
        (b"\x00\xff", None, now_ms + 1, [("h", b"1"), ("h", None), ("zürich", b"\xff"), ("", b"")]),
    ]
    async with producing(bootstrap) as write:
        await write(topic, odd, numbered(0, 3), odd[::-1], partition=0)
        await write(topic, numbered(0, 1), partition=1)
    (rows,) = await read_by_both(bootstrap, topic, {0: 0, 1: 0})
    assert [row[0] for row in rows[0]] == list(range(9))
    sent = [(key, value, timestamp, headers) for key, value, timestamp, headers in odd]
    assert [row[1:] for row in rows[0][:3]] == sent
    assert [row[1:] for row in rows[0][6:]] == sent[::-1]
    assert len(rows[1]) == 1


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_is_read(bootstrap: str, codec: str) -> None:
    """Compressed batches are the same records, for another client too, and from their middle on."""
    topic = await new_topic(bootstrap)
    async with producing(bootstrap, codec) as write:
        await write(topic, numbered(0, 40), numbered(40, 41), numbered(41, 60))
    whole, tail = await read_by_both(bootstrap, topic, {0: 0}, {0: 17})
    expected = await asyncio.to_thread(read_by_another_client, bootstrap, topic, 0, 60)
    assert whole[0] == expected
    assert [row[2] for row in expected] == [str(number).encode() for number in range(60)]
    assert tail[0] == expected[17:]


async def test_append_times_are_given_where_the_topic_keeps_them(bootstrap: str) -> None:
    """With LogAppendTime the record's time is the broker's, not the sender's."""
    topic = await new_topic(bootstrap, message_timestamp_type="LogAppendTime")
    before_ms = time.time_ns() // 1_000_000
    old: list[Sent] = [(b"k", b"v", 1_600_000_000_000 + n, []) for n in range(3)]
    async with producing(bootstrap) as write:
        await write(topic, old)
    async with producing(bootstrap, "zstd") as write:
        await write(topic, old)
    (rows,) = await read_by_both(bootstrap, topic, {0: 0})
    expected = await asyncio.to_thread(read_by_another_client, bootstrap, topic, 0, 6)
    assert rows[0] == expected
    assert all(row[3] >= before_ms for row in rows[0])


async def test_reading_starts_anywhere_in_a_batch(bootstrap: str) -> None:
    """Whatever offset is sought, it is the first that comes, and all after it follow."""
    topic = await new_topic(bootstrap)
    async with producing(bootstrap, "lz4") as write:
        await write(topic, numbered(0, 7), numbered(7, 8), numbered(8, 12))
    starts = [0, 3, 6, 7, 8, 11, 5, 0]
    for start, rows in zip(
        starts, await read_by_both(bootstrap, topic, *({0: n} for n in starts)), strict=True
    ):
        assert [row[0] for row in rows[0]] == list(range(start, 12))


async def test_batch_larger_than_a_fetch_is_read(bootstrap: str) -> None:
    """A batch of three times the fetch size comes whole, and what stands around it too."""
    topic = await new_topic(bootstrap, max_message_bytes=str(8 * 1024 * 1024))
    large: list[Sent] = [(b"k", bytes([n]) * 1_100_000, None, []) for n in range(3)]
    async with producing(bootstrap) as write:
        await write(topic, numbered(0, 2), large, numbered(5, 7))
    whole, tail = await read_by_both(bootstrap, topic, {0: 0}, {0: 3})
    values = [b"0", b"1", *(value for _, value, *_ in large), b"5", b"6"]
    assert [row[2] for row in whole[0]] == values
    assert tail[0] == whole[0][3:]


# -- holes


async def clean_often(bootstrap: str) -> None:
    """Let the broker look for what it can compact all the time, and not every 15 s."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        often = {"log.cleaner.backoff.ms": "50"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", often)])
    finally:
        await admin.close()


async def test_compacted_batches_keep_their_offsets(bootstrap: str) -> None:
    """Holes inside batches, at their ends and of whole batches are jumped, never counted."""
    topic = await new_topic(
        bootstrap, cleanup_policy="compact", segment_ms="1000", min_cleanable_dirty_ratio="0.01"
    )
    await clean_often(bootstrap)
    now_ms = time.time_ns() // 1_000_000

    def keyed(names: str, ago_ms: int) -> list[Sent]:
        return [(n.encode(), n.encode() * 3, now_ms - ago_ms, []) for n in names]

    async with producing(bootstrap, "zstd") as write:
        await write(topic, keyed("abcdefgh", 90_000), keyed("xyz", 90_000), keyed("ij", 90_000))
        await write(topic, keyed("acdh", 90_000), keyed("xyz", 90_000))
        await write(topic, keyed("r", 0))  # in a segment of its own: the others may be compacted
    kept = [1, 4, 5, 6, *range(11, 21)]
    found: list[Row] = []
    async with asyncio.timeout(PATIENCE_S):
        while [row[0] for row in found] != kept:
            found = await asyncio.to_thread(read_by_another_client, bootstrap, topic, 0, 21)
    starts = [0, 2, 4, 7, 9, 12]
    for start, rows in zip(
        starts, await read_by_both(bootstrap, topic, *({0: n} for n in starts)), strict=True
    ):
        assert rows[0] == [row for row in found if row[0] >= start]


# -- transactions


def begun(bootstrap: str, name: str) -> Producer:
    """Start a producer of transactions."""
    config = {"bootstrap.servers": bootstrap, "transactional.id": name, "linger.ms": 0}
    producer = Producer(config)
    producer.init_transactions(PATIENCE_S)
    return producer


class Transactions:
    """Writes to partition 0 through several open transactions and notes what must be seen."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._open: dict[str, list[tuple[int, bytes]]] = {"a": [], "b": [], "plain": []}
        plain = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._producers = {n: begun(bootstrap, f"{topic}-{n}") for n in "ab"} | {"plain": plain}
        self._next = 0
        self.seen: list[tuple[int, bytes]] = []

    def write(self, name: str, count: int) -> None:
        """Write records and wait until they are stored."""
        producer = self._producers[name]
        if name != "plain" and not self._open[name]:
            producer.begin_transaction()

        def stored(error: object, message: Any) -> None:
            assert error is None
            self._open[name].append((message.offset(), message.value()))

        for _ in range(count):
            value = f"{name}{self._next}".encode()
            producer.produce(self._topic, value, b"k", 0, on_delivery=stored)
            self._next += 1
        assert producer.flush(PATIENCE_S) == 0
        if name == "plain":
            self.seen += self._open.pop(name)
            self._open[name] = []

    def end(self, name: str, *, committed: bool) -> None:
        """End a transaction, whose records are seen, or never."""
        producer = self._producers[name]
        (producer.commit_transaction if committed else producer.abort_transaction)(PATIENCE_S)
        self.seen += self._open[name] if committed else []
        self._open[name] = []

    def run(self) -> None:
        """Interleave what is committed with what is not, and end with control records."""
        self.write("a", 2)
        self.write("b", 3)
        self.write("plain", 1)
        self.write("a", 1)
        self.end("a", committed=False)
        self.write("b", 1)
        self.write("a", 2)
        self.end("b", committed=True)
        self.write("plain", 2)
        self.end("a", committed=True)
        self.write("b", 1)
        self.end("b", committed=False)
        self.write("a", 1)
        self.end("a", committed=True)
        self.write("b", 2)
        self.end("b", committed=False)


async def test_only_what_is_committed_is_read(bootstrap: str) -> None:
    """From any start no aborted record is seen, no other is missed, and the end is reached."""
    topic = await new_topic(bootstrap)
    transactions = await asyncio.to_thread(Transactions, bootstrap, topic)
    await asyncio.to_thread(transactions.run)
    seen = sorted(transactions.seen)
    end = 16 + 6  # records and markers
    starts = [0, 1, 3, 5, 6, 8, 11, 14, end - 3]  # in every batch, and before markers
    for start, rows in zip(
        starts, await read_by_both(bootstrap, topic, *({0: n} for n in starts)), strict=True
    ):
        assert [(row[0], row[2]) for row in rows[0]] == [pair for pair in seen if pair[0] >= start]


# -- seeks, pauses, empty polls


@both
async def test_a_seek_forgets_what_is_fetched(
    bootstrap: str, one_batch_a_poll: None, *, is_raw: bool
) -> None:
    """Batches that are fetched and not given yet are not given after a seek back or forth."""
    topic = await new_topic(bootstrap)
    async with producing(bootstrap) as write:
        await write(topic, *(numbered(n, n + 5) for n in range(0, 50, 5)))
    async with member(bootstrap, topic, is_raw=is_raw) as source:
        await opened(source, {0: 0})
        assert (await next_offsets(source))[0] == 0
        for start in (3, 32, 12, 0):
            source.seek(0, start)
            assert (await next_offsets(source))[0] == start
        found = await drain(source, {0: 7})
        assert [row[0] for row in found[0]] == list(range(7, 50))


async def next_offsets(source: KafkaSource) -> list[int]:
    """Poll until something comes; give its offsets."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            batches = await source.poll(timeout_s=POLL_S)
            if batches:
                return [record.offset for batch in batches for record in batch.records]


@both
async def test_a_seek_forgets_a_fetch_that_nobody_took(bootstrap: str, *, is_raw: bool) -> None:
    """What came for a poll that was woken early is old once its partition is sought."""
    topic = await new_topic(bootstrap, partitions=2)
    async with (
        producing(bootstrap) as write,
        member(bootstrap, topic, is_raw=is_raw) as source,
    ):
        await write(topic, numbered(0, 4))
        await opened(source, {0: 0, 1: 0})
        await drain(source, {0: 0})
        source.wake()
        assert await source.poll(timeout_s=10) == []
        fetching = source._fetching
        assert fetching is not None
        await write(topic, numbered(4, 6))
        await asyncio.wait([fetching], timeout=PATIENCE_S)
        assert fetching.done()
        source.seek(0, 2)
        offsets: list[int] = []
        async with asyncio.timeout(PATIENCE_S):
            while not offsets or offsets[-1] < 5:
                offsets += await next_offsets(source)
        assert offsets == [2, 3, 4, 5]


@both
async def test_pauses_lose_nothing_and_repeat_nothing(
    bootstrap: str, one_batch_a_poll: None, *, is_raw: bool
) -> None:
    """Fetched records of a paused partition wait, also while its log grows, and come once."""
    topic = await new_topic(bootstrap, partitions=2)
    rows: dict[int, list[int]] = {0: [], 1: []}
    async with (
        producing(bootstrap) as write,
        member(bootstrap, topic, is_raw=is_raw) as source,
    ):
        for partition in rows:
            batches = [numbered(n, n + 4) for n in range(0, 60, 4)]
            await write(topic, *batches, partition=partition)
        await opened(source, {0: 0, 1: 0})
        async with asyncio.timeout(PATIENCE_S):
            for turn in itertools.count():
                paused = {0: [0], 1: [1], 2: [0, 1]}.get(turn % 4, [])
                source.pause(paused)
                for batch in await source.poll(timeout_s=0 if turn % 3 else POLL_S):
                    assert batch.partition not in paused
                    check_batch(source, batch, len(rows[batch.partition]))
                    rows[batch.partition] += batch.offsets
                if turn in {5, 6, 8}:
                    number = {5: 60, 6: 64, 8: 68}[turn]
                    for partition in rows:
                        await write(topic, numbered(number, number + 4), partition=partition)
                source.resume(paused)
                if turn > 8 and all(len(offsets) >= 72 for offsets in rows.values()):
                    break
        assert await source.poll(timeout_s=POLL_S) == []
    assert rows == {0: list(range(72)), 1: list(range(72))}


@both
async def test_pauses_do_not_pile_up_what_is_fetched(
    bootstrap: str, one_batch_a_poll: None, *, is_raw: bool
) -> None:
    """A worker that is behind and pauses again and again holds one fetch, not its whole backlog."""
    topic = await new_topic(bootstrap)
    held: list[int] = []
    async with (
        producing(bootstrap) as write,
        member(bootstrap, topic, is_raw=is_raw) as source,
    ):
        sent: Sent = (b"k", bytes(50_000), None, [])
        await write(topic, *[[sent] * 4 for _ in range(50)])  # of 200 a fetch holds 20
        await opened(source, {0: 0})
        count = 0
        async with asyncio.timeout(PATIENCE_S):
            while len(held) < 24:
                source.pause([0])
                # A poll that ends early leaves a fetch on its way, which outlives the pause.
                poll = asyncio.ensure_future(source.poll(timeout_s=1))
                await asyncio.sleep(0)
                source.wake()
                assert await poll == []
                source.resume([0])
                for batch in await source.poll(timeout_s=POLL_S):
                    count += len(batch.values)
                await until_fetched(source)
                backlog = source._backlog.get(0, ())
                held.append(sum(b.next_offset - b.base_offset for b in backlog if is_raw))
                held[-1] += sum(len(b.records()) for b in backlog if not is_raw)
    assert count >= 4 * len(held)
    assert max(held) <= 40


async def until_fetched(source: KafkaSource) -> None:
    """Wait for the fetch that is on its way, for as long as fetches take."""
    if source._fetching is not None:
        await asyncio.wait([source._fetching], timeout=0.3)


@both
async def test_empty_polls_return_and_lose_nothing(bootstrap: str, *, is_raw: bool) -> None:
    """A poll gives nothing before the assignment, before a seek and at the end, in its time."""
    topic = await new_topic(bootstrap)
    async with (
        producing(bootstrap) as write,
        member(bootstrap, topic, is_raw=is_raw) as source,
    ):
        assert await source.poll(timeout_s=0) == []
        await write(topic, numbered(0, 3))
        await settle(source, condition=lambda: bool(source.assignment.partitions))
        assert await source.poll(timeout_s=0) == []
        assert await source.poll(timeout_s=0.1) == []
        source.seek(0, 3)
        began_s = time.monotonic()
        assert await source.poll(timeout_s=0) == []
        assert await source.poll(timeout_s=0.2) == []
        assert time.monotonic() - began_s < 5
        asyncio.get_running_loop().call_later(0.05, source.wake)
        assert await source.poll(timeout_s=60) == []
        assert time.monotonic() - began_s < 10
        await write(topic, numbered(3, 4))
        assert await next_offsets(source) == [3]


class Group:
    """Members that share two partitions; each commits what it has read before it lets go."""

    def __init__(self) -> None:
        self.read: dict[int, list[int]] = {0: [], 1: []}
        self.readers: set[KafkaSource] = set()
        self._opened: dict[KafkaSource, int] = {}
        self._let_go: dict[KafkaSource, int] = {}

    async def turn(self, *sources: KafkaSource) -> None:
        """Let each member do what is due, and read a little."""
        for source in sources:
            epoch = source.assignment.epoch
            if source.is_revoking:
                await source.commit({p: len(self.read[p]) for p in source.assignment.partitions})
                self._let_go[source] = epoch
                source.confirm_revocation()
            if self._opened.get(source) != epoch:
                self._opened[source] = epoch
                committed = await source.committed(source.assignment.partitions)
                for partition, offset in committed.items():
                    source.seek(partition, offset or 0)
            for batch in await source.poll(timeout_s=0.02):
                if batch.epoch == self._opened[source] != self._let_go.get(source):
                    self._take(source, batch)

    def _take(self, source: KafkaSource, batch: RecordBatch) -> None:
        read = self.read[batch.partition]
        check_batch(source, batch, len(read))
        assert batch.offsets[0] == len(read)
        read += batch.offsets
        self.readers.add(source)

    @property
    def count(self) -> int:
        """Records read."""
        return len(self.read[0]) + len(self.read[1])


@both
async def test_nothing_is_lost_when_a_member_joins_midway(
    bootstrap: str, one_batch_a_poll: None, *, is_raw: bool
) -> None:
    """The group reads every record once where each owner commits before it lets go."""
    topic = await new_topic(bootstrap, partitions=2)
    group = Group()
    name = f"{topic}-shared"
    large: list[Sent] = [(b"k", bytes(25_000), None, [])] * 3  # a fetch gives a part of them only
    async with (
        producing(bootstrap) as write,
        member(bootstrap, topic, is_raw=is_raw, group=name) as first,
        asyncio.timeout(2 * PATIENCE_S),
    ):
        for partition in group.read:
            await write(topic, *[large] * 60, partition=partition)
        while not group.count:
            await group.turn(first)
        assert group.count < 360
        async with member(bootstrap, topic, is_raw=is_raw, group=name) as second:
            while not second.assignment.partitions:
                await group.turn(first, second)
            for partition in group.read:
                await write(topic, *[numbered(0, 3)] * 5, partition=partition)
            while group.count < 390:
                await group.turn(first, second)
            assert group.readers == {first, second}
    assert group.read == {0: list(range(195)), 1: list(range(195))}


# -- batches that nobody can read


def log_file(broker_dir: Path, topic: str) -> Path:
    """Find where the broker keeps the first segment of partition 0."""
    (found,) = broker_dir.rglob(f"{topic}-0/00000000000000000000.log")
    return found


def spoil(path: Path, base_offset: int, change: Callable[[bytearray], None]) -> None:
    """Change the stored bytes of one batch in place."""
    with path.open("r+b") as file:
        content = file.read()
        at = 0
        while BASE_OFFSET.unpack_from(content, at)[0] != base_offset:
            at += 12 + LENGTH.unpack_from(content, at + 8)[0]
        batch = bytearray(content[at : at + 12 + LENGTH.unpack_from(content, at + 8)[0]])
        change(batch)
        file.seek(at)
        file.write(batch)


def with_wrong_checksum(batch: bytearray) -> None:
    """Flip a bit of the last record."""
    batch[-1] ^= 1


def seal(batch: bytearray) -> None:
    """Make the checksum fit."""
    batch[CRC_FIELD] = struct.pack(">I", calc_crc32c(bytes(batch[CRC_FIELD.stop :])))


def with_bad_header(batch: bytearray) -> None:
    """Make the name of a header something that is no UTF-8, under a right checksum."""
    batch[batch.index(b"header")] = 0xFF
    seal(batch)


def with_bad_compression(batch: bytearray) -> None:
    """Make what is compressed something that no codec can read, under a right checksum."""
    batch[HEAD_SIZE:] = b"\xff" * (len(batch) - HEAD_SIZE)
    seal(batch)


SPOILT = pytest.mark.parametrize(
    ("codec", "change"),
    [
        (None, with_wrong_checksum),
        (None, with_bad_header),
        ("zstd", with_bad_compression),
        ("gzip", with_bad_compression),
    ],
    ids=["checksum", "header", "zstd", "gzip"],
)


async def until_unreadable(
    source: KafkaSource, starts: Mapping[int, int], others: Mapping[int, int]
) -> tuple[dict[int, list[Row]], UnreadableError]:
    """Read as the loop does: a partition that fails is paused, the others are sought again.

    Args:
        source: Has the partitions.
        starts: Where each begins.
        others: Where the partitions that can be read end.
    """
    rows: dict[int, list[Row]] = {partition: [] for partition in starts}
    at = dict(starts)
    failed: UnreadableError | None = None
    async with asyncio.timeout(PATIENCE_S):
        while failed is None or any(at[partition] < end for partition, end in others.items()):
            try:
                batches = await source.poll(timeout_s=POLL_S)
            except UnreadableError as exc:
                failed = exc
                source.pause([exc.partition])
                for partition in others:
                    source.seek(partition, at[partition])
                continue
            for batch in batches:
                check_batch(source, batch, at[batch.partition])
                rows[batch.partition] += rows_of(batch.records)
                at[batch.partition] = batch.next_offset
    return rows, failed


@SPOILT
@both
async def test_unreadable_batch_stops_its_partition_alone(
    bootstrap: str,
    broker_dir: Path,
    codec: str | None,
    change: Callable[[bytearray], None],
    *,
    is_raw: bool,
) -> None:
    """Its partition is named, the other goes on, and so does this one once it is sought past it.

    Whole batches give what stands before it first; the public calls lose that, with every poll.
    """
    topic = await new_topic(bootstrap, partitions=2)
    async with producing(bootstrap, codec) as write:
        header: Sent = (b"k", b"v" * 50, None, [("header", b"")])
        await write(topic, numbered(0, 5), [header] * 5, numbered(10, 15), partition=0)
        await write(topic, *(numbered(n, n + 4) for n in range(0, 20, 4)), partition=1)
    spoil(log_file(broker_dir, topic), 5, change)
    first = 0 if is_raw else 5
    async with member(bootstrap, topic, is_raw=is_raw) as source:
        await opened(source, {0: first, 1: 0})
        rows, failed = await until_unreadable(source, {0: first, 1: 0}, {1: 20})
        assert failed.partition == 0
        assert "cannot be read" in str(failed)
        assert [row[0] for row in rows[0]] == list(range(first, 5))
        assert [row[0] for row in rows[1]] == list(range(20))
        source.resume([0])
        rest = await drain(source, {0: 10})
        assert [row[2] for row in rest[0]] == [str(n).encode() for n in range(10, 15)]


@SPOILT
async def test_who_reads_a_log_is_told_what_cannot_be_read(
    bootstrap: str, broker_dir: Path, codec: str | None, change: Callable[[bytearray], None]
) -> None:
    """After what stands before it: a restore, a view and a comparison end with a word."""
    topic = await new_topic(bootstrap)
    async with producing(bootstrap, codec) as write:
        header: Sent = (b"k", b"v" * 50, None, [("header", b"")])
        await write(topic, numbered(0, 5), [header] * 5)
    spoil(log_file(broker_dir, topic), 5, change)
    reader = KafkaLogReader(Settings.model_validate({"kafka_bootstrap_servers": bootstrap}))
    records = reader.read(topic, 0, 0, 10)
    assert [(await anext(records)).offset for _ in range(5)] == list(range(5))
    with pytest.raises((TopicError, TransportError), match=topic):
        await anext(records)


# -- without the parts inside


async def test_a_client_without_the_parts_is_read_by_its_public_calls(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a part that is reached for is missing, the same records come, only slower."""
    topic = await new_topic(bootstrap)
    async with producing(bootstrap) as write:
        await write(topic, numbered(0, 9))
    monkeypatch.setattr(RawBatchConsumer, "missing_parts", lambda _: ["FetchResult.has_more"])
    settings = {"kafka_bootstrap_servers": bootstrap, "kafka_topic": topic, "kafka_group_id": topic}
    source = KafkaSource(Settings.model_validate(settings))
    await source.start()
    try:
        assert not source.is_raw
        await opened(source, {0: 0})
        found = await drain(source, {0: 4})
        assert [row[0] for row in found[0]] == list(range(4, 9))
    finally:
        await source.stop()
