"""`trade-stream replay`: publish trades from files."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption
from app.kafka_io.connect import open_publisher
from app.lifecycle import EXIT_FAILED, EXIT_INTERRUPTED, run_with_stop, start_up
from app.ports import OutgoingRecord, Publisher, SendOutcome, SendState
from app.progress import Progress
from app.replay import FieldMapping, ReplaySummary, check_files, parse_speed
from app.replay import replay as replay_files


class TradeIds(StrEnum):
    """Where trade ids come from, if not from a column."""

    GENERATE = "generate"


FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE…",
        help="CSV, JSON Lines (.csv .jsonl .ndjson .json) or .parquet, each also .gz or .zst.",
        show_default=False,
    ),
]
MapOption = Annotated[
    list[str],
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        default_factory=list,
        show_default=False,
        help="Fill a field of the trade event from a column. A column that has exactly the name "
        "of a field fills it without being mapped.",
    ),
]
DefaultOption = Annotated[
    list[str],
    typer.Option(
        "--default",
        metavar="FIELD=VALUE",
        default_factory=list,
        show_default=False,
        help="Value of a field where the column is missing, null or an empty CSV cell.",
    ),
]
SideFromOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN=VALUE:SIDE,…",
        help="Tell the side by a column, as in m=true:SELL,false:BUY. A value that is not named "
        "rejects the row.",
    ),
]
TradeIdOption = Annotated[
    TradeIds | None,
    typer.Option(
        help="Make trade ids out of file name, line and trade: equal in every replay of the file.",
    ),
]
ZoneOption = Annotated[
    str | None,
    typer.Option(
        metavar="ZONE",
        help="Zone of times without an offset, such as Europe/Amsterdam. Without it they are "
        "passed on as they are, and consumers take them as UTC and flag them.",
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict-decimals",
        help="Reject a number with more than 8 decimals instead of rounding it half-even.",
    ),
]
SpeedOption = Annotated[
    str, typer.Option(metavar="max|1x|10x", help="Pace by event time, or as fast as possible.")
]
RejectsOption = Annotated[
    Path | None,
    typer.Option(
        "--rejects",
        help="Where rows that were not published are named, with line and reason; written only "
        "when there are any.",
        show_default="FILE.rejects.jsonl, after the first file, in the current folder",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Map and sum every row, and publish nothing.")
]


def replay(
    files: FilesArgument,
    *,
    maps: MapOption,
    defaults: DefaultOption,
    side_from: SideFromOption = None,
    trade_id: TradeIdOption = None,
    tz: ZoneOption = None,
    strict_decimals: StrictOption = False,
    speed: SpeedOption = "max",
    rejects: RejectsOption = None,
    dry_run: DryRunOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Publish trades from files.

    Every row ends as published, rejected, not sent or unknown, and the summary adds up. The exit
    code is 0 when every row that could be mapped is published, 1 when a row was not sent, is
    unknown or a file could not be read to its end, 2 for wrong options and 130 after Ctrl-C.
    """
    settings = start_up()
    pace = parse_speed(speed)
    mapping = FieldMapping.parse(
        maps=maps,
        defaults=defaults,
        side_from=side_from,
        generate_ids=trade_id is TradeIds.GENERATE,
        zone=tz,
        is_strict=strict_decimals,
    )
    rejects_path = rejects or Path(f"{files[0].name}.rejects.jsonl")
    check_files(files, mapping, rejects_path)

    async def run(stop: asyncio.Event) -> ReplaySummary:
        connection: AbstractAsyncContextManager[Publisher] = (
            nullcontext(_DryRun())
            if dry_run
            else open_publisher(settings, stop, connect_timeout_s=connect_timeout)
        )
        async with connection as publisher:
            with Progress("replaying") as progress:
                return await replay_files(
                    files,
                    mapping,
                    publisher=publisher,
                    topic=settings.kafka_topic,
                    speed=pace,
                    rejects_path=rejects_path,
                    progress=progress.advance,
                    stop=stop,
                )

    grace_s = settings.shutdown_graceful_timeout_s
    summary = asyncio.run(run_with_stop(run, grace_s=grace_s))
    typer.echo(json.dumps(summary.to_json()) if as_json else summary.to_text())
    if summary.is_stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not summary.is_success:
        raise typer.Exit(EXIT_FAILED)


class _DryRun:
    """Takes every record and sends none."""

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        return [SendOutcome(SendState.OK)] * len(records)

    async def partition_count(self, topic: str) -> int:
        raise NotImplementedError(topic)
