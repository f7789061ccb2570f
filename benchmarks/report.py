"""The report: tables in Markdown, and the same with every run as JSON."""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

from benchmarks.contestants import environment
from benchmarks.targets import Result, Row, rows_of, table_of_targets

DOCS: Final = Path(__file__).parents[1] / "docs"
_METHOD: Final = Path(__file__).with_name("method.md")


def tables(result: Result) -> str:
    """Write the targets and the tables of a result as Markdown."""
    parts = [table_of_targets(result), *(_table(table) for table in result["tables"])]
    return "\n".join(part for part in parts if part)


def write_docs(result: Result) -> None:
    """Write docs/benchmarks.json, docs/benchmarks.md and the figures.

    Tables that were not measured this time stay as they are there.

    Raises:
        ContestantError: The environment that draws cannot be made.
    """
    data = DOCS / "benchmarks.json"
    earlier = json.loads(data.read_text(encoding="utf-8"))["tables"] if data.exists() else []
    latest = {table["name"]: table for table in (*earlier, *result["tables"])}
    result = {**result, "tables": list(latest.values())}
    data.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figures = DOCS / "benchmarks"
    figures.mkdir(exist_ok=True)
    python = environment("plots", Path(__file__).parent / "requirements")
    script = Path(__file__).with_name("plots.py")
    subprocess.run([python, script, data, figures], check=True)
    (DOCS / "benchmarks.md").write_text(_page(result), encoding="utf-8")


def _page(result: Result) -> str:
    machine, scale = result["machine"], result["scale"]
    libraries = ", ".join(f"{name} {version}" for name, version in _versions(result).items())
    about = (
        f"Measured on {machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']:.0f} GB,"
        f" {machine['system']}; Python {machine['python']}, Apache Kafka {machine['kafka']};"
        f" {libraries}. Trades of a full share: {scale['count']:,}.\n"
    )
    method = _METHOD.read_text(encoding="utf-8")
    method = method.format(**scale, reference_ms=machine["reference_ms"])
    parts = [f"{method}\n{about}", table_of_targets(result)]
    for table in result["tables"]:
        parts.append(_table(table))
        drawn = sorted((DOCS / "benchmarks").glob(f"{table['name']}*.svg"))
        parts += [f"![{figure.stem}](benchmarks/{figure.name})\n" for figure in drawn]
    return "\n".join(parts)


def _versions(result: Result) -> dict[str, str]:
    versions: dict[str, str] = dict(result["machine"]["libraries"])
    for row in rows_of(result):
        for run in row["runs"]:
            versions |= run.get("versions", {})
    versions.pop("python", None)
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _table(table: dict[str, Any]) -> str:
    headings = [heading for heading, *_ in table["columns"]]
    if table["baseline"]:
        headings.append("CPU, the first / it")
    lines = [f"## {table['name']}", "", f"{table['about']} Measured on {table['measured_on']}.", ""]
    lines.append(f"| {' | '.join([table['label'], 'compared as', 'sink', *headings, ''])} |")
    lines.append(f"| --- | --- | --- | {'---: | ' * len(headings)}--- |")
    lines += [_line(row, table) for row in table["rows"]]
    notes = [*table["notes"], ""] if table["notes"] else []
    return "\n".join([*lines, "", *notes])


def _line(row: Row, table: dict[str, Any]) -> str:
    cells = [row["name"], row["table"], row["sink"]]
    cells += [_spread(row["figures"].get(name), digits) for _, name, digits in table["columns"]]
    if table["baseline"]:
        is_first = row["name"] == table["baseline"]
        cells.append("1" if is_first else _spread(row["ratios"].get("cpu_s_per_million"), 2))
    return f"| {' | '.join([*cells, _remark(row)])} |"


def _remark(row: Row) -> str:
    said = [" ".join(row["error"].replace("|", "/").split())] if row["error"] else []
    dropped = sum(run["dropped"] for run in row["runs"])
    if dropped:
        said.append(f"{dropped} of {len(row['runs'])} runs dropped")
    for run in row["runs"]:
        if run.get("moved"):
            before, after = run["calibration_ms"]
            said.append(f"the machine moved: calibration {before} ms before, {after} ms after")
    if row["table"] != "ours" and row["ratios"]:
        if row["ratios"]["cpu_s_per_million"][1] > 1:
            said.append("**cheaper than ours**")
        if row["ratios"]["rate"][1] < 1:
            said.append("**faster than ours**")
    return "; ".join(said)


def _spread(quartiles: list[float] | None, digits: int) -> str:
    if not quartiles:
        return ""
    low, median, high = (f"{value:,.{digits}f}" for value in quartiles)
    return median if low == high else f"{median} [{low}, {high}]"
