"""Positive amounts, remembered by their text: most trades are made of texts that were read before.

A trade of nothing but such amounts and known names needs no closer look. What is no positive amount
does not get in, nor what is beyond the bounds of its table, and is judged by the rules like
anything else.
"""

from typing import Final, Literal, NamedTuple
from weakref import WeakValueDictionary

from app.money import LIMIT_E8, ONE_E8, AmountError, parse_amount

_LIMIT: Final = 65_536

Text = str | int
"""An amount as it was sent; an int and the text of it are two keys."""


class Bounds(NamedTuple):
    """Amounts that may be approved, each apart from the other; without bounds all positive ones.

    Attributes:
        quantity_step_e8: Quantities are multiples of it.
        most_quantity_e8: They are at most this.
        price_step_e8: Prices are multiples of it.
        least_price_e8: They are at least this.
        most_price_e8: They are at most this.
    """

    quantity_step_e8: int = 1
    most_quantity_e8: int = LIMIT_E8
    price_step_e8: int = 1
    least_price_e8: int = 1
    most_price_e8: int = LIMIT_E8


class Approved:
    """What amounts stand for in positions that count in one unit, at contract multiplier 1.

    Args:
        unit_e8: The unit.
        bounds: Of the amounts; the step of quantities is a multiple of the unit.
        shelf: Where it stands, if it shares a bound on its size with other tables.

    Attributes:
        quantities: Signed units, > 0 for BUY, by side and text.
        values: Price of one unit at 10^-24, by text.
    """

    def __init__(
        self, unit_e8: int, bounds: Bounds | None = None, shelf: "Shelf | None" = None
    ) -> None:
        self._unit_e8 = unit_e8
        self._bounds = bounds or Bounds(quantity_step_e8=unit_e8)
        self._shelf = shelf
        self.quantities: dict[Literal["BUY", "SELL"], dict[Text, int]] = {"BUY": {}, "SELL": {}}
        self.values: dict[Text, int] = {}

    def read(self, quantity: Text, price: Text) -> bool:
        """Remember two texts, if both are positive amounts within the bounds."""
        try:
            quantity_e8, price_e8 = parse_amount(quantity)[0], parse_amount(price)[0]
        except AmountError:
            return False
        quantity_step_e8, most_quantity_e8, price_step_e8, least_e8, most_e8 = self._bounds
        if not 0 < quantity_e8 <= most_quantity_e8 or quantity_e8 % quantity_step_e8:
            return False
        if not least_e8 <= price_e8 <= most_e8 or price_e8 % price_step_e8:
            return False
        if self._shelf is not None:
            self._shelf.note()
        buys, sells = self.quantities["BUY"], self.quantities["SELL"]
        for known in (buys, sells, self.values):
            if len(known) >= _LIMIT:
                known.clear()
        buys[quantity] = quantity_e8 // self._unit_e8
        sells[quantity] = -buys[quantity]
        self.values[price] = price_e8 * ONE_E8 * self._unit_e8
        return True

    def clear(self) -> None:
        """Forget what was read."""
        for of_side in self.quantities.values():
            of_side.clear()
        self.values.clear()


class Shelf:
    """Tables with bounds of their own, one for equal ones, which share a bound on their size.

    A table is gone when no position uses it any more.
    """

    def __init__(self) -> None:
        self._tables: WeakValueDictionary[tuple[int, Bounds], Approved] = WeakValueDictionary()
        self._reads = 0

    def table(self, unit_e8: int, bounds: Bounds) -> Approved:
        """Give the table of a unit and bounds."""
        table = self._tables.get((unit_e8, bounds))
        if table is None:
            table = self._tables[unit_e8, bounds] = Approved(unit_e8, bounds, self)
        return table

    def note(self) -> None:
        """Count a reading, before it is remembered; when there are too many, forget them all."""
        if self._reads >= _LIMIT:
            for table in list(self._tables.values()):
                table.clear()
            self._reads = 0
        self._reads += 1


WHOLE_UNITS: Final = Approved(ONE_E8)
FRACTIONS: Final = Approved(1)
NOTHING: Final = Approved(LIMIT_E8)
"""For positions whose trades are all judged one by one: no quantity has a unit of this size."""
