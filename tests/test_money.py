"""Amounts: what is read, what is refused, and that nothing is ever lost on the way."""

import decimal
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import money
from app.money import (
    LIMIT_E8,
    AmountError,
    divide_half_even,
    format_scaled,
    parse_amount,
    parse_scaled,
    to_decimal,
)

AMOUNTS_E8 = st.integers(min_value=-LIMIT_E8 + 1, max_value=LIMIT_E8 - 1)


class Word(StrEnum):
    """Text of another type than `str` itself."""

    TEN = "10"


def problem_of(value: object) -> str:
    """Give the problem that a value is refused with."""
    with pytest.raises(AmountError) as refused:
        parse_amount(value)
    assert str(refused.value) == refused.value.problem
    return refused.value.problem


@given(AMOUNTS_E8)
def test_amount_with_eight_decimals_is_the_same_from_text_and_from_decimal(amount: int) -> None:
    """Text, `Decimal` and the scaled int are three writings of one number, without rounding."""
    exact = Decimal(amount).scaleb(-8, decimal.Context(prec=40))
    assert parse_amount(f"{exact:f}") == (amount, False)
    assert parse_amount(exact) == (amount, False)
    assert to_decimal(amount) == exact


@given(st.integers(min_value=-(10**12) + 1, max_value=10**12 - 1))
def test_whole_number_is_read_exactly(number: int) -> None:
    """An int enters at scale 10^-8 as itself."""
    assert parse_amount(number) == (number * 10**8, False)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-9e11, max_value=9e11))
def test_float_enters_by_its_shortest_text(number: float) -> None:
    """A float means what its `repr` says, and is flagged when that has more than 8 decimals."""
    shortest = Decimal(repr(number))
    rounded = shortest.quantize(Decimal("1e-8"), ROUND_HALF_EVEN)
    assert parse_amount(number) == (int(rounded.scaleb(8)), rounded != shortest)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-999_999, max_value=999_999),
)
def test_number_with_more_decimals_is_rounded_half_even_and_flagged(number: Decimal) -> None:
    """A number of any length comes out as the nearest 8-place decimal, and says so."""
    amount, was_rounded = parse_amount(number)
    assert amount == round(Fraction(number) * 10**8)  # Fraction rounds half to even, exactly
    assert was_rounded == (Fraction(amount, 10**8) != Fraction(number))


@pytest.mark.parametrize(
    ("number", "amount"),
    [
        ("0.000000005", 0),
        ("0.000000015", 2),
        ("0.000000025", 2),
        ("-0.000000015", -2),
        ("-0.000000005", 0),
        ("1.0000000050000000000000000001", 100_000_001),
        ("1.000000005" + "0" * 200 + "1", 100_000_001),  # longer than any context's precision
        ("1.000000004" + "9" * 200, 100_000_000),
        ("1e-30", 0),
        ("1e-999999", 0),
    ],
)
def test_tie_goes_to_the_even_digit_and_every_digit_counts(number: str, amount: int) -> None:
    """Rounding happens once, half to even, on all the digits that were sent."""
    assert parse_amount(Decimal(number)) == (amount, True)


@pytest.mark.parametrize("decimals", [9, 10, 17, 60])
def test_text_with_nine_or_more_decimals_is_refused(decimals: int) -> None:
    """Text is never rounded: too many decimals are a mistake of its sender."""
    assert problem_of("0." + "1" * decimals) == "too-many-decimals"
    assert problem_of("1." + "0" * decimals) == "too-many-decimals"


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("10", 10 * 10**8),
        ("10.0", 10 * 10**8),
        ("10.00000000", 10 * 10**8),
        ("+5", 5 * 10**8),
        ("-12.5", -1_250_000_000),
        ("-0", 0),
        ("007.10", 710_000_000),
        ("0.00000001", 1),
        ("999999999999.99999999", LIMIT_E8 - 1),
        ("-999999999999.99999999", 1 - LIMIT_E8),
        ("0" * 40, 0),
    ],
)
def test_plain_decimal_text_is_read(text: str, amount: int) -> None:
    """Sign, digits and at most 8 decimals are read as they stand, again and again."""
    assert parse_amount(text) == (amount, False)
    assert parse_amount(text) == (amount, False)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", " 10 ", "10 ", "10\n", "1,250,000", "250,000,000+", "1e3", "1E+400", "1_000"),
        *(".5", "5.", ".", "+", "-", "--1", "1.2.3", "0x10", "null", "1e999999999", "10\x00"),
        *("\uff11\uff10", "\u0661\u0660", "\u22121", "1\u00a0000", "\u00bd", "\ud800"),
    ],
)
def test_text_with_anything_else_is_refused(text: str) -> None:
    """No separators, exponents, blanks or digits of other scripts: only ASCII plain decimals."""
    assert problem_of(text) == "bad-character"


@pytest.mark.parametrize(
    "value",
    [
        *("NaN", "nan", "-inf", "Infinity", "+INFINITY"),
        *(float("nan"), float("inf"), -float("inf")),
        *(Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity")),
    ],
)
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    """Not-a-number and the infinities are named as what they are, in text and in numbers."""
    assert problem_of(value) == "not-finite"


@pytest.mark.parametrize(
    "value",
    [
        *("1000000000000", "-1000000000000", "9" * 41, "9" * 60_000),
        *(10**12, -(10**12), 10**30, 10**4000, 1e12, 1e308),
        *(Decimal("1e12"), Decimal("999999999999.999999995"), Decimal("-1e12")),
        *(Decimal("1e40"), Decimal("1e41"), Decimal("1e1000000"), Decimal("-1e999999999")),
    ],
)
def test_thirteen_integer_digits_are_out_of_range(value: object) -> None:
    """An amount has at most 12 integer digits, also once it is rounded, however it is written."""
    assert problem_of(value) == "out-of-range"


@pytest.mark.parametrize("zero", ["0", "-0", "0e1000000", "0e-1000000", "-0.000000000000"])
def test_zero_with_any_exponent_is_zero(zero: str) -> None:
    """The exponent of a zero carries no value: it is neither huge nor rounded."""
    assert parse_amount(Decimal(zero)) == (0, False)


@pytest.mark.parametrize("value", [None, True, False, b"1", [], {}, object(), Word.TEN, 1j])
def test_value_of_another_type_is_refused(value: object) -> None:
    """A bool is no number, and only text itself is text."""
    assert problem_of(value) == "wrong-type"


def test_decimal_context_of_the_program_changes_no_amount() -> None:
    """A thread that rounds its own decimals to 3 digits upwards still gets exact amounts."""
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        assert parse_amount(Decimal("123456789.12345678")) == (12_345_678_912_345_678, False)
        assert parse_amount(Decimal("0.000000025")) == (2, True)
        assert parse_amount(123456.25) == (12_345_625_000_000, False)
        assert str(to_decimal(12_345_678_912_345_678)) == "123456789.12345678"


def test_text_cache_that_is_full_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of texts is bounded, and what is read stays right when it overflows."""
    monkeypatch.setattr(money, "_TEXT_CACHE_LIMIT", 3)
    monkeypatch.setattr(money, "_text_cache", {})
    assert [parse_amount(str(n))[0] for n in range(10)] == [n * 10**8 for n in range(10)]
    assert len(money._text_cache) <= 3


@given(st.integers(), st.sampled_from([8, 24, 32]))
def test_scaled_number_survives_its_text(amount: int, scale: int) -> None:
    """What `format_scaled` writes is a canonical plain decimal that reads back exactly."""
    text = format_scaled(amount, scale)
    assert parse_scaled(text, scale) == amount
    assert Fraction(text) == Fraction(amount, 10**scale)
    assert "e" not in text.lower()
    assert text != "-0"
    assert "." not in text or not text.endswith(("0", "."))


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (1, "0.00000001"), (-1, "-0.00000001"), (10**8, "1"), (-150_000_000, "-1.5")],
)
def test_scaled_number_is_written_without_needless_digits(amount: int, text: str) -> None:
    """No exponent, no trailing zeros and no negative zero."""
    assert format_scaled(amount) == text


@pytest.mark.parametrize("text", ["", "1e3", " 1", "1.", "x", "1.000000000", "\uff11", "9" * 5000])
def test_text_that_is_no_scaled_number_is_refused(text: str) -> None:
    """Reading back accepts only what may have been written."""
    with pytest.raises(ValueError, match=r"plain decimal|digits"):
        parse_scaled(text, 8)


@given(st.integers(), st.integers(min_value=1))
def test_division_rounds_half_to_even(numerator: int, denominator: int) -> None:
    """The quotient is the nearest int, and of two equally near ones the even one."""
    assert divide_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@pytest.mark.parametrize(
    ("numerator", "quotient"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2)]
)
def test_division_of_a_tie_goes_to_the_even_quotient(numerator: int, quotient: int) -> None:
    """Halves go to the even neighbour on both sides of zero."""
    assert divide_half_even(numerator, 2) == quotient
