"""What the logs hold, read with a client that the product does not use, or from the brokers' disks.

Nothing here shares code with the product.
"""

import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiokafka.record.memory_records import MemoryRecords
from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.faults.journal import digest

_TIMEOUT_S: Final = 5.0
_READ_TIMEOUT_S: Final = 60.0
"""Longest wait for a partition to go on: leaders move, and machines are busy."""
_AT_ONCE: Final = 1_000
_PATIENCE_S: Final = 0.2  # a call waits so long where it cannot have all it asks for
QUIET: Final = {"log_level": 0, "log.connection.close": False}
"""The client reports on standard error what these tests do to it on purpose."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record as it stands in a log."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes | None]
    timestamp_ms: int = 0


def outside_consumer(bootstrap: str, group: str | None = None) -> Consumer:
    """Make a consumer that joins no group; its commits are those of `group`."""
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group or f"reader-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            **QUIET,
        }
    )


def end_offsets(consumer: Consumer, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """Give the offset after the last record of each partition."""
    return {
        partition: int(
            consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_TIMEOUT_S)[1]
        )
        for partition in partitions
    }


def read_topic(
    bootstrap: str, topic: str, partitions: int, *, holes: Mapping[int, range] | None = None
) -> list[LogRecord]:
    """Read partitions whole, in partition and offset order.

    Args:
        bootstrap: Brokers to ask first.
        topic: The topic.
        partitions: The first ones of it.
        holes: Offsets that are not to be read, by partition.
    """
    consumer = outside_consumer(bootstrap)
    found: list[LogRecord] = []
    try:
        for partition in range(partitions):
            _, end = _watermarks(consumer, TopicPartition(topic, partition))
            hole = (holes or {}).get(partition, range(0))
            found += _read_range(consumer, TopicPartition(topic, partition, 0), hole.start)
            found += _read_range(consumer, TopicPartition(topic, partition, hole.stop), end)
    finally:
        consumer.close()
    return found


def _read_range(consumer: Consumer, start: TopicPartition, end: int) -> Iterator[LogRecord]:
    first, _ = _watermarks(consumer, start)
    position = max(start.offset, first)
    consumer.assign([start])
    deadline_s = time.monotonic() + _READ_TIMEOUT_S
    while position < end:
        messages = consumer.consume(min(_AT_ONCE, end - position), timeout=_PATIENCE_S)
        for message in messages:
            assert message.error() is None, f"{start.topic}: {message.error()}"
            if (message.offset() or 0) < end:
                yield _record(message)
        # Compaction leaves gaps, at the end too; the position passes them.
        (reached,) = consumer.position([start])
        if reached.offset > position:
            position, deadline_s = reached.offset, time.monotonic() + _READ_TIMEOUT_S
        assert time.monotonic() < deadline_s, f"{start} stalls at {position} of {end}"


def _watermarks(consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
    """Give the first offset of a partition and its end, as soon as somebody leads it."""
    deadline_s = time.monotonic() + _READ_TIMEOUT_S
    while True:
        try:
            first, end = consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)
        except KafkaException:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_PATIENCE_S)
        else:
            return int(first), int(end)


def _record(message: Any) -> LogRecord:
    return LogRecord(
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        dict(message.headers() or []),
        message.timestamp()[1],
    )


def committed_offsets(
    consumer: Consumer, topic: str, partitions: Collection[int]
) -> dict[int, int]:
    """Give the committed next offset of the consumer's group, where there is one."""
    asked = [TopicPartition(topic, partition) for partition in partitions]
    stored = consumer.committed(asked, timeout=_TIMEOUT_S)
    return {place.partition: place.offset for place in stored if place.offset >= 0}


def search_disks(
    folders: Mapping[int, Path], topic: str, digests: Collection[str]
) -> dict[str, list[str]]:
    """Look for values in the brokers' own files: whether it was a broker that lost a record.

    Args:
        folders: Kafka's data folder of each node.
        topic: The topic.
        digests: Digests of the values.

    Returns:
        Where each one that is there stands, as `node/partition/offset`.
    """
    found: dict[str, list[str]] = {}
    for node, folder in folders.items():
        for path in sorted(folder.glob(f"{topic}-*/*.log")):
            partition = path.parent.name.rpartition("-")[2]
            records = MemoryRecords(path.read_bytes())
            while records.has_next():
                for record in records.next_batch():
                    if (sha := digest(record.value)) in digests:
                        found.setdefault(sha, []).append(f"{node}/{partition}/{record.offset}")
    return found
