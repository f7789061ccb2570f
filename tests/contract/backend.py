"""What a test of the contract gets: clients of one back end, and waiting without sleeping."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from app.ports import LogReader, OutgoingRecord, Publisher, Record, RecordSource, SendState

PATIENCE_S: Final = 15.0
POLL_S: Final = 0.05


class Source(RecordSource, Protocol):
    """A source that joins and leaves."""

    async def start(self) -> None:
        """Join the group."""

    async def stop(self) -> None:
        """Leave the group."""

    def partition_of(self, key: bytes) -> int:
        """Give the partition that a key belongs to."""


class Stoppable(Publisher, Protocol):
    """A publisher that is closed at the end."""

    async def stop(self) -> None:
        """Close."""


@dataclass
class Backend:
    """One back end with two empty topics of two partitions."""

    topic: str
    positions_topic: str
    make_source: Callable[[], Source]
    publisher: Stoppable
    reader: LogReader
    _sources: list[Source] = field(default_factory=list)

    async def join(self) -> Source:
        """Start one more member of the group."""
        source = self.make_source()
        await source.start()
        self._sources.append(source)
        return source

    async def leave(self, source: Source) -> None:
        """Stop a member."""
        self._sources.remove(source)
        await source.stop()

    async def close(self) -> None:
        """Stop whatever runs."""
        for source in self._sources:
            await source.stop()
        await self.publisher.stop()

    async def write(
        self, values: Sequence[bytes | None], *, partition: int = 0, key: bytes | None = b"k"
    ) -> list[int]:
        """Publish values to one partition of the trades; give their offsets."""
        outcomes = await self.publisher.publish(
            [OutgoingRecord(self.topic, key, value, partition=partition) for value in values]
        )
        assert [outcome.state for outcome in outcomes] == [SendState.OK] * len(values)
        return [outcome.offset for outcome in outcomes]

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Record]:
        """Read a range of a partition outside of the group."""
        return [record async for record in self.reader.read(topic, partition, start, end)]


async def settle(*sources: RecordSource, condition: Callable[[], bool]) -> list[Record]:
    """Poll the sources, confirming every revocation, until the condition holds.

    Returns:
        The records that the polls gave meanwhile, in their order.

    Raises:
        TimeoutError: It does not come to hold.
    """
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            for source in sources:
                if source.is_revoking:
                    source.confirm_revocation()
                for batch in await source.poll(timeout_s=POLL_S):
                    records += batch.records
    return records


async def opened(source: RecordSource, starts: dict[int, int]) -> None:
    """Wait until exactly these partitions are the source's, and seek them."""
    await settle(source, condition=lambda: source.assignment.partitions >= starts.keys())
    for partition, offset in starts.items():
        source.seek(partition, offset)


async def take(source: RecordSource, count: int) -> list[Record]:
    """Poll until so many records have come; give all that came."""
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(records) < count:
            for batch in await source.poll(timeout_s=POLL_S):
                assert batch.epoch == source.assignment.epoch
                assert list(batch.values) == [record.value for record in batch.records]
                assert list(batch.offsets) == [record.offset for record in batch.records]
                records += batch.records
    return records
