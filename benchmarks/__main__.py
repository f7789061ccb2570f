"""`./run.sh bench`: measures ours and its peers on a real Kafka; no figure without its gates."""

import dataclasses
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from app.embedded.kafka import EmbeddedKafka
from app.utils import configure_logging
from benchmarks import instructions, machine, report, suites
from benchmarks.arena import Arena
from benchmarks.children import end_all
from benchmarks.ledger import ledger
from benchmarks.live import live
from benchmarks.rounds import say
from benchmarks.suites import Scale, Table
from benchmarks.targets import Result

_HEAP_MB: Final = 1024
SUITES: Final[dict[str, tuple[Callable[[Arena, Scale], Table], int, int]]] = {
    "layers": (suites.layers, 15, 1),
    "drain": (suites.drain, 130, 12),
    "consume": (suites.consume, 40, 4),
    "produce": (suites.produce, 45, 4),
    "live": (live, 45, 4),
    "poison": (suites.poison, 30, 2),
    "growth": (suites.growth, 90, 12),
    "workers": (suites.workers, 40, 8),
    "restore": (suites.restore, 30, 10),
    "ledger": (ledger, 60, 8),
}
"""Every suite, with about how many seconds it takes with --quick, and how many minutes without."""


def main(
    what: Annotated[
        list[str] | None,
        typer.Argument(help=f"Any of: {', '.join(SUITES)}; or instructions, alone."),
    ] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="3 small rounds.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds. [7; 3 if quick]")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the runs.")] = 1,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Ours alone.")] = False,
    soak: Annotated[
        bool, typer.Option("--soak", help="live for 12 minutes more, restore with 1,000,000 keys.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every run as JSON.")] = False,
    write_docs: Annotated[
        bool, typer.Option("--write-docs", help="Write what was measured into docs/.")
    ] = False,
) -> None:
    """Measure trades per second and CPU per trade, ours and others, on a real Kafka."""
    if what == ["instructions"]:
        sys.exit(instructions.main(write=write_docs))
    chosen = what or list(SUITES)
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; choose of {', '.join(SUITES)}")
    if quick and write_docs:
        raise typer.BadParameter("docs/ tells of full runs: leave out --quick or --write-docs")
    scale = Scale(
        is_quick=quick,
        rounds=rounds or (3 if quick else 7),
        seed=seed,
        with_peers=not no_peers,
        is_soak=soak,
    )
    result = _measure(chosen, scale)
    if write_docs:
        report.write_docs(result)
    print(json.dumps(result, indent=1) if as_json else report.tables(result))
    failures = [
        f"{table['name']}, {row['name']}: {row['error']}"
        for table in result["tables"]
        for row in table["rows"]
        if row["is_failure"]
    ]
    for failure in failures:
        say(f"failed: {failure}")
    sys.exit(1 if failures else 0)


def _measure(chosen: list[str], scale: Scale) -> Result:
    say(f"{scale.rounds} rounds of up to {scale.count:,} trades")
    for name in chosen:
        _, seconds, minutes = SUITES[name]
        say(f"  {name:8} about {f'{seconds} s' if scale.is_quick else f'{minutes} min'}")
    configure_logging("ERROR")  # what the client repeats by itself is no news here
    tables = []
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            EmbeddedKafka(data_dir=Path(folder) / "kafka", port=0, heap_mb=_HEAP_MB) as kafka,
        ):
            arena = Arena(kafka, Path(folder))
            for name in chosen:
                say(f"{name} ({time.monotonic() - started:.0f} s so far)")
                table = dataclasses.asdict(SUITES[name][0](arena, scale))
                tables.append({**table, "measured_on": f"{datetime.now(UTC):%Y-%m-%d}"})
                arena.tidy()
    finally:
        end_all()
    return {
        "machine": machine.describe(),
        "scale": {**dataclasses.asdict(scale), "count": scale.count},
        "seconds": round(time.monotonic() - started),
        "tables": tables,
    }


if __name__ == "__main__":
    typer.run(main)
