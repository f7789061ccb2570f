"""Bytes to events and back: JSON, read strictly and bounded before anything is built from it."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from itertools import repeat
from typing import Annotated, Any, Final, Literal

import msgspec

from app.errors import DecodeError
from app.models import MAX_ID_LENGTH, Action, Amount, TradeEvent

MAX_VALUE_BYTES: Final = 64 * 1024
MAX_COMMON_BYTES: Final = 2 * 1024
"""Of a plain event that is read the short way: what is booked of it is kept for a while."""
MAX_DEPTH: Final = 8
SCHEMA_VERSION: Final = 1

_decode_event = msgspec.json.Decoder(TradeEvent).decode
_encode = msgspec.json.Encoder().encode
_FIELDS: Final = frozenset(TradeEvent.__struct_fields__)
_TEXT_OR_BRACKET = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[\[\]{}]', re.DOTALL)
_STEPS: Final = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_NAMED_FIELD = re.compile(r"\$\.([a-z_]+)(?:\[\.*\d*\]\.([a-z_]+))?", re.ASCII)


class PlainEvent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """An event of the common fields alone, each in its common form: what most events are.

    It has the meaning of the `TradeEvent` of the same body, which the two readers must agree on.
    """

    trade_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
    symbol: str
    side: Literal["BUY", "SELL"]
    price: str | int
    quantity: str | int
    timestamp: str
    book: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    published_at: str | None = None


class FullEvent(PlainEvent, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A plain event that has every one of its fields."""

    book: Annotated[str, msgspec.Meta(min_length=1)]
    published_at: str


class _Published(msgspec.Struct, gc=False):
    published_at: str | None = None


class _Identified(msgspec.Struct, gc=False):
    trade_id: str = ""
    action: Any = None
    version: Any = None


_decode_identified = msgspec.json.Decoder(_Identified).decode
_decode_plain = msgspec.json.Decoder(PlainEvent).decode
_decode_full = msgspec.json.Decoder(FullEvent).decode
_decode_published = msgspec.json.Decoder(_Published).decode
_FULL_COMMAS: Final = frozenset({len(FullEvent.__struct_fields__) - 1})

NotPlainError = msgspec.DecodeError
"""What `decode_plain` raises in the place of an event that is not plain after all."""


class _ExactFee(msgspec.Struct):
    amount: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _ExactNumbers(msgspec.Struct):
    """The number literals of an event, as they were written."""

    price: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    quantity: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    contract_multiplier: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    fx_rate: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    timestamp: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    fees: list[_ExactFee] | None = None


_decode_numbers = msgspec.json.Decoder(_ExactNumbers).decode


def reason_name(field: str) -> str:
    """Give the word that stands for a field in reason codes: kebab, `multiplier` for its field."""
    return "multiplier" if field == "contract_multiplier" else field.replace("_", "-")


def encode_event(event: TradeEvent) -> bytes:
    """Write an event as compact JSON; fields that are not set are left out."""
    return _encode(event)


def decode_plain(values: Sequence[bytes | None]) -> Iterator[PlainEvent | None]:
    """Read the values of a batch whose events are plain, each when it is asked for.

    A body of k fields has k - 1 commas at the least, so one with exactly as many has no key twice
    and no other field. Text without an escape, of ASCII and without DEL is printable. So a batch
    like most is judged as one piece before any of it is decoded.

    Returns:
        An event for each value; `None` where a closer look is needed. In its place the iterator
        may raise `NotPlainError`: it goes on with the value after that.
    """
    try:
        body = b"".join(values)  # type: ignore[arg-type]  # a tombstone is no bytes: TypeError
    except TypeError:
        return map(decode_alone, values)
    if (
        b"\\" not in body
        and b"\x7f" not in body
        and body.isascii()
        and set(map(bytes.count, values, repeat(b","))) == _FULL_COMMAS  # type: ignore[arg-type]
        and (len(body) <= MAX_COMMON_BYTES or max(map(len, values)) <= MAX_COMMON_BYTES)  # type: ignore[arg-type]
    ):
        return map(_decode_full, values)  # type: ignore[arg-type]
    return map(decode_alone, values)


def decode_alone(value: bytes | None) -> PlainEvent | None:
    """Read one value whose event is plain; `None` where a closer look is needed."""
    if not value or len(value) > MAX_COMMON_BYTES:
        return None
    try:
        event = _decode_plain(value)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    commas = 5 + (event.book is not None) + (event.published_at is not None)
    if value.count(b",") != commas or not event.trade_id.isprintable():
        return None
    return event


def read_plain(
    values: Sequence[bytes | None], apart: Collection[int] = ()
) -> list[PlainEvent | None]:
    """Read the values of a batch as `decode_plain` does, all of them at once.

    Args:
        values: The values.
        apart: Indexes of values that need a closer look whatever is in them.
    """
    if apart:
        return [None if i in apart else decode_alone(value) for i, value in enumerate(values)]
    events: list[PlainEvent | None] = []
    plain = decode_plain(values)
    while len(events) < len(values):
        try:
            events.extend(plain)  # what was read before an error stays
        except NotPlainError:
            events.append(None)
    return events


def trade_ids(values: Sequence[bytes | None], events: Sequence[PlainEvent | None]) -> list[str]:
    """Give the trade ids that a batch names, whether its events can be used or not.

    Args:
        values: The values of the batch.
        events: What `read_plain` made of them.
    """
    ids = [
        _identified(value).trade_id if event is None else event.trade_id
        for value, event in zip(values, events, strict=True)
    ]
    return [trade_id for trade_id in ids if trade_id]


def changed_ids(values: Sequence[bytes | None], events: Sequence[PlainEvent | None]) -> list[str]:
    """Give the ids of the trades of which more comes than a beginning, as `trade_ids` does."""
    apart = (value for value, event in zip(values, events, strict=True) if event is None)
    named = map(_identified, apart)
    return [one.trade_id for one in named if one.trade_id and not _is_first(one)]


def _identified(value: bytes | None) -> _Identified:
    try:
        named = _decode_identified(value or b"")
    except (msgspec.DecodeError, ValueError, RecursionError):
        return _Identified()
    trade_id = named.trade_id
    is_fit = len(trade_id) <= MAX_ID_LENGTH and trade_id.isprintable()
    return named if is_fit else _Identified()


def _is_first(named: _Identified) -> bool:
    return named.action in (None, Action.NEW) and named.version in (None, 1)


def published_at(value: bytes | None) -> str | None:
    """Read when an event was due to be published, if it says so; nothing else is looked at."""
    try:
        return _decode_published(value or b"").published_at
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def decode_event(value: bytes | None) -> tuple[TradeEvent, bool, int]:
    """Read one record value as a trade event.

    Numbers keep every digit they were written with: a literal with a point or an exponent comes out
    as `Decimal`, never through a binary fraction.

    Args:
        value: JSON text in UTF-8, one object of at most 64 KiB; `None` is a tombstone.

    Returns:
        The event; whether it is plain: only the six required fields, `book` and `published_at` are
        in it; and how many of its fields we do not know (tolerated, so that senders may add some).

    Raises:
        DecodeError: With a reason code of the parse or the field layer.
    """
    if not value:
        raise DecodeError("body-empty", "the record has no value")
    if len(value) > MAX_VALUE_BYTES:
        raise DecodeError("body-too-large", f"the value is larger than {MAX_VALUE_BYTES} bytes")
    if value.count(b"[") + value.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        raise DecodeError("body-too-deep", f"the body is nested deeper than {MAX_DEPTH}")
    try:
        event = _decode_event(value)
        is_plain = value.count(b'"') == _plain_quotes(event)
        unknown_fields = 0 if is_plain else _inspect(value)
        if _has_float(event, is_plain=is_plain):
            event = _with_exact_numbers(event, value)
    except DecodeError:
        raise
    except (msgspec.DecodeError, ValueError) as exc:
        raise _classified(value, exc) from exc
    if event.schema_version is not None and event.schema_version != SCHEMA_VERSION:
        raise DecodeError("schema-version-unsupported", f"schema_version must be {SCHEMA_VERSION}")
    return event, is_plain, unknown_fields


def _is_too_deep(value: bytes) -> bool:
    """Tell it by the brackets, before a parser does: how deep it gets depends on who calls it."""
    depth = 0
    for token in _TEXT_OR_BRACKET.finditer(value):
        depth += _STEPS.get(token.group(), 0)
        if depth > MAX_DEPTH:
            return True
    return False


def _plain_quotes(event: TradeEvent) -> int:
    """Count the quotation marks of an event that has the common fields, each once, and no other.

    Every key has two and every string has two, so a body with exactly this many has no room for a
    repeated key, an unknown one or a rare one: it needs no closer look.
    """
    return (
        18  # six keys, and the three of their values that are always strings
        + 2 * (type(event.price) is str)
        + 2 * (type(event.quantity) is str)
        + 2 * (type(event.timestamp) is str)
        + (event.book is not None and 4)
        + (event.published_at is not None and 4)
    )


def _has_float(event: TradeEvent, *, is_plain: bool) -> bool:
    if type(event.price) is float or type(event.quantity) is float:
        return True
    if type(event.timestamp) is float or is_plain:
        return type(event.timestamp) is float
    return (
        type(event.contract_multiplier) is float
        or type(event.fx_rate) is float
        or any(type(fee.amount) is float for fee in event.fees or ())
    )


def _with_exact_numbers(event: TradeEvent, value: bytes) -> TradeEvent:
    numbers = _decode_numbers(value)
    fees = event.fees
    if fees and numbers.fees:
        fees = [
            msgspec.structs.replace(fee, amount=_exact("fee_amount", fee.amount, exact.amount))
            for fee, exact in zip(fees, numbers.fees, strict=True)
        ]
    multiplier, timestamp = numbers.contract_multiplier, numbers.timestamp
    return msgspec.structs.replace(
        event,
        price=_exact("price", event.price, numbers.price),
        quantity=_exact("quantity", event.quantity, numbers.quantity),
        contract_multiplier=_exact("contract_multiplier", event.contract_multiplier, multiplier),
        fx_rate=_exact("fx_rate", event.fx_rate, numbers.fx_rate),
        timestamp=_exact("timestamp", event.timestamp, timestamp),
        fees=fees,
    )


def _exact(
    field: str, decoded: Amount | None, literal: msgspec.Raw | msgspec.UnsetType
) -> Amount | None:
    if type(decoded) is not float or literal is msgspec.UNSET:
        return decoded
    try:
        return Decimal(bytes(literal).decode())
    except InvalidOperation as exc:  # an exponent beyond what the decimal module holds
        raise DecodeError(f"{reason_name(field)}-out-of-range", f"{field} is out of range") from exc


def _inspect(value: bytes) -> int:
    """Look closely at a body that is no plain one: refuse repeated keys.

    Returns:
        The number of unknown fields at the top.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise DecodeError("body-duplicate-key", "an object has the same key twice")
        return fields

    # Decoded here: what skips over an unknown field has not looked whether it is UTF-8.
    body = json.loads(value.decode(), object_pairs_hook=unique, parse_int=str, parse_float=str)
    return len(body.keys() - _FIELDS)


def _classified(value: bytes, exc: Exception) -> DecodeError:
    """Name the reason why a body was refused; only refused bodies pay for it."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return DecodeError("body-not-utf8", "the value is not UTF-8")
    if not isinstance(exc, msgspec.ValidationError):
        return DecodeError("body-not-json", "the value is not JSON")
    named = _NAMED_FIELD.search(str(exc))
    if named is None:
        return DecodeError("body-not-object", "the value is not one JSON object")
    field = named.group(1) if named.group(2) is None else f"fee_{named.group(2)}"
    if "out of range" in str(exc):
        return DecodeError(f"{reason_name(field)}-out-of-range", f"{field} is out of range")
    return DecodeError(f"{reason_name(field)}-wrong-type", f"{field} has the wrong type")
