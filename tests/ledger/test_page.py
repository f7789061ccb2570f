"""docs/ledger.md says what is: its SQL is run, its answers compared, its roles tried."""

import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.config import Settings
from app.embedded.postgres import EmbeddedPostgres
from app.errors import LedgerError
from app.models import Lot, LotChange, Refusal
from app.money import ONE_E8
from app.ports import LedgerWrite
from app.stores.database import migrate_database
from app.stores.ledger_queries import Filters, open_reader
from app.stores.postgres import open_ledger
from app.stores.retention import open_pruner
from tests.contract.postgres import Database, MakeDatabase
from tests.ledger.filling import book, trade

pytestmark = pytest.mark.integration

PAGE: Final = (Path(__file__).parents[2] / "docs/ledger.md").read_text()
EXAMPLES: Final = re.findall(r"```sql\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
ROLES: Final = ("migrator", "writer", "reader")


def block(kind: str) -> str:
    """Give the only block of a kind."""
    (text,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


@pytest.fixture
async def filled(database: Database) -> Database:
    """Give a ledger with the trades of the page."""
    await book(database.ledger(), [line.encode() for line in block("json").splitlines()])
    return database


def answer(postgres: EmbeddedPostgres, url: str, question: str) -> str:
    """Ask PostgreSQL's own client, as a reader would."""
    done = subprocess.run(
        [postgres.program("psql"), "-X", "-q", "-P", "footer=off", url, "-c", question],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PGTZ": "UTC", "PAGER": ""},
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


async def test_every_example_gives_what_the_page_shows(
    filled: Database, ledger_server: EmbeddedPostgres
) -> None:
    """And every block of SQL is an example with an answer."""
    assert len(EXAMPLES) == PAGE.count("```sql\n") == 9
    for question, shown in EXAMPLES:
        assert answer(ledger_server, filled.url, question) == shown.rstrip(), question


async def test_the_page_names_every_table_and_view(filled: Database) -> None:
    """As the database has them."""
    rows = await filled.pool.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'v')"
    )
    assert {f"`{row[0]}`" for row in rows} <= set(re.findall(r"`[a-z_]+`", PAGE))


# -- roles


@pytest.fixture
async def roles(new_ledger: MakeDatabase) -> AsyncIterator[dict[str, str]]:
    """Give the URLs of the three users of a database that was made by the page."""
    async with new_ledger() as database:
        await database.pool.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        parts = urlsplit(database.url)
        urls = {
            role: parts._replace(
                netloc=f"trade_stream_{role}@{parts.netloc.split('@')[1]}"
            ).geturl()
            for role in ROLES
        }
        try:
            await database.pool.execute(block("sql roles"))
            await migrate_database(urls["migrator"])
            migrator = await asyncpg.connect(urls["migrator"])
            await migrator.execute(block("sql grants"))
            await migrator.close()
            yield urls
        finally:
            for role in ROLES:
                await database.pool.execute(f"DROP OWNED BY trade_stream_{role} CASCADE")
                await database.pool.execute(f"DROP ROLE trade_stream_{role}")


SETTINGS: Final = Settings.from_env({})


async def prune(url: str) -> int:
    """Delete every trade; give how many there were."""
    async with open_pruner(url) as pruner:
        (found,) = await pruner.find(2**62)
        return sum([count async for count in pruner.prune(found, 2**62)])


async def test_the_writer_writes_and_no_more(roles: dict[str, str]) -> None:
    """All that a consumer does; it deletes nothing but what was parked, and changes no trade."""
    async with open_ledger(SETTINGS, roles["writer"]) as ledger:
        await book(ledger, [trade("A", "BUY", "1", "1"), b"useless"])
        await book(ledger, [trade("B", "SELL", "1", "2")], first=2)
        await book(ledger, [trade("C", "SELL", "1", "2", action="CANCEL")], first=3)
        refusal = Refusal(-1, "orphan-lifecycle", "it did not come", "business", "E")
        for more in ({"refused": {3: refusal}}, {"released": [3]}):
            assert await ledger.write({0: LedgerWrite(4, 4, **more)}) == {}
        assert await ledger.parked(0) == []
        assert (await ledger.find(["A", "B"])).keys() == {"A", "B"}
        assert len(await ledger.positions(0)) == 1
        for offset, lots in enumerate([[(0, Lot(ONE_E8, ONE_E8, 0, 1, 0))], []], start=4):
            write = LedgerWrite(
                offset,
                offset + 1,
                positions=await ledger.positions(0),
                lots={"AAPL": LotChange(0, range(0), lots)},
            )
            assert await ledger.write({0: write}) == {}
            assert len((await ledger.lots(0))["AAPL"].lots) == len(lots)
    connection = await asyncpg.connect(roles["writer"])
    try:
        for statement in (
            "DELETE FROM trades",
            "TRUNCATE trades",
            "UPDATE trades SET price = 1",
            "DELETE FROM positions",
            "DELETE FROM trade_versions",
            "DELETE FROM dead_letters",
            "UPDATE lots SET price = 1",
            "UPDATE ledger SET topic = 'x'",
            "INSERT INTO ledger_migrations VALUES (99, 'x', 'x')",
            "DROP TABLE trades",
            "ALTER TABLE trades ADD COLUMN x integer",
            "CREATE TABLE x (y integer)",
            "CREATE INDEX ON trades (symbol)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
    with pytest.raises(LedgerError, match="grant it to the user"):
        await prune(roles["writer"])


async def test_the_reader_reads_and_no_more(roles: dict[str, str]) -> None:
    """Every question of ours; it cannot write, whatever its session says."""
    async with open_ledger(SETTINGS, roles["writer"]) as ledger:
        await book(ledger, [trade("A", "BUY", "1", "1")])
    async with open_reader(roles["reader"]) as reader:
        assert await reader.owner() is not None
        rows: list[Any] = [row async for piece in reader.trades(Filters()) for row in piece]
        rows += [row async for piece in reader.pnl(Filters(), "book") for row in piece]
        assert len(rows) == 2
    connection = await asyncpg.connect(roles["reader"])
    try:
        for table in (
            *("trades", "positions", "trade_versions", "source_partitions", "dead_letters"),
            *("parked_events", "lots"),
        ):
            for start, end in (("INSERT INTO", "DEFAULT VALUES"), ("DELETE FROM", "")):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"{start} {table} {end}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE x (y integer)")
        assert await connection.fetchval("SELECT count(*) FROM position_list") == 1
    finally:
        await connection.close()
    with pytest.raises(LedgerError, match="grant it to the user"):
        async with open_ledger(SETTINGS, roles["reader"]):
            pass


async def test_the_migrator_prunes(roles: dict[str, str]) -> None:
    """The tables are its own."""
    async with open_ledger(SETTINGS, roles["writer"]) as ledger:
        await book(ledger, [trade("A", "BUY", "1", "1")])
        assert await prune(roles["migrator"]) == 1
        lost = await ledger.write({0: LedgerWrite(expected=1, next_offset=2)})
        assert not lost


def test_trades_of_the_page_are_json() -> None:
    """Each line by itself."""
    assert len([json.loads(line) for line in block("json").splitlines()]) == 8
