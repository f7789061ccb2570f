"""The watchdog ends a worker that is stuck, and no other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import pytest

from app.errors import StalledError
from app.memory_io import Fault, MemoryBroker, MemoryDatabase, MemoryLogReader
from app.ports import Record, RecordBatch
from app.watchdog import Watchdog, Watched
from tests.memory_world import TRADES, Worker, World, symbols_of, trade, until
from tests.virtual_time import virtual_time

TOPIC = "trades"


@dataclass
class Consumer:
    """What a watchdog sees."""

    progress: int = 0
    committed: int = 0

    def is_behind(self, ends: Mapping[int, int]) -> bool:
        """Compare with the one partition there is."""
        return self.committed < ends[0]


def watchdog(consumer: Watched, reader: MemoryLogReader, topic: str = TOPIC) -> Watchdog:
    """Make one that waits for 100 s."""
    loop = asyncio.get_running_loop()
    return Watchdog(consumer, reader=reader, topic=topic, timeout_s=100, monotonic=loop.time)


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


async def lives(consumer: Watched, reader: MemoryLogReader, topic: str = TOPIC) -> bool:
    """Tell whether a worker is left alone for a thousand seconds."""
    watching = asyncio.ensure_future(watchdog(consumer, reader, topic).watch())
    _, alive = await asyncio.wait([watching], timeout=1000)
    watching.cancel()
    return bool(alive)


@virtual_time
async def test_worker_without_anything_to_do_is_left_alone() -> None:
    """Everything is committed: there is no progress to make."""
    assert await lives(Consumer(committed=1), reader_of(1))


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


# -- with a consumer that runs

SYMBOLS = symbols_of(0, 4)


def world_of_trades() -> World:
    """Give a world with a ledger, and a trade of each symbol in its topic."""
    world = World(MemoryDatabase(), dedupe_window=5000, database_url="embedded")
    put_trades(world)
    return world


def put_trades(world: World) -> None:
    """Publish another trade of each symbol."""
    for symbol in SYMBOLS:
        number = world.ends[0]
        value = trade(symbol, trade_id=f"T{number}")
        world.broker.append(TRADES, value, key=symbol.encode(), partition=0)


async def is_left_alone(world: World, worker: Worker) -> bool:
    """Tell whether a worker lives on."""
    return await lives(worker.consumer, MemoryLogReader(world.broker), TRADES)


def break_publisher(worker: Worker, fault: Fault) -> None:
    """Let nothing be acknowledged, or everything."""
    worker.publisher.faults = lambda _: fault


def break_source(operation: str) -> Callable[[Worker, Fault], None]:
    """Let an operation of the group's member fail."""

    def break_it(worker: Worker, fault: Fault) -> None:
        worker.source.faults = lambda called: fault if called == operation else Fault.NONE

    return break_it


def break_ledger(operation: str) -> Callable[[Worker, Fault], None]:
    """Let an operation of the ledger fail."""

    def break_it(worker: Worker, fault: Fault) -> None:
        assert worker.ledger is not None
        worker.ledger.faults = lambda called: fault if called == operation else Fault.NONE

    return break_it


@pytest.mark.parametrize(
    "break_it",
    [
        break_publisher,
        *map(break_source, ["poll", "commit", "committed", "offset_ranges"]),
        *map(break_ledger, ["claim", "positions", "write", "find"]),
    ],
    ids=["publish", "poll", "commit", "committed", "ranges", "claim", "restore", "write", "find"],
)
@virtual_time
async def test_outage_that_shows_by_failed_attempts_is_waited_out(
    break_it: Callable[[Worker, Fault], None],
) -> None:
    """Wherever it bites: to start again would bring neither a broker nor the database back."""
    world = world_of_trades()
    await world.consume()
    put_trades(world)
    worker = world.worker()
    break_it(worker, Fault.NOT_SENT)
    await worker.start()
    assert await is_left_alone(world, worker)
    assert world.committed != world.ends
    break_it(worker, Fault.NONE)
    await until(lambda: world.committed == world.ends)
    await worker.finish()


@virtual_time
async def test_worker_that_gets_no_records_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heartbeats are acknowledged all the while: they are no progress."""
    world = world_of_trades()
    await world.consume()
    worker = world.worker()

    async def give_nothing(*, timeout_s: float) -> list[RecordBatch]:
        await asyncio.sleep(timeout_s)
        return []

    monkeypatch.setattr(worker.source, "poll", give_nothing)
    await worker.start()
    put_trades(world)
    assert not await is_left_alone(world, worker)
    await worker.crash()


@virtual_time
async def test_restore_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing has come: it could not be booked. Another partition is open, and idle."""
    world = world_of_trades()
    await world.consume()
    worker = world.worker()
    assert worker.ledger is not None
    claim = worker.ledger.claim

    async def hang(partition: int) -> int | None:
        if partition == 0:
            await asyncio.Event().wait()
        return await claim(partition)

    monkeypatch.setattr(worker.ledger, "claim", hang)
    await worker.start()
    assert not await is_left_alone(world, worker)
    await worker.crash()


@virtual_time
async def test_restore_that_goes_on_record_by_record_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long all of it takes."""
    world = world_of_trades()
    await world.consume()
    worker = world.worker()
    read = worker.reader.read

    async def slowly(topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        async for record in read(topic, partition, start, end):
            await asyncio.sleep(60)
            yield record

    monkeypatch.setattr(worker.reader, "read", slowly)
    await worker.start()
    assert await is_left_alone(world, worker)
    assert len(worker.consumer._open) == 2
    await worker.finish()


@virtual_time
async def test_positions_that_are_folded_anew_one_by_one_are_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A book that changes its method may take long, as long as it goes on."""
    world = world_of_trades()
    await world.consume()
    world.settings = world.settings.model_copy(update={"fifo_books": "*"})
    worker = world.worker()
    assert worker.ledger is not None
    history = worker.ledger.history

    async def slowly(partition: int, key: str) -> list[str] | None:
        await asyncio.sleep(60)
        return await history(partition, key)

    monkeypatch.setattr(worker.ledger, "history", slowly)
    await worker.start()
    assert await is_left_alone(world, worker)
    assert len(worker.consumer._open) == 2
    await worker.finish()
