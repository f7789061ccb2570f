"""Positive amounts, remembered by their text: most trades are made of texts that were read before.

A trade of nothing but such amounts and known names needs no closer look. What is no positive amount
does not get in, and is judged by the rules like anything else.
"""

from typing import Final, Literal

from app.money import LIMIT_E8, ONE_E8, AmountError, parse_amount

_LIMIT: Final = 65_536

Text = str | int
"""An amount as it was sent; an int and the text of it are two keys."""


class Approved:
    """What amounts stand for in positions that count in one unit, at contract multiplier 1.

    Attributes:
        quantities: Signed units, > 0 for BUY, by side and text.
        values: Price of one unit at 10^-24, by text.
    """

    def __init__(self, unit_e8: int) -> None:
        self._unit_e8 = unit_e8
        self.quantities: dict[Literal["BUY", "SELL"], dict[Text, int]] = {"BUY": {}, "SELL": {}}
        self.values: dict[Text, int] = {}

    def read(self, quantity: Text, price: Text) -> bool:
        """Remember two texts, if they are positive amounts and the quantity is of whole units."""
        try:
            quantity_e8, price_e8 = parse_amount(quantity)[0], parse_amount(price)[0]
        except AmountError:
            return False
        if quantity_e8 <= 0 or price_e8 <= 0 or quantity_e8 % self._unit_e8:
            return False
        buys, sells = self.quantities["BUY"], self.quantities["SELL"]
        for known in (buys, sells, self.values):
            if len(known) >= _LIMIT:
                known.clear()
        buys[quantity] = quantity_e8 // self._unit_e8
        sells[quantity] = -buys[quantity]
        self.values[price] = price_e8 * ONE_E8 * self._unit_e8
        return True


WHOLE_UNITS: Final = Approved(ONE_E8)
FRACTIONS: Final = Approved(1)
NOTHING: Final = Approved(LIMIT_E8)
"""For positions whose trades are all judged one by one: no quantity has a unit of this size."""
