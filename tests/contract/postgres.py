"""A real PostgreSQL with a database for each test."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from app.config import IdentityScope
from app.stores.database import migrate_database, new_pool
from app.stores.migrate import migrate
from app.stores.postgres import PostgresLedger
from app.stores.retention import open_pruner

_names = itertools.count()


class Database:
    """One database with the ledger's tables."""

    def __init__(self, url: str, pool: asyncpg.Pool) -> None:
        self.url = url
        self.pool = pool

    def ledger(self, identity: IdentityScope = IdentityScope.FULL) -> PostgresLedger:
        """Give one more process's way to it."""
        return PostgresLedger(self.pool, identity)

    async def keep(self, identity: IdentityScope) -> None:
        """Let it be kept by another identity."""
        await migrate_database(self.url, identity, is_asked=True)

    async def trades(self) -> list[tuple[int, int, str]]:
        """Give partition, offset and id of every trade, sorted."""
        rows = await self.pool.fetch(
            "SELECT source_partition, source_offset, trade_id FROM trades ORDER BY 1, 2"
        )
        return [tuple(row) for row in rows]

    async def dead_letters(self) -> list[tuple[int, int, str]]:
        """Give partition, offset and reason of every dead letter, sorted."""
        rows = await self.pool.fetch(
            "SELECT source_partition, source_offset, reason FROM dead_letters ORDER BY 1, 2"
        )
        return [tuple(row) for row in rows]

    async def prune(self, before_ns: int) -> int:
        """Delete trades that were executed before a time; give how many."""
        count = 0
        async with open_pruner(self.url) as pruner:
            for of in await pruner.find(before_ns):
                async for deleted in pruner.prune(of, before_ns):
                    count += deleted
        return count

    async def lots(self) -> int:
        """Count the lots of all positions."""
        count: int = await self.pool.fetchval("SELECT count(*) FROM lots")
        return count


MakeDatabase = Callable[[], AbstractAsyncContextManager[Database]]


def maker_of_databases(server_url: str) -> MakeDatabase:
    """Give what makes a database on a server, and drops it at the end."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Database]:
        name = f"ledger_{next(_names)}"
        admin = await asyncpg.connect(server_url)
        await admin.execute(f"CREATE DATABASE {name}")
        parts = urlsplit(server_url)
        url = parts._replace(path=f"/{name}").geturl()
        try:
            pool = await new_pool(url)
            async with pool:
                async with pool.acquire() as connection:
                    await migrate(connection)
                yield Database(url, pool)
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await admin.close()

    return make
