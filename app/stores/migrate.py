"""Bring a database to the newest version of the ledger's tables, all or nothing."""

from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import Final

import asyncpg
import structlog

from app.errors import LedgerError

log = structlog.get_logger(__name__)

Connection = asyncpg.pool.PoolConnectionProxy | asyncpg.Connection
"""A connection, of a pool or not."""

_LOCK: Final = 0x7472616465  # any number that only we use
_HISTORY: Final = """
CREATE TABLE IF NOT EXISTS ledger_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_HAS_HISTORY: Final = "SELECT to_regclass('ledger_migrations') IS NOT NULL"
_APPLIED: Final = "SELECT number, name, checksum FROM ledger_migrations ORDER BY number"
_RECORD: Final = "INSERT INTO ledger_migrations (number, name, checksum) VALUES ($1, $2, $3)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: its number, from 1 on, its name and its SQL."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL."""
        return sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Give all steps in order."""
    folder = resources.files("app.stores") / "migrations"
    found = [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.number)


async def pending(connection: Connection) -> list[Migration]:
    """Give the steps that a database has not yet taken.

    Raises:
        LedgerError: It has taken other steps than ours: it belongs to a newer version, or to
            something else.
    """
    known = migrations()
    applied = await connection.fetch(_APPLIED) if await connection.fetchval(_HAS_HISTORY) else []
    if len(applied) > len(known):
        raise LedgerError(
            f"the database is at migration {applied[-1]['name']}, which this version does not know:"
            " it was migrated by a newer one. Use that one, or another DATABASE_URL"
        )
    for migration, row in zip(known, applied, strict=False):
        if (migration.number, migration.checksum) != (row["number"], row["checksum"]):
            raise LedgerError(
                f"migration {row['name']} of the database is not the one of this version: its text"
                " was changed after it was applied. Use another DATABASE_URL"
            )
    return known[len(applied) :]


async def migrate(connection: Connection) -> list[Migration]:
    """Take every step that is pending; several processes may try at once.

    Returns:
        The steps that were taken.

    Raises:
        LedgerError: As `pending`.
    """
    taken = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute(_HISTORY)
        for migration in await pending(connection):
            await connection.execute(migration.sql)
            await connection.execute(_RECORD, migration.number, migration.name, migration.checksum)
            log.info("ledger_migrated", migration=migration.name)
            taken.append(migration)
    return taken
