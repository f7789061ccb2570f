"""The ledger is asked as little as can be, and no trade is booked twice for it."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest

from app.errors import TransportError
from app.memory_io import Fault, MemoryDatabase, MemoryLedger
from app.models import Fate
from app.ports import StoredTrade
from app.stats import ConsumerStats
from tests.memory_world import DEAD_LETTERS, TRADES, World, symbols_of, trade, until
from tests.virtual_time import virtual_time

(SYMBOL,) = symbols_of(0, 1)
RECENT = 20


class AskedLedger(MemoryLedger):
    """Remembers which ids it was asked for."""

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self.asked: list[str] = []

    async def find(self, trade_ids: Sequence[str]) -> dict[str, StoredTrade]:
        """Give the trades that the ledger holds of these ids."""
        self.asked += trade_ids
        return await super().find(trade_ids)


class Desk:
    """A world with one worker that goes on until it is told to stop."""

    def __init__(self, recent: int = RECENT) -> None:
        self.database = MemoryDatabase()
        self.ledger = AskedLedger(self.database)
        self.world = World(
            self.database, dedupe_window=recent, commit_every=1_000, dlq_breaker_share=1.0
        )
        self.worker = self.world.worker(on=self.ledger)
        self.is_held_up = False

    async def put(self, *values: bytes) -> None:
        """Publish records, and wait until they are committed."""
        for value in values:
            self.world.broker.append(TRADES, value, key=None, partition=0)
        await until(lambda: self.world.committed.get(0, 0) == self.world.ends[0])

    async def begin(self, *, asks: bool = False) -> None:
        """Start the worker, and book 200 trades, of which it has forgotten the first."""
        await self.worker.start()
        for start in range(0, 200, RECENT):
            await self.put(*trades(range(start, start + RECENT)))
        if not asks:
            self.ledger.asked.clear()

    async def stop(self) -> ConsumerStats:
        """Stop the worker, and check that no version of a trade is booked twice."""
        stats = await self.worker.finish()
        booked = [(row["trade_id"], row["version"]) for row in self.database.trades.values()]
        assert len(set(booked)) == len(booked)
        return stats


def trades(numbers: range, **more: Any) -> list[bytes]:
    """Give plain trades with the ids of these numbers."""
    return [trade(SYMBOL, trade_id=f"T{n}", **more) for n in numbers]


@virtual_time
async def test_trades_that_begin_are_asked_for_only_in_doubt() -> None:
    """After an opening as many as are recent; of the trades after that none."""
    desk = Desk()
    await desk.begin(asks=True)
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 200}
    last = max(int(name[1:]) for name in desk.ledger.asked)
    assert RECENT - 1 <= last < RECENT + 3  # a chunk more


@virtual_time
async def test_a_change_is_asked_for_however_sure_all_else_is() -> None:
    """The trade that it changes was forgotten here long ago."""
    desk = Desk()
    await desk.begin()
    await desk.put(*trades(range(1), action="AMEND", version=2, price="11"))
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 201}
    assert desk.ledger.asked == ["T0"]


@virtual_time
async def test_what_is_recent_is_recognised_without_asking() -> None:
    """Trades that come again at once."""
    desk = Desk()
    await desk.begin()
    await desk.put(*trades(range(190, 200)))
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 200, Fate.DUPLICATE: 10}
    assert not desk.ledger.asked


@virtual_time
async def test_trades_that_come_again_late_are_recognised_after_a_refused_write() -> None:
    """The write that would book them again is refused; from then on the ledger is asked."""
    desk = Desk()
    await desk.begin()
    await desk.put(*trades(range(100)), *trades(range(200, 210)))
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 210, Fate.DUPLICATE: 100}
    assert set(desk.ledger.asked) >= {f"T{n}" for n in range(100)}


@virtual_time
async def test_another_content_that_comes_late_is_refused() -> None:
    """Not booked, although nobody was asked before."""
    desk = Desk()
    await desk.begin()
    await desk.put(*trades(range(5), price="12"))
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 200, Fate.DEAD_LETTERED: 5}
    assert stats.reasons == {"version-conflict": 5}


@virtual_time
async def test_a_change_does_not_prolong_a_doubt() -> None:
    """The ledger has to have what it changes: that says nothing of the trades that begin."""
    desk = Desk()
    await desk.begin()
    await desk.stop()
    desk.worker = desk.world.worker(on=desk.ledger)
    await desk.worker.start()
    for n in range(10):
        await desk.put(*trades(range(n, n + 1), action="AMEND", version=2, price="11"))
        await desk.put(*trades(range(200 + n * RECENT // 2, 200 + (n + 1) * RECENT // 2)))
    await desk.stop()
    last = max(int(name[1:]) for name in desk.ledger.asked)
    assert last < 200 + RECENT


@pytest.mark.parametrize("recent", [0, RECENT])
@virtual_time
async def test_what_is_in_flight_when_a_write_is_refused_is_asked_for(recent: int) -> None:
    """To its end, or else the same write would be made and refused for ever."""
    desk = Desk(recent)
    await desk.begin()
    desk.ledger.faults = lambda operation: (
        Fault.NOT_SENT if operation == "write" and desk.is_held_up else Fault.NONE
    )
    desk.is_held_up = True
    for value in trades(range(200)):
        desk.world.broker.append(TRADES, value, key=None, partition=0)
    await until(lambda: desk.worker.consumer._open[0].next_offset == 400)
    desk.is_held_up = False
    await desk.put()
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 200, Fate.DUPLICATE: 200}


@virtual_time
async def test_a_late_repeat_that_its_position_would_not_take_is_a_duplicate() -> None:
    """As it is where the ledger is asked: not a dead letter of a trade that is booked."""
    desk = Desk()
    await desk.begin()
    await desk.put(trade(SYMBOL, side="SELL", quantity="200", trade_id="flat"))
    await desk.put(trade(SYMBOL, contract_multiplier="10", trade_id="ten"))
    await desk.put(*trades(range(1)), *trades(range(200, 201)))
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 202, Fate.DUPLICATE: 1, Fate.DEAD_LETTERED: 1}
    assert stats.reasons == {"multiplier-differs-from-position": 1}
    assert len(desk.world.broker.records(DEAD_LETTERS)) == 1


class SlowLedger(AskedLedger):
    """Takes its time for an answer, though less than is waited for."""

    async def find(self, trade_ids: Sequence[str]) -> dict[str, StoredTrade]:
        """Give the trades that the ledger holds of these ids."""
        await asyncio.sleep(4)
        return await super().find(trade_ids)


class SilentLedger(AskedLedger):
    """Answers nothing any more."""

    is_waited_for = False

    async def find(self, trade_ids: Sequence[str]) -> dict[str, StoredTrade]:
        """Wait."""
        self.is_waited_for = True
        await asyncio.Event().wait()
        return await super().find(trade_ids)

    async def history(self, partition: int, key: str) -> list[str] | None:
        """Wait."""
        self.is_waited_for = True
        await asyncio.Event().wait()
        return await super().history(partition, key)


@pytest.mark.parametrize("is_changed", [True, False])
@virtual_time
async def test_a_stop_does_not_wait_for_a_silent_ledger(*, is_changed: bool) -> None:
    """Neither for the past of a position nor for what is known of trades."""
    desk = Desk()
    await desk.begin()
    silent = SilentLedger(desk.database)
    await desk.stop()
    worker = desk.world.worker(on=silent)
    await worker.start()
    await until(lambda: len(worker.consumer._open) == 2)
    changed = trades(range(1), action="AMEND", version=2, price="11")
    for value in changed if is_changed else trades(range(200, 201)):
        desk.world.broker.append(TRADES, value, partition=0)
    await until(lambda: silent.is_waited_for)
    began_s = asyncio.get_running_loop().time()
    await worker.finish()
    assert asyncio.get_running_loop().time() - began_s < 5
    assert desk.world.committed[0] == 200


@virtual_time
async def test_a_past_that_makes_no_sense_stops_its_partition() -> None:
    """Somebody has deleted a cancelled trade by hand: the position cannot be folded again."""
    desk = Desk()
    await desk.begin()
    await desk.put(*trades(range(1), action="CANCEL", version=2))
    await desk.stop()
    del desk.database.trades[0, 0]
    worker = desk.world.worker(on=desk.ledger)
    await worker.start()
    await desk.put(*trades(range(200, 201)))
    (amend,) = trades(range(5, 6), action="AMEND", version=2)
    desk.world.broker.append(TRADES, amend, partition=0)
    await until(lambda: bool(worker.consumer.stats.stopped))
    assert "T0 is cancelled in the ledger and was never" in worker.consumer.stats.stopped[0]
    assert worker.consumer._open.keys() == {1}
    await worker.finish()
    assert desk.world.committed[0] == 202


class RefusingLedger(SilentLedger):
    """Answers who gives up with an error of its own, as drivers do that cannot cancel."""

    async def find(self, trade_ids: Sequence[str]) -> dict[str, StoredTrade]:
        """Break down when nobody waits any more."""
        try:
            return await super().find(trade_ids)
        except asyncio.CancelledError:
            raise TransportError("the connection is gone") from None


@virtual_time
async def test_an_error_that_nobody_waits_for_any_more_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not left for the event loop to complain about."""
    desk = Desk()
    await desk.begin()
    await desk.stop()
    silent = RefusingLedger(desk.database)
    worker = desk.world.worker(on=silent)
    await worker.start()
    await until(lambda: len(worker.consumer._open) == 2)
    desk.world.broker.append(TRADES, trades(range(200, 201))[0], partition=0)
    await until(lambda: silent.is_waited_for)
    await worker.finish()
    gc.collect()
    assert "asyncio" not in {record.name for record in caplog.records}


@pytest.mark.parametrize("is_stopped", [True, False])
@virtual_time
async def test_neither_a_stop_nor_a_rebalance_waits_for_all_that_was_fetched(
    *, is_stopped: bool
) -> None:
    """However much that is, and however slow the ledger."""
    world = World(MemoryDatabase(), dedupe_window=1_000)
    assert world.database is not None
    worker = world.worker(on=SlowLedger(world.database))
    for value in trades(range(300)):
        world.broker.append(TRADES, value, partition=0)
    await worker.start()
    await until(lambda: worker.consumer.stats.consumed_records > 0)
    began_s = asyncio.get_running_loop().time()
    if is_stopped:
        await worker.finish()
    else:
        other = world.worker()
        await other.start()
        await until(lambda: len(other.source.assignment.partitions) == 1)
        await worker.crash()
        await other.crash()
    assert asyncio.get_running_loop().time() - began_s < 10
    assert world.committed[0] > 0
    await world.consume()
    assert world.committed == world.ends
    assert len(world.database.trades) == 300


@virtual_time
async def test_nothing_leaves_that_was_judged_by_a_trade_that_is_not_new() -> None:
    """A late repeat with another content, and then the trade itself: that is the duplicate."""
    desk = Desk()
    await desk.begin()
    await desk.put(*trades(range(1), price="12"), *trades(range(1)))
    stats = await desk.stop()
    assert +stats.fates == {Fate.BOOKED: 200, Fate.DEAD_LETTERED: 1, Fate.DUPLICATE: 1}
    (letter,) = desk.world.broker.records(DEAD_LETTERS)
    assert b'"price": "12"' in (letter.value or b"")
