"""`trade-stream db`: the ledger's PostgreSQL; the embedded one is started, stopped and watched."""

import asyncio
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from app.backfill import Backfill, Backfilled, Difference
from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption
from app.cli.ledger_output import day_of, time_ns
from app.config import Settings
from app.embedded.postgres import DATABASE, EmbeddedPostgres, default_data_dir
from app.errors import ConfigError, LedgerError
from app.kafka_io.connect import until_connected
from app.kafka_io.groups import commit_offsets, committed_offsets
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.partitioner import KeyPartitioner
from app.ledger import migrate_ledger, open_backfill_of, open_pruner_of, require_ledger
from app.lifecycle import EXIT_FAILED, run_with_stop, start_up
from app.progress import Progress
from app.reference_file import reference_of
from app.stores.changelog import Changelog
from app.views import read_quarantined

_MOST_SHOWN = 20
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

    The embedded one does that by itself. Where IDENTITY is set to another one than the ledger is
    kept with, this changes it; stop its consumers first.
    """
    settings = start_up()
    if settings.database_url is None:
        raise ConfigError(["DATABASE_URL: must be set, to the database that is to be migrated"])
    typer.echo("\n".join(asyncio.run(migrate_ledger(settings))) or "up to date")


@app.command()
def backfill(
    as_json: JsonOption = False, connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S
) -> None:
    """Fill a ledger with what the group has consumed without one; stop its consumers first.

    Replays every partition from the beginning of the topic to the committed offset, sends nothing,
    and compares what comes out with the positions topic. Broken off, it goes on where it was.
    """
    settings = start_up()
    require_ledger(settings, "a backfill")
    done = asyncio.run(
        run_with_stop(lambda stop: _backfill(settings, stop, connect_timeout), grace_s=30)
    )
    differences = [difference for one in done for difference in one.differences]
    equal = sum(one.equal for one in done)
    if as_json:
        typer.echo(json.dumps(_backfill_json(done, equal, differences), indent=2))
    else:
        for one in done:
            typer.echo(
                f"partition {one.partition}: {one.records:,} records, {one.trades:,} trades,"
                f" {one.dead_letters:,} dead letters; the ledger goes on at {one.next_offset}"
            )
        for difference in differences[:_MOST_SHOWN]:
            typer.echo(
                f"partition {difference.partition}, {json.dumps(difference.key)}: the trades come"
                f" to {json.dumps(difference.ledger)}, the positions topic has"
                f" {json.dumps(difference.topic)}"
            )
    if not done:
        typer.echo("the group has consumed nothing yet: there is nothing to do", err=True)
    elif differences:
        typer.echo(
            f"{len(differences):,} positions differ from the positions topic, {equal:,} equal it."
            " The ledger holds what the trades come to, and a consumer will write that to the topic"
            " when it starts. If that is not wanted, empty the database first",
            err=True,
        )
        raise typer.Exit(EXIT_FAILED)
    else:
        typer.echo(f"all {equal:,} positions equal the positions topic to the last digit", err=True)


async def _backfill(
    settings: Settings, stop: asyncio.Event, connect_timeout_s: float
) -> list[Backfilled]:
    reference = reference_of(settings)
    reader = KafkaLogReader(settings)
    ranges = await until_connected(
        lambda: reader.offset_ranges(settings.kafka_topic), timeout_s=connect_timeout_s
    )
    committed = await committed_offsets(settings)
    # Refused while the group has members: they would go on with what is replayed here.
    await commit_offsets(settings, committed)
    partitioner = KeyPartitioner()
    async with open_backfill_of(settings, connect_timeout_s=connect_timeout_s) as ledger:
        filling = Backfill(
            settings,
            committed=committed,
            ranges=ranges,
            unreadable=await _unreadable(settings, reader),
            reader=reader,
            ledger=ledger,
            changelog=Changelog.of(reader, settings),
            partition_of=lambda key: partitioner.partition(key, len(ranges)),
            reference=reference,
        )
        with Progress("backfill", total=await filling.claim()) as progress:

            def advance(count: int) -> None:
                progress.advance(count)
                if stop.is_set():
                    raise KeyboardInterrupt

            done = [await filling.replay(number, advance) for number in sorted(committed)]
    if await committed_offsets(settings) != committed:
        raise LedgerError(
            "the group has consumed meanwhile. Stop its consumers and run the backfill again: it"
            " goes on where it was"
        )
    return done


async def _unreadable(settings: Settings, reader: KafkaLogReader) -> dict[int, list[range]]:
    """Give what the group skipped because nobody can read it."""
    found: dict[int, list[range]] = {}
    for batch in await read_quarantined(reader, settings):
        if batch.next_offset is not None:
            skipped = range(batch.offset, batch.next_offset)
            found.setdefault(batch.partition, []).append(skipped)
    return found


def _backfill_json(
    done: list[Backfilled], equal: int, differences: list[Difference]
) -> dict[str, Any]:
    names = ("partition", "next_offset", "resumed_at", "records", "trades", "dead_letters", "equal")
    return {
        "partitions": [{name: getattr(one, name) for name in names} for one in done],
        "equal": equal,
        "differences": [dataclasses.asdict(difference) for difference in differences],
    }


@app.command()
def prune(
    before: Annotated[
        str,
        typer.Option(
            "--before", metavar="DAY", help="Delete trades executed before this day (UTC)."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Delete old trades; positions stay as they are, and consumers may run.

    A trade that is deleted is forgotten: sent once more, it would be booked as another one. Trades
    that were amended or cancelled stay.
    """
    settings = start_up()
    require_ledger(settings, "pruning")
    before_ns = time_ns(day_of(before, "--before").isoformat(), "--before") or 0
    if before_ns > time.time_ns():
        raise typer.BadParameter("must not be in the future", param_hint="--before")
    if not yes:
        typer.confirm(f"Delete the trades executed before {before}?", abort=True)

    async def run(stop: asyncio.Event) -> int:
        count = 0
        async with open_pruner_of(settings, connect_timeout_s=connect_timeout) as pruner:
            found = await pruner.find(before_ns)
            with Progress("prune", total=sum(of.trades for of in found)) as progress:
                for of in found:
                    async for deleted in pruner.prune(of, before_ns):
                        count += deleted
                        progress.advance(deleted)
                        if stop.is_set():
                            raise KeyboardInterrupt
        return count

    count = asyncio.run(run_with_stop(run, grace_s=90))
    typer.echo(json.dumps({"deleted": count}) if as_json else f"{count:,} trades deleted")


@app.command()
def url(data_dir: DataDirOption, database: DatabaseOption = DATABASE) -> None:
    """Print its address, for any program that takes a PostgreSQL URL; exit code 3 when it is down.

    `psql "$(trade-stream db url)"`.
    """
    typer.echo(_running(data_dir).url_of(database))


_CLIENT = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_CLIENT)
def psql(
    context: typer.Context, data_dir: DataDirOption, database: DatabaseOption = DATABASE
) -> None:
    """Open PostgreSQL's own client on it; further options are the client's: `-c 'TABLE t'`."""
    _become("psql", _running(data_dir), database, context.args)


@app.command("pg_dump", context_settings=_CLIENT)
def pg_dump(
    context: typer.Context, data_dir: DataDirOption, database: DatabaseOption = DATABASE
) -> None:
    """Back it up by PostgreSQL's own program; further options are that one's: `-Fc -f FILE`."""
    _become("pg_dump", _running(data_dir), database, context.args)


@app.command("pg_restore", context_settings=_CLIENT)
def pg_restore(
    context: typer.Context, data_dir: DataDirOption, database: DatabaseOption = DATABASE
) -> None:
    """Restore a backup by PostgreSQL's own program: `--clean --if-exists -1 FILE`."""
    _become("pg_restore", _running(data_dir), database, context.args)


def _become(name: str, postgres: EmbeddedPostgres, database: str, arguments: list[str]) -> None:
    program = str(postgres.program(name))
    # One takes the place of the other, so that keys, signals and exit code are the client's.
    address = postgres.url_of(database)
    os.execv(program, [program, "--dbname", address, *arguments])  # noqa: S606 - no shell is wanted


def _running(data_dir: Path) -> EmbeddedPostgres:
    postgres = EmbeddedPostgres(data_dir)
    if not postgres.status(probe=False).running:
        typer.echo("not running; start it with `trade-stream db start`", err=True)
        raise typer.Exit(_NOT_RUNNING)
    return postgres
