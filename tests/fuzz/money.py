"""Random trades as JSON, held to an independent model of average cost in fractions."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Final

from app.memory_io import MemoryRecord
from app.models import Position
from app.ports import RecordBatch
from app.position_codec import encode_position
from app.services import TradeProcessor
from tests.fuzz.corpus import body

_NOW_MS: Final = 1_790_000_000_000
_UNIT: Final = 10**8
_FINEST: Final = 10**24
_LIMIT: Final = 10**12
_KEYS: Final = [(book, symbol) for book in ("", "EU", "US") for symbol in ("A", "B", "C")]
_BATCH_SIZES: Final = (1, 2, 7, 100, 500)
_SHOWN: Final = 5
_PROGRESS_EVERY: Final = 100_000


def rounded(exact: Fraction, unit: int) -> Fraction:
    """Round half to even to a fraction of one `unit`-th."""
    return Fraction(round(exact * unit), unit)


@dataclass
class AverageCost:
    """A position by the definition of average cost, in fractions; no code of the engine is in it.

    A partial close releases its share of the cost, rounded half to even to 10^-24; nothing else is
    rounded.
    """

    quantity: Fraction = Fraction(0)
    cost: Fraction = Fraction(0)
    realized: Fraction = Fraction(0)
    fees: Fraction = Fraction(0)
    mark: Fraction = Fraction(0)
    count: int = 0

    def fill(
        self, quantity: Fraction, price: Fraction, multiplier: Fraction, fee: Fraction
    ) -> None:
        """Close what is opposite at the average cost, open the rest at the price."""
        closed = Fraction(0)
        if self.quantity * quantity < 0:
            closed = min(abs(quantity), abs(self.quantity)) * (1 if quantity > 0 else -1)
            released = rounded(self.cost * closed / self.quantity, _FINEST)
            if closed == -self.quantity:
                released = -self.cost
            self.realized += -closed * price * multiplier + released
            self.cost += released
        self.cost += (quantity - closed) * price * multiplier
        self.quantity += quantity
        self.fees += fee
        self.mark = price
        self.count += 1

    def differs_from(self, position: Position) -> bool:
        """Compare to the last digit."""
        exact = [self.quantity, self.cost, self.realized, self.fees, self.mark, self.count]
        found = [
            Fraction(position.quantity_e8, _UNIT),
            Fraction(position.open_cost_e24, _FINEST),
            Fraction(position.realized_e24, _FINEST),
            Fraction(position.fees_e8, _UNIT),
            Fraction(position.mark_e8, _UNIT),
            position.trade_count,
        ]
        return exact != found


class _Market:
    """Writes random trades, and books each in its model as it does so."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._multipliers = dict.fromkeys(_KEYS, "1")
        self.models = {key: AverageCost() for key in _KEYS}

    def batch(self, first_offset: int, most: int) -> list[MemoryRecord]:
        """Write the next records."""
        count = min(most, self._rng.choice(_BATCH_SIZES))
        return [
            MemoryRecord(offset, _NOW_MS, None, self._trade(offset))
            for offset in range(first_offset, first_offset + count)
        ]

    def _trade(self, offset: int) -> bytes:
        rng = self._rng
        key = rng.choice(_KEYS)
        model = self.models[key]
        side = rng.choice(("BUY", "SELL"))
        price, price_literal = self._amount()
        quantity, quantity_literal = self._amount()
        if 0 < abs(model.quantity) < _LIMIT and rng.random() < 0.1:
            side = "SELL" if model.quantity > 0 else "BUY"
            quantity, quantity_literal = abs(model.quantity), _text(abs(model.quantity))
        rare: dict[str, str | None] = {}
        fee = Fraction(0)
        if rng.random() < 0.15:
            fee, fee_literal = self._amount()
            sign = rng.choice(("", "-"))
            fee = -fee if sign else fee
            literal = (
                f'"-{fee_literal[1:]}' if sign and fee_literal[0] == '"' else sign + fee_literal
            )
            rare["fees"] = f'[{{"amount":{literal}}}]'
        if not model.quantity and rng.random() < 0.3:
            self._multipliers[key] = rng.choice(("1", "50", "0.1", '"0.00000001"', "1e3"))
        if self._multipliers[key] != "1":
            rare["contract_multiplier"] = self._multipliers[key]
        multiplier = Fraction(self._multipliers[key].strip('"'))
        model.fill(quantity if side == "BUY" else -quantity, price, multiplier, fee)
        book, symbol = key
        return body(
            trade_id=f'"M{offset}"', symbol=f'"{symbol}"', book=f'"{book}"' if book else None,
            side=f'"{side}"', price=price_literal, quantity=quantity_literal,
            timestamp='"2026-01-02T03:04:05.001Z"', **rare,
        )  # fmt: skip

    def _amount(self) -> tuple[Fraction, str]:
        """Draw a positive amount; give what it is worth at 10^-8, and a JSON literal of it."""
        rng = self._rng
        kind = rng.randrange(8)
        if kind < 4:
            literal = rng.choice(('"1"', '"2"', '"2.5"', "3", "7", '"0.00000003"', "0.1"))
        elif kind == 4:
            decimals = rng.randrange(1, 9)
            literal = f'"{_digits(rng, 12)}.{rng.randrange(10**8):08}"'[: -9 + decimals] + '"'
        elif kind == 5:
            literal = _digits(rng, 12)
        elif kind == 6:
            literal = f"{_digits(rng, 11)}.{rng.randrange(10 ** rng.randrange(1, 30))}"
        else:  # right between two amounts
            literal = (
                f"{_digits(rng, 11)}.{rng.randrange(10**8):08}5e{rng.choice(('0', '-1', '1'))}"
            )
        worth = rounded(Fraction(literal.strip('"')), _UNIT)
        return (worth, literal) if worth > 0 else (Fraction(1), "1")


def _digits(rng: Random, most: int) -> str:
    return str(rng.randrange(10 ** rng.randrange(1, most + 1)))


def _text(amount: Fraction) -> str:
    whole, rest = divmod(int(amount * _UNIT), _UNIT)
    return f'"{whole}.{rest:08}"'


def differences(fills: int, *, seed: int) -> Iterator[tuple[int, list[str]]]:
    """Book random trades in batches, and one by one beside them.

    Yields:
        After each batch how many are booked, and the keys whose position differs from its model.
        After the last one also those whose records differ between the two ways, byte for byte.
    """
    market = _Market(seed)
    in_batches, one_by_one = TradeProcessor(), TradeProcessor()
    done = 0
    while done < fills:
        records = market.batch(done, fills - done)
        done += len(records)
        changed = in_batches.process_batch(RecordBatch.of(0, 1, records, done)).changed
        for record in records:
            one_by_one.process_batch(RecordBatch.of(0, 1, [record], record.offset + 1))
        models = {f"{b}|{s}" if b else s: model for (b, s), model in market.models.items()}
        yield done, [key for key in changed if models[key].differs_from(changed[key])]
    ways = [
        {key: encode_position(p, group="g", topic="t", partition=0) for key, p in way.items()}
        for way in (in_batches.positions, one_by_one.positions)
    ]
    yield done, [key for key in ways[0] if ways[0][key] != ways[1].get(key)]


def run_fills(fills: int, *, seed: int) -> int:
    """Book random trades and say how many positions differed from the model; 1 if any."""
    started_s = time.monotonic()
    print(f"seed {seed}, {fills:,} fills of {len(_KEYS)} positions", flush=True)
    count, told = 0, 0
    for done, keys in differences(fills, seed=seed):
        for key in keys[: max(0, _SHOWN - count)]:
            print(f"DIFFERENT: {key} at fill {done}; again: --money {done} --seed {seed}")
        count += len(keys)
        if done - told >= _PROGRESS_EVERY:
            told = done
            print(f"  {done:,} fills, {count} differences", flush=True)
    seconds = time.monotonic() - started_s
    print(f"{fills:,} fills in {seconds:.0f} s: {count} differences from the exact model")
    return 1 if count else 0
