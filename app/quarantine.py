"""Batches that nobody can read: their bytes are kept in a file, and a dead letter points to it."""

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.dead_letters import pointer
from app.headers import (
    QUARANTINE_FILE,
    QUARANTINE_NEXT_OFFSET,
    QUARANTINE_SHA256,
    QUARANTINE_SIZE,
)
from app.models import Refusal
from app.ports import OutgoingRecord

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

    def keep(self, directory: Path, *, topic: str, partition: int) -> Path:
        """Store the bytes; the same batch again replaces its file by an equal one.

        Raises:
            OSError: It cannot be stored.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory.absolute() / f"{topic}-{partition}-{self.offset}.batch"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(self.data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path

    def pointer(
        self,
        path: Path,
        message: str,
        *,
        topic: str,
        source_topic: str,
        partition: int,
        group: str,
        failed_at_ns: int,
    ) -> OutgoingRecord:
        """Build the dead letter that says where the bytes are.

        Args:
            path: The file on this machine.
            message: What is wrong.
            topic: Topic of the dead letters.
            source_topic: Topic where the batch stands.
            partition: Its partition; the dead letter gets the same number.
            group: Consumer group that cannot read it.
            failed_at_ns: Now, UTC nanoseconds.
        """
        more = {
            QUARANTINE_FILE: f"{os.uname().nodename}:{path}",
            QUARANTINE_SIZE: str(len(self.data)),
            QUARANTINE_SHA256: hashlib.sha256(self.data).hexdigest(),
        }
        if self.next_offset is not None:
            more[QUARANTINE_NEXT_OFFSET] = str(self.next_offset)
        return pointer(
            self.offset,
            Refusal(0, "batch-unreadable", message, "decode", "UnreadableError"),
            more,
            topic=topic,
            source_topic=source_topic,
            source_partition=partition,
            group=group,
            failed_at_ns=failed_at_ns,
        )
