"""Topics and consumer groups in memory."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from app.errors import TopicError
from app.memory_io.murmur2 import partition_for
from app.ports import Headers

_offset_of = attrgetter("offset")


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """One record as it stands in a partition."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(slots=True)
class PartitionLog:
    """One partition: records by offset, the first offset held and the end offset."""

    records: list[MemoryRecord] = field(default_factory=list)
    first: int = 0
    end: int = 0

    def slice(self, start: int, end: int) -> list[MemoryRecord]:
        """Give the records from offset `start` up to, not including, `end`."""
        low = bisect_left(self.records, start, key=_offset_of)
        return self.records[low : bisect_left(self.records, end, lo=low, key=_offset_of)]


class Member(Protocol):
    """What a group has to know of a member."""

    def assign(self, partitions: frozenset[int]) -> None:
        """Take a new assignment."""

    def wake(self) -> None:
        """Look again at records, assignment and revocation."""


class Group:
    """One consumer group on one topic: members, owners, commits.

    Rebalances are eager, as with the real client: every member that owns something is asked to
    finish and to confirm, and only when all have confirmed are the partitions shared out anew.
    Assignments are sticky: members keep what they can; else the order of joining decides.
    """

    def __init__(self, partition_count: int) -> None:
        self.generation = 0
        self.commits: dict[int, int] = {}
        self.is_rebalancing = False
        self.awaited: list[Member] = []
        self._members: list[Member] = []
        self._owners: dict[int, Member] = {}
        self._partition_count = partition_count

    def join(self, member: Member, *, owns_something: bool) -> None:
        """Take in a member; one that still holds an old assignment is asked to let go of it."""
        assert member not in self._members, "it has joined already"
        assert member not in self._members, "it has joined already"
        self._members.append(member)
        self._rebalance([member] if owns_something else [])

    def leave(self, member: Member) -> None:
        """Forget a member, whether it said goodbye or died; it confirms nothing."""
        if member in self._members:
            self._members.remove(member)
            self._owners = {p: m for p, m in self._owners.items() if m is not member}
            self._rebalance()

    def confirm(self, member: Member) -> None:
        """Note that a member has finished its work in hand."""
        if member in self.awaited:
            self.awaited.remove(member)
            self._share_out_when_all_confirmed()

    def owns(self, member: Member, partitions: Iterable[int]) -> bool:
        """Tell whether all of these are the member's in the current generation."""
        return all(self._owners.get(partition) is member for partition in partitions)

    def _rebalance(self, extra: Iterable[Member] = ()) -> None:
        if not self.is_rebalancing:
            self.is_rebalancing = True
            owners = self._owners.values()
            self.awaited = [m for m in self._members if m in owners]
        self.awaited = [m for m in self.awaited if m in self._members]
        self.awaited += [m for m in extra if m not in self.awaited]
        for member in self._members:
            member.wake()
        self._share_out_when_all_confirmed()

    def _share_out_when_all_confirmed(self) -> None:
        if not self.is_rebalancing or self.awaited:
            return
        self.is_rebalancing = False
        self.generation += 1
        shares = self._shares()
        self._owners = {p: self._members[i] for i, share in enumerate(shares) for p in share}
        for member, share in zip(self._members, shares, strict=True):
            member.assign(frozenset(share))

    def _shares(self) -> list[list[int]]:
        if not self._members:
            return []
        held = [sorted(p for p, m in self._owners.items() if m is own) for own in self._members]
        base, extra = divmod(self._partition_count, len(self._members))
        # The larger shares go to who holds most already, so that fewest partitions move.
        by_size = sorted(range(len(held)), key=lambda i: -len(held[i]))
        quota = {index: base + (rank < extra) for rank, index in enumerate(by_size)}
        shares = [held[index][: quota[index]] for index in range(len(held))]
        taken = {partition for share in shares for partition in share}
        free = [p for p in range(self._partition_count) if p not in taken]
        for index, share in enumerate(shares):
            while len(share) < quota[index]:
                share.append(free.pop(0))
        return shares


class MemoryBroker:
    """Topics of partitions, and groups that read them.

    Args:
        topics: Number of partitions of each topic that exists from the start.
        now_ms: Clock for records that bring no timestamp, in ms since 1970.
    """

    def __init__(
        self,
        topics: Mapping[str, int] | None = None,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.now_ms = now_ms
        self._topics: dict[str, list[PartitionLog]] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._readers: list[Callable[[], None]] = []
        self._keyless = 0
        for topic, partitions in (topics or {}).items():
            self.create_topic(topic, partitions)

    def create_topic(self, topic: str, partitions: int) -> None:
        """Make an empty topic, in place of any that had the name."""
        self._topics[topic] = [PartitionLog() for _ in range(partitions)]

    def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic.

        Raises:
            TopicError: There is no such topic.
        """
        return len(self._partitions(topic))

    def place(self, topic: str, key: bytes | None) -> int:
        """Choose the partition of a record: by key; without one each partition in turn."""
        count = self.partition_count(topic)
        if key is not None:
            return partition_for(key, count)
        self._keyless += 1
        return self._keyless % count

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> tuple[int, int]:
        """Store one record.

        Returns:
            Its partition and offset.

        Raises:
            TopicError: There is no such topic.
        """
        number = self.place(topic, key) if partition is None else partition
        log = self.log(topic, number)
        stamp = self.now_ms() if timestamp_ms is None else timestamp_ms
        log.records.append(MemoryRecord(log.end, stamp, key, value, tuple(headers)))
        log.end += 1
        self._changed()
        return number, log.end - 1

    def records(self, topic: str, partition: int | None = None) -> list[MemoryRecord]:
        """Give what a partition holds, or all partitions one after the other."""
        if partition is not None:
            return list(self.log(topic, partition).records)
        return [record for log in self._partitions(topic) for record in log.records]

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """Give the first offset held and the end offset."""
        log = self.log(topic, partition)
        return log.first, log.end

    def delete_records_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete the oldest records, as retention does."""
        log = self.log(topic, partition)
        log.records = log.slice(offset, log.end)
        log.first = offset
        self._changed()

    def truncate(self, topic: str, partition: int, end: int) -> None:
        """Take back the newest records, as an unclean leader election does."""
        log = self.log(topic, partition)
        log.records = log.slice(log.first, end)
        log.end = end
        self._changed()

    def compact(self, topic: str) -> None:
        """Keep the last record of each key; offsets stay."""
        for log in self._partitions(topic):
            last = {record.key: record.offset for record in log.records}
            log.records = [record for record in log.records if last[record.key] == record.offset]

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Give the committed next offsets of a group, by partition; a copy."""
        return dict(self.group(group, topic).commits)

    def set_committed(self, group: str, topic: str, partition: int, offset: int | None) -> None:
        """Move a group's commit, or take it away with `None`, as an operator or an expiry does."""
        commits = self.group(group, topic).commits
        if offset is None:
            commits.pop(partition, None)
        else:
            commits[partition] = offset

    # -- for the clients

    def group(self, group: str, topic: str) -> Group:
        """Give a group on a topic; it is made when it is first asked for."""
        name = (group, topic)
        if name not in self._groups:
            self._groups[name] = Group(self.partition_count(topic))
        return self._groups[name]

    def log(self, topic: str, partition: int) -> PartitionLog:
        """Give one partition itself."""
        return self._partitions(topic)[partition]

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` after every change of a log, for as long as the broker lives."""
        self._readers.append(wake)

    def _partitions(self, topic: str) -> list[PartitionLog]:
        if topic not in self._topics:
            raise TopicError(f"topic {topic} is not there")
        return self._topics[topic]

    def _changed(self) -> None:
        for wake in self._readers:
            wake()
