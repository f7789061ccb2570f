"""Trades for tests of the copy, and what they must come to, by a model that shares no code."""

import json
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from app.copy_codec import CopyBlock
from app.memory_io import MemoryBroker
from app.ports import RecordBatch
from tests.copy_world import TOPIC

BAD: Final = (b"", None, b"{", b"\xff", b'{"trade_id":"X"}', b"[1]")


def event(trade_id: str, **changes: Any) -> bytes:
    """Give a trade event."""
    fields: dict[str, Any] = {
        "trade_id": trade_id,
        "symbol": "AAPL",
        "side": "BUY",
        "price": "189.42",
        "quantity": "100",
        "timestamp": "2026-03-02T14:30:00.123456Z",
        "book": "EQ",
    }
    return json.dumps({k: v for k, v in (fields | changes).items() if v is not None}).encode()


def some_events(count: int, *, seed: int) -> Iterator[bytes | None]:
    """Give good trades with odd amounts, some of them twice, and some that are no trades."""
    draw = random.Random(seed)
    sent: list[bytes] = []
    for number in range(count):
        fate = draw.random()
        if fate < 0.03:
            yield draw.choice(BAD)
        elif fate < 0.08 and sent:
            yield draw.choice(sent)
        else:
            sent.append(
                event(
                    f"T-{seed}-{number}",
                    symbol=draw.choice(["AAPL", "MSFT", "日本", "O'X\\Y"]),
                    book=draw.choice(["EQ", "FX", None]),
                    side=draw.choice(["BUY", "SELL"]),
                    price=f"{draw.randrange(1, 10**12)}.{draw.randrange(10**8):08d}",
                    quantity=str(draw.choice([1, "0.00000001", "999999999999.99999999", 250])),
                    timestamp=f"2026-03-02T14:{draw.randrange(60):02d}:00.{draw.randrange(10**9):09d}Z",
                )
            )
            yield sent[-1]


def block_of(broker: MemoryBroker, partition: int, start: int, end: int) -> CopyBlock:
    """Make a block of a range of a partition in memory."""
    block = CopyBlock(partition, start)
    records = broker.log(TOPIC, partition).slice(start, end)
    if records:
        block.add(RecordBatch.of(partition, 0, records, end), 0, len(records), end)
    return block


def model(values: list[bytes | None]) -> dict[int, dict[str, Any]]:
    """Give the amounts of the rows by offset, from plain JSON and exact decimals."""
    rows = {}
    for offset, value in enumerate(values):
        try:
            fields = json.loads(value or b"", parse_float=Decimal)
            price, quantity = Decimal(str(fields["price"])), Decimal(str(fields["quantity"]))
        except (ValueError, KeyError, TypeError):
            continue
        rows[offset] = fields | {"price": price, "quantity": quantity}
    return rows
