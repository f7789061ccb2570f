"""Positions made anew from the trades, when they were damaged or belong to an older log."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from msgspec.structs import replace

from app.config import KeyMismatch, Settings
from app.errors import TopicError, TradeStreamError
from app.models import Position
from app.ports import LogReader, OutgoingRecord, Publisher, Record, RecordBatch, SendState
from app.position_codec import decode_position_record
from app.reference import Reference
from app.services import TradeProcessor
from app.stores.changelog import Changelog

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class RebuiltPartition:
    """One partition after its rebuild: `next_offset` is where the group goes on."""

    partition: int
    next_offset: int
    records: int
    positions: int


async def rebuild_partition(
    settings: Settings,
    *,
    partition: int,
    committed: int | None,
    reader: LogReader,
    publisher: Publisher,
    partition_of: Callable[[bytes, int], int],
    fence: Callable[[int], Awaitable[None]],
    reference: Reference | None = None,
    force: bool = False,
) -> RebuiltPartition:
    """Replay a partition from its beginning and write every position with a higher generation.

    The group must not run. Dead letters and re-keyed trades are not sent again: they were, before
    the offset that the group has committed, and later ones are left to the consumer.

    Args:
        settings: Topics, group and currency.
        partition: Partition of the source and of the positions topic.
        committed: Where the group goes on; the replay ends there, or at the end of the topic.
        reader: Reads both topics.
        publisher: Writes the positions.
        partition_of: Partition of a key, given the number of partitions.
        fence: Called with the offset that the group will go on at, right before positions are
            written; raises where the group has members by now.
        reference: As the group has it; it matters where doubtful trades are refused.
        force: Go on although the oldest trades are deleted already, and so forget them.

    Raises:
        TopicError: Trades were deleted, so that the sums would lack them.
        TradeStreamError: A position was not stored; the rebuild can be repeated.
    """
    first, end = (await reader.offset_ranges(settings.kafka_topic))[partition]
    if first > 0 and not force:
        raise TopicError(
            f"{settings.kafka_topic} partition {partition} begins at offset {first}: what was"
            " before is deleted, and positions made anew would lack it. `--force` does it anyway"
        )
    stop = end if committed is None or committed > end else committed
    accepts_all = settings.key_mismatch is KeyMismatch.ACCEPT
    count = await publisher.partition_count(settings.kafka_topic)
    processor = TradeProcessor(
        default_currency=settings.defaults_currency,
        belongs=None if accepts_all else lambda key: partition_of(key.encode(), count) == partition,
        dedupe_window=settings.dedupe_window,
        reference=reference,
        is_strict=settings.validation_strict,
    )
    records = 0
    async for chunk in _chunks(reader, settings.kafka_topic, partition, first, stop):
        processor.process_batch(RecordBatch.of(partition, 0, chunk, chunk[-1].offset + 1))
        records += len(chunk)
    old, generation = await _stored(settings, partition, reader)
    positions = {
        key: replace(p, generation=generation + 1) for key, p in processor.positions.items()
    }
    for key in old.keys() - positions.keys():  # kept as zero: a deleted key would forget its offset
        positions[key] = old[key]
    changelog = Changelog.of(reader, settings)
    await changelog.source_partitions()
    written = changelog.records(partition, positions.values())
    await fence(stop)
    await _write([*written, changelog.heartbeat(partition, stop - 1)], publisher)
    return RebuiltPartition(partition, stop, records, len(positions))


async def _chunks(
    reader: LogReader, topic: str, partition: int, start: int, stop: int
) -> AsyncIterator[list[Record]]:
    chunk: list[Record] = []
    async for record in reader.read(topic, partition, start, stop):
        chunk.append(record)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _stored(
    settings: Settings, partition: int, reader: LogReader
) -> tuple[dict[str, Position], int]:
    """Give an emptied position for every key that is stored, and the highest generation."""
    first, end = (await reader.offset_ranges(settings.positions_topic))[partition]
    generation = 0
    empty: dict[str, Position] = {}
    async for record in reader.read(settings.positions_topic, partition, first, end):
        if record.value is None:
            continue
        read = decode_position_record(record.value)
        if read.group != settings.kafka_group_id or read.source.topic != settings.kafka_topic:
            raise TopicError(
                f"{settings.positions_topic} holds positions of group {read.group} and topic"
                f" {read.source.topic}: set POSITIONS_TOPIC to another topic"
            )
        generation = max(generation, read.generation)
        if read.type == "position" and read.symbol is not None:
            position = Position(read.book, read.symbol, read.currency)
            empty[position.key] = position
    return {key: replace(p, generation=generation + 1) for key, p in empty.items()}, generation


async def _write(records: list[OutgoingRecord], publisher: Publisher) -> None:
    for start in range(0, len(records), _CHUNK):
        for outcome in await publisher.publish(records[start : start + _CHUNK]):
            if outcome.state is not SendState.OK:
                raise TradeStreamError(
                    f"a position was not stored: {outcome.error}; run the rebuild again"
                )
