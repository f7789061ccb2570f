"""What becomes of an event about a trade, given what is stored of it: the life-cycle table.

    none ──NEW──▶ open ──AMEND──▶ open ──CANCEL──▶ cancelled (final)

One NEW for each trade id, and versions without a gap: 1 for the NEW, one more for each change. The
table is evaluated from the top; the first row that fits decides. Everything here is a pure function
of its arguments: the same events give the same trade, in whatever order and however often they are
delivered, as long as they carry their versions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from app.models import Action

VERSION_GUESSED: Final = "version-guessed"
EXECUTION_TIME_CHANGED: Final = "execution-time-changed"
PREV_EVENT_MISMATCH: Final = "prev-event-mismatch"


class Verdict(StrEnum):
    """What is done with an event."""

    APPLY = "apply"
    DUPLICATE = "duplicate"
    STALE = "stale"
    PARK = "park"
    REFUSE = "refuse"


class TradeState(StrEnum):
    """Where a stored trade is in its life."""

    OPEN = "open"
    CANCELLED = "cancelled"


class KnownTrade(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a trade: its last applied version.

    Attributes:
        version: Last applied version, >= 1.
        content: Content hash of the event that made it.
        state: Open or cancelled.
        position_key: Where its fill is booked.
        kept: Content hashes of older versions, by version, where a history is kept; else empty.
        time_ns: Execution time in UTC nanoseconds, of the NEW; None where it is not kept.
        event_id: Id of the event that made the version; None where it is not known.
    """

    version: int
    content: bytes
    state: TradeState
    position_key: str
    kept: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    time_ns: int | None = None
    event_id: str | None = None


class LifeEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the table needs of an event.

    Attributes:
        action: What it does to its trade.
        version: As sent, >= 1; None where it was not sent.
        content: Content hash (`app.content`), which covers the action.
        position_key: Where its fill would be booked.
        time_ns: Execution time as sent, in UTC nanoseconds; None leaves it unchecked.
        event_id: Its own id, if it has one.
        prev_event_id: The event that it says it changes; None leaves it unchecked.
    """

    action: Action
    content: bytes
    position_key: str
    version: int | None = None
    time_ns: int | None = None
    event_id: str | None = None
    prev_event_id: str | None = None


class Judgement(msgspec.Struct, frozen=True, gc=False):
    """The verdict on one event.

    Attributes:
        verdict: What is done.
        reason: Code of the row that decided; None for one that is applied.
        version: The version as sent or worked out; None while there is nothing to count from.
        flags: Suspicion codes.
    """

    verdict: Verdict
    reason: str | None = None
    version: int | None = None
    flags: tuple[str, ...] = ()


def judge(known: KnownTrade | None, event: LifeEvent) -> Judgement:
    """Evaluate the table for an event.

    An event without a version is a NEW of version 1, or a change of the version after the stored
    one, flagged as a guess. If its content is that of a version that is kept, it is that version
    again: a sender that does not count versions cannot return to an earlier content.

    Args:
        known: What is stored of its trade; None for nothing.
        event: A valid event about it.
    """
    version = event.version
    flags: tuple[str, ...] = ()
    if version is None and event.action is Action.NEW:
        version = 1
    elif version is None:
        if known is None:
            return Judgement(Verdict.PARK, "awaiting-new")
        seen_as = _version_with(known, event.content)
        if seen_as is not None:
            return Judgement(Verdict.DUPLICATE, "duplicate", seen_as)
        version, flags = known.version + 1, (VERSION_GUESSED,)
    verdict, reason = next(
        (verdict, reason) for fits, verdict, reason in _TABLE if fits(known, event, version)
    )
    if verdict is Verdict.APPLY and known is not None:
        flags += _doubts(known, event)
    return Judgement(verdict, reason, version, flags)


def applied(
    known: KnownTrade | None, event: LifeEvent, judgement: Judgement, *, keeps_history: bool
) -> KnownTrade:
    """Give what is stored of a trade after an event that is applied to it.

    Args:
        known: What was stored before.
        event: The event, and `judgement` the verdict on it, which was to apply it.
        judgement: See `event`.
        keeps_history: Whether hashes of older versions are kept.
    """
    assert judgement.verdict is Verdict.APPLY, "only what is applied changes a trade"
    assert judgement.version is not None, "what is applied has a version"
    kept: Mapping[int, bytes] = {}
    time_ns = event.time_ns
    if known is not None:
        time_ns = known.time_ns  # an execution time never changes
        if keeps_history:
            kept = {**known.kept, known.version: known.content}
    return KnownTrade(
        version=judgement.version,
        content=event.content,
        state=TradeState.CANCELLED if event.action is Action.CANCEL else TradeState.OPEN,
        position_key=event.position_key if known is None else known.position_key,
        kept=kept,
        time_ns=time_ns,
        event_id=event.event_id,
    )


class Parked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event that waits for another one of its trade.

    Attributes:
        event: The event.
        arrival: Its place among the arrivals; the source offset, where there is one partition.
        parked_ns: When it was first parked; kept to the end, whatever it waits for meanwhile.
        deadline_ns: When the waiting ends, exclusive, by the clock of `parked_ns`.
    """

    event: LifeEvent
    arrival: int
    parked_ns: int
    deadline_ns: int


class Release(msgspec.Struct, frozen=True, gc=False):
    """What became of parked events of one trade.

    Attributes:
        known: What is stored of the trade afterwards.
        judged: Events that wait no longer, in the order in which they were judged.
        waiting: The others, in their order of release.
    """

    known: KnownTrade | None
    judged: tuple[tuple[Parked, Judgement], ...]
    waiting: tuple[Parked, ...]


PARK_OVERFLOW: Final = Judgement(Verdict.REFUSE, "park-overflow")
"""For an event that would be parked where there is no space, if the intake is not to wait."""


def release_order(parked: Iterable[Parked]) -> list[Parked]:
    """Order events of one trade by version; those without one follow as they came."""
    return sorted(
        parked,
        key=lambda one: (
            one.event.version is None,
            one.event.version or 0,
            one.arrival,
        ),
    )


def release(known: KnownTrade | None, parked: Sequence[Parked], *, keeps_history: bool) -> Release:
    """Judge the parked events of a trade again, after something was applied to it.

    Args:
        known: What is stored of the trade.
        parked: All its parked events.
        keeps_history: As in `applied`.
    """
    waiting, goes_on = release_order(parked), True
    judged: list[tuple[Parked, Judgement]] = []
    while goes_on:
        still, goes_on = [], False
        for one in waiting:
            judgement = judge(known, one.event)
            if judgement.verdict is Verdict.PARK:
                still.append(one)
                continue
            judged.append((one, judgement))
            if judgement.verdict is Verdict.APPLY:
                known = applied(known, one.event, judgement, keeps_history=keeps_history)
                goes_on = True
        waiting = still
    return Release(known, tuple(judged), tuple(waiting))


def judge_waiting(parked: Parked, *, now_ns: int) -> Judgement | None:
    """Give the verdict on an event whose waiting is over; None while it is not."""
    if now_ns < parked.deadline_ns:
        return None
    return Judgement(Verdict.REFUSE, "orphan-lifecycle", parked.event.version)


def _version_with(known: KnownTrade, content: bytes) -> int | None:
    if content == known.content:
        return known.version
    return next((version for version, kept in known.kept.items() if kept == content), None)


def _doubts(known: KnownTrade, event: LifeEvent) -> tuple[str, ...]:
    doubts = []
    if (
        event.action is Action.AMEND
        and known.time_ns is not None
        and event.time_ns is not None
        and event.time_ns != known.time_ns
    ):
        doubts.append(EXECUTION_TIME_CHANGED)
    if (
        event.prev_event_id is not None
        and known.event_id is not None
        and event.prev_event_id != known.event_id
    ):
        doubts.append(PREV_EVENT_MISMATCH)
    return tuple(doubts)


def _is_same(known: KnownTrade | None, event: LifeEvent, version: int) -> bool:
    return known is not None and version == known.version and event.content == known.content


def _is_other_content(known: KnownTrade | None, event: LifeEvent, version: int) -> bool:
    if known is None:
        return False
    # Of an older version the content is known only where a history is kept.
    return version == known.version or known.kept.get(version, event.content) != event.content


def _is_older(known: KnownTrade | None, _event: LifeEvent, version: int) -> bool:
    return known is not None and version < known.version


def _is_after_cancel(known: KnownTrade | None, _event: LifeEvent, _version: int) -> bool:
    return known is not None and known.state is TradeState.CANCELLED


def _is_misnumbered(_known: KnownTrade | None, event: LifeEvent, version: int) -> bool:
    return (event.action is Action.NEW) != (version == 1)


def _is_moved(known: KnownTrade | None, event: LifeEvent, _version: int) -> bool:
    return (
        known is not None
        and event.action is Action.AMEND
        and event.position_key != known.position_key
    )


def _is_next(known: KnownTrade | None, _event: LifeEvent, version: int) -> bool:
    return version == (1 if known is None else known.version + 1)


def _is_ahead(known: KnownTrade | None, _event: LifeEvent, _version: int) -> bool:
    return known is not None


def _is_orphan(_known: KnownTrade | None, _event: LifeEvent, _version: int) -> bool:
    return True


_Row = tuple[Callable[[KnownTrade | None, LifeEvent, int], bool], Verdict, str | None]

# Each row relies on those above it: what is left at `_is_after_cancel` has a higher version.
_TABLE: Final[tuple[_Row, ...]] = (
    (_is_same, Verdict.DUPLICATE, "duplicate"),
    (_is_other_content, Verdict.REFUSE, "version-conflict"),
    (_is_older, Verdict.STALE, "stale-version"),
    (_is_after_cancel, Verdict.REFUSE, "after-cancel"),
    (_is_misnumbered, Verdict.REFUSE, "version-invalid"),
    (_is_moved, Verdict.REFUSE, "key-changed"),
    (_is_next, Verdict.APPLY, None),
    (_is_ahead, Verdict.PARK, "version-gap"),
    (_is_orphan, Verdict.PARK, "awaiting-new"),
)
