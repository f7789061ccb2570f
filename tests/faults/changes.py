"""Events that change trades: as their senders mean them, as they err, and before their time."""

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, Final

from tests.faults.oracle import partition_of

_REMEMBERED: Final = 200
"""Trades that may be changed; a few live long among them, most are soon replaced."""
_REPLACES: Final = 0.1
"""Chance of a trade to take the place of one that is remembered."""
_MOVED_IN_TIME: Final = 0.25
"""Share of the AMENDs that state another execution time, which changes nothing."""
_RUSHED: Final = 20
"""Trades of which something may still be on its way: so many of the newest are remembered."""
_RUSH: Final = 0.3
"""Share of the changes that are changes of those."""
_LATE: Final = 200
"""Events that pass by one that is overtaken, on average."""
_ORPHANED: Final[tuple["Event", ...]] = (
    {"action": "AMEND", "version": 2},
    {"action": "AMEND", "version": 5},
    {"action": "CANCEL", "version": 2},
    {"action": "CANCEL"},
)
_KINDS: Final = {
    "amend": 8, "cancel": 3, "unnumbered": 2, "again": 2, "stale": 2, "conflict": 1, "moved": 1,
}  # fmt: skip
_KINDS_AFTER_CANCEL: Final = {"after": 1, "again": 1, "stale": 1, "conflict": 1}
Event = dict[str, Any]


def position_key(event: Event) -> str:
    """Give the key of the position that an event belongs to."""
    return f"{event['book']}|{event['symbol']}" if event.get("book") else str(event["symbol"])


def terms(draw: random.Random) -> Event:
    """Draw what is traded: side, price and quantity."""
    price = _decimal(draw, 5_000)
    return {
        "side": draw.choice(("BUY", "SELL")),
        "price": price if "." in price else int(price),
        "quantity": _decimal(draw, 300),
    }


def _decimal(draw: random.Random, most: int) -> str:
    whole, places = draw.randint(1, most), draw.choice((0, 0, 2, 2, 2, 4, 8))
    return f"{whole}.{draw.randrange(10**places):0{places}}" if places else str(whole)


class Changes:
    """Amends and cancels trades of half of the positions, and sends some events that are refused.

    The trades of the other half are never changed, so that their positions are kept the short way.

    Args:
        draw: Where its chances come from.
        keys: Book, or nothing, and symbol of every position.
        partitions: Of the topic.
        early: Chance that a NEW that is remembered, or an AMEND, is overtaken by what follows it.
        orphans: Chance that in the place of a NEW comes a change of it, and it never.
    """

    def __init__(
        self,
        draw: random.Random,
        keys: Sequence[tuple[str, str]],
        *,
        partitions: int,
        early: float = 0.0,
        orphans: float = 0.0,
    ) -> None:
        self._draw = draw
        self._early = early
        self._orphans = orphans
        positions = [{"book": book, "symbol": symbol} if book else {"symbol": symbol}
                     for book, symbol in keys]  # fmt: skip
        self._changing = {position_key(position) for position in positions[::2]}
        self._partitions = partitions
        self._of_partition: dict[int, list[Event]] = defaultdict(list)
        for position in positions:
            self._of_partition[self._partition(position)].append(position)
        self._lives: list[list[Event]] = []  # the versions of each trade, the last one last
        self._rushed: deque[list[Event]] = deque(maxlen=_RUSHED)
        self._overtaken: list[Event] = []

    def instead(self, new: Event, due: str, *, is_rekeyed: bool) -> Event:
        """Note a NEW, and give what is sent now: mostly it.

        Args:
            new: Book, symbol and terms of it.
            due: When it is sent.
            is_rekeyed: Whether it goes another way than its changes, which may overtake it there.
        """
        if position_key(new) not in self._changing:
            return new
        if self._draw.random() < self._orphans:
            return new | self._draw.choice(_ORPHANED)
        life = [new]
        if len(self._lives) < _REMEMBERED:
            self._lives.append(life)
        elif self._draw.random() < _REPLACES:
            self._lives[self._draw.randrange(_REMEMBERED)] = life
        else:
            return new
        if is_rekeyed:
            self._rushed.append(life)
        return self._unless_overtaken(life, due)

    def overtaken(self) -> Event | None:
        """Give an event that others have overtaken, if it comes now."""
        if self._draw.random() * _LATE >= len(self._overtaken):
            return None
        return self._overtaken.pop(self._draw.randrange(len(self._overtaken)))

    def next_event(self, due: str) -> Event | None:
        """Make an event that changes a trade, or means to; nothing while there is no trade.

        Args:
            due: When it is sent.
        """
        if not self._lives:
            return None
        is_rushed = self._rushed and self._draw.random() < _RUSH
        life = self._draw.choice(self._rushed if is_rushed else self._lives)
        kinds = _KINDS_AFTER_CANCEL if life[-1].get("action") == "CANCEL" else _KINDS
        (kind,) = self._draw.choices(list(kinds), list(kinds.values()))
        return self._without_effect(life, kind) or self._next_version(life, kind, due)

    def _without_effect(self, life: list[Event], kind: str) -> Event | None:
        """Give an event that is sent again, or has to be refused."""
        last = life[-1]
        match kind:
            case "again":
                return last
            case "stale":
                return life[max(0, len(life) - 2)]
            case "conflict":
                return self._draw.choice(life) | terms(self._draw)
            case "after":
                return last | _following(life)
            case "moved" if others := self._neighbours(last):
                without_book = {name: value for name, value in last.items() if name != "book"}
                return without_book | self._draw.choice(others) | _following(life)
        return None

    def _next_version(self, life: list[Event], kind: str, due: str) -> Event:
        event = life[-1] | _following(life)
        if kind == "cancel":
            event["action"] = "CANCEL"
        else:
            event |= terms(self._draw)
            if self._draw.random() < _MOVED_IN_TIME:
                event["timestamp"] = due
        life.append(event)
        if kind == "unnumbered":
            return {name: value for name, value in event.items() if name != "version"}
        return event if kind == "cancel" else self._unless_overtaken(life, due)

    def _unless_overtaken(self, life: list[Event], due: str) -> Event:
        """Give the last version of a trade, or else put it off and give the next one."""
        if self._draw.random() >= self._early:
            return life[-1]
        self._overtaken.append(life[-1])
        self._rushed.append(life)
        return self._next_version(life, self._draw.choice(("amend", "amend", "cancel")), due)

    def _neighbours(self, event: Event) -> list[Event]:
        """Give the other positions of its partition: one of another does not know its trade yet."""
        in_partition = self._of_partition[self._partition(event)]
        return [other for other in in_partition if position_key(other) != position_key(event)]

    def _partition(self, position: Event) -> int:
        return partition_of(position_key(position).encode(), self._partitions)


def _following(life: list[Event]) -> Event:
    return {"action": "AMEND", "version": len(life) + 1}
