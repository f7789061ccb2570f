"""The change from one close to the next, in parts that add up to the last digit."""

import itertools
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.models import CostMethod
from app.money import ONE_E8
from app.pnl.explain import Close, Explanation, combined, explain, shown
from app.pnl.fills import Fill, removed, replaced
from app.pnl.valuation import Mark, convert
from tests.worked_cases import (
    DAY_NS,
    START_NS,
    e8,
    fees,
    fill,
    histories,
    marks,
    prices,
    quantities,
    rates,
)

E32 = 10**32
FIRST_NS = START_NS + DAY_NS
SECOND_NS = START_NS + 3 * DAY_NS
"""Fill 0 is before the first close, fill 1 between the two."""


def close(
    fills: Sequence[Fill], mark: str | None, rate: str | None = "1", time_ns: int = FIRST_NS
) -> Close:
    """Build a close."""
    return Close(
        time_ns=time_ns,
        fills=tuple(fills),
        mark=None if mark is None else Mark(e8(mark), time_ns, "close"),
        rate=None if rate is None else Mark(e8(rate), time_ns, "close"),
    )


def parts(found: Explanation | None) -> dict[str, Fraction]:
    """Give the parts of an explanation that are not zero."""
    assert found is not None
    named = {
        name.removesuffix("_e32"): Fraction(getattr(found, name), E32)
        for name in found.__struct_fields__
        if name not in ("before_e32", "after_e32")
    }
    return {name: amount for name, amount in named.items() if amount}


def check_sum(found: Explanation) -> None:
    """Assert that the parts are the whole."""
    assert found.change_e32 == (
        found.amendments_e32
        + found.price_e32
        + found.new_trades_e32
        + found.fx_e32
        - found.fees_e32
    )


BOUGHT = fill("B100@10 1", 0)


def test_price_alone_moves_what_is_held() -> None:
    """100 held, the mark goes from 11 to 12.50."""
    found = explain(close([BOUGHT], "11"), close([BOUGHT], "12.5", time_ns=SECOND_NS))
    assert parts(found) == {"price": 150}
    assert found is not None
    assert (found.before_e32, found.after_e32) == (99 * E32, 249 * E32)


def test_new_trade_counts_from_its_price_to_the_mark() -> None:
    """Sold 40 at 12 when the mark is 11.50 at the end: 20, and its fee apart."""
    sold = fill("S40@12 0.5", 1)
    found = explain(close([BOUGHT], "11"), close([BOUGHT, sold], "11.5", time_ns=SECOND_NS))
    assert parts(found) == {"price": 50, "new_trades": 20, "fees": Fraction("0.5")}


def test_amendment_counts_at_the_old_mark() -> None:
    """The buy turns out to have been at 10.50, with a fee of 2: -50 - 1, and nothing else moved."""
    changed = replaced([BOUGHT], replace(BOUGHT, price_e8=e8("10.5"), fee_e8=e8("2")))
    found = explain(close([BOUGHT], "11"), close(changed, "11", time_ns=SECOND_NS))
    assert parts(found) == {"amendments": -51}


def test_cancelled_and_late_trades_are_amendments() -> None:
    """What is of before the first close and was not in it, or is no longer."""
    late = replace(fill("B10@10 1", 7), time_ns=FIRST_NS)
    found = explain(close([BOUGHT], "11"), close([late], "11", time_ns=SECOND_NS))
    assert parts(found) == {"amendments": -99 + 9}
    gone = explain(close([BOUGHT], "11"), close([], None, None, time_ns=SECOND_NS))
    assert parts(gone) == {"amendments": -99}


def test_rate_moves_what_is_held_and_what_was_paid() -> None:
    """The example of 220: 100 of EUR 10 at 1.10 sold at 11 at 1.20 is price 120 and FX 100."""
    bought, sold = fill("B100@10", 0, rate="1.10"), fill("S100@11", 1, rate="1.20")
    found = explain(
        close([bought], "10", "1.10"), close([bought, sold], "11", "1.20", time_ns=SECOND_NS)
    )
    assert parts(found) == {"price": 120, "fx": 100}
    held = explain(close([bought], "10", "1.10"), close([bought], "11", "1.20", time_ns=SECOND_NS))
    assert parts(held) == {"price": 120, "fx": 100}


def test_new_trade_at_another_rate_than_the_close_has_fx() -> None:
    """Bought 100 at EUR 10 at 1.10; the close is at 10.50 and 1.20: 50 x 1.20, 1000 x 0.10."""
    bought = fill("B100@10", 1, rate="1.10")
    found = explain(close([], None, None), close([bought], "10.5", "1.20", time_ns=SECOND_NS))
    assert parts(found) == {"new_trades": 60, "fx": 100}


def test_day_that_begins_and_ends_flat_needs_no_mark() -> None:
    """The mark cancels out; the rate does not, since trades are judged by it."""
    day = [fill("B100@10 1", 1), replace(fill("S100@10.5 1", 1), trade_id="T2")]
    found = explain(close([], None, None), close(day, None, time_ns=SECOND_NS))
    assert parts(found) == {"new_trades": 50, "fees": 2}
    assert explain(close([], None, None), close(day, None, None, time_ns=SECOND_NS)) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"mark": None}, {"mark": "1"}),
        ({"mark": "1", "rate": None}, {"mark": "1"}),
        ({"mark": "1"}, {"mark": None}),
        ({"mark": "1"}, {"mark": "1", "rate": None}),
    ],
    ids=["no first mark", "no first rate", "no second mark", "no second rate"],
)
def test_open_position_without_mark_or_rate_is_not_explained(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    """A part that is not known is no zero."""
    before, after = close([BOUGHT], **first), close([BOUGHT], **second, time_ns=SECOND_NS)
    assert explain(before, after) is None


def test_closes_come_in_order() -> None:
    """The other way round is a mistake of the caller."""
    with pytest.raises(AssertionError):
        explain(close([], "1", time_ns=SECOND_NS), close([], "1"))


def test_shown_parts_add_up_to_the_shown_change() -> None:
    """Each is rounded by itself, half to even; what they lack is shown, too."""
    third = Explanation(
        before_e32=0,
        after_e32=15 * E32 // 1000,
        amendments_e32=5 * E32 // 1000,
        price_e32=5 * E32 // 1000,
        new_trades_e32=15 * E32 // 1000,
        fx_e32=-5 * E32 // 1000,
        fees_e32=5 * E32 // 1000,
    )
    check_sum(third)
    found = shown(third)
    assert found == {
        "new_trades": Decimal("0.02"),
        "price": Decimal(0),
        "fx": Decimal(0),
        "fees": Decimal(0),
        "amendments": Decimal(0),
        "rounding": Decimal(0),
        "change": Decimal("0.02"),
    }
    assert shown(third, decimals=3)["fees"] == Decimal("-0.005")
    uneven = replace(third, new_trades_e32=14 * E32 // 1000, after_e32=14 * E32 // 1000)
    assert shown(replace(uneven, price_e32=9 * E32 // 1000, after_e32=18 * E32 // 1000)) == {
        "new_trades": Decimal("0.01"),
        "price": Decimal("0.01"),
        "fx": Decimal(0),
        "fees": Decimal(0),
        "amendments": Decimal(0),
        "rounding": Decimal(0),
        "change": Decimal("0.02"),
    }
    whole = shown(third, decimals=0)
    assert set(whole.values()) == {Decimal(0)}


def test_rounding_is_a_line_of_its_own() -> None:
    """Two parts of 0.006 are 0.01 each, and 0.012 is 0.01."""
    found = shown(
        Explanation(
            before_e32=0,
            after_e32=12 * E32 // 1000,
            amendments_e32=0,
            price_e32=6 * E32 // 1000,
            new_trades_e32=6 * E32 // 1000,
            fx_e32=0,
            fees_e32=0,
        )
    )
    assert found["rounding"] == Decimal("-0.01")
    assert sum(found.values()) == 2 * found["change"]


def test_explanations_of_positions_add_up() -> None:
    """A desk's day is the sum of those of its positions; of none it is nothing."""
    one = explain(close([BOUGHT], "11"), close([BOUGHT], "12", time_ns=SECOND_NS))
    assert one is not None
    assert combined([one, one]).price_e32 == 200 * E32
    assert combined([one, one]).change_e32 == 2 * one.change_e32
    assert combined([]).change_e32 == 0


def total(fills: Sequence[Fill], mark: Mark, rate: Mark) -> int:
    """Give the total of a position in the reporting currency, by another way."""
    found = convert(fills, CostMethod.FIFO, mark=mark, rate=rate).net_e32
    assert found is not None
    return found


values = st.builds(Mark, marks, st.just(1), st.just("x"))
conversions = st.builds(Mark, rates, st.just(1), st.just("x"))


@st.composite
def closes(draw: st.DrawFn) -> list[Close]:
    """Draw a history with closes in it, between which trades of the past are changed.

    Its multiplier is one, so that what is changed goes on to fit together.
    """
    fills = draw(histories(one_multiplier=True, most=8))
    multiplier_e8 = fills[0].multiplier_e8
    done: list[Close] = []
    known: tuple[Fill, ...] = ()
    seen = 0
    while seen < len(fills) or len(done) < 2:
        count = draw(st.integers(1, 4))
        known, seen = (*known, *fills[seen : seen + count]), seen + count
        is_changed = draw(st.booleans())
        if known and is_changed:
            one = draw(st.sampled_from(known))
            if draw(st.booleans()):
                known = removed(known, one.trade_id)
            else:
                known = replaced(
                    known,
                    replace(
                        one,
                        signed_quantity_e8=draw(quantities),
                        price_e8=draw(prices),
                        fee_e8=draw(fees),
                        rate_e8=draw(rates),
                    ),
                )
        if draw(st.booleans()):  # a trade of the first day that is booked late
            late = Fill(
                f"L{len(done)}", START_NS, 0, -1 - len(done), draw(quantities), draw(prices),
                multiplier_e8, draw(fees), draw(rates),
            )  # fmt: skip
            known = (*known, late)
        done.append(
            Close(
                time_ns=START_NS + seen * DAY_NS - 1,
                fills=known,
                mark=draw(values),
                rate=draw(conversions),
            )
        )
    return done


@given(closes())
def test_parts_are_the_change_of_the_total_and_days_add_up(days: list[Close]) -> None:
    """Every day, to the last digit; all days together are the change from first to last."""
    changes = []
    for before, after in itertools.pairwise(days):
        found = explain(before, after)
        assert found is not None
        check_sum(found)
        for day, amount_e32 in ((before, found.before_e32), (after, found.after_e32)):
            assert day.mark is not None
            assert day.rate is not None
            assert amount_e32 == total(day.fills, day.mark, day.rate)
        changes.append(found)
    together = combined(changes)
    check_sum(together)
    whole = explain(days[0], days[-1])
    assert whole is not None
    assert together.change_e32 == whole.change_e32


@given(closes(), st.integers(0, 8))
def test_shown_numbers_always_add_up(days: list[Close], decimals: int) -> None:
    """The rounding line is never larger than half a digit for each number that was rounded."""
    found = explain(days[0], days[1])
    assert found is not None
    lines = shown(found, decimals=decimals)
    change = lines.pop("change")
    assert sum(map(Fraction, lines.values())) == Fraction(change)
    assert abs(Fraction(lines["rounding"])) <= 3 * Fraction(1, 10**decimals)
    assert 2 * abs(Fraction(change) - Fraction(found.change_e32, E32)) <= Fraction(1, 10**decimals)


def test_default_rate_is_one() -> None:
    """Where both currencies are one, nothing has to be said."""
    assert BOUGHT.rate_e8 == ONE_E8
