"""`trade-stream positions`: what is held, live, and made anew."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption, table
from app.cli.ledger_output import (
    TABLE_ROWS,
    BookOption,
    CsvOption,
    Form,
    LimitOption,
    SinceOption,
    SymbolOption,
    UntilOption,
    form_of,
    print_rows,
    time_ns,
)
from app.config import Settings
from app.errors import ConfigError, TopicError
from app.kafka_io.connect import open_publisher, until_connected
from app.kafka_io.groups import commit_offsets, committed_offsets
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.partitioner import KeyPartitioner
from app.ledger import open_reader_of
from app.lifecycle import run_with_stop, start_up
from app.models import Position
from app.position_codec import (
    PositionRecord,
    decode_position_record,
    encode_position,
    position_json,
)
from app.rebuild import RebuiltPartition, rebuild_partition
from app.reference_file import reference_of
from app.stores.ledger_queries import Filters, Owner
from app.tabular import shown as shown_cell
from app.timestamps import parse_timestamp
from app.views import PositionsView

app = typer.Typer(help="Positions and PnL.", invoke_without_command=True)

_INTERVAL_S = 1.0
_FOLLOWS = (
    "DATABASE_URL: the positions topic follows the ledger, and is not made anew from the trades:"
    " restart the consumers, which write what it lacks; or set a new POSITIONS_TOPIC, which they"
    " fill"
)
_AMOUNTS = {"quantity", "average_price", "realized_pnl", "unrealized_pnl", "mark", "fees"}


@app.callback()
def positions(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing changes.")] = False,
    book: BookOption = None,
    symbol: SymbolOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Show every position: quantity, average price, PnL, mark, fees and the offset it covers.

    Where DATABASE_URL is set they are read from the ledger, and otherwise from the positions topic.
    The times are those of the last trade.
    """
    if context.invoked_subcommand is not None:
        return
    form = form_of(as_json=as_json, as_csv=as_csv)
    if watch and form is Form.CSV:
        raise typer.BadParameter("either --watch or --csv")
    settings = start_up()
    is_topic = settings.database_url is None
    # What is read from the topic is in memory as a whole; a ledger may hold more than a screen.
    most = limit or (sys.maxsize - 1 if is_topic else TABLE_ROWS)
    filters = Filters(
        book=book,
        symbol=symbol,
        since_ns=time_ns(since, "--since"),
        until_ns=time_ns(until, "--until"),
        # A table is given one row more than it shows, to know that there are more.
        limit=most + 1 if form is Form.TABLE else limit,
    )
    view = PositionsView(KafkaLogReader(settings), settings.positions_topic)
    pieces_of = (
        partial(_from_topic, view, filters, connect_timeout)
        if is_topic
        else partial(_from_ledger, settings, filters, connect_timeout)
    )
    if watch:
        asyncio.run(run_with_stop(lambda stop: _watch(stop, pieces_of, form, most), grace_s=5))
        return

    async def run() -> None:
        async with aclosing(pieces_of()) as pieces:
            shown = pieces if form is Form.JSON else _all_placed(pieces)
            await print_rows(shown, form=form, limit=most, empty="no positions")

    asyncio.run(run())


Pieces = AsyncGenerator[list[dict[str, Any]], None]


async def _from_topic(view: PositionsView, filters: Filters, connect_timeout_s: float) -> Pieces:
    await until_connected(view.refresh, timeout_s=connect_timeout_s)
    rows = [position_json(record) for record in view.positions if _is_asked(record, filters)]
    yield rows[: filters.limit]


async def _from_ledger(settings: Settings, filters: Filters, connect_timeout_s: float) -> Pieces:
    async with open_reader_of(settings, connect_timeout_s=connect_timeout_s) as reader:
        owner = await reader.owner() or Owner("", "")
        async for piece in reader.positions(filters):
            yield [_ledger_row(owner, *one) for one in piece]


def _ledger_row(owner: Owner, partition: int, position: Position, method: str) -> dict[str, Any]:
    record = decode_position_record(
        encode_position(position, group=owner.group, topic=owner.topic, partition=partition)
    )
    row = position_json(record)
    source = row.pop("source")
    more = {
        "currency": record.currency,
        "mark_at": record.mark_time,
        "trade_count": record.trade_count,
        "method": method,
    }
    return {**row, **more, "source": source}


def _is_asked(record: PositionRecord, filters: Filters) -> bool:
    if filters.book is not None and (record.book or "") != filters.book:
        return False
    if filters.symbol is not None and record.symbol != filters.symbol:
        return False
    mark_ns = parse_timestamp(record.mark_time)[0] if record.mark_time else 0
    return (filters.since_ns is None or mark_ns >= filters.since_ns) and (
        filters.until_ns is None or mark_ns < filters.until_ns
    )


async def _watch(
    stop: asyncio.Event, pieces_of: Callable[[], Pieces], form: Form, most: int
) -> None:
    shown: list[dict[str, Any]] = []
    with Live(console=Console(), auto_refresh=False) as live:
        while not stop.is_set():
            rows = [row async for piece in pieces_of() for row in piece]
            if form is Form.JSON:
                for row in (row for row in rows if row not in shown):
                    typer.echo(json.dumps(row))
            elif rows:
                drawn = [{n: shown_cell(v) for n, v in _placed(row).items()} for row in rows[:most]]
                live.update(table(drawn), refresh=True)
            shown = rows
            try:
                await asyncio.wait_for(stop.wait(), _INTERVAL_S)
            except TimeoutError:
                continue


async def _all_placed(pieces: Pieces) -> Pieces:
    async for piece in pieces:
        yield [_placed(row) for row in piece]


def _placed(row: dict[str, Any]) -> dict[str, Any]:
    """Give a row for a table or CSV, where amounts are numbers."""
    source = row["source"]
    amounts = {name: Decimal(value) for name, value in row.items() if name in _AMOUNTS}
    return row | amounts | {"source": f"{source['partition']}/{source['offset']}"}


@app.command()
def rebuild(
    partition: Annotated[int | None, typer.Option(min=0, help="Only this one.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the oldest trades are deleted.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Make the positions anew from the trades; stop the consumers of the group first.

    Not with a ledger: what is in the topic is a copy of it.
    """
    settings = start_up()
    if settings.database_url is not None:
        raise ConfigError([_FOLLOWS])
    if not yes:
        typer.confirm(
            "Replay the trades from their beginning and replace the positions?", abort=True
        )

    async def run(stop: asyncio.Event) -> list[RebuiltPartition]:
        reference = reference_of(settings)
        async with open_publisher(settings, stop, connect_timeout_s=connect_timeout) as publisher:
            reader = KafkaLogReader(settings)
            committed = await committed_offsets(settings)
            # Refused while the group has members: their state would be overtaken.
            await commit_offsets(settings, committed)
            done = []
            numbers = await reader.offset_ranges(settings.kafka_topic)
            if partition is not None and partition not in numbers:
                raise TopicError(f"{settings.kafka_topic} has no partition {partition}")
            for number in numbers:
                if stop.is_set():
                    raise KeyboardInterrupt
                if partition not in (None, number):
                    continue

                async def fence(next_offset: int, number: int = number) -> None:
                    if number in committed:
                        await commit_offsets(settings, {number: next_offset})

                rebuilt = await rebuild_partition(
                    settings,
                    partition=number,
                    committed=committed.get(number),
                    reader=reader,
                    publisher=publisher,
                    partition_of=KeyPartitioner().partition,
                    fence=fence,
                    reference=reference,
                    force=force,
                )
                typer.echo(
                    f"partition {number}: {rebuilt.positions:,} positions"
                    f" from {rebuilt.records:,} records"
                )
                done.append(rebuilt)
            return done

    asyncio.run(run_with_stop(run, grace_s=30))
