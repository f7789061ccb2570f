"""A member of a group in memory."""

import asyncio
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from app.errors import OffsetGapError, TransportError, UnreadableError
from app.memory_io.broker import MemoryBroker
from app.memory_io.faults import Fault, no_fault
from app.memory_io.murmur2 import partition_for
from app.ports import Assignment, RecordBatch

_BATCH_HEADER: Final = struct.Struct(">qiibIhi")
_BEFORE_LENGTH: Final = 12


class MemorySource:
    """Reads one topic as a member of a group; see `ports.RecordSource` for what it promises.

    It is as hard to use as the real one: when a poll raises, the records of that poll are gone
    unless their partitions are sought again (A1).

    Args:
        broker: Where the topic is.
        topic: The topic, which exists.
        group: Name of the consumer group.
        max_records: Most records of one partition in one poll.

    Attributes:
        faults: Asked before each operation, by the name of its method.
        unreadable: Partitions and offsets of records whose bytes make no sense.
    """

    is_raw = True

    def __init__(
        self, broker: MemoryBroker, topic: str, group: str, *, max_records: int = 500
    ) -> None:
        self.faults: Callable[[str], Fault] = no_fault
        self.max_records = max_records
        self.unreadable: set[tuple[int, int]] = set()
        self._broker = broker
        self._topic = topic
        self._partition_count = broker.partition_count(topic)
        self._group = broker.group(group, topic)
        self._assignment = Assignment(0, frozenset())
        self._sought: dict[int, int] = {}
        self._told: dict[int, tuple[int, int]] = {}
        self._paused: set[int] = set()
        self._changed = asyncio.Event()
        broker.on_change(self.wake)

    async def start(self) -> None:
        """Join the group; a member that was taken for dead joins anew."""
        self._group.join(self, owns_something=bool(self._assignment.partitions))

    async def stop(self) -> None:
        """Leave the group; whoever is left gets the partitions."""
        self._assignment = Assignment(self._assignment.epoch, frozenset())
        self._sought.clear()
        self._group.leave(self)

    def crash(self) -> None:
        """Be taken for dead by the group: nothing is confirmed, and others get the partitions.

        Whoever still uses this object is a zombie: it fetches, and its commits are refused, until
        it starts again.
        """
        self._group.leave(self)

    # -- the group

    @property
    def assignment(self) -> Assignment:
        """What is ours now."""
        return self._assignment

    @property
    def is_revoking(self) -> bool:
        """Whether a rebalance waits for our work in hand."""
        return self in self._group.awaited

    def confirm_revocation(self) -> None:
        """Let the rebalance go on."""
        self._group.confirm(self)

    def assign(self, partitions: frozenset[int]) -> None:
        """Take a new assignment; every partition of it is gated until it is sought."""
        self._assignment = Assignment(self._assignment.epoch + 1, partitions)
        self._sought.clear()
        self._told.clear()
        self._paused.clear()
        self.wake()

    def wake(self) -> None:
        """Let a poll that waits look again."""
        self._changed.set()

    def partition_of(self, key: bytes) -> int:
        """Give the partition that a key belongs to."""
        return partition_for(key, self._partition_count)

    # -- records

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        """Give what has arrived for partitions that are sought, or wait for it."""
        await self._before("poll", spoils=True)
        batches = self._fetch()
        if not batches and timeout_s > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout_s):  # wait_for of 3.11 can swallow a cancel
                    await self._changed.wait()
            except TimeoutError:
                return []
            batches = self._fetch()
        return batches

    def _fetch(self) -> list[RecordBatch]:
        if self._group.is_rebalancing:
            return []
        batches = []
        gaps = []
        for partition, position in sorted(self._sought.items()):
            if partition in self._paused:
                continue
            log = self._broker.log(self._topic, partition)
            self._told[partition] = log.end, self._broker.now_ms()
            if not log.first <= position <= log.end:
                gaps.append(
                    f"{self._topic} partition {partition}: position {position} is outside of"
                    f" {log.first} to {log.end}"
                )
            elif position < log.end:
                batches.append(self._batch(partition, position))
        if gaps:
            raise OffsetGapError("; ".join(gaps))
        return batches

    def _batch(self, partition: int, position: int) -> RecordBatch:
        log = self._broker.log(self._topic, partition)
        records = log.slice(position, log.end)
        next_offset = log.end
        broken = [i for i, r in enumerate(records) if (partition, r.offset) in self.unreadable]
        if broken:
            records, next_offset = records[: broken[0]], records[broken[0]].offset
            if not records:
                raise UnreadableError(partition, f"offset {next_offset} cannot be read")
        lost = [i for i, r in enumerate(records) if r.offset != records[0].offset + i]
        if lost:  # what is behind a hole is another batch
            records = records[: lost[0]]
            next_offset = records[-1].offset + 1
        if len(records) > self.max_records:
            records = records[: self.max_records]
            next_offset = records[-1].offset + 1
        self._sought[partition] = next_offset
        base_offset = records[0].offset if records else next_offset
        epoch = self._assignment.epoch
        return RecordBatch.of(partition, epoch, records, next_offset, base_offset)

    async def stored_bytes(self, partition: int, offset: int) -> bytes:
        """Give the value of the record at an offset behind the header of a batch of one."""
        await self._before("stored_bytes")
        (record,) = self._broker.log(self._topic, partition).slice(offset, offset + 1)
        payload = bytes(_BATCH_HEADER.size - _BEFORE_LENGTH) + (record.value or b"")
        header = _BATCH_HEADER.pack(offset, len(payload), 0, 2, 0, 0, 0)
        return header + payload[_BATCH_HEADER.size - _BEFORE_LENGTH :]

    def seek(self, partition: int, offset: int) -> None:
        """Go on reading a partition at this offset; opens its gate."""
        if partition in self._assignment.partitions:
            self._sought[partition] = offset
            self.wake()

    def pause(self, partitions: Collection[int]) -> None:
        """Give no records of these partitions until `resume`."""
        self._paused |= self._ours(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        """Give records of these partitions again."""
        self._paused -= self._ours(partitions)
        self.wake()

    def _ours(self, partitions: Iterable[int]) -> set[int]:
        return set(partitions) & self._assignment.partitions

    # -- offsets

    def known_ends(self) -> dict[int, int]:
        """Give the ends of our partitions as the last fetches told them, without asking."""
        return {p: self._told[p][0] for p in self._sought.keys() & self._told}

    def fetched_ms(self) -> dict[int, int]:
        """Give when those fetches were answered, by the broker's clock."""
        return {p: self._told[p][1] for p in self._sought.keys() & self._told}

    async def commit(self, next_offsets: Mapping[int, int]) -> bool:
        """Store where the group goes on, by name; all of it or nothing."""
        fault = self.faults("commit")
        await asyncio.sleep(0)
        is_ours = self._group.owns(self, next_offsets)
        if is_ours and fault in (Fault.NONE, Fault.UNKNOWN_STORED):
            self._group.commits.update(next_offsets)
        if fault is not Fault.NONE:
            raise _away("commit", fault)
        return is_ours

    async def committed(self, partitions: Collection[int]) -> dict[int, int | None]:
        """Give the group's committed next offset of each partition."""
        await self._before("committed")
        return {partition: self._group.commits.get(partition) for partition in partitions}

    async def offset_ranges(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """Give the first offset held and the end offset of each partition."""
        await self._before("offset_ranges")
        return {p: self._broker.offset_range(self._topic, p) for p in partitions}

    async def _before(self, operation: str, *, spoils: bool = False) -> None:
        fault = self.faults(operation)
        await asyncio.sleep(0)
        if fault is not Fault.NONE:
            if spoils:
                self._fetch()  # positions move past records that nobody is given
            raise _away(operation, fault)


def _away(operation: str, fault: Fault) -> TransportError:
    return TransportError(
        f"{operation}: scripted fault {fault}", retryable=fault is not Fault.REFUSED
    )
