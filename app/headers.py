"""Names and forms of the record headers that the platform reads and writes; frozen by release."""

from dataclasses import dataclass
from typing import Final

from app.ports import Headers

REKEYED_FROM: Final = "x-rekeyed-from"
"""Origin of a trade that was republished to its own partition: `topic/partition/offset`."""

# KIP-1191: what a dead letter says of its origin, under the names other tools read.
DLQ_TOPIC: Final = "__dlq.errors.topic"
DLQ_PARTITION: Final = "__dlq.errors.partition"
DLQ_OFFSET: Final = "__dlq.errors.offset"
DLQ_GROUP: Final = "__dlq.errors.group"
DLQ_DELIVERY_COUNT: Final = "__dlq.errors.delivery.count"
DLQ_MESSAGE: Final = "__dlq.errors.message"

# What we add to them.
DLQ_REASON: Final = "x-dlq-reason"
DLQ_ERROR_CLASS: Final = "x-dlq-error-class"
DLQ_ERROR_KIND: Final = "x-dlq-error-kind"
DLQ_STAGE: Final = "x-dlq-stage"
DLQ_FINGERPRINT: Final = "x-dlq-fingerprint"
DLQ_ORIGINAL_TIMESTAMP: Final = "x-dlq-original-timestamp"
DLQ_FAILED_AT: Final = "x-dlq-failed-at"
DLQ_FIRST_FAILED_AT: Final = "x-dlq-first-failed-at"
DLQ_PARKED_AT: Final = "x-dlq-parked-at"
DLQ_APP: Final = "x-dlq-app"
DLQ_APP_VERSION: Final = "x-dlq-app-version"
DLQ_VALUE_WAS_NULL: Final = "x-dlq-value-was-null"
ORIGINAL_TOPIC: Final = "x-original-topic"

# Of the dead letter that stands for a batch which cannot be read.
QUARANTINE_FILE: Final = "x-dlq-quarantine-file"
QUARANTINE_SIZE: Final = "x-dlq-quarantine-size"
QUARANTINE_SHA256: Final = "x-dlq-quarantine-sha256"
QUARANTINE_NEXT_OFFSET: Final = "x-dlq-quarantine-next-offset"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a re-keyed trade stood first."""

    topic: str
    partition: int
    offset: int

    def to_header(self) -> tuple[str, bytes]:
        """Give the header that carries this origin."""
        return REKEYED_FROM, f"{self.topic}/{self.partition}/{self.offset}".encode()


def origin_of(headers: Headers) -> Origin | None:
    """Read the origin of a re-keyed trade; `None` where there is none, or none that is readable."""
    for name, value in headers:
        if name == REKEYED_FROM and value is not None:
            topic, _, rest = value.decode("ascii", "replace").partition("/")
            partition, _, offset = rest.partition("/")
            if partition.isdecimal() and offset.isdecimal() and len(rest) <= 40:  # noqa: PLR2004 - two int64
                return Origin(topic, int(partition), int(offset))
    return None


def size_of(headers: Headers) -> int:
    """Sum up the bytes of names and values."""
    return sum(len(name.encode()) + len(value or b"") for name, value in headers)
