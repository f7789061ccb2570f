"""What is stored, read from outside: positions, dead letters, lag."""

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from app import headers as h
from app.config import Settings
from app.errors import DecodeError
from app.kafka_io.groups import committed_offsets
from app.ports import LogReader, Record
from app.position_codec import PositionRecord, decode_position_record


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group is in one partition; `committed` is `None` before its first start."""

    partition: int
    committed: int | None
    first: int
    end: int

    @property
    def lag(self) -> int:
        """Records whose fate is open."""
        return self.end - (self.first if self.committed is None else self.committed)


async def read_lag(settings: Settings, reader: LogReader) -> list[PartitionLag]:
    """Give the lag of the group in every partition of the topic."""
    ranges = await reader.offset_ranges(settings.kafka_topic)
    committed = await committed_offsets(settings)
    return [PartitionLag(p, committed.get(p), first, end) for p, (first, end) in ranges.items()]


class PositionsView:
    """The newest position of every key, kept up to date by `refresh`.

    A record whose state covers less of the source than the one held is a late write and ignored.
    """

    def __init__(self, reader: LogReader, topic: str) -> None:
        self._reader = reader
        self._topic = topic
        self._next: dict[int, int] = {}
        self._records: dict[tuple[int, bytes], PositionRecord] = {}

    async def refresh(self) -> None:
        """Read what has been written since the last time."""
        for partition, (first, end) in (await self._reader.offset_ranges(self._topic)).items():
            start = max(first, self._next.get(partition, first))
            async for record in self._reader.read(self._topic, partition, start, end):
                self._take(partition, record)
            self._next[partition] = end

    def _take(self, partition: int, record: Record) -> None:
        if record.value is None:
            return
        read = decode_position_record(record.value)
        if read.type != "position":
            return
        key = (partition, record.key or b"")
        held = self._records.get(key)
        if held is None or _age(read) >= _age(held):
            self._records[key] = read

    @property
    def positions(self) -> list[PositionRecord]:
        """Positions by book and symbol."""
        return sorted(self._records.values(), key=lambda r: (r.book or "", r.symbol or ""))


def _age(record: PositionRecord) -> tuple[int, int]:
    return record.generation, record.source.offset


async def read_dead_letters(
    reader: LogReader, topic: str, *, partition: int | None = None, offset: int | None = None
) -> AsyncIterator[tuple[int, Record]]:
    """Give dead letters with their partition; all of them, or one partition's, or a single one."""
    for number, (first, end) in (await reader.offset_ranges(topic)).items():
        if partition is not None and number != partition:
            continue
        start, stop = (first, end) if offset is None else (max(first, offset), min(end, offset + 1))
        async for record in reader.read(topic, number, start, stop):
            yield number, record


def dead_letter_json(partition: int, record: Record) -> dict[str, Any]:
    """Show where a dead letter came from and why it is one; no payload."""
    named = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    return {
        "partition": partition,
        "offset": record.offset,
        "reason": named.get(h.DLQ_REASON),
        "message": named.get(h.DLQ_MESSAGE),
        "kind": named.get(h.DLQ_ERROR_KIND),
        "source_topic": named.get(h.DLQ_TOPIC),
        "source_partition": _number(named.get(h.DLQ_PARTITION)),
        "source_offset": _number(named.get(h.DLQ_OFFSET)),
        "group": named.get(h.DLQ_GROUP),
        "failed_at": named.get(h.DLQ_FAILED_AT),
        "key": None if record.key is None else record.key.decode("utf-8", "backslashreplace"),
        "value_bytes": None if h.DLQ_VALUE_WAS_NULL in named else len(record.value or b""),
    }


@dataclass(frozen=True, slots=True)
class QuarantinedBatch:
    """What a dead letter says of a batch that cannot be read.

    Attributes:
        partition: Partition of the source topic.
        offset: First offset that could not be processed.
        next_offset: Where the log goes on after the batch, if that is known.
        file: Machine and path of its bytes.
        size: How many there are.
        sha256: Their hash.
        message: What is wrong.
        failed_at: When it was put aside, RFC 3339.
    """

    partition: int
    offset: int
    next_offset: int | None
    file: str
    size: int | None
    sha256: str
    message: str
    failed_at: str

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return asdict(self)


async def read_quarantined(reader: LogReader, settings: Settings) -> list[QuarantinedBatch]:
    """Give the batches of the group's topic that were put aside, each once, the latest word."""
    found: dict[tuple[int, int], QuarantinedBatch] = {}
    async for partition, record in read_dead_letters(reader, settings.dlq_topic):
        named = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
        offset = _number(named.get(h.DLQ_OFFSET))
        if (
            h.QUARANTINE_FILE in named
            and offset is not None
            and named.get(h.DLQ_TOPIC) == settings.kafka_topic
            and named.get(h.DLQ_GROUP) == settings.kafka_group_id
        ):
            found[partition, offset] = QuarantinedBatch(
                partition,
                offset,
                _number(named.get(h.QUARANTINE_NEXT_OFFSET)),
                named[h.QUARANTINE_FILE],
                _number(named.get(h.QUARANTINE_SIZE)),
                named.get(h.QUARANTINE_SHA256, ""),
                named.get(h.DLQ_MESSAGE, ""),
                named.get(h.DLQ_FAILED_AT, ""),
            )
    return [batch for _, batch in sorted(found.items())]


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


async def position_owners(reader: LogReader, topic: str) -> set[str]:
    """Give the groups whose records stand in a positions topic; unreadable ones count as `?`."""
    owners = set()
    for partition, (first, end) in (await reader.offset_ranges(topic)).items():
        async for record in reader.read(topic, partition, first, end):
            try:
                owners.add(decode_position_record(record.value or b"").group)
            except DecodeError:
                owners.add("?")
    return owners
