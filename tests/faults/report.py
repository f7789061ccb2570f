"""The outcomes of many runs as one table."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from tests.faults.run import Outcome
from tests.faults.scenarios import Scenario

_SUMS: Final = {"records": "records", "lost": "lost", "doubled": "doubled", "wrong": "wrong"}
_WORST: Final = {
    "stall_s": "longest stall, s",
    "recovery_s": "recovery, s",
    "drain_s": "drain, s",
    "exit_s": "exit, s",
    "samples": "commits looked at",
}


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
