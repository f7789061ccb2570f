"""Fills in short notation, the worked cases of the documentation, and histories at random."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from hypothesis import strategies as st

from app.money import LIMIT_E8, ONE_E8, parse_amount
from app.pnl.fills import Fill

E24 = 10**24
UNIT = Fraction(1, E24)
DAY_NS = 86_400 * 10**9
START_NS = 1_767_225_600 * 10**9
"""2026-01-01."""


def e8(text: str) -> int:
    """Give an amount at 10^-8."""
    return parse_amount(text)[0]


def fill(text: str, number: int, *, multiplier: str = "1", rate: str = "1") -> Fill:
    """Read `B100@10 1.00`: side, quantity, price and the fee, if any; one every second day."""
    trade, _, fee = text.partition(" ")
    quantity, _, price = trade[1:].partition("@")
    return Fill(
        trade_id=f"T{number}",
        time_ns=START_NS + 2 * number * DAY_NS,
        partition=0,
        offset=number,
        signed_quantity_e8={"B": 1, "S": -1}[trade[0]] * e8(quantity),
        price_e8=e8(price),
        multiplier_e8=e8(multiplier),
        fee_e8=e8(fee or "0"),
        rate_e8=e8(rate),
    )


def fills_of(*texts: str) -> list[Fill]:
    """Read several fills, each two days after the one before."""
    return [fill(text, number) for number, text in enumerate(texts)]


@dataclass(frozen=True)
class Running:
    """What a method says of a case.

    Attributes:
        realized: Gross realised after each fill.
        cost: Signed open cost after each fill.
        lots: What is open at the end, as `quantity@price`.
    """

    realized: Sequence[Fraction | int]
    cost: Sequence[Fraction | int]
    lots: Sequence[str] = ()


@dataclass(frozen=True)
class Case:
    """A worked case.

    Attributes:
        fills: In order of time.
        quantity: Signed quantity after each fill.
        average: By average cost.
        fifo: First in, first out.
        net: Net total at the mark.
        mark: Price to value the rest by.
        unrealized: At the mark, by average cost and by FIFO.
    """

    fills: Sequence[str]
    quantity: Sequence[int]
    average: Running
    fifo: Running
    net: str
    mark: str
    unrealized: tuple[str, str] = field(default=("0", "0"))


CASES = {
    "A fees, ends flat": Case(
        fills=["B100@10 1.00", "B50@12 0.50", "S80@13 0.80", "S70@9 0.70"],
        quantity=[100, 150, 70, 0],
        average=Running([0, 0, Fraction(560, 3), 70], [1000, 1600, Fraction(2240, 3), 0]),
        fifo=Running([0, 0, 240, 70], [1000, 1600, 800, 0]),
        net="67.00",
        mark="9",
    ),
    "B partial close": Case(
        fills=["B100@10", "B100@11", "S150@12"],
        quantity=[100, 200, 50],
        average=Running([0, 0, 225], [1000, 2100, 525]),
        fifo=Running([0, 0, 250], [1000, 2100, 550], ["50@11"]),
        net="325",
        mark="12.50",
        unrealized=("100", "75"),
    ),
    "C short, then flip to long": Case(
        fills=["S100@20", "S100@22", "B50@19", "B250@21"],
        quantity=[-100, -200, -150, 100],
        average=Running([0, 0, 100, 100], [-2000, -4200, -3150, 2100]),
        fifo=Running([0, 0, 50, 100], [-2000, -4200, -3200, 2100], ["100@21"]),
        net="300",
        mark="23",
        unrealized=("200", "200"),
    ),
    "D two flips with fees": Case(
        fills=["B100@10 1.00", "S150@12 1.50", "B80@11 0.80"],
        quantity=[100, -50, 30],
        average=Running([0, 200, 250], [1000, -600, 330]),
        fifo=Running([0, 200, 250], [1000, -600, 330], ["30@11"]),
        net="261.70",
        mark="11.50",
        unrealized=("15", "15"),
    ),
    "F flat at the end": Case(
        fills=["B100@10", "B100@20", "S50@30", "B50@40", "S250@25", "B50@22"],
        quantity=[100, 200, 150, 200, -50, 0],
        average=Running([0, 0, 750, 750, 1500, 1650], [1000, 3000, 2250, 4250, -1250, 0]),
        fifo=Running([0, 0, 1000, 1000, 1500, 1650], [1000, 3000, 2500, 4500, -1250, 0]),
        net="1650",
        mark="22",
    ),
}
"""Case E changes the past: it is a test of its own."""

# Small numbers meet each other and flip often; large ones reach every bound.
quantities = st.one_of(
    st.integers(-9, 9).map(lambda n: n * ONE_E8), st.integers(1 - LIMIT_E8, LIMIT_E8 - 1)
).filter(bool)
prices = st.one_of(
    st.integers(1, 50).map(lambda n: n * ONE_E8), st.integers(1 - LIMIT_E8, LIMIT_E8 - 1)
)
fees = st.one_of(st.just(0), st.integers(-(10**12), 10**12))
multipliers = st.one_of(st.just(ONE_E8), st.integers(1, LIMIT_E8 - 1))
rates = st.one_of(st.just(ONE_E8), st.integers(1, LIMIT_E8 - 1))
marks = st.integers(1 - LIMIT_E8, LIMIT_E8 - 1)


@st.composite
def histories(
    draw: st.DrawFn, *, ends_flat: bool = False, one_multiplier: bool = False, most: int = 12
) -> list[Fill]:
    """Draw fills in order of time: longs, shorts, flips, fees, rates.

    The multiplier may be another one wherever the position is flat.
    """
    done: list[Fill] = []
    held, multiplier = 0, draw(multipliers)

    def book(quantity: int) -> None:
        number = len(done)
        done.append(
            Fill(
                trade_id=f"T{number}",
                time_ns=START_NS + number * DAY_NS,
                partition=0,
                offset=number,
                signed_quantity_e8=quantity,
                price_e8=draw(prices),
                multiplier_e8=multiplier,
                fee_e8=draw(fees),
                rate_e8=draw(rates),
            )
        )

    for _ in range(draw(st.integers(1, most))):
        if not held and not one_multiplier:
            multiplier = draw(multipliers)
        quantity = draw(quantities)
        if held and draw(st.integers(0, 4)) == 0:
            quantity = -held
        book(quantity)
        held += quantity
    if ends_flat and held:
        book(-held)
    return done
