"""Positions in the compacted topic: restored on assignment, written before offsets are committed.

One partition of it belongs to the owner of the source partition with the same number, so what the
owner gets acknowledged has contiguous offsets. A gap is somebody else's write: a former owner that
woke up late. It is read, and what it put back to an older state is written again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from app.config import Settings
from app.errors import DecodeError, OwnershipError, TopicError
from app.models import Position
from app.ports import LogReader, OutgoingRecord, Record, SendOutcome
from app.position_codec import (
    HEARTBEAT_KEY,
    PositionRecord,
    decode_position_record,
    encode_heartbeat,
    encode_position,
    position_of,
)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Restored:
    """State of one partition as its changelog has it.

    Attributes:
        positions: The newest state of each key.
        stale_keys: Keys whose last record is not the newest: to be written again, or compaction
            would keep the older state.
        next_offset: Offset that our first write will get if nobody else writes.
        is_known: Whether this group has ever written here, if only a heartbeat.
        source_partitions: Partitions of the source topic when an owner last said so; 0: never.
        newest: Generation of the newest record, and the highest source offset of that generation.
    """

    positions: dict[str, Position] = field(default_factory=dict)
    stale_keys: set[str] = field(default_factory=set)
    next_offset: int = 0
    is_known: bool = False
    source_partitions: int = 0
    newest: tuple[int, int] = (0, -1)


class Changelog:
    """Restores the positions of one group, builds their records, and judges foreign ones.

    Args:
        reader: Reads the topic.
        topic: The positions topic.
        source_topic: Topic of the trades.
        group: Consumer group that owns the positions.

    Attributes:
        records_read: By all restores so far; they may take long.
    """

    def __init__(
        self,
        *,
        reader: LogReader,
        topic: str,
        source_topic: str,
        group: str,
    ) -> None:
        self._reader = reader
        self._topic = topic
        self._source_topic = source_topic
        self._group = group
        self._source_partitions = 0
        self.records_read = 0

    @classmethod
    def of(cls, reader: LogReader, settings: Settings) -> "Changelog":
        """Make the changelog of the group and the topics that the settings name."""
        return cls(
            reader=reader,
            topic=settings.positions_topic,
            source_topic=settings.kafka_topic,
            group=settings.kafka_group_id,
        )

    async def end_offset(self, partition: int) -> int:
        """Give the offset after the last record of a partition."""
        return (await self._range(partition))[1]

    async def source_partitions(self) -> int:
        """Count the partitions of the source topic, and write that into heartbeats from now on."""
        self._source_partitions = await self._reader.partition_count(self._source_topic)
        return self._source_partitions

    async def _range(self, partition: int) -> tuple[int, int]:
        ranges = await self._reader.offset_ranges(self._topic)
        if partition not in ranges:
            raise TopicError(f"{self._topic} has no partition {partition}: the topics must agree")
        return ranges[partition]

    async def restore(self, partition: int) -> Restored:
        """Read the state of a partition, up to the end as it is now.

        Raises:
            TopicError: The records are another group's, or of another source topic, or unreadable.
            TransportError: A broker is away.
        """
        start, end = await self._range(partition)
        restored = Restored(next_offset=end)
        newest: dict[str, PositionRecord] = {}
        async for record in self._reader.read(self._topic, partition, start, end):
            self._fold(restored, newest, record, partition)
            self.records_read += 1
        restored.positions = {key: position_of(read) for key, read in newest.items()}
        return restored

    def _fold(
        self,
        restored: Restored,
        newest: dict[str, PositionRecord],
        record: Record,
        partition: int,
    ) -> None:
        if record.value is None:
            # Nobody of us deletes: a key that forgot its offset would book its trades again.
            key = (record.key or b"").decode("utf-8", "replace")
            if key in newest:
                restored.stale_keys.add(key)
            return
        read = self._read(record, partition)
        restored.is_known = True
        age = (read.generation, read.source.offset)
        restored.newest = max(restored.newest, age)
        if read.type == "heartbeat":
            restored.source_partitions = read.source_partitions or restored.source_partitions
            return
        key = read.key
        held = newest.get(key)
        if held is None or age >= (held.generation, held.source.offset):
            newest[key] = read
            restored.stale_keys.discard(key)
        else:
            restored.stale_keys.add(key)

    def _read(self, record: Record, partition: int) -> PositionRecord:
        place = f"{self._topic} partition {partition} offset {record.offset}"
        try:
            read = decode_position_record(record.value or b"")
        except DecodeError as exc:
            raise TopicError(f"{place}: {exc}; set POSITIONS_TOPIC to a topic of our own") from exc
        if read.group != self._group or read.source.topic != self._source_topic:
            raise TopicError(
                f"{place} belongs to group {read.group} and topic {read.source.topic}, not to"
                f" {self._group} and {self._source_topic}: set POSITIONS_TOPIC to another topic"
            )
        return read

    def records(self, partition: int, positions: Iterable[Position]) -> list[OutgoingRecord]:
        """Give the records that store these positions, one a key."""
        return [
            OutgoingRecord(
                topic=self._topic,
                key=position.key.encode(),
                value=encode_position(
                    position, group=self._group, topic=self._source_topic, partition=partition
                ),
                partition=partition,
            )
            for position in positions
        ]

    def heartbeat(self, partition: int, source_offset: int) -> OutgoingRecord:
        """Give the record that shows an idle owner, so that a foreign write leaves a gap."""
        value = encode_heartbeat(
            group=self._group,
            topic=self._source_topic,
            partition=partition,
            offset=source_offset,
            partitions=self._source_partitions,
        )
        return OutgoingRecord(
            topic=self._topic, key=HEARTBEAT_KEY, value=value, partition=partition
        )

    async def foreign_writes(
        self,
        partition: int,
        expected: int,
        outcomes: list[SendOutcome],
        ours: Mapping[str, Position],
    ) -> tuple[int, set[str]]:
        """Compare acknowledged offsets with the expected ones, and judge what is between.

        Args:
            partition: Partition written to.
            expected: Offset that the first of the writes should have got.
            outcomes: Outcomes of our writes to it, in order.
            ours: Our state.

        Returns:
            The offset expected of the next write, and the keys that have to be written again.

        Raises:
            OwnershipError: Somebody has applied more of the source than we have: we are the late
                one, and must give the partition up.
        """
        stale: set[str] = set()
        if outcomes and outcomes[0].offset == expected:
            last = outcomes[-1]
            if last.offset - expected + 1 == len(outcomes):
                return last.offset + 1, stale  # nobody has written in between
        for outcome in outcomes:
            if outcome.offset > expected:
                log.warning(
                    "foreign_position_writes",
                    partition=partition,
                    first_offset=expected,
                    next_offset=outcome.offset,
                )
                async for record in self._reader.read(
                    self._topic, partition, expected, outcome.offset
                ):
                    stale |= self._judge(record, partition, ours)
            expected = max(expected, outcome.offset + 1)
        return expected, stale

    def _judge(self, record: Record, partition: int, ours: Mapping[str, Position]) -> set[str]:
        if record.value is None:
            return {(record.key or b"").decode("utf-8", "replace")} & ours.keys()
        read = self._read(record, partition)
        if read.type == "heartbeat":
            return set()
        theirs = position_of(read)
        held = ours.get(theirs.key)
        if held is None or _age(theirs) > _age(held):
            raise OwnershipError(
                f"{self._topic} partition {partition}: another owner has applied offset"
                f" {theirs.source_offset} of {theirs.key}"
            )
        return {theirs.key}


def _age(position: Position) -> tuple[int, int]:
    return position.generation, position.source_offset
