"""Reads partitions in memory outside of any group."""

import asyncio
from collections.abc import AsyncIterator, Callable

from app.errors import TransportError
from app.memory_io.broker import MemoryBroker
from app.memory_io.faults import Fault, no_fault
from app.ports import Record


class MemoryLogReader:
    """Reads any partition; see `ports.LogReader` for what it promises.

    Attributes:
        faults: Asked before each operation, by the name of its method.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self.faults: Callable[[str], Fault] = no_fault
        self._broker = broker

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic."""
        await self._before("partition_count")
        return self._broker.partition_count(topic)

    async def offset_ranges(self, topic: str) -> dict[int, tuple[int, int]]:
        """Give the first offset held and the end offset of every partition of a topic."""
        await self._before("offset_ranges")
        count = self._broker.partition_count(topic)
        return {p: self._broker.offset_range(topic, p) for p in range(count)}

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        """Give the records of a partition from `start` up to, not including, `end`.

        Raises:
            TransportError: The partition does not hold this range.
        """
        await self._before("read")
        if start >= end:
            return
        log = self._broker.log(topic, partition)
        if start < log.first or end > log.end:
            raise TransportError(
                f"{topic} partition {partition} holds offsets {log.first} to {log.end},"
                f" not {start} to {end}"
            )
        for record in log.slice(start, end):
            await asyncio.sleep(0)
            yield record

    async def _before(self, operation: str) -> None:
        fault = self.faults(operation)
        await asyncio.sleep(0)
        if fault is not Fault.NONE:
            raise TransportError(f"{operation}: scripted fault {fault}")
