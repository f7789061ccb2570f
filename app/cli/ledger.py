"""`trade-stream trades|pnl|export`: what the ledger holds, on the screen or in a file."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from app import export as files
from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption
from app.cli.ledger_output import (
    TABLE_ROWS,
    BookOption,
    CsvOption,
    Form,
    LimitOption,
    SinceOption,
    SymbolOption,
    UntilOption,
    day_of,
    form_of,
    ledger_settings,
    print_from_ledger,
    time_ns,
)
from app.daily_pnl import Activity, Day, explain_day, summed
from app.explain import Explanation
from app.ledger import open_reader_of
from app.lifecycle import run_with_stop
from app.models import Position
from app.money import to_decimal
from app.progress import Progress
from app.stores.ledger_queries import PNL_GROUPS, Filters, LedgerReader
from app.tabular import Row
from app.timestamps import format_timestamp
from app.valuation import Mark

_E8: Final = 10**8
_MARK_SOURCE: Final = "last-trade"

SuspectOption = Annotated[bool, typer.Option("--suspect", help="Only what is doubtful.")]
CodeOption = Annotated[
    str | None, typer.Option("--code", help="Only what is doubtful by this code, as off-tick.")
]
TradeIdOption = Annotated[str | None, typer.Option("--trade-id", help="Every event of this trade.")]


class By(StrEnum):
    """What PnL is summed by."""

    POSITION = "position"
    BOOK = "book"
    SYMBOL = "symbol"
    CURRENCY = "currency"


def trades(
    book: BookOption = None,
    symbol: SymbolOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    trade_id: TradeIdOption = None,
    suspect: SuspectOption = False,
    code: CodeOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """List booked trades, the last executed first; needs a ledger (DATABASE_URL)."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    filters = Filters(
        book=book,
        symbol=symbol,
        since_ns=time_ns(since, "--since"),
        until_ns=time_ns(until, "--until"),
        trade_id=trade_id,
        is_suspect=suspect,
        code=code,
        limit=_rows_asked(form, limit),
    )

    async def rows(reader: LedgerReader) -> AsyncGenerator[Sequence[Row], None]:
        async for piece in reader.trades(filters):
            yield [_trade_row(row, is_table=form is Form.TABLE) for row in piece]

    print_from_ledger(
        ledger_settings("trades"),
        rows,
        form=form,
        limit=limit,
        empty="no trades",
        connect_timeout_s=connect_timeout,
    )


def _rows_asked(form: Form, limit: int | None) -> int | None:
    """Of a table one row more than it shows, to know that there are more."""
    return (limit or TABLE_ROWS) + 1 if form is Form.TABLE else limit


def _trade_row(row: dict[str, Any], *, is_table: bool) -> dict[str, Any]:
    executed_at = format_timestamp(row["executed_ns"])
    place = f"{row['source_partition']}/{row['source_offset']}"
    if is_table:
        names = ("trade_id", "book", "symbol", "side", "price", "quantity", "currency")
        more = {name: row[name] for name in names}
        return {"executed_at": executed_at, **more, "suspects": row["suspects"], "source": place}
    shown = {}
    for name, value in row.items():
        if name == "executed_ns":
            shown["executed_at"] = executed_at
        else:
            shown[name] = value
    return shown


def pnl(
    by: Annotated[
        By, typer.Option("--by", help="What to sum by, within a currency.")
    ] = By.POSITION,
    book: BookOption = None,
    symbol: SymbolOption = None,
    day: Annotated[
        str | None,
        typer.Option("--day", metavar="DAY", help="Explain this day's PnL (UTC)."),
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(
            "--previous", metavar="DAY", help="Since the end of that day; the one before."
        ),
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Sum realised and unrealised PnL and fees up; needs a ledger (DATABASE_URL).

    Open quantities are worth the price of the last trade of their book and symbol. With --day: why
    the total changed from one close to the next, by new trades, price and fees, in the currency of
    the position and by the trades that are known now; the close is the last trade of the day.
    """
    form = form_of(as_json=as_json, as_csv=as_csv)
    if previous is not None and day is None:
        raise typer.BadParameter("--previous needs --day")
    filters = Filters(book=book, symbol=symbol, limit=_rows_asked(form, limit))

    async def sums(reader: LedgerReader) -> AsyncGenerator[Sequence[Row], None]:
        async for piece in reader.pnl(filters, by.value):
            yield [_pnl_row(row) for row in piece]

    async def explained(reader: LedgerReader) -> AsyncGenerator[Sequence[Row], None]:
        assert asked is not None
        wanted = Filters(book=book, symbol=symbol)
        activities = [one async for piece in reader.day(wanted, asked) for one in piece]
        rows = _day_rows(activities, asked, by)
        yield rows if filters.limit is None else rows[: filters.limit]

    asked = None if day is None else _day(day, previous)
    print_from_ledger(
        ledger_settings("PnL"),
        sums if asked is None else explained,
        form=form,
        limit=limit,
        empty="no positions",
        connect_timeout_s=connect_timeout,
    )


def _day(day: str, previous: str | None) -> Day:
    end = day_of(day, "--day")
    start = end - timedelta(days=1) if previous is None else day_of(previous, "--previous")
    if start >= end:
        raise typer.BadParameter("must be before --day", param_hint="--previous")
    return Day(start, end)


def _pnl_row(row: dict[str, Any]) -> dict[str, Any]:
    oldest_ns = row.pop("oldest_mark_ns")
    oldest = None if oldest_ns is None else format_timestamp(oldest_ns)
    return row | {"mark_source": None if oldest is None else _MARK_SOURCE, "oldest_mark_at": oldest}


def _day_rows(activities: list[Activity], day: Day, by: By) -> list[dict[str, Any]]:
    explained = [(one, explain_day(one, day)) for one in activities]
    if by is By.POSITION:
        return [
            {"book": one.book, "symbol": one.symbol}
            | _explained_row(one.currency, one.new_trades, explanation)
            | _marks(one)
            for one, explanation in explained
        ]
    names = (*PNL_GROUPS[by.value], "currency")

    def group(pair: tuple[Activity, Explanation | None]) -> tuple[str, ...]:
        return tuple(getattr(pair[0], name) or "" for name in names)

    rows = []
    for key, pairs in groupby(sorted(explained, key=group), group):
        parts = list(pairs)
        trade_count = sum(one.new_trades for one, _ in parts)
        row = _explained_row(key[-1], trade_count, summed(part for _, part in parts))
        rows.append({n: key_part or None for n, key_part in zip(names, key, strict=True)} | row)
    return rows


def _explained_row(
    currency: str, trade_count: int, explanation: Explanation | None
) -> dict[str, Any]:
    names = ("before", "new_trades", "price", "fees", "change", "after")
    amounts: dict[str, Any] = dict.fromkeys(names)
    if explanation is not None:
        parts = (
            explanation.before_e32,
            explanation.new_trades_e32,
            explanation.price_e32,
            -explanation.fees_e32,  # as they act: a cost is negative
            explanation.change_e32,
            explanation.after_e32,
        )
        # The rate is 1, so that nothing is beyond 10^-24.
        amounts = {n: to_decimal(e32 // _E8, 24) for n, e32 in zip(names, parts, strict=True)}
    return {"currency": currency, "trades": trade_count, **amounts}


def _marks(activity: Activity) -> dict[str, Any]:
    return _mark("first_mark", activity.first_mark) | _mark("mark", activity.mark)


def _mark(name: str, mark: Mark | None) -> dict[str, Any]:
    if mark is None:
        return {name: None, f"{name}_at": None}
    return {name: to_decimal(mark.amount_e8), f"{name}_at": format_timestamp(mark.time_ns)}


class What(StrEnum):
    """What can be exported."""

    TRADES = "trades"
    POSITIONS = "positions"
    DEAD_LETTERS = "dead-letters"


def export(
    file: Annotated[
        Path, typer.Argument(help="FILE.parquet or FILE.csv; an older one is replaced.")
    ],
    what: Annotated[What, typer.Option("--what", help="What to write.")] = What.TRADES,
    book: BookOption = None,
    symbol: SymbolOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    trade_id: TradeIdOption = None,
    suspect: SuspectOption = False,
    code: CodeOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Write trades, positions or dead letters of the ledger to a file, every decimal exact.

    The file is there when it is whole: a run that is broken off leaves an older one as it was.
    """
    files.writer_for(file)  # before anything is connected
    settings = ledger_settings("an export")
    filters = Filters(
        book=book,
        symbol=symbol,
        since_ns=time_ns(since, "--since"),
        until_ns=time_ns(until, "--until"),
        trade_id=trade_id,
        is_suspect=suspect,
        code=code,
        limit=limit,
    )
    _check_filters(what, filters)

    async def run(stop: asyncio.Event) -> int:
        count = 0
        async with open_reader_of(settings, connect_timeout_s=connect_timeout) as reader:
            columns, pieces = _exported(reader, what, filters)
            with files.sheet_at(file, columns) as sheet, Progress("export") as progress:
                async with aclosing(pieces):
                    async for rows in pieces:
                        sheet.add(rows)
                        count += len(rows)
                        progress.advance(len(rows))
                        if stop.is_set():
                            raise KeyboardInterrupt
        return count

    count = asyncio.run(run_with_stop(run, grace_s=settings.shutdown_graceful_timeout_s))
    typer.echo(f"{count:,} {what.value} in {file}")


def _check_filters(what: What, filters: Filters) -> None:
    of_trades = (filters.trade_id, filters.is_suspect or None, filters.code)
    of_both = (filters.book, filters.symbol, filters.since_ns, filters.until_ns)
    wrong = {What.TRADES: (), What.POSITIONS: of_trades, What.DEAD_LETTERS: (*of_trades, *of_both)}
    if any(given is not None for given in wrong[what]):
        named = (
            "--trade-id, --suspect and --code are"
            if what is What.POSITIONS
            else "filters by what a trade says are"
        )
        raise typer.BadParameter(f"{named} not for {what.value}")


def _exported(
    reader: LedgerReader, what: What, filters: Filters
) -> tuple[Sequence[files.Column], AsyncGenerator[Sequence[Row], None]]:
    if what is What.TRADES:
        return files.TRADES, reader.trades(filters, newest_first=False)
    if what is What.DEAD_LETTERS:
        return files.DEAD_LETTERS, reader.dead_letters(filters)
    return files.POSITIONS, _positions(reader, filters)


async def _positions(reader: LedgerReader, filters: Filters) -> AsyncGenerator[Sequence[Row], None]:
    async for piece in reader.positions(filters):
        yield [_position_row(number, position) for number, position in piece]


def _position_row(partition: int, position: Position) -> dict[str, Any]:
    return {
        "book": position.book,
        "symbol": position.symbol,
        "currency": position.currency,
        "quantity": to_decimal(position.quantity_e8),
        "average_price": to_decimal(position.average_price_e8),
        "open_cost": to_decimal(position.open_cost_e24, 24),
        "realized_pnl": to_decimal(position.realized_e24, 24),
        "unrealized_pnl": to_decimal(position.unrealized_e24, 24),
        "fees": to_decimal(position.fees_e8),
        "multiplier": to_decimal(position.multiplier_e8),
        "mark": to_decimal(position.mark_e8),
        "mark_ns": position.mark_ns,
        "trade_count": position.trade_count,
        "source_partition": partition,
        "source_offset": position.source_offset,
    }
