"""`trade-stream copy|reconcile`: the analytics copy in ClickHouse, made and held to its source."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Annotated

import typer

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption
from app.config import Settings
from app.copier import CopyStats, TradeCopier
from app.errors import ConfigError
from app.kafka_io.connect import open_source, until_connected
from app.kafka_io.log_reader import KafkaLogReader
from app.ledger import database_url
from app.lifecycle import EXIT_FAILED, EXIT_NEEDS_PERSON, or_stopped, run_with_stop, start_up
from app.reconcile import Reconciler, Reconciliation
from app.stores.clickhouse import ClickHouseCopy, open_copy
from app.stores.ledger_digests import open_digests

_HINT = "Start ClickHouse, or set CLICKHOUSE_URL to one that runs, or to `embedded`"

app = typer.Typer(help="Copies of the trades for analytics.", no_args_is_help=True)


@app.callback()
def copies() -> None:
    """Copies of the trades for analytics."""


@app.command()
def clickhouse(
    *,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="Stop at the end of the topic.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Drop the copy first, and make it anew.")
    ] = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Copy every trade event into ClickHouse, exactly, once for each place in the topic."""
    settings = _settings()

    async def run(stop: asyncio.Event) -> CopyStats:
        # A group of its own: whatever ClickHouse does delays nobody else.
        own = settings.model_copy(update={"kafka_group_id": settings.clickhouse_group_id})
        async with AsyncExitStack() as stack:
            copy = await _connected(stack, settings, stop, connect_timeout, rebuild=rebuild)
            source = await stack.enter_async_context(
                open_source(own, stop, connect_timeout_s=connect_timeout)
            )
            copier = TradeCopier(source=source, store=copy, settings=settings)
            return await copier.run(stop, until_caught_up=until_caught_up)

    grace_s = settings.shutdown_graceful_timeout_s
    stats = asyncio.run(run_with_stop(run, grace_s=grace_s))
    typer.echo(json.dumps(stats.to_json()) if as_json else stats.to_text())
    if stats.stopped:
        raise typer.Exit(EXIT_NEEDS_PERSON)


def reconcile(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Copy anew from the topic what differs.")
    ] = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Compare the ClickHouse copy with the ledger, or with the topic where there is none.

    Exit code 1 when something differs and was not repaired.
    """
    settings = _settings()

    async def run(stop: asyncio.Event) -> Reconciliation:
        async with AsyncExitStack() as stack:
            copy = await _connected(stack, settings, stop, connect_timeout)
            ledger = None
            if settings.database_url is not None:
                url = await database_url(settings)
                ledger = await stack.enter_async_context(open_digests(url))
            reconciler = Reconciler(
                copy=copy, reader=KafkaLogReader(settings), settings=settings, ledger=ledger
            )
            return await or_stopped(reconciler.run(repair=repair), stop)

    grace_s = settings.shutdown_graceful_timeout_s
    result = asyncio.run(run_with_stop(run, grace_s=grace_s))
    typer.echo(json.dumps(result.to_json(), indent=1) if as_json else result.to_text())
    if not result.is_equal:
        raise typer.Exit(EXIT_FAILED)


def _settings() -> Settings:
    settings = start_up()
    if settings.clickhouse_url is None:
        raise ConfigError(
            ["CLICKHOUSE_URL: must be set, to `embedded` or to the address of a ClickHouse"]
        )
    return settings


async def _connected(
    stack: AsyncExitStack,
    settings: Settings,
    stop: asyncio.Event,
    timeout_s: float,
    *,
    rebuild: bool = False,
) -> ClickHouseCopy:
    async def connect() -> ClickHouseCopy:
        return await stack.enter_async_context(open_copy(settings, rebuild=rebuild))

    connecting = until_connected(connect, timeout_s=timeout_s, to="ClickHouse", hint=_HINT)
    return await or_stopped(connecting, stop)
