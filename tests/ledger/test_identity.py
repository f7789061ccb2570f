"""A ledger is kept by one identity: all who write it have to, and a person changes it."""

import asyncio

import pytest

from app.config import IdentityScope, Settings
from app.errors import LedgerError
from app.ports import LedgerWrite
from app.stores.database import migrate_database
from app.stores.identity import kept_identity
from app.stores.migrate import migrate
from app.stores.postgres import open_ledger
from tests.contract.postgres import Database
from tests.ledger.filling import book, trade
from tests.ledger.test_commands import run

pytestmark = pytest.mark.integration

FULL, WINDOW = IdentityScope.FULL, IdentityScope.WINDOW
TRADES = [trade("A", "BUY", "1", "1"), trade("B", "BUY", "2", "1"), trade("C", "SELL", "1", "1")]


def settings(identity: IdentityScope) -> Settings:
    """Give the settings of a worker."""
    return Settings.from_env({"IDENTITY": identity.value})


async def open_once(database: Database, identity: IdentityScope) -> None:
    """Open the ledger as a worker does."""
    async with open_ledger(settings(identity), database.url):
        pass


async def kept(database: Database) -> IdentityScope:
    """Give by which identity the ledger is kept, and whether its index is there for it."""
    async with database.pool.acquire() as connection:
        scope = await kept_identity(connection)
        index = await connection.fetchval("SELECT to_regclass('trades_by_position') IS NOT NULL")
    assert index == (scope is FULL)
    return scope


async def noted(database: Database) -> list[tuple[str, int]]:
    """Give the ids that are noted, with their offsets."""
    rows = await database.pool.fetch(
        "SELECT trade_id, source_offset FROM trade_versions ORDER BY 1"
    )
    return [tuple(row) for row in rows]


async def test_a_worker_of_another_identity_is_refused(database: Database) -> None:
    """At its start, with both ways out."""
    await open_once(database, FULL)
    with pytest.raises(LedgerError, match="IDENTITY=full, not window: set it so; or stop all cons"):
        await open_once(database, WINDOW)
    await migrate_database(database.url, WINDOW, is_asked=True)
    await open_once(database, WINDOW)
    with pytest.raises(LedgerError, match="`trade-stream db migrate` with IDENTITY=full"):
        await open_once(database, FULL)


async def test_a_ledger_that_has_not_begun_takes_the_first_identity(database: Database) -> None:
    """And keeps it from then on, unless somebody asks for the other one."""
    assert await migrate_database(database.url, WINDOW) == [
        "the ledger is kept with IDENTITY=window from now on"
    ]
    assert await kept(database) is WINDOW
    assert await migrate_database(database.url, WINDOW) == []
    await book(database.ledger(WINDOW), TRADES)
    assert await migrate_database(database.url, FULL) == []
    assert await migrate_database(database.url) == []
    assert await kept(database) is WINDOW


async def test_several_processes_may_ask_at_once(database: Database) -> None:
    """Workers of a group start together."""
    done = await asyncio.gather(*(migrate_database(database.url, WINDOW) for _ in range(8)))
    assert sorted(map(len, done)) == [0] * 7 + [1]
    assert await kept(database) is WINDOW


async def test_what_was_booked_without_ids_is_known_afterwards(database: Database) -> None:
    """Each id by its first event: one that was booked twice stands twice, as it was booked."""
    await database.keep(WINDOW)
    await book(database.ledger(WINDOW), TRADES)
    await book(database.ledger(WINDOW), TRADES[:1], first=3)
    assert await noted(database) == []
    await database.keep(FULL)
    assert await kept(database) is FULL
    assert await noted(database) == [("A", 0), ("B", 1), ("C", 2)]
    ledger = database.ledger()
    assert (await ledger.find(["A", "B", "Z"])).keys() == {"A", "B"}
    await book(ledger, [TRADES[1], trade("D", "BUY", "1", "1")], first=4)
    assert await noted(database) == [("A", 0), ("B", 1), ("C", 2), ("D", 5)]
    lines = await ledger.history(0, "AAPL")
    assert lines is not None
    assert len(lines) == 5


async def test_there_and_back_notes_what_came_between(database: Database) -> None:
    """Ids that were noted before stay."""
    await book(database.ledger(), TRADES[:1])
    await database.keep(WINDOW)
    await book(database.ledger(WINDOW), TRADES[1:], first=1)
    await database.keep(FULL)
    assert await noted(database) == [("A", 0), ("B", 1), ("C", 2)]
    assert (await database.ledger().find(["A", "B", "C"])).keys() == {"A", "B", "C"}


@pytest.mark.parametrize(("old", "new"), [(FULL, WINDOW), (WINDOW, FULL)])
async def test_who_still_writes_by_the_old_one_is_fenced_off(
    database: Database, old: IdentityScope, new: IdentityScope
) -> None:
    """Its next write is refused as that of a former owner, and after that it is told why."""
    await database.keep(old)
    ledger = database.ledger(old)
    await book(ledger, TRADES)
    held = await ledger.claim(0)
    await database.keep(new)
    with pytest.raises(LedgerError, match=f"kept with IDENTITY={new}"):
        await ledger.write({0: LedgerWrite(expected=held, next_offset=4)})
    assert await database.ledger(new).claim(0) == 3


async def test_a_write_that_is_under_way_is_waited_for(database: Database) -> None:
    """Its trades are among those that are noted."""
    await database.keep(WINDOW)
    ledger, is_held, goes_on = database.ledger(WINDOW), asyncio.Event(), asyncio.Event()
    expected = await ledger.claim(0)

    async def hold(_: object) -> None:
        is_held.set()
        await goes_on.wait()

    line = "0\t0\tA\t\tAAPL\tBUY\t1\t1\tUSD\t1772445600000000000"
    write = LedgerWrite(expected=expected, next_offset=1, plain_trades=[line])
    writing = asyncio.ensure_future(ledger.write({0: write}, hold))
    await is_held.wait()
    keeping = asyncio.ensure_future(database.keep(FULL))
    waits = """SELECT count(*) FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND datname = current_database()"""
    async with asyncio.timeout(30):
        while not await database.pool.fetchval(waits):
            pass
    goes_on.set()
    assert await writing == {}
    await keeping
    assert await noted(database) == [("A", 0)]


@pytest.mark.parametrize("identity", [FULL, WINDOW])
async def test_a_ledger_of_an_older_version_says_how_it_was_kept(
    database: Database, identity: IdentityScope
) -> None:
    """By whether the ids of its trades are noted."""
    await database.keep(identity)
    await book(database.ledger(identity), TRADES)
    async with database.pool.acquire() as connection:
        await connection.execute(
            "DROP TABLE identity_scope; DELETE FROM ledger_migrations WHERE number = 5"
        )
        assert [step.number for step in await migrate(connection)] == [5]
    assert await kept(database) is identity


@pytest.mark.slow
async def test_db_migrate_changes_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line that says so; a second run has nothing to do."""
    await book(database.ledger(), TRADES)
    monkeypatch.setenv("IDENTITY", "window")
    outputs = [await asyncio.to_thread(run, database.url, "db", "migrate") for _ in range(2)]
    assert [output for output, _ in outputs] == [
        "the ledger is kept with IDENTITY=window from now on\n", "up to date\n",
    ]  # fmt: skip
    assert await kept(database) is WINDOW
