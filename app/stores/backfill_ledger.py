"""The ledger in PostgreSQL while it is filled with what a group booked before it had one.

Without a ledger a trade was booked again where its sender repeated it beyond the window, or under
another book. That is part of the positions by now, so it is stored as it was booked; its id is
noted with the first event, which is what later ones are compared with.
"""

from collections.abc import Mapping
from typing import Final

import asyncpg

from app.ports import LedgerWrite
from app.stores.migrate import Connection
from app.stores.postgres import PostgresLedger

_NOTE_IDS: Final = """
INSERT INTO trade_versions (trade_id, version, source_partition, source_offset)
SELECT trade_id, 1, source_partition, source_offset
FROM unnest($1::text[], $2::integer[], $3::bigint[])
    AS noted (trade_id, source_partition, source_offset)
ON CONFLICT DO NOTHING
"""


class BackfillLedger(PostgresLedger):
    """A ledger that takes a trade twice, where it was booked twice; the ids of all are kept."""

    def __init__(self, pool: asyncpg.Pool, *, notes_ids: bool) -> None:
        super().__init__(pool, notes_ids=False)
        self._keeps_ids = notes_ids

    async def _store(self, connection: Connection, writes: Mapping[int, LedgerWrite]) -> None:
        await super()._store(connection, writes)
        if not self._keeps_ids:
            return
        places = [
            (trade_id, int(partition), int(offset))
            for write in writes.values()
            for lines in (write.plain_trades, write.trades)
            for partition, offset, trade_id, *_ in (line.split("\t", 3) for line in lines)
        ]
        if places:
            # Of an id that comes twice the first stays: in order of the log, not of the lines.
            places.sort(key=lambda place: place[1:])
            await connection.execute(_NOTE_IDS, *map(list, zip(*places, strict=True)))
