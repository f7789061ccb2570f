"""What the loops need of the world, in their own words; adapters fit structurally.

Real Kafka fits in `kafka_io`, lists in memory fit in `memory_io`; one contract suite holds both.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec

from app.models import CostMethod, LotChange, NumberedLots, Position, Refusal, TradeEvent

Headers = Sequence[tuple[str, bytes | None]]
"""Names and values in their order; Kafka lets a value be null."""


class Record(Protocol):
    """One record as it stands in a log."""

    @property
    def offset(self) -> int:
        """Offset in its partition."""

    @property
    def timestamp(self) -> int:
        """Append or create time as the topic is set, in ms since 1970."""

    @property
    def key(self) -> bytes | None:
        """Key bytes, untouched."""

    @property
    def value(self) -> bytes | None:
        """Value bytes, untouched; `None` is a tombstone."""

    @property
    def headers(self) -> Headers:
        """Headers in their order."""


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive records of one partition; none where only control records were passed.

    Attributes:
        partition: Partition of the source topic.
        epoch: Assignment it was read under; a batch of an older one is thrown away.
        records: The records, in offset order; offsets may have gaps.
        values: Their values, in the same order: all that most records are ever asked for.
        offsets: Their offsets.
        headers: Headers of the few records that have any, by index.
        next_offset: Where to go on after the batch; the only number that is committed.
        base_offset: Where the log goes on with it: after the offset that was due, where some are
            missing; -1 where that is not known.
    """

    partition: int
    epoch: int
    records: Sequence[Record]
    values: Sequence[bytes | None]
    offsets: Sequence[int]
    headers: Mapping[int, Headers]
    next_offset: int
    base_offset: int = -1

    @classmethod
    def of(
        cls,
        partition: int,
        epoch: int,
        records: Sequence[Record],
        next_offset: int,
        base_offset: int = -1,
    ) -> "RecordBatch":
        """Make a batch of records that were read one after the other."""
        headers = [record.headers for record in records]
        first, last = (records[0].offset, records[-1].offset) if records else (0, -1)
        has_gaps = last - first + 1 != len(records)  # compaction leaves them
        return cls(
            partition,
            epoch,
            records,
            [record.value for record in records],
            [record.offset for record in records] if has_gaps else range(first, last + 1),
            {index: some for index, some in enumerate(headers) if some} if any(headers) else {},
            next_offset,
            base_offset,
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """The partitions that are ours, and the number of the assignment that gave them."""

    epoch: int
    partitions: frozenset[int]


class RecordSource(Protocol):
    """A member of a consumer group that reads one topic."""

    @property
    def assignment(self) -> Assignment:
        """What is ours now; a new epoch means that every partition is gated until it is sought."""

    @property
    def is_raw(self) -> bool:
        """Whether batches are read one by one: what cannot be read is then the one that is due."""

    @property
    def is_revoking(self) -> bool:
        """Whether the group waits for us to finish work and call `confirm_revocation`."""

    def confirm_revocation(self) -> None:
        """Let the rebalance go on: what we had in hand is finished and committed."""

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        """Give what has arrived for partitions that are sought and not paused, or wait for it.

        Raises:
            TransportError: The fetch failed; seek every partition to its next offset before the
                next poll, since positions may have moved past records that nobody got.
            UnreadableError: A batch of one partition cannot be read; positions as above.
            OffsetGapError: A position is outside of what the topic still holds.
            TopicError: The number of its partitions has changed.
        """

    async def stored_bytes(self, partition: int, offset: int) -> bytes:
        """Give what the log holds from a batch on, whether anybody can read it or not.

        Raises:
            TransportError: The leader of the partition does not answer.
        """

    def wake(self) -> None:
        """Let a poll that waits return."""

    def seek(self, partition: int, offset: int) -> None:
        """Go on reading a partition at this offset; opens the gate of the partition."""

    def pause(self, partitions: Collection[int]) -> None:
        """Give no records of these partitions until `resume`."""

    def resume(self, partitions: Collection[int]) -> None:
        """Give records of these partitions again."""

    def known_ends(self) -> dict[int, int]:
        """Give the ends of our partitions as the last fetches told them, without asking."""

    def fetched_ms(self) -> dict[int, int]:
        """Give when those fetches were answered, by our wall clock, in ms since 1970."""

    async def commit(self, next_offsets: Mapping[int, int]) -> bool:
        """Store where the group goes on, by name.

        Returns:
            False when the partitions are no longer ours; what was committed before stays.

        Raises:
            TransportError: Not known to be stored. Harmless: a later commit covers it.
        """

    async def committed(self, partitions: Collection[int]) -> dict[int, int | None]:
        """Give the group's committed next offset of each partition; `None` where there is none."""

    async def offset_ranges(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """Give the first offset held and the end offset of each partition of the topic."""


class LogReader(Protocol):
    """Reads partitions outside of any group."""

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic; raises `TopicError` when it is missing."""

    async def offset_ranges(self, topic: str) -> dict[int, tuple[int, int]]:
        """Give the first offset held and the end offset of every partition of a topic."""

    def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        """Give the records of a partition from `start` up to, not including, `end`."""


class OutgoingRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to publish; the partition is chosen by key where none is named."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None
    timestamp_ms: int | None = None

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key or b"") + len(self.value or b"")


class SendState(StrEnum):
    """What is known of a record after its send: three values, never two."""

    OK = "ok"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


class SendOutcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one send.

    Attributes:
        state: `ok`: stored under acks=all. `not_sent`: surely not in the log. `unknown`: may be.
        partition: Where it is stored, when ok; likewise `offset`.
        error: What went wrong, when not ok.
        retryable: Whether sending again can help.
    """

    state: SendState
    partition: int = -1
    offset: int = -1
    error: str = ""
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class ParkedRecord:
    """A `Record` that the partition has passed and that has no fate yet, with all of it.

    Attributes:
        offset: Where it stands.
        timestamp: As of `Record`; likewise the next three.
        key: See `timestamp`.
        value: See `timestamp`.
        headers: See `timestamp`.
        parked_ns: Wall clock when it was parked, UTC nanoseconds.
        refusal: Why it is to be dead-lettered; `None` while it waits.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: Headers
    parked_ns: int
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class LedgerWrite:
    """What some consecutive records of one partition leave in the ledger: all of it, or nothing.

    One that does not move the offset may hold no more than `refused`, `released` and positions that
    are folded anew, with all of their lots.

    Attributes:
        expected: Next source offset that the ledger holds; `None` before the first write.
        next_offset: Next source offset that it holds afterwards.
        plain_trades: Lines of the trades of the common fields alone; see `ledger_codec`.
        trades: Lines of the other trades.
        corrections: Lines of what was changed of the past.
        dead_letters: Lines of what was dead-lettered.
        changed: Ids of trades that are changed: each of them is booked, or by this write.
        refused_new: Ids of trades that were refused as new ones: none of them may be booked.
        positions: Positions that have changed.
        lots: What became of the lots of those that are kept first in, first out, by key, changed or
            not; the others are kept by average cost. `None`: from now on, so that no lot is left.
        parked: Lines of the records that are parked.
        refused: Why parked records are to be dead-lettered, by offset; they stay parked for it.
        released: Offsets of parked records that have their fate; those that were refused are among
            the dead letters from then on.
    """

    expected: int | None
    next_offset: int
    plain_trades: Sequence[str] = ()
    trades: Sequence[str] = ()
    corrections: Sequence[str] = ()
    dead_letters: Sequence[str] = ()
    changed: Sequence[str] = ()
    refused_new: Sequence[str] = ()
    positions: Collection[Position] = ()
    lots: Mapping[str, LotChange | None] = field(default_factory=dict)
    parked: Sequence[str] = ()
    refused: Mapping[int, Refusal] = field(default_factory=dict)
    released: Sequence[int] = ()

    def method_of(self, key: str) -> CostMethod:
        """Give how the costs of one of its positions are kept."""
        return CostMethod.AVERAGE if self.lots.get(key) is None else CostMethod.FIFO


@dataclass(frozen=True, slots=True)
class StoredTrade:
    """A trade as the ledger has it.

    Attributes:
        versions: The events that were booked of it, by version, each with the hash of what was
            sent where that is not what is stored; their execution times are all that of the first.
    """

    versions: Sequence[tuple[TradeEvent, bytes | None]]


BeforeCommit = Callable[[Collection[int]], Awaitable[None]]
"""Called with the partitions of a write when nothing but its COMMIT is left that could fail."""


async def nothing_before(_: Collection[int]) -> None:
    """Do nothing before a COMMIT."""


class Ledger(Protocol):
    """Trades, positions and offsets of one group and topic, changed together."""

    async def claim(self, partition: int) -> int | None:
        """Become the only writer of a partition; whoever was it before can write no more.

        Returns:
            The next source offset, up to which everything is in the ledger; `None` where nothing
            of the partition ever was.

        Raises:
            TransportError: The database is away.
            LedgerError: The ledger is not fit; a person decides.
        """

    async def positions(self, partition: int) -> list[Position]:
        """Give the positions of a partition that is claimed; raises as `claim`."""

    async def lots(self, partition: int) -> dict[str, NumberedLots]:
        """Give the lots of every position of a claimed partition that is kept first in, first out.

        Returns:
            By key; empty ones of a position that is flat.

        Raises:
            TransportError: The database is away.
            LedgerError: As for `claim`.
        """

    async def parked(self, partition: int) -> list[ParkedRecord]:
        """Give the parked records of a partition that is claimed, by offset; raises as `claim`."""

    async def write(
        self, writes: Mapping[int, LedgerWrite], before_commit: BeforeCommit = nothing_before
    ) -> dict[int, str]:
        """Store what is written, by partition, in one transaction.

        Where a trade of one partition is booked from another one, or is about to be by the same
        call, it is a transaction for each partition. One with a trade that is booked, or was
        refused as new although it is booked, or is changed and not there, is refused whole.

        Args:
            writes: By partition.
            before_commit: Called in each transaction, when it is sure that its partitions are ours
                and that none of their trades is booked elsewhere; not for what is stored already.
                What it raises undoes the transaction, and is raised.

        Returns:
            The partitions of which nothing was stored because they are not ours any more, or the
            ledger is not where we believed it to be, and why: to be restored from it.

        Delivery:
            Repeating a write whose outcome is unknown is safe: what is stored is found to be so.

        Raises:
            TransportError: The database is away, or did not answer; the outcome is unknown.
            LedgerError: It refuses, and will again; a person decides.
        """

    async def find(self, trade_ids: Sequence[str]) -> dict[str, StoredTrade]:
        """Give the trades that the ledger holds, of these ids.

        Raises:
            TransportError: The database is away.
            LedgerError: As for `write`.
        """

    async def history(self, partition: int, key: str) -> list[str] | None:
        """Give the events that were booked of one position, by offset.

        Returns:
            Lines of `ledger_codec.HISTORY_COLUMNS`; `None` where some are pruned.

        Raises:
            TransportError: The database is away.
            LedgerError: As for `write`.
        """


class Publisher(Protocol):
    """Writes records with acks=all, in order for each partition."""

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        """Send records and wait until the fate of each is known or the deadline has passed.

        Delivery:
            Within one call and one partition the order is kept. Nothing is sent twice by us; the
            client repeats requests with the same sequence numbers, which the broker recognises.

        Cancellation:
            Records handed over stay with the client: their outcome is unknown.
        """

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic; raises `TopicError` when it is missing."""
