"""What a position is worth at a mark, gross and net, in its own currency and in another one.

Amounts in the reporting currency are a native amount (10^-24) times a rate (10^-8), exact ints at
10^-32. What cannot be known, such as the worth of an open position without a mark, is None.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from app.models import CostMethod, Position
from app.pnl.fifo import E8_TO_E24
from app.pnl.fills import Fill, add, empty_holding, in_order

LAST_TRADE: Final = "last-trade"


class Mark(msgspec.Struct, frozen=True, gc=False):
    """A price or a rate to value by: never used without saying from where and of when it is.

    Attributes:
        amount_e8: Price per unit, or units of the reporting currency for one, at 10^-8.
        time_ns: Of when it is, in UTC nanoseconds.
        source: From where, such as `last-trade` or the name of a price feed.
    """

    amount_e8: int
    time_ns: int
    source: str


class Valuation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """PnL of a position, in its own currency, at 10^-24.

    Attributes:
        realized_e24: Realised before fees.
        fees_e24: Fees that were charged so far, of what is open too.
        unrealized_e24: Worth of what is open less its cost; 0 when flat, else None without a mark.
        mark: What it was valued by.
    """

    realized_e24: int
    fees_e24: int
    unrealized_e24: int | None
    mark: Mark | None

    @property
    def net_realized_e24(self) -> int:
        """Realised less all fees."""
        return self.realized_e24 - self.fees_e24

    @property
    def gross_e24(self) -> int | None:
        """Realised and unrealised before fees."""
        return _sum(self.realized_e24, self.unrealized_e24)

    @property
    def net_e24(self) -> int | None:
        """Realised and unrealised less all fees."""
        return _sum(self.net_realized_e24, self.unrealized_e24)


class Converted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """PnL of a position in the reporting currency, at 10^-32.

    Attributes:
        realized_e32: What was realised, each part at the rate of the day that realised it.
        unrealized_e32: What is not, at the rate of the mark.
        fx_e32: What the currency itself brought: the total less all the rest.
        fees_e32: Fees, each at the rate of its day.
    """

    realized_e32: int
    unrealized_e32: int | None
    fx_e32: int | None
    fees_e32: int

    @property
    def net_e32(self) -> int | None:
        """The total: every cash flow at its rate, and what is open at mark and rate."""
        return _sum(self.realized_e32 - self.fees_e32, self.unrealized_e32, self.fx_e32)


def combined(parts: Iterable[Converted | None]) -> Converted | None:
    """Add what several positions are worth up; a sum with an unknown part is unknown."""
    every = []
    for part in parts:
        if part is None:
            return None
        every.append(part)
    return Converted(
        realized_e32=sum(part.realized_e32 for part in every),
        unrealized_e32=_sum(0, *(part.unrealized_e32 for part in every)),
        fx_e32=_sum(0, *(part.fx_e32 for part in every)),
        fees_e32=sum(part.fees_e32 for part in every),
    )


def last_trade(position: Position) -> Mark | None:
    """Give the price of the last trade of the key as a mark; None where there was no trade."""
    if not position.trade_count:
        return None
    return Mark(position.mark_e8, position.mark_ns, LAST_TRADE)


def value(position: Position, mark: Mark | None) -> Valuation:
    """Value a position in its own currency.

    Args:
        position: By whatever cost method.
        mark: Price to value what is open by; None for one that is not known.
    """
    if not position.quantity_e8:
        unrealized_e24: int | None = 0
    elif mark is None:
        unrealized_e24 = None
    else:
        worth_e24 = position.quantity_e8 * mark.amount_e8 * position.multiplier_e8
        unrealized_e24 = worth_e24 - position.open_cost_e24
    return Valuation(
        realized_e24=position.realized_e24,
        fees_e24=position.fees_e8 * E8_TO_E24,
        unrealized_e24=unrealized_e24,
        mark=mark,
    )


def convert(
    fills: Iterable[Fill],
    method: CostMethod = CostMethod.AVERAGE,
    *,
    mark: Mark | None,
    rate: Mark | None,
) -> Converted:
    """Value the fills of one position in the reporting currency, FX PnL apart.

    Args:
        fills: All of them, with the rates of their trade dates, in any order.
        method: How costs are kept; it moves amounts between the parts, never the total.
        mark: As in `value`.
        rate: Rate to convert what is open by; None for one that is not known.

    Source:
        docs/pnl.md, "Another currency".
    """
    holding = empty_holding(method, Position(None, ""))
    cash_e32 = realized_e32 = fees_e32 = 0
    for fill in in_order(fills):
        before_e24 = holding.realized_e24
        add(holding, fill)
        realized_e32 += (holding.realized_e24 - before_e24) * fill.rate_e8
        cash_e32 -= paid_e24(fill) * fill.rate_e8
        fees_e32 += fill.fee_e8 * E8_TO_E24 * fill.rate_e8
    position = holding.position()
    unrealized_e32 = fx_e32 = None
    if not position.quantity_e8:
        unrealized_e32, fx_e32 = 0, cash_e32 - realized_e32
    elif mark is not None and rate is not None:
        worth_e24 = position.quantity_e8 * mark.amount_e8 * position.multiplier_e8
        unrealized_e32 = (worth_e24 - position.open_cost_e24) * rate.amount_e8
        total_e32 = cash_e32 + worth_e24 * rate.amount_e8
        fx_e32 = total_e32 - realized_e32 - unrealized_e32
    return Converted(
        realized_e32=realized_e32, unrealized_e32=unrealized_e32, fx_e32=fx_e32, fees_e32=fees_e32
    )


def paid_e24(fill: Fill) -> int:
    """Give what a fill cost before its fee: > 0 for a buy, < 0 for what a sale brought."""
    return fill.signed_quantity_e8 * fill.price_e8 * fill.multiplier_e8


def _sum(known: int, *others: int | None) -> int | None:
    """Add amounts up; a sum with an unknown part is unknown."""
    total = known
    for amount in others:
        if amount is None:
            return None
        total += amount
    return total
