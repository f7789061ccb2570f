"""`trade-stream lag|gap|doctor|config|version`: what is going on, and what to do about it."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption, ask, show
from app.config import Settings, describe
from app.dead_letters import APP_VERSION
from app.errors import OffsetGapError, TopicError, TradeStreamError, TransportError
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.topics import TopicAdmin
from app.ledger import group_offsets, move_group
from app.lifecycle import EXIT_FAILED, start_up
from app.starting_point import StartingPoint, starting_point
from app.stores.changelog import Changelog
from app.views import position_owners, read_lag

gap = typer.Typer(help="Records that were lost before they were processed.", no_args_is_help=True)
config = typer.Typer(help="The settings.", no_args_is_help=True)


def lag(
    as_json: JsonOption = False, connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S
) -> None:
    """Show how far the group is behind, for each partition."""
    parts = ask(read_lag, connect_timeout)
    rows: list[dict[str, Any]] = [
        {"partition": p.partition, "committed": p.committed, "end": p.end, "lag": p.lag}
        for p in parts
    ]
    show(rows, as_json=as_json, empty="no partitions")
    if not as_json:
        typer.echo(f"total lag {sum(p.lag for p in parts):,}")


@gap.command()
def accept(
    partition: Annotated[int | None, typer.Option(min=0, help="Only this one.")] = None,
    to: Annotated[
        int | None, typer.Option(min=0, help="Go on at this offset of --partition.")
    ] = None,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Let stopped partitions go on without what is gone; stop the consumers of the group first."""
    if to is not None:
        if partition is None:
            raise typer.BadParameter("--to needs --partition")
        ask(partial(move_on, partition=partition, next_offset=to), connect_timeout)
        typer.echo(f"partition {partition} goes on at offset {to}")
        return

    async def run(settings: Settings, reader: KafkaLogReader) -> list[str]:
        accepted: dict[int, int] = {}
        lines = []
        starts = await _starts(settings, reader)
        if partition is not None and partition not in [number for number, _, _ in starts]:
            raise TopicError(f"{settings.kafka_topic} has no partition {partition}")
        for number, gap_found, start in starts:
            if gap_found is not None and start is not None and partition in (None, number):
                accepted[number] = start.offset
                lines.append(f"partition {number} goes on at offset {start.offset}: {gap_found}")
        if accepted:
            await move_group(settings, accepted)
        return lines

    typer.echo("\n".join(ask(run, connect_timeout)) or "no gap")


async def move_on(
    settings: Settings, reader: KafkaLogReader, *, partition: int, next_offset: int
) -> None:
    """Let a group that is stopped go on at a later offset of one partition.

    Raises:
        TopicError: There is no such partition.
        OffsetGapError: The offset is before the committed one, or beyond the end.
        TransportError: The group has members, or no broker answered.
    """
    ranges = await reader.offset_ranges(settings.kafka_topic)
    if partition not in ranges:
        raise TopicError(f"{settings.kafka_topic} has no partition {partition}")
    committed = (await group_offsets(settings)).get(partition, 0)
    end = ranges[partition][1]
    if not committed <= next_offset <= end:
        raise OffsetGapError(
            f"partition {partition} is committed up to offset {committed} and ends at {end}:"
            f" {next_offset} is not between them"
        )
    await move_group(settings, {partition: next_offset})


async def _starts(
    settings: Settings, reader: KafkaLogReader
) -> list[tuple[int, str | None, StartingPoint | None]]:
    """Judge every partition as a consumer would: its gap, and where it would go on all the same."""
    changelog = Changelog.of(reader, settings)
    committed = await group_offsets(settings)
    found: list[tuple[int, str | None, StartingPoint | None]] = []
    for number, (first, end) in (await reader.offset_ranges(settings.kafka_topic)).items():
        restored = await changelog.restore(number)
        judge = partial(
            starting_point,
            committed=committed.get(number),
            is_known=restored.is_known or settings.database_url is not None,
            has_positions=bool(restored.positions),
            source_offset=restored.newest[1],
            first=first,
            end=end,
        )
        try:
            found.append((number, None, judge()))
        except OffsetGapError as exc:
            found.append((number, str(exc), _accepted(judge)))
    return found


def _accepted(judge: Callable[..., StartingPoint]) -> StartingPoint | None:
    try:
        return judge(may_continue=True)
    except OffsetGapError:
        return None  # not a gap that can be accepted: the topic is another one


def doctor(
    as_json: JsonOption = False,
    connect_timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait.")] = 3.0,
) -> None:
    """Look for what is wrong with brokers, topics, positions and offsets, each with its fix."""
    settings = start_up()
    problems, warnings = asyncio.run(_diagnose(settings, connect_timeout))
    rows = [
        {"check": check, "severity": severity, "problem": text}
        for severity, of_it in (("error", problems), ("warning", warnings))
        for check, text in of_it
    ]
    show(rows, as_json=as_json, empty="all is well")
    if problems:
        raise typer.Exit(EXIT_FAILED)


async def _diagnose(
    settings: Settings, timeout_s: float
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Give problems and warnings, each with the check that found it."""
    reader = KafkaLogReader(settings)
    try:
        async with asyncio.timeout(timeout_s + 30):
            found = await TopicAdmin(settings).check()
    except (TransportError, TimeoutError) as exc:
        hint = (
            "start a broker with `trade-stream broker start`, or set KAFKA_BOOTSTRAP_SERVERS"
            if getattr(exc, "retryable", True)
            else "check KAFKA_SECURITY_PROTOCOL and the KAFKA_SASL_ and KAFKA_SSL_ settings"
        )
        return [("broker", f"{exc}: {hint}")], []
    problems = [("topics", problem) for problem in found.problems]
    try:
        others = await position_owners(reader, settings.positions_topic) - {settings.kafka_group_id}
        problems += [
            (
                "positions",
                f"positions of {other} are in it too: set POSITIONS_TOPIC to another topic",
            )
            for other in sorted(others)
        ]
        if not others:
            problems += [
                ("offsets", f"partition {number}: {gap_found}")
                for number, gap_found, _ in await _starts(settings, reader)
                if gap_found is not None
            ]
    except TopicError as exc:
        problems.append(("topics", str(exc)))
    except TradeStreamError as exc:
        problems.append(("broker", str(exc)))
    return problems, [("topics", warning) for warning in found.warnings]


@config.command("show")
def show_config(as_json: JsonOption = False) -> None:
    """Show every setting, where it comes from and what it means; secrets are not shown."""
    rows = describe(start_up())
    show(rows, as_json=as_json, empty="")


def version() -> None:
    """Print the version."""
    typer.echo(APP_VERSION)
