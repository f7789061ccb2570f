"""`trade-stream replay`: publish market prints from files."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Final

import rich.progress
import typer
from rich.console import Console

from app.errors import ConfigError
from app.ports import Publisher
from app.replay import (
    DryRunPublisher,
    FieldMapping,
    Progress,
    ReplaySummary,
    TimeUnit,
    check_files,
    default_rejects_path,
    parse_speed,
)
from app.replay import replay as replay_files
from app.replay_files import Format, ReadOptions

_PROGRESS_INTERVAL_S: Final = 5.0
_EXIT_FAILED: Final = 1
_EXIT_CONFIG: Final = 2
_EXIT_STOPPED: Final = 130

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
    str | None,
    typer.Option(
        metavar="generate",
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
TimeUnitOption = Annotated[
    TimeUnit, typer.Option(help="Unit of times that are numbers; auto tells it by magnitude.")
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict-decimals",
        help="Reject a number with more than 8 decimals instead of rounding it half-even.",
    ),
]
ByNameOption = Annotated[
    bool, typer.Option(help="Whether columns named like a field fill it without being mapped.")
]
SpeedOption = Annotated[
    str, typer.Option(metavar="max|1x|10x", help="Pace by event time, or as fast as possible.")
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="Format of every file, whatever its extension says."),
]
DelimiterOption = Annotated[
    str, typer.Option(help="Character between two CSV cells; \\t or tab is a tab.")
]
RejectsOption = Annotated[
    Path | None,
    typer.Option(
        "--rejects",
        dir_okay=False,
        help="Where rows that were not published are named, with line and reason; written only "
        "when there are any.",
        show_default="FILE.rejects.jsonl, after the first file, in the current folder",
    ),
]
TopicOption = Annotated[
    str | None, typer.Option(help="Topic to publish to.", show_default="KAFKA_TOPIC")
]
TimeoutOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a broker.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Map and sum every row, and publish nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as one line of JSON.")]


def replay(
    files: FilesArgument,
    *,
    maps: MapOption,
    defaults: DefaultOption,
    side_from: SideFromOption = None,
    trade_id: TradeIdOption = None,
    tz: ZoneOption = None,
    time_unit: TimeUnitOption = TimeUnit.AUTO,
    strict_decimals: StrictOption = False,
    by_name: ByNameOption = True,
    speed: SpeedOption = "max",
    file_format: FormatOption = None,
    delimiter: DelimiterOption = ",",
    rejects: RejectsOption = None,
    topic: TopicOption = None,
    connect_timeout: TimeoutOption = 30.0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish market prints from files as trade events.

    Every row ends as published, rejected, not sent or unknown, and the summary adds up. The exit
    code is 0 when every row that could be mapped is published, 1 when a row was not sent, is
    unknown or a file could not be read to its end, 2 for wrong options and 130 after Ctrl-C.
    """
    rejects_path = rejects or default_rejects_path(files)
    try:
        mapping, pace, options = _parse_options(
            maps=maps,
            defaults=defaults,
            side_from=side_from,
            trade_id=trade_id,
            zone=tz,
            time_unit=time_unit,
            is_strict=strict_decimals,
            by_name=by_name,
            speed=speed,
            options=(file_format, delimiter),
        )
        check_files(files, mapping, options, rejects_path)
    except (ConfigError, ImportError) as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(_EXIT_CONFIG) from exc

    async def run() -> ReplaySummary:
        async with _publisher(topic, connect_timeout, is_dry=dry_run) as (publisher, to_topic):
            with _progress_shown() as progress:
                return await replay_files(
                    files,
                    mapping,
                    publisher=publisher,
                    topic=to_topic,
                    speed=pace,
                    options=options,
                    rejects_path=rejects_path,
                    progress=progress,
                    stop=_stop_on_signal(),
                )

    summary = asyncio.run(run())
    typer.echo(summary.to_json() if as_json else "\n".join(_lines(summary, is_dry=dry_run)))
    if summary.is_stopped:
        raise typer.Exit(_EXIT_STOPPED)
    if not summary.is_success:
        raise typer.Exit(_EXIT_FAILED)


def _parse_options(
    *,
    maps: list[str],
    defaults: list[str],
    side_from: str | None,
    trade_id: str | None,
    zone: str | None,
    time_unit: TimeUnit,
    is_strict: bool,
    by_name: bool,
    speed: str,
    options: tuple[Format | None, str],
) -> tuple[FieldMapping, float | None, ReadOptions]:
    problems: list[str] = []
    mapping, pace = FieldMapping(), None
    try:
        mapping = FieldMapping.parse(
            maps=maps,
            defaults=defaults,
            side_from=side_from,
            generate_ids=trade_id is not None,
            zone=zone,
            time_unit=time_unit,
            is_strict=is_strict,
            by_name=by_name,
        )
    except ConfigError as exc:
        problems += exc.problems
    try:
        pace = parse_speed(speed)
    except ConfigError as exc:
        problems += exc.problems
    if trade_id not in {None, "generate"}:
        problems.append(f"--trade-id {trade_id}: must be generate; or use --map trade_id=COLUMN")
    file_format, delimiter = options
    delimiter = "\t" if delimiter in {"\\t", "tab"} else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        problems.append("--delimiter: must be one character, and no quotation mark or line end")
    if problems:
        raise ConfigError(problems)
    return mapping, pace, ReadOptions(file_format, delimiter)


@asynccontextmanager
async def _publisher(
    topic: str | None, connect_timeout_s: float, *, is_dry: bool
) -> AsyncIterator[tuple[Publisher, str]]:
    if is_dry:
        yield DryRunPublisher(), topic or ""
        return
    # SEAM: the connection. `open_publisher` yields the settings and a connected publisher.
    from app.cli.context import open_publisher  # noqa: PLC0415 - a dry run needs no broker client

    async with open_publisher(connect_timeout_s) as (settings, publisher):
        yield publisher, topic or settings.kafka_topic


def _stop_on_signal() -> asyncio.Event:
    """Give an event that the first Ctrl-C sets; the second one ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return stop


@contextmanager
def _progress_shown() -> Iterator[Callable[[Progress], None]]:
    """Show progress on stderr: a bar on a terminal, otherwise a line of JSON every 5 s."""
    if not sys.stderr.isatty():
        yield _json_lines()
        return
    bar = rich.progress.Progress(
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[counts]}"),
        rich.progress.TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("replay", counts="")

        def show(progress: Progress) -> None:
            rate = progress.rows / progress.seconds if progress.seconds else 0
            counts = f"{progress.rows:,} rows  {progress.rejected:,} rejected  {rate:,.0f} rows/s"
            bar.update(
                task, completed=progress.bytes_read, total=progress.bytes_total, counts=counts
            )

        yield show


def _json_lines() -> Callable[[Progress], None]:
    last_s = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last_s
        if time.monotonic() - last_s < _PROGRESS_INTERVAL_S:
            return
        last_s = time.monotonic()
        line = {
            "event": "replay_progressed",
            "rows": progress.rows,
            "published": progress.published,
            "rejected": progress.rejected,
            "failed": progress.failed,
            "bytes_read": progress.bytes_read,
            "bytes_total": progress.bytes_total,
            "seconds": round(progress.seconds, 1),
        }
        typer.echo(json.dumps(line), err=True)

    return show


def _lines(summary: ReplaySummary, *, is_dry: bool) -> Iterator[str]:
    """Write the summary for a person."""
    yield f"rows          {summary.rows:>14,}"
    yield f"seconds       {summary.seconds:>14,.1f}   {summary.rows_per_s:,.0f} rows/s"
    yield f"{'mapped (dry)' if is_dry else 'published':<13} {summary.published:>14,}"
    yield f"rejected      {summary.rejected_total:>14,}"
    for reason, count in sorted(summary.rejected.items()):
        yield f"  {reason:<30} {count:,}"
    yield f"not sent      {summary.not_sent:>14,}"
    yield f"unknown       {summary.unknown:>14,}"
    for code, count in sorted({**summary.rounded, **summary.suspects}.items()):
        yield f"  {code:<30} {count:,}"
    yield f"sum quantity  {summary.sum_quantity:>14,f}"
    yield f"sum notional  {summary.sum_notional:>14,f}"
    yield f"event time    {summary.first_event_time} to {summary.last_event_time}"
    for counts in summary.files:
        if counts.error is not None:
            yield f"FILE ERROR    {counts.file}: {counts.error}, after row {counts.rows:,}"
    if summary.rejects_path is not None:
        yield f"rejects in    {summary.rejects_path}"
    if summary.is_stopped:
        yield "stopped ahead of the end: the rows read so far are counted"
    if not summary.adds_up:
        yield "THE ROWS DO NOT ADD UP: this is a fault of the program"
