"""A book whose method is changed: its positions are folded anew when they are taken over."""

from collections.abc import Callable

import pytest

from app.ledger_codec import read_position
from app.memory_io import Fault, MemoryDatabase, MemoryLedger
from app.money import to_decimal
from tests.memory_world import TRADES, Worker, World, symbols_of, trade
from tests.virtual_time import virtual_time

FLAT, OPEN = symbols_of(0, 2)


class Desk:
    """A world with a ledger, in which one symbol is flat and one is open, by average cost.

    Attributes:
        world: It; the settings are changed between two lives.
    """

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        self.world = World(self.database, database_url="embedded")
        self.put(FLAT, "BUY", "10")
        self.put(FLAT, "SELL", "11")
        self.put(OPEN, "BUY", "10", "2")
        self.put(OPEN, "BUY", "12", "2")
        self.put(OPEN, "SELL", "13", "3")

    def put(self, symbol: str, side: str, price: str, quantity: str = "1") -> None:
        """Publish a trade."""
        number = self.world.broker.offset_range(TRADES, 0)[1]
        value = trade(symbol, side, price, quantity, trade_id=f"T{number}")
        self.world.broker.append(TRADES, value, key=symbol.encode(), partition=0)

    def keep_by_fifo(self, books: str | None) -> None:
        """Change the method."""
        self.world.settings = self.world.settings.model_copy(update={"fifo_books": books})

    async def live(self, on: MemoryLedger | None = None) -> dict[int, str]:
        """Run a worker until it has caught up; give why partitions were stopped."""
        worker: Worker = self.world.worker(on)
        await worker.start(until_caught_up=True)
        return (await worker.finish_by_itself()).stopped

    def numbers(self, symbol: str = OPEN) -> tuple[str, ...]:
        """Open cost, realised PnL and method, of which the positions topic says the same."""
        line = self.database.positions[0, symbol]
        position = read_position(line)
        told = self.world.newest_positions()[symbol]
        assert str(to_decimal(position.realized_e24, 24)) == told["realized_pnl"]
        assert position.generation == told.get("generation", 0)
        cost, realized = position.open_cost_e24, position.realized_e24
        return f"{cost // 10**24}", f"{realized // 10**24}", line.split("\t")[-1]

    def generation(self, symbol: str = OPEN) -> int:
        """How often the position was made anew."""
        return read_position(self.database.positions[0, symbol]).generation

    def lots(self) -> list[tuple[str, str]]:
        """Quantity and price of what is open."""
        lines = sorted(self.database.lots.get((0, OPEN), {}).items())
        cells = [line.split("\t") for _, line in lines]
        return [(cell[3], cell[4]) for cell in cells]


@virtual_time
async def test_a_method_is_changed_there_and_back() -> None:
    """Everything that depends on it is as if it had never been another one, in both places."""
    desk = Desk()
    assert await desk.live() == {}
    assert desk.numbers() == ("11", "6", "average")
    desk.keep_by_fifo("*")
    assert await desk.live() == {}
    assert desk.numbers() == ("12", "7", "fifo")
    assert desk.lots() == [("1", "12")]
    assert desk.numbers(FLAT) == ("0", "1", "fifo")
    # Of two states at one offset the newer one is told by it; of a flat position nothing changed.
    assert (desk.generation(), desk.generation(FLAT)) == (1, 0)
    desk.put(OPEN, "BUY", "14")
    desk.put(FLAT, "BUY", "20")
    assert await desk.live() == {}
    assert desk.numbers() == ("26", "7", "fifo")
    assert desk.lots() == [("1", "12"), ("1", "14")]
    desk.keep_by_fifo(None)
    assert await desk.live() == {}
    assert desk.numbers() == ("25", "6", "average")
    assert desk.lots() == []
    assert desk.numbers(FLAT) == ("20", "1", "average")
    assert (desk.generation(), desk.generation(FLAT)) == (2, 1)


@virtual_time
async def test_trades_of_other_positions_leave_what_was_folded_anew() -> None:
    """It goes to the positions topic with their flush, and keeps its method and its lots."""
    desk = Desk()
    await desk.live()
    desk.keep_by_fifo("*")
    desk.put(FLAT, "BUY", "20")
    assert await desk.live() == {}
    assert desk.numbers() == ("12", "7", "fifo")
    assert desk.lots() == [("1", "12")]
    desk.put(FLAT, "BUY", "20")
    assert await desk.live() == {}
    assert (desk.generation(), desk.generation(FLAT)) == (1, 0)


@virtual_time
async def test_a_method_that_stays_folds_nothing_anew() -> None:
    """A restart reads the lots, and no trades."""
    desk = Desk()
    desk.keep_by_fifo("*")
    await desk.live()
    before = dict(desk.database.positions)
    asked: list[str] = []

    def note(operation: str) -> Fault:
        asked.append(operation)
        return Fault.NONE

    ledger = MemoryLedger(desk.database)
    ledger.faults = note
    assert await desk.live(ledger) == {}
    assert desk.database.positions == before
    assert "lots" in asked
    assert not {"history", "write"} & set(asked)


@virtual_time
async def test_other_books_stay_as_they_are() -> None:
    """Books are named; what has none is not among them."""
    desk = Desk()
    await desk.live()
    before = dict(desk.database.positions)
    desk.keep_by_fifo("EQ,FX")
    assert await desk.live() == {}
    assert desk.database.positions == before


@pytest.mark.parametrize("fault", [Fault.UNKNOWN_STORED, Fault.UNKNOWN_LOST])
@virtual_time
async def test_a_database_that_fails_meanwhile_is_asked_again(fault: Fault) -> None:
    """Whichever of the calls it is, and whether it was done or not."""
    desk = Desk()
    await desk.live()
    desk.keep_by_fifo("*")
    ledger, left = MemoryLedger(desk.database), ["write", "write", "lots", "history", "positions"]

    def faults(operation: str) -> Fault:
        if operation not in left:
            return Fault.NONE
        left.remove(operation)
        return fault

    ledger.faults = faults
    assert await desk.live(ledger) == {}
    assert left == []
    assert desk.numbers() == ("12", "7", "fifo")
    assert desk.lots() == [("1", "12")]


def forget_lots(desk: Desk) -> None:
    """Lose what is open."""
    desk.database.lots.clear()


def lose_a_number(desk: Desk) -> None:
    """Tear a hole into the lots."""
    lots = desk.database.lots[0, OPEN]
    last = max(lots)
    lots[7] = lots.pop(last).replace(f"\t{last}\t", "\t7\t", 1)


def change_a_price(desk: Desk) -> None:
    """Let a lot have cost more."""
    lots = desk.database.lots[0, OPEN]
    last = max(lots)
    lots[last] = lots[last].replace("\t14\t", "\t15\t")


@pytest.mark.parametrize("spoil", [forget_lots, lose_a_number, change_a_price])
@virtual_time
async def test_lots_that_do_not_add_up_stop_their_partition(spoil: Callable[[Desk], None]) -> None:
    """What to do is said; and what is said helps."""
    desk = Desk()
    desk.put(OPEN, "BUY", "14")
    desk.keep_by_fifo("*")
    await desk.live()
    assert desk.lots() == [("1", "12"), ("1", "14")]
    spoil(desk)
    stopped = await desk.live()
    assert stopped.keys() == {0}
    assert f"{OPEN}: the lots do not add up to the position" in stopped[0]
    assert "start once without its book in FIFO_BOOKS" in stopped[0]
    for books in (None, "*"):
        desk.keep_by_fifo(books)
        assert await desk.live() == {}
    assert desk.numbers() == ("26", "7", "fifo")
    assert desk.lots() == [("1", "12"), ("1", "14")]


class Pruned(MemoryLedger):
    """A ledger of which the trades are pruned."""

    async def history(self, partition: int, key: str) -> None:
        """Give nothing."""


@virtual_time
async def test_an_open_position_with_pruned_trades_keeps_its_method() -> None:
    """It cannot be folded anew; one that is flat needs not be."""
    desk = Desk()
    await desk.live()
    before = dict(desk.database.positions)
    desk.keep_by_fifo("*")
    stopped = await desk.live(Pruned(desk.database))
    assert stopped.keys() == {0}
    assert f"{OPEN} is open and kept by another method than fifo" in stopped[0]
    assert desk.numbers(FLAT) == ("0", "1", "fifo")
    assert desk.database.positions[0, OPEN] == before[0, OPEN]


@virtual_time
async def test_a_position_that_is_not_what_its_trades_come_to_is_not_folded() -> None:
    """Nobody's table is made to agree in silence."""
    desk = Desk()
    await desk.live()
    row = desk.database.trades[0, 3]
    row["price"] = "12.5"
    desk.keep_by_fifo("*")
    stopped = await desk.live()
    assert "is not what its trades come to" in stopped[0]
    assert desk.numbers() == ("11", "6", "average")
