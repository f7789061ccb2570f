"""Batches that nobody can read: their bytes are kept in a file, and a dead letter points to it."""

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.config import Settings, data_home
from app.dead_letters import pointer
from app.errors import TransportError
from app.headers import (
    QUARANTINE_FILE,
    QUARANTINE_NEXT_OFFSET,
    QUARANTINE_SHA256,
    QUARANTINE_SIZE,
)
from app.models import Refusal
from app.ports import OutgoingRecord, Publisher, SendState

_HEADER: Final = struct.Struct(">qiibIhi")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta.

Source: Kafka protocol guide, "Record Batch".
"""
_BEFORE_LENGTH: Final = 12
_MAGIC: Final = 2


@dataclass(frozen=True, slots=True)
class UnreadableBatch:
    """The first batch at or after an offset, as bytes.

    Attributes:
        offset: First offset that cannot be processed.
        next_offset: Where the log goes on after it; `None` where its header makes no sense.
        data: The batch; everything that was fetched where its end is not known.
    """

    offset: int
    next_offset: int | None
    data: bytes

    @classmethod
    def first_of(cls, fetched: bytes, offset: int) -> "UnreadableBatch":
        """Cut the first batch out of what a fetch at `offset` has given."""
        if len(fetched) >= _HEADER.size:
            base, length, _, magic, _, _, delta = _HEADER.unpack_from(fetched)
            end = _BEFORE_LENGTH + length
            if magic == _MAGIC and base <= offset <= base + delta and _HEADER.size < end:
                return cls(offset, base + delta + 1, fetched[:end])
        return cls(offset, None, fetched)


class Quarantine:
    """Puts unreadable batches aside.

    Args:
        settings: Where to, and whose they are.
        publisher: Says in the dead letters where they are.
        now_ns: Wall clock.
    """

    def __init__(
        self, settings: Settings, publisher: Publisher, *, now_ns: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._now_ns = now_ns

    async def put(self, batch: UnreadableBatch, partition: int, why: str) -> Path:
        """Store a batch, and wait until a dead letter that says where is acknowledged.

        The same batch again replaces its file by an equal one; its dead letter stands twice then.

        Args:
            batch: Of the topic of the trades.
            partition: Its partition; the dead letter gets the same number.
            why: What is wrong with it.

        Raises:
            OSError: It cannot be stored.
            TransportError: The dead letter was not acknowledged.
        """
        path = self._keep(batch, partition)
        (outcome,) = await self._publisher.publish([self._pointer(batch, partition, path, why)])
        if outcome.state is not SendState.OK:
            raise TransportError(f"{self._settings.dlq_topic} does not say where: {outcome.error}")
        return path

    def _keep(self, batch: UnreadableBatch, partition: int) -> Path:
        directory = (self._settings.quarantine_dir or data_home() / "quarantine").absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{self._settings.kafka_topic}-{partition}-{batch.offset}.batch"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(batch.data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path

    def _pointer(
        self, batch: UnreadableBatch, partition: int, path: Path, why: str
    ) -> OutgoingRecord:
        where = {
            QUARANTINE_FILE: f"{os.uname().nodename}:{path}",
            QUARANTINE_SIZE: str(len(batch.data)),
            QUARANTINE_SHA256: hashlib.sha256(batch.data).hexdigest(),
        }
        if batch.next_offset is not None:
            where[QUARANTINE_NEXT_OFFSET] = str(batch.next_offset)
        return pointer(
            batch.offset,
            Refusal(0, "batch-unreadable", why, "decode", "UnreadableError"),
            where,
            topic=self._settings.dlq_topic,
            source_topic=self._settings.kafka_topic,
            source_partition=partition,
            group=self._settings.kafka_group_id,
            failed_at_ns=self._now_ns(),
        )
