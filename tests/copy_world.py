"""A topic in memory with copiers on it, and a store that can be made to fail."""

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app.config import Settings
from app.copier import CopyStats, CopyStore, TradeCopier
from app.copy_codec import CopyBlock
from app.errors import TransportError
from app.memory_io import Fault, MemoryBroker, MemoryLogReader, MemorySource
from app.memory_io.faults import no_fault
from app.ports import RecordBatch

TOPIC: Final = "trades"
GROUP: Final = "copy"
NOW_MS: Final = 1_790_000_000_000


class RecordingStore:
    """Remembers what was written and how far; asked for a fault before each write.

    Attributes:
        faults: Says what becomes of a write.
        writes: Ranges of the blocks of each write that was stored, in order.
        answers: Whether writes come to an end at all.
    """

    def __init__(self) -> None:
        self.faults: Callable[[str], Fault] = no_fault
        self.writes: list[list[tuple[int, int, int]]] = []
        self.ends: dict[int, tuple[int, int]] = {}
        self.answers = asyncio.Event()
        self.answers.set()

    async def progress(self) -> dict[int, tuple[int, int]]:
        """Give how far it is."""
        if self.faults("progress") is not Fault.NONE:
            raise TransportError("progress: scripted")
        return dict(self.ends)

    async def write(self, blocks: Sequence[CopyBlock], firsts: Mapping[int, int]) -> None:
        """Store what is new of the blocks."""
        fault = self.faults("write")
        await self.answers.wait()
        if fault in (Fault.NONE, Fault.UNKNOWN_STORED):
            self.writes.append([(b.partition, b.start, b.next_offset) for b in blocks])
            for block in blocks:
                end = self.ends.get(block.partition, (0, block.start))[1]
                assert block.start <= end
                self.ends[block.partition] = (firsts[block.partition], block.next_offset)
        if fault is not Fault.NONE:
            raise TransportError("write: scripted")

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """Every block that was stored, as partition, first offset and next offset."""
        return [block for write in self.writes for block in write]


class MarkedSource(MemorySource):
    """Passes control records without giving them, and may have lost the headers of batches.

    Attributes:
        control: Partitions and offsets of them.
        has_headers: Whether what is stored begins with the header of a batch.
    """

    control: Collection[tuple[int, int]] = ()
    has_headers = True

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        """Give what has arrived without them; a batch may have no record left."""
        return [self._given(batch) for batch in await super().poll(timeout_s=timeout_s)]

    async def stored_bytes(self, partition: int, offset: int) -> bytes:
        """Give a batch, or bytes that make no sense."""
        stored = await super().stored_bytes(partition, offset)
        return stored if self.has_headers else bytes(len(stored))

    def _given(self, batch: RecordBatch) -> RecordBatch:
        number = batch.partition
        given = [r for r in batch.records if (number, r.offset) not in self.control]
        return RecordBatch.of(number, batch.epoch, given, batch.next_offset, batch.base_offset)


class LossyStore:
    """Stands before a real store: loses calls, answers and parts, and cuts writes anew.

    Args:
        store: The real one.
        seed: Of what goes wrong.
        copied: Makes a block of the records of a part of a block, to be written in its place.
    """

    def __init__(
        self, store: CopyStore, seed: int, copied: Callable[[int, int, int], CopyBlock]
    ) -> None:
        self._store = store
        self._draw = random.Random(seed)
        self._copied = copied
        self.lost = 0

    async def progress(self) -> dict[int, tuple[int, int]]:
        """Give how far it is, or lose the answer."""
        self._maybe_lose(0.2)
        return await self._store.progress()

    async def write(self, blocks: Sequence[CopyBlock], firsts: Mapping[int, int]) -> None:
        """Write all, some, in other pieces, or twice, and answer or not."""
        self._maybe_lose(0.3)
        fate = self._draw.random()
        if fate < 0.2:  # some pieces of it, without an answer
            for block in blocks[: self._draw.randrange(len(blocks)) + 1]:
                middle = self._draw.randrange(block.start, block.next_offset) + 1
                part = self._copied(block.partition, block.start, middle)
                await self._store.write([part], firsts)
                if middle < block.next_offset:
                    break  # what comes after a hole is never written: progress would pass over it
            self._maybe_lose(1.0)
        await self._store.write(blocks, firsts)
        if fate < 0.5:
            await self._store.write(blocks[::-1], firsts)
        self._maybe_lose(0.4)

    def _maybe_lose(self, chance: float) -> None:
        if self._draw.random() < chance:
            self.lost += 1
            raise TransportError("scripted: no answer")


@dataclass
class Running:
    """One copier with a source of its own, run as a task."""

    source: MarkedSource
    copier: TradeCopier
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[CopyStats] | None = None

    async def start(self, *, until_caught_up: bool = False) -> None:
        """Join the group and run."""
        await self.source.start()
        self.task = asyncio.ensure_future(
            self.copier.run(self.stop, until_caught_up=until_caught_up)
        )

    async def finish(self) -> CopyStats:
        """Stop in an orderly way and leave the group."""
        self.stop.set()
        return await self.end()

    async def end(self) -> CopyStats:
        """Wait for a run that ends by itself, and leave the group."""
        assert self.task is not None
        try:
            return await self.task
        finally:
            await self.source.stop()

    async def crash(self) -> None:
        """Die at whatever await it has come to."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.source.crash()


class CopyWorld:
    """A topic in memory and a store."""

    def __init__(self, store: CopyStore | None = None, *, partitions: int = 2, **more: Any) -> None:
        self.broker = MemoryBroker({TOPIC: partitions}, now_ms=lambda: NOW_MS)
        self.store = store or RecordingStore()
        self.settings = Settings.model_validate({"kafka_topic": TOPIC} | more)

    def copier(self, store: CopyStore | None = None) -> Running:
        """Make a copier, not started."""
        source = MarkedSource(self.broker, TOPIC, GROUP)
        copier = TradeCopier(
            source=source,
            store=store or self.store,
            settings=self.settings,
            monotonic=asyncio.get_running_loop().time,
        )
        return Running(source, copier)

    async def copy(self, store: CopyStore | None = None) -> CopyStats:
        """Run one copier until it has caught up."""
        running = self.copier(store)
        await running.start(until_caught_up=True)
        return await running.end()

    async def copy_until_stopped(self) -> CopyStats:
        """Run one copier until a partition waits for a person."""
        running = self.copier()
        await running.start()
        while not running.copier.stats.stopped:  # noqa: ASYNC110 - no event says when
            await asyncio.sleep(0.05)
        return await running.finish()

    def reader(self) -> MemoryLogReader:
        """Give a reader outside of the group."""
        return MemoryLogReader(self.broker)
