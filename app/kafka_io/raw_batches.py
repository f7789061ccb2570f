"""The client's consumer, stopped at the record batch: no object per record but the native one.

The client has no public way to take batches: whatever it hands out went through several Python
objects a record. This module reaches for the parts inside. They are looked at when a consumer
starts; where one is missing, it goes on with `getmany()`.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.errors import (
    ConsumerStoppedError,
    CorruptRecordException,
    KafkaError,
    LeaderNotAvailableError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from app.ports import Record

log = structlog.get_logger(__name__)

_CONSUMER = ("_closed", "_coordinator", "_fetcher", "_subscription")
_FETCHER = ("_create_fetch_waiter", "_notify", "_records", "_wait_consume_future")
_SUBSCRIPTION = ("fetch_context", "reassignment_in_progress", "wait_for_assignment")
_RESULT = ("_partition_records", "_update_position", "check_assignment", "has_more")
_PARTITION_RECORDS = (
    "_aborted_producers",
    "_consume_aborted_up_to",
    "_contains_abort_marker",
    "_isolation_level",
    "_records",
    "_records_iterator",
    "next_fetch_offset",
)
_BATCH = (
    "base_offset",
    "is_control_batch",
    "is_transactional",
    "next_offset",
    "producer_id",
    "validate_crc",
)


@dataclass(slots=True)
class RawBatch:
    """A batch as the broker stored it, not yet decompressed.

    Attributes:
        partition: Partition it was read from.
        native: The client's batch; `None` where nothing is for us: control records, aborted ones.
        start: Records below this offset were not asked for.
        next_offset: Where to go on after it, whatever compaction has removed of its end.
        base_offset: Its first offset, whatever compaction has removed of its beginning; -1 where
            its header does not tell, or could not be read.
        error: Why nothing of it, or after it, can be read.
    """

    partition: int
    native: Any
    start: int
    next_offset: int
    base_offset: int = -1
    error: Exception | None = None

    def records(self) -> list[Record]:
        """Decompress the records; asked once, or again after an error, which it raises again.

        Raises:
            CorruptRecordException: The checksum is wrong, or what it covers makes no sense.
            UnicodeDecodeError: The name of a header is no text.
        """
        if self.error is None and self.native is not None:
            try:
                return self._decoded()
            except Exception as exc:
                # What is left of the batch would be given by a second try as if it were all.
                self.error = exc
                raise
        if self.error is not None:
            raise self.error
        return []

    def _decoded(self) -> list[Record]:
        if not self.native.validate_crc():
            raise CorruptRecordException(f"wrong checksum at offset {self.base_offset}")
        records: list[Record] = list(self.native)
        if records and records[0].offset < self.start:
            records = [record for record in records if record.offset >= self.start]
        return records


@dataclass(slots=True)
class DecodedBatch:
    """Records that `getmany()` has made of whatever it had; perhaps none, of control records."""

    partition: int
    given: Sequence[Record]
    next_offset: int
    base_offset: int = -1  # unknown: what is left out may have been control records

    def records(self) -> Sequence[Record]:
        """Give them."""
        return self.given


class RawBatchConsumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is untyped
    """A consumer that gives what it has fetched as batches.

    Args:
        raw: Whether to reach inside; false takes the client's public way, at several times the cost
            for a record.
        options: The client's own.
    """

    def __init__(self, *, raw: bool, **options: Any) -> None:
        super().__init__(**options)
        self._raw = raw
        self._positions: dict[TopicPartition, int] = {}

    @property
    def is_raw(self) -> bool:
        """Whether whole batches are read, and not the records that the client makes of them."""
        return self._raw

    async def start(self) -> None:
        """Connect; what is missing inside is told once, and the public way is taken."""
        await super().start()
        missing = self.missing_parts() if self._raw else []
        if missing:
            self._raw = False
            log.warning("raw_batches_unavailable", missing=missing, instead="getmany, slower")

    def missing_parts(self) -> list[str]:
        """Name what this version of the client lacks of the parts that are reached for here.

        To be asked after `start()`, which makes most of them.
        """
        partition = TopicPartition("", 0)
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1024)
        builder.append(0, 0, b"k", b"v", [])
        empty = {"key_deserializer": None, "value_deserializer": None, "check_crcs": True}
        try:
            records = PartitionRecords(
                partition, MemoryRecords(b""), [], 0, isolation_level=READ_COMMITTED, **empty
            )
            result = FetchResult(partition, assignment=None, partition_records=records, backoff=0.0)
            batch = DefaultRecordBatch(bytes(builder.build()))
        except TypeError as exc:
            return [str(exc)]
        parts = (
            (self, _CONSUMER),
            (getattr(self, "_fetcher", None), _FETCHER),
            (getattr(self, "_subscription", None), _SUBSCRIPTION),
            (result, _RESULT),
            (records, _PARTITION_RECORDS),
            (batch, _BATCH),
        )
        return [
            f"{type(owner).__name__}.{name}"
            for owner, names in parts
            for name in names
            if not hasattr(owner, name)
        ]

    def getbatches_nowait(self, *, but: Collection[int] = ()) -> list[RawBatch]:
        """Give everything that is fetched for assigned partitions; for the raw way only.

        Positions move to the end of what is given, so that the next fetch leaves at once. What is
        fetched of partitions that are left out stays with the client: it fetches no more of them.

        Args:
            but: Partitions to leave out.

        Raises:
            KafkaError: As `getmany()` does. What was fetched before the failure is given first.
        """
        if self._closed:
            raise ConsumerStoppedError
        self._coordinator.check_errors()
        with self._subscription.fetch_context():  # the group sees that somebody polls
            pass
        return [] if self._subscription.reassignment_in_progress else self._drain(but)

    async def getbatches(
        self, *, timeout_ms: int, but: Collection[int] = ()
    ) -> Sequence[RawBatch | DecodedBatch]:
        """Give everything that is fetched for assigned partitions, or wait for something.

        Args:
            timeout_ms: Longest wait.
            but: Partitions to leave out, as in `getbatches_nowait`.

        Raises:
            KafkaError: As `getmany()` does.
        """
        if not self._raw:
            return await self._decoded(timeout_ms, but)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_ms / 1000
        while True:
            if self._subscription.reassignment_in_progress:
                await self._subscription.wait_for_assignment()
            batches = self.getbatches_nowait(but=but)
            left_s = deadline_s - loop.time()
            if batches or left_s <= 0:
                return batches
            waiter = self._fetcher._create_fetch_waiter()  # noqa: SLF001
            done, _ = await asyncio.wait([waiter], timeout=left_s)
            if not done or self._closed:
                waiter.cancel()
                return []
            waiter.result()  # the coordinator passes its errors this way

    async def stored_bytes(self, partition: TopicPartition, offset: int, max_bytes: int) -> bytes:
        """Fetch batches as the broker stores them, the first one whole.

        Raises:
            KafkaError: The leader is not known, does not answer, or refuses.
        """
        leader = self._client.cluster.leader_for_partition(partition)
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(f"no leader of {partition} is known")
        wanted = [(partition.topic, [(partition.partition, offset, max_bytes)])]
        uncommitted_too = 0
        request = FetchRequest(500, 1, max_bytes, uncommitted_too, wanted)
        response = await self._client.send(leader, request)
        ((_, ((_, error_code, *_, batches),)),) = response.topics
        if error_code:
            raise for_code(error_code)
        return bytes(batches)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on at an offset."""
        super().seek(partition, offset)
        self._positions[partition] = offset

    async def getmany(self, *partitions: TopicPartition, **options: Any) -> dict[Any, list[Any]]:
        """Give what the client's own `getmany()` gives.

        Raises:
            KafkaError: Whatever a codec or the name of a header raises as well.
        """
        try:
            records: dict[Any, list[Any]] = await super().getmany(*partitions, **options)
        except KafkaError:
            raise
        except Exception as exc:
            raise CorruptRecordException(f"{type(exc).__name__}: {exc}") from exc
        return records

    async def _decoded(self, timeout_ms: int, but: Collection[int]) -> list[DecodedBatch]:
        wanted = [partition for partition in self.assignment() if partition.partition not in but]
        if but and not wanted:  # to name none would mean all of them
            await asyncio.sleep(timeout_ms / 1000)
            return []
        polled = await self.getmany(*(wanted if but else ()), timeout_ms=timeout_ms)
        batches = []
        for partition in self.assignment():
            try:
                position = await self.position(partition)
            except (KafkaError, AssertionError):
                continue  # reassigned in this moment
            # Control records and aborted ones move a position without a record.
            if partition in polled or position != self._positions.get(partition, position):
                records = polled.get(partition, ())
                batches.append(DecodedBatch(partition.partition, records, position))
            self._positions[partition] = position
        return batches

    def _drain(self, but: Collection[int]) -> list[RawBatch]:
        batches: list[RawBatch] = []
        fetched = self._fetcher._records  # noqa: SLF001
        for partition in list(fetched):
            if partition.partition in but:
                continue
            result = fetched[partition]
            is_error = not isinstance(result, FetchResult)
            if is_error and batches:
                break  # raised by the next call
            del fetched[partition]
            self._fetcher._notify(self._fetcher._wait_consume_future)  # noqa: SLF001
            if is_error:
                result.check_raise()
                continue
            of_partition = result._partition_records  # noqa: SLF001
            if result.check_assignment(partition) and result.has_more():
                batches += _taken(partition.partition, result)
            if of_partition is not None:
                # As the client does when it has read it all: the iterator and the records hold each
                # other, and with them a megabyte, until the garbage collector comes some day.
                of_partition._records_iterator = None  # noqa: SLF001
        return batches


def _taken(partition: int, result: Any) -> list[RawBatch]:
    """Walk over the batches of one partition, reading their headers only."""
    of_partition = result._partition_records  # noqa: SLF001
    batches: list[RawBatch] = []
    reader = of_partition._records  # noqa: SLF001
    start = position = of_partition.next_fetch_offset
    try:
        while reader.has_next():
            native = reader.next_batch()
            is_for_us = _is_for_us(of_partition, native)
            position = native.next_offset
            mine = native if is_for_us else None
            # The formats before Kafka 0.11 do not tell the first offset of a batch.
            base_offset = getattr(native, "base_offset", -1)
            batches.append(RawBatch(partition, mine, start, position, base_offset))
    except Exception as exc:  # noqa: BLE001 - whatever its bytes did: the batch raises it when read
        batches.append(RawBatch(partition, None, start, position, error=exc))
    of_partition.next_fetch_offset = position
    result._update_position()  # noqa: SLF001
    return batches


def _is_for_us(of_partition: Any, native: Any) -> bool:
    """Tell data from control records and from what its transaction took back.

    Source:
        Kafka protocol guide, "Record Batch"; KIP-98, "Consumer": aborted transactions.
    """
    if native.is_control_batch and not native.validate_crc():
        raise CorruptRecordException(f"wrong checksum at offset {native.base_offset}")
    if of_partition._isolation_level == READ_COMMITTED and native.producer_id is not None:  # noqa: SLF001
        aborted = of_partition._aborted_producers  # noqa: SLF001
        of_partition._consume_aborted_up_to(native.base_offset)  # noqa: SLF001
        if native.is_control_batch and of_partition._contains_abort_marker(native):  # noqa: SLF001
            aborted.discard(native.producer_id)
        if native.is_transactional and native.producer_id in aborted:
            if not native.validate_crc():  # it may only seem to be what was taken back
                raise CorruptRecordException(f"wrong checksum at offset {native.base_offset}")
            return False
    return not native.is_control_batch
