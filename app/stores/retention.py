"""Old trades of the ledger are deleted, block by block; what they came to is carried forward."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from app.stores.database import IDLE_TIMEOUT_S, connected, explained
from app.stores.ledger_queries import SIGN
from app.stores.migrate import Connection

_BLOCK_OFFSETS: Final = 20_000
_PRUNABLE: Final = """
SELECT source_partition, min(source_offset) AS first, max(source_offset) AS last, count(*) AS trades
FROM trades WHERE executed_ns < $1 GROUP BY source_partition ORDER BY source_partition
"""
_LOCK: Final = "SELECT FROM source_partitions WHERE source_partition = $1 FOR UPDATE"
_PRUNE: Final = f"""
WITH gone AS (
    DELETE FROM trades t
    WHERE source_partition = $1 AND source_offset BETWEEN $2 AND $3 AND executed_ns < $4
        AND action = 'NEW'
        -- AMEND and CANCEL need the whole history of their trade: it stays.
        AND NOT EXISTS (
            SELECT FROM trade_versions v WHERE v.trade_id = t.trade_id AND v.version > 1
        )
    RETURNING source_partition, source_offset, trade_id, book, symbol, currency, price, fee,
        executed_ns, {SIGN} * quantity * multiplier AS exposure
), forgotten AS (
    DELETE FROM trade_versions v USING gone WHERE v.trade_id = gone.trade_id
        AND v.source_partition = gone.source_partition AND v.source_offset = gone.source_offset
), carried AS (
    INSERT INTO carried_forward AS c (source_partition, key, book, symbol, currency, trade_count,
        exposure, paid, fees, last_ns, last_offset, last_price)
    SELECT source_partition, key, book, symbol, currency, trade_count, exposure, paid, fees,
        last[1], last[2], last[3]
    FROM (
        SELECT source_partition, concat_ws('|', book, symbol) AS key, book, symbol, currency,
            count(*) AS trade_count, sum(exposure) AS exposure, sum(exposure * price) AS paid,
            sum(fee) AS fees, max(ARRAY[executed_ns, source_offset, price]::numeric[]) AS last
        FROM gone GROUP BY source_partition, book, symbol, currency
    ) AS sums
    ON CONFLICT (source_partition, key, currency) DO UPDATE SET
        trade_count = c.trade_count + excluded.trade_count,
        exposure = c.exposure + excluded.exposure,
        paid = c.paid + excluded.paid,
        fees = c.fees + excluded.fees,
        (last_ns, last_offset, last_price) = (
            SELECT n, o, p FROM (VALUES (c.last_ns, c.last_offset, c.last_price),
                (excluded.last_ns, excluded.last_offset, excluded.last_price)) AS of_two (n, o, p)
            ORDER BY n DESC, o DESC LIMIT 1
        )
)
SELECT count(*) FROM gone
"""  # noqa: S608 - names of our own


@dataclass(frozen=True, slots=True)
class Prunable:
    """Trades of a partition that are old enough, between two offsets of the log."""

    partition: int
    first: int
    last: int
    trades: int


class Pruner:
    """Deletes old trades; their sums are carried forward, and no position changes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def find(self, before_ns: int) -> list[Prunable]:
        """Give where trades stand that were executed before a time."""
        with explained():
            rows = await self._connection.fetch(_PRUNABLE, before_ns)
        return [Prunable(*row) for row in rows]

    async def prune(self, of: Prunable, before_ns: int) -> AsyncGenerator[int, None]:
        """Delete them block by block of the log, each in a transaction; give how many each time.

        Writes of the partition and a block wait for each other: a trade that is being changed would
        be deleted, or one that is being deleted changed.
        """
        for first in range(of.first, of.last + 1, _BLOCK_OFFSETS):
            last = min(first + _BLOCK_OFFSETS - 1, of.last)
            with explained():
                async with self._connection.transaction():
                    # By itself, so that what is deleted is judged after the wait.
                    await self._connection.execute(_LOCK, of.partition)
                    count = await self._connection.fetchval(
                        _PRUNE, of.partition, first, last, before_ns
                    )
            yield count


@asynccontextmanager
async def open_pruner(url: str) -> AsyncIterator[Pruner]:
    """Connect as a user that may delete trades; raises as `open_reader`."""
    session = {
        "application_name": "trade-stream-prune",
        "timezone": "UTC",
        "jit": "off",
        # Its lock keeps writers off, also where it is frozen.
        "idle_in_transaction_session_timeout": f"{IDLE_TIMEOUT_S:.0f}s",
    }
    async with connected(url, **session) as connection:
        yield Pruner(connection)
