"""What the platform is to reach: each target finds its figure in a result."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

Result = dict[str, Any]
Row = dict[str, Any]
Find = Callable[[Result], float | None]


class Target(NamedTuple):
    """What is to be reached, and how to find it."""

    text: str
    sign: str
    limit: float
    find: Find


def table_of_targets(result: Result) -> str:
    """Say of each target that was measured whether it is met."""
    lines = []
    for text, sign, limit, find in TARGETS:
        value = find(result)
        if value is None:
            continue  # not measured this time
        is_met = value <= limit if sign == _AT_MOST else value >= limit
        verdict = "met" if is_met else "**not met**"
        lines.append(f"| {text} | {sign} {limit:g} | {value:,.2f} | {verdict} |")
    if not lines:
        return ""
    heading = ["## Targets", "", "| target | | measured | |", "| --- | ---: | ---: | --- |"]
    return "\n".join([*heading, *lines, ""])


def rows_of(result: Result, table: str | None = None) -> list[Row]:
    """Give the rows of one table, or of all."""
    chosen = (t for t in result["tables"] if table in (None, t["name"]))
    return [row for t in chosen for row in t["rows"]]


def _median(table: str, row: str, figure: str) -> Find:
    """Find the median of a figure in the row whose name begins so."""

    def find(result: Result) -> float | None:
        for found in rows_of(result, table):
            if found["name"].startswith(row) and figure in found["figures"]:
                median: float = found["figures"][figure][1]
                return median
        return None

    return find


def _over(table: str, upper: str, lower: str, figure: str) -> Find:
    """Find the ratio of two rows' medians."""

    def find(result: Result) -> float | None:
        above = _median(table, upper, figure)(result)
        below = _median(table, lower, figure)(result)
        return above / below if above and below else None

    return find


def _worst_ratio(*tables: str) -> Find:
    """Find the largest ratio of our CPU to that of a peer with a pipeline or without."""

    def find(result: Result) -> float | None:
        ratios = [
            row["ratios"]["cpu_s_per_million"][1]
            for table in tables
            for row in rows_of(result, table)
            if row["table"] not in ("ours", "limit") and row["ratios"]
        ]
        return max(ratios, default=None)

    return find


_AT_MOST, _AT_LEAST = "\u2264", "\u2265"
_CPU: Final = "cpu_s_per_million"
_OURS: Final = "trade-stream"

TARGETS: Final = tuple(
    Target(*target)
    for target in (
        ("drain, no sink: CPU s per million", _AT_MOST, 3.0, _median("drain", _OURS, _CPU)),
        (
            "drain, positions written: CPU s per million",
            *(_AT_MOST, 3.5, _median("drain", f"{_OURS}, positions", _CPU)),
        ),
        ("drain: our CPU over that of the cheapest peer", _AT_MOST, 1.0, _worst_ratio("drain")),
        ("produce: our CPU over that of the cheapest peer", _AT_MOST, 1.0, _worst_ratio("produce")),
        (
            "live, 100,000/s: share of seconds with p99 < 50 ms",
            *(_AT_LEAST, 0.99, _median("live", "100,000/s", "good_share")),
        ),
        (
            "live, 100,000/s: trades by which the lag grows in a second",
            *(_AT_MOST, 500.0, _median("live", "100,000/s", "lag_slope")),
        ),
        (
            "CPU per trade, 128 partitions over 4",
            *(_AT_MOST, 1.25, _over("growth", "128 partitions", "4 partitions", _CPU)),
        ),
        (
            "CPU per trade, 1 % poison over clean",
            *(_AT_MOST, 1.1, _over("poison", "1 % poison", "clean", _CPU)),
        ),
        (
            "trades per second, two processes over one",
            *(_AT_LEAST, 1.5, _over("workers", f"{_OURS}, 2", f"{_OURS}, 1", "rate")),
        ),
    )
)
