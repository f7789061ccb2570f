"""The watchdog ends a worker that is stuck, and no other."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from app.errors import StalledError
from app.memory_io import Fault, MemoryBroker, MemoryLogReader
from app.watchdog import Watchdog
from tests.virtual_time import virtual_time

TOPIC = "trades"


@dataclass
class Consumer:
    """What a watchdog sees."""

    progress: int = 0
    is_waiting: bool = False
    committed: int = 0

    def is_behind(self, ends: Mapping[int, int]) -> bool:
        """Compare with the one partition there is."""
        return self.committed < ends[0]


def watchdog(consumer: Consumer, reader: MemoryLogReader) -> Watchdog:
    """Make one that waits for 100 s."""
    loop = asyncio.get_running_loop()
    return Watchdog(consumer, reader=reader, topic=TOPIC, timeout_s=100, monotonic=loop.time)


def reader_of(records: int) -> MemoryLogReader:
    """Give a reader of a topic with so many records."""
    broker = MemoryBroker({TOPIC: 1})
    for _ in range(records):
        broker.append(TOPIC, b"")
    return MemoryLogReader(broker)


@virtual_time
async def test_worker_that_is_behind_and_gets_nowhere_is_ended() -> None:
    """Within its time, and a tenth of it at most."""
    started_s = asyncio.get_running_loop().time()
    with pytest.raises(StalledError, match=r"no progress for 1\d\d s"):
        await watchdog(Consumer(), reader_of(1)).watch()
    assert 100 <= asyncio.get_running_loop().time() - started_s <= 111


async def lives(consumer: Consumer, reader: MemoryLogReader) -> bool:
    """Tell whether a worker is left alone for a thousand seconds."""
    watching = asyncio.ensure_future(watchdog(consumer, reader).watch())
    _, alive = await asyncio.wait([watching], timeout=1000)
    watching.cancel()
    return bool(alive)


@virtual_time
async def test_worker_without_anything_to_do_is_left_alone() -> None:
    """Everything is committed: there is no progress to make."""
    assert await lives(Consumer(committed=1), reader_of(1))


@virtual_time
async def test_worker_that_knows_what_it_waits_for_is_left_alone() -> None:
    """A broker, a person or an assignment that it waits for is not found by a restart."""
    assert await lives(Consumer(is_waiting=True), reader_of(1))


@virtual_time
async def test_outage_is_no_reason() -> None:
    """While brokers do not answer a new process would fare no better."""
    reader = reader_of(1)
    reader.faults = lambda _: Fault.UNKNOWN_LOST
    assert await lives(Consumer(), reader)


@virtual_time
async def test_progress_however_slow_is_enough() -> None:
    """One step within the time keeps it alive; when the steps end, so does it."""
    consumer = Consumer()
    watching = asyncio.ensure_future(watchdog(consumer, reader_of(1)).watch())
    for _ in range(10):
        await asyncio.sleep(80)
        assert not watching.done()
        consumer.progress += 1
    with pytest.raises(StalledError):
        await watching
