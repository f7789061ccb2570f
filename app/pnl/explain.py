"""Why a PnL changed from one close to the next, in parts that add up to the last digit.

    total of today - total of yesterday = amendments + price + new trades + FX + fees

A total is every cash flow at the rate of its trade date, and what is open at mark and rate. It
depends on no cost method, and so does no part of its change.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

import msgspec

from app.money import divide_half_even, to_decimal
from app.pnl.fifo import E8_TO_E24
from app.pnl.fills import Fill
from app.pnl.valuation import Mark, paid_e24

_E32: Final = 32


class Close(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A position as it was known at the close of a day.

    Attributes:
        time_ns: The close, in UTC nanoseconds: fills executed up to it are of the day or before.
        fills: As they were known then, with the economics of then.
        mark: Price of the close; None for one that is not known.
        rate: Rate of the close; None for one that is not known.
    """

    time_ns: int
    fills: tuple[Fill, ...]
    mark: Mark | None
    rate: Mark | None


class Explanation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A change of the total PnL, net of fees, and its parts, in the reporting currency at 10^-32.

    Attributes:
        before_e32: Total at the first close.
        after_e32: Total at the second.
        amendments_e32: Trades of before the first close that were changed, cancelled or booked late
            since, fees and all, at the mark and rate of the first close.
        price_e32: What was open at the first close, by the move of the mark, at the second's rate.
        new_trades_e32: Trades since, from their price to the mark, at the second's rate.
        fx_e32: Worth at the first mark, and price of new trades, by the move of the rate.
        fees_e32: Fees of trades since, > 0 for a cost: the one part that is subtracted.
    """

    before_e32: int
    after_e32: int
    amendments_e32: int
    price_e32: int
    new_trades_e32: int
    fx_e32: int
    fees_e32: int

    @property
    def change_e32(self) -> int:
        """The change: exactly the sum of the parts."""
        return self.after_e32 - self.before_e32


def explain(before: Close, after: Close) -> Explanation | None:
    """Explain the change of a position's total PnL from one close to a later one.

    Args:
        before: The first close, as it was published.
        after: The second, with every fill that is known by then, older ones too.

    Returns:
        None where a part cannot be known: something was open at one of the closes and the mark or
        rate of a close that it is valued by is missing, or the rate that new trades are judged by.

    Source:
        docs/pnl.md, "From one day to the next".
    """
    assert before.time_ns < after.time_ns, "closes come in order of time"
    old = [fill for fill in after.fills if fill.time_ns <= before.time_ns]
    new = [fill for fill in after.fills if fill.time_ns > before.time_ns]
    was_open_e16, open_e16 = _exposure_e16(before.fills), _exposure_e16(old)
    is_open_e16 = open_e16 + _exposure_e16(new)
    mark_e8 = _amount_e8(before.mark, is_needed=bool(was_open_e16 or open_e16))
    rate_e8 = _amount_e8(before.rate, is_needed=bool(was_open_e16 or open_e16))
    new_mark_e8 = _amount_e8(after.mark, is_needed=bool(open_e16 or is_open_e16))
    new_rate_e8 = _amount_e8(after.rate, is_needed=bool(open_e16 or new))
    if mark_e8 is None or rate_e8 is None or new_mark_e8 is None or new_rate_e8 is None:
        return None
    published_e32 = _cash_e32(before.fills) + was_open_e16 * mark_e8 * rate_e8
    restated_e32 = _cash_e32(old) + open_e16 * mark_e8 * rate_e8
    price_e32 = open_e16 * (new_mark_e8 - mark_e8) * new_rate_e8
    fx_e32 = open_e16 * mark_e8 * (new_rate_e8 - rate_e8)
    new_trades_e32 = 0
    for fill in new:
        exposure_e16 = fill.signed_quantity_e8 * fill.multiplier_e8
        new_trades_e32 += exposure_e16 * (new_mark_e8 - fill.price_e8) * new_rate_e8
        fx_e32 += paid_e24(fill) * (new_rate_e8 - fill.rate_e8)
    return Explanation(
        before_e32=published_e32,
        after_e32=_cash_e32(after.fills) + is_open_e16 * new_mark_e8 * new_rate_e8,
        amendments_e32=restated_e32 - published_e32,
        price_e32=price_e32,
        new_trades_e32=new_trades_e32,
        fx_e32=fx_e32,
        fees_e32=_fees_e32(new),
    )


def combined(explanations: Iterable[Explanation]) -> Explanation:
    """Add explanations of several positions up, all in one reporting currency."""
    every = tuple(explanations)
    return Explanation(
        **{
            name: sum(getattr(explanation, name) for explanation in every)
            for name in Explanation.__struct_fields__
        }
    )


def shown(explanation: Explanation, *, decimals: int = 2) -> dict[str, Decimal]:
    """Show an explanation with few decimals.

    Each amount is rounded half-even by itself, the change too; what the rounded parts lack to the
    rounded change stands beside them as `rounding`, so that what is shown adds up as well. The fees
    are shown as they act: a cost is negative.

    Args:
        explanation: What to show.
        decimals: 0 to 24.
    """
    parts = {
        "new_trades": explanation.new_trades_e32,
        "price": explanation.price_e32,
        "fx": explanation.fx_e32,
        "fees": -explanation.fees_e32,
        "amendments": explanation.amendments_e32,
    }
    unit = 10 ** (_E32 - decimals)
    rounded = {name: divide_half_even(amount, unit) for name, amount in parts.items()}
    change = divide_half_even(explanation.change_e32, unit)
    rounded |= {"rounding": change - sum(rounded.values()), "change": change}
    return {name: to_decimal(amount, decimals) for name, amount in rounded.items()}


def _amount_e8(mark: Mark | None, *, is_needed: bool) -> int | None:
    """Give what to value by; anything does where nothing is valued by it."""
    if mark is None:
        return None if is_needed else 0
    return mark.amount_e8


def _exposure_e16(fills: Iterable[Fill]) -> int:
    return sum(fill.signed_quantity_e8 * fill.multiplier_e8 for fill in fills)


def _cash_e32(fills: Iterable[Fill]) -> int:
    """Give what fills brought, less their fees, each at its rate."""
    return -sum(paid_e24(fill) * fill.rate_e8 for fill in fills) - _fees_e32(fills)


def _fees_e32(fills: Iterable[Fill]) -> int:
    return sum(fill.fee_e8 * E8_TO_E24 * fill.rate_e8 for fill in fills)
