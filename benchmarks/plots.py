"""Draw the figures of the report: `plots.py RESULT.json FOLDER`, in an environment of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found]  # in that environment alone

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "trade-stream",  # the same result gives the same file
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

import matplotlib.pyplot as plt  # type: ignore[import-not-found]  # noqa: E402 - after the settings

_COLOURS = {
    "ours": "#1b7837",
    "same pipeline code": "#2166ac",
    "idiomatic": "#b2182b",
    "limit": "#888888",
}
_PERCENTILES = (("p50_ms", "p50"), ("p99_ms", "p99"), ("p99_9_ms", "p99.9"))


def main(data: Path, folder: Path) -> None:
    """Draw what the result holds, and remove what it does not."""
    for old in folder.glob("*.svg"):
        old.unlink()
    tables = {table["name"]: table for table in json.loads(data.read_text())["tables"]}
    for name in ("drain", "consume", "produce", "growth"):
        rows = [row for row in tables.get(name, {"rows": []})["rows"] if row["figures"]]
        if rows:
            _bars(rows, folder / f"{name}.svg")
    live = [row for row in tables.get("live", {"rows": []})["rows"] if row["figures"]]
    if live:
        _percentiles(live, folder / "live.svg")
        _over_time(live, folder / "live-over-time.svg")


def _bars(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.35 * len(rows)))
    for place, row in enumerate(reversed(rows)):
        low, median, high = row["figures"]["cpu_s_per_million"]
        axes.barh(place, median, color=_COLOURS[row["table"]])
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.annotate(f" {median:.2f}", (max(median, high), place), va="center")
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axes.set_xlabel("CPU seconds per million trades, median and quartiles")
    if len({row["table"] for row in rows}) > 1:
        shown = [kind for kind in _COLOURS if any(row["table"] == kind for row in rows)]
        handles = [plt.Rectangle((0, 0), 1, 1, color=_COLOURS[kind]) for kind in shown]
        figure.legend(handles, shown, loc="outside upper center", ncols=len(shown), frameon=False)
    axes.margins(x=0.12)
    _save(figure, path)


def _percentiles(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4))
    names = [row["name"] for row in rows]
    for figure_name, label in _PERCENTILES:
        axes.plot(names, [row["figures"][figure_name][1] for row in rows], "o-", label=label)
    axes.axhline(50, color="grey", linewidth=0.8, linestyle="--")
    axes.set(yscale="log", ylabel="ms from due to acknowledged", xlabel="offered")
    axes.legend(frameon=False)
    _save(figure, path)


def _over_time(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4))
    for row in rows:
        run = next(run for run in row["runs"] if not run["dropped"])
        values = [window["p99_ms"] for window in run["windows"]]
        axes.plot(range(1, len(values) + 1), values, label=row["name"])
    axes.axhline(50, color="grey", linewidth=0.8, linestyle="--")
    axes.set(yscale="log", ylabel="p99 of each second, ms", xlabel="second")
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib is not here for the checks
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
