"""Amounts that have passed the rules, remembered by their text.

Prices and quantities repeat, so most trades are made of texts that were judged before. No rule is
written here: a text gets in only after an event with it was booked, and what is not found is judged
like any other.
"""

from typing import Final

from app.money import ONE_E8

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
        self.quantities: dict[str, dict[Text, int]] = {"BUY": {}, "SELL": {}}
        self.values: dict[Text, int] = {}

    def add(self, *, quantity: Text, quantity_e8: int, price: Text, price_e8: int) -> None:
        """Remember the amounts of an event that was booked.

        Args:
            quantity: As it was sent.
            quantity_e8: What it was found to be: a multiple of the unit, > 0, at 10^-8.
            price: As it was sent.
            price_e8: What it was found to be, at 10^-8.
        """
        buys, sells = self.quantities["BUY"], self.quantities["SELL"]
        for known in (buys, sells, self.values):
            if len(known) >= _LIMIT:
                known.clear()
        buys[quantity] = quantity_e8 // self._unit_e8
        sells[quantity] = -buys[quantity]
        self.values[price] = price_e8 * ONE_E8 * self._unit_e8


WHOLE_UNITS: Final = Approved(ONE_E8)
FRACTIONS: Final = Approved(1)
NOTHING: Final = Approved(ONE_E8)
"""For positions whose trades are all judged one by one; it stays empty."""
