"""Interleaved rounds in random order, medians and quartiles, ratios within a round."""

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.children import ContestantError, end_all
from benchmarks.machine import REFERENCE_MS, calibrate

MOVED: Final = 1.5
"""A run is dropped when the calibrations around it differ by more than this factor."""
_TRIES: Final = 2
"""Within a round: a run that is dropped is made again, once."""
_MANY: Final = 7  # of so many rounds some may be dropped without another try
_LONG_S: Final = 60.0  # its calibrations are so far apart that another try says no more


class GateError(Exception):
    """A run whose outcome is not the right one: it has no figure."""


@dataclass
class Entry:
    """One contestant of a suite, as it is run in every round.

    Attributes:
        name: What the row is called.
        table: `ours`, `same pipeline code`, `idiomatic` or `limit`.
        sink: Where results go; named in every row.
        run: Runs it once, with the number of the round; gives figures that have passed the gates.
        is_optional: It may be missing: a peer that cannot be installed here fails nothing.
    """

    name: str
    table: str
    sink: str
    run: Callable[[int], dict[str, Any]]
    is_optional: bool = False


@dataclass
class Row:
    """What the rounds of one entry came to.

    Attributes:
        runs: Every run with its calibrations; those with `dropped` are in no figure. Where nothing
            is compared the last run is not dropped but shown as `moved`.
        figures: `[first quartile, median, third quartile]` of each figure.
        ratios: Likewise, of the baseline over this one, within a round.
        error: Why it has no figure, or none from some round on.
        is_failure: Whether that error makes the whole command fail.
    """

    name: str
    table: str
    sink: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""
    is_failure: bool = False

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The runs that count."""
        return [run for run in self.runs if not run["dropped"]]


def measure(
    entries: Sequence[Entry], *, rounds: int, seed: int, baseline: str | None = None
) -> list[Row]:
    """Run every entry in each round, in an order of its own, and sum up.

    Args:
        entries: What is compared.
        rounds: How many rounds.
        seed: Of the order.
        baseline: Name of the entry that ratios are made with; none without.
    """
    rows = {entry.name: Row(entry.name, entry.table, entry.sink) for entry in entries}
    for number in range(rounds):
        order = random.Random(f"{seed}/{number}").sample(entries, len(entries))
        for entry in order:
            row = rows[entry.name]
            for _ in range(_TRIES if rounds < _MANY else 1):
                if row.error:
                    break  # it would fail again, and take its time
                started = time.monotonic()
                _run_once(entry, row, number)
                took_s = time.monotonic() - started
                say(f"  {number + 1}/{rounds}  {took_s:5.1f} s  {entry.name}: {_brief(row)}")
                if row.runs and (not row.runs[-1]["dropped"] or took_s > _LONG_S):
                    break
    if baseline is None:
        _show_the_last(rows.values())
    for row in rows.values():
        if row.error:
            continue  # what came out well before is in its runs
        row.figures = _quartiles_of_each(row.kept)
        if baseline is not None and row.name != baseline:
            row.ratios = _ratios(rows[baseline], row)
    return list(rows.values())


def _run_once(entry: Entry, row: Row, number: int) -> None:
    before_ms = calibrate()
    try:
        figures = entry.run(number)
    except GateError as exc:
        row.error, row.is_failure = f"gate: {exc}", True
        return
    except ContestantError as exc:
        row.error, row.is_failure = str(exc), not entry.is_optional
        return
    finally:
        end_all()  # of several processes some may be left when one has failed
    after_ms = calibrate()
    speed_ms = (before_ms + after_ms) / 2
    if "cpu_s_per_million" in figures:
        figures["scaled_cpu"] = figures["cpu_s_per_million"] * REFERENCE_MS / speed_ms
    if "rate" in figures:
        figures["scaled_rate"] = figures["rate"] * speed_ms / REFERENCE_MS
    row.runs.append(
        {
            "round": number,
            "calibration_ms": [round(before_ms, 1), round(after_ms, 1)],
            "dropped": max(before_ms, after_ms) > MOVED * min(before_ms, after_ms),
            **figures,
        }
    )


def _show_the_last(rows: Iterable[Row]) -> None:
    for row in rows:
        if row.runs and row.runs[-1]["dropped"]:
            row.runs[-1] |= {"dropped": False, "moved": True}


def quartiles(values: Sequence[float]) -> list[float]:
    """Give first quartile, median and third quartile; a single value is all three."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


_BOOKKEEPING: Final = frozenset({"round", "dropped", "records", "booked", "refused"})


def _quartiles_of_each(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    names = [
        name
        for name, value in (dict(runs[0]) if runs else {}).items()
        if type(value) in (int, float) and name not in _BOOKKEEPING
    ]
    return {name: quartiles([run[name] for run in runs]) for name in names}


def _ratios(baseline: Row, row: Row) -> dict[str, list[float]]:
    ours = {run["round"]: run for run in baseline.kept}
    pairs = [(ours[run["round"]], run) for run in row.kept if run["round"] in ours]
    names = [n for n in ("cpu_s_per_million", "rate") if pairs and n in pairs[0][1]]
    return {name: quartiles([our[name] / their[name] for our, their in pairs]) for name in names}


def _brief(row: Row) -> str:
    if row.error:
        return row.error
    run = row.runs[-1]
    shown = [
        f"{run[name]:,.{digits}f} {unit}"
        for name, digits, unit in (("cpu_s_per_million", 2, "CPU s/M"), ("rate", 0, "/s"))
        if name in run
    ]
    return ", ".join(shown) + (" (dropped: the machine moved)" if run["dropped"] else "")


def say(line: str) -> None:
    """Tell a person how it goes; results go to stdout alone."""
    print(line, file=sys.stderr, flush=True)
