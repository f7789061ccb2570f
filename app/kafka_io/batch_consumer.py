"""A group member that hands out batches of raw records, gated, with commits by name."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    CorruptRecordException,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from app.config import Settings
from app.errors import OffsetGapError, TopicError, TradeStreamError, UnreadableError
from app.kafka_io.decompression import decompressed_bytes
from app.kafka_io.diagnosis import no_broker
from app.kafka_io.options import (
    CLIENT_ERRORS,
    MAX_FETCH_BYTES,
    STOP_TIMEOUT_S,
    group_options,
    transport_error,
)
from app.kafka_io.partitioner import KeyPartitioner
from app.kafka_io.raw_batches import DecodedBatch, RawBatch, RawBatchConsumer
from app.ports import Assignment, Record, RecordBatch

log = structlog.get_logger(__name__)

COMMIT_TIMEOUT_S: Final = 10.0  # B9: commit() itself would retry without end
REVOKE_TIMEOUT_S: Final = 20.0
"""How long a rebalance waits for the work in hand; below the rebalance timeout of the group."""

_RECORDS_A_POLL: Final = 500
"""A poll decodes until it has so many records: few enough to be in the cache when processed."""
_BYTES_A_POLL: Final = 16 * 1024 * 1024
"""Likewise, of what was compressed: what a thousand batches hold may be small in the log alone."""
_PROBE_MS: Final = 500
# A1, A2: bytes of a batch that the client cannot take apart; again at every try.
_UNREADABLE: Final = (UnicodeDecodeError, CorruptRecordException)
# B1: the group has moved on. Expected, not a fault.
_NOT_OURS: Final = (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


class KafkaSource(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """A member of the consumer group; see `ports.RecordSource` for what it promises.

    A call of the client that fetches also waits out a rebalance. It is never cancelled: one that
    outlives its `poll` stays pending, and the next `poll` takes its result. What it gave is decoded
    batch by batch as polls ask for it, while the client fetches on.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.kafka_topic
        self._consumer: Any = None
        self._assignment = Assignment(0, frozenset())
        self._fetching: asyncio.Task[Sequence[RawBatch | DecodedBatch]] | None = None
        self._backlog: dict[int, deque[RawBatch | DecodedBatch]] = {}
        self._sought: dict[int, int] = {}
        self._paused: set[int] = set()
        self._stale: set[int] = set()
        self._revoking: asyncio.Event | None = None
        self._wake = asyncio.Event()
        self._partitioner = KeyPartitioner()
        self._partition_count = 0
        self._changed: TopicError | None = None

    async def start(self) -> None:
        """Connect and join the group; retrying is the caller's, with a new object (A8).

        Raises:
            TransportError: No broker answered, or it refused us.
            TopicError: The topic is not there.
        """
        self._consumer = RawBatchConsumer(
            raw=self._settings.kafka_raw_batches,
            **group_options(self._settings),
            partition_assignment_strategy=[StickyPartitionAssignor],  # B14: exactly one
        )
        try:
            await self._consumer.start()
            self._consumer.subscribe([self._topic], listener=self)
            partitions = await self._consumer._client.fetch_all_metadata()  # noqa: SLF001
        except CLIENT_ERRORS as exc:
            await self.stop()
            raise await no_broker(self._settings, exc) from exc
        known = partitions.partitions_for_topic(self._topic)
        if not known:
            await self.stop()
            raise TopicError(f"topic {self._topic} is not there")
        self._partition_count = len(known)

    @property
    def is_raw(self) -> bool:
        """Whether whole batches are read, and not the records that the client makes of them."""
        return bool(self._consumer.is_raw)

    async def stop(self) -> None:
        """Leave the group and close, within a bound (B11)."""
        self.confirm_revocation()
        stopping = asyncio.ensure_future(self._consumer.stop())
        _, late = await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
        if late:
            stopping.cancel()
            log.warning("consumer_stop_timed_out", timeout_s=STOP_TIMEOUT_S)
        for task in (self._fetching, stopping):
            if task is not None:
                if not task.done():
                    task.cancel()
                await asyncio.wait([task], timeout=1)
                if task.done() and not task.cancelled() and task.exception():
                    log.debug("consumer_stopped_with", error=repr(task.exception()))
        self._fetching = None

    # -- the group

    @property
    def assignment(self) -> Assignment:
        """What is ours now."""
        return self._assignment

    @property
    def is_revoking(self) -> bool:
        """Whether a rebalance waits for our work in hand."""
        return self._revoking is not None

    def confirm_revocation(self) -> None:
        """Let the rebalance go on."""
        if self._revoking is not None:
            self._revoking.set()

    async def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """Hold the rebalance until the loop has finished what it has in hand, within a bound."""
        if not revoked:
            return
        self._revoking = asyncio.Event()
        self._wake.set()
        try:
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                await self._revoking.wait()
        except TimeoutError:
            log.warning("revocation_not_confirmed", timeout_s=REVOKE_TIMEOUT_S)
        finally:
            self._revoking = None

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """Note the assignment; every partition of it is gated until it is sought (B4)."""
        partitions = frozenset(tp.partition for tp in assigned)
        known = self._consumer.partitions_for_topic(self._topic)
        count = len(known) if known else self._partition_count  # nothing is known in an outage
        if count != self._partition_count:
            self._changed = TopicError(
                f"topic {self._topic} had {self._partition_count} partitions when this worker"
                f" started and has {count} now: keys belong to other partitions than before"
            )
        self._assignment = Assignment(self._assignment.epoch + 1, partitions)
        self._sought.clear()
        self._paused.clear()
        self._backlog.clear()
        for tp in assigned:
            # Until it is sought a partition is not fetched, and has a position of some kind:
            # one without any makes every poll of the others fail.
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
        self._stale = (
            set(partitions) if self._fetching is not None and self._fetching.done() else set()
        )
        self._wake.set()

    def wake(self) -> None:
        """Let a poll that waits return."""
        self._wake.set()

    def partition_of(self, key: bytes) -> int:
        """Give the partition that a key belongs to."""
        return self._partitioner.partition(key, self._partition_count)

    # -- records

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        """Give what has arrived for partitions that are sought, or wait for it."""
        if self._changed is not None:
            raise self._changed
        if self._readable() is None:
            await self._fetch(timeout_s)
        batches: list[RecordBatch] = []
        count, enough = 0, decompressed_bytes() + _BYTES_A_POLL
        # One partition for as long as there is something of it: its positions and its window are in
        # the cache then. The others wait for what one fetch gave, if that is small.
        while count < _RECORDS_A_POLL and (partition := self._readable()) is not None:
            try:
                batch = self._decoded(partition, enough)
            except Exception as exc:
                if batches:
                    break  # this one raises at the next poll
                raise _unreadable(partition, self._sought[partition], exc) from exc
            batches.append(batch)
            count += len(batch.values)
            if decompressed_bytes() >= enough:
                if partition in self._backlog:
                    self._backlog[partition] = self._backlog.pop(partition)  # the last one now
                break
        return batches

    def _decoded(self, partition: int, enough: int) -> RecordBatch:
        """Decode what comes next of a partition: one batch, or several where they are small."""
        backlog = self._backlog[partition]
        base_offset = backlog[0].base_offset
        records: list[Record] = []
        while True:
            try:
                records += backlog[0].records()
            except Exception:
                if not records:
                    raise
                break  # it raises again when it is the first
            next_offset = backlog.popleft().next_offset
            if not backlog or len(records) >= _RECORDS_A_POLL or decompressed_bytes() >= enough:
                break
            if backlog[0].base_offset > next_offset:
                break  # some are missing in between: the next batch says so
        if not backlog:
            del self._backlog[partition]
        self._sought[partition] = next_offset
        epoch = self._assignment.epoch
        return RecordBatch.of(partition, epoch, records, next_offset, base_offset)

    def _readable(self) -> int | None:
        """Name the partition that is next, if there is anything of any."""
        return next((number for number in self._backlog if number not in self._paused), None)

    async def _fetch(self, timeout_s: float) -> None:
        """Take over what the client has, or wait for it; nothing comes where there is nothing.

        Of a partition that was paused amid what was fetched of it the rest stays here, and nothing
        more is taken over: else every pause would add what the client has fetched meanwhile.
        """
        here = frozenset(self._backlog)
        if self._fetching is None and self.is_raw and timeout_s == 0:
            await self._take(partial(self._consumer.getbatches_nowait, but=here), frozenset())
            return
        if self._fetching is None:
            self._fetching = asyncio.ensure_future(
                self._consumer.getbatches(timeout_ms=int(timeout_s * 1000), but=here)
            )
        if timeout_s and not self._fetching.done():
            waking = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait(
                [self._fetching, waking],
                timeout=timeout_s + 0.05,
                return_when=asyncio.FIRST_COMPLETED,
            )
            waking.cancel()
        self._wake.clear()
        if not self._fetching.done():
            return
        done, self._fetching = self._fetching, None
        stale, self._stale = self._stale, set()
        await self._take(done.result, stale)

    async def _take(
        self, result: Callable[[], Sequence[RawBatch | DecodedBatch]], stale: Collection[int]
    ) -> None:
        try:
            fetched = result()
        except (NoOffsetForPartitionError, OffsetOutOfRangeError) as exc:
            self._check_range(exc)
            return
        except _UNREADABLE as exc:
            raise await self._search_unreadable(exc) from exc
        except CLIENT_ERRORS as exc:
            raise transport_error("cannot fetch", self._settings, exc) from exc
        for some in fetched:
            if some.partition in self._sought and some.partition not in stale:
                self._backlog.setdefault(some.partition, deque()).append(some)

    async def _search_unreadable(self, exc: Exception) -> TradeStreamError:
        """Find the partition that a poll failed on; the caller seeks every one of them again."""
        for partition, offset in self._sought.items():
            tp = TopicPartition(self._topic, partition)
            try:
                await self._consumer.getmany(tp, timeout_ms=_PROBE_MS)
            except _UNREADABLE:
                return _unreadable(partition, offset, exc)
        return transport_error("cannot fetch", self._settings, exc)

    def _check_range(self, exc: KafkaError) -> None:
        named: Any = exc.args[0]
        partitions = [tp.partition for tp in (named if isinstance(named, dict) else [named])]
        if any(partition in self._sought for partition in partitions):
            raise OffsetGapError(f"{self._topic} partition {partitions}: {exc}") from exc

    async def stored_bytes(self, partition: int, offset: int) -> bytes:
        """Give what the log holds from a batch on, whether anybody can read it or not."""
        wanted = TopicPartition(self._topic, partition)
        try:
            stored: bytes = await self._consumer.stored_bytes(wanted, offset, MAX_FETCH_BYTES)
        except CLIENT_ERRORS as exc:
            raise transport_error("cannot fetch", self._settings, exc) from exc
        return stored

    def seek(self, partition: int, offset: int) -> None:
        """Go on reading a partition at this offset; opens its gate."""
        try:
            self._consumer.seek(TopicPartition(self._topic, partition), offset)
        except (IllegalStateError, AssertionError):
            return  # no longer ours; the next assignment says so
        if partition not in self._sought:
            self.resume([partition])
        self._sought[partition] = offset
        self._backlog.pop(partition, None)
        if self._fetching is not None and self._fetching.done():
            self._stale.add(partition)  # drained before the seek, and not handed out yet

    def pause(self, partitions: Collection[int]) -> None:
        """Give no records of these partitions until `resume`; what is fetched of them stays."""
        self._paused |= set(partitions)
        self._set_paused(partitions, paused=True)

    def resume(self, partitions: Collection[int]) -> None:
        """Give records of these partitions again."""
        self._paused -= set(partitions)
        self._set_paused(partitions, paused=False)

    def _set_paused(self, partitions: Collection[int], *, paused: bool) -> None:
        change = self._consumer.pause if paused else self._consumer.resume
        for partition in partitions:
            try:
                change(TopicPartition(self._topic, partition))
            except (IllegalStateError, AssertionError):
                continue  # no longer ours

    # -- offsets

    def known_ends(self) -> dict[int, int]:
        """Give the ends of our partitions as the last fetches told them, without asking."""
        return self._told(self._consumer.highwater)

    def fetched_ms(self) -> dict[int, int]:
        """Give when those fetches were answered, by our wall clock, in ms since 1970."""
        return self._told(self._consumer.last_poll_timestamp)

    def _told(self, of: Callable[[TopicPartition], int | None]) -> dict[int, int]:
        told = {}
        for partition in self._sought:
            try:
                number = of(TopicPartition(self._topic, partition))
            except (IllegalStateError, AssertionError):
                continue  # no longer ours
            if number is not None:
                told[partition] = number
        return told

    async def commit(self, next_offsets: Mapping[int, int]) -> bool:
        """Store where the group goes on, by name (B2)."""
        offsets = {TopicPartition(self._topic, p): offset for p, offset in next_offsets.items()}
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self._consumer.commit(offsets)
        except _NOT_OURS as exc:
            log.info("commit_refused", error=type(exc).__name__)
            return False
        except CLIENT_ERRORS as exc:
            raise transport_error("cannot commit", self._settings, exc) from exc
        return True

    async def committed(self, partitions: Collection[int]) -> dict[int, int | None]:
        """Give the group's committed next offset of each partition."""
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                return {
                    partition: await self._consumer.committed(
                        TopicPartition(self._topic, partition)
                    )
                    for partition in partitions
                }
        except CLIENT_ERRORS as exc:
            raise transport_error("cannot read commits", self._settings, exc) from exc

    async def offset_ranges(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """Give the first offset held and the end offset of each partition."""
        if not partitions:
            return {}
        named = [TopicPartition(self._topic, partition) for partition in partitions]
        try:
            first = await self._consumer.beginning_offsets(named)
            end = await self._consumer.end_offsets(named)
        except CLIENT_ERRORS as exc:
            raise transport_error("cannot read offsets", self._settings, exc) from exc
        return {tp.partition: (first[tp], end[tp]) for tp in named}


def _unreadable(partition: int, offset: int, exc: Exception) -> UnreadableError:
    where = f"a batch at or after offset {offset} cannot be read"
    return UnreadableError(partition, f"{where}: {type(exc).__name__}: {exc}")
