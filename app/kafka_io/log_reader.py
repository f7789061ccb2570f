"""Reads partitions outside of any group: restore, views, checks."""

from collections.abc import AsyncIterator
from typing import Final

from aiokafka import TopicPartition

from app.config import Settings
from app.errors import TopicError, TransportError
from app.kafka_io.diagnosis import no_broker
from app.kafka_io.options import CLIENT_ERRORS, reader_options, transport_error
from app.kafka_io.raw_batches import RawBatchConsumer
from app.ports import Record

_STALL_TIMEOUT_S: Final = 30.0
_POLL_MS: Final = 500


class KafkaLogReader:
    """Reads with a client of its own for each call, so that readers never disturb each other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic."""
        return len(await self.offset_ranges(topic))

    async def offset_ranges(self, topic: str) -> dict[int, tuple[int, int]]:
        """Give the first offset held and the end offset of every partition of a topic.

        Raises:
            TopicError: There is no such topic.
            TransportError: No broker answered.
        """
        consumer = await self._connected()
        try:
            metadata = await consumer._client.fetch_all_metadata()  # noqa: SLF001 - topics() lists no partitions
            known = metadata.partitions_for_topic(topic)
            if not known:
                raise TopicError(f"topic {topic} is not there")
            partitions = [TopicPartition(topic, partition) for partition in sorted(known)]
            first = await consumer.beginning_offsets(partitions)
            end = await consumer.end_offsets(partitions)
        except CLIENT_ERRORS as exc:
            raise transport_error("cannot read offsets", self._settings, exc) from exc
        finally:
            await consumer.stop()
        return {tp.partition: (first[tp], end[tp]) for tp in partitions}

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        """Give the records of a partition from `start` up to, not including, `end`.

        Raises:
            TopicError: The name of a header is no text.
            TransportError: A broker does not answer, what it gives has a wrong checksum, or nothing
                has come for 30 s.
        """
        if start >= end:
            return
        tp = TopicPartition(topic, partition)
        position, idle_ms = start, 0
        consumer = await self._connected()
        try:
            consumer.assign([tp])
            consumer.seek(tp, start)
            while position < end:
                before = position
                for batch in await consumer.getbatches(timeout_ms=_POLL_MS):
                    for record in batch.records():
                        if record.offset >= end:
                            return
                        yield record
                    position = batch.next_offset
                idle_ms = 0 if position > before else idle_ms + _POLL_MS
                if idle_ms >= _STALL_TIMEOUT_S * 1000:
                    raise TransportError(f"{topic} partition {partition} stalls at {position}")
        except CLIENT_ERRORS as exc:
            raise transport_error(f"cannot read {topic}", self._settings, exc) from exc
        except UnicodeDecodeError as exc:
            raise TopicError(
                f"{topic} partition {partition} cannot be read from offset {position} on: the name"
                " of a header is no text"
            ) from exc
        finally:
            await consumer.stop()

    async def _connected(self) -> RawBatchConsumer:
        consumer = RawBatchConsumer(
            raw=self._settings.kafka_raw_batches, **reader_options(self._settings)
        )
        try:
            await consumer.start()
        except CLIENT_ERRORS as exc:
            await consumer.stop()
            raise await no_broker(self._settings, exc) from exc
        return consumer
