"""`trade-stream reference`: the file of reference data and limits, before it is used."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.context import JsonOption, show
from app.errors import ConfigError
from app.lifecycle import EXIT_FAILED
from app.reference import Reference
from app.reference_file import read_reference

app = typer.Typer(help="Instruments, books and limits that mark trades.", no_args_is_help=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="What REFERENCE_FILE is to name.")],
    as_json: JsonOption = False,
) -> None:
    """Read a file as a consumer would, and say what it holds; exit code 1 when it is not right."""
    problems: list[str] = []
    holds: dict[str, int | None] = {}
    try:
        holds = _entries(read_reference(file).reference)
    except ConfigError as exc:
        problems = exc.problems
    if as_json:
        typer.echo(json.dumps({"problems": problems, "holds": holds}, indent=2))
    elif problems:
        show([{"problem": problem} for problem in problems], as_json=False, empty="")
    else:
        rows: list[dict[str, Any]] = [
            {"section": name, "entries": "not there: nothing of it is checked" if n is None else n}
            for name, n in holds.items()
        ]
        show(rows, as_json=False, empty="")
    if problems:
        raise typer.Exit(EXIT_FAILED)


def _entries(reference: Reference) -> dict[str, int | None]:
    """Count what is in each section; `None` for one that is not there."""
    limits = (getattr(reference.limits, name) for name in reference.limits.__struct_fields__)
    return {
        "instruments": None if reference.instruments is None else len(reference.instruments),
        "books": None if reference.books is None else len(reference.books),
        "limits": sum(limit is not None for limit in limits) or None,
        "dates": None if reference.max_age_ns is None else 1,
        "venues": len(reference.calendars) or None,
        "inactive counterparties": len(reference.inactive) or None,
    }
