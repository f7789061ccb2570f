"""What became of the rows of a replay: every row has one fate, and the fates add up."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from app.money import to_decimal
from app.replay.mapper import MappedTrade
from app.timestamps import MAX_NS, format_timestamp


class RowFate(StrEnum):
    """What finally became of one row that was read."""

    PUBLISHED = "published"
    REJECTED = "rejected"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class FileCounts:
    """The rows of one file, by fate; `error` is why it was not read to its end."""

    rows: int = 0
    fates: Counter[RowFate] = field(default_factory=Counter)
    error: str | None = None


@dataclass(slots=True)
class ReplaySummary:
    """What a replay has come to so far.

    Attributes:
        files: Counts by file as it was named, in the order of the replay.
        rejected: Rows that gave no bookable trade, by reason.
        rounded: Published numbers that were rounded to 8 decimals, by code.
        suspects: Published trades that a consumer will flag, by code.
        quantity_e8: Sum over published rows, whatever their side; likewise `notional_e24`.
        first_ns: Earliest execution time published; `last_ns` is the latest.
        rejects_path: File that names every row that was not published; `None` without any.
        is_stopped: Whether it was stopped ahead of the end.
    """

    files: dict[str, FileCounts] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    rounded: Counter[str] = field(default_factory=Counter)
    suspects: Counter[str] = field(default_factory=Counter)
    quantity_e8: int = 0
    notional_e24: int = 0
    first_ns: int = MAX_NS
    last_ns: int = 0
    seconds: float = 0.0
    rejects_path: str | None = None
    is_stopped: bool = False

    def add_published(self, trade: MappedTrade) -> None:
        """Add what is summed over published trades."""
        if trade.rounded:
            self.rounded.update(trade.rounded)
        if trade.suspects:
            self.suspects.update(trade.suspects)
        self.quantity_e8 += trade.quantity_e8
        self.notional_e24 += trade.notional_e24
        self.first_ns = min(self.first_ns, trade.time_ns)
        self.last_ns = max(self.last_ns, trade.time_ns)

    def count(self, fate: RowFate) -> int:
        """Give the number of rows with a fate, over all files."""
        return sum(counts.fates[fate] for counts in self.files.values())

    @property
    def rows(self) -> int:
        """Rows that were read."""
        return sum(counts.rows for counts in self.files.values())

    @property
    def rows_per_s(self) -> float:
        """Rows read per second of the run."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def sum_quantity(self) -> Decimal:
        """Exact sum of the published quantities."""
        return to_decimal(self.quantity_e8)

    @property
    def sum_notional(self) -> Decimal:
        """Exact sum of the published notionals."""
        return to_decimal(self.notional_e24, 24)

    @property
    def adds_up(self) -> bool:
        """Whether every row of every file has exactly one fate, and every reject one reason."""
        is_each_counted = all(c.rows == c.fates.total() for c in self.files.values())
        return is_each_counted and self.rejected.total() == self.count(RowFate.REJECTED)

    @property
    def is_success(self) -> bool:
        """Whether every row that could be mapped is published, and every file was read."""
        has_errors = any(counts.error for counts in self.files.values())
        is_lost = self.count(RowFate.NOT_SENT) or self.count(RowFate.UNKNOWN)
        return self.adds_up and not (is_lost or has_errors or self.is_stopped)

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object; the sums are strings with every digit."""
        first, last = self._event_times()
        return {
            "rows": self.rows,
            **{fate.value: self.count(fate) for fate in RowFate},
            "rejected_by_reason": dict(sorted(self.rejected.items())),
            "rounded": dict(self.rounded),
            "suspects": dict(self.suspects),
            "sum_quantity": f"{self.sum_quantity:f}",
            "sum_notional": f"{self.sum_notional:f}",
            "first_event_time": first,
            "last_event_time": last,
            "files": [
                {"file": file, "rows": counts.rows, "error": counts.error}
                | {fate.value: counts.fates[fate] for fate in RowFate}
                for file, counts in self.files.items()
            ],
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s),
            "rejects_path": self.rejects_path,
            "is_stopped": self.is_stopped,
            "adds_up": self.adds_up,
        }

    def to_text(self) -> str:
        """Say it to a person."""
        return "\n".join(self._lines())

    def _event_times(self) -> tuple[str | None, str | None]:
        if not self.last_ns:
            return None, None
        return format_timestamp(self.first_ns), format_timestamp(self.last_ns)

    def _lines(self) -> Iterator[str]:
        yield f"rows          {self.rows:>14,}   {self.seconds:,.1f} s, {self.rows_per_s:,.0f}/s"
        for fate in RowFate:
            yield f"{fate.value.replace('_', ' '):<13} {self.count(fate):>14,}"
        for title, codes in (
            ("rejected", self.rejected),
            ("flagged", self.rounded + self.suspects),
        ):
            for code, count in sorted(codes.items()):
                yield f"  {title} {code:<30} {count:,}"
        yield f"sum quantity  {self.sum_quantity:>14,f}"
        yield f"sum notional  {self.sum_notional:>14,f}"
        yield "event time    {} to {}".format(*self._event_times())
        for file, counts in self.files.items():
            if counts.error is not None:
                yield f"FILE ERROR    {file}: {counts.error}, after row {counts.rows:,}"
        if self.rejects_path is not None:
            yield f"rejects in    {self.rejects_path}"
        if self.is_stopped:
            yield "stopped ahead of the end: the rows read so far are counted"
        if not self.adds_up:
            yield "THE ROWS DO NOT ADD UP: this is a fault of the program"
