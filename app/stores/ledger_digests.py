"""What the ledger holds, as digests and texts that another database can make of its own rows."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from app.stores.database import connected, explained
from app.stores.migrate import Connection

_SESSION: Final = {
    "application_name": "trade-stream-reconcile",
    "timezone": "UTC",
    "default_transaction_read_only": "on",
    "jit": "off",
}
# A change is booked with the time of its trade: its own is in the topic and in the copy alone.
_TEXT: Final = r"""concat_ws(E'\t', source_partition, source_offset, trade_id, version, action,
 coalesce(book, ''), symbol, side, trim_scale(price), trim_scale(quantity), trim_scale(multiplier),
 trim_scale(fee), currency, CASE action WHEN 'NEW' THEN executed_ns::text ELSE '' END)"""
_HASH: Final = f"('x' || left(md5({_TEXT}), 16))::bit(64)::bigint"
_PLACE: Final = "source_partition = $1 AND source_offset >= $2 AND source_offset < $3"
_BEGINS: Final = """
SELECT source_partition, next_offset, least(
    (SELECT min(source_offset) FROM trades t WHERE t.source_partition = p.source_partition),
    (SELECT min(source_offset) FROM dead_letters d WHERE d.source_partition = p.source_partition),
    (SELECT min(source_offset) FROM parked_events e WHERE e.source_partition = p.source_partition))
FROM source_partitions p WHERE next_offset IS NOT NULL
"""
_DIGESTS: Final = f"""
SELECT source_offset / $4::bigint, count(*), sum({_HASH}) FROM trades WHERE {_PLACE} GROUP BY 1
"""  # noqa: S608 - names of our own
_TEXTS: Final = f"SELECT source_offset, {_TEXT} FROM trades WHERE {_PLACE}"  # noqa: S608 - likewise
_GAPS: Final = f"""
SELECT source_offset + 1, next FROM (
    SELECT source_offset, lead(source_offset, 1, $3::bigint) OVER (ORDER BY source_offset) AS next
    FROM (SELECT $2::bigint - 1 AS source_offset
          UNION ALL SELECT source_offset FROM trades WHERE {_PLACE}) places
) pairs WHERE next > source_offset + 1 ORDER BY 1
"""  # noqa: S608 - likewise
# By the keys of both tables: nothing finds a trade by its id where no id is noted.
_NOTED: Final = """
SELECT DISTINCT trade_id FROM trade_versions JOIN trades USING (
    trade_id, version, source_partition, source_offset
) WHERE trade_id = ANY($1::text[])
"""
_BOOKED: Final = """
SELECT source_partition, source_offset FROM trades
JOIN unnest($1::integer[], $2::bigint[]) AS asked (source_partition, source_offset)
USING (source_partition, source_offset)
"""
_PRUNED: Final = """
SELECT key, max(last_ns) FROM carried_forward WHERE key = ANY($1::text[]) GROUP BY key
"""
_PARKED: Final = f"SELECT source_offset FROM parked_events WHERE {_PLACE}"  # noqa: S608 - likewise
_LETTERS: Final = f"SELECT source_offset, reason, kind FROM dead_letters WHERE {_PLACE}"  # noqa: S608 - likewise

Digest = tuple[int, int]
Place = tuple[int, int]
"""Partition and offset."""


class LedgerDigests:
    """Reads the ledger; made by `open_digests`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[None]:
        """Let everything that is asked within be of one moment.

        Raises:
            TransportError: The database is away.
        """
        with explained():
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                yield

    async def ranges(self) -> dict[int, tuple[int, int]]:
        """Give, by partition, the first offset that is in the ledger and its next offset."""
        rows = await self._fetch(_BEGINS)
        return {number: (end if first is None else first, end) for number, end, first in rows}

    async def digests(
        self, partition: int, start: int, end: int, *, size: int
    ) -> dict[int, Digest]:
        """Give the digest of each range of `size` offsets that holds booked trades."""
        rows = await self._fetch(_DIGESTS, partition, start, end, size)
        return {number: (count, int(total) % 2**64) for number, count, total in rows}

    async def texts(self, partition: int, start: int, end: int) -> dict[int, str]:
        """Give the text of each booked trade, by offset."""
        return dict(await self._fetch(_TEXTS, partition, start, end))

    async def gaps(self, partition: int, start: int, end: int) -> list[tuple[int, int]]:
        """Give the ranges of offsets at which nothing was booked, in order."""
        return [(a, b) for a, b in await self._fetch(_GAPS, partition, start, end)]

    async def noted(self, trade_ids: Sequence[str]) -> set[str]:
        """Give those of some trades that are booked, wherever; none where no id is noted."""
        return {row[0] for row in await self._fetch(_NOTED, list(trade_ids))}

    async def booked(self, places: Sequence[Place]) -> set[Place]:
        """Give those of some places at which a trade is booked."""
        partitions, offsets = [place[0] for place in places], [place[1] for place in places]
        return {(a, b) for a, b in await self._fetch(_BOOKED, partitions, offsets)}

    async def pruned_ns(self, keys: Sequence[str]) -> dict[str, int]:
        """Give the execution time of the last pruned trade of each of some positions, in ns."""
        return dict(await self._fetch(_PRUNED, list(keys)))

    async def parked(self, partition: int, start: int, end: int) -> set[int]:
        """Give the offsets of the events that wait for another one of their trade."""
        return {row[0] for row in await self._fetch(_PARKED, partition, start, end)}

    async def dead_letters(
        self, partition: int, start: int, end: int
    ) -> dict[int, tuple[str, str]]:
        """Give reason and kind of each record that was dead-lettered, by offset."""
        rows = await self._fetch(_LETTERS, partition, start, end)
        return {offset: (reason, kind) for offset, reason, kind in rows}

    async def _fetch(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        with explained():
            return [tuple(row) for row in await self._connection.fetch(statement, *arguments)]


@asynccontextmanager
async def open_digests(url: str) -> AsyncIterator[LedgerDigests]:
    """Connect to the database of a ledger, to read it.

    Raises:
        LedgerError: Its user may not.
        TransportError: It is away.
    """
    async with connected(url, **_SESSION) as connection:
        yield LedgerDigests(connection)
