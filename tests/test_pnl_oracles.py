"""Our PnL beside that of other people's libraries, each within what it can do.

They are tools of development: `pip install -r requirements/oracles.txt`, and nothing of `app/`
knows of them. None is trusted alone; the invariant of `tests/test_fifo.py` needs no library.

- coinbasis: FIFO and average cost in `Decimal`; no shorts, no rebates; digits beyond the 28th are
  rounded.
- pyfolio: FIFO with shorts and flips; in binary fractions, whole units, no fees, and what is closer
  together than 8 hours is merged, so that the fills here are two days apart.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.models import CostMethod, Position
from app.money import ONE_E8, to_decimal
from app.pnl.fills import Fill, replay
from app.pnl.legs import Closing, legs
from tests.worked_cases import CASES, DAY_NS, START_NS, UNIT, fills_of

LONG_ONLY = ("A fees, ends flat", "B partial close")
START = datetime(2026, 1, 1, tzinfo=UTC)


def installed(name: str) -> bool:
    """Tell whether a library is there, without loading it."""
    return importlib.util.find_spec(name) is not None


needs_coinbasis = pytest.mark.skipif(
    not installed("coinbasis"), reason="coinbasis is not installed: requirements/dev.txt"
)
needs_pyfolio = pytest.mark.skipif(
    not installed("pyfolio"), reason="pyfolio is not installed: requirements/oracles.txt"
)


def closings(fills: Sequence[Fill], method: CostMethod) -> list[Closing]:
    """Give what was closed, in order."""
    return [closing for leg in legs(fills, method) for closing in leg.closings]


def filled(number: int, quantity: int, price_e8: int, fee_e8: int = 0) -> Fill:
    """Build a fill of whole units, two days after the one before."""
    return Fill(
        trade_id=f"T{number}",
        time_ns=START_NS + 2 * number * DAY_NS,
        partition=0,
        offset=number,
        signed_quantity_e8=quantity * ONE_E8,
        price_e8=price_e8,
        fee_e8=fee_e8,
    )


@st.composite
def long_histories(draw: st.DrawFn) -> list[Fill]:
    """Draw fills that never go short; prices in cents, fees that are no rebates."""
    fills: list[Fill] = []
    held = 0
    for number in range(draw(st.integers(1, 12))):
        most = held if held and draw(st.booleans()) else 0
        quantity = -draw(st.integers(1, most)) if most else draw(st.integers(1, 10**6))
        price_e8 = draw(st.integers(1, 10**7)) * 10**6
        fills.append(filled(number, quantity, price_e8, draw(st.integers(0, 10**4)) * 10**6))
        held += quantity
    return fills


@st.composite
def small_histories(draw: st.DrawFn) -> list[Fill]:
    """Draw fills of a few units, long and short, through zero and back."""
    count = draw(st.integers(2, 10))
    sizes = st.integers(-12, 12).filter(bool)
    return [
        filled(number, draw(sizes), draw(st.integers(1, 10**5)) * 10**6) for number in range(count)
    ]


def by_coinbasis(fills: Sequence[Fill], method: CostMethod) -> tuple[list[Any], list[Any]]:
    """Give the gains and holdings of coinbasis."""
    import coinbasis  # noqa: PLC0415  # may not be installed

    ledger = [
        (coinbasis.Buy if fill.signed_quantity_e8 > 0 else coinbasis.Sell)(
            START + timedelta(days=2 * fill.offset),
            "wallet",
            "X",
            to_decimal(abs(fill.signed_quantity_e8)),
            to_decimal(fill.price_e8),
            to_decimal(fill.fee_e8),
        )
        for fill in fills
    ]
    portfolio = coinbasis.Portfolio.from_transactions(ledger)
    theirs = coinbasis.CostBasisMethod[method.name]
    return portfolio.realized_gains(theirs), portfolio.holdings(theirs)


def check_coinbasis(fills: Sequence[Fill], method: CostMethod) -> None:
    """Compare every closed lot, net of its share of both fees, and the cost of what is left."""
    gains, holdings = by_coinbasis(fills, method)
    ours = closings(fills, method)
    tolerance = Fraction(1, 10**12)
    assert len(ours) == len(gains)
    for closing, gain in zip(ours, gains, strict=True):
        assert Fraction(closing.quantity_e8, ONE_E8) == Fraction(gain.quantity)
        assert abs(closing.net_e24 * UNIT - Fraction(gain.gain)) <= tolerance
    position = replay(fills, method, of=Position(None, "X")).position()
    open_fees = legs(fills, method)[-1].open_fees_e24
    theirs = sum((Fraction(holding.cost_basis) for holding in holdings), Fraction(0))
    assert abs((position.open_cost_e24 + open_fees) * UNIT - theirs) <= tolerance
    held = sum((holding.quantity for holding in holdings), Decimal(0))
    assert to_decimal(position.quantity_e8) == held


@needs_coinbasis
@pytest.mark.parametrize("method", CostMethod)
@pytest.mark.parametrize("case", LONG_ONLY)
def test_worked_case_agrees_with_coinbasis(case: str, method: CostMethod) -> None:
    """Those of the worked cases that are never short."""
    check_coinbasis(fills_of(*CASES[case].fills), method)


@needs_coinbasis
@pytest.mark.parametrize("method", CostMethod)
@given(fills=long_histories())
def test_long_histories_agree_with_coinbasis(fills: list[Fill], method: CostMethod) -> None:
    """Lot by lot with FIFO, sale by sale with average cost, fees in the cost."""
    check_coinbasis(fills, method)


def by_pyfolio(fills: Sequence[Fill]) -> list[float]:
    """Give the PnL of each fill that closed something, by pyfolio."""
    import pandas  # noqa: ICN001, PLC0415  # may not be installed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what it could also do
        from pyfolio import round_trips  # noqa: PLC0415

        transactions = pandas.DataFrame(
            {
                "amount": [fill.signed_quantity_e8 // ONE_E8 for fill in fills],
                "price": [fill.price_e8 / ONE_E8 for fill in fills],
                "symbol": "X",
            },
            index=pandas.DatetimeIndex([START + timedelta(days=2 * fill.offset) for fill in fills]),
        )
        trips = round_trips.extract_round_trips(transactions)
    return [float(pnl) for pnl in trips.sort_values("close_dt").pnl]


def check_pyfolio(fills: Sequence[Fill]) -> None:
    """Compare what each fill realised, by FIFO."""
    ours = [
        sum(closing.gross_e24 for closing in together) * UNIT
        for _, together in groupby(closings(fills, CostMethod.FIFO), lambda one: one.trade_id)
    ]
    assert [float(amount) for amount in ours] == pytest.approx(by_pyfolio(fills), abs=1e-6)


@needs_pyfolio
@pytest.mark.parametrize("case", CASES)
def test_worked_case_agrees_with_pyfolio(case: str) -> None:
    """All of them, shorts and flips too, before fees."""
    check_pyfolio(fills_of(*CASES[case].fills))


@needs_pyfolio
@settings(max_examples=25)  # it takes its time
@given(fills=small_histories())
def test_histories_agree_with_pyfolio(fills: list[Fill]) -> None:
    """Through zero and back, fill by fill."""
    assume(closings(fills, CostMethod.FIFO))  # it fails where nothing is closed
    check_pyfolio(fills)
