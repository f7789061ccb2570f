"""Points in time as UTC nanoseconds since 1970, to the precision that was sent."""

import re
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Context, Decimal
from functools import lru_cache
from typing import Literal

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
MIN_NS = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * NS_PER_S
MAX_NS = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * NS_PER_S
"""Trades are dated from 2000 (inclusive) to 2100 (exclusive)."""

_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ]([01]\d|2[0-3]):(\d{2}):(\d{2})(?:\.(\d{1,9}))?"
    r"([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)?",
    re.ASCII,
)
# Epoch numbers of the allowed years do not overlap between units, so magnitude tells them apart.
_UNITS_NS = ((10**11, NS_PER_S), (10**14, NS_PER_MS), (10**17, 1_000), (10**20, 1))
_LARGEST_EPOCH = _UNITS_NS[-1][0]
_NS_DIGITS = 9
_MAX_TEXT = 64
_CONTEXT = Context(prec=80, rounding=ROUND_DOWN)  # ours, whatever the thread's is
_CACHE_LIMIT = 8_192  # milliseconds: those of a stream follow each other, and none comes back
_HEAD = 23  # up to and including the milliseconds

KNOWN_HEADS: dict[str, int] = {}
"""Nanoseconds of the first 23 characters of texts in UTC that were read before."""
KNOWN_TAILS: dict[str, int] = {}
"""Nanoseconds of the rest of them. Any head with any tail is a text that can be read: trades that
follow each other share their head, and there are few tails."""

Problem = Literal["unparseable", "out-of-range", "wrong-type"]


class TimestampError(ValueError):
    """Text or a number that is no point in time between 2000 and 2100.

    Args:
        problem: The second half of a reason code, such as `unparseable`.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def parse_timestamp(value: object) -> tuple[int, bool]:
    """Read RFC 3339 text (up to 9 fractional digits) or an epoch number.

    Args:
        value: Text, or an int, float or `Decimal` in s, ms, us or ns, told apart by magnitude.
            A leap second counts as the first instant of the next minute.

    Returns:
        UTC nanoseconds, and whether the text named its offset; without one it is taken as UTC.

    Raises:
        TimestampError: Not readable, or outside the years 2000 to 2099.
    """
    if type(value) is str:
        known_ns, tail_ns = KNOWN_HEADS.get(value[:_HEAD]), KNOWN_TAILS.get(value[_HEAD:])
        if known_ns is not None and tail_ns is not None:
            return known_ns + tail_ns, True
        ns, has_offset = _parse_text(value)
    else:
        ns, has_offset = _parse_epoch(value), True
    if not MIN_NS <= ns < MAX_NS:
        raise TimestampError("out-of-range")
    if type(value) is str:
        _remember(value, ns)
    return ns, has_offset


def utc_ns(text: str) -> int | None:
    """Read RFC 3339 text that names its offset; `None` for any other."""
    try:
        ns, has_offset = parse_timestamp(text)
    except TimestampError:
        return None
    return ns if has_offset else None


def _remember(text: str, ns: int) -> None:
    # A shorter text has no milliseconds of its own to share, and a leap second no place in any.
    if len(text) <= _HEAD or text[-1] != "Z" or text[17:19] == "60":
        return
    for known in (KNOWN_HEADS, KNOWN_TAILS):
        if len(known) >= _CACHE_LIMIT:
            known.clear()
    KNOWN_TAILS[text[_HEAD:]] = tail_ns = ns % NS_PER_MS
    KNOWN_HEADS[text[:_HEAD]] = ns - tail_ns


def _parse_text(text: str) -> tuple[int, bool]:
    match = _RFC3339.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if match is None:
        raise TimestampError("unparseable")
    date, hour, minute, second, fraction, offset = match.groups()
    leap = second == "60"
    try:
        moment = datetime.fromisoformat(f"{date}T{hour}:{minute}:{'59' if leap else second}+00:00")
    except ValueError:
        raise TimestampError("unparseable") from None
    seconds = int(moment.timestamp())
    if leap:
        return (seconds + 1 - _offset_seconds(offset)) * NS_PER_S, offset is not None
    fraction_ns = int((fraction or "").ljust(9, "0"))
    return (seconds - _offset_seconds(offset)) * NS_PER_S + fraction_ns, offset is not None


def _offset_seconds(offset: str | None) -> int:
    if offset is None or offset in "Zz":
        return 0
    hours, minutes = int(offset[1:3]), int(offset[4:6])
    seconds = hours * 3600 + minutes * 60
    return -seconds if offset[0] == "-" else seconds


def _parse_epoch(value: object) -> int:
    if type(value) is float:
        value = Decimal(repr(value))
    if type(value) is not int and not isinstance(value, Decimal):
        raise TimestampError("wrong-type")
    if (isinstance(value, Decimal) and not value.is_finite()) or not 0 <= value < _LARGEST_EPOCH:
        raise TimestampError("out-of-range")
    unit_ns = next(unit for limit, unit in _UNITS_NS if value < limit)
    return value * unit_ns if type(value) is int else int(_CONTEXT.multiply(value, unit_ns))


def format_timestamp(ns: int) -> str:
    """Write UTC nanoseconds as RFC 3339 with as few of 0, 3, 6 or 9 fractional digits as do."""
    seconds, fraction_ns = divmod(ns, NS_PER_S)
    text = _second_text(seconds)
    if not fraction_ns:
        return f"{text}Z"
    micros, nanos = divmod(fraction_ns, 1000)
    if nanos:
        return f"{text}.{fraction_ns:09d}Z"
    millis, micros_left = divmod(micros, 1000)
    # Filled up as text: a format of its own takes twice as long.
    fraction = str(micros).rjust(6, "0") if micros_left else str(millis).rjust(3, "0")
    return f"{text}.{fraction}Z"


@lru_cache(maxsize=4096)  # what happens together shares its second
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
