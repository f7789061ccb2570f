"""Trades in a ledger, booked as a consumer books them."""

import json
from collections.abc import Sequence
from typing import Any

from app.codec import read_plain, trade_ids
from app.ledger_processor import LedgerProcessor
from app.memory_io import MemoryRecord
from app.ports import Ledger, LedgerWrite, RecordBatch
from app.timestamps import NS_PER_MS

NOW_MS = 1_790_000_000_000


def trade(trade_id: str, side: str, quantity: str, price: str, **more: Any) -> dict[str, Any]:
    """Give a trade event as an object."""
    event = {
        "trade_id": trade_id,
        "symbol": "AAPL",
        "side": side,
        "price": price,
        "quantity": quantity,
        "timestamp": "2026-03-02T10:00:00Z",
    }
    return event | more


async def book(
    ledger: Ledger, events: Sequence[dict[str, Any] | bytes], *, partition: int = 0, first: int = 0
) -> None:
    """Book events of one partition, the first of which stands at an offset."""
    values = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]
    records = [MemoryRecord(first + i, NOW_MS, None, value, ()) for i, value in enumerate(values)]
    expected = await ledger.claim(partition)
    processor = LedgerProcessor(await ledger.positions(partition))
    next_offset = first + len(records)
    batch = RecordBatch.of(partition, 0, records, next_offset)
    plain = read_plain(batch.values, batch.headers)
    plain = processor.recall(await ledger.find(trade_ids(batch.values, plain)), plain)
    result = processor.process_batch(batch, events=plain, now_ns=NOW_MS * NS_PER_MS)
    assert result.rows is not None
    for refusal in result.refusals:
        result.rows.add_refusal(batch.offsets[refusal.index], refusal)
    rows = result.rows
    lost = await ledger.write(
        {
            partition: LedgerWrite(
                expected=expected,
                next_offset=next_offset,
                plain_trades=rows.plain_trades,
                trades=rows.trades,
                dead_letters=rows.dead_letters,
                positions=list(result.changed.values()),
                parked=list(rows.parked.values()),
            )
        }
    )
    assert not lost
