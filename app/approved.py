"""Positive amounts, remembered by their text: most trades are made of texts that were read before.

A trade of nothing but such amounts and known names needs no closer look. What is no positive amount
is not found here, and judged by the rules like anything else.
"""

from typing import Final, Literal

from app.money import ONE_E8, AmountError, parse_amount

_LIMIT: Final = 65_536

Text = str | int
"""An amount as it was sent; an int and the text of it are two keys."""


class PositiveAmounts(dict[Text, int]):
    """What texts stand for, read when they are first asked for; bounded.

    Args:
        numerator: An amount is multiplied by this,
        denominator: and divided by this, which has to leave no rest.
    """

    def __init__(self, numerator: int, denominator: int) -> None:
        super().__init__()
        self._numerator = numerator
        self._denominator = denominator

    def __missing__(self, text: Text) -> int:
        """Read a text; raises `KeyError` where it is no positive amount of whole units."""
        try:
            amount_e8, _ = parse_amount(text)
        except AmountError:
            raise KeyError(text) from None
        amount, rest = divmod(amount_e8 * self._numerator, self._denominator)
        if amount_e8 <= 0 or rest:
            raise KeyError(text)
        if len(self) >= _LIMIT:
            self.clear()
        self[text] = amount
        return amount


class Approved:
    """What amounts stand for in positions that count in one unit, at contract multiplier 1.

    Attributes:
        quantities: Signed units, > 0 for BUY, by side and text.
        values: Price of one unit at 10^-24, by text.
    """

    def __init__(self, unit_e8: int) -> None:
        self.quantities: dict[Literal["BUY", "SELL"], PositiveAmounts] = {
            "BUY": PositiveAmounts(1, unit_e8),
            "SELL": PositiveAmounts(-1, unit_e8),
        }
        self.values = PositiveAmounts(ONE_E8 * unit_e8, 1)


WHOLE_UNITS: Final = Approved(ONE_E8)
FRACTIONS: Final = Approved(1)
NOTHING: Final = Approved(ONE_E8)
"""For positions whose trades are all judged one by one."""
NOTHING.quantities.clear()
