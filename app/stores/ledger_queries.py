"""Questions to the ledger: rows by filters, a piece at a time, all of one moment.

Nothing here writes: the session is read-only. Values are bound, never put into the text of a
statement. Answers come through a server-side cursor, so that the largest one takes no more memory
than a piece of it; the transaction lasts as long as that takes.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import asyncpg

from app.ledger_codec import POSITION_COLUMNS, read_position
from app.models import CostMethod, Position
from app.money import parse_scaled
from app.pnl.daily import Activity, Day
from app.pnl.fills import Fill
from app.pnl.reported import PositionFills
from app.pnl.valuation import LAST_TRADE, Mark
from app.stores.database import connected, explained
from app.stores.migrate import Connection
from app.tabular import plain

PIECE_ROWS: Final = 2_000
_SESSION: Final = {
    "application_name": "trade-stream-reader",
    "timezone": "UTC",
    "default_transaction_read_only": "on",
    "jit": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What of the ledger is asked for; what is `None` filters nothing.

    Attributes:
        book: The empty text asks for what has none.
        symbol: Exactly this one.
        since_ns: Executed at that time or later; of a position its last trade.
        until_ns: Executed before that time.
        trade_id: Every event of this trade.
        is_suspect: Only what is doubtful.
        code: Only what is doubtful by this code, among others.
        limit: At most so many rows.
    """

    book: str | None = None
    symbol: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    trade_id: str | None = None
    is_suspect: bool = False
    code: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose ledger it is."""

    topic: str
    group: str


TRADE_FIELDS: Final = (
    *("trade_id", "version", "action", "book", "symbol", "side", "price", "quantity"),
    *("multiplier", "currency", "notional", "signed_notional", "fee", "executed_ns"),
    *("suspects", "details", "source_partition", "source_offset"),
)
SIGN: Final = "CASE side WHEN 'BUY' THEN 1 ELSE -1 END"
_COMPUTED: Final = {
    "notional": "price * quantity * multiplier",
    "signed_notional": f"{SIGN} * price * quantity * multiplier",
}
_TRADES: Final = f"""
SELECT {", ".join(f"{_COMPUTED.get(name, name)} AS {name}" for name in TRADE_FIELDS)} FROM trades
"""  # noqa: S608 - names of our own
_NEWEST_FIRST: Final = " ORDER BY executed_ns DESC, source_partition DESC, source_offset DESC"
_PLACES_OF: Final = """
SELECT source_partition, array_agg(source_offset) FROM trade_versions WHERE trade_id = $1 GROUP BY 1
"""
_POSITIONS: Final = f"""
SELECT {", ".join(f"{name}::text" for name in POSITION_COLUMNS)} FROM positions
"""  # noqa: S608 - names of our own
_DEAD_LETTERS: Final = """
SELECT source_partition, source_offset, reason, kind, message FROM dead_letters
"""

PNL_GROUPS: Final = {
    "position": ("book", "symbol"),
    "book": ("book",),
    "symbol": ("symbol",),
    "currency": (),
}
"""What PnL can be summed by; the currency is always among it, since sums never mix currencies."""
_IS_UNKNOWN: Final = "quantity <> 0 AND trade_count = 0"
_UNREALIZED: Final = "quantity * mark * multiplier - open_cost"
_PNL: Final = f"""
count(*) AS positions,
sum(realized) AS gross_realized,
sum(fees) AS fees,
sum(realized - fees) AS net_realized,
CASE WHEN NOT bool_or({_IS_UNKNOWN}) THEN sum({_UNREALIZED}) END AS unrealized,
CASE WHEN NOT bool_or({_IS_UNKNOWN}) THEN sum(realized - fees + {_UNREALIZED}) END AS total,
min(mark_ns) FILTER (WHERE quantity <> 0 AND trade_count > 0) AS oldest_mark_ns
FROM positions
"""

_PLACE: Final = """
CASE version WHEN 1 THEN source_offset ELSE (
    SELECT v.source_offset FROM trade_versions v WHERE v.trade_id = fills.trade_id AND v.version = 1
) END
"""
"""An amended trade keeps the place of its NEW among those that were executed in one instant."""
_MARK: Final = "max(ARRAY[executed_ns, source_partition, source_offset, price]::numeric[])"
_CARRIED_MARK: Final = "ARRAY[last_ns, source_partition, last_offset, last_price]::numeric[]"
_DAY: Final = f"""
WITH of_trades AS (
    SELECT book, symbol, currency, executed_ns, source_partition, {_PLACE} AS source_offset, price,
        fee, {SIGN} * quantity * multiplier AS exposure
    FROM fills WHERE executed_ns <= $2
), sums AS (
    SELECT book, symbol, currency,
        sum(exposure) FILTER (WHERE executed_ns <= $1) AS exposure,
        sum(exposure * price) FILTER (WHERE executed_ns <= $1) AS paid,
        sum(fee) FILTER (WHERE executed_ns <= $1) AS fees,
        sum(exposure) FILTER (WHERE executed_ns > $1) AS new_exposure,
        sum(exposure * price) FILTER (WHERE executed_ns > $1) AS new_paid,
        sum(fee) FILTER (WHERE executed_ns > $1) AS new_fees,
        count(*) FILTER (WHERE executed_ns > $1) AS new_trades,
        {_MARK} FILTER (WHERE executed_ns <= $1) AS first_mark,
        {_MARK} AS mark,
        NULL::bigint AS pruned_ns
    FROM of_trades GROUP BY book, symbol, currency
    UNION ALL
    SELECT book, symbol, currency, exposure, paid, fees, 0, 0, 0, 0,
        {_CARRIED_MARK}, {_CARRIED_MARK}, last_ns
    FROM carried_forward
)
SELECT book, symbol, currency,
    coalesce(sum(exposure), 0) AS exposure,
    coalesce(sum(paid), 0) AS paid,
    coalesce(sum(fees), 0) AS fees,
    coalesce(sum(new_exposure), 0) AS new_exposure,
    coalesce(sum(new_paid), 0) AS new_paid,
    coalesce(sum(new_fees), 0) AS new_fees,
    sum(new_trades)::bigint AS new_trades,
    max(first_mark) AS first_mark,
    max(mark) AS mark,
    coalesce(max(pruned_ns) > $1, false) AS is_pruned
FROM sums
"""  # noqa: S608 - names of our own

_NO_END_NS: Final = 2**63 - 1
_FILLS: Final = f"""
SELECT * FROM (
    SELECT f.*, coalesce(p.method, 'average') AS method FROM (
        SELECT book, symbol, currency, trade_id, executed_ns, source_partition,
            {_PLACE} AS source_offset, {SIGN} * quantity AS quantity, price, multiplier, fee
        FROM fills WHERE executed_ns <= $1
        UNION ALL
        -- What was pruned has no trade id any more: that there was something is all that counts.
        SELECT book, symbol, currency, NULL, last_ns, source_partition, last_offset, 0, 0, 1, 0
        FROM carried_forward
    ) AS f LEFT JOIN positions p ON p.source_partition = f.source_partition
        AND p.symbol = f.symbol AND p.book IS NOT DISTINCT FROM f.book
) AS of_positions
"""  # noqa: S608 - names of our own


class _Statement:
    """The text of a query while conditions are added to it, and what they are bound to."""

    def __init__(self, text: str, *values: object) -> None:
        self._text = text
        self._conditions: list[str] = []
        self.values = list(values)

    def where(self, condition: str, *values: object) -> None:
        """Add a condition; each `{}` in it stands for a value, in their order."""
        numbers = range(len(self.values) + 1, len(self.values) + len(values) + 1)
        self._conditions.append(condition.format(*(f"${number}" for number in numbers)))
        self.values += values

    def where_position(self, filters: Filters) -> None:
        """Add what is asked of book and symbol."""
        if filters.book:
            self.where("book = {}", filters.book)
        elif filters.book is not None:
            self.where("book IS NULL")
        if filters.symbol is not None:
            self.where("symbol = {}", filters.symbol)

    def where_time(self, column: str, filters: Filters) -> None:
        """Add what is asked of the time."""
        if filters.since_ns is not None:
            self.where(f"{column} >= {{}}", filters.since_ns)
        if filters.until_ns is not None:
            self.where(f"{column} < {{}}", filters.until_ns)

    def text(self, ending: str = "", *, limit: int | None = None) -> str:
        """Give the whole text."""
        where = f" WHERE {' AND '.join(self._conditions)}" if self._conditions else ""
        limited = ""
        if limit is not None:
            self.values.append(limit)
            limited = f" LIMIT ${len(self.values)}"
        return f"{self._text}{where}{ending}{limited}"


class LedgerReader:
    """A read-only look at the ledger as it was when the reader was opened; see `open_reader`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def owner(self) -> Owner | None:
        """Tell whose ledger it is; `None` for one that nobody has opened yet."""
        with explained():
            row = await self._connection.fetchrow("SELECT topic, consumer_group FROM ledger")
        return None if row is None else Owner(*row)

    async def trades(
        self, filters: Filters, *, newest_first: bool = True
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Give trades in pieces, by `TRADE_FIELDS`.

        Args:
            filters: Which ones.
            newest_first: By execution time, sorted by the server; otherwise in order of the log,
                without waiting for a sort.
        """
        statement = _Statement(_TRADES)
        statement.where_position(filters)
        statement.where_time("executed_ns", filters)
        if filters.is_suspect:
            statement.where("suspects IS NOT NULL")
        if filters.code is not None:
            statement.where("{} = ANY(suspects)", filters.code)
        if filters.trade_id is not None:
            await self._where_trade(statement, filters.trade_id)
        order = _NEWEST_FIRST if newest_first else " ORDER BY source_partition, source_offset"
        async for rows in self._pieces(statement, order, filters.limit):
            yield [dict(row) for row in rows]

    async def _where_trade(self, statement: _Statement, trade_id: str) -> None:
        """Find the events of a trade by their places: trades itself has no index of ids."""
        with explained():
            places = await self._connection.fetchrow(_PLACES_OF, trade_id)
        statement.where("trade_id = {}", trade_id)
        if places is not None:
            statement.where("source_partition = {} AND source_offset = ANY({}::bigint[])", *places)

    async def positions(
        self, filters: Filters
    ) -> AsyncGenerator[list[tuple[int, Position, str]], None]:
        """Give positions in pieces, by book and symbol: partition, position, cost method."""
        statement = _Statement(_POSITIONS)
        statement.where_position(filters)
        statement.where_time("mark_ns", filters)
        order = " ORDER BY positions.book NULLS FIRST, positions.symbol, positions.source_partition"
        async for rows in self._pieces(statement, order, filters.limit):
            yield [
                (int(row[0]), read_position("\t".join(c or "" for c in row)), row["method"])
                for row in rows
            ]

    async def dead_letters(self, filters: Filters) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Give dead letters in pieces, in order of the log; of the filters the limit counts."""
        order = " ORDER BY source_partition, source_offset"
        async for rows in self._pieces(_Statement(_DEAD_LETTERS), order, filters.limit):
            yield [dict(row) for row in rows]

    async def pnl(self, filters: Filters, by: str) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Give sums over positions at the price of their last trades, by `PNL_GROUPS`."""
        names = ", ".join((*PNL_GROUPS[by], "currency"))
        statement = _Statement(f"SELECT {names}, {_PNL}")
        statement.where_position(filters)
        order = f" GROUP BY {names} ORDER BY {names.replace('book', 'book NULLS FIRST')}"
        async for rows in self._pieces(statement, order, filters.limit):
            yield [dict(row) for row in rows]

    async def day(self, filters: Filters, day: Day) -> AsyncGenerator[list[Activity], None]:
        """Give what each position did up to the first close of a day and from there to the second.

        Of the filters book, symbol and limit count.
        """
        statement = _Statement(_DAY, day.first_close_ns, day.close_ns)
        statement.where_position(filters)
        order = " GROUP BY book, symbol, currency ORDER BY book NULLS FIRST, symbol, currency"
        async for rows in self._pieces(statement, order, filters.limit):
            yield [_activity(row) for row in rows]

    async def fills(
        self, filters: Filters, *, until_ns: int | None = None
    ) -> AsyncGenerator[PositionFills, None]:
        """Give the fills of each position, by book, symbol and currency.

        Args:
            filters: Of these book and symbol count.
            until_ns: Of fills executed up to that time.
        """
        statement = _Statement(_FILLS, _NO_END_NS if until_ns is None else until_ns)
        statement.where_position(filters)
        order = """ ORDER BY book NULLS FIRST, symbol, currency,
            executed_ns, source_partition, source_offset"""
        position = None
        async for rows in self._pieces(statement, order, None):
            for row in rows:
                book, symbol, currency = row["book"], row["symbol"], row["currency"]
                if position is None or (position.book, position.symbol, position.currency) != (
                    book, symbol, currency,
                ):  # fmt: skip
                    if position is not None:
                        yield position
                    method = CostMethod(row["method"])
                    position = PositionFills(book, symbol, currency, method, [])
                if row["trade_id"] is None:
                    position.is_pruned = True
                else:
                    position.fills.append(_fill(row))
        if position is not None:
            yield position

    async def _pieces(
        self, statement: _Statement, ending: str, limit: int | None
    ) -> AsyncGenerator[Sequence[asyncpg.Record], None]:
        text = statement.text(ending, limit=limit)
        with explained():
            cursor = await self._connection.cursor(text, *statement.values)
            while rows := await cursor.fetch(PIECE_ROWS):
                yield rows


def _activity(row: asyncpg.Record) -> Activity:
    return Activity(
        book=row["book"],
        symbol=row["symbol"],
        currency=row["currency"],
        exposure_e16=_scaled(row["exposure"], 16),
        paid_e24=_scaled(row["paid"], 24),
        fees_e8=_scaled(row["fees"], 8),
        new_exposure_e16=_scaled(row["new_exposure"], 16),
        new_paid_e24=_scaled(row["new_paid"], 24),
        new_fees_e8=_scaled(row["new_fees"], 8),
        new_trades=row["new_trades"],
        first_mark=_mark(row["first_mark"]),
        mark=_mark(row["mark"]),
        is_pruned=row["is_pruned"],
    )


def _fill(row: asyncpg.Record) -> Fill:
    return Fill(
        row["trade_id"],
        row["executed_ns"],
        row["source_partition"],
        row["source_offset"],
        _scaled(row["quantity"], 8),
        _scaled(row["price"], 8),
        _scaled(row["multiplier"], 8),
        _scaled(row["fee"], 8),
    )


def _scaled(amount: Decimal, scale: int) -> int:
    return parse_scaled(plain(amount), scale)


def _mark(last: list[Decimal] | None) -> Mark | None:
    if last is None:
        return None
    executed_ns, _, _, price = last
    return Mark(_scaled(price, 8), int(executed_ns), LAST_TRADE)


@asynccontextmanager
async def open_reader(url: str) -> AsyncIterator[LedgerReader]:
    """Connect to a ledger, whoever owns it, and look at it as it is at this moment.

    Args:
        url: Of the database; its user needs no more than SELECT.

    Raises:
        LedgerError: The tables are not there, or may not be read.
        TransportError: The database is away.
    """
    async with connected(url, **_SESSION) as connection:
        with explained():
            transaction = connection.transaction(isolation="repeatable_read", readonly=True)
            await transaction.start()
        yield LedgerReader(connection)  # nothing is written: no more than the connection has to end
