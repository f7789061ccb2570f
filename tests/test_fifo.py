"""First in, first out beside average cost: worked cases, and what must hold for every history."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.models import CostMethod, Lot, LotChange, NumberedLots, Position
from app.money import ONE_E8
from app.pnl.fifo import E8_TO_E24, ClosedLot, FifoHolding
from app.pnl.fills import Fill, add, empty_holding
from app.pnl.holding import Holding
from tests.worked_cases import (
    CASES,
    E24,
    UNIT,
    Case,
    e8,
    fills_of,
    histories,
    marks,
)

BOTH = pytest.mark.parametrize("method", CostMethod)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def run(fills: Sequence[Fill], method: CostMethod) -> list[Position]:
    """Give the position after each fill."""
    holding, states = empty_holding(method, Position(None, "X")), []
    for fill in fills:
        add(holding, fill)
        states.append(holding.position())
    return states


def fold(fills: Sequence[Fill], into: FifoHolding | None = None) -> FifoHolding:
    """Fold fills into a FIFO holding."""
    holding = into or FifoHolding(Position(None, "X"))
    for fill in fills:
        add(holding, fill)
    return holding


def fold_by_lot(holding: FifoHolding, fill: Fill) -> list[ClosedLot]:
    """Fold a fill in and give what it closed."""
    return holding.fill_by_lot(
        signed_quantity_e8=fill.signed_quantity_e8,
        price_e8=fill.price_e8,
        multiplier_e8=fill.multiplier_e8,
        fee_e8=fill.fee_e8,
        time_ns=fill.time_ns,
        offset=fill.offset,
    )


def cash(fills: Sequence[Fill]) -> int:
    """Give what fills brought, before fees."""
    return -sum(f.signed_quantity_e8 * f.price_e8 * f.multiplier_e8 for f in fills)


class LotBook:
    """First in, first out in fractions, one unit of thought at a time; no code of the engine."""

    def __init__(self) -> None:
        self.realized = Fraction(0)
        self.lots: list[tuple[Fraction, Fraction]] = []

    def fill(self, quantity: Fraction, worth: Fraction) -> None:
        """Close the oldest lots first; open a lot with what is left over."""
        while quantity and self.lots and self.lots[0][0] * quantity < 0:
            held, cost = self.lots.pop(0)
            closed = min(abs(held), abs(quantity)) * (1 if held > 0 else -1)
            self.realized += closed * (worth - cost)
            quantity += closed
            if held != closed:
                self.lots.insert(0, (held - closed, cost))
        if quantity:
            self.lots.append((quantity, worth))


@BOTH
@each_case
def test_worked_case_has_every_running_value(case: Case, method: CostMethod) -> None:
    """Realised, quantity and cost are the worked ones; of FIFO to the last digit."""
    states = run(fills_of(*case.fills), method)
    running = case.average if method is CostMethod.AVERAGE else case.fifo
    bound = UNIT if method is CostMethod.AVERAGE else 0
    assert [state.quantity_e8 for state in states] == [q * ONE_E8 for q in case.quantity]
    for state, realized, cost in zip(states, running.realized, running.cost, strict=True):
        assert abs(state.realized_e24 * UNIT - realized) <= bound
        assert abs(state.open_cost_e24 * UNIT - cost) <= bound


@each_case
def test_worked_case_leaves_these_lots(case: Case) -> None:
    """What is open keeps the price at which it was opened."""
    lots = fold(fills_of(*case.fills)).lots
    assert [(lot.quantity_e8, lot.price_e8) for lot in lots] == [
        (e8(quantity), e8(price)) for quantity, price in (lot.split("@") for lot in case.fifo.lots)
    ]


def test_first_case_closes_lots_with_their_fees() -> None:
    """Net of both fees the lots come to 238.40, -20.40 and -151.00: 67.00."""
    holding, closed = FifoHolding(Position(None, "X")), []
    for fill in fills_of(*CASES["A fees, ends flat"].fills):
        closed += fold_by_lot(holding, fill)
    net = [lot.gross_e24 - lot.entry_fee_e24 - lot.exit_fee_e24 for lot in closed]
    assert [amount * UNIT for amount in net] == [
        Fraction("238.40"),
        Fraction("-20.40"),
        Fraction("-151.00"),
    ]
    assert [lot.quantity_e8 for lot in closed] == [80 * ONE_E8, 20 * ONE_E8, 50 * ONE_E8]


def test_third_case_has_these_lots_on_the_way() -> None:
    """Short lots are closed oldest first, and what goes through zero is a lot of its own."""
    fills = fills_of(*CASES["C short, then flip to long"].fills)
    lots = [[(lot.quantity_e8, lot.price_e8) for lot in fold(fills[:n]).lots] for n in (2, 3, 4)]
    hundred, fifty = 100 * ONE_E8, 50 * ONE_E8
    assert lots == [
        [(-hundred, e8("20")), (-hundred, e8("22"))],
        [(-fifty, e8("20")), (-hundred, e8("22"))],
        [(hundred, e8("21"))],
    ]


def test_sixth_case_realises_these_amounts_by_closing_fill() -> None:
    """750, 750, 150 by average; 1000, 500, 150 by FIFO."""
    fills = fills_of(*CASES["F flat at the end"].fills)
    for method, expected in (
        (CostMethod.AVERAGE, [750, 750, 150]),
        (CostMethod.FIFO, [1000, 500, 150]),
    ):
        realized = [0, *(state.realized_e24 for state in run(fills, method))]
        steps = [after - before for before, after in pairwise(realized)]
        assert [step for step in steps if step] == [amount * E24 for amount in expected]


def test_multiplier_counts_in_realised() -> None:
    """Buy 2 @ 4000 and sell 2 @ 4010 of a contract of 50 units: realised 1000."""
    fills = [replace(f, multiplier_e8=e8("50")) for f in fills_of("B2@4000", "S2@4010")]
    for method in CostMethod:
        assert run(fills, method)[-1].realized_e24 == 1000 * E24


@BOTH
@given(fills=histories(), mark=marks)
def test_total_pnl_is_cash_plus_inventory(fills: list[Fill], mark: int, method: CostMethod) -> None:
    """Realised + unrealised - fees is exactly what came in less what went out, at any mark."""
    for count, state in enumerate(run(fills, method), start=1):
        done = fills[:count]
        inventory = state.quantity_e8 * mark * done[-1].multiplier_e8
        total = state.realized_e24 + replace(state, mark_e8=mark).unrealized_e24
        paid = sum(fill.fee_e8 for fill in done)
        assert total - state.fees_e8 * E8_TO_E24 == cash(done) - paid * E8_TO_E24 + inventory


@BOTH
@given(fills=histories(ends_flat=True))
def test_flat_position_has_realised_its_net_cash_flow(
    fills: list[Fill], method: CostMethod
) -> None:
    """Once flat, no cost and no lot is left over, whatever the method."""
    holding = empty_holding(method, Position(None, "X"))
    for fill in fills:
        add(holding, fill)
    last = holding.position()
    assert (last.quantity_e8, last.open_cost_e24) == (0, 0)
    assert last.realized_e24 == cash(fills)
    assert not isinstance(holding, FifoHolding) or holding.lots == ()


@given(histories(), marks)
def test_both_methods_come_to_the_same_total(fills: list[Fill], mark: int) -> None:
    """A method moves PnL between realised and unrealised, and never changes their sum."""
    average, fifo = (
        replace(run(fills, method)[-1], mark_e8=mark)
        for method in (CostMethod.AVERAGE, CostMethod.FIFO)
    )
    assert average.realized_e24 + average.unrealized_e24 == fifo.realized_e24 + fifo.unrealized_e24
    assert average.quantity_e8 == fifo.quantity_e8
    assert average.fees_e8 == fifo.fees_e8


@given(histories())
def test_every_digit_is_that_of_the_model_in_fractions(fills: list[Fill]) -> None:
    """Realised, cost and lots are exact: nothing is ever rounded."""
    book, holding = LotBook(), FifoHolding(Position(None, "X"))
    for fill in fills:
        worth = Fraction(fill.price_e8 * fill.multiplier_e8, ONE_E8**2)
        book.fill(Fraction(fill.signed_quantity_e8, ONE_E8), worth)
        add(holding, fill)
        position = holding.position()
        assert position.realized_e24 * UNIT == book.realized
        assert position.open_cost_e24 * UNIT == sum(q * cost for q, cost in book.lots)
        multiplier = Fraction(position.multiplier_e8, ONE_E8)
        assert [
            (Fraction(lot.quantity_e8, ONE_E8), Fraction(lot.price_e8, ONE_E8) * multiplier)
            for lot in holding.lots
        ] == book.lots


@given(histories())
def test_fees_of_lots_add_up_to_the_fees_that_were_charged(fills: list[Fill]) -> None:
    """Closed and open shares are the whole, to the last digit."""
    holding, shares = FifoHolding(Position(None, "X")), 0
    for fill in fills:
        closed = fold_by_lot(holding, fill)
        shares += sum(lot.entry_fee_e24 + lot.exit_fee_e24 for lot in closed)
        charged = holding.position().fees_e8 * E8_TO_E24
        assert shares + sum(lot.fee_e24 for lot in holding.lots) == charged
        assert sum(lot.gross_e24 for lot in closed) == (
            holding.realized_e24 - fold(fills[: fill.offset]).realized_e24
        )


@given(histories(), st.data())
def test_stored_lots_go_on_as_if_nothing_had_happened(
    fills: list[Fill], data: st.DataObject
) -> None:
    """Position and lots are the whole state, after a way through text."""
    cut = data.draw(st.integers(0, len(fills)))
    before = fold(fills[:cut])
    text = msgspec.json.encode([list(map(str, lot)) for lot in before.lots])
    stored = [Lot(*map(int, lot)) for lot in msgspec.json.decode(text)]
    restored = FifoHolding(before.position(), NumberedLots(7, stored))
    assert restored.lots == before.lots
    assert restored.position() == before.position()
    whole = fold(fills)
    assert fold(fills[cut:], restored).position() == whole.position()
    assert restored.lots == whole.lots


def test_restored_lots_of_fractions_that_add_up_to_whole_units_are_exact() -> None:
    """The position alone does not say that its lots are smaller than a unit."""
    fills = fills_of("B0.5@10", "B1.5@12", "S0.75@13")
    before = fold(fills[:2])
    restored = FifoHolding(before.position(), NumberedLots(0, before.lots))
    assert restored.position() == before.position()
    assert fold(fills[2:], restored).position() == fold(fills).position()


@pytest.mark.parametrize(
    "lots",
    [
        [],
        [Lot(2 * ONE_E8, 10 * ONE_E8, 0, 1, 0)],
        [Lot(ONE_E8, 11 * ONE_E8, 0, 1, 0)],
        [Lot(2 * ONE_E8, 10 * ONE_E8, 0, 1, 0), Lot(-ONE_E8, 10 * ONE_E8, 0, 1, 0)],
        [Lot(ONE_E8, 10 * ONE_E8, 0, 1, 0), Lot(0, 10 * ONE_E8, 0, 1, 0)],
    ],
    ids=["none", "too many", "of another cost", "of both sides", "of nothing"],
)
def test_lots_that_are_not_those_of_the_position_are_refused(lots: list[Lot]) -> None:
    """A state that was kept by another method, or is torn, is never gone on with."""
    position = fold(fills_of("B1@10")).position()
    with pytest.raises(ValueError, match="do not add up"):
        FifoHolding(position, NumberedLots(0, lots))


class LotStore:
    """Lots by number, changed by what a holding says has become of them."""

    def __init__(self) -> None:
        self.lots: dict[int, Lot] = {}

    def store(self, change: LotChange) -> None:
        """Delete what is gone and add the rest; neither touches what is kept."""
        assert all(number >= change.first_stored for number in self.lots)
        assert set(change.kept) <= self.lots.keys()
        self.lots = {number: self.lots[number] for number in change.kept}
        for number, lot in change.lots:
            assert number not in self.lots
            self.lots[number] = lot

    @property
    def stored(self) -> NumberedLots:
        """What a holding goes on with."""
        numbers = sorted(self.lots)
        assert numbers == [*range(numbers[0], numbers[0] + len(numbers))] if numbers else True
        return NumberedLots(numbers[0] if numbers else 0, [self.lots[n] for n in numbers])


@given(histories(), st.lists(st.sampled_from(["go on", "store", "store and forget"]), min_size=12))
def test_changes_of_lots_are_all_that_a_store_needs(fills: list[Fill], after: list[str]) -> None:
    """Stored now and then, with lives that end in between; and no more is written than changed."""
    store, holding, since = LotStore(), FifoHolding(Position(None, "X")), 0
    for fill, then in zip(fills, after, strict=False):
        add(holding, fill)
        since += 1
        if then == "go on":
            continue
        change = holding.lot_change()
        assert len(change.lots) <= since + 1
        store.store(change)
        assert store.stored.lots == list(holding.lots)
        since = 0
        if then == "store and forget":
            holding = FifoHolding(holding.position(), store.stored)
    assert holding.lots == fold(fills[: len(after)]).lots


@pytest.mark.parametrize(
    ("text", "kept", "written"),
    [
        ("B1@13", [4, 5, 6], [7]),
        ("S1@13", [5, 6], [4]),
        ("S3@13", [6], [5]),
        ("S2@13", [5, 6], []),
        ("S6@13", [], []),
        ("S7@13", [], [7]),
    ],
    ids=["opens", "a part", "more", "one lot", "all", "through zero"],
)
def test_change_of_lots_is_small(text: str, kept: list[int], written: list[int]) -> None:
    """One fill changes what it closes, at most one of what is left, and adds at most one."""
    before = fold(fills_of("B2@10", "B2@11", "B2@12"))
    holding = FifoHolding(before.position(), NumberedLots(4, before.lots))
    assert holding.lot_change() == LotChange(4, range(4, 7), [])
    add(holding, fills_of(text)[0])
    change = holding.lot_change()
    assert (change.first_stored, [*change.kept]) == (4, kept)
    assert [number for number, _ in change.lots] == written


@given(histories(one_multiplier=True))
def test_fill_without_a_fee_is_the_same_by_either_way(fills: list[Fill]) -> None:
    """The short way of whole units and the exact one come to the same state."""
    whole = [
        replace(fill, signed_quantity_e8=ONE_E8 * (fill.signed_quantity_e8 % 19 - 9), fee_e8=0)
        for fill in fills
    ]
    whole = [fill for fill in whole if fill.signed_quantity_e8]
    assume(whole)
    short = FifoHolding(Position(None, "X", multiplier_e8=whole[0].multiplier_e8))
    for fill in whole:
        value_e24 = fill.price_e8 * fill.multiplier_e8 * short.unit_e8
        quantity = fill.signed_quantity_e8 // short.unit_e8
        short.fill(quantity, value_e24, fill.time_ns, fill.offset)
    exact = fold(whole)
    assert short.position() == exact.position()
    assert short.lots == exact.lots


@given(histories(), st.data())
def test_trade_split_in_two_at_one_price_gives_the_same_position(
    fills: list[Fill], data: st.DataObject
) -> None:
    """Two halves are one trade, exactly."""
    index = data.draw(st.integers(0, len(fills) - 1))
    whole = fills[index]
    assume(abs(whole.signed_quantity_e8) > 1)
    sign = 1 if whole.signed_quantity_e8 > 0 else -1
    first = sign * data.draw(st.integers(1, abs(whole.signed_quantity_e8) - 1))
    halves = [
        replace(whole, signed_quantity_e8=first),
        replace(whole, signed_quantity_e8=whole.signed_quantity_e8 - first, fee_e8=0),
    ]
    one = fold(fills).position()
    two = fold([*fills[:index], *halves, *fills[index + 1 :]]).position()
    assert replace(two, trade_count=one.trade_count) == one


@given(histories())
def test_holding_of_either_method_tells_the_same_of_everything_but_cost(
    fills: list[Fill],
) -> None:
    """Mark, time, count, offset and fees do not depend on the method."""
    for one, other in zip(run(fills, CostMethod.AVERAGE), run(fills, CostMethod.FIFO), strict=True):
        assert replace(other, realized_e24=one.realized_e24, open_cost_e24=one.open_cost_e24) == one


def test_fifo_holding_is_used_wherever_a_holding_is() -> None:
    """It has every attribute that is set or read from outside."""
    holding: Holding = FifoHolding(Position("B", "X", "USD"))
    for name in Holding.__slots__:
        assert hasattr(holding, name), name
    assert not hasattr(holding, "__dict__")
