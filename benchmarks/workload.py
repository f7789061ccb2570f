"""The trades of a benchmark, made fast from templates, and the positions they must come to.

The oracle shares nothing with the pipeline: a dictionary, whole numbers and nine lines of rule.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from app.models import TradeEvent
from app.simulator import POISON

STEP_NS: Final = 10_000
"""Between the times of two trades of a backlog."""
BROKEN: Final = ("body-not-json", "body-not-utf8")
AGAINST_A_RULE: Final = ("side-unknown", "quantity-not-positive")
_LOTS: Final = (1, 5, 10, 25, 50, 100, 100, 200, 250, 500, 1000)
_SMALL: Final = 300  # a value below this many bytes is not padded
_FILLER: Final = ',"note":"%s"}'
_POOL: Final = 40_000


class Trade(NamedTuple):
    """One trade of the pool: everything but its id and its times."""

    key: bytes
    template: bytes
    signed_quantity: int
    cents: int


@dataclass
class Expected:
    """What a backlog must come to.

    Attributes:
        positions: Hash as the contract with the contestants defines it.
        refused: Records to be refused, by reason.
        lines: Its positions, one line a key.
    """

    booked: int
    positions: str
    refused: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Workload:
    """A stream of trades that is the same for the same seed, but for ids and times.

    Attributes:
        books: Number of books, each of which trades all symbols.
        symbols: Number of symbols.
        size: Bytes of a value, about; padded with one field that the pipeline does not know, as
            senders may add. 0 leaves the common fields alone, some 200 bytes.
        poison: Share of records that are to be refused: half no JSON, half against a rule.
    """

    books: int = 10
    symbols: int = 200
    size: int = 0
    poison: float = 0.0
    seed: int = 1

    def pool(self) -> list[Trade]:
        """Make the trades that are repeated; every key is as frequent as every other."""
        draw = random.Random(self.seed)
        prices = [draw.randrange(500, 50_000) for _ in range(self.symbols)]
        places = [(book, symbol) for book in range(self.books) for symbol in range(self.symbols)]
        trades: list[Trade] = []
        while len(trades) < max(_POOL, len(places)):
            draw.shuffle(places)
            for book, symbol in places:
                cents = prices[symbol] = max(1, prices[symbol] + draw.randrange(-3, 4))
                quantity = draw.choice(_LOTS) * draw.choice((1, -1))
                trades.append(self._trade(f"BOOK-{book:02d}", f"S{symbol:03d}", quantity, cents))
        return trades

    def _trade(self, book: str, symbol: str, quantity: int, cents: int) -> Trade:
        side = "BUY" if quantity > 0 else "SELL"
        body = (
            f'{{"trade_id":"T19a2b3c4d5-abc123-%09d","symbol":"{symbol}","side":"{side}",'
            f'"price":"{cents // 100}.{cents % 100:02d}","quantity":"{abs(quantity)}",'
            f'"timestamp":"%b","book":"{book}","published_at":"%b"}}'
        )
        if self.size > _SMALL:
            body = body[:-1] + _FILLER % ("x" * (self.size - 250))
        return Trade(f"{book}|{symbol}".encode(), body.encode(), quantity, cents)

    def records(self, count: int) -> Iterator[tuple[Trade, bytes | None, str | None]]:
        """Give each trade with its value, and why it is to be refused if it is; times end now."""
        pool = self.pool()
        draw = random.Random(self.seed).random
        reasons = (*BROKEN, *AGAINST_A_RULE)
        stamps = Stamps()
        start_ns = time.time_ns() - count * STEP_NS
        for number in range(count):
            trade = pool[number % len(pool)]
            stamp = stamps.at(start_ns + number * STEP_NS)
            if self.poison and draw() < self.poison:
                reason = reasons[int(draw() * len(reasons))]
                yield trade, _spoilt(reason, trade, number, stamp), reason
            else:
                yield trade, trade.template % (number, stamp, stamp), None


class Stamps:
    """Writes times as RFC 3339 with microseconds; the calendar is asked once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def at(self, ns: int) -> bytes:
        """Give the text of a time in UTC nanoseconds."""
        second, rest = divmod(ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second)).encode()
        return b"%b%06dZ" % (self._text, rest // 1000)


def _spoilt(reason: str, trade: Trade, number: int, stamp: bytes) -> bytes | None:
    book, symbol = trade.key.decode().split("|")
    event = TradeEvent(
        trade_id=f"T19a2b3c4d5-abc123-{number:09d}",
        symbol=symbol,
        side="BUY",
        price=f"{trade.cents / 100:.2f}",
        quantity="1",
        timestamp=stamp.decode(),
        book=book,
        published_at=stamp.decode(),
    )
    return POISON[reason](event)


class Oracle:
    """Positions by average cost, in cents and whole units; only shares of a cost are finer."""

    def __init__(self) -> None:
        self._held: dict[bytes, tuple[int, int, int]] = {}
        self._booked = 0

    def book(self, key: bytes, quantity: int, cents: int) -> None:
        """Fold one fill in; money is at 10^-24, of which a cent has 10^22."""
        held, cost, realized = self._held.get(key, (0, 0, 0))
        value = quantity * cents * 10**22
        closing = min(abs(held), abs(quantity)) if held * quantity < 0 else 0
        if not closing:
            cost += value
        else:
            released = _share(cost, closing, abs(held))
            proceeds = closing * cents * 10**22 * (1 if held > 0 else -1)
            realized += proceeds - released
            cost += value + proceeds - released
        self._held[key] = (held + quantity, cost, realized)
        self._booked += 1

    def expected(self, refused: Counter[str] | None = None) -> Expected:
        """Give what a consumer of all of these must have come to."""
        lines = [
            f"{key} {plain(held, 0)} {plain(cost, 24)} {plain(realized, 24)}\n"
            for key, (held, cost, realized) in sorted(
                (key.decode(), position) for key, position in self._held.items()
            )
        ]
        return Expected(self._booked, hash_of(lines), refused or Counter(), lines)


def expected_of(trades: Iterable[Trade]) -> Expected:
    """Give what these trades come to when all of them are booked."""
    oracle = Oracle()
    for key, _, quantity, cents in trades:
        oracle.book(key, quantity, cents)
    return oracle.expected()


def _share(cost: int, part: int, whole: int) -> int:
    """Give cost x part / whole, half to even."""
    share, rest = divmod(cost * part, whole)
    return share + (2 * rest > whole or (2 * rest == whole and share % 2 == 1))


def plain(amount: int, scale: int) -> str:
    """Write an amount at 10^-scale with as many digits as it needs, and no exponent."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), 10**scale)
    digits = f"{fraction:0{scale}d}".rstrip("0") if fraction else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def hash_of(lines: Iterable[str]) -> str:
    """Hash the lines of all positions, in the order of their keys."""
    return hashlib.sha256("".join(sorted(lines, key=_key)).encode()).hexdigest()


def _key(line: str) -> str:
    return line.partition(" ")[0]
