"""PnL in a reporting currency, which takes every fill with the rate of its day: now, and of a day.

What a day comes to is explained as in `daily`: by the trades that are known now.
"""

from contextlib import suppress
from dataclasses import dataclass

from app.errors import InvalidTradeError
from app.models import CostMethod
from app.pnl.daily import Day, Explained
from app.pnl.explain import Close, explain
from app.pnl.fills import Fill
from app.pnl.rates import Rates
from app.pnl.valuation import LAST_TRADE, Converted, Mark, convert


@dataclass(slots=True)
class PositionFills:
    """The fills of one position, as they are known now.

    Attributes:
        book: Of the position, if it has one.
        symbol: Of the position.
        currency: Of its trades.
        method: How its costs are kept.
        fills: In the order of their execution.
        is_pruned: Whether there were others, of which only sums are left: what needs each of them
            is unknown.
    """

    book: str | None
    symbol: str
    currency: str
    method: CostMethod
    fills: list[Fill]
    is_pruned: bool = False

    def mark(self, until_ns: int | None = None) -> Mark | None:
        """Give the price of the last trade, or of the last one up to a time."""
        for fill in reversed(self.fills):
            if until_ns is None or fill.time_ns <= until_ns:
                return Mark(fill.price_e8, fill.time_ns, LAST_TRADE)
        return None

    def at_rates(self, rates: Rates) -> list[Fill] | None:
        """Give the fills with the rates of their days; None where not all of this is known."""
        return None if self.is_pruned else rates.stated(self.fills, self.currency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a position is worth in the reporting currency.

    Attributes:
        book: Of the position, if it has one.
        symbol: Of the position.
        currency: Of its trades.
        converted: `None` where the rate of a trade is not known, where trades are pruned, or where
            the order of execution would bring two contract multipliers together.
        mark: What is open was valued by it; `None` where nothing is.
        rate: Likewise; `None` where it is not known, too.
    """

    book: str | None
    symbol: str
    currency: str
    converted: Converted | None
    mark: Mark | None
    rate: Mark | None


def convert_position(position: PositionFills, rates: Rates) -> Reported:
    """Value a position in the reporting currency, by its last trade and the newest rate."""
    is_open = sum(fill.signed_quantity_e8 for fill in position.fills) != 0
    mark = position.mark() if is_open else None
    rate = rates.last(position.currency) if is_open else None
    fills = position.at_rates(rates)
    converted = None
    if fills is not None:
        with suppress(InvalidTradeError):
            converted = convert(fills, position.method, mark=mark, rate=rate)
    return Reported(
        book=position.book,
        symbol=position.symbol,
        currency=position.currency,
        converted=converted,
        mark=mark,
        rate=rate,
    )


def explain_position(position: PositionFills, day: Day, rates: Rates) -> Explained:
    """Explain a day of a position in the reporting currency.

    Args:
        position: Its fills up to the close of the day.
        day: From close to close.
        rates: Of the trade dates, and of the closes.
    """
    first_mark, mark = position.mark(day.first_close_ns), position.mark()
    first_rate = rates.at(position.currency, day.first_close_ns)
    rate = rates.at(position.currency, day.close_ns)
    fills = position.at_rates(rates)
    explanation = None
    if fills is not None:
        old = tuple(fill for fill in fills if fill.time_ns <= day.first_close_ns)
        explanation = explain(
            Close(time_ns=day.first_close_ns, fills=old, mark=first_mark, rate=first_rate),
            Close(time_ns=day.close_ns, fills=tuple(fills), mark=mark, rate=rate),
        )
    return Explained(
        book=position.book,
        symbol=position.symbol,
        currency=position.currency,
        new_trades=sum(fill.time_ns > day.first_close_ns for fill in position.fills),
        explanation=explanation,
        first_mark=first_mark,
        mark=mark,
        first_rate=first_rate,
        rate=rate,
    )
