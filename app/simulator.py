"""A seeded market: random-walk prices, several books, a long tail of symbols, poison if asked."""

import random
from bisect import bisect
from collections.abc import Callable
from typing import Final

import msgspec

from app.codec import MAX_VALUE_BYTES, encode_event
from app.models import TradeEvent, position_key

_LOTS: Final = ("1", "5", "10", "25", "50", "100", "100", "200", "250", "500", "1000")
_STEPS: Final = 7  # a price moves by -3 to 3 ticks
_TAIL_EXPONENT: Final = 1.1  # weights fall like Zipf's law: a few symbols trade most of the time


class SimulatedTrade(msgspec.Struct, frozen=True, gc=False):
    """One record to publish.

    Attributes:
        key: Position key of the trade, as bytes.
        value: Encoded event, or poison; `None` is a tombstone.
        event: The trade, or `None` for poison.
        poison_reason: Reason code that the poison must be dead-lettered with.
    """

    key: bytes
    value: bytes | None
    event: TradeEvent | None
    poison_reason: str | None = None


class TradeSimulator:
    """Makes an endless stream of trades that is the same for the same seed, but for ids and times.

    Args:
        run_id: Begins every trade id, so that ids are unique over runs.
        seed: Seed of everything random.
        books: Number of books, 1 or more.
        symbols: Number of symbols, 1 or more; each book trades all of them.
        poison: Share of records that are poison, 0.0 to 1.0.
    """

    def __init__(
        self, *, run_id: str, seed: int, books: int = 5, symbols: int = 200, poison: float = 0.0
    ) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a simulation, not a secret
        self._run_id = run_id
        self._books = [f"BOOK-{n:02d}" for n in range(1, books + 1)]
        self._symbols = [_symbol(n) for n in range(symbols)]
        self._keys = [
            [position_key(book, symbol).encode() for symbol in self._symbols]
            for book in self._books
        ]
        self._ticks = [self._random.randrange(500, 50_000) for _ in range(symbols)]  # cents
        weights = [1 / (rank + 1) ** _TAIL_EXPONENT for rank in range(symbols)]
        total = 0.0
        self._cumulative = [total := total + weight for weight in weights]
        self._poison = poison
        self._count = 0

    def next_trade(self, due: str) -> SimulatedTrade:
        """Make the next trade.

        Args:
            due: When it is due to be published, RFC 3339: its execution and its publish time.
        """
        draw = self._random.random  # one draw for each choice: the richer methods cost several
        self._count += 1
        index = bisect(self._cumulative, draw() * self._cumulative[-1])
        ticks = max(1, self._ticks[index] + int(draw() * _STEPS) - _STEPS // 2)
        self._ticks[index] = ticks
        book = int(draw() * len(self._books))
        event = TradeEvent(
            trade_id=f"{self._run_id}-{self._count:09d}",
            symbol=self._symbols[index],
            side="BUY" if draw() < 0.5 else "SELL",  # noqa: PLR2004 - a fair coin
            price=f"{ticks // 100}.{ticks % 100:02d}",
            quantity=_LOTS[int(draw() * len(_LOTS))],
            timestamp=due,
            book=self._books[book],
            published_at=due,
        )
        key = self._keys[book][index]
        if self._poison and draw() < self._poison:
            reason = _REASONS[int(draw() * len(_REASONS))]
            return SimulatedTrade(key, POISON[reason](event), None, reason)
        return SimulatedTrade(key, encode_event(event), event)


def _symbol(number: int) -> str:
    letters = ""
    number += 26 + 26 * 26  # three letters at least
    while number >= 0:
        letters = chr(ord("A") + number % 26) + letters
        number = number // 26 - 1
    return letters


def _changed(**fields: object) -> Callable[[TradeEvent], bytes]:
    def encode(event: TradeEvent) -> bytes:
        values = {name: getattr(event, name) for name in event.__struct_fields__}
        return encode_event(TradeEvent(**{**values, **fields}))

    return encode


POISON: Final[dict[str, Callable[[TradeEvent], bytes | None]]] = {
    "body-not-json": lambda event: encode_event(event)[:-7],
    "body-not-utf8": lambda event: encode_event(event).replace(b"BOOK", b"B\xff\xfeK"),
    "body-empty": lambda _: None,
    "body-too-large": lambda event: encode_event(event) + b" " * MAX_VALUE_BYTES,
    "body-duplicate-key": lambda event: encode_event(event)[:-1] + b',"price":"1"}',
    "symbol-missing": _changed(symbol=None),
    "price-wrong-type": _changed(price=True),
    "price-out-of-range": _changed(price=10**30),
    "quantity-not-positive": _changed(quantity="0"),
    "side-unknown": _changed(side="HOLD"),
}
"""Ten ways to spoil a trade, by the reason code that each must be dead-lettered with."""

_REASONS: Final = tuple(POISON)
