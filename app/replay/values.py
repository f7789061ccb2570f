"""Cells to the values of fields, as the event contract wants them."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from app.codec import reason_name
from app.errors import InvalidTradeError
from app.models import Fee, Side
from app.money import AmountError, format_scaled, parse_amount
from app.timestamps import NS_PER_S, TimestampError, format_timestamp, parse_timestamp

BOOLEANS: Final = {"true": True, "false": False}

_MAX_NUMBER_LENGTH: Final = 64
_MAX_FRACTION_DIGITS: Final = 9
_INT64: Final = 2**63

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT_OFFSET = re.compile(r"(.{16,32}[+-]\d{2})(\d{2})?", re.ASCII)

Reader = Callable[[str, Any], Any]
"""From the name of a field and the value of a column to the value of the field."""


class ValueReader:
    """Reads the values of rows as values of fields.

    Args:
        is_typed: Whether the file tells numbers from text; CSV does not.
        zone: Zone of times without an offset; they are passed on as they are when `None`.
        is_strict: Whether a number with more than 8 decimals is refused rather than rounded.
        sides: Side by the text of a value, where a column tells the side; otherwise it holds it.

    Attributes:
        rounded: Codes of the numbers rounded since the list was last emptied.
    """

    def __init__(
        self,
        *,
        is_typed: bool,
        zone: ZoneInfo | None = None,
        is_strict: bool = False,
        sides: Mapping[str, str] | None = None,
    ) -> None:
        self.rounded: list[str] = []
        self._is_typed = is_typed
        self._text_amount = _typed_text_amount if is_typed else _cell_amount
        self._zone = zone
        self._is_strict = is_strict
        self._sides = sides or {}
        self._readers: dict[str, Reader] = {
            **dict.fromkeys(("price", "quantity", "contract_multiplier"), self._amount),
            **dict.fromkeys(("timestamp", "event_time"), self._instant),
            **dict.fromkeys(("version", "source_sequence", "schema_version"), self._integer),
            **dict.fromkeys(("short_sale", "cleared"), self._flag),
            "fx_rate": self._fx_rate,
            "fees": self._fees,
        }
        if sides is not None:
            self._readers["side"] = self._side

    def reader(self, name: str) -> Reader:
        """Give what reads the values of a field; it raises `InvalidTradeError`."""
        return self._readers.get(name, _text)

    def default(self, name: str, text: str) -> object:
        """Read the value of a `--default`.

        Raises:
            InvalidTradeError: It is no value of this field.
        """
        if name != "side":
            return self.reader(name)(name, text)
        if text not in Side.__members__:
            raise _refused(name, "unknown")
        return text

    def _amount(self, name: str, value: object) -> str:
        try:
            if type(value) is str:
                amount, is_rounded = self._text_amount(value)
            else:
                amount, is_rounded = _number_amount(value)
        except AmountError as exc:
            raise _refused(name, exc.problem) from exc
        if is_rounded:
            if self._is_strict:
                raise _refused(name, "too-many-decimals")
            self.rounded.append(f"{reason_name(name)}-rounded")
        return amount

    def _fx_rate(self, name: str, value: object) -> str:
        try:
            return self._amount(name, value)
        except InvalidTradeError:
            # Nothing is computed with it: what is no amount only makes the trade suspect.
            is_number = type(value) is float or isinstance(value, Decimal)
            return str(value) if is_number else _text(name, value)

    def _side(self, name: str, value: object) -> str:
        text = str(value) if isinstance(value, bool) else _text(name, value)
        side = self._sides.get(text)
        if side is None and text.lower() in BOOLEANS:
            side = self._sides.get(text.lower())
        if side is None:
            raise _refused(name, "unknown")
        return side

    def _instant(self, name: str, value: object) -> str:
        if type(value) is str:
            value = _number(value)
        try:
            if type(value) is str:
                return _instant_text(value, self._zone)
            return format_timestamp(_epoch_ns(value))
        except TimestampError as exc:
            raise _refused(name, exc.problem) from exc

    def _integer(self, name: str, value: object) -> int:
        if type(value) is str and not self._is_typed and _INTEGER.fullmatch(value):
            value = int(value)
        if type(value) is not int:
            raise _refused(name, "wrong-type")
        if not -_INT64 <= value < _INT64:
            raise _refused(name, "out-of-range")
        return value

    def _flag(self, name: str, value: object) -> bool:
        flag = value if self._is_typed else BOOLEANS.get(str(value).lower())
        if type(flag) is not bool:
            raise _refused(name, "wrong-type")
        return flag

    def _fees(self, name: str, value: object) -> list[Fee]:
        if not isinstance(value, list) or not all(isinstance(fee, dict) for fee in value):
            raise _refused(name, "wrong-type")
        readers: dict[str, Reader] = {"amount": self._amount, "type": _text, "currency": _text}
        return [
            Fee(
                **{
                    part: read(f"fee_{part}", fee[part])
                    for part, read in readers.items()
                    if fee.get(part) is not None
                }
            )
            for fee in value
        ]


def _refused(name: str, problem: str) -> InvalidTradeError:
    message = f"{name} cannot be taken from the row: {problem.replace('-', ' ')}"
    return InvalidTradeError(f"{reason_name(name)}-{problem}", message)


def _number(text: str) -> Decimal | str:
    is_number = len(text) <= _MAX_NUMBER_LENGTH and _NUMBER.fullmatch(text) is not None
    return Decimal(text) if is_number else text


def _number_amount(value: object) -> tuple[str, bool]:
    amount_e8, is_rounded = parse_amount(value)
    return format_scaled(amount_e8), is_rounded


@lru_cache(maxsize=65_536)  # prices and sizes repeat
def _cell_amount(text: str) -> tuple[str, bool]:
    return _number_amount(_number(text))


@lru_cache(maxsize=65_536)
def _typed_text_amount(text: str) -> tuple[str, bool]:
    return _number_amount(text)


def _text(name: str, value: object) -> str:
    if type(value) is str:
        if not value.isascii() and _SURROGATE.search(value):
            raise _refused(name, "bad-character")
        return value
    if type(value) is int:
        return str(value)
    if type(value) is float:
        value = Decimal(repr(value))
    if not isinstance(value, Decimal):
        raise _refused(name, "wrong-type")
    if not value.is_finite():
        raise _refused(name, "not-finite")
    if abs(value.adjusted()) > _MAX_NUMBER_LENGTH:
        raise _refused(name, "out-of-range")
    return f"{value:f}"


def _instant_text(text: str, zone: ZoneInfo | None) -> str:
    ns, has_offset = _parse_iso(text)
    if has_offset:
        return format_timestamp(ns)
    if zone is None:
        return text  # the consumer takes it as UTC, and says so
    seconds, fraction_ns = divmod(ns, NS_PER_S)
    offset_s = _utc_offset_s(zone, seconds)
    if offset_s is None:
        raise TimestampError("unparseable")
    return format_timestamp((seconds - offset_s) * NS_PER_S + fraction_ns)


def _parse_iso(text: str) -> tuple[int, bool]:
    with suppress(TimestampError):  # faster: times with a Z are read once a second
        return parse_timestamp(f"{text}Z")[0], False
    try:
        return parse_timestamp(text)
    except TimestampError:
        # ISO 8601 and PostgreSQL also write +02 and +0200, which RFC 3339 does not know.
        short = _SHORT_OFFSET.fullmatch(text)
        if short is None:
            raise
        return parse_timestamp(f"{short[1]}:{short[2] or '00'}")


@lru_cache(maxsize=4096)
def _utc_offset_s(zone: ZoneInfo, local_s: int) -> int | None:
    """Give the offset at a local time, in seconds counted as if it were UTC.

    Returns:
        Of an hour that comes twice, the offset of the first; `None` when the clocks skip the time.
    """
    local = datetime.fromtimestamp(local_s, UTC).replace(tzinfo=zone)
    if local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
        return None
    offset = local.utcoffset()
    return None if offset is None else round(offset.total_seconds())


def _epoch_ns(value: object) -> int:
    if type(value) is float:
        value = Decimal(repr(value))
    if isinstance(value, Decimal) and value.is_finite():
        exponent = int(value.as_tuple().exponent)
        if exponent < -_MAX_FRACTION_DIGITS:
            raise TimestampError("unparseable")  # finer than a nanosecond: not cut off unsaid
    return parse_timestamp(value)[0]
