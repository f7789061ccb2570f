"""What the ledger is asked before a batch is judged."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from app.codec import PlainEvent, changed_ids, read_plain, trade_ids
from app.errors import TransportError
from app.ledger_codec import read_fills
from app.ledger_processor import LedgerProcessor
from app.ports import Ledger, RecordBatch, StoredTrade
from app.takeover import OpenPartition

_FIND_TIMEOUT_S: Final = 5.0
_HISTORY_TIMEOUT_S: Final = 30.0
"""A position may have hundreds of thousands of fills."""
_LOOK_S: Final = 0.5
"""How often somebody who waits for an answer looks whether it is time to go."""

T = TypeVar("T")


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
        has_to_finish: Tells whether a stop or a rebalance waits for the loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        recent: int,
        until_booked: Callable[[OpenPartition], Awaitable[None]],
        has_to_finish: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._recent = recent
        self._until_booked = until_booked
        self._has_to_finish = has_to_finish
        self._doubtful: dict[int, int] = {}

    def doubt(self, partition: int, offset: int) -> None:
        """Ask about every trade before an offset of a partition, and for a while after it."""
        self._doubtful[partition] = max(self._doubtful.get(partition, 0), offset + self._recent)

    async def read(self, partition: OpenPartition, batch: RecordBatch) -> list[PlainEvent | None]:
        """Read a batch, and tell the processor of its partition what the ledger has of it.

        Returns:
            As of `read_plain`; of what the ledger has, none is plain.

        Raises:
            TransportError: The ledger is away, or has not answered when it is time to go; nothing
                has changed.
            OffsetGapError: The past of a position in the ledger makes no sense; likewise.
        """
        events = read_plain(batch.values, batch.headers)
        processor = partition.processor
        if not batch.values or not isinstance(processor, LedgerProcessor):
            return events
        is_in_doubt = batch.offsets[0] < self._doubtful.get(partition.number, 0)
        # Of trades that all begin, and that nothing waits for, no id has to be looked at.
        ids = trade_ids(batch.values, events) if is_in_doubt or processor.has_parked else []
        if keys := processor.missing_histories(batch, events, ids):
            await self._until_booked(partition)
            for key in keys:
                lines = await self._answer(
                    self._ledger.history(partition.number, key), _HISTORY_TIMEOUT_S
                )
                processor.load_history(key, None if lines is None else read_fills(lines))
        sought = [*changed_ids(batch.values, events), *processor.awaited(ids)]
        if not is_in_doubt:
            ids = sought
        found: Mapping[str, StoredTrade] = {}
        if ids:
            found = await self._answer(self._ledger.find(ids), _FIND_TIMEOUT_S)
        if is_in_doubt and found.keys() - sought:  # a trade that begins, and has begun before
            self.doubt(partition.number, batch.next_offset)
        return processor.recall(found, events)

    async def _answer(self, asked: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Await an answer within a bound, or until it is time to go."""
        asking = asyncio.ensure_future(asked)
        try:
            async with asyncio.timeout(timeout_s):
                while not asking.done():
                    if self._has_to_finish():
                        raise TransportError("the ledger has not answered before a stop")
                    await asyncio.wait([asking], timeout=_LOOK_S)
        except TimeoutError as exc:
            raise TransportError("the ledger has not answered in time") from exc
        finally:
            asking.cancel()  # nothing to one that has ended
            await asyncio.gather(asking, return_exceptions=True)  # an error of it is told once
        return asking.result()
