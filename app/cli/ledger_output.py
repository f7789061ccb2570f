"""What the commands over the ledger share: filters, the way to it, and the forms of output."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from app.cli.context import table
from app.config import Settings
from app.ledger import open_reader_of, require_ledger
from app.lifecycle import start_up
from app.stores.ledger_queries import LedgerReader
from app.tabular import Row, csv_text, json_text, shown
from app.timestamps import TimestampError, parse_timestamp

TABLE_ROWS: Final = 100
"""A table for a person ends after so many rows, unless another number is asked for."""

BookOption = Annotated[
    str | None, typer.Option("--book", help="Only this book; '' for what has none.")
]
SymbolOption = Annotated[str | None, typer.Option("--symbol", help="Only this symbol.")]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Executed at that time or later: 2026-03-02, or 2026-03-02T14:30:00Z.",
    ),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Executed before that time.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most so many; a table ends after 100.")
]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


class Form(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def form_of(*, as_json: bool, as_csv: bool) -> Form:
    """Choose the form of output."""
    if as_json and as_csv:
        raise typer.BadParameter("either --json or --csv")
    return Form.JSON if as_json else Form.CSV if as_csv else Form.TABLE


def rows_asked(form: Form, limit: int | None) -> int | None:
    """Give how many rows to ask for: of a table one more than it shows, to know of more."""
    return (limit or TABLE_ROWS) + 1 if form is Form.TABLE else limit


def time_ns(text: str | None, option: str) -> int | None:
    """Read a day or a time of an option; a day begins at midnight, and all is UTC."""
    if text is None:
        return None
    is_day = len(text) == len("2026-03-02")
    try:
        return parse_timestamp(f"{text}T00:00:00Z" if is_day else text)[0]
    except TimestampError as exc:
        raise typer.BadParameter(
            f"{text!r}: 2026-03-02, or 2026-03-02T14:30:00Z", param_hint=option
        ) from exc


def day_of(text: str, option: str) -> date:
    """Read a day of an option."""
    try:
        return date.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r}: a day such as 2026-03-02", param_hint=option) from exc


def ledger_settings(what: str) -> Settings:
    """Start the command up; a ledger has to be set for it."""
    settings = start_up()
    require_ledger(settings, what)
    return settings


def print_from_ledger(
    settings: Settings,
    rows_of: Callable[[LedgerReader], AsyncGenerator[Sequence[Row], None]],
    *,
    form: Form,
    limit: int | None,
    empty: str,
    connect_timeout_s: float,
) -> None:
    """Print rows of the ledger as they come.

    Args:
        settings: Name the database.
        rows_of: Gives pieces of rows, of one more than a table shows at the least.
        form: How to print them.
        limit: Of rows, if one was asked for.
        empty: What to tell a person where there is none.
        connect_timeout_s: Longest wait for the database.
    """

    async def run() -> None:
        async with (
            open_reader_of(settings, connect_timeout_s=connect_timeout_s) as reader,
            aclosing(rows_of(reader)) as pieces,
        ):
            await print_rows(pieces, form=form, limit=limit, empty=empty)

    asyncio.run(run())


async def print_rows(
    pieces: AsyncGenerator[Sequence[Row], None], *, form: Form, limit: int | None, empty: str
) -> None:
    """Print rows piece by piece; see `print_from_ledger`."""
    if form is Form.TABLE:
        await _print_table(pieces, limit or TABLE_ROWS, empty)
        return
    count = 0
    write = sys.stdout.write
    async for rows in pieces:
        if form is Form.CSV:
            if rows and not count:
                write(csv_text([{name: name for name in rows[0]}]))
            write(csv_text(rows))
        else:
            for row in rows:
                write(f"{',' if count else '['}\n{json_text(row)}")
                count += 1
        count += len(rows) if form is Form.CSV else 0
    if form is Form.JSON:
        write("\n]\n" if count else "[]\n")
    sys.stdout.flush()  # a reader that has gone is to be noticed here


async def _print_table(pieces: AsyncGenerator[Sequence[Row], None], most: int, empty: str) -> None:
    rows: list[dict[str, Any]] = []
    async for piece in pieces:
        rows += [dict(row) for row in piece]
        if len(rows) > most:
            break
    if not rows:
        typer.echo(empty)
        return
    drawn = table([{name: shown(value) for name, value in row.items()} for row in rows[:most]])
    Console().print(drawn)
    if len(rows) > most:
        typer.echo(f"the first {most:,}; there are more: --limit N, or all with --json or --csv")
