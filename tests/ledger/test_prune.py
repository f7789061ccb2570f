"""Old trades are deleted: positions stay, sums are carried forward, nothing else is forgotten."""

import asyncio
import json
from collections.abc import Collection
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from app.ledger_codec import LedgerRows
from app.models import Fate
from app.pnl.daily import Day, explain_day
from app.ports import LedgerWrite
from app.stores import postgres
from app.stores.database import IDLE_TIMEOUT_S
from app.stores.ledger_queries import Filters, open_reader
from app.stores.migrate import Connection
from app.stores.retention import open_pruner
from app.timestamps import parse_timestamp
from app.validation import check_event
from tests.contract.postgres import Database
from tests.contract.test_ledgers import trade_event
from tests.ledger.filling import book, trade
from tests.ledger.test_identity import until_one_waits
from tests.memory_world import DEAD_LETTERS, TRADES, World, symbols_of, until

pytestmark = pytest.mark.integration

MARCH_2: int = parse_timestamp("2026-03-02T00:00:00Z")[0]


def on(day: int, trade_id: str, side: str, quantity: str, price: str, **more: Any) -> Any:
    """Give a trade of a day in March."""
    stamp = f"2026-03-{day:02}T12:00:00.00000000{len(trade_id)}Z"
    return trade(trade_id, side, quantity, price, timestamp=stamp, **more)


HISTORY = [
    on(1, "A", "BUY", "100", "10.5", fees=[{"amount": "1.25"}]),
    on(1, "BB", "SELL", "30", "11", contract_multiplier="1"),
    on(2, "C", "BUY", "10", "12", fees=[{"amount": "-0.5"}]),
    on(1, "LATE", "SELL", "5", "9"),
    on(3, "D", "SELL", "50", "13"),
    on(1, "E", "BUY", "7", "3", symbol="OLD", book="B|", currency="EUR"),
]
HISTORY[5]["book"] = "B"


async def day_of(database: Database, day: int) -> dict[str, Any]:
    """Explain a day of March, by key."""
    end = date(2026, 3, day)
    asked = Day(end - timedelta(days=1), end)
    async with open_reader(database.url) as reader:
        rows = [row async for piece in reader.day(Filters(), asked) for row in piece]
    return {f"{row.book}|{row.symbol}": explain_day(row, asked) for row in rows}


async def test_positions_stay_and_only_old_trades_go(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By execution time, block by block; and a second run has nothing to do."""
    monkeypatch.setattr("app.stores.retention._BLOCK_OFFSETS", 2)
    await book(database.ledger(), HISTORY)
    positions = await database.ledger().positions(0)
    assert await database.prune(MARCH_2) == 4
    assert [row[2] for row in await database.trades()] == ["C", "D"]
    assert await database.ledger().positions(0) == positions
    assert await database.prune(MARCH_2) == 0
    ids = await database.pool.fetch("SELECT trade_id FROM trade_versions ORDER BY 1")
    assert [row[0] for row in ids] == ["C", "D"]


async def test_what_they_came_to_is_carried_forward(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, over any number of blocks and runs, with the price of the last of them."""
    monkeypatch.setattr("app.stores.retention._BLOCK_OFFSETS", 1)
    await book(database.ledger(), HISTORY)
    await database.prune(MARCH_2)
    rows = {row["key"]: row for row in await database.pool.fetch("SELECT * FROM carried_forward")}
    assert rows.keys() == {"AAPL", "B|OLD"}
    apple = rows["AAPL"]
    assert (apple["trade_count"], apple["exposure"], apple["fees"]) == (3, 65, Decimal("1.25"))
    assert apple["paid"] == Decimal(1050) - 330 - 45
    assert (apple["last_offset"], apple["last_price"]) == (3, 9)
    await database.prune(MARCH_2 + 86_400 * 10**9)
    (apple,) = await database.pool.fetch("SELECT * FROM carried_forward WHERE key = 'AAPL'")
    assert (apple["trade_count"], apple["exposure"]) == (4, 75)
    assert (apple["last_offset"], apple["last_price"]) == (2, 12)


async def test_days_after_it_are_explained_as_before(database: Database) -> None:
    """And of a day whose trades are gone nothing is said rather than something wrong."""
    await book(database.ledger(), HISTORY)
    first, second, third = [await day_of(database, day) for day in (1, 2, 3)]
    await database.prune(MARCH_2)
    assert (await day_of(database, 2), await day_of(database, 3)) == (second, third)
    assert first["None|AAPL"] is not None
    assert (await day_of(database, 1))["None|AAPL"] is None


async def test_what_needs_every_fill_knows_of_those_that_are_gone(database: Database) -> None:
    """A position says so whether or not it has others left; also where the end is before them."""
    await book(database.ledger(), HISTORY)
    async with open_reader(database.url) as reader:
        before = [one async for one in reader.fills(Filters())]
    assert [(one.book, one.symbol, one.is_pruned) for one in before] == [
        (None, "AAPL", False), ("B", "OLD", False),
    ]  # fmt: skip
    assert [fill.trade_id for fill in before[0].fills] == ["A", "BB", "LATE", "C", "D"]
    await database.prune(MARCH_2)
    async with open_reader(database.url) as reader:
        found = [one async for one in reader.fills(Filters())]
        early = [one async for one in reader.fills(Filters(symbol="AAPL"), until_ns=MARCH_2)]
    assert [([fill.trade_id for fill in one.fills], one.is_pruned) for one in found] == [
        (["C", "D"], True), ([], True),
    ]  # fmt: skip
    assert [(one.fills, one.is_pruned) for one in early] == [([], True)]


async def test_a_trade_that_is_gone_is_a_new_one(database: Database) -> None:
    """Its id is forgotten with it; those that stay are known."""
    await book(database.ledger(), HISTORY)
    await database.prune(MARCH_2)
    ledger = database.ledger()
    assert (await ledger.find(["A", "C"])).keys() == {"C"}
    await book(ledger, [on(4, "A", "BUY", "1", "1")], first=6)
    assert (await ledger.find(["A"])).keys() == {"A"}


async def test_a_trade_with_a_later_event_stays_whole(database: Database) -> None:
    """An amended trade needs its history, whatever its age."""
    await book(database.ledger(), HISTORY)
    await database.pool.execute(
        """
        INSERT INTO trades SELECT (jsonb_populate_record(t, '{"source_offset": 100, "version": 2,
            "action": "AMEND"}')).* FROM trades t WHERE trade_id = 'A';
        INSERT INTO trade_versions VALUES ('A', 2, 0, 100)
        """
    )
    assert (await day_of(database, 2))["None|AAPL"] is not None
    assert await database.prune(MARCH_2) == 3
    assert [row[2] for row in await database.trades()] == ["A", "C", "D", "A"]


@pytest.mark.parametrize("action", ["AMEND", "CANCEL"])
async def test_a_change_of_a_trade_that_is_gone_changes_nothing(
    database: Database, action: str
) -> None:
    """Also where a worker still remembers the trade and the past of its position: it waits."""
    (symbol,) = symbols_of(0, 1)
    world = World(dedupe_window=5_000)
    worker = world.worker(database.ledger())
    await worker.start()

    def publish(*events: dict[str, Any]) -> None:
        for event in events:
            body = json.dumps(event | {"symbol": symbol}).encode()
            world.broker.append(TRADES, body, key=symbol.encode(), partition=0)

    later = {"action": action, "version": 2}
    kept = on(3, "KEPT", "BUY", "5", "10")
    publish(on(1, "OLD", "BUY", "100", "10"), kept)
    publish({**kept, "price": "11", "action": "AMEND", "version": 2})  # it reads the past for that
    await until(lambda: world.committed.get(0) == 3)
    await database.prune(MARCH_2)
    before = await day_of(database, 3)
    publish(on(1, "OLD", "BUY", "90", "10") | later)
    await until(lambda: world.committed.get(0) == 4)
    stats = await worker.finish()
    assert stats.fates[Fate.BOOKED] == 3
    assert await database.pool.fetchval("SELECT trade_id FROM parked_events") == "OLD"
    assert [row[2] for row in await database.trades()] == ["KEPT", "KEPT"]
    assert await day_of(database, 3) == before
    assert not world.broker.records(DEAD_LETTERS)


async def test_a_change_that_is_under_way_is_waited_for(database: Database) -> None:
    """Then the trade has a later event, and stays."""
    await book(database.ledger(), HISTORY)
    ledger, is_held, goes_on = database.ledger(), asyncio.Event(), asyncio.Event()

    async def hold(_: Collection[int]) -> None:
        is_held.set()
        await goes_on.wait()

    rows, event = LedgerRows(0, "USD"), trade_event("A", action="AMEND", version=2)
    rows.add(6, event, check_event(event), ())
    expected = await ledger.claim(0)
    write = LedgerWrite(expected=expected, next_offset=7, trades=rows.trades, changed=rows.changed)
    writing = asyncio.ensure_future(ledger.write({0: write}, hold))
    await is_held.wait()
    pruning = asyncio.ensure_future(database.prune(MARCH_2))
    await until_one_waits(database)
    goes_on.set()
    assert await writing == {}
    assert await pruning == 3
    assert [row[2] for row in await database.trades()] == ["A", "C", "D", "A"]


async def test_a_past_that_is_pruned_while_it_is_read_is_none(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it would make another position."""
    await book(database.ledger(), HISTORY)
    copied = postgres._copied

    async def copied_after(connection: Connection, query: str, *values: object) -> list[str]:
        await database.prune(MARCH_2)
        return await copied(connection, query, *values)

    ledger = database.ledger()
    assert await ledger.history(0, "AAPL") is not None
    monkeypatch.setattr(postgres, "_copied", copied_after)
    assert await ledger.history(0, "AAPL") is None


async def test_a_prune_that_is_frozen_gives_its_lock_back(database: Database) -> None:
    """The server ends it, as it ends a frozen writer."""
    async with open_pruner(database.url) as pruner:
        bound = await pruner._connection.fetchval("SHOW idle_in_transaction_session_timeout")
    assert bound == f"{IDLE_TIMEOUT_S:.0f}s"


async def test_a_writer_goes_on_meanwhile(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a block at most, and what is booked meanwhile is counted right."""
    monkeypatch.setattr("app.stores.retention._BLOCK_OFFSETS", 3)
    await book(database.ledger(), [on(1, f"T{n}", "BUY", "1", "1") for n in range(60)])

    async def write() -> None:
        for n in range(60, 80):
            await book(database.ledger(), [on(3, f"T{n}", "BUY", "1", "1")], first=n)

    deleted, _ = await asyncio.gather(database.prune(MARCH_2), write())
    assert deleted == 60
    assert len(await database.trades()) == 20
    (position,) = await database.ledger().positions(0)
    carried = await database.pool.fetchval("SELECT trade_count FROM carried_forward")
    assert position.trade_count == carried + 20
