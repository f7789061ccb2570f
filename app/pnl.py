"""Average-cost position keeping: fold one fill into a position, exactly.

A fill in the direction of the position adds to its cost. An opposite fill releases cost in
proportion to what it closes and realises the difference to its proceeds; what it has left over
opens a position at its own price. The fill that flattens a position releases all the cost that is
left, so that no residue of a rounded share outlives it.
"""

from app.models import Position
from app.money import divide_half_even


def apply_fill(
    position: Position,
    *,
    signed_quantity_e8: int,
    price_e8: int,
    multiplier_e8: int,
    fee_e8: int,
    time_ns: int,
    offset: int,
) -> Position:
    """Fold one fill into a position by the average-cost method.

    Args:
        position: State before; flat, or open with the same multiplier.
        signed_quantity_e8: Bought > 0, sold < 0, never 0, at 10^-8.
        price_e8: Price per unit at 10^-8; it becomes the mark.
        multiplier_e8: Contract multiplier at 10^-8.
        fee_e8: Fee of the fill at 10^-8, expensed at once; a rebate is negative.
        time_ns: Execution time in UTC nanoseconds; it becomes the time of the mark.
        offset: Source offset of the fill; the position remembers it as applied.

    Returns:
        The state after. `realized_e24` moves only by what the fill closes; it is exact but for one
        unit of 10^-24 for each partial close, which the next closes make good.

    Source:
        docs/pnl.md, "Average cost".
    """
    held = position.quantity_e8
    quantity = held + signed_quantity_e8
    value = signed_quantity_e8 * price_e8 * multiplier_e8
    cost = position.open_cost_e24
    realized = position.realized_e24
    if (held >= 0) == (signed_quantity_e8 > 0) or not held:
        cost += value
    elif quantity and (quantity > 0) == (held > 0):
        released = divide_half_even(cost * abs(signed_quantity_e8), abs(held))
        cost -= released
        realized -= value + released
    else:  # all of it is closed; the rest of the fill, if any, opens at the fill's price
        opened = quantity * price_e8 * multiplier_e8
        realized -= value - opened + cost
        cost = opened
    return Position(
        position.book,
        position.symbol,
        position.currency,
        quantity,
        cost,
        multiplier_e8,
        realized,
        position.fees_e8 + fee_e8,
        price_e8,
        time_ns,
        position.trade_count + 1,
        offset,
        position.origins,
        position.generation,
    )
