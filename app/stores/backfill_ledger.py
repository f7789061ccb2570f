"""The ledger in PostgreSQL while it is filled with what a group booked before it had one.

Without a ledger a trade was booked again where its sender repeated it beyond the window, or under
another book. That is part of the positions by now, so it is stored as it was booked; its id is
noted with the first event, which is what later ones are compared with.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Final

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

    async def _note_ids(
        self, connection: Connection, plain: Sequence[str], others: Sequence[str]
    ) -> None:
        cells = (line.split("\t", 3) for line in chain(plain, others))
        places = [(trade_id, int(number), int(offset)) for number, offset, trade_id, _ in cells]
        if places:
            # Of an id that comes twice the first stays: in order of the log, not of the lines.
            places.sort(key=lambda place: place[1:])
            await connection.execute(_NOTE_IDS, *map(list, zip(*places, strict=True)))
