"""By what a ledger recognises trades that are sent twice; it holds for all who write it.

With `full` the id of every trade is noted, and an index finds the trades of a position, by which a
change folds it again. With `window` neither is needed, and neither costs anything.
"""

from typing import Final

from app.config import IdentityScope
from app.errors import LedgerError
from app.stores.migrate import Connection

_SCOPE: Final = "SELECT scope FROM identity_scope"
_HAS_BEGUN: Final = "SELECT EXISTS (SELECT FROM source_partitions)"
# A write holds rows of it to its end, and looks at the scope with its first statement.
_FENCE: Final = "LOCK TABLE source_partitions IN EXCLUSIVE MODE"
_HAS_LOTS: Final = "SELECT EXISTS (SELECT FROM positions WHERE method = 'fifo' AND quantity <> 0)"
_KEEP: Final = "UPDATE identity_scope SET scope = $1"
_CHANGE: Final = {
    # Of an id that was booked twice the first one is noted, as by a backfill.
    IdentityScope.FULL: """
        INSERT INTO trade_versions (trade_id, version, source_partition, source_offset)
        SELECT DISTINCT ON (trade_id, version) trade_id, version, source_partition, source_offset
        FROM trades ORDER BY trade_id, version, source_partition, source_offset
        ON CONFLICT DO NOTHING;
        CREATE INDEX IF NOT EXISTS trades_by_position ON trades (symbol, book)
    """,
    IdentityScope.WINDOW: "DROP INDEX IF EXISTS trades_by_position",
}


async def kept_identity(connection: Connection) -> IdentityScope:
    """Give the identity by which a ledger is kept."""
    return IdentityScope(await connection.fetchval(_SCOPE))


async def keep_identity(connection: Connection, wanted: IdentityScope, *, is_asked: bool) -> bool:
    """Let a ledger be kept by another identity from now on; in a transaction of the caller.

    Writes that are under way are waited for, and those that come wait for the end of this: they
    find what has changed.

    Args:
        connection: Of a user that may change the tables.
        wanted: How it is to be kept.
        is_asked: Somebody asks for it; otherwise only a ledger that has not begun is changed.

    Returns:
        Whether it was kept by another one.

    Raises:
        LedgerError: It has positions that could not be kept as they are.
    """
    if await kept_identity(connection) is wanted:
        return False
    await connection.execute(_FENCE)
    if await kept_identity(connection) is wanted:  # another process was faster
        return False
    if not is_asked and await connection.fetchval(_HAS_BEGUN):
        return False
    if wanted is IdentityScope.WINDOW and await connection.fetchval(_HAS_LOTS):
        raise LedgerError(
            "positions are open that are kept first in, first out, which needs IDENTITY=full: let a"
            " consumer take over every partition once without FIFO_BOOKS"
        )
    await connection.execute(_CHANGE[wanted])
    await connection.execute(_KEEP, wanted)
    return True
