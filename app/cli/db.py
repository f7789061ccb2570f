"""`trade-stream db`: the ledger's PostgreSQL; the embedded one is started, stopped and watched."""

import asyncio
import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from app.embedded.postgres import DATABASE, EmbeddedPostgres, default_data_dir
from app.errors import ConfigError
from app.ledger import migrate_ledger
from app.lifecycle import start_up

_NOT_RUNNING = 3  # exit code of `status`, as service managers use it

app = typer.Typer(name="db", help="The ledger's PostgreSQL.", no_args_is_help=True)


DataDirOption = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        default_factory=default_data_dir,
        show_default=".trade-stream/postgres of the project",
        help="Where data, log and pid file are kept.",
    ),
]
DatabaseOption = Annotated[
    str, typer.Option(help="Of the server's databases: the demo has one of its own, `demo`.")
]


@app.command()
def start(data_dir: DataDirOption) -> None:
    """Start the embedded PostgreSQL, wait until it is ready, and leave it running."""
    EmbeddedPostgres(data_dir, notify=typer.echo).start()


@app.command()
def stop(data_dir: DataDirOption) -> None:
    """Stop it; its data is kept."""
    EmbeddedPostgres(data_dir, notify=typer.echo).stop()


@app.command()
def status(
    data_dir: DataDirOption,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say whether it runs; exit code 0 when it does, 3 when not."""
    postgres = EmbeddedPostgres(data_dir)
    facts = postgres.status()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(facts), default=str))
    elif facts.running:
        typer.echo(f"PostgreSQL {facts.version} at {facts.url}")
        typer.echo(f"ready: {facts.ready}")
        typer.echo(f"pid {facts.pid}, data in {facts.data_dir}, log in {postgres.log_path}")
    else:
        typer.echo(f"not running; data in {facts.data_dir}")
    if not facts.running:
        raise typer.Exit(_NOT_RUNNING)


@app.command()
def migrate() -> None:
    """Bring the database that DATABASE_URL names to the newest version of the tables.

    The embedded one does that by itself.
    """
    settings = start_up()
    if settings.database_url is None:
        raise ConfigError(["DATABASE_URL: must be set, to the database that is to be migrated"])
    steps = asyncio.run(migrate_ledger(settings))
    typer.echo("\n".join(f"took {step.name}" for step in steps) or "up to date")


@app.command()
def url(data_dir: DataDirOption, database: DatabaseOption = DATABASE) -> None:
    """Print its address, for any program that takes a PostgreSQL URL; exit code 3 when it is down.

    `psql "$(trade-stream db url)"`.
    """
    typer.echo(_running(data_dir).url_of(database))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(
    context: typer.Context, data_dir: DataDirOption, database: DatabaseOption = DATABASE
) -> None:
    """Open PostgreSQL's own client on it; further options are the client's: `-c 'TABLE t'`."""
    postgres = _running(data_dir)
    # One takes the place of the other, so that keys, signals and exit code are the client's.
    address = postgres.url_of(database)
    os.execv(postgres.psql, [str(postgres.psql), address, *context.args])  # noqa: S606 - no shell is wanted


def _running(data_dir: Path) -> EmbeddedPostgres:
    postgres = EmbeddedPostgres(data_dir)
    if not postgres.status(probe=False).running:
        typer.echo("not running; start it with `trade-stream db start`", err=True)
        raise typer.Exit(_NOT_RUNNING)
    return postgres
