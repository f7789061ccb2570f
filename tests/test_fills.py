"""Fills and their replay: a change of the past gives the state of the final fills alone."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.errors import InvalidTradeError
from app.models import Action, CostMethod, Position
from app.money import ONE_E8
from app.pnl.fifo import FifoHolding
from app.pnl.fills import Correction, Fill, add, empty_holding, in_order, removed, replaced, replay
from app.pnl.holding import Holding
from app.verdicts import KnownTrade, LifeEvent, Parked, Verdict, applied, judge, release
from tests.worked_cases import E24, e8, fees, fill, fills_of, histories, prices, quantities

X = Position(None, "X")
BOTH = pytest.mark.parametrize("method", CostMethod)


def state(fills: Sequence[Fill], method: CostMethod) -> Position:
    """Give the position of some fills."""
    return replay(fills, method, of=X).position()


@BOTH
def test_fifth_case_amend_then_cancel(method: CostMethod) -> None:
    """Realised goes from 60 to 30 by the AMEND, and to 0 by the CANCEL, which leaves a short."""
    first, second = fills_of("B100@10", "S60@11")
    booked = state([first, second], method)
    assert (booked.realized_e24, booked.quantity_e8) == (60 * E24, e8("40"))
    assert booked.average_price_e8 == e8("10")

    amended_fills = replaced([first, second], replace(first, price_e8=e8("10.50")))
    amended = state(amended_fills, method)
    assert (amended.realized_e24, amended.quantity_e8) == (30 * E24, e8("40"))
    assert amended.average_price_e8 == e8("10.50")
    correction = Correction(booked, amended)
    assert (correction.realized_e24, correction.quantity_e8) == (-30 * E24, 0)
    assert correction.open_cost_e24 == 20 * E24

    cancelled = state(removed(amended_fills, first.trade_id), method)
    assert (cancelled.realized_e24, cancelled.quantity_e8) == (0, e8("-60"))
    assert cancelled.average_price_e8 == e8("11")
    assert Correction(amended, cancelled).quantity_e8 == e8("-100")


def test_correction_shows_the_change_of_fees() -> None:
    """A fee that was wrong is a correction, too."""
    before, after = (state(fills_of(text), CostMethod.AVERAGE) for text in ("B1@1 2", "B1@1 0.5"))
    assert Correction(before, after).fees_e8 == e8("-1.5")


def test_fills_are_in_order_of_execution_and_then_of_the_log() -> None:
    """One instant has the order of partition and offset, whatever the order of arrival."""
    base = fill("B1@1", 0)
    fills = [
        replace(base, trade_id="d", time_ns=2, partition=0, offset=0),
        replace(base, trade_id="c", time_ns=1, partition=1, offset=3),
        replace(base, trade_id="b", time_ns=1, partition=0, offset=9),
        replace(base, trade_id="a", time_ns=1, partition=0, offset=8),
    ]
    assert [one.trade_id for one in in_order(fills)] == ["a", "b", "c", "d"]


def test_changed_fill_keeps_its_place_in_time_and_in_the_log() -> None:
    """Execution time never changes, and a change does not overtake other fills of its instant."""
    first, second = fills_of("B100@10", "S60@11")
    sent = replace(first, price_e8=1, time_ns=second.time_ns + 1, partition=5, offset=99)
    (changed,) = (one for one in replaced([first, second], sent) if one.trade_id == "T0")
    assert changed == replace(first, price_e8=1)


@pytest.mark.parametrize("fills", [[], fills_of("B1@1")])
def test_change_of_a_trade_without_a_fill_is_an_error(fills: list[Fill]) -> None:
    """The life cycle comes first: it knows whether there is one."""
    with pytest.raises(KeyError):
        removed(fills, "T9")
    with pytest.raises(KeyError):
        replaced(fills, fill("B1@1", 9))


@pytest.mark.parametrize(
    ("method", "kind"), [(CostMethod.AVERAGE, Holding), (CostMethod.FIFO, FifoHolding)]
)
def test_replay_takes_everything_but_amounts_from_its_position(
    method: CostMethod, kind: type[Holding]
) -> None:
    """Key, currency, origins, generation and source offset stay; amounts are those of the fills."""
    of = Position(
        "B", "X", "EUR", quantity_e8=5, open_cost_e24=6, realized_e24=7, fees_e8=8, mark_e8=9,
        mark_ns=10, trade_count=11, source_offset=12, origins={1: 2}, generation=3,
    )  # fmt: skip
    holding = replay(fills_of("B1@2 0.5"), method, of=of)
    assert type(holding) is kind
    assert holding.position() == Position(
        "B", "X", "EUR", quantity_e8=ONE_E8, open_cost_e24=2 * E24, fees_e8=e8("0.5"),
        mark_e8=e8("2"), mark_ns=fill("B1@2", 0).time_ns, trade_count=1, source_offset=12,
        origins={1: 2}, generation=3,
    )  # fmt: skip
    assert replay([], method, of=of).position() == Position(
        "B", "X", "EUR", source_offset=12, origins={1: 2}, generation=3
    )


@BOTH
def test_two_multipliers_do_not_meet_in_one_position(method: CostMethod) -> None:
    """A cancel that takes out what flattened the position brings them together: refused."""
    fills = [
        fill("B1@10", 0),
        fill("S1@11", 1),
        fill("B1@10", 2, multiplier="50"),
    ]
    assert state(fills, method).multiplier_e8 == e8("50")
    with pytest.raises(InvalidTradeError) as refused:
        replay(removed(fills, "T1"), method, of=X)
    assert refused.value.reason == "multiplier-differs-from-position"
    holding = empty_holding(method, X)
    add(holding, fills[0])
    before = holding.position()
    with pytest.raises(InvalidTradeError):
        add(holding, fills[2])
    assert holding.position() == before


@BOTH
@given(fills=histories(one_multiplier=True), data=st.data())
def test_replay_does_not_depend_on_the_order_of_arrival(
    fills: list[Fill], data: st.DataObject, method: CostMethod
) -> None:
    """Time and place in the log order them; fills that come in order need no replay."""
    shuffled = data.draw(st.permutations(fills))
    holding = empty_holding(method, X)
    for one in fills:
        add(holding, one)
    assert state(shuffled, method) == replace(holding.position(), source_offset=-1)


Step = tuple[LifeEvent, Fill | None]


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[list[Step]], list[Fill]]:
    """Draw the lives of some trades, and the fills that are left of them in the end."""
    all_lives: list[list[Step]] = []
    final: list[Fill] = []
    for number in range(draw(st.integers(1, 5))):
        ends_cancelled = draw(st.booleans())
        life: list[Step] = []
        booked: Fill | None = None
        for version in range(1, draw(st.integers(1, 4)) + 1):
            booked = Fill(
                trade_id=f"T{number}",
                time_ns=draw(st.integers(1, 3)) if booked is None else booked.time_ns,
                partition=0,
                offset=number,
                signed_quantity_e8=draw(quantities),
                price_e8=draw(prices),
                fee_e8=draw(fees),
            )
            action = Action.NEW if version == 1 else Action.AMEND
            life.append((event(action, version), booked))
        if ends_cancelled:
            life.append((event(Action.CANCEL, len(life) + 1), None))
        elif booked is not None:
            final.append(booked)
        all_lives.append(life)
    return all_lives, final


def event(action: Action, version: int) -> LifeEvent:
    """Build an event whose content is told by its version."""
    return LifeEvent(
        action=action, version=version, content=str(version).encode(), position_key="X"
    )


class Desk:
    """Applies events to trades, and their fills to one position, in the order they come."""

    def __init__(self, method: CostMethod) -> None:
        self.method = method
        self.fills: tuple[Fill, ...] = ()
        self.position = X
        self.realized_by_correction = 0
        self._known: dict[int, KnownTrade | None] = {}
        self._parked: dict[int, list[Parked]] = {}
        self._steps: dict[tuple[int, int], Fill | None] = {}

    def deliver(self, trade: int, step: Step) -> None:
        """Take one event."""
        life_event, booked = step
        assert life_event.version is not None
        self._steps[trade, life_event.version] = booked
        known = self._known.get(trade)
        judgement = judge(known, life_event)
        waiting = self._parked.setdefault(trade, [])
        if judgement.verdict is Verdict.PARK:
            arrival = len(waiting)
            waiting.append(Parked(event=life_event, arrival=arrival, parked_ns=0, deadline_ns=1))
        if judgement.verdict is not Verdict.APPLY:
            return
        known = applied(known, life_event, judgement, keeps_history=False)
        self._book(trade, life_event.version)
        done = release(known, waiting, keeps_history=False)
        self._known[trade], self._parked[trade] = done.known, list(done.waiting)
        for one, found in done.judged:
            if found.verdict is Verdict.APPLY:
                assert one.event.version is not None
                self._book(trade, one.event.version)

    def _book(self, trade: int, version: int) -> None:
        booked = self._steps[trade, version]
        if booked is None:
            self.fills = removed(self.fills, f"T{trade}")
        elif version == 1:
            self.fills = (*self.fills, booked)
        else:
            self.fills = replaced(self.fills, booked)
        after = state(self.fills, self.method)
        self.realized_by_correction += Correction(self.position, after).realized_e24
        self.position = after


@BOTH
@given(drawn=lives(), data=st.data())
def test_any_history_of_changes_gives_the_state_of_its_final_fills(
    drawn: tuple[list[list[Step]], list[Fill]], data: st.DataObject, method: CostMethod
) -> None:
    """However events come, in whatever order and how often: only the last versions count."""
    all_lives, final = drawn
    steps = [(trade, step) for trade, life in enumerate(all_lives) for step in life]
    repeats = data.draw(st.lists(st.sampled_from(steps), max_size=4))
    desk = Desk(method)
    for trade, step in data.draw(st.permutations([*steps, *repeats])):
        desk.deliver(trade, step)
    assert in_order(desk.fills) == in_order(final)
    assert desk.position == state(final, method)
    assert desk.realized_by_correction == desk.position.realized_e24
