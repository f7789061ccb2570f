"""A ledger is kept by one identity: all who write it have to, and a person changes it."""

import asyncio

import pytest

from app.config import IdentityScope, Settings
from app.errors import LedgerError
from app.ledger_codec import read_fills
from app.ports import LedgerWrite
from app.stores.database import migrate_database
from app.stores.identity import keep_identity, kept_identity
from app.stores.migrate import migrate
from app.stores.postgres import open_ledger
from tests.contract.postgres import Database
from tests.ledger.filling import book, trade
from tests.ledger.test_commands import run

pytestmark = pytest.mark.integration

FULL, WINDOW = IdentityScope.FULL, IdentityScope.WINDOW
OLDER = """
DELETE FROM ledger_migrations WHERE number = 5;
UPDATE identity_scope SET scope = 'full';
CREATE INDEX IF NOT EXISTS trades_by_position ON trades (symbol, book)
"""
CANCEL = """
INSERT INTO trades SELECT (jsonb_populate_record(t, '{"source_offset": 9, "version": 2,
    "action": "CANCEL"}')).* FROM trades t WHERE source_offset = 0;
INSERT INTO trade_versions VALUES ('A', 2, 0, 9)
"""
TRADES = [trade("A", "BUY", "1", "1"), trade("B", "BUY", "2", "1"), trade("C", "SELL", "1", "1")]


async def open_once(database: Database, identity: IdentityScope | None) -> None:
    """Open the ledger as a worker does, or as a command that books nothing."""
    async with open_ledger(Settings.from_env({}), database.url, identity):
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
    await open_once(database, None)


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
@pytest.mark.parametrize("claims_again", [False, True])
async def test_who_still_writes_by_the_old_one_is_told(
    database: Database, old: IdentityScope, new: IdentityScope, *, claims_again: bool
) -> None:
    """At its next write, also after it has taken the partition over anew."""
    await database.keep(old)
    ledger = database.ledger(old)
    await book(ledger, TRADES)
    await database.keep(new)
    if claims_again:
        assert await ledger.claim(0) == 3
    with pytest.raises(LedgerError, match=f"kept with IDENTITY={new}"):
        await ledger.write({0: LedgerWrite(expected=3, next_offset=4)})


async def test_a_partition_that_is_claimed_meanwhile_has_to_wait(database: Database) -> None:
    """Its first write would not be among what is noted, and would note nothing itself."""
    await database.keep(WINDOW)
    ledger = database.ledger(WINDOW)
    async with database.pool.acquire() as connection, connection.transaction():
        assert await keep_identity(connection, FULL, is_asked=True)
        claiming = asyncio.ensure_future(ledger.claim(7))
        await until_one_waits(database)
    assert await claiming is None
    with pytest.raises(LedgerError, match="kept with IDENTITY=full"):
        await ledger.write({7: LedgerWrite(expected=None, next_offset=1)})


async def until_one_waits(database: Database) -> None:
    """Wait until somebody waits for a lock."""
    waits = """SELECT count(*) FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND datname = current_database()"""
    async with asyncio.timeout(30):
        while not await database.pool.fetchval(waits):
            pass


async def test_open_lots_cannot_be_kept_in_a_window(database: Database) -> None:
    """Which says what to do first; closed ones are no matter."""
    await book(database.ledger(), TRADES)
    await database.pool.execute("UPDATE positions SET method = 'fifo'")
    with pytest.raises(LedgerError, match="first in, first out"):
        await database.keep(WINDOW)
    assert await kept(database) is FULL
    await database.pool.execute("UPDATE positions SET quantity = 0")
    await database.keep(WINDOW)


async def test_a_trade_that_was_booked_twice_stands_twice_whatever_becomes_of_it(
    database: Database,
) -> None:
    """What changes it is meant for its first event, and says nothing about the other one."""
    await database.keep(WINDOW)
    await book(database.ledger(WINDOW), TRADES[:1])
    await book(database.ledger(WINDOW), TRADES[:1], first=1)
    await database.keep(FULL)
    places = "SELECT source_offset FROM fills ORDER BY 1"
    assert [row[0] for row in await database.pool.fetch(places)] == [0, 1]
    await database.pool.execute(CANCEL)
    assert [row[0] for row in await database.pool.fetch(places)] == [1]
    lines = await database.ledger().history(0, "AAPL")
    assert lines is not None
    assert [fill.offset for fill in read_fills(lines)] == [1]


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
    await until_one_waits(database)
    goes_on.set()
    assert await writing == {}
    await keeping
    assert await noted(database) == [("A", 0)]


@pytest.mark.parametrize("identity", [FULL, WINDOW])
async def test_a_ledger_of_an_older_version_says_how_it_was_kept(
    database: Database, identity: IdentityScope
) -> None:
    """By whether the ids of its trades are noted; its table may be left of a newer one."""
    await database.keep(identity)
    await book(database.ledger(identity), TRADES)
    async with database.pool.acquire() as connection:
        await connection.execute(OLDER)
        assert [step.number for step in await migrate(connection)] == [5]
    assert await kept(database) is identity


@pytest.mark.slow
async def test_db_migrate_changes_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line that says so, where IDENTITY is set; a second run has nothing to do."""
    await book(database.ledger(), TRADES)
    monkeypatch.setenv("IDENTITY", "window")
    outputs = [await asyncio.to_thread(run, database.url, "db", "migrate") for _ in range(2)]
    assert [output for output, _ in outputs] == [
        "the ledger is kept with IDENTITY=window from now on\n", "up to date\n",
    ]  # fmt: skip
    assert await kept(database) is WINDOW
    monkeypatch.delenv("IDENTITY")
    assert (await asyncio.to_thread(run, database.url, "db", "migrate"))[0] == "up to date\n"
    assert await kept(database) is WINDOW
