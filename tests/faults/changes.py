"""Events that change trades which were sent before, as their senders mean them and as they err."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from tests.faults.oracle import partition_of

_REMEMBERED: Final = 200
"""Trades that may be changed; a few live long among them, most are soon replaced."""
_REPLACES: Final = 0.1
"""Chance of a trade to take the place of one that is remembered."""
_MOVED_IN_TIME: Final = 0.25
"""Share of the AMENDs that state another execution time, which changes nothing."""
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
    """

    def __init__(
        self, draw: random.Random, keys: Sequence[tuple[str, str]], *, partitions: int
    ) -> None:
        self._draw = draw
        positions = [{"book": book, "symbol": symbol} if book else {"symbol": symbol}
                     for book, symbol in keys]  # fmt: skip
        self._changing = {position_key(position) for position in positions[::2]}
        self._partitions = partitions
        self._of_partition: dict[int, list[Event]] = defaultdict(list)
        for position in positions:
            self._of_partition[self._partition(position)].append(position)
        self._lives: list[list[Event]] = []  # the versions of each trade, the last one last

    def remember(self, event: Event) -> None:
        """Note a NEW that stands, or will, where its changes will stand, and before them."""
        if position_key(event) not in self._changing:
            return
        if len(self._lives) < _REMEMBERED:
            self._lives.append([event])
        elif self._draw.random() < _REPLACES:
            self._lives[self._draw.randrange(_REMEMBERED)] = [event]

    def next_event(self, due: str) -> Event | None:
        """Make an event that changes a trade, or means to; nothing while there is no trade.

        Args:
            due: When it is sent.
        """
        if not self._lives:
            return None
        life = self._draw.choice(self._lives)
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
        return event

    def _neighbours(self, event: Event) -> list[Event]:
        """Give the other positions of its partition: one of another does not know its trade yet."""
        in_partition = self._of_partition[self._partition(event)]
        return [other for other in in_partition if position_key(other) != position_key(event)]

    def _partition(self, position: Event) -> int:
        return partition_of(position_key(position).encode(), self._partitions)


def _following(life: list[Event]) -> Event:
    return {"action": "AMEND", "version": len(life) + 1}
