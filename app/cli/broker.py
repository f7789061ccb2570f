"""`trade-stream broker`: start, stop and watch the embedded Apache Kafka."""

import dataclasses
import json
import signal
import time
from collections import deque
from pathlib import Path
from typing import Annotated, TextIO

import typer

from app.config import data_home
from app.embedded.kafka import EmbeddedKafka
from app.errors import EmbeddedBrokerError

_NOT_RUNNING = 3  # exit code of `status`, as service managers use it
_FOLLOW_POLL_S = 0.2
_LIVENESS_POLL_S = 0.5

app = typer.Typer(
    name="broker",
    help="A real Apache Kafka on this machine, without containers.",
    no_args_is_help=True,
)


def _default_data_dir() -> Path:
    return data_home() / "kafka"


DataDirOption = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        default_factory=_default_data_dir,
        show_default=".trade-stream/kafka of the project",
        help="Where data, logs and pid files are kept.",
    ),
]
NodesOption = Annotated[int, typer.Option(help="Number of brokers, 1 or 3; fixed at first start.")]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Of the first broker; 0 picks free ones.")
]


@app.command()
def start(data_dir: DataDirOption, nodes: NodesOption = 1, port: PortOption = 9092) -> None:
    """Start the broker, wait until it serves clients, and leave it running."""
    EmbeddedKafka(data_dir=data_dir, nodes=nodes, port=port, notify=typer.echo).start()


@app.command()
def stop(data_dir: DataDirOption) -> None:
    """Stop the broker; its data is kept."""
    EmbeddedKafka(data_dir=data_dir, notify=typer.echo).stop()


@app.command()
def run(data_dir: DataDirOption, nodes: NodesOption = 1, port: PortOption = 9092) -> None:
    """Run the broker in the foreground until Ctrl-C or SIGTERM."""
    kafka = EmbeddedKafka(data_dir=data_dir, nodes=nodes, port=port, notify=typer.echo)
    if kafka.status(probe=False).running:
        raise EmbeddedBrokerError("already running in the background; use `broker stop` first")
    # Ctrl-C and a service manager's SIGTERM then take the same way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        kafka.start()
        _wait_for_end(kafka)
    except KeyboardInterrupt:
        typer.echo("interrupted")
    finally:
        kafka.stop()


def _wait_for_end(kafka: EmbeddedKafka) -> None:
    while True:
        time.sleep(_LIVENESS_POLL_S)
        status = kafka.status(probe=False)
        for node in range(1, status.nodes + 1):
            if node not in status.pids:
                log = kafka.log_paths[node]
                raise EmbeddedBrokerError(f"node {node} has ended; see {log}")


@app.command()
def status(
    data_dir: DataDirOption,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say whether the broker runs; exit code 0 when it does, 3 when not."""
    facts = EmbeddedKafka(data_dir=data_dir).status()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(facts), default=str))
    elif facts.running:
        typer.echo(f"Apache Kafka {facts.version} at {facts.bootstrap}")
        typer.echo(f"{len(facts.pids)} of {facts.nodes} nodes run, ready: {facts.ready}")
        typer.echo(f"pids {', '.join(map(str, facts.pids.values()))}, data in {facts.data_dir}")
    else:
        typer.echo(f"not running; data in {facts.data_dir}")
    if not facts.running:
        raise typer.Exit(_NOT_RUNNING)


@app.command()
def logs(
    data_dir: DataDirOption,
    *,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Of each node.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show what the brokers have logged since their last start."""
    paths = EmbeddedKafka(data_dir=data_dir).log_paths
    streams = [
        (f"node-{node}| " if len(paths) > 1 else "", path.open(encoding="utf-8", errors="replace"))
        for node, path in paths.items()
        if path.exists()
    ]
    try:
        for prefix, stream in streams:
            _echo(prefix, deque(stream, maxlen=lines))
        while follow and streams:
            time.sleep(_FOLLOW_POLL_S)
            for prefix, stream in streams:
                _echo(prefix, stream)
    except KeyboardInterrupt:
        pass  # the ordinary end of --follow
    finally:
        for _, stream in streams:
            stream.close()


def _echo(prefix: str, lines: "TextIO | deque[str]") -> None:
    for line in lines:
        typer.echo(prefix + line, nl=False)


@app.command()
def purge(
    data_dir: DataDirOption,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Stop a running broker first.")] = False,
) -> None:
    """Delete the broker's data, logs and settings for good."""
    kafka = EmbeddedKafka(data_dir=data_dir, notify=typer.echo)
    facts = kafka.status(probe=False)
    if facts.running and not force:
        raise EmbeddedBrokerError("the broker is running; stop it first, or use --force")
    if not yes:
        typer.confirm(f"Delete everything the broker keeps in {facts.data_dir}?", abort=True)
    if facts.running:
        kafka.stop()
    kafka.purge()
    typer.echo("purged")
