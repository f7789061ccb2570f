"""The PnL of a day in the position's own currency, explained from sums of its fills.

Both closes are valued by the trades that are known now, by the price of the last trade up to each.
What was booked late or changed since counts in the day in which it was executed, so that there is
no part for amendments; and without another currency there is none for FX.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from app.money import ONE_E8
from app.pnl.explain import Close, Explanation, combined, explain
from app.pnl.fills import Fill
from app.pnl.valuation import LAST_TRADE, Mark
from app.timestamps import NS_PER_S

_SAME_CURRENCY: Final = Mark(ONE_E8, 0, LAST_TRADE)


@dataclass(frozen=True, slots=True)
class Day:
    """From the end of one day to the end of a later one, in UTC."""

    previous: date
    day: date

    @property
    def first_close_ns(self) -> int:
        """The last nanosecond of the previous day."""
        return _end_ns(self.previous)

    @property
    def close_ns(self) -> int:
        """The last nanosecond of the day."""
        return _end_ns(self.day)


def _end_ns(day: date) -> int:
    midnight = datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=1)
    return int(midnight.timestamp()) * NS_PER_S - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Sums of the fills of one position, up to the first close and from there to the second.

    Attributes:
        book: Of the position, if it has one.
        symbol: Of the position.
        currency: Of its trades.
        exposure_e16: Signed quantity x multiplier up to the first close.
        paid_e24: Signed quantity x price x multiplier up to it.
        fees_e8: Fees up to it.
        new_exposure_e16: As `exposure_e16`, of the trades after it, and likewise the next two.
        new_paid_e24: See there.
        new_fees_e8: See there.
        new_trades: How many trades there were after it.
        first_mark: Price of the last trade up to the first close; `None` without one.
        mark: Price of the last trade up to the second.
        is_pruned: Whether trades after the first close are gone: their sums cannot be told apart.
    """

    book: str | None
    symbol: str
    currency: str
    exposure_e16: int
    paid_e24: int
    fees_e8: int
    new_exposure_e16: int
    new_paid_e24: int
    new_fees_e8: int
    new_trades: int
    first_mark: Mark | None
    mark: Mark | None
    is_pruned: bool


def explain_day(activity: Activity, day: Day) -> Explanation | None:
    """Explain what became of one position; `None` where the trades of the day are pruned."""
    if activity.is_pruned:
        return None
    before = _condensed(
        day.first_close_ns, activity.exposure_e16, activity.paid_e24, activity.fees_e8
    )
    new = _condensed(
        day.close_ns, activity.new_exposure_e16, activity.new_paid_e24, activity.new_fees_e8
    )
    return explain(
        Close(
            time_ns=day.first_close_ns, fills=before, mark=activity.first_mark, rate=_SAME_CURRENCY
        ),
        Close(time_ns=day.close_ns, fills=(*before, *new), mark=activity.mark, rate=_SAME_CURRENCY),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What became of one position in a day, and by which marks and rates.

    Attributes:
        book: Of the position, if it has one.
        symbol: Of the position.
        currency: Of its trades.
        new_trades: How many trades the day has.
        explanation: `None` where it is not known.
        first_mark: Price of the last trade up to the first close; `None` without one.
        mark: Price of the last trade up to the second.
        first_rate: Rate of the first close; `None` where it is not known, or not asked for.
        rate: Rate of the second, likewise.
    """

    book: str | None
    symbol: str
    currency: str
    new_trades: int
    explanation: Explanation | None
    first_mark: Mark | None
    mark: Mark | None
    first_rate: Mark | None = None
    rate: Mark | None = None


def explain_activity(activity: Activity, day: Day) -> Explained:
    """Explain a day of a position in its own currency."""
    return Explained(
        book=activity.book,
        symbol=activity.symbol,
        currency=activity.currency,
        new_trades=activity.new_trades,
        explanation=explain_day(activity, day),
        first_mark=activity.first_mark,
        mark=activity.mark,
    )


def summed(explanations: Iterable[Explanation | None]) -> Explanation | None:
    """Add explanations in one currency up; a sum with an unknown part is unknown."""
    known = []
    for explanation in explanations:
        if explanation is None:
            return None
        known.append(explanation)
    return combined(known)


def _condensed(time_ns: int, exposure_e16: int, paid_e24: int, fees_e8: int) -> tuple[Fill, ...]:
    """Give a few fills with the sums of many: an explanation depends on nothing else of them.

    The first has the exposure and costs nothing; the other two cost what all did, and leave no
    exposure.
    """

    def fill(signed_quantity_e8: int, price_e8: int, fee_e8: int = 0) -> Fill:
        return Fill("", time_ns, 0, 0, signed_quantity_e8, price_e8, 1, fee_e8)

    return fill(exposure_e16, 0, fees_e8), fill(paid_e24, 1), fill(-paid_e24, 0)
