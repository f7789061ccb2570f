"""`trade-stream demo|up|consume`: the whole of it, once or for good."""

import asyncio
import json
from decimal import Decimal
from typing import Annotated

import typer
from rich.console import Console

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption, table
from app.config import HIGH_VOLUME_COUNT, data_home, set_for_children
from app.consumer import main as consume_one
from app.demo import DEMO_DATABASE, DemoResult, run_demo
from app.embedded.kafka import EmbeddedKafka
from app.lifecycle import EXIT_FAILED, EXIT_NEEDS_PERSON, run_with_stop, start_up
from app.position_codec import PositionRecord
from app.supervisor import Supervisor

_SHOWN_POSITIONS = 8


def demo(
    count: Annotated[int, typer.Option(min=1, help="Trades to publish.")] = HIGH_VOLUME_COUNT,
    poison: Annotated[float, typer.Option(min=0, max=1, help="Share of poisoned records.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the trades; random without.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a real Kafka, publish trades, consume them, and check that everything adds up."""
    settings = start_up()

    def say(line: str) -> None:
        typer.echo(line, err=as_json)

    result = asyncio.run(
        run_with_stop(
            lambda stop: run_demo(settings, stop, count=count, poison=poison, seed=seed, say=say),
            grace_s=settings.shutdown_graceful_timeout_s,
        )
    )
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        _show(result)
    if result.problems:
        raise typer.Exit(EXIT_FAILED)


def _show(result: DemoResult) -> None:
    values = result.to_json()
    console = Console(highlight=False)
    console.print()
    largest = sorted(result.positions, key=lambda p: -p.trade_count)[:_SHOWN_POSITIONS]
    if largest:
        console.print(
            f"The {len(largest)} most traded of {len(result.positions):,} positions"
            " (shown to the cent, half-even)"
        )
        console.print(table([_in_cents(position) for position in largest]))
        console.print()
    latency = values["latency_ms"]
    rows = [
        ("produced", f"{values['produced']:,}", f"{values['produce_per_s']:,}/s"),
        ("booked", f"{values['consumed']:,}", f"{values['consume_per_s']:,}/s consumed"),
        ("dead-lettered", f"{values['dead_lettered']:,}", ""),
        *((f"  {reason}", f"{count:,}", "") for reason, count in values["reasons"].items()),
        ("lag", f"{values['lag']:,}", ""),
        ("latency, publish to commit", f"p50 {latency['p50']} ms", f"p99 {latency['p99']} ms"),
        ("total PnL", values["total_pnl"], f"over {values['positions']:,} positions"),
    ]
    for name, value, note in rows:
        console.print(f"  {name:26} {value:>16}  {note}")
    console.print()
    if values["cash_invariant_ok"]:
        console.print("The cash invariant holds: total PnL = cash + holdings at the mark, exactly.")
    if result.ledger is not None:
        console.print(
            f"The ledger has {result.ledger.trades:,} trades and the same total PnL. Embedded, it"
            f" is kept until the next demo: ./run.sh db psql --database {DEMO_DATABASE}"
        )
    for problem in result.problems:
        console.print(f"DOES NOT ADD UP: {problem}")
    if not result.problems:
        console.print(
            f"It adds up: {values['produced']:,} produced = {values['consumed']:,} booked"
            f" + {values['dead_lettered']:,} dead-lettered."
        )


def _in_cents(position: PositionRecord) -> dict[str, str | None]:
    amounts = ("average_price", "realized_pnl", "unrealized_pnl")
    return {
        "book": position.book,
        "symbol": position.symbol,
        "quantity": position.quantity,
        **{name: f"{Decimal(getattr(position, name)):,.2f}" for name in amounts},
    }


def consume(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes in the group.")] = 1,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="Stop at the end of the topic.")
    ] = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Consume trades: validate, keep positions and PnL, dead-letter what cannot be used."""
    if workers == 1:
        consume_one(
            until_caught_up=until_caught_up, connect_timeout=connect_timeout, as_json=as_json
        )
        return
    settings = start_up()
    arguments = ["--connect-timeout", str(connect_timeout)]
    if until_caught_up:
        arguments.append("--until-caught-up")
    supervisor = Supervisor(workers, arguments, health_port=settings.health_port)
    # The workers have the grace time; the supervisor outlives them by a little.
    grace_s = settings.shutdown_graceful_timeout_s + 2
    sums = asyncio.run(run_with_stop(supervisor.run, grace_s=grace_s))
    if as_json:
        typer.echo(json.dumps(sums))
    else:
        total = sum(sums["fates"].values())
        typer.echo(f"{workers} workers consumed {total:,} trades: {sums['fates']}")
    if sums["stopped_partitions"]:
        raise typer.Exit(EXIT_NEEDS_PERSON)


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Consumer processes.")] = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the broker.")] = 9092,
) -> None:
    """Keep a broker and consumers running until Ctrl-C."""
    kafka = EmbeddedKafka(data_dir=data_home() / "kafka", port=port, notify=typer.echo)
    was_running = kafka.status(probe=False).running
    kafka.start()
    try:
        set_for_children("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap)
        consume(workers=workers)
    finally:
        if not was_running:
            kafka.stop()
