"""Rates of currencies into the one that is reported, day by day, as a file states them.

The file is CSV with the columns `date`, `currency`, `rate` and, where wanted, `source`: units of
the reporting currency for one of `currency`, with up to 8 decimals, such as a central bank's fixing
of that day.
"""

import csv
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Final

from msgspec.structs import replace

from app.errors import ConfigError
from app.money import ONE_E8, AmountError, parse_amount
from app.pnl.fills import Fill
from app.pnl.valuation import Mark
from app.timestamps import NS_PER_S

STATED: Final = "stated"
"""Source of a rate whose line names none."""
LONGEST_CARRY_DAYS: Final = 7
"""A rate holds on the days after it that have none: over a weekend and holidays, no longer."""
_NEEDED: Final = ("date", "currency", "rate")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_MOST_PROBLEMS: Final = 20
_S_PER_DAY: Final = 86_400


class Rates:
    """What one unit of each currency is in the reporting currency, by day.

    Args:
        currency: The reporting currency, for which a unit of itself is always 1.
        by_currency: Of each other currency its rates, a day's at its midnight in UTC, the oldest
            first.
    """

    def __init__(self, currency: str, by_currency: Mapping[str, Sequence[Mark]]) -> None:
        self.currency = currency
        self._by_currency = by_currency
        self._times = {
            name: [rate.time_ns for rate in rates] for name, rates in by_currency.items()
        }

    def at(self, currency: str, time_ns: int) -> Mark | None:
        """Give the rate of the day, in UTC, of a time; of at most 7 days before where it has none.

        Returns:
            None where that is not known, rather than a rate of another time.
        """
        if currency == self.currency:
            return Mark(ONE_E8, time_ns, STATED)
        index = bisect_right(self._times.get(currency, ()), time_ns) - 1
        if index < 0:
            return None
        rate = self._by_currency[currency][index]
        days = (time_ns - rate.time_ns) // (_S_PER_DAY * NS_PER_S)
        return rate if days <= LONGEST_CARRY_DAYS else None

    def last(self, currency: str) -> Mark | None:
        """Give the newest rate of a currency, of whatever day; None where it has none."""
        if currency == self.currency:
            return Mark(ONE_E8, 0, STATED)
        rates = self._by_currency.get(currency)
        return rates[-1] if rates else None

    def stated(self, fills: Iterable[Fill], currency: str) -> list[Fill] | None:
        """Give fills of one currency with the rates of their trade dates, which are days in UTC.

        Returns:
            None where one of the rates is not known.
        """
        found = []
        for fill in fills:
            rate = self.at(currency, fill.time_ns)
            if rate is None:
                return None
            found.append(replace(fill, rate_e8=rate.amount_e8))
        return found


def parse_rates(lines: Iterable[str], currency: str) -> Rates:
    """Read rates into a currency from lines of CSV, in any order.

    Raises:
        ConfigError: With a line for each problem, the first 20: where it is, and what is allowed.
    """
    if not _CURRENCY.fullmatch(currency):
        raise ConfigError([f"{currency!r} is no currency: must be three capital letters"])
    reader = csv.DictReader(lines)
    try:
        _check_columns(reader.fieldnames or ())
        found, problems = _read_all(reader, currency)
    except csv.Error as exc:
        raise ConfigError([f"line {reader.line_num}: {exc}"]) from exc
    if problems:
        raise ConfigError(problems)
    ordered = {name: [rates[ns] for ns in sorted(rates)] for name, rates in found.items()}
    return Rates(currency, ordered)


def _check_columns(names: Sequence[str]) -> None:
    if any(names.count(name) != 1 for name in _NEEDED):
        raise ConfigError([f"line 1: must name the columns {', '.join(_NEEDED)}, each once"])


def _read_all(
    reader: "csv.DictReader[str]", currency: str
) -> tuple[dict[str, dict[int, Mark]], list[str]]:
    found: dict[str, dict[int, Mark]] = {}
    problems: list[str] = []
    for row in reader:
        try:
            name, rate = _read(row, currency)
            if rate.time_ns in found.setdefault(name, {}):
                raise ValueError(f"{name} has another rate of {row['date']} above")  # noqa: TRY301
        except ValueError as exc:
            problems.append(f"line {reader.line_num}: {exc}")
            if len(problems) == _MOST_PROBLEMS:
                break
        else:
            found[name][rate.time_ns] = rate
    return found, problems


def _read(row: Mapping[str, str | None], reported: str) -> tuple[str, Mark]:
    if None in row:
        raise ValueError("has more cells than there are columns; a rate is written with a point")
    try:
        day = date.fromisoformat((row["date"] or "").strip())
    except ValueError as exc:
        raise ValueError("date: must be a day such as 2026-03-02") from exc
    currency = (row["currency"] or "").strip()
    if not _CURRENCY.fullmatch(currency):
        raise ValueError("currency: must be three capital letters")
    try:
        rate_e8 = parse_amount((row["rate"] or "").strip())[0]
    except AmountError as exc:
        raise ValueError(f"rate: {exc.problem.replace('-', ' ')}") from exc
    if rate_e8 <= 0:
        raise ValueError("rate: must be > 0")
    if currency == reported and rate_e8 != ONE_E8:
        raise ValueError(f"rate: must be 1, rates are into {reported}")
    time_ns = int(datetime.combine(day, datetime.min.time(), UTC).timestamp()) * NS_PER_S
    return currency, Mark(rate_e8, time_ns, (row.get("source") or "").strip() or STATED)
