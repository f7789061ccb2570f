"""`trade-stream dlq`: what could not be used, and why."""

import json
from collections import Counter
from typing import Annotated, Any

import typer

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption, ask, show
from app.config import Settings
from app.kafka_io.log_reader import KafkaLogReader
from app.ports import Record
from app.views import dead_letter_json, read_dead_letters

app = typer.Typer(help="Dead letters.", no_args_is_help=True)

_EXIT_NOT_FOUND = 3


@app.command("list")
def list_(
    reason: Annotated[str | None, typer.Option(help="Only those with this reason code.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    counts: Annotated[
        bool, typer.Option("--counts", help="Only how many for each reason.")
    ] = False,
    as_json: JsonOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """List dead letters with their origin and reason; payloads are not shown."""

    async def read(
        settings: Settings, reader: KafkaLogReader
    ) -> tuple[list[dict[str, Any]], Counter[str]]:
        rows: list[dict[str, Any]] = []
        by_reason: Counter[str] = Counter()
        letters = read_dead_letters(reader, settings.dlq_topic, partition=partition)
        async for number, record in letters:
            row = dead_letter_json(number, record)
            if reason is None or row["reason"] == reason:
                by_reason[str(row["reason"])] += 1
                rows.append(row)
                if len(rows) >= 2 * limit:  # bounded, and sorted once for many
                    rows = _newest(rows, limit)
        return _newest(rows, limit), by_reason

    rows, by_reason = ask(read, connect_timeout)
    if counts:
        rows = [{"reason": name, "count": count} for name, count in by_reason.most_common()]
    elif not as_json:
        names = ("partition", "offset", "reason", "message", "source_offset", "failed_at")
        rows = [{name: row[name] for name in names} for row in rows]
    show(rows, as_json=as_json, empty="no dead letters")


def _newest(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["failed_at"] or "")[-limit:]


@app.command("show")
def show_one(
    partition: Annotated[int, typer.Argument(min=0, help="Partition of the dead letter.")],
    offset: Annotated[int, typer.Argument(min=0, help="Its offset there.")],
    as_json: JsonOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Show one dead letter whole: headers, key and value as they were."""

    async def read(settings: Settings, reader: KafkaLogReader) -> list[Record]:
        letters = read_dead_letters(reader, settings.dlq_topic, partition=partition, offset=offset)
        return [record async for _, record in letters]

    found = ask(read, connect_timeout)
    if not found:
        typer.echo(f"no dead letter at partition {partition}, offset {offset}", err=True)
        raise typer.Exit(_EXIT_NOT_FOUND)
    (record,) = found
    whole = dead_letter_json(partition, record) | {
        "timestamp_ms": record.timestamp,
        "value": (record.value or b"").decode("utf-8", "backslashreplace"),
        "headers": [
            {"name": name, "value": (value or b"").decode("utf-8", "backslashreplace")}
            for name, value in record.headers
        ],
    }
    if as_json:
        typer.echo(json.dumps(whole, indent=2))
        return
    for name, value in whole.items():
        if name != "headers":
            # As JSON text, so that control characters of a stranger do not reach the terminal.
            typer.echo(f"{name:18} {json.dumps(value)}")
    for header in whole["headers"]:
        typer.echo(f"  {header['name']:30} {json.dumps(header['value'])}")
