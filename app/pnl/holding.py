"""Average-cost position keeping: fold one fill into a position, exactly.

A fill in the direction of the position adds to its cost. An opposite fill releases cost in
proportion to what it closes and realises the difference to its proceeds; what it has left over
opens a position at its own price. The fill that flattens a position releases all the cost that is
left, so that no residue of a rounded share outlives it.
"""

from typing import ClassVar

from app.approved import NOTHING
from app.models import CostMethod, Position
from app.money import ONE_E8, divide_half_even


class Holding:
    """A position while it is traded: the state that fills are folded into, in place.

    Quantities are counted in units of `unit_e8`: whole ones as long as every fill is of whole
    units, which keeps the numbers of most fills short, and 10^-8 from the first fill that is not.

    Attributes:
        method: How its costs are kept.
        key: Position key.
        unit_e8: Size of a unit at 10^-8: `ONE_E8` or 1.
        quantity: Signed number of units held.
        value_e24: Price of one unit, multiplier included, of the last fill: the mark.
        approved: Where amounts of its next fill may be looked up.
        touched_in: Number of the last batch that changed it.
        The others are those of `Position`.
    """

    __slots__ = (
        "approved",
        "book",
        "currency",
        "fees_e8",
        "generation",
        "key",
        "mark_ns",
        "multiplier_e8",
        "open_cost_e24",
        "origins",
        "quantity",
        "realized_e24",
        "source_offset",
        "symbol",
        "touched_in",
        "trade_count",
        "unit_e8",
        "value_e24",
    )
    method: ClassVar = CostMethod.AVERAGE

    def __init__(self, position: Position) -> None:
        self.key = position.key
        self.book = position.book
        self.symbol = position.symbol
        self.currency = position.currency
        self.unit_e8 = 1 if position.quantity_e8 % ONE_E8 else ONE_E8
        self.quantity = position.quantity_e8 // self.unit_e8
        self.open_cost_e24 = position.open_cost_e24
        self.multiplier_e8 = position.multiplier_e8
        self.realized_e24 = position.realized_e24
        self.fees_e8 = position.fees_e8
        self.value_e24 = position.mark_e8 * position.multiplier_e8 * self.unit_e8
        self.mark_ns = position.mark_ns
        self.trade_count = position.trade_count
        self.source_offset = position.source_offset
        self.origins = position.origins
        self.generation = position.generation
        self.approved = NOTHING
        self.touched_in = 0

    @property
    def mark_e8(self) -> int:
        """Price of the last fill at 10^-8; 0 before the first."""
        return self.value_e24 // (self.multiplier_e8 * self.unit_e8)

    def position(self) -> Position:
        """Give the state as it is now."""
        return Position(
            self.book,
            self.symbol,
            self.currency,
            self.quantity * self.unit_e8,
            self.open_cost_e24,
            self.multiplier_e8,
            self.realized_e24,
            self.fees_e8,
            self.mark_e8,
            self.mark_ns,
            self.trade_count,
            self.source_offset,
            self.origins,
            self.generation,
        )

    def fill(self, quantity: int, value_e24: int, time_ns: int, offset: int) -> None:
        """Fold a fill into the position by the average-cost method.

        What is realised moves only by what the fill closes; it is exact but for one unit of 10^-24
        for each partial close, which the next closes make good.

        Args:
            quantity: Units bought > 0, sold < 0, never 0.
            value_e24: Price of one unit, multiplier included; it becomes the mark.
            time_ns: Execution time in UTC nanoseconds; it becomes the time of the mark.
            offset: Source offset of the fill; the position remembers it as applied.

        Source:
            docs/pnl.md, "Average cost".
        """
        held = self.quantity
        self.quantity = left = held + quantity
        if held * quantity >= 0:
            self.open_cost_e24 += quantity * value_e24
        elif held * left > 0:
            cost = self.open_cost_e24
            released = divide_half_even(cost * abs(quantity), abs(held))
            self.open_cost_e24 = cost - released
            self.realized_e24 -= quantity * value_e24 + released
        else:  # all of it is closed; the rest of the fill, if any, opens at the fill's price
            opened = left * value_e24
            self.realized_e24 -= quantity * value_e24 - opened + self.open_cost_e24
            self.open_cost_e24 = opened
        self.value_e24 = value_e24
        self.mark_ns = time_ns
        self.trade_count += 1
        self.source_offset = offset

    def fill_exactly(
        self,
        *,
        signed_quantity_e8: int,
        price_e8: int,
        multiplier_e8: int,
        fee_e8: int,
        time_ns: int,
        offset: int,
    ) -> None:
        """Fold a fill of any quantity, with its fee, into the position.

        Args:
            signed_quantity_e8: Bought > 0, sold < 0, never 0, at 10^-8.
            price_e8: Price per unit at 10^-8.
            multiplier_e8: Contract multiplier at 10^-8; that of the position while it is open.
            fee_e8: Fee of the fill at 10^-8, expensed at once; a rebate is negative.
            time_ns: As in `fill`.
            offset: As in `fill`.
        """
        if signed_quantity_e8 % self.unit_e8:
            self.quantity *= self.unit_e8
            self.unit_e8 = 1
        self.multiplier_e8 = multiplier_e8
        self.fees_e8 += fee_e8
        value_e24 = price_e8 * multiplier_e8 * self.unit_e8
        self.fill(signed_quantity_e8 // self.unit_e8, value_e24, time_ns, offset)
