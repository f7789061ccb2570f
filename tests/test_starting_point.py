"""Where a partition goes on: commit, state and log must agree, or a person decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import OffsetGapError
from app.starting_point import StartingPoint, starting_point


def start(
    committed: int | None,
    *,
    known: int | None = None,
    held: tuple[int, int] = (0, 100),
    may_continue: bool = False,
) -> StartingPoint:
    """Judge a partition: what is committed, what positions cover, and what the topic holds."""
    return starting_point(
        committed=committed,
        is_known=known is not None,
        has_positions=known is not None and known >= 0,
        source_offset=-1 if known is None else known,
        first=held[0],
        end=held[1],
        may_continue=may_continue,
    )


@pytest.mark.parametrize("first", [0, 40, 100])
def test_group_without_any_trace_starts_at_the_first_offset(first: int) -> None:
    """No commit and no positions is a first start, also of a topic that has lost its head."""
    assert start(None, held=(first, 100)) == StartingPoint(first, is_first_start=True)


@pytest.mark.parametrize("committed", [10, 50, 100])
def test_group_goes_on_at_its_commit(committed: int) -> None:
    """From the first offset held up to the end, the commit is where to go on."""
    assert start(committed, known=committed - 1, held=(10, 100)) == StartingPoint(committed)


@pytest.mark.parametrize("may_continue", [False, True])
def test_commit_without_any_trace_in_the_positions_topic_always_stops(
    *, may_continue: bool
) -> None:
    """Going on with an empty state would show wrong positions: they have to be made anew."""
    with pytest.raises(OffsetGapError, match=r"no positions.*positions rebuild"):
        start(50, may_continue=may_continue)


def test_positions_ahead_of_the_commit_are_no_gap() -> None:
    """A crash between positions and commit makes records come again; none is missing."""
    assert start(50, known=99) == StartingPoint(50)


def test_lost_commit_stops_until_a_person_accepts() -> None:
    """Positions without a commit mean that offsets expired; going on reads again from the first."""
    with pytest.raises(OffsetGapError, match=r"positions up to offset 70.*again from offset 5"):
        start(None, known=70, held=(5, 100))
    assert start(None, known=70, held=(5, 100), may_continue=True) == StartingPoint(5)


def test_heartbeat_without_a_commit_is_a_first_start_again() -> None:
    """A crash between the first sign of a group and its first commit has processed nothing."""
    assert start(None, known=-1, held=(7, 100)) == StartingPoint(7, is_first_start=True)


def test_heartbeat_alone_lets_a_committed_group_go_on() -> None:
    """An owner that saw no good trade yet has left a trace all the same."""
    assert start(50, known=-1) == StartingPoint(50)


def test_deleted_records_stop_until_a_person_accepts() -> None:
    """The gap is named exactly: which offsets, and how many."""
    with pytest.raises(OffsetGapError, match=r"offsets 10 to 29 \(20 records\) were deleted"):
        start(10, known=9, held=(30, 100))
    assert start(10, known=9, held=(30, 100), may_continue=True) == StartingPoint(30)
    assert start(29, known=28, held=(29, 100)) == StartingPoint(29)


@pytest.mark.parametrize("may_continue", [False, True])
@pytest.mark.parametrize(("committed", "known"), [(101, 50), (101, None), (50, 100), (None, 100)])
def test_topic_that_ends_too_early_always_stops(
    committed: int | None, known: int | None, *, may_continue: bool
) -> None:
    """A topic made anew cannot be accepted: positions would take its new trades for old ones."""
    with pytest.raises(OffsetGapError, match=r"ends at offset 100.*up to 101"):
        start(committed, known=known, may_continue=may_continue)


@given(
    committed=st.none() | st.integers(0, 20),
    known=st.none() | st.integers(-1, 20),
    first=st.integers(0, 20),
    size=st.integers(0, 20),
    may_continue=st.booleans(),
)
def test_start_is_never_outside_of_what_the_topic_holds(
    committed: int | None, known: int | None, first: int, size: int, *, may_continue: bool
) -> None:
    """Whatever is judged, the start can be read, and nothing unseen is skipped unasked."""
    try:
        found = start(committed, known=known, held=(first, first + size), may_continue=may_continue)
    except OffsetGapError:
        return
    assert first <= found.offset <= first + size
    assert found.is_first_start == (committed is None and known in (None, -1))
    if committed is not None and not may_continue:
        assert found.offset == committed
