"""Whole batches on bytes of our own making: what is given, what is not, and what is left behind."""

import asyncio
import gc
import struct
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import (
    READ_COMMITTED,
    READ_UNCOMMITTED,
    FetchError,
    FetchResult,
    PartitionRecords,
)
from aiokafka.errors import (
    ConsumerStoppedError,
    GroupAuthorizationFailedError,
    OffsetOutOfRangeError,
)
from aiokafka.record.control_record import ABORT_MARKER, COMMIT_MARKER
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from app.config import Settings
from app.kafka_io import batch_consumer, raw_batches
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.raw_batches import DecodedBatch, RawBatch, RawBatchConsumer, _taken
from tests.virtual_time import virtual_time

PARTITION: Final = TopicPartition("trades", 0)
OTHER: Final = TopicPartition("trades", 1)
CONTROL_BIT: Final = 0x20
CRC_AT: Final = 17
HEAD_SIZE: Final = 61
CODECS: Final = (0, 1, 4)  # none, gzip, zstd
PRODUCERS: Final = (2, 3)  # one bit apart


# -- batches


def written(
    base_offset: int,
    steps: list[int],
    *,
    producer: int = -1,
    marker: Any = None,
    codec: int = 0,
    cut_off: int = 0,
) -> bytes:
    """Write one batch.

    Args:
        base_offset: Its first offset.
        steps: Offsets of its records from there, rising; none where compaction left nothing.
        producer: Id of the producer of a transaction.
        marker: What ends a transaction.
        codec: By its number.
        cut_off: So many records at its end were compacted away.
    """
    is_transactional = int(producer >= 0)
    builder = DefaultRecordBatchBuilder(2, codec, is_transactional, producer, 0, 0, 1 << 20)
    for step in steps or [0]:
        key, value = b"k", str(base_offset + step).encode()
        if marker is not None:
            key, value = struct.pack(">HH", marker.version, marker.type_), b"\0" * 6
        builder.append(step, 1_700_000_000_000 + step, key, value, [("h", value)][: step % 2])
    raw = bytearray(builder.build())
    if not steps:
        del raw[HEAD_SIZE:]
        struct.pack_into(">i", raw, 8, HEAD_SIZE - 12)
        struct.pack_into(">i", raw, 57, 0)
    (attributes,) = struct.unpack_from(">h", raw, 21)
    struct.pack_into(">h", raw, 21, attributes | (CONTROL_BIT if marker else 0))
    struct.pack_into(">q", raw, 0, base_offset)
    struct.pack_into(">i", raw, 23, (steps[-1] if steps else 0) + cut_off)
    struct.pack_into(">I", raw, CRC_AT, calc_crc32c(bytes(raw[CRC_AT + 4 :])))
    return bytes(raw)


@dataclass
class Log:
    """What a broker answers, and what there is to be seen of it.

    Attributes:
        batches: As they are stored.
        firsts: First offset of each batch; after the last one, the end.
        aborted: Producer and first offset of every transaction that was taken back.
        seen: Offsets of each batch that a reader of committed records gets.
    """

    batches: list[bytes]
    firsts: list[int]
    aborted: list[tuple[int, int]]
    seen: list[list[int]]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Give a log of plain, transactional and control batches, with holes of compaction."""
    log = Log([], [draw(st.integers(0, 3))], [], [])
    opened: dict[int, tuple[int, list[int]]] = {}

    def add(steps: list[int], cut_off: int = 0, **more: Any) -> list[int]:
        base = log.firsts[-1]
        log.batches.append(written(base, steps, cut_off=cut_off, **more))
        log.firsts.append(base + (steps[-1] if steps else 0) + cut_off + 1)
        log.seen.append([base + step for step in steps])
        return log.seen[-1]

    def end(producer: int, *, committed: bool) -> None:
        first, indexes = opened.pop(producer)
        if not committed:
            log.aborted.append((producer, first))
            for index in indexes:
                log.seen[index] = []
        add([0], producer=producer, marker=COMMIT_MARKER if committed else ABORT_MARKER)
        log.seen[-1] = []

    for _ in range(draw(st.integers(1, 7))):
        producer = draw(st.sampled_from([-1, *PRODUCERS]))
        if producer in opened and draw(st.booleans()):
            end(producer, committed=draw(st.booleans()))
            continue
        steps = sorted(draw(st.sets(st.integers(0, 5), max_size=4)))
        if producer >= 0:
            _, indexes = opened.setdefault(producer, (log.firsts[-1], []))
            indexes.append(len(log.batches))
        codec = draw(st.sampled_from(CODECS)) if steps else 0
        add(steps, draw(st.integers(0, 2)), producer=producer, codec=codec)
    for producer in list(opened):
        end(producer, committed=draw(st.booleans()))
    return log


def fetched(
    raw: bytes, start: int, aborted: list[tuple[int, int]], isolation: int = READ_COMMITTED
) -> PartitionRecords:
    """Give bytes as the client keeps them until somebody asks."""
    bytes_only = {"key_deserializer": None, "value_deserializer": None, "check_crcs": True}
    return PartitionRecords(
        PARTITION, MemoryRecords(raw), aborted, start, isolation_level=isolation, **bytes_only
    )


def taken(of_partition: PartitionRecords) -> tuple[list[RawBatch], int]:
    """Take whole batches; give them and the position that is left."""
    positions: list[int] = []
    assignment = SimpleNamespace(
        state_value=lambda _: SimpleNamespace(consumed_to=positions.append)
    )
    result = FetchResult(
        PARTITION, assignment=assignment, partition_records=of_partition, backoff=0.0
    )
    batches = _taken(0, result)
    (position,) = positions
    return batches, position


def row(record: Any) -> tuple[Any, ...]:
    """Give all that a record is asked for."""
    return record.offset, record.timestamp, record.key, record.value, list(record.headers)


@given(logs(), st.data())
def test_batches_hold_the_records_that_the_client_gives(log: Log, data: st.DataObject) -> None:
    """Record for record, from any start in the first batch, at both levels of isolation."""
    isolation = data.draw(st.sampled_from([READ_COMMITTED, READ_UNCOMMITTED]))
    start = data.draw(st.integers(log.firsts[0], log.firsts[1] - 1))
    raw = b"".join(log.batches)
    raw += log.batches[-1][
        : data.draw(st.integers(0, HEAD_SIZE - 1))
    ]  # an answer may end in a batch
    public = fetched(raw, start, log.aborted, isolation)
    expected = [row(record) for record in public]
    batches, position = taken(fetched(raw, start, log.aborted, isolation))
    assert [row(record) for batch in batches for record in batch.records()] == expected
    assert position == public.next_fetch_offset == log.firsts[-1]
    assert [batch.next_offset for batch in batches] == log.firsts[1:]
    if isolation == READ_COMMITTED:
        seen = [offset for offsets in log.seen for offset in offsets if offset >= start]
        assert [offset for offset, *_ in expected] == seen


@given(logs(), st.data())
def test_flipped_bit_is_never_taken_for_data_nor_for_nothing(log: Log, data: st.DataObject) -> None:
    """All that stands before a broken batch is given first; then it raises, and nothing follows."""
    broken = data.draw(st.integers(0, len(log.batches) - 1))
    raw = bytearray(log.batches[broken])
    places = st.integers(CRC_AT, HEAD_SIZE - 1) | st.integers(CRC_AT, len(raw) - 1)
    raw[data.draw(places)] ^= 1 << data.draw(st.integers(0, 7))
    whole = b"".join([*log.batches[:broken], bytes(raw), *log.batches[broken + 1 :]])
    batches, _ = taken(fetched(whole, log.firsts[0], log.aborted))
    offsets: list[int] = []
    failed = None
    for batch in batches:
        try:
            offsets += [record.offset for record in batch.records()]
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is not swallowed
            failed = exc
            break
    if failed is None:
        # Only of what nobody is to see may the checksum go unread.
        assert not log.seen[broken]
    else:
        assert batches.index(batch) == broken
    assert offsets == [offset for seen in log.seen[: broken if failed else None] for offset in seen]


@pytest.mark.parametrize("magic", [0, 1])
def test_batches_of_old_formats_are_read(magic: int) -> None:
    """What was written before Kafka 0.11 has no base offset in its head; but it is data."""
    builder = LegacyRecordBatchBuilder(magic, 0, 1 << 20)
    for offset in (0, 1):
        builder.append(offset, timestamp=1_700_000_000_000, key=b"k", value=b"v%d" % offset)
    batches, position = taken(fetched(bytes(builder.build()), 0, []))
    records = [record for batch in batches for record in batch.records()]
    assert [(record.offset, record.value) for record in records] == [(0, b"v0"), (1, b"v1")]
    assert {batch.base_offset for batch in batches} == {-1}
    assert position == 2


def test_transaction_that_only_seems_to_be_taken_back_is_not_dropped() -> None:
    """A batch whose producer was changed into one that aborted raises: it is not for nobody."""
    good = bytearray(written(1, [0, 1], producer=2))
    good[50] ^= 1  # the last byte of the producer id
    raw = b"".join(
        [written(0, [0], producer=3), bytes(good), written(3, [0], producer=3, marker=ABORT_MARKER)]
    )
    batches, _ = taken(fetched(raw, 0, [(3, 0)]))
    with pytest.raises(Exception, match="wrong checksum"):
        [batch.records() for batch in batches]


def test_bytes_that_are_no_batch_raise_after_what_stands_before_them() -> None:
    """What cannot be taken apart is an error of its place, not of the whole answer."""
    good = written(0, [0, 1])
    nonsense = struct.pack(">qi", 2, 3) + b"\xff" * 3
    batches, position = taken(fetched(good + nonsense, 0, []))
    assert [record.offset for record in batches[0].records()] == [0, 1]
    assert position == 2
    with pytest.raises(Exception, match="minimum record overhead"):
        batches[1].records()


# -- the consumer around them


@pytest.fixture
async def consumer() -> AsyncIterator[RawBatchConsumer]:
    """A consumer that was never connected, with two partitions and something to be fetched from."""
    made = RawBatchConsumer(raw=True, bootstrap_servers="127.0.0.1:1", enable_auto_commit=False)
    waiters: set[asyncio.Future[None]] = set()

    def waiter() -> asyncio.Future[None]:
        waiters.add(future := asyncio.get_running_loop().create_future())
        return future

    def notify(future: asyncio.Future[None] | None) -> None:
        made._notified.append(future)

    made._notified = []
    made._waiters = waiters
    made._coordinator = SimpleNamespace(check_errors=lambda: None)
    made._fetcher = SimpleNamespace(
        _records={}, _notify=notify, _wait_consume_future="room", _create_fetch_waiter=waiter
    )
    made._subscription.assign_from_user({PARTITION, OTHER})
    yield made
    made._coordinator = made._fetcher = None
    await made.stop()


def give(consumer: RawBatchConsumer, partition: TopicPartition, raw: bytes, start: int = 0) -> None:
    """Let something be fetched."""
    assignment = consumer._subscription.subscription.assignment
    consumer._subscription.seek(partition, start)
    consumer._fetcher._records[partition] = FetchResult(
        partition, assignment=assignment, partition_records=fetched(raw, start, []), backoff=0.0
    )


def is_idle(consumer: RawBatchConsumer) -> bool:
    """Tell whether the group sees that nobody is in a poll."""
    return bool(consumer._subscription._fetch_count == 0)


async def test_what_is_fetched_is_given_and_fetched_on(consumer: RawBatchConsumer) -> None:
    """Positions stand at the end of what was given, and the fetcher is told that there is room."""
    give(consumer, PARTITION, written(0, [0, 1]) + written(2, [0]))
    give(consumer, OTHER, written(4, [0, 3], cut_off=2), start=5)
    batches = consumer.getbatches_nowait()
    assert [(b.partition, b.next_offset) for b in batches] == [(0, 2), (0, 3), (1, 10)]
    assert [[r.offset for r in b.records()] for b in batches] == [[0, 1], [2], [7]]
    assert [await consumer.position(tp) for tp in (PARTITION, OTHER)] == [3, 10]
    assert consumer._fetcher._records == {}
    assert consumer._notified == ["room", "room"]
    assert consumer.getbatches_nowait() == []


@pytest.mark.parametrize("is_dropped", [False, True])
async def test_what_was_fetched_is_freed_when_it_is_read(
    consumer: RawBatchConsumer, *, is_dropped: bool
) -> None:
    """Records that hold each other would keep a megabyte of each fetch until a collection."""
    give(consumer, PARTITION, written(0, [0, 1]))
    kept = weakref.ref(consumer._fetcher._records[PARTITION]._partition_records)
    if is_dropped:
        consumer._subscription.pause(PARTITION)
    gc.disable()
    try:
        assert len(consumer.getbatches_nowait()) == (0 if is_dropped else 1)
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("change", ["seek", "pause"])
async def test_what_was_fetched_for_another_position_is_dropped(
    consumer: RawBatchConsumer, change: str
) -> None:
    """A seek or a pause since the fetch leaves nothing of it, and the position where it is."""
    give(consumer, PARTITION, written(0, [0, 1]))
    if change == "seek":
        consumer._subscription.seek(PARTITION, 1)
    else:
        consumer._subscription.pause(PARTITION)
    assert consumer.getbatches_nowait() == []
    assert await consumer.position(PARTITION) == (1 if change == "seek" else 0)
    assert consumer._fetcher._records == {}


def failed_fetch(consumer: RawBatchConsumer) -> None:
    """Let a fetch have failed."""
    error = FetchError(error=OffsetOutOfRangeError({PARTITION: 9}), backoff=0.0)
    consumer._fetcher._records[PARTITION] = error


def refused_group(consumer: RawBatchConsumer) -> None:
    """Let the coordinator have an error."""

    def check_errors() -> None:
        raise GroupAuthorizationFailedError("risk")

    consumer._coordinator.check_errors = check_errors


def closed(consumer: RawBatchConsumer) -> None:
    """Let it be stopped."""
    consumer._closed = True


def broken_inside(consumer: RawBatchConsumer) -> None:
    """Let a part of the client be other than it looked."""
    give(consumer, PARTITION, written(0, [0]))
    consumer._fetcher._records[PARTITION]._partition_records._records = None


FAULTS: Final[list[tuple[Callable[[RawBatchConsumer], None], type[Exception] | None]]] = [
    (failed_fetch, OffsetOutOfRangeError),
    (refused_group, GroupAuthorizationFailedError),
    (closed, ConsumerStoppedError),
    (broken_inside, None),
]


@pytest.mark.parametrize(("fault", "error"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
@pytest.mark.parametrize("waits", [True, False])
async def test_error_leaves_the_group_able_to_see_that_nobody_polls(
    consumer: RawBatchConsumer,
    fault: Callable[[RawBatchConsumer], None],
    error: type[Exception] | None,
    *,
    waits: bool,
) -> None:
    """Whatever is raised, no poll counts as running afterwards."""
    fault(consumer)

    async def poll() -> Sequence[RawBatch | DecodedBatch]:
        if waits:
            return await consumer.getbatches(timeout_ms=10_000)
        return consumer.getbatches_nowait()

    if error is None:
        (batch,) = await poll()
        with pytest.raises(AttributeError):
            batch.records()
    else:
        with pytest.raises(error):
            await poll()
    assert is_idle(consumer)
    consumer._closed = False


async def test_failed_fetch_waits_for_what_was_fetched_before_it(
    consumer: RawBatchConsumer,
) -> None:
    """Good batches of one partition come first; the error of another is raised next, and once."""
    give(consumer, OTHER, written(0, [0]))
    failed_fetch(consumer)
    assert [batch.partition for batch in consumer.getbatches_nowait()] == [1]
    with pytest.raises(OffsetOutOfRangeError):
        consumer.getbatches_nowait()
    assert consumer.getbatches_nowait() == []
    assert is_idle(consumer)


async def test_waiting_ends_with_data_time_or_cancellation(consumer: RawBatchConsumer) -> None:
    """It takes what comes, gives nothing when nothing comes, and leaves no waiter and no count."""
    waiting = asyncio.ensure_future(consumer.getbatches(timeout_ms=60_000))
    await asyncio.sleep(0)
    give(consumer, PARTITION, written(0, [0]))
    consumer._waiters.pop().set_result(None)
    assert [batch.next_offset for batch in await waiting] == [1]
    assert await consumer.getbatches(timeout_ms=1) == []
    assert consumer._waiters.pop().cancelled()
    waiting = asyncio.ensure_future(consumer.getbatches(timeout_ms=60_000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    waiting = asyncio.ensure_future(consumer.getbatches(timeout_ms=60_000))
    consumer._waiters.clear()
    await asyncio.sleep(0)
    consumer._waiters.pop().set_exception(GroupAuthorizationFailedError("risk"))
    with pytest.raises(GroupAuthorizationFailedError):
        await waiting
    assert is_idle(consumer)


async def test_nothing_is_given_during_a_rebalance(
    consumer: RawBatchConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched for the old assignment is nobody's while a new one is awaited."""
    give(consumer, PARTITION, written(0, [0]))
    is_joining = True
    now = property(lambda _: is_joining)
    monkeypatch.setattr(type(consumer._subscription), "reassignment_in_progress", now)
    assert consumer.getbatches_nowait() == []
    waiting = asyncio.ensure_future(consumer.getbatches(timeout_ms=60_000))
    await asyncio.sleep(0)
    assert not waiting.done()
    is_joining = False
    consumer._subscription._notify_assignment_waiters()
    assert [batch.next_offset for batch in await waiting] == [1]


# -- the parts that are reached for


async def test_this_version_of_the_client_has_all_parts(consumer: RawBatchConsumer) -> None:
    """The pinned client is read by whole batches."""
    assert consumer.missing_parts() == []


def without(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch, RawBatchConsumer], None]:
    """Take a part of a class away."""
    return lambda patch, _: patch.delattr(owner, name)


def without_crc(patch: pytest.MonkeyPatch, _: RawBatchConsumer) -> None:
    """Take the checksum of batches away; the class itself is compiled."""
    names = [name for name in raw_batches._BATCH if name != "validate_crc"]
    batch = SimpleNamespace(**dict.fromkeys(names))
    patch.setattr(raw_batches, "DefaultRecordBatch", lambda _: batch)


@pytest.mark.parametrize(
    ("take_away", "named"),
    [
        (without(FetchResult, "has_more"), "FetchResult.has_more"),
        (without(FetchResult, "_update_position"), "FetchResult._update_position"),
        (
            without(PartitionRecords, "_consume_aborted_up_to"),
            "PartitionRecords._consume_aborted_up_to",
        ),
        (lambda _, c: delattr(c._fetcher, "_records"), "SimpleNamespace._records"),
        (lambda _, c: delattr(c._fetcher, "_wait_consume_future"), "._wait_consume_future"),
        (lambda _, c: setattr(c, "_subscription", None), "NoneType.fetch_context"),
        (without_crc, "SimpleNamespace.validate_crc"),
        (
            lambda patch, _: patch.setattr(raw_batches, "FetchResult", lambda tp: None),
            "unexpected keyword argument",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_missing_part_is_named(
    consumer: RawBatchConsumer,
    monkeypatch: pytest.MonkeyPatch,
    take_away: Callable[[pytest.MonkeyPatch, RawBatchConsumer], None],
    named: str,
) -> None:
    """A client that is built otherwise is recognised before anything is read with it."""
    subscription = consumer._subscription
    with monkeypatch.context() as patch:
        take_away(patch, consumer)
        assert any(named in part for part in consumer.missing_parts())
    consumer._subscription = subscription


class PublicClient(RawBatchConsumer):
    """A consumer whose client lacks a part, and has one record and control records after it."""

    def __init__(self, *, raw: bool, **_: Any) -> None:
        self._raw = raw
        self._positions = {}
        self._client = SimpleNamespace(
            cluster=SimpleNamespace(partitions_for_topic=lambda _: {0}),
            fetch_all_metadata=self.fetch_all_metadata,
        )
        self.polled = [SimpleNamespace(offset=7, key=b"k", value=b"v", headers=(), timestamp=1)]
        self.place = 7

    def __del__(self) -> None:
        return  # nothing was opened

    async def stop(self) -> None:
        return

    def subscribe(self, _: list[str], listener: Any) -> None:
        self.listener = listener

    async def fetch_all_metadata(self) -> Any:
        return SimpleNamespace(partitions_for_topic=lambda _: {0})

    def missing_parts(self) -> list[str]:
        return ["Fetcher._records"]

    def pause(self, _: TopicPartition) -> None:
        return

    def resume(self, _: TopicPartition) -> None:
        return

    def seek(self, _: TopicPartition, offset: int) -> None:
        return

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION}

    async def position(self, _: TopicPartition) -> int:
        return self.place

    async def getmany(self, *, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        polled, self.polled = self.polled, []
        self.place = 8 if polled else 12
        return {PARTITION: polled} if polled else {}


@pytest.fixture
def public_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sources be made with such a client."""

    async def start(_: AIOKafkaConsumer) -> None:
        return

    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    monkeypatch.setattr(batch_consumer, "RawBatchConsumer", PublicClient)


@pytest.mark.usefixtures("public_client")
async def test_source_goes_on_with_the_public_calls() -> None:
    """Where a part is missing, records come through `getmany()`, and control records are passed."""
    source = KafkaSource(Settings(kafka_topic="trades"))
    await source.start()
    assert not source.is_raw
    source.on_partitions_assigned({PARTITION})
    source.seek(0, 7)
    (batch,) = await source.poll(timeout_s=0.01)
    assert (list(batch.offsets), batch.next_offset) == ([7], 8)
    (passed,) = await source.poll(timeout_s=0.01)
    assert (list(passed.offsets), passed.next_offset) == ([], 12)
    assert await source.poll(timeout_s=0.01) == []
    await source.stop()


@pytest.mark.usefixtures("public_client")
async def test_new_assignment_forgets_what_was_fetched_under_the_old_one() -> None:
    """What waited for a resume is given to nobody once the group has assigned anew."""
    source = KafkaSource(Settings(kafka_topic="trades"))
    await source.start()
    source.on_partitions_assigned({PARTITION})
    source.seek(0, 7)
    source.pause([0])
    assert await source.poll(timeout_s=0.01) == []
    source.on_partitions_assigned({PARTITION})
    assert await source.poll(timeout_s=0.01) == []
    await source.stop()


# -- polls


class NothingFetched:
    """A client that has nothing, and waits for it."""

    is_raw = True

    def getbatches_nowait(self, *, but: Collection[int]) -> list[RawBatch]:
        """Give what is there."""
        return []

    async def getbatches(self, *, timeout_ms: int, but: Collection[int]) -> list[RawBatch]:
        """Wait for more."""
        await asyncio.sleep(timeout_ms / 1000)
        return []


@virtual_time
async def test_poll_without_time_does_not_wait_for_a_fetch_that_is_on_its_way() -> None:
    """Whoever asks what is at hand is told at once, also after a poll that was woken."""
    source = KafkaSource(Settings())
    source._consumer = NothingFetched()
    loop = asyncio.get_running_loop()
    source.wake()
    assert await source.poll(timeout_s=10) == []
    woken_s = loop.time()
    assert await source.poll(timeout_s=0) == []
    assert loop.time() == woken_s
    assert await source.poll(timeout_s=20) == []  # the one that was left, not another one
    assert loop.time() == woken_s + 10


def test_ends_are_told_with_the_time_of_their_fetch() -> None:
    """Of partitions that were fetched since they were sought, and are ours."""

    class Fetched:
        def highwater(self, tp: TopicPartition) -> int | None:
            assert tp.partition != 3, "Partition is not assigned"
            return {1: 7}.get(tp.partition)

        def last_poll_timestamp(self, tp: TopicPartition) -> int | None:
            assert tp.partition != 3, "Partition is not assigned"
            return {1: 1_790_000_000_000}.get(tp.partition)

    source = KafkaSource(Settings())
    source._consumer = Fetched()
    source._sought = dict.fromkeys((1, 2, 3), 0)
    assert source.known_ends() == {1: 7}
    assert source.fetched_ms() == {1: 1_790_000_000_000}
