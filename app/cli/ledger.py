"""`trade-stream trades|export`: what the ledger holds, on the screen or in a file."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from app import export as files
from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption
from app.cli.ledger_output import (
    BookOption,
    CsvOption,
    Form,
    LimitOption,
    SinceOption,
    SymbolOption,
    UntilOption,
    form_of,
    ledger_settings,
    print_from_ledger,
    rows_asked,
    time_ns,
)
from app.ledger import open_reader_of
from app.lifecycle import run_with_stop
from app.models import Position
from app.money import to_decimal
from app.progress import Progress
from app.stores.ledger_queries import Filters, LedgerReader
from app.tabular import Row
from app.timestamps import format_timestamp

SuspectOption = Annotated[bool, typer.Option("--suspect", help="Only what is doubtful.")]
CodeOption = Annotated[
    str | None, typer.Option("--code", help="Only what is doubtful by this code, as off-tick.")
]
TradeIdOption = Annotated[str | None, typer.Option("--trade-id", help="Every event of this trade.")]


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
        limit=rows_asked(form, limit),
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
        yield [_position_row(*one) for one in piece]


def _position_row(partition: int, position: Position, method: str) -> dict[str, Any]:
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
        "method": method,
        "source_partition": partition,
        "source_offset": position.source_offset,
    }
