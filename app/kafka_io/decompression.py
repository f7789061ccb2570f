"""The client's codecs, bounded: what is small in a log may not become large in memory.

A broker bounds a batch as it is stored (`max.message.bytes`, 1 MiB by default), and the client
decompresses whatever that holds: 9 KB of zstd become 300 MB. Here a batch that takes more than its
bound is as unreadable as a corrupt one: its partition stops with an alarm, the others go on.
"""

import gzip
import io
import mmap
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from typing import Any, Final

import cramjam
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import decode_varint

MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
"""Trades as JSON become 5 to 10 times smaller: what 1 MiB holds of them is far below."""
MAX_BATCH_ITEMS: Final = 500_000
"""Records and headers of a batch: each is an object of ours, though two bytes may be all of it."""

_FEW_BYTES: Final = 4 * 1024 * 1024  # not looked into: at worst 2 million headers, 160 MB
_CHUNK_BYTES: Final = 1024 * 1024
_XERIAL_HEAD: Final = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"
_ERRORS: Final = (
    *(cramjam.DecompressionError, zlib.error, EOFError, OSError),  # what codecs raise
    *(struct.error, IndexError, ValueError),
)

_of_thread = threading.local()


def bound_codecs() -> None:
    """Put bounded decoders in the place of those that the client's batches call.

    They look them up by name in their modules, compiled or not, and offer no other way in. It is
    for every consumer of the process, whichever way it takes its records.
    """
    for batch, check in (
        (DefaultRecordBatch, _check_items),
        (LegacyRecordBatch, _nothing_to_check),
    ):
        module = sys.modules[batch.__module__]
        for name, decoder in _DECODERS.items():
            if hasattr(module, name):
                setattr(module, name, _bounded(decoder, check))


def decompressed_bytes() -> int:
    """Give how much was decompressed on this thread so far, in bytes."""
    return getattr(_of_thread, "decompressed", 0)


def _bounded(
    decoder: Callable[[Any], bytes], check: Callable[[bytes], object]
) -> Callable[[Any], bytes]:
    def decode(payload: Any) -> bytes:
        try:
            records = decoder(payload)
            if len(records) > _FEW_BYTES:
                check(records)
        except _ERRORS as exc:
            problem = str(exc)
        else:
            _of_thread.decompressed = decompressed_bytes() + len(records)
            return records
        # Raised anew: what was raised, and its frames, hold all that was decompressed.
        records = b""
        _give_back()
        raise CorruptRecordException(
            f"cannot be decompressed to {MAX_BATCH_BYTES >> 20} MiB: {problem}"
        )

    return decode


def _room() -> mmap.mmap:
    """Give memory of the largest size for this thread; what of it was never used takes none."""
    room: mmap.mmap | None = getattr(_of_thread, "room", None)
    if room is None:
        room = _of_thread.room = mmap.mmap(-1, MAX_BATCH_BYTES, access=mmap.ACCESS_COPY)
    return room


def _give_back() -> None:
    """Let the system have what a bomb has filled."""
    if sys.platform != "win32":
        _room().madvise(mmap.MADV_DONTNEED)


def _zstd(payload: bytes) -> bytes:
    room = _room()
    return room[: cramjam.zstd.decompress_into(payload, room)]


def _lz4(payload: bytes) -> bytes:
    room = _room()
    return room[: cramjam.lz4.decompress_into(payload, room)]


def _snappy(payload: bytes) -> bytes:
    room = _room()
    if not payload.startswith(_XERIAL_HEAD) or len(payload) == len(_XERIAL_HEAD):
        return room[: cramjam.snappy.decompress_raw_into(payload, room)]
    size, at = 0, len(_XERIAL_HEAD)
    with memoryview(room) as left:
        while at < len(payload):
            (length,) = struct.unpack_from(">i", payload, at)
            block = payload[at + 4 : at + 4 + length]
            size += cramjam.snappy.decompress_raw_into(block, left[size:])
            at += 4 + length
    return room[:size]


def _gzip(payload: bytes) -> bytes:
    parts, size = [], 0
    with gzip.GzipFile(fileobj=io.BytesIO(payload)) as stream:
        while part := stream.read(_CHUNK_BYTES):
            size += len(part)
            if size > MAX_BATCH_BYTES:
                raise ValueError("more than that")
            parts.append(part)
    return b"".join(parts)


_DECODERS: Final = {
    "gzip_decode": _gzip,
    "snappy_decode": _snappy,
    "lz4_decode": _lz4,
    "zstd_decode": _zstd,
}


def _check_items(records: bytes) -> None:
    """Count records and headers before an object is made of any.

    Source:
        Kafka protocol guide, "Record": a length, attributes, two deltas, key, value, headers.
    """
    items = at = 0
    while at < len(records):
        length, start = decode_varint(records, at)
        at = start + max(length, 0)
        place = start
        for _ in range(3):
            _, place = decode_varint(records, place)
        for _ in range(2):
            size, place = decode_varint(records, place)
            place += max(size, 0)
        headers, _ = decode_varint(records, place)
        items += 1 + max(headers, 0)
        if items > MAX_BATCH_ITEMS:
            raise ValueError(f"more than {MAX_BATCH_ITEMS} records and headers")


def _nothing_to_check(_: bytes) -> None:
    """Records of the old formats have no headers, and 26 bytes at the least."""
