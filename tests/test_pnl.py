"""Average cost to the last digit: worked cases, and what must hold for every history of fills."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.models import Fee, Position, TradeEvent
from app.money import LIMIT_E8, ONE_E8, parse_amount
from app.pnl.holding import Holding
from app.services import TradeProcessor
from tests.fuzz.money import AverageCost

UNIT = Fraction(1, 10**24)
TIME = "2026-01-02T03:04:05Z"


@dataclass(frozen=True)
class Fill:
    """One fill in scaled ints: bought > 0, sold < 0."""

    quantity: int
    price: int
    fee: int = 0
    multiplier: int = ONE_E8


@dataclass(frozen=True)
class Case:
    """A worked case: its fills, and after each of them gross realised, quantity and open cost.

    Attributes:
        fills: `B` or `S`, quantity `@` price, and the fee, if any.
        realized: Gross realised PnL after each fill.
        quantity: Signed quantity after each fill.
        cost: Signed open cost after each fill.
        net: Realised less fees at the end.
        mark: Price to value the rest at, and `total` what comes of it all.
    """

    fills: Sequence[str]
    realized: Sequence[Fraction | int]
    quantity: Sequence[int]
    cost: Sequence[Fraction | int]
    net: str
    mark: str
    total: str


CASES = {
    "fees, ends flat": Case(
        fills=["B100@10 1.00", "B50@12 0.50", "S80@13 0.80", "S70@9 0.70"],
        realized=[0, 0, Fraction(560, 3), 70],
        quantity=[100, 150, 70, 0],
        cost=[1000, 1600, Fraction(2240, 3), 0],
        net="67.00",
        mark="9",
        total="67.00",
    ),
    "partial close": Case(
        fills=["B100@10", "B100@11", "S150@12"],
        realized=[0, 0, 225],
        quantity=[100, 200, 50],
        cost=[1000, 2100, 525],
        net="225",
        mark="12.50",
        total="325",
    ),
    "short, then flip to long": Case(
        fills=["S100@20", "S100@22", "B50@19", "B250@21"],
        realized=[0, 0, 100, 100],
        quantity=[-100, -200, -150, 100],
        cost=[-2000, -4200, -3150, 2100],
        net="100",
        mark="23",
        total="300",
    ),
    "two flips with fees": Case(
        fills=["B100@10 1.00", "S150@12 1.50", "B80@11 0.80"],
        realized=[0, 200, 250],
        quantity=[100, -50, 30],
        cost=[1000, -600, 330],
        net="246.70",
        mark="11.50",
        total="261.70",
    ),
    "flat at the end": Case(
        fills=["B100@10", "B100@20", "S50@30", "B50@40", "S250@25", "B50@22"],
        realized=[0, 0, 750, 750, 1500, 1650],
        quantity=[100, 200, 150, 200, -50, 0],
        cost=[1000, 3000, 2250, 4250, -1250, 0],
        net="1650",
        mark="22",
        total="1650",
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def scaled(text: str) -> int:
    """Give an amount at 10^-8."""
    return parse_amount(text)[0]


def parts(fill: str) -> tuple[str, str, str, str]:
    """Split `B100@10 1.00` into side, quantity, price and fee."""
    trade, _, fee = fill.partition(" ")
    quantity, _, price = trade[1:].partition("@")
    return {"B": "BUY", "S": "SELL"}[trade[0]], quantity, price, fee or "0"


def apply_fill(position: Position, **fill: int) -> Position:
    """Give the position that a fill makes of another one."""
    holding = Holding(position)
    holding.fill_exactly(**fill)
    return holding.position()


def after(position: Position, fill: Fill) -> Position:
    """Fold one fill in."""
    return apply_fill(
        position,
        signed_quantity_e8=fill.quantity,
        price_e8=fill.price,
        multiplier_e8=fill.multiplier,
        fee_e8=fill.fee,
        time_ns=position.mark_ns + 1,
        offset=position.source_offset + 1,
    )


def run(fills: Sequence[Fill]) -> list[Position]:
    """Give the position after each fill."""
    states = [Position(None, "X")]
    for fill in fills:
        states.append(after(states[-1], fill))
    return states[1:]


def is_partial_close(held: int, quantity: int) -> bool:
    """Tell whether a fill closes a part of what is held, and not all."""
    return held * quantity < 0 and abs(quantity) < abs(held)


def partial_closes(fills: Sequence[Fill]) -> int:
    """Count the fills that release a rounded share of the cost."""
    held = count = 0
    for fill in fills:
        count += is_partial_close(held, fill.quantity)
        held += fill.quantity
    return count


# Small numbers meet each other and flip often; large ones reach every bound.
quantities = st.one_of(
    st.integers(-9, 9).map(lambda n: n * ONE_E8), st.integers(-(LIMIT_E8 - 1), LIMIT_E8 - 1)
).filter(bool)
prices = st.one_of(
    st.integers(1, 50).map(lambda n: n * ONE_E8), st.integers(1 - LIMIT_E8, LIMIT_E8 - 1)
)
fees = st.integers(-(10**12), 10**12)
multipliers = st.one_of(st.just(ONE_E8), st.integers(1, LIMIT_E8 - 1))
marks = st.integers(1 - LIMIT_E8, LIMIT_E8 - 1)


@st.composite
def histories(draw: st.DrawFn, *, ends_flat: bool = False) -> list[Fill]:
    """Draw fills: longs, shorts, flips, fees; another multiplier wherever the position is flat."""
    fills: list[Fill] = []
    held, multiplier = 0, draw(multipliers)
    for _ in range(draw(st.integers(1, 12))):
        if not held:
            multiplier = draw(multipliers)
        quantity = draw(quantities)
        if held and draw(st.integers(0, 4)) == 0:
            quantity = -held
        fills.append(Fill(quantity, draw(prices), draw(fees), multiplier))
        held += quantity
    if ends_flat and held:
        fills.append(Fill(-held, draw(prices), draw(fees), multiplier))
    return fills


@each_case
def test_worked_case_by_fills_has_every_running_value(case: Case) -> None:
    """Realised, quantity and cost are the worked ones after each fill, within the stated bound."""
    fills = []
    for fill in case.fills:
        side, quantity, price, fee = parts(fill)
        sign = 1 if side == "BUY" else -1
        fills.append(Fill(sign * scaled(quantity), scaled(price), scaled(fee)))
    states = run(fills)
    assert [state.quantity_e8 for state in states] == [q * ONE_E8 for q in case.quantity]
    for count, state in enumerate(states, start=1):
        bound = UNIT * partial_closes(fills[:count])
        assert abs(state.realized_e24 * UNIT - case.realized[count - 1]) <= bound
        assert abs(state.open_cost_e24 * UNIT - case.cost[count - 1]) <= bound
    last = states[-1]
    net = last.realized_e24 - last.fees_e8 * 10**16
    assert net * UNIT == Fraction(case.net)
    open_value = last.quantity_e8 * scaled(case.mark) * ONE_E8 - last.open_cost_e24
    assert (net + open_value) * UNIT == Fraction(case.total)


@each_case
def test_worked_case_by_events_has_every_running_value(case: Case) -> None:
    """The processor shows the same values as exact decimals."""
    processor = TradeProcessor()
    for count, fill in enumerate(case.fills, start=1):
        side, quantity, price, fee = parts(fill)
        done = processor.process(
            TradeEvent(
                trade_id=str(count),
                symbol="X",
                side=side,
                price=price,
                quantity=quantity,
                timestamp=TIME,
                fees=[Fee(amount=fee)],
            )
        )
        assert done["position_quantity"] == case.quantity[count - 1]
        assert abs(Fraction(done["realized_pnl"]) - case.realized[count - 1]) <= UNIT
        held = case.quantity[count - 1]
        average = Fraction(case.cost[count - 1]) / held if held else Fraction(0)
        assert done["average_price"] == Decimal(round(average * 10**8)).scaleb(-8)
        assert done["mark"] == Decimal(price)
        open_value = held * (Fraction(price) - average)
        assert abs(Fraction(done["unrealized_pnl"]) - open_value) <= UNIT
        if count == len(case.fills):
            assert done["realized_pnl"] - done["fees"] == Decimal(case.net)


def test_first_case_by_fees_at_once_runs_as_worked() -> None:
    """Net realised goes -1.00, -1.50, 184.3667, 67.00: fees count when they are charged."""
    fills = [Fill(100, 10, 100), Fill(50, 12, 50), Fill(-80, 13, 80), Fill(-70, 9, 70)]
    states = run([Fill(f.quantity * ONE_E8, f.price * ONE_E8, f.fee * 10**6) for f in fills])
    net = [s.realized_e24 * UNIT - Fraction(s.fees_e8, ONE_E8) for s in states]
    assert net[:2] == [-1, Fraction("-1.5")]
    assert abs(net[2] - (Fraction(560, 3) - Fraction("2.3"))) <= UNIT
    assert net[3] == 67


def test_multiplier_counts_in_realised_and_unrealised() -> None:
    """Buy 2 @ 4000 and sell 2 @ 4010 of a contract of 50 units: realised 1000."""
    bought, sold = run(
        [
            Fill(2 * ONE_E8, 4000 * ONE_E8, 0, 50 * ONE_E8),
            Fill(-2 * ONE_E8, 4010 * ONE_E8, 0, 50 * ONE_E8),
        ]
    )
    assert bought.open_cost_e24 == 400_000 * 10**24
    assert bought.average_price_e8 == 4000 * ONE_E8
    assert sold.realized_e24 == 1000 * 10**24


@given(histories(), marks)
def test_total_pnl_is_cash_plus_inventory(fills: list[Fill], mark: int) -> None:
    """Realised + unrealised - fees is exactly what came in less what went out, at any mark."""
    for count, state in enumerate(run(fills), start=1):
        done = fills[:count]
        cash = -sum(f.quantity * f.price * f.multiplier for f in done)
        paid = sum(f.fee for f in done)
        inventory = state.quantity_e8 * mark * done[-1].multiplier
        valued = replace(state, mark_e8=mark)
        assert valued.realized_e24 + valued.unrealized_e24 == cash + inventory
        assert state.fees_e8 == paid
        assert state.quantity_e8 == sum(f.quantity for f in done)


@given(histories(ends_flat=True))
def test_flat_position_has_realised_its_cash_flow(fills: list[Fill]) -> None:
    """Once flat, realised is the cash flow and no cost is left over."""
    last = run(fills)[-1]
    assert last.quantity_e8 == 0
    assert last.open_cost_e24 == 0
    assert last.unrealized_e24 == 0
    assert last.average_price_e8 == 0
    assert last.realized_e24 == -sum(f.quantity * f.price * f.multiplier for f in fills)


@given(histories(), st.data())
def test_trade_split_in_two_at_one_price_gives_the_same_state(
    fills: list[Fill], data: st.DataObject
) -> None:
    """Two halves are one trade, but for one unit of 10^-24 for each partial close."""
    index = data.draw(st.integers(0, len(fills) - 1))
    whole = fills[index]
    assume(abs(whole.quantity) > 1)
    sign = 1 if whole.quantity > 0 else -1
    first = sign * data.draw(st.integers(1, abs(whole.quantity) - 1))
    halves = [
        Fill(first, whole.price, whole.fee, whole.multiplier),
        Fill(whole.quantity - first, whole.price, 0, whole.multiplier),
    ]
    split = fills[:index] + halves + fills[index + 1 :]
    one, two = run(fills)[-1], run(split)[-1]
    bound = partial_closes(split)
    assert (one.quantity_e8, one.fees_e8, one.mark_e8) == (
        two.quantity_e8,
        two.fees_e8,
        two.mark_e8,
    )
    assert abs(one.realized_e24 - two.realized_e24) <= bound
    assert abs(one.open_cost_e24 - two.open_cost_e24) <= bound


class FifoBook:
    """First in, first out, in fractions: a second opinion that shares no code with the engine."""

    def __init__(self) -> None:
        self.realized = Fraction(0)
        self.lots: list[tuple[Fraction, Fraction]] = []

    def fill(self, quantity: Fraction, price: Fraction) -> None:
        """Close the oldest lots first; open a lot with what is left over."""
        while quantity and self.lots and self.lots[0][0] * quantity < 0:
            held, cost = self.lots.pop(0)
            closed = min(abs(held), abs(quantity)) * (1 if held > 0 else -1)
            self.realized += closed * (price - cost)
            quantity += closed
            if held != closed:
                self.lots.insert(0, (held - closed, cost))
        if quantity:
            self.lots.append((quantity, price))

    def total(self, mark: Fraction) -> Fraction:
        """Realised and unrealised at a mark."""
        return self.realized + sum(q * (mark - cost) for q, cost in self.lots)


@given(histories(), marks)
def test_first_in_first_out_comes_to_the_same_total(fills: list[Fill], mark: int) -> None:
    """The method moves PnL between realised and unrealised, and never changes their sum."""
    book = FifoBook()
    for fill in fills:
        worth = Fraction(fill.price * fill.multiplier, ONE_E8**2)
        book.fill(Fraction(fill.quantity, ONE_E8), worth)
    last = run(fills)[-1]
    total = (last.realized_e24 + replace(last, mark_e8=mark).unrealized_e24) * UNIT
    assert total == book.total(Fraction(mark * last.multiplier_e8, ONE_E8**2))


@given(histories())
def test_realised_is_that_of_exact_average_cost_within_its_bound(fills: list[Fill]) -> None:
    """Against fractions, realised is off by at most one unit for each partial close."""
    held, cost, realized = 0, Fraction(0), Fraction(0)
    for count, (fill, state) in enumerate(zip(fills, run(fills), strict=True), start=1):
        worth = fill.price * fill.multiplier
        closed = 0
        if held * fill.quantity < 0:
            closed = min(abs(held), abs(fill.quantity)) * (1 if held > 0 else -1)
            realized += closed * worth - cost * closed / held
            cost -= cost * closed / held
        cost += (fill.quantity + closed) * worth
        held += fill.quantity
        bound = partial_closes(fills[:count])
        assert abs(state.realized_e24 - realized) <= bound
        assert abs(state.open_cost_e24 - cost) <= bound


@given(histories())
def test_every_digit_is_that_of_the_model_that_rounds_as_we_say(fills: list[Fill]) -> None:
    """With each released share rounded half to even nothing differs; `fuzz --money` draws more."""
    model = AverageCost()
    for fill, state in zip(fills, run(fills), strict=True):
        amounts = (fill.quantity, fill.price, fill.multiplier, fill.fee)
        model.fill(*(Fraction(amount, ONE_E8) for amount in amounts))
        assert not model.differs_from(state)


@given(histories())
def test_opening_realises_nothing_and_closing_keeps_the_average(fills: list[Fill]) -> None:
    """Realised moves only when something is closed; a partial close leaves the average alone."""
    before = Position(None, "X")
    for fill in fills:
        now = after(before, fill)
        if before.quantity_e8 * fill.quantity >= 0:
            assert now.realized_e24 == before.realized_e24
        if is_partial_close(before.quantity_e8, fill.quantity):
            drift = now.open_cost_e24 * before.quantity_e8 - before.open_cost_e24 * now.quantity_e8
            assert 2 * abs(drift) <= abs(before.quantity_e8)  # half a unit, by the quantity held
        before = now


def test_fill_carries_everything_else_along() -> None:
    """Mark, its time, offset and count are the fill's; key, origins and generation stay."""
    before = Position(
        "B", "X", "EUR", trade_count=7, source_offset=3, origins={1: 2}, generation=4, fees_e8=5
    )
    now = apply_fill(
        before,
        signed_quantity_e8=-2,
        price_e8=3,
        multiplier_e8=4,
        fee_e8=-6,
        time_ns=11,
        offset=9,
    )
    assert now == Position(
        "B",
        "X",
        "EUR",
        quantity_e8=-2,
        open_cost_e24=-24,
        multiplier_e8=4,
        fees_e8=-1,
        mark_e8=3,
        mark_ns=11,
        trade_count=8,
        source_offset=9,
        origins={1: 2},
        generation=4,
    )
