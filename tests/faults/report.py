"""The outcomes of many runs as one table; of several files: `python -m tests.faults.report A B`."""

import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tests.faults.run import Outcome
from tests.faults.scenarios import SCENARIOS, Scenario

_SUMS: Final = {"records": "records", "lost": "lost", "doubled": "doubled", "wrong": "wrong"}
_WORST: Final = {
    "stall_s": "longest stall, s",
    "recovery_s": "recovery, s",
    "drain_s": "drain, s",
    "exit_s": "exit, s",
    "samples": "commits looked at",
    "ledger_samples": "tables looked at",
}


def write_outcomes(file: Path, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes as JSON, in place of what the file holds, and never half of it."""
    beside = file.with_name(file.name + ".new")
    beside.write_text(json.dumps([dataclasses.asdict(o) for o in outcomes], indent=1))
    beside.replace(file)


def read_outcomes(file: Path) -> list[Outcome]:
    """Read what `write_outcomes` wrote."""
    return [Outcome(**fields) for fields in json.loads(file.read_text())]


def table(outcomes: Iterable[Outcome], scenarios: Mapping[str, Scenario]) -> str:
    """Give a Markdown table, a row for each scenario: sums over its runs, and worst figures."""
    runs: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        runs[outcome.name].append(outcome)
    columns = ["scenario", "runs", "passed", *_SUMS.values(), *_WORST.values(), "the fault bit"]
    rows = [columns, ["---"] * len(columns)]
    for name in (name for name in scenarios if name in runs):
        of_name = runs[name]
        passed = sum(outcome.status == "ok" for outcome in of_name)
        skipped = all(outcome.status == "skipped" for outcome in of_name)
        cells = [name, str(len(of_name)), "skipped" if skipped else str(passed)]
        cells += [f"{sum(o.figures.get(f, 0) for o in of_name):,.0f}" for f in _SUMS]
        cells += [_number(max(o.figures.get(f, 0) for o in of_name)) for f in _WORST]
        rows.append([*cells, _bites(of_name)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _bites(outcomes: Iterable[Outcome]) -> str:
    """Say what was seen of the fault, or of a planted bug, summed over the runs."""
    seen: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        for name, value in outcome.figures.items():
            if name.startswith(("bite: ", "bug: ")):
                seen[name.partition(": ")[2]] += value
    return "; ".join(f"{_number(value)} {what}" for what, value in seen.items())


if __name__ == "__main__":
    print(table((o for file in sys.argv[1:] for o in read_outcomes(Path(file))), SCENARIOS), end="")
