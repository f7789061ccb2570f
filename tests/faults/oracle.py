"""What a log of trades has to come to, computed apart from the product and from nothing of it.

An event that the tests mean to be good has `GOOD` in its body, in its trade id; whatever has not is
poison. Positions are kept by average cost in exact fractions. Where there is a ledger, trades are
amended and cancelled as docs/ledger.md says: an event that comes before the one that it follows
waits in its partition, and is judged when that is booked.
"""

import json
import re
import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final, NamedTuple, Protocol

from tests.faults.reading import LogRecord

REKEYED_FROM: Final = "x-rekeyed-from"
_SHARE_DECIMALS: Final = 24
"""Of the cost that a close releases, half-even, as docs/pnl.md promises."""
_UNSAID: Final = ("published_at", "processed_at", "version")
"""Fields in which two events may differ that say the same."""
_INSTANT: Final = re.compile(r"([^.+Z]+)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
ORPHAN: Final = "orphan-lifecycle"
LIFE_CYCLE: Final = frozenset(
    {
        *("version-conflict", "after-cancel", "version-invalid", "key-changed"),
        *(ORPHAN, "lifecycle-unavailable"),
    }
)
"""Reason codes of events that could be used, were it not for what is known of their trade."""
Place = tuple[int, int]
"""Partition and offset of a record of the source."""


class Fate(StrEnum):
    """What has to become of a record."""

    BOOKED = "booked"
    DUPLICATE = "duplicate"
    STALE = "stale"
    DEAD_LETTERED = "dead_lettered"
    REKEYED = "rekeyed"
    PARKED = "parked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """An event that is to be booked.

    Attributes:
        place: Where it stands.
        key: Of its position.
        event: What it says.
        version: Of its trade.
        executed_ns: When its trade was executed, which no later version changes; 0 without a
            ledger, where nothing depends on it.
    """

    place: Place
    key: str
    event: Mapping[str, Any]
    version: int
    executed_ns: int

    @property
    def action(self) -> str:
        """What it does to its trade."""
        return _action(self.event)

    @property
    def order(self) -> tuple[int, Place]:
        """Where it comes among the fills of a position: by execution, then as in the log."""
        return self.executed_ns, self.place


class State(NamedTuple):
    """What a position comes to, by average cost.

    The sum of realised and unrealised is exact: what a close takes from one it gives to the other.
    """

    quantity: Fraction = Fraction(0)
    cost: Fraction = Fraction(0)
    realized: Fraction = Fraction(0)
    mark: Fraction = Fraction(0)

    def and_one(self, event: Mapping[str, Any]) -> "State":
        """Fold one fill."""
        price = Fraction(event["price"])
        signed = Fraction(event["quantity"]) * (1 if event["side"] == "BUY" else -1)
        quantity, cost, realized, _ = self
        if quantity * signed >= 0:
            return State(quantity + signed, cost + signed * price, realized, price)
        closed = min(abs(signed), abs(quantity)) * (1 if signed > 0 else -1)
        share = round(cost * abs(closed) / abs(quantity), _SHARE_DECIMALS)
        realized += -closed * price - share
        return State(quantity + signed, cost - share + (signed - closed) * price, realized, price)


class Model:
    """One position, the fills in it, and the highest place of an event that it has.

    A trade is folded in as it comes. A change of one folds all of them again, in the order of their
    execution, the changed one in its old place in time; what comes later is put on top of that.
    """

    def __init__(self) -> None:
        self.state = State()
        self.last: Place = (-1, -1)
        self._fills: dict[str, Booked] = {}
        self._in_order: list[Booked] = []
        self._folded = [State()]  # item n is after the first n in order; what is gone is not yet

    @property
    def trades(self) -> int:
        """Number of its fills."""
        return len(self._in_order)

    def book(self, booked: Booked) -> None:
        """Fold an event."""
        self.last = max(self.last, booked.place)  # what has waited stands before what came since
        if booked.action == "NEW":
            self._add(booked)
            self.state = self.state.and_one(booked.event)
            return
        fill = self._fills.pop(booked.event["trade_id"])
        index = self._index_of(fill)
        del self._in_order[index], self._folded[index + 1 :]
        if booked.action == "AMEND":
            self._add(replace(booked, place=fill.place))
        for left in self._in_order[len(self._folded) - 1 :]:
            self._folded.append(self._folded[-1].and_one(left.event))
        self.state = self._folded[-1]

    def _add(self, fill: Booked) -> None:
        self._fills[fill.event["trade_id"]] = fill
        index = self._index_of(fill)
        self._in_order.insert(index, fill)
        del self._folded[index + 1 :]

    def _index_of(self, fill: Booked) -> int:
        return bisect_left(self._in_order, fill.order, key=lambda one: one.order)


class Correction(NamedTuple):
    """What a change did to the position of a key."""

    key: str
    before: State
    after: State


@dataclass
class Expected:
    """What a log has to come to.

    Attributes:
        fates: Of every record.
        booked: Every event that is booked, by its place; of each partition in the order of booking.
        reasons: Codes of the dead letters that are due to what is known of their trade.
        models: The positions, by key.
        corrections: By the place of the event that made them.
        origins: Places from which re-keyed trades come, with the places of their copies.
        waited: Events that came too early, each with the place of the one at which it got its fate;
            `None` where that never came.
    """

    fates: dict[Place, Fate] = field(default_factory=dict)
    booked: dict[Place, Booked] = field(default_factory=dict)
    reasons: dict[Place, str] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=lambda: defaultdict(Model))
    corrections: dict[Place, Correction] = field(default_factory=dict)
    origins: dict[Place, list[Place]] = field(default_factory=lambda: defaultdict(list))
    waited: dict[Place, Place | None] = field(default_factory=dict)

    def booked_at(self, place: Place) -> Place:
        """Give where a partition was when it booked an event: there, or at what let it go on."""
        return self.waited.get(place) or place

    def allows(self, place: Place, reason: str) -> bool:
        """Tell whether a dead letter may have a code; poison has any that speaks of itself."""
        due = self.reasons.get(place)
        return reason not in LIFE_CYCLE if due is None else reason == due


class Ruling(NamedTuple):
    """What is to become of an event.

    Attributes:
        fate: Its fate.
        reason: Code of a dead letter.
        version: Of one that is booked, and `executed_ns`: see `Booked`.
    """

    fate: Fate
    reason: str = ""
    version: int = 1
    executed_ns: int = 0


_DUPLICATE: Final = Ruling(Fate.DUPLICATE)
_STALE: Final = Ruling(Fate.STALE)
_PARKED: Final = Ruling(Fate.PARKED)


def _refused(reason: str) -> Ruling:
    return Ruling(Fate.DEAD_LETTERED, reason)


class Judge(Protocol):
    """A rule for events of trades of which something came before."""

    def judge(self, place: Place, event: Mapping[str, Any]) -> Ruling:
        """Say what becomes of an event that comes, or is judged again, next in its partition."""


class SeenTrades:
    """The rule for a trade that its sender has sent twice.

    It is a duplicate where its id was seen in the same partition in the current block of `window`
    offsets, or else in the previous one, and the content was the same when the block had it first,
    but for the stamps of its sending; with another content it is a conflict.

    Args:
        window: Offsets of a block; 0 switches the rule off.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._seen: dict[tuple[int, str], dict[int, Mapping[str, Any]]] = defaultdict(dict)

    def judge(self, place: Place, event: Mapping[str, Any]) -> Ruling:
        """See `Judge`; a trade that is judged is seen from then on."""
        if _action(event) != "NEW":
            return _refused("lifecycle-unavailable")
        if not self._window:
            return Ruling(Fate.BOOKED)
        partition, offset = place
        block = offset // self._window
        content = _content(event)
        first_of = self._seen[partition, event["trade_id"]]
        known_as = first_of.get(block) or first_of.get(block - 1)
        first_of.setdefault(block, content)
        if known_as is None:
            return Ruling(Fate.BOOKED)
        return _DUPLICATE if content == known_as else _refused("version-conflict")


@dataclass
class _Trade:
    """What a ledger has of a trade: where it is at home, and the content of each version."""

    key: str
    versions: list[Mapping[str, Any]]
    executed_ns: int

    @property
    def is_cancelled(self) -> bool:
        return bool(self.versions[-1]["action"] == "CANCEL")


class LedgerTrades:
    """The rule where a ledger knows every version of every trade, in whichever partition.

    A partition has the events of a trade in the order of their sending. Where several partitions
    have a NEW of the same id, nothing in the log says which of them is read first: it is the one
    that the ledger has, and the others are compared with that one; so ids that come in several
    partitions are not to be changed.

    Args:
        records: As of `expect`.
        partitions: Of the topic.
        rows: Where the ledger has the first version of each trade, by their id.
    """

    def __init__(
        self, records: Iterable[LogRecord], partitions: int, rows: Mapping[str, Place]
    ) -> None:
        candidates: dict[str, dict[int, tuple[Place, _Trade]]] = defaultdict(dict)
        for record in records:
            event = good_event(record.value)
            if event is None or _action(event) != "NEW" or event.get("version", 1) != 1:
                continue
            if _home(event, partitions) == record.partition:
                place = (record.partition, record.offset)
                trade = _Trade(_position_key(event), [_content(event)], _executed_ns(event))
                candidates[event["trade_id"]].setdefault(record.partition, (place, trade))
        self._begun: set[str] = set()
        self._firsts: dict[str, tuple[Place, _Trade]] = {}
        for trade_id, by_partition in candidates.items():
            firsts = list(by_partition.values())
            of_ledger = [first for first in firsts if first[0] == rows.get(trade_id)]
            self._firsts[trade_id] = (of_ledger or firsts)[0]

    def judge(self, place: Place, event: Mapping[str, Any]) -> Ruling:
        """See `Judge`."""
        trade_id = event["trade_id"]
        first_place, trade = self._firsts.get(trade_id, (place, None))
        if trade is None:
            return _judged(None, event)
        if place == first_place:
            self._begun.add(trade_id)
            return Ruling(Fate.BOOKED, version=1, executed_ns=trade.executed_ns)
        if place[0] == first_place[0] and trade_id not in self._begun:
            return _judged(None, event)
        ruling = _judged(trade, event)
        if ruling.fate is Fate.BOOKED:
            trade.versions.append(_content(event))
        return ruling


def _judged(trade: _Trade | None, event: Mapping[str, Any]) -> Ruling:
    """Evaluate the life-cycle table from the top, for all but the NEW that is booked."""
    content, is_new = _content(event), _action(event) == "NEW"
    known = [] if trade is None else trade.versions
    version = event.get("version")
    if version is None and not is_new and content in known:
        return _DUPLICATE
    if version is None:
        version = 1 if is_new else max(2, len(known) + 1)
    if version <= len(known):
        if content != known[int(version) - 1]:
            return _refused("version-conflict")
        return _DUPLICATE if version == len(known) else _STALE
    if reason := _problem(trade, event, version):
        return _refused(reason)
    if trade is None or version > len(known) + 1:
        return _PARKED
    return Ruling(Fate.BOOKED, version=int(version), executed_ns=trade.executed_ns)


def _problem(trade: _Trade | None, event: Mapping[str, Any], version: int) -> str:
    """Give the reason why a version that is not known is never booked; nothing where it may be."""
    if trade is not None and trade.is_cancelled:
        return "after-cancel"
    if (_action(event) == "NEW") != (version == 1):
        return "version-invalid"
    if trade is not None and _position_key(event) != trade.key:
        return "key-changed"
    return ""


def _action(event: Mapping[str, Any]) -> str:
    return str(event.get("action", "NEW"))


def _content(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give what an event says: amounts as amounts, whatever they were written like."""
    said = {name: value for name, value in event.items() if name not in _UNSAID}
    amounts = {name: Fraction(event[name]) for name in ("price", "quantity")}
    return said | amounts | {"action": _action(event)}


def _executed_ns(event: Mapping[str, Any]) -> int:
    match = _INSTANT.fullmatch(event["timestamp"])
    assert match is not None, event["timestamp"]
    second, fraction, zone = match.groups()
    seconds = int(datetime.fromisoformat(second + zone).timestamp())
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def expect(
    records: Sequence[LogRecord],
    partitions: int,
    *,
    window: int = 0,
    rows: Mapping[str, Place] | None = None,
    is_deadline_over: bool = False,
) -> Expected:
    """Work out the fate of every record of a source topic, and the positions.

    Args:
        records: All of them, in offset order for each partition.
        partitions: Of the topic.
        window: Of `SeenTrades`.
        rows: Of `LedgerTrades`, which is the rule where there is a ledger.
        is_deadline_over: Whether what waits for ever is refused by now; it is parked otherwise.
            What waits for something that does come has to get it in time.
    """
    expected = Expected()
    rule: Judge = SeenTrades(window) if rows is None else LedgerTrades(records, partitions, rows)
    waiting: dict[tuple[int, str], list[_Arrival]] = defaultdict(list)
    for record in records:
        place = (record.partition, record.offset)
        event = good_event(record.value)
        if event is None:
            expected.fates[place] = Fate.DEAD_LETTERED
        elif _home(event, partitions) != record.partition:
            expected.fates[place] = Fate.REKEYED
        else:
            arrival = _Arrival(place, event, _is_another_copy(expected, record))
            _arrive(expected, rule, arrival, waiting[record.partition, event["trade_id"]])
    for place in expected.waited if is_deadline_over else ():
        if expected.fates[place] is Fate.PARKED:
            expected.fates[place], expected.reasons[place] = Fate.DEAD_LETTERED, ORPHAN
    return expected


class _Arrival(NamedTuple):
    """An event in its own partition."""

    place: Place
    event: Mapping[str, Any]
    is_another_copy: bool

    @property
    def order(self) -> tuple[bool, int, Place]:
        """Where it comes among those that wait for a trade: by version, without one as it came."""
        version = self.event.get("version")
        return version is None, int(version or 0), self.place


def _is_another_copy(expected: Expected, record: LogRecord) -> bool:
    """Note where a re-keyed trade comes from, and tell whether it has come before."""
    header = record.headers.get(REKEYED_FROM)
    if header is None:
        return False
    _, partition, offset = header.decode("ascii").split("/")
    copies = expected.origins[int(partition), int(offset)]
    copies.append((record.partition, record.offset))
    return len(copies) > 1


def _arrive(expected: Expected, rule: Judge, arrival: _Arrival, waiting: list[_Arrival]) -> None:
    """Judge an event, and when it is booked, what waits for its trade."""
    fate = _settle(expected, rule, arrival)
    if fate is Fate.PARKED:
        waiting.append(arrival)
        expected.waited[arrival.place] = None
    elif fate is Fate.BOOKED:
        _release(expected, rule, waiting, at=arrival.place)


def _release(expected: Expected, rule: Judge, waiting: list[_Arrival], *, at: Place) -> None:
    """Judge all that waits for a trade, in its order, again and again until nothing is booked."""
    goes_on = True
    while goes_on:
        goes_on = False
        for arrival in sorted(waiting, key=lambda one: one.order):
            fate = _settle(expected, rule, arrival)
            if fate is not Fate.PARKED:
                waiting.remove(arrival)
                expected.waited[arrival.place] = at
            goes_on |= fate is Fate.BOOKED


def _settle(expected: Expected, rule: Judge, arrival: _Arrival) -> Fate:
    """Judge one event, and book it or note why not."""
    ruling = rule.judge(arrival.place, arrival.event)
    fate = ruling.fate
    if fate is Fate.BOOKED and arrival.is_another_copy:
        fate = Fate.DUPLICATE
    elif fate is Fate.BOOKED:
        _book(expected, arrival.place, arrival.event, ruling)
    if ruling.reason:
        expected.reasons[arrival.place] = ruling.reason
    expected.fates[arrival.place] = fate
    return fate


def _book(expected: Expected, place: Place, event: Mapping[str, Any], ruling: Ruling) -> None:
    booked = Booked(
        place=place,
        key=_position_key(event),
        event=event,
        version=ruling.version,
        executed_ns=ruling.executed_ns,
    )
    expected.booked[place] = booked
    model = expected.models[booked.key]
    before = model.state
    model.book(booked)
    if booked.action != "NEW":
        expected.corrections[place] = Correction(booked.key, before, model.state)


def _position_key(event: Mapping[str, Any]) -> str:
    return f"{event['book']}|{event['symbol']}" if event.get("book") else str(event["symbol"])


def _home(event: Mapping[str, Any], partitions: int) -> int:
    return partition_of(_position_key(event).encode(), partitions)


def good_event(value: bytes | None) -> dict[str, Any] | None:
    """Give the event of a record that the tests mean to be good."""
    if value is None or b"GOOD" not in value:
        return None
    event: dict[str, Any] = json.loads(value, parse_float=Fraction, parse_int=Fraction)
    return event


def partition_of(key: bytes, partitions: int) -> int:
    """Give the partition that the Java client's default chooses for a key.

    Source:
        MurmurHash2 by Austin Appleby with Kafka's seed, its sign bit cleared, modulo partitions.
    """
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    hashed = 0x9747B28C ^ len(key)
    body = len(key) & ~3
    for (word,) in struct.iter_unpack("<I", key[:body]):
        word = word * multiplier & mask  # noqa: PLW2901 - the steps of one word
        hashed = (hashed * multiplier ^ (word ^ word >> 24) * multiplier) & mask
    for index in reversed(range(body, len(key))):
        hashed ^= key[index] << 8 * (index - body)
    if body < len(key):
        hashed = hashed * multiplier & mask
    hashed = (hashed ^ hashed >> 13) * multiplier & mask
    return ((hashed ^ hashed >> 15) & 0x7FFFFFFF) % partitions
