"""What the ledger is asked before a batch is judged."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from app.codec import PlainEvent, changed_ids, read_plain, trade_ids
from app.errors import TransportError
from app.ledger_codec import read_fills
from app.ledger_processor import LedgerProcessor
from app.ports import Ledger, RecordBatch, StoredTrade
from app.takeover import OpenPartition

FIND_TIMEOUT_S: Final = 5.0
"""Longest wait for what the ledger has of a batch; a stop and a rebalance wait for it as well."""


class Inquiry:
    """Asks the ledger about the trades that come next, as little as it can.

    An event that changes a trade, or that another one waits for, has to know the trade: of that the
    ledger is always asked. A trade that begins is new as a rule. That is believed, since the ledger
    lets no trade begin twice: a write that would, or that refuses one as new which is not, is
    refused as a whole, and its records come again.
    From then on the ledger is asked about every trade of that partition, until for a while it has
    had none of them. The same holds after a partition was opened, whose last trades nobody here
    remembers.

    Args:
        ledger: The ledger.
        recent: Offsets of a partition for which a doubt lasts.
        until_booked: Waits until the ledger has all that is processed of a partition; raises
            `TransportError`.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        recent: int,
        until_booked: Callable[[OpenPartition], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._recent = recent
        self._until_booked = until_booked
        self._doubtful: dict[int, int] = {}

    def doubt(self, partition: int, offset: int) -> None:
        """Ask about every trade before an offset of a partition, and for a while after it."""
        self._doubtful[partition] = max(self._doubtful.get(partition, 0), offset + self._recent)

    async def read(self, partition: OpenPartition, batch: RecordBatch) -> list[PlainEvent | None]:
        """Read a batch, and tell the processor of its partition what the ledger has of it.

        Returns:
            As of `read_plain`; of what the ledger has, none is plain.

        Raises:
            TransportError: The ledger does not answer; nothing has changed.
        """
        events = read_plain(batch.values, batch.headers)
        processor = partition.processor
        if not batch.values or not isinstance(processor, LedgerProcessor):
            return events
        ids = trade_ids(batch.values, events)
        if keys := processor.missing_histories(batch, events, ids):
            await self._until_booked(partition)
            for key in keys:
                lines = await self._ledger.history(partition.number, key)
                processor.load_history(key, None if lines is None else read_fills(lines))
        is_in_doubt = batch.offsets[0] < self._doubtful.get(partition.number, 0)
        sought = [*changed_ids(batch.values, events), *processor.awaited(ids)]
        if not is_in_doubt:
            ids = sought
        found: Mapping[str, StoredTrade] = {}
        if ids:
            try:
                async with asyncio.timeout(FIND_TIMEOUT_S):
                    found = await self._ledger.find(ids)
            except TimeoutError as exc:
                raise TransportError("the ledger does not say what it has") from exc
        if is_in_doubt and found.keys() - sought:  # a trade that begins, and has begun before
            self.doubt(partition.number, batch.next_offset)
        return processor.recall(found, events)
