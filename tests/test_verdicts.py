"""The life-cycle table: each row, and that the order of delivery changes nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.models import Action
from app.verdicts import (
    PARK_OVERFLOW,
    Judgement,
    KnownTrade,
    LifeEvent,
    Parked,
    TradeState,
    Verdict,
    applied,
    judge,
    judge_waiting,
    release,
    release_order,
)

KEY = "BOOK|SYM"


def content(text: str) -> bytes:
    """Stand in for a content hash."""
    return text.encode().ljust(16, b".")


def new(text: str = "v1", version: int | None = None, key: str = KEY) -> LifeEvent:
    """Build a NEW."""
    return LifeEvent(action=Action.NEW, version=version, content=content(text), position_key=key)


def amend(text: str = "v2", version: int | None = None, key: str = KEY) -> LifeEvent:
    """Build an AMEND."""
    return LifeEvent(action=Action.AMEND, version=version, content=content(text), position_key=key)


def cancel(text: str = "gone", version: int | None = None, key: str = KEY) -> LifeEvent:
    """Build a CANCEL."""
    return LifeEvent(action=Action.CANCEL, version=version, content=content(text), position_key=key)


def after(*events: LifeEvent, keeps_history: bool = True) -> KnownTrade:
    """Give what is stored after events that are all applied."""
    known: KnownTrade | None = None
    for event in events:
        judgement = judge(known, event)
        assert judgement.verdict is Verdict.APPLY
        known = applied(known, event, judgement, keeps_history=keeps_history)
    assert known is not None
    return known


def test_row_1_same_version_and_content_is_a_duplicate() -> None:
    """The same event again is acknowledged and has no effect."""
    found = judge(after(new(), amend(version=2)), amend(version=2))
    assert found == Judgement(Verdict.DUPLICATE, "duplicate", 2)


def test_row_1_holds_for_a_cancelled_trade() -> None:
    """A CANCEL that comes again is a duplicate, with its version and without."""
    known = after(new(), cancel(version=2))
    for event in (cancel(version=2), cancel()):
        assert judge(known, event) == Judgement(Verdict.DUPLICATE, "duplicate", 2)


def test_row_2_same_version_with_other_content_is_a_conflict() -> None:
    """Two systems disagree about one trade."""
    found = judge(after(new(), amend(version=2)), amend("other", version=2))
    assert found == Judgement(Verdict.REFUSE, "version-conflict", 2)


def test_row_2_second_different_new_is_a_conflict() -> None:
    """One NEW for each trade id, and a NEW without a version is of version 1."""
    found = judge(after(new()), new("other"))
    assert found == Judgement(Verdict.REFUSE, "version-conflict", 1)


def test_row_2_older_version_with_other_content_is_a_conflict_where_history_is_kept() -> None:
    """What was applied once is known for good, so that a disagreement about it is seen."""
    known = after(new(), amend(version=2), amend("v3", version=3))
    assert judge(known, amend("other", version=2)).reason == "version-conflict"
    assert judge(known, new("other", version=1)).reason == "version-conflict"


def test_row_3_older_version_is_stale() -> None:
    """It has had its effect, and another version has taken its place."""
    known = after(new(), amend(version=2), amend("v3", version=3))
    assert judge(known, amend(version=2)) == Judgement(Verdict.STALE, "stale-version", 2)
    assert judge(known, new()) == Judgement(Verdict.STALE, "stale-version", 1)


def test_row_3_without_a_history_other_content_is_stale_too() -> None:
    """Only the last version is compared where no other one is kept."""
    known = after(new(), amend(version=2), keeps_history=False)
    assert known.kept == {}
    assert judge(known, new("other")) == Judgement(Verdict.STALE, "stale-version", 1)


@pytest.mark.parametrize("event", [amend("v3", version=3), cancel(version=9), new("x", version=7)])
def test_row_4_higher_version_of_a_cancelled_trade_is_refused(event: LifeEvent) -> None:
    """Cancelled is final."""
    found = judge(after(new(), cancel("c", version=2)), event)
    assert (found.verdict, found.reason) == (Verdict.REFUSE, "after-cancel")


def test_row_4_change_without_a_version_comes_after_the_cancel() -> None:
    """It counts from the stored version, and that is a guess."""
    found = judge(after(new(), cancel("c")), amend("late"))
    assert found == Judgement(Verdict.REFUSE, "after-cancel", 3, ("version-guessed",))


@pytest.mark.parametrize("event", [new(version=2), amend(version=1), cancel(version=1)])
def test_row_5_version_that_does_not_fit_the_action_is_invalid(event: LifeEvent) -> None:
    """1 is the NEW's, and only the NEW's."""
    found = judge(None, event)
    assert found == Judgement(Verdict.REFUSE, "version-invalid", event.version)


def test_row_5_new_with_the_next_version_is_invalid() -> None:
    """A second NEW does not become a change by its number."""
    assert judge(after(new()), new("x", version=2)).reason == "version-invalid"


@pytest.mark.parametrize("version", [None, 2, 5])
def test_row_6_amend_to_another_key_is_refused(version: int | None) -> None:
    """A change of book or symbol must come as CANCEL and NEW, be it next or ahead."""
    found = judge(after(new()), amend(version=version, key="OTHER|SYM"))
    assert (found.verdict, found.reason) == (Verdict.REFUSE, "key-changed")


def test_row_6_cancel_says_nothing_about_the_key() -> None:
    """The stored fill is what is cancelled, and stays where it was booked."""
    known = after(new(), cancel(version=2, key="OTHER|SYM"))
    assert (known.state, known.position_key) == (TradeState.CANCELLED, KEY)


@pytest.mark.parametrize("event", [new(), new(version=1)])
def test_row_7_first_event_is_applied(event: LifeEvent) -> None:
    """A NEW on nothing opens the trade."""
    assert judge(None, event) == Judgement(Verdict.APPLY, None, 1)


@pytest.mark.parametrize("event", [amend(version=2), cancel(version=2)])
def test_row_7_next_version_is_applied(event: LifeEvent) -> None:
    """One more than the stored version fits."""
    assert judge(after(new()), event) == Judgement(Verdict.APPLY, None, 2)


@pytest.mark.parametrize("event", [amend(), cancel()])
def test_row_7_change_without_a_version_is_applied_as_the_next(event: LifeEvent) -> None:
    """It is taken for the next version and flagged."""
    assert judge(after(new()), event) == Judgement(Verdict.APPLY, None, 2, ("version-guessed",))


def test_row_8_version_ahead_is_parked() -> None:
    """What is between may still come."""
    found = judge(after(new()), amend("v4", version=4))
    assert found == Judgement(Verdict.PARK, "version-gap", 4)


@pytest.mark.parametrize("event", [amend(version=2), cancel(version=7), amend(), cancel()])
def test_row_9_change_of_nothing_is_parked(event: LifeEvent) -> None:
    """The NEW may still come; without a version there is nothing to count from yet."""
    assert judge(None, event) == Judgement(Verdict.PARK, "awaiting-new", event.version)


def test_row_10_parked_event_is_an_orphan_at_its_deadline() -> None:
    """It waits until then and no longer; the first park time is still known."""
    parked = Parked(event=amend(version=2), arrival=7, parked_ns=100, deadline_ns=200)
    assert judge_waiting(parked, now_ns=199) is None
    assert judge_waiting(parked, now_ns=200) == Judgement(Verdict.REFUSE, "orphan-lifecycle", 2)
    assert parked.parked_ns == 100


def test_row_11_overflow_is_a_refusal() -> None:
    """An event that cannot be parked is not dropped in silence."""
    assert (PARK_OVERFLOW.verdict, PARK_OVERFLOW.reason) == (Verdict.REFUSE, "park-overflow")


def test_amend_of_the_execution_time_is_applied_and_suspect() -> None:
    """The trade keeps the execution time of its NEW."""
    known = after(replace(new(), time_ns=10))
    event = replace(amend(version=2), time_ns=11)
    judgement = judge(known, event)
    assert judgement == Judgement(Verdict.APPLY, None, 2, ("execution-time-changed",))
    assert applied(known, event, judgement, keeps_history=False).time_ns == 10
    assert judge(known, replace(amend(version=2), time_ns=10)).flags == ()
    assert judge(known, replace(cancel(version=2), time_ns=11)).flags == ()
    assert judge(after(new()), event).flags == ()


def test_change_of_another_event_than_the_stored_one_is_suspect() -> None:
    """The sender believed something else to be the last event."""
    known = after(replace(new(), event_id="E1"))
    named = replace(amend(version=2), prev_event_id="E1")
    assert judge(known, named).flags == ()
    assert judge(known, replace(named, prev_event_id="E0")).flags == ("prev-event-mismatch",)
    assert judge(known, replace(amend(), prev_event_id="E0")).flags == (
        "version-guessed",
        "prev-event-mismatch",
    )
    assert judge(after(new()), replace(named, prev_event_id="E0")).flags == ()


def test_change_without_a_version_that_is_a_kept_version_is_a_duplicate() -> None:
    """A redelivery is told from a change by what it says, as far back as hashes are kept."""
    events = [new(), amend("v2"), amend("v3"), cancel()]
    known = after(*events)
    for version, event in enumerate(events[1:], start=2):
        assert judge(known, event) == Judgement(Verdict.DUPLICATE, "duplicate", version)
    forgetful = after(new(), amend("v2"), amend("v3"), keeps_history=False)
    assert judge(forgetful, amend("v2")).verdict is Verdict.APPLY


def test_history_keeps_every_version_before_the_last() -> None:
    """The last one is the trade's own."""
    known = after(new(), amend(version=2), amend("v3", version=3))
    assert known == KnownTrade(
        version=3,
        content=content("v3"),
        state=TradeState.OPEN,
        position_key=KEY,
        kept={1: content("v1"), 2: content("v2")},
    )


def test_only_what_is_applied_changes_a_trade() -> None:
    """Anything else is a mistake of the caller."""
    with pytest.raises(AssertionError):
        applied(after(new()), new(), judge(after(new()), new()), keeps_history=True)


def test_parked_events_are_released_by_version_and_then_by_arrival() -> None:
    """Versions come first; events without one follow as they came."""
    events = [amend("b"), amend("v3", version=3), amend("a"), amend(version=2)]
    parked = [
        Parked(event=event, arrival=arrival, parked_ns=0, deadline_ns=1)
        for arrival, event in enumerate(events)
    ]
    assert [one.arrival for one in release_order(reversed(parked))] == [3, 1, 0, 2]


def test_release_applies_what_fits_and_leaves_the_rest() -> None:
    """An event without a version may close the gap that others waited for."""
    events = [cancel(version=9), amend("v3", version=3), amend("guess"), amend("v4", version=4)]
    parked = [
        Parked(event=event, arrival=arrival, parked_ns=0, deadline_ns=1)
        for arrival, event in enumerate(events)
    ]
    done = release(after(new()), parked, keeps_history=True)
    assert [(one.arrival, found.version) for one, found in done.judged] == [(2, 2), (1, 3), (3, 4)]
    assert [one.arrival for one in done.waiting] == [0]
    assert done.known is not None
    assert done.known.version == 4


def test_release_of_nothing_stored_leaves_everything() -> None:
    """Without the NEW nothing fits."""
    parked = Parked(event=amend(version=2), arrival=0, parked_ns=0, deadline_ns=1)
    assert release(None, [parked], keeps_history=True).waiting == (parked,)


@dataclass
class Store:
    """Delivers events to a trade as a store would: judged, parked, released."""

    keeps_history: bool = True
    known: KnownTrade | None = None
    parked: tuple[Parked, ...] = ()
    applied: list[tuple[int | None, bytes]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def deliver(self, events: Iterable[LifeEvent]) -> "Store":
        """Take events in the order given."""
        for arrival, event in enumerate(events):
            judgement = judge(self.known, event)
            self._note(event, judgement)
            if judgement.verdict is Verdict.PARK:
                one = Parked(event=event, arrival=arrival, parked_ns=0, deadline_ns=1)
                self.parked = (*self.parked, one)
            elif judgement.verdict is Verdict.APPLY:
                self.known = applied(self.known, event, judgement, keeps_history=self.keeps_history)
                done = release(self.known, self.parked, keeps_history=self.keeps_history)
                self.known, self.parked = done.known, done.waiting
                for released, found in done.judged:
                    self._note(released.event, found)
        return self

    def _note(self, event: LifeEvent, judgement: Judgement) -> None:
        self.verdicts.append(judgement.verdict)
        if judgement.verdict is Verdict.APPLY:
            self.applied.append((judgement.version, event.content))


@st.composite
def lives(draw: st.DrawFn) -> list[LifeEvent]:
    """Draw the life of a trade with its versions; contents may come back."""
    contents = st.sampled_from(["a", "b", "c"])
    count = draw(st.integers(0, 5))
    life = [replace(new("new"), version=draw(st.sampled_from([None, 1])), event_id="E1")]
    life += [amend(draw(contents), version=version) for version in range(2, count + 2)]
    if draw(st.booleans()):
        life.append(cancel(version=count + 2))
    return life


@given(life=lives(), data=st.data(), keeps_history=st.booleans())
def test_any_order_and_any_repeats_of_a_life_come_to_the_same_trade(
    *, life: Sequence[LifeEvent], data: st.DataObject, keeps_history: bool
) -> None:
    """The whole chain is applied, once each, in order; nothing waits and nothing is refused."""
    repeats = data.draw(st.lists(st.sampled_from(life), max_size=5))
    deliveries = data.draw(st.permutations([*life, *repeats]))
    in_order = Store(keeps_history).deliver(life)
    store = Store(keeps_history).deliver(deliveries)
    assert store.known == in_order.known
    assert store.applied == in_order.applied
    assert [version for version, _ in store.applied] == list(range(1, len(life) + 1))
    assert store.parked == ()
    assert Verdict.REFUSE not in store.verdicts


@given(lives(), st.data())
def test_what_is_missing_holds_back_only_what_comes_after_it(
    life: Sequence[LifeEvent], data: st.DataObject
) -> None:
    """Before the gap everything is applied, behind it everything waits."""
    missing = data.draw(st.integers(0, len(life) - 1))
    rest = data.draw(st.permutations([*life[:missing], *life[missing + 1 :]]))
    store = Store().deliver(rest)
    assert store.applied == Store().deliver(life[:missing]).applied
    assert len(store.parked) == len(life) - missing - 1


events = st.builds(
    LifeEvent,
    action=st.sampled_from(Action),
    version=st.one_of(st.none(), st.integers(1, 6)),
    content=st.sampled_from([content(text) for text in "abc"]),
    position_key=st.sampled_from([KEY, "OTHER|SYM"]),
    time_ns=st.one_of(st.none(), st.integers(1, 2)),
    event_id=st.one_of(st.none(), st.sampled_from(["E1", "E2"])),
    prev_event_id=st.one_of(st.none(), st.sampled_from(["E1", "E2"])),
)


@given(sent=st.lists(events, max_size=25), keeps_history=st.booleans())
def test_whatever_is_sent_the_applied_versions_are_a_chain(
    *, sent: Sequence[LifeEvent], keeps_history: bool
) -> None:
    """From 1 without a gap; a NEW first and never again, nothing after a CANCEL, one key."""
    store = Store(keeps_history).deliver(sent)
    assert [version for version, _ in store.applied] == list(range(1, len(store.applied) + 1))
    if store.known is None:
        assert not store.applied
        return
    assert store.known.version == len(store.applied)
    assert store.known.content == store.applied[-1][1]
    assert len(store.known.kept) == (store.known.version - 1) * keeps_history
    if store.known.state is TradeState.CANCELLED:
        judged = [judge(store.known, event).verdict for event in sent]
        assert not {Verdict.APPLY, Verdict.PARK} & set(judged)


@given(lives())
def test_whole_life_delivered_again_changes_nothing(life: Sequence[LifeEvent]) -> None:
    """A replay of everything is duplicates and stale versions alone."""
    store = Store().deliver(life)
    known = store.known
    store.verdicts.clear()
    store.deliver(life)
    assert store.known == known
    assert set(store.verdicts) <= {Verdict.DUPLICATE, Verdict.STALE}
