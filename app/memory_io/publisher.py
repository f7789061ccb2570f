"""A publisher in memory, with a script for what goes wrong."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from app.memory_io.broker import MemoryBroker
from app.memory_io.faults import Fault, no_fault
from app.ports import OutgoingRecord, SendOutcome, SendState

MAX_RECORD_BYTES: Final = 2 * 1024 * 1024


class MemoryPublisher:
    """Stores records in order; see `ports.Publisher` for what it promises.

    Like the real one it lets nothing overtake: after a record that was not stored and may be sent
    again, the later ones of the same partition and call are not sent. It does not try again by
    itself, so that a script sees every attempt.

    Args:
        broker: Where the topics are.
        max_record_bytes: Records with more bytes in key, value and headers are refused.

    Attributes:
        faults: Asked once for each record of each attempt.
    """

    def __init__(self, broker: MemoryBroker, *, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self.faults: Callable[[OutgoingRecord], Fault] = no_fault
        self._broker = broker
        self._max_record_bytes = max_record_bytes
        self._order = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()

    async def start(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def stop(self) -> None:
        """Do nothing: what was accepted is stored."""

    def hold(self) -> None:
        """Let every publish hang, as with brokers that do not answer, until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Let held and later publishes go on."""
        self._open.set()

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic."""
        return self._broker.partition_count(topic)

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        """Store records one by one; between any two of them a cancel can fall.

        Raises:
            TopicError: A topic is not there.
        """
        outcomes = []
        blocked: set[tuple[str, int]] = set()
        async with self._order:
            for record in records:
                await self._open.wait()
                await asyncio.sleep(0)
                outcomes.append(self._send(record, blocked))
        return outcomes

    def _send(self, record: OutgoingRecord, blocked: set[tuple[str, int]]) -> SendOutcome:
        assert record.key is not None or record.value is not None, "A9: key and value are null"
        if _size(record) > self._max_record_bytes:
            error = f"larger than {self._max_record_bytes} bytes"
            return SendOutcome(SendState.NOT_SENT, error=error, retryable=False)
        partition = record.partition
        if partition is None:
            partition = self._broker.place(record.topic, record.key)
        place = record.topic, partition
        if place in blocked:
            return SendOutcome(SendState.NOT_SENT, error="behind a record that was not sent")
        fault = self.faults(record)
        if fault is Fault.REFUSED:
            return SendOutcome(SendState.NOT_SENT, error="refused by script", retryable=False)
        if fault in (Fault.NOT_SENT, Fault.UNKNOWN_LOST):
            blocked.add(place)
            state = SendState.NOT_SENT if fault is Fault.NOT_SENT else SendState.UNKNOWN
            return SendOutcome(state, error=f"scripted fault {fault}")
        partition, offset = self._broker.append(
            record.topic,
            record.value,
            key=record.key,
            headers=record.headers,
            partition=partition,
            timestamp_ms=record.timestamp_ms,
        )
        if fault is Fault.UNKNOWN_STORED:
            return SendOutcome(SendState.UNKNOWN, error=f"scripted fault {fault}")
        return SendOutcome(SendState.OK, partition, offset)


def _size(record: OutgoingRecord) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers
