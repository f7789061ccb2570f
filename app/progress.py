"""Progress of long work: a bar on a terminal, a JSON line now and then anywhere else."""

import sys
import time
from typing import Final, Self

import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 5.0


class Progress:
    """Counts records towards a total; writes to standard error, so that output stays clean.

    Args:
        what: What is being done, in one word.
        total: Number of records to come, if it is known.
    """

    def __init__(self, what: str, *, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._reported_s = self._started_s = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        """Show the bar, if there is a terminal to show it on."""
        if sys.stderr.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:,.0f}/s"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self._what, total=self._total, rate=0.0, note="")
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, note: str = "") -> None:
        """Count records that are done; `note` says what else there is to know of them."""
        self._done += count
        now_s = time.monotonic()
        rate = self._done / max(now_s - self._started_s, 0.001)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=rate, note=note)
        elif now_s - self._reported_s >= INTERVAL_S:
            self._reported_s = now_s
            log.info(
                "progress",
                what=self._what,
                done=self._done,
                total=self._total,
                per_s=round(rate),
                **({"note": note} if note else {}),
            )
