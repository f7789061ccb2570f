"""What a position is worth: marks, gross and net, and another currency."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.models import CostMethod, Position
from app.pnl.fills import Fill, replay
from app.pnl.valuation import LAST_TRADE, Converted, Mark, convert, last_trade, value
from tests.worked_cases import (
    CASES,
    E24,
    UNIT,
    Case,
    e8,
    fill,
    fills_of,
    histories,
    marks,
    rates,
)

BOTH = pytest.mark.parametrize("method", CostMethod)
E32 = 10**32


def mark(text: str) -> Mark:
    """Build a mark or a rate."""
    return Mark(e8(text), 1, "close")


def position_of(fills: list[Fill], method: CostMethod = CostMethod.AVERAGE) -> Position:
    """Give the position of some fills."""
    return replay(fills, method, of=Position(None, "X")).position()


@BOTH
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_worked_case_has_its_total_at_the_mark(case: Case, method: CostMethod) -> None:
    """Net is the same by both methods to the last digit; unrealised is each method's own."""
    found = value(position_of(fills_of(*case.fills), method), mark(case.mark))
    assert found.net_e24 is not None
    assert found.unrealized_e24 is not None
    assert found.net_e24 * UNIT == Fraction(case.net)
    expected = case.unrealized[0 if method is CostMethod.AVERAGE else 1]
    assert abs(found.unrealized_e24 * UNIT - Fraction(expected)) <= UNIT
    assert found.mark == mark(case.mark)


def test_gross_fees_and_net_are_three_numbers() -> None:
    """Case D: gross realised 250, unrealised 15, fees 3.30, net 261.70."""
    found = value(position_of(fills_of(*CASES["D two flips with fees"].fills)), mark("11.50"))
    assert found.realized_e24 == 250 * E24
    assert found.unrealized_e24 == 15 * E24
    assert found.gross_e24 == 265 * E24
    assert found.fees_e24 * UNIT == Fraction("3.30")
    assert found.net_realized_e24 * UNIT == Fraction("246.70")


def test_open_position_without_a_mark_has_no_known_worth() -> None:
    """Unknown is not zero, and neither is a sum with it."""
    found = value(position_of(fills_of("B100@10 1")), None)
    assert (found.unrealized_e24, found.gross_e24, found.net_e24) == (None, None, None)
    assert found.net_realized_e24 == -E24
    assert found.mark is None


def test_flat_position_needs_no_mark() -> None:
    """Nothing is open: unrealised is known, and is 0."""
    found = value(position_of(fills_of("B100@10", "S100@11 2")), None)
    assert (found.unrealized_e24, found.net_e24) == (0, 98 * E24)


def test_last_trade_is_a_mark_with_its_time_and_source() -> None:
    """Of a key without a trade there is none."""
    fills = fills_of("B100@10", "S50@11")
    assert last_trade(position_of(fills)) == Mark(e8("11"), fills[-1].time_ns, LAST_TRADE)
    assert last_trade(Position(None, "X")) is None


@BOTH
@given(fills=histories(), mark_e8=marks)
def test_value_agrees_with_what_the_position_says_of_itself(
    fills: list[Fill], mark_e8: int, method: CostMethod
) -> None:
    """At the last trade it is the position's own unrealised."""
    position = position_of(fills, method)
    assert value(position, last_trade(position)).unrealized_e24 == position.unrealized_e24
    found = value(position, Mark(mark_e8, 1, "x"))
    assert found.unrealized_e24 == (
        position.quantity_e8 * mark_e8 * position.multiplier_e8 - position.open_cost_e24
    )


@BOTH
def test_profit_in_another_currency_is_price_and_fx(method: CostMethod) -> None:
    """Bought 100 at EUR 10 at 1.10, sold at EUR 11 at 1.20: USD 220 = price 120 + FX 100."""
    fills = [fill("B100@10", 0, rate="1.10"), fill("S100@11", 1, rate="1.20")]
    found = convert(fills, method, mark=None, rate=None)
    assert found == Converted(
        realized_e32=120 * E32, unrealized_e32=0, fx_e32=100 * E32, fees_e32=0
    )
    assert found.net_e32 == 220 * E32


@BOTH
def test_open_position_in_another_currency_is_converted_at_the_rate_of_the_mark(
    method: CostMethod,
) -> None:
    """100 bought at EUR 10 at 1.10, marked 11 at 1.20: price 120, FX 100, a fee of EUR 1: 1.10."""
    found = convert([fill("B100@10 1", 0, rate="1.10")], method, mark=mark("11"), rate=mark("1.20"))
    assert (found.realized_e32, found.unrealized_e32) == (0, 120 * E32)
    assert found.fx_e32 == 100 * E32
    assert found.fees_e32 * Fraction(1, E32) == Fraction("1.10")
    assert found.net_e32 is not None
    assert found.net_e32 * Fraction(1, E32) == Fraction("218.90")


@pytest.mark.parametrize(("price", "rate"), [(None, mark("1.2")), (mark("11"), None)])
def test_open_position_without_mark_or_rate_has_no_known_worth_in_another_currency(
    price: Mark | None, rate: Mark | None
) -> None:
    """What is realised, and the fees, are known all the same."""
    fills = [fill("B100@10 1", 0, rate="1.10"), fill("S50@11", 1, rate="1.20")]
    found = convert(fills, mark=price, rate=rate)
    assert (found.unrealized_e32, found.fx_e32, found.net_e32) == (None, None, None)
    assert found.realized_e32 == 60 * E32
    assert found.fees_e32 * Fraction(1, E32) == Fraction("1.10")


@BOTH
@given(fills=histories(), mark_e8=marks, rate_e8=rates)
def test_converted_total_is_cash_at_its_rates_and_inventory(
    fills: list[Fill], mark_e8: int, rate_e8: int, method: CostMethod
) -> None:
    """The sum of the parts is the total, to the last digit, by either method."""
    found = convert(fills, method, mark=Mark(mark_e8, 1, "x"), rate=Mark(rate_e8, 1, "x"))
    total = Fraction(0)
    for one in fills:
        paid = Fraction(one.signed_quantity_e8 * one.price_e8 * one.multiplier_e8, E24)
        total -= (paid + Fraction(one.fee_e8, 10**8)) * Fraction(one.rate_e8, 10**8)
    held = sum(one.signed_quantity_e8 * one.multiplier_e8 for one in fills)
    total += Fraction(held * mark_e8 * rate_e8, E32)
    assert found.net_e32 is not None
    assert found.net_e32 * Fraction(1, E32) == total


@given(histories(), marks, st.integers(1, 10**12))
def test_at_one_rate_there_is_no_fx(fills: list[Fill], mark_e8: int, rate_e8: int) -> None:
    """Nothing comes of a currency whose rate does not move."""
    fixed = [replace(one, rate_e8=rate_e8) for one in fills]
    for method in CostMethod:
        found = convert(fixed, method, mark=Mark(mark_e8, 1, "x"), rate=Mark(rate_e8, 1, "x"))
        native = value(position_of(fixed, method), Mark(mark_e8, 1, "x"))
        assert found.fx_e32 == 0
        assert native.net_e24 is not None
        assert found.net_e32 == native.net_e24 * rate_e8
