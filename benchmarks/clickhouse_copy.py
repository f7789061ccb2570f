"""`python -m benchmarks.clickhouse_copy`: the copy into the engine in this process, no broker.

Records to columns; columns into the engine; both, as the copier does them, in two threads; then
what it costs to ask, and to compare. Each round is a copy of its own; medians are printed.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from app.config import Settings
from app.copier import BLOCK_OFFSETS, TradeCopier
from app.copy_codec import CopyBlock
from app.memory_io.broker import MemoryRecord
from app.ports import Assignment, RecordBatch
from app.stores.clickhouse import ClickHouseCopy, open_copy
from app.utils import configure_logging
from benchmarks import machine
from benchmarks.workload import Workload

TOPIC: Final = "trades"
_CHUNK: Final = 500
_QUESTIONS: Final = {
    "one book and symbol": "SELECT count(), sum(notional) FROM trade_list"
    " WHERE book = 'BOOK-01' AND symbol = 'S010'",
    "one second of time": "SELECT count(), sum(notional) FROM trades FINAL WHERE executed_at <"
    " (SELECT min(executed_at) + INTERVAL 1 SECOND FROM trades)",
    "volume by symbol": "SELECT * FROM volume_by_symbol",
    "volume by minute": "SELECT * FROM volume_by_minute",
    "digests of all": "",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one stage."""

    wall_s: float
    cpu_s: float


async def timed(work: Callable[[], Awaitable[object]]) -> Cost:
    """Time a piece of work, its own CPU and the engine's threads together."""
    wall_s, cpu_s = time.monotonic(), time.process_time()
    await work()
    return Cost(time.monotonic() - wall_s, time.process_time() - cpu_s)


def batches_of(count: int, poison: float) -> list[RecordBatch]:
    """Make the batches of one partition, as a source gives them."""
    stamp = time.time_ns() // 1_000_000
    records = [
        MemoryRecord(offset, stamp, trade.key, value)
        for offset, (trade, value, _) in enumerate(Workload(poison=poison).records(count))
    ]
    return [
        RecordBatch.of(0, 1, records[low : low + _CHUNK], min(low + _CHUNK, count))
        for low in range(0, count, _CHUNK)
    ]


class Backlog:
    """A source that has everything at hand: what it costs to fetch is another table's."""

    is_raw = True
    is_revoking = False
    assignment = Assignment(1, frozenset({0}))

    def __init__(self, batches: Sequence[RecordBatch]) -> None:
        self._batches = batches
        self._next = 0
        self._is_paused = True  # until it is sought
        self.end = batches[-1].next_offset

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        """Give the next batch, unless it is paused."""
        if self._is_paused or self._next == len(self._batches):
            await asyncio.sleep(min(timeout_s, 0.005))
            return []
        self._next += 1
        return [self._batches[self._next - 1]]

    def known_ends(self) -> dict[int, int]:
        """Give the end."""
        return {0: self.end}

    def fetched_ms(self) -> dict[int, int]:
        """Give no time: nothing here asks for it."""
        return {}

    async def offset_ranges(self, _: Collection[int]) -> dict[int, tuple[int, int]]:
        """Give the bounds."""
        return {0: (0, self.end)}

    async def commit(self, _: Mapping[int, int]) -> bool:
        """Take a commit."""
        return True

    def pause(self, _: Collection[int]) -> None:
        """Give nothing until `resume`."""
        self._is_paused = True

    def resume(self, _: Collection[int]) -> None:
        """Give batches again."""
        self._is_paused = False

    def confirm_revocation(self) -> None:
        """Nobody asks."""

    def wake(self) -> None:
        """It never waits for long."""

    def seek(self, *_: int) -> None:
        """Begin where it begins."""
        self._is_paused = False

    async def stored_bytes(self, *_: int) -> bytes:
        """Nobody asks."""
        raise NotImplementedError

    async def committed(self, _: Collection[int]) -> dict[int, int | None]:
        """Nobody asks."""
        raise NotImplementedError


def blocks_of(batches: Sequence[RecordBatch]) -> list[CopyBlock]:
    """Make blocks of batches."""
    blocks: list[CopyBlock] = []
    for batch in batches:
        if batch.offsets[0] % BLOCK_OFFSETS == 0:
            blocks.append(CopyBlock(0, batch.offsets[0]))
        blocks[-1].add(batch, 0, len(batch.values), batch.next_offset)
    return blocks


async def measure(
    batches: Sequence[RecordBatch], settings: Settings, folder: Path
) -> dict[str, Cost]:
    """Run every stage once."""
    costs: dict[str, Cost] = {}
    blocks: list[CopyBlock] = []

    async def columns() -> None:
        blocks.extend(blocks_of(batches))

    async def insert(copy: ClickHouseCopy) -> None:
        for block in blocks:
            await copy.write([block], {0: 0})

    async def whole(copy: ClickHouseCopy) -> None:
        copier = TradeCopier(source=Backlog(batches), store=copy, settings=settings)
        await copier.run(asyncio.Event(), until_caught_up=True)

    async def ask(copy: ClickHouseCopy, question: str) -> None:
        if question:
            await copy.query(question)
        else:
            await copy.digests("trades", 0, 0, 2**40, size=2**16)

    costs["records to columns"] = await timed(columns)
    async with open_copy(settings, rebuild=True, data_dir=folder) as copy:
        costs["columns into the engine"] = await timed(lambda: insert(copy))
    async with open_copy(settings, rebuild=True, data_dir=folder) as copy:
        costs["both, as the copier does"] = await timed(lambda: whole(copy))
        for name, question in _QUESTIONS.items():
            costs[f"ask: {name}"] = await timed(lambda q=question: ask(copy, q))  # type: ignore[misc]
    return costs


def main(
    *,
    count: Annotated[int, typer.Option(help="Trades.", min=1)] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 3,
    poison: Annotated[float, typer.Option(help="Share of bad records.", min=0, max=1)] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print every round.")] = False,
) -> None:
    """Measure trades per second into the engine, and CPU seconds per million."""
    configure_logging("ERROR")
    settings = Settings.model_validate({"clickhouse_url": "embedded", "kafka_topic": TOPIC})
    batches = batches_of(count, poison)
    results: list[dict[str, Cost]] = []
    with tempfile.TemporaryDirectory() as folder:
        results += [
            asyncio.run(measure(batches, settings, Path(folder) / "data")) for _ in range(rounds)
        ]
    if as_json:
        rounds_told = [
            {name: {"wall_s": c.wall_s, "cpu_s": c.cpu_s} for name, c in result.items()}
            for result in results
        ]
        json.dump(
            {"machine": machine.describe(), "count": count, "rounds": rounds_told}, sys.stdout
        )
        return
    print(f"{count:,} trades, {rounds} rounds, medians")
    print(f"{'':30}{'trades/s':>12}{'CPU s per million':>20}{'seconds':>10}")
    for name in results[0]:
        wall_s = statistics.median(result[name].wall_s for result in results)
        cpu_s = statistics.median(result[name].cpu_s for result in results)
        print(f"{name:30}{count / wall_s:>12,.0f}{cpu_s / count * 1e6:>20.2f}{wall_s:>10.2f}")


if __name__ == "__main__":
    typer.run(main)
