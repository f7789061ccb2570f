"""The command line: one module for each family of commands; it builds nothing itself."""

import typer

from app import producer
from app.cli import (
    broker,
    copying,
    db,
    dlq,
    ledger,
    pnl,
    positions,
    quarantine,
    reference,
    run,
    state,
    topics,
)
from app.cli import replay as replay_command
from app.lifecycle import run_command

EXIT_CODES = """Exit codes: 0 done; 1 failed, and the last line says why; 2 wrong settings or
options; 3 not running, or nothing found; 4 a partition waits for a person; 130 interrupted."""

app = typer.Typer(
    name="trade-stream",
    help="Real-time trade streaming on Apache Kafka.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(run.demo)
app.command("up")(run.up)
app.command("produce")(producer.main)
app.command("consume")(run.consume)
app.command("replay")(replay_command.replay)
app.add_typer(broker.app, name="broker")
app.add_typer(db.app, name="db")
app.add_typer(topics.app, name="topics")
app.add_typer(positions.app, name="positions")
app.command("trades")(ledger.trades)
app.command("pnl")(pnl.pnl)
app.command("export")(ledger.export)
app.add_typer(dlq.app, name="dlq")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(reference.app, name="reference")
app.add_typer(state.gap, name="gap")
app.add_typer(state.config, name="config")
app.add_typer(copying.app, name="copy")
app.command("reconcile")(copying.reconcile)
app.command("lag")(state.lag)
app.command("doctor")(state.doctor)
app.command("version")(state.version)


def main() -> None:
    """Run the command line of this process."""
    run_command(app)
