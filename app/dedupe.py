"""The same trade sent twice: recognised by its id within a window of the log, without any clock."""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence

from app.codec import MAX_COMMON_BYTES, decode_event
from app.content import content_hash
from app.errors import InvalidTradeError
from app.models import Action, TradeEvent, position_key
from app.ports import StoredTrade
from app.timestamps import parse_timestamp
from app.verdicts import KnownTrade, TradeState


class ContentHash(bytes):
    """The hash of what a trade says, told by its type from the bytes of a body."""


_Noted = bytes | ContentHash | KnownTrade | None


class Identity:
    """Trades that are recognised when they come again; what they are compared with.

    Args:
        default_currency: Currency of a trade that names none.

    Attributes:
        known: What is known of a trade by its id; a trade that is booked is noted in it. It is the
            value it was read from, or its hash or state in the place of that.
        known_before: More of the same, which does not change.
        evictions: How many ids were forgotten although nothing else knows them.
    """

    __slots__ = ("_default_currency", "evictions", "known", "known_before")

    def __init__(self, default_currency: str) -> None:
        self._default_currency = default_currency
        self.known: dict[str, _Noted] = {}
        self.known_before: dict[str, _Noted] = {}
        self.evictions = 0

    def start_before(self, offset: int) -> int:
        """Give the offset at which to read again, so as to know at `offset` what was known."""
        return offset

    def runs(self, offsets: Sequence[int]) -> Iterator[range]:
        """Cut ascending offsets into runs of which the same is known; be at each when it comes."""
        yield range(len(offsets))

    def settle(self) -> None:
        """Note that what was on its way to where it is stored has arrived."""

    def note(self, event: TradeEvent, value: bytes) -> None:
        """Remember a trade, and the body it was read from, unless something is known of it."""
        trade_id = str(event.trade_id)
        if trade_id not in self.known:
            is_small = len(value) <= MAX_COMMON_BYTES
            self.known[trade_id] = value if is_small else self._content(event)

    def _content(self, event: TradeEvent) -> ContentHash:
        return ContentHash(content_hash(event, default_currency=self._default_currency))


class LedgerIdentity(Identity):
    """The trades of one partition that were booked of late, and what the ledger has of others.

    What is on its way to the ledger is known here until it has arrived, and some while longer: a
    trade that is sent twice mostly comes again soon. Of any other the ledger is asked.

    Args:
        recent: So many trades are known here at the least, and about twice as many at the most.
        default_currency: As of `Identity`.
        awaited: Ids of the trades of which events wait, as they are at any time: a trade among them
            has an entry, so that it is never booked without a closer look.

    Attributes:
        found: What the ledger has of the trades that come next; what is known here is newer.
    """

    __slots__ = ("_awaited", "_recent", "found")

    def __init__(self, recent: int, default_currency: str, awaited: Collection[str] = ()) -> None:
        super().__init__(default_currency)
        self._recent = recent
        self._awaited = awaited
        self.found: Mapping[str, StoredTrade] = {}

    def settle(self) -> None:
        """Forget what was there when this last forgot something: the ledger has it by now."""
        if len(self.known) - len(self._awaited) >= self._recent:
            self.known_before, self.known = self.known, dict.fromkeys(self._awaited)

    def note(self, event: TradeEvent, value: bytes) -> None:
        """Remember a trade that is new."""
        self.known[str(event.trade_id)] = value

    def put(self, trade_id: str, known: KnownTrade) -> None:
        """Remember what a trade has become."""
        self.known[trade_id] = known

    def expect(self, trade_id: str) -> None:
        """Let whatever comes of a trade be looked at closely."""
        self.known.setdefault(trade_id, None)

    def get(self, trade_id: str) -> KnownTrade | None:
        """Give what is known of a trade."""
        known = self.known.get(trade_id) or self.known_before.get(trade_id)
        if isinstance(known, KnownTrade):
            return known
        if known is None:
            stored = self.found.get(trade_id)
            return None if stored is None else self._known(stored)
        event = decode_event(known)[0]
        return KnownTrade(
            version=1,
            content=self.content_of(event),
            state=TradeState.OPEN,
            position_key=position_key(event.book, str(event.symbol)),
            time_ns=parse_timestamp(event.timestamp)[0],
            event_id=event.event_id,
        )

    def content_of(self, event: TradeEvent) -> bytes:
        """Hash what an event says."""
        return content_hash(event, default_currency=self._default_currency)

    def _known(self, stored: StoredTrade) -> KnownTrade:
        *older, (event, content) = stored.versions
        kept = {event.version or 1: content or self.content_of(event) for event, content in older}
        return KnownTrade(
            version=event.version or 1,
            content=content or self.content_of(event),
            state=TradeState.CANCELLED if event.action == Action.CANCEL else TradeState.OPEN,
            position_key=position_key(event.book, str(event.symbol)),
            kept=kept,
            time_ns=parse_timestamp(event.timestamp)[0],
            event_id=event.event_id,
        )


class DedupeWindow(Identity):
    """Trades of one partition that stand in the current block of its log or in the one before.

    Blocks are `block_size` offsets long and begin at its multiples, so that what the window holds
    at an offset is a function of the log alone, wherever the reading began and however the records
    came in batches; to forget costs nothing for a record. A trade is thus recognised for at least
    `block_size` offsets and for less than twice as many.

    Args:
        block_size: Offsets of a block; 0 for no window, which recognises nothing.
        default_currency: As of `Identity`.
    """

    __slots__ = ("_next_block", "block_size")

    def __init__(self, block_size: int, default_currency: str) -> None:
        super().__init__(default_currency)
        self.block_size = block_size
        if not block_size:
            self.known = _KeepsNothing()
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

    def recognises(self, event: TradeEvent, value: bytes) -> bool:
        """Tell whether a trade is known; if so, it is noted anew.

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
        if type(known_as) is bytes:
            known_as = self._content(decode_event(known_as)[0])
        if known_as != self._content(event):
            raise InvalidTradeError(
                "version-conflict", "another trade with this trade_id and version is booked"
            )
        return True

    def _move_to(self, offset: int) -> None:
        block = offset // self.block_size
        is_next = self._next_block == block * self.block_size
        self.evictions += len(self.known_before) + (0 if is_next else len(self.known))
        self.known_before = self.known if is_next else {}
        self.known = {}
        self._next_block = (block + 1) * self.block_size


class _KeepsNothing(dict[str, _Noted]):
    """Stands in for a window that is not wanted."""

    def __setitem__(self, key: str, value: _Noted) -> None:
        """Forget it at once."""
