"""What commands share: connections, output, options."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.config import Settings
from app.kafka_io.connect import until_connected
from app.kafka_io.log_reader import KafkaLogReader
from app.lifecycle import start_up

T = TypeVar("T")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConnectTimeoutOption = Annotated[
    float, typer.Option("--connect-timeout", min=0, help="Seconds to wait for a broker.")
]
CONNECT_TIMEOUT_S = 30.0


def ask(
    question: Callable[[Settings, KafkaLogReader], Awaitable[T]], connect_timeout_s: float
) -> T:
    """Answer a question about what is stored, waiting for a broker if none answers."""
    settings = start_up()
    reader = KafkaLogReader(settings)

    async def answer() -> T:
        return await until_connected(
            lambda: question(settings, reader), timeout_s=connect_timeout_s
        )

    return asyncio.run(answer())


def show(rows: Sequence[dict[str, Any]], *, as_json: bool, empty: str) -> None:
    """Print rows as JSON, or as a table for a person."""
    if as_json:
        typer.echo(json.dumps(list(rows), indent=2))
    elif not rows:
        typer.echo(empty)
    else:
        Console().print(table(rows))


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay rows out in columns, by the keys of the first; numbers to the right."""
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for name, value in rows[0].items():
        is_number = isinstance(value, int | float)
        drawn.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        # As `Text`, since a name in brackets is no markup.
        drawn.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    return drawn
