"""What a log of trades has to come to, computed apart from the product and from nothing of it.

A trade that the tests mean to be good has `GOOD` in its body, in its id; whatever has not is
poison. Positions are kept by average cost in exact fractions.
"""

import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final, Protocol

from tests.faults.reading import LogRecord

REKEYED_FROM: Final = "x-rekeyed-from"
_SHARE_DECIMALS: Final = 24
"""Of the cost that a close releases, half-even, as docs/pnl.md promises."""
_STAMPS: Final = ("published_at", "processed_at")
Place = tuple[int, int]
"""Partition and offset of a record of the source."""


class Fate(StrEnum):
    """What has to become of a record."""

    BOOKED = "booked"
    DUPLICATE = "duplicate"
    DEAD_LETTERED = "dead_lettered"
    REKEYED = "rekeyed"


@dataclass
class Model:
    """One position by average cost, and the place of the last trade in it.

    The sum of realised and unrealised is exact: what a close takes from one it gives to the other.
    """

    quantity: Fraction = Fraction(0)
    cost: Fraction = Fraction(0)
    realized: Fraction = Fraction(0)
    mark: Fraction = Fraction(0)
    trades: int = 0
    last: Place = (-1, -1)

    def book(self, place: Place, event: Mapping[str, Any]) -> None:
        """Fold the trade at a place."""
        sign = 1 if event["side"] == "BUY" else -1
        self.apply(sign * Fraction(event["quantity"]), Fraction(event["price"]))
        self.last = place

    def apply(self, signed: Fraction, price: Fraction) -> None:
        """Fold one fill."""
        self.trades += 1
        self.mark = price
        if self.quantity * signed >= 0:
            self.cost += signed * price
        else:
            closed = min(abs(signed), abs(self.quantity)) * (1 if signed > 0 else -1)
            share = round(self.cost * abs(closed) / abs(self.quantity), _SHARE_DECIMALS)
            self.realized += -closed * price - share
            self.cost = self.cost - share + (signed - closed) * price
        self.quantity += signed


@dataclass
class Expected:
    """What a log has to come to.

    Attributes:
        fates: Of every record.
        keys: Position key of every booked trade.
        events: Every booked trade.
        conflicts: Records to be refused because their id belongs to another trade.
        models: The positions, by key.
        origins: Places from which re-keyed trades come, with the places of their copies.
    """

    fates: dict[Place, Fate] = field(default_factory=dict)
    keys: dict[Place, str] = field(default_factory=dict)
    events: dict[Place, Mapping[str, Any]] = field(default_factory=dict)
    conflicts: set[Place] = field(default_factory=set)
    models: dict[str, Model] = field(default_factory=lambda: defaultdict(Model))
    origins: dict[Place, list[Place]] = field(default_factory=lambda: defaultdict(list))


class Judge(Protocol):
    """A rule for trades that were sent before."""

    def judge(self, place: Place, event: Mapping[str, Any]) -> Fate | None:
        """Say duplicate or dead-lettered (a conflict), or nothing: it is to be booked."""


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

    def judge(self, place: Place, event: Mapping[str, Any]) -> Fate | None:
        """Say duplicate or dead-lettered (a conflict), or nothing: it is seen for the first time.

        A trade that is judged is seen from then on.
        """
        if not self._window:
            return None
        partition, offset = place
        block = offset // self._window
        content = _content(event)
        first_of = self._seen[partition, event["trade_id"]]
        known_as = first_of.get(block) or first_of.get(block - 1)
        first_of.setdefault(block, content)
        if known_as is None:
            return None
        return Fate.DUPLICATE if content == known_as else Fate.DEAD_LETTERED


class LedgerTrades:
    """The rule where a ledger knows every trade that was ever booked, in whichever partition.

    In one partition the first of a trade is booked. Where several partitions have one of the same
    id, nothing in the log says which of them is read first: it is the one that the ledger has. All
    others are duplicates, or conflicts where their content is another one.

    Args:
        records: As of `expect`.
        partitions: Of the topic.
        rows: Where the ledger has trades, by their id.
    """

    def __init__(
        self, records: Iterable[LogRecord], partitions: int, rows: Mapping[str, Place]
    ) -> None:
        firsts: dict[str, dict[int, tuple[Place, Mapping[str, Any]]]] = defaultdict(dict)
        for record in records:
            event = good_event(record.value)
            if event is not None and _home(event, partitions) == record.partition:
                place = (record.partition, record.offset)
                firsts[event["trade_id"]].setdefault(record.partition, (place, _content(event)))
        self._booked: dict[str, tuple[Place, Mapping[str, Any]]] = {}
        for trade_id, by_partition in firsts.items():
            candidates = list(by_partition.values())
            of_ledger = [first for first in candidates if first[0] == rows.get(trade_id)]
            self._booked[trade_id] = (of_ledger or candidates)[0]

    def judge(self, place: Place, event: Mapping[str, Any]) -> Fate | None:
        """See `Judge`."""
        booked_at, content = self._booked[event["trade_id"]]
        if place == booked_at:
            return None
        return Fate.DUPLICATE if _content(event) == content else Fate.DEAD_LETTERED


def _content(event: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in event.items() if name not in _STAMPS}


def expect(
    records: Sequence[LogRecord],
    partitions: int,
    *,
    window: int = 0,
    rows: Mapping[str, Place] | None = None,
) -> Expected:
    """Work out the fate of every record of a source topic, and the positions.

    Args:
        records: All of them, in offset order for each partition.
        partitions: Of the topic.
        window: Of `SeenTrades`.
        rows: Of `LedgerTrades`, which is the rule where there is a ledger.
    """
    expected = Expected()
    seen: Judge = SeenTrades(window) if rows is None else LedgerTrades(records, partitions, rows)
    for record in records:
        place = (record.partition, record.offset)
        expected.fates[place] = _judge(expected, seen, record, place, partitions)
    return expected


def _judge(
    expected: Expected, seen: Judge, record: LogRecord, place: Place, partitions: int
) -> Fate:
    event = good_event(record.value)
    if event is None:
        return Fate.DEAD_LETTERED
    if _home(event, partitions) != record.partition:
        return Fate.REKEYED
    is_copy = False
    if (header := record.headers.get(REKEYED_FROM)) is not None:
        _, partition, offset = header.decode("ascii").split("/")
        copies = expected.origins[int(partition), int(offset)]
        is_copy = bool(copies)
        copies.append(place)
    fate = seen.judge(place, event)
    if fate is Fate.DEAD_LETTERED:
        expected.conflicts.add(place)
    if fate is not None:
        return fate
    if is_copy:
        return Fate.DUPLICATE
    key = _position_key(event)
    expected.models[key].book(place, event)
    expected.keys[place] = key
    expected.events[place] = event
    return Fate.BOOKED


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
