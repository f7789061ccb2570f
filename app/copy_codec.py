"""Records as rows of the analytics copy, column by column in ClickHouse's Native format.

Every record is a row or a refusal, whatever became of it elsewhere: what a row holds depends on its
bytes and its place alone, so that copying a record again gives the same row. Most events are looked
up, not judged: a text that has passed the rules once needs no rule again.

Source:
    ClickHouse documentation, "Native" format; decimals are little-endian integers of 16 bytes.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from app.codec import PlainEvent, decode_event, read_plain
from app.errors import InvalidTradeError, RecordError
from app.models import TradeEvent
from app.money import ONE_E8, AmountError, parse_amount
from app.ports import RecordBatch
from app.timestamps import TimestampError, parse_timestamp
from app.validation import DEFAULT_CURRENCY, CheckedTrade, check_event

_DECIMAL: Final = "Decimal(20, 8)"
TRADE_COLUMNS: Final = (
    ("source_partition", "Int32"),
    ("source_offset", "Int64"),
    ("trade_id", "String"),
    ("version", "UInt64"),
    ("action", "Enum8('NEW' = 1, 'AMEND' = 2, 'CANCEL' = 3)"),
    ("book", "String"),
    ("symbol", "String"),
    ("side", "Enum8('BUY' = 1, 'SELL' = -1)"),
    ("price", _DECIMAL),
    ("quantity", _DECIMAL),
    ("multiplier", _DECIMAL),
    ("fee", _DECIMAL),
    ("currency", "String"),
    ("executed_at", "DateTime64(9, 'UTC')"),
    ("appended_at", "DateTime64(3, 'UTC')"),
)
"""Names and types as they are sent; a column's type in its table may be a closer one."""
REFUSAL_COLUMNS: Final = (
    ("source_partition", "Int32"),
    ("source_offset", "Int64"),
    ("reason", "String"),
    ("appended_at", "DateTime64(3, 'UTC')"),
)
VERSION_NOT_TOLD: Final = 0
"""Version of a change whose sender does not count them; only a ledger can tell which one it is."""

_MAX_VERSION: Final = 2**64 - 1
_MAX_APPENDED_MS: Final = 253_402_300_799_999
"""The end of the year 9999: a broken clock of a sender keeps nothing from being copied."""
_KNOWN_LIMIT: Final = 65_536
_HEAD: Final = 23  # up to and including the milliseconds
_LEAP: Final = slice(17, 19)
_AMOUNT_BYTES: Final = 16
_ONE: Final = ONE_E8.to_bytes(_AMOUNT_BYTES, "little")
_ZERO: Final = bytes(_AMOUNT_BYTES)
_NEW: Final = b"\x01"
_ACTIONS: Final = {None: _NEW, "NEW": _NEW, "AMEND": b"\x02", "CANCEL": b"\x03"}
_SIDES: Final = {"BUY": b"\x01", "SELL": b"\xff"}
_VERSION_ONE: Final = (1).to_bytes(8, "little")
_LENGTHS: Final = [chr(length) for length in range(128)]
"""Lengths as they stand before an ASCII text that is shorter than 128."""


class _UncommonError(Exception):
    """A text that has to be judged together with the rest of its event."""


class _Known(dict[str, bytes]):
    """What texts come to in bytes; worked out when one is first asked for."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, text: str) -> bytes:
        encoded = self._encode(text)
        if len(self) >= _KNOWN_LIMIT:
            self.clear()
        self[text] = encoded
        return encoded


def _positive(text: str | int) -> bytes:
    try:
        amount_e8, was_rounded = parse_amount(text)
    except AmountError:
        raise _UncommonError from None
    if amount_e8 <= 0 or was_rounded:
        raise _UncommonError
    return amount_e8.to_bytes(_AMOUNT_BYTES, "little")


def _checked(symbol: str, book: str | None = None) -> None:
    """Hold a name against the rules of names, which are those of a whole event."""
    probe = TradeEvent(
        trade_id="-", symbol=symbol, book=book, side="BUY", price=1, quantity=1, timestamp=10**9
    )
    try:
        check_event(probe, is_plain=True)
    except InvalidTradeError:
        raise _UncommonError from None


def _symbol(text: str) -> bytes:
    _checked(text)
    return _text(text)


def _book(text: str | None) -> bytes:
    if text is None:
        return b"\x00"
    _checked("-", text)
    return _text(text)


_AMOUNTS: Final = _Known(_positive)
_SYMBOLS: Final = _Known(_symbol)
_BOOKS: Final = _Known(_book)


class _Heads(dict[str, int]):
    """Nanoseconds of the first 23 characters of texts in UTC."""

    def __missing__(self, head: str) -> int:
        if len(head) != _HEAD or head[_LEAP] == "60":  # a leap second has no place in any
            raise KeyError(head)
        return self._remember(head, f"{head}Z", 0)

    def _remember(self, text: str, whole: str, less_ns: int) -> int:
        try:
            ns = parse_timestamp(whole)[0] - less_ns
        except TimestampError:
            raise KeyError(text) from None
        if len(self) >= _KNOWN_LIMIT:
            self.clear()
        self[text] = ns
        return ns


class _Tails(_Heads):
    """Nanoseconds of the rest of them."""

    def __missing__(self, tail: str) -> int:
        if tail[-1:] != "Z":
            raise KeyError(tail)
        return self._remember(tail, f"{_SOME_HEAD}{tail}", _SOME_HEAD_NS)


_SOME_HEAD: Final = "2001-09-09T01:46:40.000"
_SOME_HEAD_NS: Final = 10**18
_heads, _tails = _Heads(), _Tails()


def _times(stamps: Sequence[str]) -> "array[int]":
    try:
        return array("q", [_heads[s[:_HEAD]] + _tails[s[_HEAD:]] for s in stamps])
    except KeyError:
        pass
    try:
        return array("q", [parse_timestamp(stamp)[0] for stamp in stamps])
    except TimestampError:
        raise _UncommonError from None


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _varint(len(encoded)) + encoded


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _texts(texts: Sequence[str]) -> bytes:
    """Write ids, of at most 64 characters."""
    lengths = _LENGTHS
    joined = "".join([lengths[len(text)] + text for text in texts])
    return joined.encode() if joined.isascii() else b"".join(map(_text, texts))


class _Columns:
    """The bytes of some rows, by column, in pieces."""

    def __init__(self, names: Iterable[str]) -> None:
        self.count = 0
        self.pieces: dict[str, list[bytes]] = {name: [] for name in names}

    def add(self, count: int, **columns: bytes) -> None:
        self.count += count
        for name, piece in columns.items():
            self.pieces[name].append(piece)

    def encode(self, columns: Sequence[tuple[str, str]], constants: dict[str, bytes]) -> bytes:
        """Give one block of the Native format; a constant stands in every row."""
        if not self.count:
            return b""
        parts = [_varint(len(columns)), _varint(self.count)]
        for name, kind in columns:
            parts += (_text(name), _text(kind))
            if name in constants:
                parts.append(constants[name] * self.count)
            else:
                parts += self.pieces[name]
        return b"".join(parts)


class CopyBlock:
    """Consecutive records of one partition, as rows of the copy.

    Args:
        partition: Of the source topic.
        start: First offset that it covers.
        default_currency: Currency of a trade that names none.

    Attributes:
        next_offset: Every record before it, from `start` on, that there is, is in the block.
        rows: How many records are rows.
        refused: How many are not trades that could be read.
    """

    def __init__(
        self, partition: int, start: int, *, default_currency: str = DEFAULT_CURRENCY
    ) -> None:
        self.partition = partition
        self.start = start
        self.next_offset = start
        self._default_currency = default_currency
        self._currency = _text(default_currency)
        self._plain = _Columns(name for name, _ in TRADE_COLUMNS)
        self._others = _Columns(name for name, _ in TRADE_COLUMNS)
        self._refusals = _Columns(name for name, _ in REFUSAL_COLUMNS)

    @property
    def rows(self) -> int:
        """How many records are rows."""
        return self._plain.count + self._others.count

    @property
    def refused(self) -> int:
        """How many records are no trades that can be read."""
        return self._refusals.count

    def add(self, batch: RecordBatch, first: int, last: int, next_offset: int) -> None:
        """Add the records of a batch from index `first` up to, not including, `last`."""
        values = batch.values[first:last]
        offsets = batch.offsets[first:last]
        appended = _appended([record.timestamp for record in batch.records[first:last]])
        events = read_plain(values)
        judged = [index for index, event in enumerate(events) if event is None]
        if judged:
            kept = [index for index, event in enumerate(events) if event is not None]
        else:
            kept = list(range(len(events)))
        self._add_plain(kept, offsets, appended, events, judged)
        for index in sorted(judged):
            self._judge(offsets[index], appended[index], values[index])
        self.next_offset = next_offset

    def _add_plain(
        self,
        kept: list[int],
        offsets: Sequence[int],
        appended: "array[int]",
        events: Sequence[PlainEvent | None],
        judged: list[int],
    ) -> None:
        """Add the events that can be looked up; the others are found by halves."""
        if not kept:
            return
        is_whole = len(kept) == len(events)
        chosen: Sequence[PlainEvent] = (
            events if is_whole else [events[i] for i in kept]  # type: ignore[assignment, misc]
        )
        amounts, symbols, books = _AMOUNTS, _SYMBOLS, _BOOKS
        try:
            self._plain.add(
                len(chosen),
                symbol=b"".join([symbols[e.symbol] for e in chosen]),
                book=b"".join([books[e.book] for e in chosen]),  # type: ignore[index]  # none: too
                price=b"".join([amounts[e.price] for e in chosen]),  # type: ignore[index]  # ints
                quantity=b"".join([amounts[e.quantity] for e in chosen]),  # type: ignore[index]
                executed_at=_times([e.timestamp for e in chosen]).tobytes(),
                trade_id=_texts([e.trade_id for e in chosen]),
                side=b"".join([_SIDES[e.side] for e in chosen]),
                source_offset=array(
                    "q", offsets if is_whole else [offsets[i] for i in kept]
                ).tobytes(),
                appended_at=(
                    appended if is_whole else array("q", [appended[i] for i in kept])
                ).tobytes(),
            )
        except _UncommonError:
            if len(kept) == 1:
                judged += kept
                return
            middle = len(kept) // 2
            self._add_plain(kept[:middle], offsets, appended, events, judged)
            self._add_plain(kept[middle:], offsets, appended, events, judged)

    def _judge(self, offset: int, appended_ms: int, value: bytes | None) -> None:
        """Read one record by all the rules."""
        try:
            event, is_plain, _ = decode_event(value)
            trade = check_event(event, is_plain=is_plain, default_currency=self._default_currency)
            if event.version is not None and event.version > _MAX_VERSION:
                raise InvalidTradeError("version-out-of-range", "version is too large")
        except RecordError as exc:
            self._refusals.add(
                1,
                source_offset=array("q", [offset]).tobytes(),
                reason=_text(exc.reason),
                appended_at=array("q", [appended_ms]).tobytes(),
            )
            return
        self._add_other(offset, appended_ms, event, trade)

    def _add_other(
        self, offset: int, appended_ms: int, event: TradeEvent, trade: CheckedTrade
    ) -> None:
        is_new = event.action in (None, "NEW")
        version = event.version or (1 if is_new else VERSION_NOT_TOLD)
        self._others.add(
            1,
            source_offset=array("q", [offset]).tobytes(),
            trade_id=_text(str(event.trade_id)),
            version=version.to_bytes(8, "little"),
            action=_ACTIONS[event.action],
            book=_text(event.book or ""),
            symbol=_text(str(event.symbol)),
            side=_SIDES["BUY" if trade.sign > 0 else "SELL"],
            price=_amount(trade.price_e8),
            quantity=_amount(trade.quantity_e8),
            multiplier=_amount(trade.multiplier_e8),
            fee=_amount(trade.fee_e8),
            currency=_text(event.currency or self._default_currency),
            executed_at=array("q", [trade.time_ns]).tobytes(),
            appended_at=array("q", [appended_ms]).tobytes(),
        )

    def trades(self) -> bytes:
        """Give the rows in the Native format; nothing where there are none."""
        partition = {"source_partition": self.partition.to_bytes(4, "little")}
        common = {
            "version": _VERSION_ONE,
            "action": _NEW,
            "multiplier": _ONE,
            "fee": _ZERO,
            "currency": self._currency,
        }
        plain = self._plain.encode(TRADE_COLUMNS, partition | common)
        return plain + self._others.encode(TRADE_COLUMNS, partition)

    def refusals(self) -> bytes:
        """Give the refusals in the Native format; nothing where there are none."""
        partition = {"source_partition": self.partition.to_bytes(4, "little")}
        return self._refusals.encode(REFUSAL_COLUMNS, partition)


def _amount(amount_e8: int) -> bytes:
    return amount_e8.to_bytes(_AMOUNT_BYTES, "little", signed=True)


def _appended(stamps: list[int]) -> "array[int]":
    if min(stamps, default=0) < 0 or max(stamps, default=0) > _MAX_APPENDED_MS:
        stamps = [min(max(stamp, 0), _MAX_APPENDED_MS) for stamp in stamps]
    return array("q", stamps)
