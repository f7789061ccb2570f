"""By what a ledger recognises trades that are sent twice; it holds for all who write it.

With `full` the id of every trade is noted, and an index finds the trades of a position, by which a
change folds it again. With `window` neither is needed, and neither costs anything.
"""

from typing import Final

from app.config import IdentityScope
from app.stores.migrate import Connection

_SCOPE: Final = "SELECT scope FROM identity_scope"
_HAS_BEGUN: Final = "SELECT EXISTS (SELECT FROM source_partitions)"
_FENCE: Final = "UPDATE source_partitions SET owner = gen_random_uuid()"
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

    Whoever writes by the old one is fenced off: of a write that is under way, this waits for the
    end.

    Args:
        connection: Of a user that may change the tables.
        wanted: How it is to be kept.
        is_asked: Somebody asks for it; otherwise only a ledger that has not begun is changed.

    Returns:
        Whether it was kept by another one.
    """
    # Workers that start at one time take their turns.
    if await connection.fetchval(f"{_SCOPE} FOR UPDATE") == wanted:
        return False
    if not is_asked and await connection.fetchval(_HAS_BEGUN):
        return False
    await connection.execute(_FENCE)
    await connection.execute(_CHANGE[wanted])
    await connection.execute(_KEEP, wanted)
    return True
