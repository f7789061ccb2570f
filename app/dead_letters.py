"""A dead letter: the original bytes, and beside them, in headers, what was wrong and where."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from app import headers as h
from app.models import Refusal
from app.ports import OutgoingRecord, Record
from app.timestamps import NS_PER_MS, format_timestamp

APP: Final = "trade-stream"
MAX_ORIGINAL_HEADERS: Final = 32
MAX_ORIGINAL_HEADER_BYTES: Final = 8 * 1024
HEADERS_CUT: Final = "x-dlq-headers-cut"
_MAX_TIME_BYTES: Final = 64
_DAY_MS: Final = 24 * 3_600_000
MAX_ORIGINAL_VALUE_BYTES: Final = 1_048_588
"""The broker's default bound of a batch: only what was compressed can be larger, such as a bomb."""
MAX_ORIGINAL_KEY_BYTES: Final = 64 * 1024
VALUE_CUT: Final = "x-dlq-value-cut"
VALUE_SHA256: Final = "x-dlq-value-sha256"
KEY_CUT: Final = "x-dlq-key-cut"
KEY_SHA256: Final = "x-dlq-key-sha256"


def _installed_version() -> str:
    try:
        return version(APP)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0+checkout"


APP_VERSION: Final = _installed_version()


def dead_letter(
    record: Record,
    refusal: Refusal,
    *,
    topic: str,
    source_topic: str,
    source_partition: int,
    group: str,
    failed_at_ns: int,
    parked_ns: int | None = None,
) -> OutgoingRecord:
    """Build the dead letter of a record.

    Key and value are the original's, byte for byte, and its headers come first; a null value
    becomes an empty one with a header that says so, since null would be a tombstone. What is larger
    than a record may be is cut, and headers say so. The partition number is the original's, and so
    is the timestamp, if it is of the last day: the topic may delete by it, and a dead letter is
    new, however old its original is or wrong the clock of that. A header has it as it was.

    Args:
        record: The original as it was read.
        refusal: Why it cannot be used.
        topic: Topic of the dead letters.
        source_topic: Topic where the record stood.
        source_partition: Its partition there; the dead letter gets the same number.
        group: Consumer group that refused it.
        failed_at_ns: Now, UTC nanoseconds.
        parked_ns: Since when it had waited, UTC nanoseconds; `None`: it had not.
    """
    added = _description(
        record.offset,
        refusal,
        source_topic=source_topic,
        source_partition=source_partition,
        group=group,
        failed_at_ns=failed_at_ns,
    )
    added[h.DLQ_ORIGINAL_TIMESTAMP] = str(record.timestamp)
    added[h.DLQ_FIRST_FAILED_AT] = _first_failed_at(record, added[h.DLQ_FAILED_AT])
    if parked_ns is not None:
        added[h.DLQ_PARKED_AT] = _at(parked_ns)
    if record.value is None:
        added[h.DLQ_VALUE_WAS_NULL] = "true"
    now_ms = failed_at_ns // NS_PER_MS
    value = record.value or b""
    if len(value) > MAX_ORIGINAL_VALUE_BYTES:
        added[VALUE_CUT] = str(len(value))
        added[VALUE_SHA256] = hashlib.sha256(value).hexdigest()
        value = value[:MAX_ORIGINAL_VALUE_BYTES]
    key = record.key
    if key is not None and len(key) > MAX_ORIGINAL_KEY_BYTES:
        added[KEY_CUT] = str(len(key))
        added[KEY_SHA256] = hashlib.sha256(key).hexdigest()
        key = key[:MAX_ORIGINAL_KEY_BYTES]
    kept, was_cut = _bounded(record)
    if was_cut:
        added[HEADERS_CUT] = "true"
    return OutgoingRecord(
        topic=topic,
        key=key,
        value=value,
        headers=[*kept, *((name, text.encode()) for name, text in added.items())],
        partition=source_partition,
        timestamp_ms=min(max(record.timestamp, now_ms - _DAY_MS), now_ms),
    )


def pointer(
    offset: int,
    refusal: Refusal,
    more: Mapping[str, str],
    *,
    topic: str,
    source_topic: str,
    source_partition: int,
    group: str,
    failed_at_ns: int,
) -> OutgoingRecord:
    """Build a dead letter without an original, which says by its headers where that is.

    Args:
        offset: First offset of what it stands for.
        refusal: Why that cannot be used.
        more: Headers that say where it is.
        topic: As for `dead_letter`, and all the others as well.
        source_topic: Topic where it stood.
        source_partition: Its partition there.
        group: Consumer group that refused it.
        failed_at_ns: Now, UTC nanoseconds.
    """
    added = _description(
        offset,
        refusal,
        source_topic=source_topic,
        source_partition=source_partition,
        group=group,
        failed_at_ns=failed_at_ns,
    )
    return OutgoingRecord(
        topic=topic,
        key=None,
        value=b"",
        headers=[(name, text.encode()) for name, text in {**added, **more}.items()],
        partition=source_partition,
    )


def _description(
    offset: int,
    refusal: Refusal,
    *,
    source_topic: str,
    source_partition: int,
    group: str,
    failed_at_ns: int,
) -> dict[str, str]:
    """Say in headers what was refused, where it stood, by whom and why."""
    failed_at = _at(failed_at_ns)
    fingerprint = f"{refusal.error_class}/{refusal.kind}/{refusal.reason}"
    return {
        h.DLQ_TOPIC: source_topic,
        h.DLQ_PARTITION: str(source_partition),
        h.DLQ_OFFSET: str(offset),
        h.DLQ_GROUP: group,
        h.DLQ_DELIVERY_COUNT: "1",
        h.DLQ_MESSAGE: refusal.message,
        h.DLQ_REASON: refusal.reason,
        h.DLQ_ERROR_CLASS: refusal.error_class,
        h.DLQ_ERROR_KIND: refusal.kind,
        h.DLQ_STAGE: refusal.kind,
        h.DLQ_FINGERPRINT: hashlib.sha256(fingerprint.encode()).hexdigest()[:16],
        h.DLQ_FAILED_AT: failed_at,
        h.DLQ_FIRST_FAILED_AT: failed_at,
        h.DLQ_APP: APP,
        h.DLQ_APP_VERSION: APP_VERSION,
        h.ORIGINAL_TOPIC: source_topic,
    }


def _at(time_ns: int) -> str:
    return format_timestamp(time_ns // NS_PER_MS * NS_PER_MS)


def _first_failed_at(record: Record, failed_at: str) -> str:
    for name, value in record.headers:
        if name == h.DLQ_FIRST_FAILED_AT and value is not None and len(value) <= _MAX_TIME_BYTES:
            return value.decode("utf-8", "replace")
    return failed_at


def _bounded(record: Record) -> tuple[list[tuple[str, bytes | None]], bool]:
    """Keep the original headers, up to a bound, without those of an earlier dead letter."""
    kept: list[tuple[str, bytes | None]] = []
    size = 0
    for name, value in record.headers:
        if name.startswith(("__dlq.errors.", "x-dlq-")) or name == h.ORIGINAL_TOPIC:
            continue
        size += h.size_of([(name, value)])
        if size > MAX_ORIGINAL_HEADER_BYTES or len(kept) == MAX_ORIGINAL_HEADERS:
            return kept, True
        kept.append((name, value))
    return kept, False
