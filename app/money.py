"""Exact money: decimals as integers at a fixed scale, never a binary fraction.

A price, a quantity, a fee or a multiplier is an int at scale 10^-8 (`*_e8`, at most 12 integer
digits). A product price x quantity x multiplier is an int at scale 10^-24 (`*_e24`), which holds it
without rounding. `Decimal` and text exist at the edges only.
"""

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Literal

SCALE = 8
ONE_E8 = 100_000_000
LIMIT_E8 = 10**20
"""Exclusive bound of every amount: decimal(20, 8) has 12 integer digits."""

_POWERS: tuple[int, ...] = tuple(10**scale for scale in range(4 * SCALE + 1))
_STEP = Decimal(1).scaleb(-SCALE)
# Ours, not the thread's: what a program does to its decimal context changes no amount here.
_CONTEXT = Context(prec=80, rounding=ROUND_HALF_EVEN)
_AMOUNT = re.compile(r"([+-]?)(\d+)(?:\.(\d+))?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_TEXT_CACHE_LIMIT = 65_536
_text_cache: dict[str, int] = {}
_MAX_EXPONENT = 40  # beyond it a number is out of range or all noise; never expanded into digits

Problem = Literal["wrong-type", "bad-character", "not-finite", "out-of-range", "too-many-decimals"]


class AmountError(ValueError):
    """Text or a number that is no amount.

    Args:
        problem: The second half of a reason code, such as `out-of-range`.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def parse_amount(value: object) -> tuple[int, bool]:
    """Read one amount as the event contract says: text strictly, a number with rounding.

    Args:
        value: Text such as `"-12.50"` (sign, digits, at most 8 decimals, no exponent), an int, a
            `Decimal`, or a float, which enters by its shortest decimal text.

    Returns:
        The amount at scale 10^-8, and whether a number had more than 8 decimals and was rounded
        half-even to them. Text is never rounded.

    Raises:
        AmountError: The value is of another type, not finite, has 13 or more integer digits, or is
            text with more than 8 decimals or any other character.
    """
    if type(value) is str:
        # Prices and lot sizes repeat: reading one again costs a look-up.
        amount = _text_cache.get(value)
        if amount is None:
            if len(_text_cache) >= _TEXT_CACHE_LIMIT:
                _text_cache.clear()
            amount = _text_cache[value] = _parse_text(value)
        return amount, False
    if type(value) is int:
        return _bounded(value * ONE_E8 if abs(value) < LIMIT_E8 else LIMIT_E8), False
    if type(value) is float:
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        return _scale_decimal(value)
    raise AmountError("wrong-type")


def _parse_text(text: str) -> int:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise AmountError("not-finite" if _NOT_FINITE.fullmatch(text) else "bad-character")
    sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    if len(fraction) > SCALE:
        raise AmountError("too-many-decimals")
    if len(whole) > _MAX_EXPONENT:
        raise AmountError("out-of-range")
    amount = _bounded(int(whole + fraction.ljust(SCALE, "0")))
    return -amount if sign == "-" else amount


def _scale_decimal(value: Decimal) -> tuple[int, bool]:
    if not value.is_finite():
        raise AmountError("not-finite")
    # The exponent is judged before any digit is expanded: 1e1000000 would stall the process.
    if value and value.adjusted() > _MAX_EXPONENT:
        raise AmountError("out-of-range")
    rounded = value.quantize(_STEP, context=_CONTEXT)
    return _bounded(int(rounded.scaleb(SCALE, _CONTEXT))), rounded != value


def _bounded(amount_e8: int) -> int:
    if not -LIMIT_E8 < amount_e8 < LIMIT_E8:
        raise AmountError("out-of-range")
    return amount_e8


def to_decimal(amount: int, scale: int = SCALE) -> Decimal:
    """Give a scaled int as an exact `Decimal` of any length, without trailing zeros."""
    return Decimal(format_scaled(amount, scale))


def format_scaled(amount: int, scale: int = SCALE) -> str:
    """Write a scaled int as plain decimal text: no exponent, no trailing zeros, no `-0`."""
    if not amount:
        return "0"
    whole, fraction = divmod(abs(amount), _POWERS[scale])
    sign = "-" if amount < 0 else ""
    if not fraction:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{str(fraction).rjust(scale, '0').rstrip('0')}"


def parse_scaled(text: str, scale: int) -> int:
    """Read back what `format_scaled` wrote, exactly and without bound.

    Raises:
        ValueError: The text is no plain decimal, or has more decimals than the scale.
    """
    whole, _, fraction = text.partition(".")
    if not _AMOUNT.fullmatch(text) or len(fraction) > scale:
        raise ValueError("not a plain decimal at this scale")
    return int(whole + fraction) * _POWERS[scale - len(fraction)]


def divide_half_even(numerator: int, denominator: int) -> int:
    """Divide two ints (`denominator` > 0) and round half to even."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient & 1):
        return quotient + 1
    return quotient
