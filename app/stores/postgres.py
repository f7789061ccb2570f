"""The ledger in PostgreSQL: trades, positions and offsets of a partition change in one transaction.

A partition has a row with the next offset and the process that may write. A write compares both
before it changes anything, and holds the row until it commits, so that of two writers one finds
that it is not the writer any more, however late its transaction arrives. What was written is found
by the same comparison, so that a write whose answer was lost is safe to repeat.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import structlog

from app.config import IdentityScope, Settings
from app.errors import LedgerError
from app.ledger_codec import (
    CORRECTION_COLUMNS,
    DEAD_LETTER_COLUMNS,
    HISTORY_COLUMNS,
    LOT_COLUMNS,
    PARKED_COLUMNS,
    PARKED_RECORD_COLUMNS,
    PLAIN_TRADE_COLUMNS,
    POSITION_COLUMNS,
    STORED_LOT_COLUMNS,
    TRADE_COLUMNS,
    changed_trades,
    copied_lines,
    copy_text,
    event_of,
    gone_lots,
    lot_lines,
    position_line,
    read_lots,
    read_parked,
    read_position,
)
from app.models import NumberedLots, Position, TradeEvent
from app.ports import (
    BeforeCommit,
    LedgerWrite,
    ParkedRecord,
    StoredTrade,
    nothing_before,
)
from app.stores.database import CONNECT_TIMEOUT_S, close_pool, explained, new_pool
from app.stores.identity import kept_identity
from app.stores.migrate import Connection, pending

log = structlog.get_logger(__name__)

_CLAIM: Final = """
INSERT INTO source_partitions (source_partition, owner) VALUES ($1, $2)
ON CONFLICT (source_partition) DO UPDATE SET owner = excluded.owner, owned_since = now()
RETURNING next_offset
"""
_NEXT_OFFSETS: Final = """
SELECT source_partition, next_offset FROM source_partitions WHERE next_offset IS NOT NULL
"""
_SUMS: Final = """
SELECT
    (SELECT count(*) FROM trades),
    (SELECT count(*) FROM dead_letters),
    (SELECT coalesce(sum(total_pnl), 0) FROM position_list)
"""
_LOCK: Final = """
SELECT source_partition, owner, next_offset, (SELECT scope FROM identity_scope) AS scope
FROM source_partitions
WHERE source_partition = ANY($1::integer[]) ORDER BY source_partition FOR UPDATE
"""
_MOVE_ON: Final = """
UPDATE source_partitions p SET next_offset = w.next_offset, written_at = now()
FROM unnest($1::integer[], $2::bigint[]) AS w (source_partition, next_offset)
WHERE p.source_partition = w.source_partition
"""
_STAGE: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS staged_positions (LIKE positions) ON COMMIT DELETE ROWS
"""
_MERGE: Final = f"""
INSERT INTO positions ({", ".join(POSITION_COLUMNS)})
SELECT {", ".join(POSITION_COLUMNS)} FROM staged_positions
ON CONFLICT (source_partition, key) DO UPDATE SET
{", ".join(f"{name} = excluded.{name}" for name in POSITION_COLUMNS[2:])}
"""  # noqa: S608 - names of our own
_POSITIONS: Final = f"""
SELECT {", ".join(POSITION_COLUMNS)} FROM positions WHERE source_partition = $1
"""  # noqa: S608 - names of our own
_LOTS: Final = f"""
SELECT key, {", ".join(f"l.{name}" for name in STORED_LOT_COLUMNS[1:])} FROM positions
LEFT JOIN lots l USING (source_partition, key)
WHERE source_partition = $1 AND method = 'fifo' ORDER BY key, number
"""  # noqa: S608 - names of our own
_DELETE_LOTS: Final = """
DELETE FROM lots l USING unnest($1::integer[], $2::text[], $3::bigint[], $4::bigint[])
    AS w (source_partition, key, first, stop)
WHERE l.source_partition = w.source_partition AND l.key = w.key
    AND l.number >= w.first AND l.number < w.stop
"""
_LAST: Final = 2**63 - 1
_PARKED: Final = f"""
SELECT {", ".join(PARKED_RECORD_COLUMNS)} FROM parked_events
WHERE source_partition = $1 ORDER BY source_offset
"""  # noqa: S608 - names of our own
_REFUSE: Final = """
UPDATE parked_events p SET reason = w.reason, kind = w.kind, message = w.message
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::text[])
    AS w (source_partition, source_offset, reason, kind, message)
WHERE p.source_partition = w.source_partition AND p.source_offset = w.source_offset
"""
_RELEASE: Final = """
WITH released AS (
    DELETE FROM parked_events p
    USING unnest($1::integer[], $2::bigint[]) AS w (source_partition, source_offset)
    WHERE p.source_partition = w.source_partition AND p.source_offset = w.source_offset
    RETURNING p.source_partition, p.source_offset, reason, kind, message
)
INSERT INTO dead_letters (source_partition, source_offset, reason, kind, message)
SELECT * FROM released WHERE reason IS NOT NULL
"""
_BOOKED: Final = """
SELECT DISTINCT trade_id FROM trade_versions WHERE trade_id = ANY($1::text[])
"""
_FIND: Final = """
SELECT t.* FROM unnest($1::text[]) AS wanted (trade_id)
JOIN trade_versions v ON v.trade_id = wanted.trade_id
JOIN trades t ON t.source_partition = v.source_partition AND t.source_offset = v.source_offset
ORDER BY v.trade_id, v.version
"""
_HISTORY: Final = f"""
SELECT {", ".join(HISTORY_COLUMNS)} FROM trades
WHERE symbol = $1 AND {{}} AND source_partition = $2 ORDER BY source_offset
"""  # noqa: S608 - names of our own
_HISTORY_OF_BOOK: Final = _HISTORY.format("book = $3")
_HISTORY_WITHOUT_BOOK: Final = _HISTORY.format("book IS NULL")
_OWNER: Final = """
INSERT INTO ledger (topic, consumer_group) VALUES ($1, $2) ON CONFLICT DO NOTHING
"""
_IS_PRUNED: Final = """
SELECT EXISTS (SELECT FROM carried_forward WHERE source_partition = $1 AND key = $2)
"""
_VERSION_CELL: Final = TRADE_COLUMNS.index("version")
_PIECE_BYTES: Final = 512 * 1024
_VERSION_COLUMNS: Final = ("trade_id", "version", "source_partition", "source_offset")


@dataclass(frozen=True, slots=True)
class LedgerSums:
    """What a ledger comes to; PnL is exact, net of fees, at the last prices."""

    trades: int
    dead_letters: int
    total_pnl: Decimal


class PostgresLedger:
    """The ledger of one group and topic; made by `open_ledger`.

    Args:
        pool: Connections to the database.
        identity: Whether the ids of trades are noted, so that each is booked once for ever; the
            ledger has to be kept by the same.
    """

    def __init__(self, pool: asyncpg.Pool, identity: IdentityScope = IdentityScope.FULL) -> None:
        self._pool = pool
        self._identity = identity
        self._owner = uuid4()

    async def claim(self, partition: int) -> int | None:
        """See `ports.Ledger`."""
        async with self._connection() as connection:
            offset: int | None = await connection.fetchval(_CLAIM, partition, self._owner)
            return offset

    async def next_offsets(self) -> dict[int, int]:
        """Give the next source offset of every partition that was ever started."""
        async with self._connection() as connection:
            rows = await connection.fetch(_NEXT_OFFSETS)
        return {row["source_partition"]: row["next_offset"] for row in rows}

    async def sums(self) -> LedgerSums:
        """Add up all that is booked."""
        async with self._connection() as connection:
            ((trades, dead_letters, total_pnl),) = await connection.fetch(_SUMS)
        return LedgerSums(trades, dead_letters, total_pnl)

    async def positions(self, partition: int) -> list[Position]:
        """See `ports.Ledger`."""
        async with self._connection() as connection:
            return [
                read_position(line) for line in await _copied(connection, _POSITIONS, partition)
            ]

    async def lots(self, partition: int) -> dict[str, NumberedLots]:
        """See `ports.Ledger`."""
        async with self._connection() as connection:
            return read_lots(await _copied(connection, _LOTS, partition))

    async def parked(self, partition: int) -> list[ParkedRecord]:
        """See `ports.Ledger`."""
        async with self._connection() as connection:
            return [read_parked(line) for line in await _copied(connection, _PARKED, partition)]

    async def write(
        self, writes: Mapping[int, LedgerWrite], before_commit: BeforeCommit = nothing_before
    ) -> dict[int, str]:
        """See `ports.Ledger`."""
        try:
            async with self._transaction() as connection:
                rows = await connection.fetch(_LOCK, sorted(writes))
                for row in rows:
                    _check_identity(self._identity, row["scope"])
                lost = _lost(rows, writes, self._owner)
                held = {row["source_partition"]: row["next_offset"] for row in rows}
                new = {
                    number: write
                    for number, write in sorted(writes.items())
                    # What does not move the offset comes to the same when it is repeated.
                    if number not in lost
                    and (held[number] != write.next_offset or write.expected == write.next_offset)
                }
                for number, why in (await self._misjudged(connection, new)).items():
                    lost[number] = why
                    del new[number]
                if new:
                    await self._store(connection, new)
                    await before_commit(new)
        except asyncpg.UniqueViolationError as exc:
            if len(writes) > 1:
                # Two of these partitions may have the trade: each by itself, so that one gets it.
                apart = [
                    await self.write({number: writes[number]}, before_commit)
                    for number in sorted(writes)
                ]
                return {number: why for one in apart for number, why in one.items()}
            # Booked by another worker, from another partition, since we asked: to be judged anew.
            return dict.fromkeys(writes, f"booked elsewhere meanwhile: {exc.detail}")
        return lost

    async def _misjudged(
        self, connection: Connection, writes: Mapping[int, LedgerWrite]
    ) -> dict[int, str]:
        """Give the partitions where a trade was judged by what is not so, and why."""
        changed = {n: changed_trades(w) for n, w in writes.items()}
        wanted = set[str]().union(*changed.values(), *(w.refused_new for w in writes.values()))
        if not wanted or self._identity is IdentityScope.WINDOW:
            return {}
        booked = {row["trade_id"] for row in await connection.fetch(_BOOKED, wanted)}
        wrong: dict[int, str] = {}
        for number, write in writes.items():
            if not booked.isdisjoint(write.refused_new):
                wrong[number] = "refused as new, and booked"
            elif not booked.issuperset(changed[number]):
                wrong[number] = "changes a trade that is pruned"
        return wrong

    async def _store(self, connection: Connection, writes: Mapping[int, LedgerWrite]) -> None:
        offsets = [write.next_offset for write in writes.values()]
        await connection.execute(_MOVE_ON, list(writes), offsets)
        plain = [line for write in writes.values() for line in write.plain_trades]
        others = [line for write in writes.values() for line in write.trades]
        letters = [line for write in writes.values() for line in write.dead_letters]
        await _copy(connection, "trades", PLAIN_TRADE_COLUMNS, plain)
        await _copy(connection, "trades", TRADE_COLUMNS, others)
        if self._identity is IdentityScope.FULL:
            await self._note_ids(connection, plain, others)
        corrections = [line for write in writes.values() for line in write.corrections]
        await _copy(connection, "corrections", CORRECTION_COLUMNS, corrections)
        await _copy(connection, "dead_letters", DEAD_LETTER_COLUMNS, letters)
        await _store_parked(connection, writes)
        positions = [
            position_line(number, position, write.method_of(position.key))
            for number, write in writes.items()
            for position in write.positions
        ]
        if positions:
            await connection.execute(_STAGE)
            await _copy(connection, "staged_positions", POSITION_COLUMNS, positions)
            await connection.execute(_MERGE)
        await _store_lots(connection, writes)

    async def _note_ids(
        self, connection: Connection, plain: Sequence[str], others: Sequence[str]
    ) -> None:
        # Sorted, so that neighbours in the index are written together.
        versions = sorted([*map(_plain_version, plain), *map(_version, others)])
        await _copy(connection, "trade_versions", _VERSION_COLUMNS, versions)

    async def find(self, trade_ids: Sequence[str]) -> dict[str, StoredTrade]:
        """See `ports.Ledger`."""
        async with self._connection() as connection:
            rows = await connection.fetch(_FIND, trade_ids)
        found: dict[str, list[tuple[TradeEvent, bytes | None]]] = {}
        for row in rows:
            version = event_of(dict(row)), row["content"]
            found.setdefault(row["trade_id"], []).append(version)
        return {trade_id: StoredTrade(versions) for trade_id, versions in found.items()}

    async def history(self, partition: int, key: str) -> list[str] | None:
        """See `ports.Ledger`."""
        book, _, symbol = key.rpartition("|")
        of_book = (_HISTORY_OF_BOOK, symbol, partition, book)
        query, *values = of_book if book else (_HISTORY_WITHOUT_BOOK, symbol, partition)
        async with self._connection() as connection:
            lines = await _copied(connection, query, *values)
            # Asked afterwards: trades may be pruned while the others are read.
            is_pruned = await connection.fetchval(_IS_PRUNED, partition, key)
        return None if is_pruned else lines

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with explained():
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                try:
                    yield connection
                except (asyncio.CancelledError, TimeoutError):
                    # Whoever gives up has waited enough: the driver would go on, to ask for an end.
                    connection.terminate()
                    raise

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except TimeoutError:
                raise  # as when it is cancelled: the connection ends, and the server rolls back
            except Exception:
                await transaction.rollback()
                raise
            await transaction.commit()


async def _store_lots(connection: Connection, writes: Mapping[int, LedgerWrite]) -> None:
    changes = [
        (number, key, change)
        for number, write in writes.items()
        for key, change in write.lots.items()
    ]
    gone = [
        (number, key, first, _LAST if stop is None else stop)
        for number, key, change in changes
        for first, stop in gone_lots(change)
    ]
    if gone:
        await connection.execute(_DELETE_LOTS, *map(list, zip(*gone, strict=True)))
    await _copy(
        connection, "lots", LOT_COLUMNS, [line for one in changes for line in lot_lines(*one)]
    )


async def _store_parked(connection: Connection, writes: Mapping[int, LedgerWrite]) -> None:
    parked = [line for write in writes.values() for line in write.parked]
    refused = [
        (number, offset, refusal.reason, refusal.kind, refusal.message)
        for number, write in writes.items()
        for offset, refusal in write.refused.items()
    ]
    released = [(number, offset) for number, write in writes.items() for offset in write.released]
    await _copy(connection, "parked_events", PARKED_COLUMNS, parked)
    if refused:
        await connection.execute(_REFUSE, *map(list, zip(*refused, strict=True)))
    if released:
        await connection.execute(_RELEASE, *map(list, zip(*released, strict=True)))


# COPY takes and gives no file here: the driver would read and write it in threads, and keep all
# of it in a cycle, until the garbage collector comes some day.


async def _copy(
    connection: Connection, table: str, columns: Sequence[str], lines: Sequence[str]
) -> None:
    if lines:
        await connection.copy_to_table(
            table, source=_pieces(copy_text(lines)), columns=columns, format="text", null=""
        )


async def _pieces(text: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(text), _PIECE_BYTES):
        yield text[start : start + _PIECE_BYTES]


async def _copied(connection: Connection, query: str, *values: object) -> list[str]:
    copied = bytearray()

    async def take(piece: bytes) -> None:
        copied.extend(piece)

    await connection.copy_from_query(query, *values, output=take, format="text", null="")
    return copied_lines(bytes(copied))


def _plain_version(line: str) -> str:
    partition, offset, trade_id, _ = line.split("\t", 3)
    return f"{trade_id}\t1\t{partition}\t{offset}"


def _version(line: str) -> str:
    cells = line.split("\t")
    return f"{cells[2]}\t{cells[_VERSION_CELL]}\t{cells[0]}\t{cells[1]}"


def _lost(
    rows: Sequence[asyncpg.Record], writes: Mapping[int, LedgerWrite], owner: UUID
) -> dict[int, str]:
    """Give the partitions that cannot be written, and why."""
    lost = dict.fromkeys(writes, "the ledger does not know it")
    for row in rows:
        number, held = row["source_partition"], row["next_offset"]
        write = writes[number]
        if row["owner"] != owner:
            lost[number] = "another worker has taken it over"
        elif held not in (write.expected, write.next_offset):
            lost[number] = f"the ledger is at offset {held}, not at {write.expected}"
        else:
            del lost[number]
    return lost


@asynccontextmanager
async def open_ledger(
    settings: Settings,
    url: str,
    identity: IdentityScope | None = None,
    *,
    kind: type[PostgresLedger] = PostgresLedger,
) -> AsyncIterator[PostgresLedger]:
    """Connect to the ledger of the group and the topic that the settings name.

    Args:
        settings: Group and topic.
        url: Of the database.
        identity: By which trades are to be booked; without it, by that which the ledger is kept by.
        kind: What is made of the connections.

    Raises:
        LedgerError: The tables are missing or old, or they are another group's or topic's, or kept
            by another identity.
        TransportError: The database is away.
    """
    with explained():
        pool = await new_pool(url)
    try:
        with explained():
            async with pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                await _check(connection, settings)
                kept = await kept_identity(connection)
                if identity is not None:
                    _check_identity(identity, kept)
        yield kind(pool, kept)
    finally:
        await close_pool(pool)


async def _check(connection: Connection, settings: Settings) -> None:
    if steps := await pending(connection):
        raise LedgerError(
            f"the database lacks {', '.join(step.name for step in steps)}:"
            " run `trade-stream db migrate`"
        )
    await connection.execute(_OWNER, settings.kafka_topic, settings.kafka_group_id)
    ((topic, group),) = await connection.fetch("SELECT topic, consumer_group FROM ledger")
    if (topic, group) != (settings.kafka_topic, settings.kafka_group_id):
        raise LedgerError(
            f"the database holds the ledger of group {group} and topic {topic}, not of"
            f" {settings.kafka_group_id} and {settings.kafka_topic}: set DATABASE_URL to a database"
            " of its own"
        )


def _check_identity(wanted: IdentityScope, kept: str) -> None:
    if wanted != kept:
        raise LedgerError(
            f"the ledger is kept with IDENTITY={kept}, not {wanted}: set it so; or stop all"
            f" consumers and run `trade-stream db migrate` with IDENTITY={wanted}, which changes it"
        )
