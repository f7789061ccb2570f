"""The same trade sent twice: recognised by its id within a window of the log, without any clock."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final

from app.codec import MAX_COMMON_BYTES, decode_event
from app.errors import InvalidTradeError
from app.models import TradeEvent

_STAMPS: Final = {"published_at": None, "processed_at": None}
"""What a sender may write anew when it sends a trade again."""

_Noted = bytes | str | None


class DedupeWindow:
    """Trades of one partition that stand in the current block of its log or in the one before.

    Blocks are `block_size` offsets long and begin at its multiples, so that what the window holds
    at an offset is a function of the log alone, wherever the reading began and however the records
    came in batches; to forget costs nothing for a record. A trade is thus recognised for at least
    `block_size` offsets and for less than twice as many.

    Args:
        block_size: Offsets of a block; 0 for no window, which recognises nothing.

    Attributes:
        known: Values by trade id of the current block; a trade that is booked is noted in it. In
            the place of a large value stands the digest of its content, as text.
        known_before: Those of the block before, which no longer change.
        evictions: How many ids have left the window.
    """

    __slots__ = ("_next_block", "block_size", "evictions", "known", "known_before")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.evictions = 0
        self.known: dict[str, _Noted] = {} if block_size else _KeepsNothing()
        self.known_before: dict[str, _Noted] = {}
        self._next_block = 0

    def start_before(self, offset: int) -> int:
        """Give the offset at which to read again, so as to know the window at `offset`."""
        return (
            max(0, offset // self.block_size - 1) * self.block_size if self.block_size else offset
        )

    def runs(self, offsets: Sequence[int]) -> Iterator[range]:
        """Cut ascending offsets into runs of one block each, and move the window along with them.

        Yields:
            The indexes of a run; the window is at that run until the next is asked for.
        """
        start, count = 0, len(offsets)
        while start < count:
            if self.block_size and offsets[start] >= self._next_block:
                self._move_to(offsets[start])
            stop = count
            if self.block_size and offsets[-1] >= self._next_block:
                stop = bisect_left(offsets, self._next_block, lo=start)
            yield range(start, stop)
            start = stop

    def _move_to(self, offset: int) -> None:
        block = offset // self.block_size
        is_next = self._next_block == block * self.block_size
        self.evictions += len(self.known_before) + (0 if is_next else len(self.known))
        self.known_before = self.known if is_next else {}
        self.known = {}
        self._next_block = (block + 1) * self.block_size

    def note(self, event: TradeEvent, value: bytes) -> None:
        """Remember a trade, and the body it was read from, if the current block has it not yet."""
        trade_id = str(event.trade_id)
        if trade_id not in self.known:
            self.known[trade_id] = value if len(value) <= MAX_COMMON_BYTES else _digest(event)

    def recognises(self, event: TradeEvent, value: bytes) -> bool:
        """Tell whether a trade is in the window; if so, it is noted in the current block, too.

        Raises:
            InvalidTradeError: Its id is, with another content: two systems disagree about it.
        """
        trade_id = str(event.trade_id)
        known_as = self.known.get(trade_id) or self.known_before.get(trade_id)
        if known_as is None:
            return False
        self.note(event, value)
        if known_as == value:
            return True
        if isinstance(known_as, bytes):
            known_as = _digest(decode_event(known_as)[0])
        if known_as != _digest(event):
            raise InvalidTradeError(
                "version-conflict", "another trade with this trade_id and version is booked"
            )
        return True


class _KeepsNothing(dict[str, _Noted]):
    """Stands in for a window that is not wanted."""

    def __setitem__(self, key: str, value: _Noted) -> None:
        """Forget it at once."""


def _digest(event: TradeEvent) -> str:
    """Give the digest of what a trade says, whatever its body looks like."""
    content = {name: getattr(event, name) for name in event.__struct_fields__} | _STAMPS
    return blake2b(repr(content).encode(), digest_size=16).hexdigest()
