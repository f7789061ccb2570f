"""The pipeline of a plain trade in one loop, by hand: what the layers are measured against.

It does for the common trade what `TradeProcessor.process_batch` does, and nothing for any other: no
dead letters, no re-keying, no replay. Nobody should want to change it; it is not part of the app.
"""

from collections.abc import Sequence

import msgspec

from app.codec import FullEvent
from app.models import Position
from app.money import ONE_E8, parse_amount
from app.pnl.holding import Holding
from app.timestamps import parse_timestamp

_decode = msgspec.json.Decoder(FullEvent).decode
_WINDOW = 5_000


class FusedPipeline:
    """Positions by book and symbol, and everything that a loop over bodies needs at hand."""

    def __init__(self) -> None:
        self._books: dict[str, dict[str, Holding]] = {}
        self._units: dict[object, int] = {}
        self._prices: dict[object, int] = {}
        self._heads: dict[str, int] = {}
        self._tails: dict[str, int] = {}
        self._known: dict[str, bytes] = {}
        self._known_before: dict[str, bytes] = {}

    def process(self, values: Sequence[bytes], offsets: Sequence[int], horizon_ns: int) -> int:
        """Book plain trades; give how many holdings were touched."""
        books, units, prices = self._books, self._units, self._prices
        heads, tails = self._heads, self._tails
        known, known_before = self._window()
        touched = []
        first = offsets[0]
        _check(b"".join(values), len(values))
        for event, value, offset in zip(map(_decode, values), values, offsets, strict=False):
            stamp = event.timestamp
            try:
                holding = books[event.book][event.symbol]
                quantity = units[event.quantity]
                value_e24 = prices[event.price]
                time_ns = heads[stamp[:23]] + tails[stamp[23:]]
            except KeyError:
                self._learn(event)
                holding = books[event.book][event.symbol]
                quantity, value_e24 = units[event.quantity], prices[event.price]
                time_ns = heads[stamp[:23]] + tails[stamp[23:]]
            if event.side == "SELL":
                quantity = -quantity
            applied = holding.source_offset
            assert applied < offset
            assert time_ns <= horizon_ns
            assert event.trade_id not in known
            assert event.trade_id not in known_before
            known[event.trade_id] = value
            if applied < first:
                touched.append(holding)
            held = holding.quantity
            holding.quantity = left = held + quantity
            if held * quantity >= 0:
                holding.open_cost_e24 += quantity * value_e24
            elif held * left > 0:
                cost = holding.open_cost_e24
                size = abs(held)
                released, rest = divmod(cost * abs(quantity), size)
                rest *= 2
                if rest > size or (rest == size and released & 1):
                    released += 1
                holding.open_cost_e24 = cost - released
                holding.realized_e24 -= quantity * value_e24 + released
            else:
                opened = left * value_e24
                holding.realized_e24 -= quantity * value_e24 - opened + holding.open_cost_e24
                holding.open_cost_e24 = opened
            holding.value_e24 = value_e24
            holding.mark_ns = time_ns
            holding.trade_count += 1
            holding.source_offset = offset
        return len(touched)

    def _window(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        if len(self._known) >= _WINDOW:
            self._known, self._known_before = {}, self._known
        return self._known, self._known_before

    def _learn(self, event: FullEvent) -> None:
        of_book = self._books.setdefault(event.book, {})
        if event.symbol not in of_book:
            of_book[event.symbol] = Holding(Position(event.book, event.symbol, "USD"))
        self._units[event.quantity] = parse_amount(event.quantity)[0] // ONE_E8
        self._prices[event.price] = parse_amount(event.price)[0] * ONE_E8 * ONE_E8
        head_ns = parse_timestamp(f"{event.timestamp[:23]}Z")[0]
        self._heads[event.timestamp[:23]] = head_ns
        self._tails[event.timestamp[23:]] = parse_timestamp(event.timestamp)[0] - head_ns


def _check(body: bytes, count: int) -> None:
    """See that the bodies of a batch are plain; of a repeated key only the sum would tell."""
    assert body.count(b",") == 7 * count
    assert body.isascii()
    assert b"\\" not in body
    assert b"\x7f" not in body
