"""The pipeline a careful Python developer writes first: `json`, `Decimal`, `datetime`, a dict.

It books what ours books and refuses what ours refuses of the benchmark's trades, and its positions
are the same to the last digit, by the rules of docs/pnl.md. It is no slower than it has to be:
`Decimal` and `json` are C underneath.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Any

from benchmarks.peers.contestant import positions_digest

# More digits than any sum of the benchmark has, so that only the share below is ever rounded.
_EXACT = Context(prec=100, rounding=ROUND_HALF_EVEN)
_SHARE_STEP = Decimal(1).scaleb(-24)
_LIMIT = Decimal(10) ** 12
_MAX_BYTES = 64 * 1024
_REFUSED = (KeyError, TypeError, ValueError, ArithmeticError, RecursionError)


@dataclass(slots=True)
class NaivePosition:
    """Quantity, total open cost and realised PnL of one book and symbol."""

    quantity: Decimal = Decimal(0)
    open_cost: Decimal = Decimal(0)
    realized: Decimal = Decimal(0)


class NaivePipeline:
    """Validates trades, keeps positions by average cost, counts what was booked and refused."""

    def __init__(self) -> None:
        self.positions: dict[str, NaivePosition] = {}
        self.booked = 0
        self.refused = 0

    def handle(self, value: bytes | None) -> None:
        """Take one record value as it came."""
        try:
            self._handle_trade(decode(value))
        except _REFUSED:
            self.refused += 1

    def handle_trade(self, trade: dict[str, Any]) -> None:
        """Take one trade that the framework has decoded from JSON."""
        try:
            self._handle_trade(trade)
        except _REFUSED:
            self.refused += 1

    def _handle_trade(self, trade: dict[str, Any]) -> None:
        if not trade["trade_id"] or not trade["symbol"]:
            raise ValueError("a required field is empty")
        side = trade["side"]
        if side not in {"BUY", "SELL"}:
            raise ValueError("side must be BUY or SELL")
        price = _positive(trade["price"])
        quantity = _positive(trade["quantity"])
        datetime.fromisoformat(trade["timestamp"])
        self.book(
            f"{trade['book']}|{trade['symbol']}" if trade.get("book") else trade["symbol"],
            quantity if side == "BUY" else -quantity,
            price,
        )

    def book(self, key: str, signed: Decimal, price: Decimal) -> None:
        """Fold one checked fill into its position."""
        position = self.positions.get(key)
        if position is None:
            position = self.positions[key] = NaivePosition()
        with localcontext(_EXACT):
            held = position.quantity
            quantity = held + signed
            value = signed * price
            if not held or (held > 0) == (signed > 0):
                position.open_cost += value
            elif quantity and (quantity > 0) == (held > 0):
                share = position.open_cost * abs(signed) / abs(held)
                released = share.quantize(_SHARE_STEP)
                position.open_cost -= released
                position.realized -= value + released
            else:
                opened = quantity * price
                position.realized -= value - opened + position.open_cost
                position.open_cost = opened
            position.quantity = quantity
        self.booked += 1

    def outcome(self) -> dict[str, object]:
        """Give the part of the result that only a pipeline has."""
        return {
            "booked": self.booked,
            "refused": self.refused,
            "positions": self.positions_hash(),
        }

    def positions_hash(self) -> str:
        """Give the digest of all positions; that of ours is the same over the same trades."""
        return positions_digest(
            (key, _plain(held.quantity), _plain(held.open_cost), _plain(held.realized))
            for key, held in self.positions.items()
        )


def decode(value: bytes | None) -> dict[str, Any]:
    """Read one record value; raises a `ValueError` where it is no JSON object of one meaning."""
    if not value or len(value) > _MAX_BYTES:
        raise ValueError("the record is empty or too large")
    trade = _decoder.decode(value.decode())
    if not isinstance(trade, dict):
        raise TypeError("a trade is an object")
    return trade


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands twice")
    return fields


# Made once: `json.loads` with options makes a decoder for every call.
_decoder = json.JSONDecoder(parse_float=Decimal, object_pairs_hook=_without_repeats)


def _positive(amount: object) -> Decimal:
    if isinstance(amount, bool) or not isinstance(amount, str | int | Decimal):
        raise TypeError("an amount is decimal text or a number")
    number = Decimal(amount)
    if not 0 < number < _LIMIT:  # not-a-number raises here
        raise ValueError("an amount must be > 0 and below its limit")
    return number


def _plain(amount: Decimal) -> str:
    if not amount:
        return "0"
    return f"{_EXACT.normalize(amount):f}"
