"""PostgreSQL for all who ask it: connections within bounds, errors by reaction, databases made.

What the driver raises is explained here alone.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import asyncpg

from app.config import IdentityScope
from app.errors import LedgerError, TransportError
from app.stores.identity import keep_identity
from app.stores.migrate import Connection, migrate

CONNECT_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 2.0
_STATEMENT_TIMEOUT_S: Final = 60.0
"""Longest wait for one answer; the server gives up at the same time, so that nothing lingers."""
IDLE_TIMEOUT_S: Final = 15.0
"""A process that was frozen in a transaction keeps others from its partitions for so long."""
_CONNECTIONS: Final = 3
"""One writes, one is asked, one restores."""
_SESSION: Final = {
    "application_name": "trade-stream",
    "timezone": "UTC",
    "synchronous_commit": "on",
    "jit": "off",  # statements are short and many
    "statement_timeout": f"{_STATEMENT_TIMEOUT_S:.0f}s",
    "idle_in_transaction_session_timeout": f"{IDLE_TIMEOUT_S:.0f}s",
}

_TRANSIENT: Final = (
    OSError,  # and with it TimeoutError
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,  # shut down, restarted, terminated, timed out
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.TransactionRollbackError,  # deadlock
    asyncpg.LockNotAvailableError,
    asyncpg.InternalClientError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, until it is promoted
)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the driver raises into errors of ours; a bug stays what it is.

    Raises:
        TransportError: The database is away, or it may do next time what it would not now.
        LedgerError: Tables or rights are missing.
    """
    try:
        yield
    except _TRANSIENT as exc:
        raise TransportError(f"the ledger's database: {str(exc) or type(exc).__name__}") from exc
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as exc:
        raise LedgerError(f"{exc}: run `trade-stream db migrate`") from exc
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as exc:
        raise LedgerError(f"the ledger's database: {exc}: see DATABASE_URL") from exc
    except asyncpg.InsufficientPrivilegeError as exc:
        raise LedgerError(f"{exc}: grant it to the user of DATABASE_URL") from exc


@asynccontextmanager
async def connected(url: str, **session: str) -> AsyncIterator[Connection]:
    """Give a connection of one's own, closed in an orderly way, or cut.

    Args:
        url: Of the database.
        session: Settings of the server for it.

    Raises:
        LedgerError: There is no such database, or its user may not connect.
        TransportError: It is away. What is asked by the connection is not explained here.
    """
    with explained():
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, server_settings=session)
    try:
        yield connection
    finally:
        try:
            await connection.close(timeout=_CLOSE_TIMEOUT_S)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


async def migrate_database(
    url: str, identity: IdentityScope | None = None, *, is_asked: bool = False
) -> list[str]:
    """Bring a database to the newest version of the tables; raises as `explained` says.

    Args:
        url: Of the database.
        identity: How the ledger is to be kept, if it has not begun yet; `None` leaves it as it is.
        is_asked: Keep it so in any case.

    Returns:
        What was done, a line each.
    """
    with explained():
        async with connected(url) as connection:
            done = [f"took {step.name}" for step in await migrate(connection)]
            if identity is not None:
                async with connection.transaction():
                    if await keep_identity(connection, identity, is_asked=is_asked):
                        done.append(f"the ledger is kept with IDENTITY={identity} from now on")
            return done


async def recreate_database(server_url: str, name: str, *, template: str | None = None) -> None:
    """Drop a database, if it is there, and make it anew; raises as `explained` says.

    Args:
        server_url: Of another database of the server.
        name: Of the one to make.
        template: Of which it is to be a copy, and to which nobody is connected; empty without.
    """
    with explained():
        async with connected(server_url) as connection:
            ((quoted, of),) = await connection.fetch(
                "SELECT quote_ident($1), quote_ident($2)", name, template or "template1"
            )
            await connection.execute(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")
            await connection.execute(f"CREATE DATABASE {quoted} TEMPLATE {of}")


async def new_pool(url: str) -> asyncpg.Pool:
    """Connect to a database; what goes wrong comes as the driver raises it."""
    return await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=_CONNECTIONS,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=_STATEMENT_TIMEOUT_S,
        server_settings=_SESSION,
    )


async def close_pool(pool: asyncpg.Pool) -> None:
    """Close connections in an orderly way, or cut them."""
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await pool.close()
    except (TimeoutError, *_TRANSIENT):
        pool.terminate()
