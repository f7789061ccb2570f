"""Legs from flat to flat, with the fee of a fill through zero split between two of them."""

from fractions import Fraction

import pytest
from hypothesis import given

from app.errors import InvalidTradeError
from app.models import CostMethod, Position
from app.money import ONE_E8
from app.pnl.fifo import E8_TO_E24
from app.pnl.fills import Fill, replay
from app.pnl.legs import Leg, legs
from tests.worked_cases import CASES, UNIT, e8, fill, fills_of, histories

BOTH = pytest.mark.parametrize("method", CostMethod)


def net(leg: Leg) -> Fraction:
    """Give the net of a leg in units of currency."""
    return leg.net_e24 * UNIT


@BOTH
def test_fourth_case_has_three_legs(method: CostMethod) -> None:
    """Long leg 198.00, short leg 49.00, open leg -0.30: 246.70 before the mark."""
    fills = fills_of(*CASES["D two flips with fees"].fills)
    long, short, still_open = found = legs(fills, method)
    assert [net(leg) for leg in found] == [198, 49, Fraction("-0.30")]
    assert [leg.gross_e24 * UNIT for leg in found] == [200, 50, 0]
    assert [leg.fees_e24 * UNIT for leg in found] == [2, 1, Fraction("0.30")]
    assert [leg.is_long for leg in found] == [True, False, True]
    assert [leg.quantity_e8 for leg in found] == [0, 0, 30 * ONE_E8]
    assert (long.closed_ns, short.closed_ns, still_open.closed_ns) == (
        fills[1].time_ns,
        fills[2].time_ns,
        None,
    )
    assert (short.opened_ns, still_open.opened_ns) == (fills[1].time_ns, fills[2].time_ns)
    assert [leg.open_fees_e24 * UNIT for leg in found] == [0, 0, Fraction("0.30")]


def test_first_case_with_fees_in_the_cost_by_average() -> None:
    """Per sale: 185.0667 and -118.0667, which is 67.00."""
    (leg,) = legs(fills_of(*CASES["A fees, ends flat"].fills))
    first, second = leg.closings
    assert abs(first.net_e24 * UNIT - (Fraction(560, 3) - Fraction("1.60"))) <= UNIT
    assert abs(second.net_e24 * UNIT - (-Fraction(350, 3) - Fraction("1.40"))) <= UNIT
    assert first.net_e24 + second.net_e24 == leg.net_e24
    assert net(leg) == 67


def test_first_case_with_fees_in_the_cost_by_lot() -> None:
    """Per lot: 238.40, -20.40 and -151.00, which is 67.00."""
    (leg,) = legs(fills_of(*CASES["A fees, ends flat"].fills), CostMethod.FIFO)
    assert [closing.net_e24 * UNIT for closing in leg.closings] == [
        Fraction("238.40"),
        Fraction("-20.40"),
        Fraction("-151.00"),
    ]
    assert [closing.trade_id for closing in leg.closings] == ["T2", "T3", "T3"]
    assert [closing.quantity_e8 for closing in leg.closings] == [e8("80"), e8("20"), e8("50")]
    assert net(leg) == 67


def test_fee_that_cannot_be_split_evenly_is_split_to_the_last_digit() -> None:
    """A third of a fee is rounded at 10^-24; the opening part is the rest."""
    closed, opened = legs(fills_of("B1@10", "S3@10 1"))
    assert closed.fees_e24 == 333_333_333_333_333_333_333_333
    assert opened.fees_e24 == 666_666_666_666_666_666_666_667


def test_short_leg_closes_negative_quantities() -> None:
    """What is closed has the sign with which it was held."""
    for method in CostMethod:
        (leg,) = legs(fills_of("S5@10", "B2@9"), method)
        assert (leg.closings[0].quantity_e8, leg.quantity_e8) == (e8("-2"), e8("-3"))


@BOTH
def test_no_fills_have_no_legs(method: CostMethod) -> None:
    """Nothing was held."""
    assert legs([], method) == []


@BOTH
def test_multiplier_of_a_closing_fill_must_be_that_of_the_leg(method: CostMethod) -> None:
    """As in every fold of fills."""
    with pytest.raises(InvalidTradeError):
        legs([fill("B1@10", 0), fill("S1@10", 1, multiplier="50")], method)


@BOTH
@given(fills=histories())
def test_legs_add_up_to_the_position(fills: list[Fill], method: CostMethod) -> None:
    """Gross, fees and what is open are those of the position; only the last leg is open."""
    found = legs(fills, method)
    position = replay(fills, method, of=Position(None, "")).position()
    assert sum(leg.gross_e24 for leg in found) == position.realized_e24
    assert sum(leg.fees_e24 for leg in found) == position.fees_e8 * E8_TO_E24
    assert sum(leg.quantity_e8 for leg in found) == position.quantity_e8
    for leg in found[:-1]:
        assert leg.closed_ns is not None
    assert (found[-1].closed_ns is None) == bool(position.quantity_e8)
    for leg in found:
        assert (leg.quantity_e8 == 0) == (leg.closed_ns is not None)
        assert leg.open_fees_e24 == 0 or leg.quantity_e8
        assert leg.quantity_e8 >= 0 if leg.is_long else leg.quantity_e8 <= 0
        assert sum(closing.net_e24 for closing in leg.closings) == leg.net_e24 + leg.open_fees_e24


@given(histories())
def test_legs_of_both_methods_are_the_same_once_closed(fills: list[Fill]) -> None:
    """A method moves PnL within a leg and never between legs."""
    average, fifo = legs(fills), legs(fills, CostMethod.FIFO)
    assert len(average) == len(fifo)
    for one, other in zip(average, fifo, strict=True):
        assert (one.is_long, one.opened_ns, one.closed_ns) == (
            other.is_long,
            other.opened_ns,
            other.closed_ns,
        )
        assert one.fees_e24 == other.fees_e24
        assert one.closed_ns is None or one.gross_e24 == other.gross_e24
