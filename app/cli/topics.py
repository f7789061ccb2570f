"""`trade-stream topics`: create what is missing, check what is there."""

from typing import Annotated

import typer

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption, ask, show
from app.kafka_io.topics import TopicAdmin
from app.lifecycle import EXIT_FAILED

app = typer.Typer(help="The three topics and their settings.", no_args_is_help=True)


@app.command()
def init(
    partitions: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Instead of KAFKA_PARTITIONS.")
    ] = None,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Create the topics that are missing, with the right settings."""
    changes: dict[str, object] = {"kafka_create_topics": True}
    if partitions is not None:
        changes["kafka_partitions"] = partitions
    created = ask(
        lambda settings, _: TopicAdmin(settings.model_copy(update=changes)).ensure(),
        connect_timeout,
    )
    typer.echo("\n".join(f"created {name}" for name in created) or "nothing is missing")


@app.command()
def check(
    as_json: JsonOption = False, connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S
) -> None:
    """Compare the topics with what delivery needs; exit code 1 when it cannot do with them."""
    found = ask(lambda settings, _: TopicAdmin(settings).check(), connect_timeout)
    rows = [{"severity": "error", "problem": problem} for problem in found.problems]
    rows += [{"severity": "warning", "problem": warning} for warning in found.warnings]
    show(rows, as_json=as_json, empty="the topics are fit")
    if found.problems:
        raise typer.Exit(EXIT_FAILED)
