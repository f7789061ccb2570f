"""PnL in a reporting currency from the fills of positions: what is known, and what is not."""

from datetime import date
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.models import CostMethod
from app.money import format_scaled
from app.pnl.daily import Day, summed
from app.pnl.fills import Fill
from app.pnl.rates import Rates, parse_rates
from app.pnl.reported import PositionFills, convert_position, explain_position
from app.pnl.valuation import combined
from tests.worked_cases import DAY_NS, START_NS, fills_of, histories

E32 = 10**32
# The fills of `fills_of` are of every second day from 2026-01-01 on.
RATES = """date,currency,rate
2026-01-01,EUR,1.10
2026-01-03,EUR,1.20
2026-01-04,EUR,1.25
"""
DAY = Day(date(2026, 1, 2), date(2026, 1, 3))


def rates(text: str = RATES) -> Rates:
    """Read rates into dollars."""
    return parse_rates(text.splitlines(), "USD")


def position(*fills: str, is_pruned: bool = False, **more: Any) -> PositionFills:
    """Give a position of fills in short notation."""
    return made_of(fills_of(*fills), is_pruned=is_pruned, **more)


def made_of(
    fills: list[Fill],
    *,
    currency: str = "EUR",
    method: CostMethod = CostMethod.AVERAGE,
    is_pruned: bool = False,
) -> PositionFills:
    """Give a position of fills."""
    return PositionFills("B", "ABC", currency, method, fills, is_pruned)


def dollars(amount_e32: int | None) -> Fraction | None:
    """Give an amount as a fraction."""
    return None if amount_e32 is None else Fraction(amount_e32, E32)


def test_the_price_and_the_currency_bring_their_parts() -> None:
    """The worked case: bought 100 at EUR 10 at 1.10, sold at EUR 11 at 1.20."""
    found = convert_position(position("B100@10", "S100@11"), rates())
    assert found.converted is not None
    parts = (found.converted.realized_e32, found.converted.unrealized_e32, found.converted.fx_e32)
    assert [dollars(part) for part in parts] == [120, 0, 100]
    assert (found.mark, found.rate) == (None, None)  # nothing is open that they would value


def test_what_is_open_is_worth_the_last_trade_at_the_newest_rate() -> None:
    """Also where the newest rate is of a later day than any trade; both are named."""
    found = convert_position(position("B100@10", "B50@12 1"), rates())
    assert found.converted is not None
    assert found.mark is not None
    assert found.rate is not None
    assert (found.mark.amount_e8, found.rate.amount_e8) == (12 * 10**8, 125_000_000)
    # 150 x 12 less the cost of 1600, at 1.25; of the whole, 1100 and 720 were paid.
    assert dollars(found.converted.unrealized_e32) == 250
    assert dollars(found.converted.fees_e32) == Fraction("1.2")
    assert dollars(found.converted.net_e32) == 2250 - 1820 - Fraction("1.2")


@pytest.mark.parametrize(
    "unknown",
    [
        position("B100@10", "S100@11", currency="GBP"),  # no rate at all
        made_of([replace(fills_of("B1@1")[0], time_ns=0)]),
        position("B100@10", is_pruned=True),
        position(is_pruned=True),
    ],
    ids=["currency", "trade-before-the-first-rate", "pruned", "all-pruned"],
)
def test_what_is_not_known_is_nothing_rather_than_a_wrong_number(unknown: PositionFills) -> None:
    """Of a whole position: a part of its fills says nothing about it."""
    assert convert_position(unknown, rates()).converted is None
    assert explain_position(unknown, DAY, rates()).explanation is None


def test_multipliers_that_meet_in_the_order_of_execution_are_not_added() -> None:
    """The log had a flat position between them; the order of execution has not."""
    first, second = fills_of("B1@1", "B1@1")
    mixed = made_of([first, replace(second, multiplier_e8=5 * 10**8)])
    assert convert_position(mixed, rates()).converted is None


def test_a_day_has_fx_of_what_was_open_and_of_what_was_paid() -> None:
    """The rate moved from 1.10 to 1.20 while 100 were open; 40 were sold at the rate of the day."""
    found = explain_position(position("B100@10", "S40@12 0.50"), DAY, rates())
    assert found.explanation is not None
    assert (found.new_trades, found.explanation.amendments_e32) == (1, 0)
    shown = {
        name: dollars(getattr(found.explanation, f"{name}_e32"))
        for name in ("before", "price", "new_trades", "fx", "fees", "after")
    }
    assert shown == {
        "before": 0,  # bought and marked at one price and one rate
        "price": 240,  # 100 x 2 x 1.20
        "new_trades": 0,
        "fx": 100,  # 1000 x 0.10
        "fees": Fraction("0.6"),
        "after": Fraction("339.4"),
    }
    assert found.first_rate is not None
    assert found.rate is not None
    assert (found.first_rate.amount_e8, found.rate.amount_e8) == (110_000_000, 120_000_000)
    assert (found.first_mark, found.mark) != (None, None)


def test_a_position_is_split_by_its_own_method() -> None:
    """First in, first out, the share that is sold was the cheap one; by average, half of both."""
    fills = fills_of("B100@10", "B100@20", "S100@20")
    fifo = convert_position(made_of(fills, method=CostMethod.FIFO), rates()).converted
    average = convert_position(made_of(fills), rates()).converted
    assert fifo is not None
    assert average is not None
    assert fifo.realized_e32 > average.realized_e32
    assert fifo.net_e32 == average.net_e32


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    """Whatever else is known, and of whichever position it is."""
    known, unknown = position("B100@10", "S40@12"), position("B1@1", currency="GBP")
    days = [explain_position(one, DAY, rates()).explanation for one in (known, unknown)]
    assert summed(days) is None
    assert summed(days[:1]) == days[0]
    worth = [convert_position(one, rates()).converted for one in (known, unknown)]
    assert combined(worth) is None
    assert combined(worth[:1]) == worth[0]


@given(
    fills=histories(one_multiplier=True, most=6),
    moves=st.lists(st.integers(1, 10**10), min_size=60, max_size=60),
    close=st.integers(1, 12),
)
def test_a_day_leads_from_one_total_to_the_next(
    fills: list[Fill], moves: list[int], close: int
) -> None:
    """What explains it adds up to the change of the total, which is converted by other code."""
    lines = [
        f"2026-{1 + d // 28:02}-{1 + d % 28:02},EUR,{format_scaled(m)}" for d, m in enumerate(moves)
    ]
    given_rates = rates("\n".join(["date,currency,rate", *lines]))
    first, second = date(2026, 1, close), date(2026, 1, close + 3)
    ends_ns = [START_NS + (day.toordinal() - date(2025, 12, 31).toordinal()) * DAY_NS - 1
               for day in (first, second)]  # fmt: skip
    known = [fill for fill in fills if fill.time_ns <= ends_ns[1]]
    found = explain_position(made_of(known), Day(first, second), given_rates)
    totals = []
    for end_ns in ends_ns:
        until = made_of([f for f in known if f.time_ns <= end_ns])
        total = Fraction(0)
        for fill in until.fills:
            rate = given_rates.at("EUR", fill.time_ns)
            assert rate is not None
            paid = Fraction(fill.signed_quantity_e8 * fill.price_e8 * fill.multiplier_e8, 10**24)
            total -= (paid + Fraction(fill.fee_e8, 10**8)) * Fraction(rate.amount_e8, 10**8)
        rate, mark = given_rates.at("EUR", end_ns), until.mark()
        held = sum(fill.signed_quantity_e8 * fill.multiplier_e8 for fill in until.fills)
        if held:
            assert rate is not None
            assert mark is not None
            total += Fraction(held * mark.amount_e8 * rate.amount_e8, E32)
        totals.append(total)
    assert found.explanation is not None
    explanation = found.explanation
    assert [dollars(explanation.before_e32), dollars(explanation.after_e32)] == totals
    parts = explanation.price_e32 + explanation.new_trades_e32 + explanation.fx_e32
    assert dollars(parts - explanation.fees_e32) == totals[1] - totals[0]
