"""`trade-stream positions`: what is held, live, and made anew."""

import asyncio
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from app.cli.context import (
    CONNECT_TIMEOUT_S,
    ConnectTimeoutOption,
    JsonOption,
    ask,
    show,
    table,
)
from app.config import Settings
from app.errors import TopicError
from app.kafka_io.connect import open_publisher
from app.kafka_io.groups import commit_offsets, committed_offsets
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.partitioner import KeyPartitioner
from app.lifecycle import run_with_stop, start_up
from app.position_codec import PositionRecord, position_json
from app.rebuild import RebuiltPartition, rebuild_partition
from app.views import PositionsView

app = typer.Typer(help="Positions and PnL.", invoke_without_command=True)

_INTERVAL_S = 1.0


@app.callback()
def positions(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing changes.")] = False,
    as_json: JsonOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Show every position: quantity, average price, PnL, mark, fees and the offset it covers."""
    if context.invoked_subcommand is not None:
        return
    if watch:
        asyncio.run(run_with_stop(lambda stop: _watch(stop, as_json=as_json), grace_s=5))
        return

    async def read(settings: Settings, reader: KafkaLogReader) -> list[PositionRecord]:
        view = PositionsView(reader, settings.positions_topic)
        await view.refresh()
        return view.positions

    rows = [position_json(record) for record in ask(read, connect_timeout)]
    if not as_json:
        rows = [row | {"source": _place(row["source"])} for row in rows]
    show(rows, as_json=as_json, empty="no positions")


async def _watch(stop: asyncio.Event, *, as_json: bool) -> None:
    settings = start_up()
    view = PositionsView(KafkaLogReader(settings), settings.positions_topic)
    shown: list[PositionRecord] = []
    with Live(console=Console(), auto_refresh=False) as live:
        while not stop.is_set():
            await view.refresh()
            if as_json:
                for record in (r for r in view.positions if r not in shown):
                    typer.echo(json.dumps(position_json(record)))
            elif view.positions:
                rows = [position_json(record) for record in view.positions]
                live.update(
                    table([row | {"source": _place(row["source"])} for row in rows]), refresh=True
                )
            shown = view.positions
            try:
                await asyncio.wait_for(stop.wait(), _INTERVAL_S)
            except TimeoutError:
                continue


def _place(source: dict[str, object]) -> str:
    return f"{source['partition']}/{source['offset']}"


@app.command()
def rebuild(
    partition: Annotated[int | None, typer.Option(min=0, help="Only this one.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the oldest trades are deleted.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Make the positions anew from the trades; stop the consumers of the group first."""
    if not yes:
        typer.confirm(
            "Replay the trades from their beginning and replace the positions?", abort=True
        )

    async def run(stop: asyncio.Event) -> list[RebuiltPartition]:
        settings = start_up()
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
                    force=force,
                )
                typer.echo(
                    f"partition {number}: {rebuilt.positions:,} positions"
                    f" from {rebuilt.records:,} records"
                )
                done.append(rebuilt)
            return done

    asyncio.run(run_with_stop(run, grace_s=30))
