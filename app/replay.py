"""Replay of market prints from files: rows become trade events, and are published.

Every row that is read ends in exactly one of four: published, rejected, not sent, unknown. The last
three are named in the rejects file, and the summary adds up.
"""

import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final, Protocol, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.structs import replace as replace_fields
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from app.codec import decode_event, encode_event, reason_name
from app.errors import ConfigError, InvalidTradeError, RecordError
from app.models import Fee, Side, TradeEvent, position_key
from app.money import AmountError, format_scaled, parse_amount, to_decimal
from app.ports import OutgoingRecord, Publisher, SendOutcome, SendState
from app.replay_files import ReadOptions, ReplayFileError, Row, RowFile, read_rows
from app.timestamps import (
    MAX_NS,
    MIN_NS,
    NS_PER_MS,
    NS_PER_S,
    TimestampError,
    format_timestamp,
    parse_timestamp,
)
from app.validation import check_event

CHUNK_ROWS: Final = 500
SEND_ATTEMPTS: Final = 6
FIELDS: Final = tuple(
    name
    for name in TradeEvent.__struct_fields__
    if name not in {"published_at", "processed_at"}  # set by the platform
)
REQUIRED: Final = ("trade_id", "symbol", "side", "price", "quantity", "timestamp")

_TICK_S: Final = 0.005  # rows due within one tick of each other are published as one batch
_SLICE_S: Final = 0.25  # longest sleep before a stop is noticed
_MAX_BACKOFF_S: Final = 5.0
_MAX_PLANS: Final = 64
_MAX_NUMBER_LENGTH: Final = 64
_MAX_EPOCH_EXPONENT: Final = 20
_MAX_FRACTION_DIGITS: Final = 9
_ID_PARTS: Final = ("book", "symbol", "side", "price", "quantity", "timestamp")
_UNITS_NS: Final = {"s": NS_PER_S, "ms": NS_PER_MS, "us": 1_000, "ns": 1}
_BOOLEANS: Final = {"true": True, "false": False}

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT_OFFSET = re.compile(r"(.{16,32}[+-]\d{2})(\d{2})?", re.ASCII)
_SPEED = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)x", re.ASCII)


class TimeUnit(StrEnum):
    """Unit of epoch numbers; `auto` tells it by their magnitude."""

    AUTO = "auto"
    S = "s"
    MS = "ms"
    US = "us"
    NS = "ns"


@dataclass(frozen=True, slots=True)
class SideFrom:
    """Which value of a column means which side.

    Attributes:
        column: The column to look at.
        sides: Side by the text of a value; `true` and `false` also match JSON and any letter case.
    """

    column: str
    sides: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """How the fields of a trade event come out of the columns of a row.

    Attributes:
        columns: Column by field.
        defaults: Text by field, for rows where the column is missing, null or an empty CSV cell.
        side_from: How the side is told, when no column holds BUY or SELL.
        generate_ids: Whether trade ids are made rather than read.
        zone: Zone of times without an offset; they are passed on as they are when `None`.
        time_unit: Unit of epoch numbers; `auto` tells it by their magnitude.
        is_strict: Whether a number with more than 8 decimals is refused rather than rounded.
        by_name: Whether a column with exactly the name of a field fills it without being mapped.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    side_from: SideFrom | None = None
    generate_ids: bool = False
    zone: ZoneInfo | None = None
    time_unit: TimeUnit = TimeUnit.AUTO
    is_strict: bool = False
    by_name: bool = True

    @classmethod
    def parse(
        cls,
        *,
        maps: Sequence[str] = (),
        defaults: Sequence[str] = (),
        side_from: str | None = None,
        generate_ids: bool = False,
        zone: str | None = None,
        time_unit: TimeUnit = TimeUnit.AUTO,
        is_strict: bool = False,
        by_name: bool = True,
    ) -> Self:
        """Read the options of the command line.

        Args:
            maps: `field=COLUMN`, each.
            defaults: `field=value`, each.
            side_from: `COLUMN=value:SELL,value:BUY`.
            generate_ids: See the attribute; likewise the others.
            zone: A name of the IANA time zone database.
            time_unit: See the attribute.
            is_strict: See the attribute.
            by_name: See the attribute.

        Raises:
            ConfigError: With every problem at once.
        """
        problems: list[str] = []
        mapping = cls(
            columns=_parse_pairs("--map", maps, problems),
            defaults=_parse_pairs("--default", defaults, problems),
            side_from=_parse_side_from(side_from, problems),
            generate_ids=generate_ids,
            zone=_parse_zone(zone, problems),
            time_unit=time_unit,
            is_strict=is_strict,
            by_name=by_name,
        )
        problems += _conflicts(mapping)
        if problems:
            raise ConfigError(problems)
        return mapping

    def column_of(self, name: str) -> str | None:
        """Give the column that fills a field, or `None` when none does."""
        if name == "side" and self.side_from is not None:
            return self.side_from.column
        if name == "trade_id" and self.generate_ids:
            return None
        return self.columns.get(name, name if self.by_name else None)

    def problems_with(self, file: str, header: Sequence[str]) -> list[str]:
        """Name what a file lacks for this mapping, given the columns that its header names."""
        problems = []
        required = set(REQUIRED) - self.defaults.keys()
        if self.generate_ids:
            required.discard("trade_id")
        for name in FIELDS:
            column = self.column_of(name)
            is_asked_for = name in self.columns or (name == "side" and self.side_from is not None)
            if column is not None and column in header:
                if list(header).count(column) > 1:
                    problems.append(f"{file}: column {column} stands twice in the header")
            elif is_asked_for:
                problems.append(f"{file}: no column {column}; there are {', '.join(header)}")
            elif name in required:
                problems.append(f"{file}: nothing gives {name}; use --map {name}=COLUMN")
        return problems


def _parse_pairs(option: str, pairs: Sequence[str], problems: list[str]) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value:
            problems.append(f"{option} {pair}: must be field=value")
        elif name not in FIELDS:
            problems.append(f"{option} {pair}: a trade event has no field {name}")
        elif name in parsed:
            problems.append(f"{option} {pair}: {name} is given twice")
        else:
            parsed[name] = value
    return parsed


def _parse_side_from(option: str | None, problems: list[str]) -> SideFrom | None:
    if option is None:
        return None
    # The column may hold an equals sign, a value may hold a colon: both are split at the last one.
    column, _, choices = option.rpartition("=")
    sides: dict[str, str] = {}
    for choice in choices.split(","):
        value, _, side = choice.rpartition(":")
        value = value.lower() if value.lower() in _BOOLEANS else value
        if not column or side not in Side.__members__ or value in sides:
            problems.append(
                f"--side-from {option}: must be COLUMN=value:SELL,value:BUY, each value once"
            )
            return None
        sides[value] = side
    return SideFrom(column, sides)


def _parse_zone(name: str | None, problems: list[str]) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.append(f"--tz {name}: no such time zone; use a name such as Europe/Amsterdam")
        return None


def _conflicts(mapping: FieldMapping) -> list[str]:
    problems = []
    if mapping.side_from is not None and "side" in mapping.columns:
        problems.append("--side-from: side is also mapped; use one of both")
    if mapping.generate_ids and "trade_id" in {*mapping.columns, *mapping.defaults}:
        problems.append("--trade-id generate: trade_id is also given; use one of both")
    for name, text in mapping.defaults.items():
        try:
            _default_value(name, text, mapping)
        except InvalidTradeError as exc:
            problems.append(f"--default {name}={text}: {exc}")
    return problems


@dataclass(frozen=True, slots=True)
class MappedTrade:
    """One row as a trade event that can be booked.

    Attributes:
        event: The event, still without the time of its publishing.
        key: Record key.
        time_ns: Execution time, UTC.
        quantity_e8: Quantity at 10^-8.
        notional_e24: Price x quantity x contract multiplier at 10^-24, whatever the side.
        rounded: Codes of the numbers that were rounded, such as `price-rounded`.
        suspects: Codes of what else is doubtful about it, such as `timestamp-no-offset`.
    """

    event: TradeEvent
    key: bytes
    time_ns: int
    quantity_e8: int
    notional_e24: int
    rounded: tuple[str, ...]
    suspects: tuple[str, ...]


class RowMapper:
    """Turns rows into trade events, as a mapping says."""

    def __init__(self, mapping: FieldMapping) -> None:
        self._mapping = mapping
        self._defaults: dict[str, Any] = {
            name: _default_value(name, text, mapping) for name, text in mapping.defaults.items()
        }
        self._plans: dict[tuple[str, ...], list[tuple[str, str, _Converter]]] = {}

    def map_row(self, row: Row) -> MappedTrade:
        """Map one row.

        Raises:
            RecordError: The row cannot be read, or gives no trade event that could be booked; the
                reason codes are those of dead letters.
        """
        if row.problem is not None:
            raise row.problem
        rounded: list[str] = []
        fields = self._defaults.copy()
        for name, column, convert in self._plan(tuple(row.columns)):
            value = row.columns[column]
            if value is not None:
                fields[name] = convert(_Cell(name, value, row.is_typed, rounded), self._mapping)
        if self._mapping.generate_ids:
            fields["trade_id"] = _generated_id(row, fields)
        event = TradeEvent(**fields)
        checked = check_event(event)
        decode_event(encode_event(event))  # what no consumer could decode is not published
        return MappedTrade(
            event=event,
            key=position_key(event.book, str(event.symbol)).encode(),
            time_ns=checked.time_ns,
            quantity_e8=checked.quantity_e8,
            notional_e24=checked.price_e8 * checked.quantity_e8 * checked.multiplier_e8,
            rounded=tuple(rounded),
            suspects=checked.suspects,
        )

    def _plan(self, header: tuple[str, ...]) -> list[tuple[str, str, "_Converter"]]:
        """Give field, column and converter of what rows with these columns fill."""
        plan = self._plans.get(header)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[header] = [
                (name, column, self._converter(name))
                for name in FIELDS
                if (column := self._mapping.column_of(name)) in header and column is not None
            ]
        return plan

    def _converter(self, name: str) -> "_Converter":
        is_told = name == "side" and self._mapping.side_from is not None
        return _side_told if is_told else _CONVERTERS[name]


def _generated_id(row: Row, fields: Mapping[str, Any]) -> str:
    """Make an id out of where the row stands and what it says: equal in every replay of it.

    The folder and the compression do not count; two equal prints differ by their lines.
    """
    # No part of a bookable trade holds a line end, so that the parts cannot run together.
    parts = [_plain_name(row.file), str(row.line), *(fields.get(part) or "" for part in _ID_PARTS)]
    digest = hashlib.blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=16)
    return f"replay-{digest.hexdigest()}"


@lru_cache(maxsize=16)
def _plain_name(file: str) -> str:
    return re.sub(r"\.(gz|zst)$", "", Path(file).name, flags=re.IGNORECASE)


class _Cell(msgspec.Struct, gc=False):
    """One value on its way to a field; what is rounded is noted in the list of its row."""

    name: str
    value: Any
    is_typed: bool
    rounded: list[str]

    def refused(self, problem: str) -> InvalidTradeError:
        message = f"{self.name} cannot be taken from the row: {problem.replace('-', ' ')}"
        return InvalidTradeError(f"{reason_name(self.name)}-{problem}", message)

    def number(self) -> Any:  # noqa: ANN401 - whatever the file gave
        """Give the value; text of a file that does not tell numbers from text, as `Decimal`."""
        is_untold = type(self.value) is str and not self.is_typed
        return _number(self.value) if is_untold else self.value


_Converter = Callable[[_Cell, FieldMapping], Any]


def _number(text: str) -> Decimal | str:
    is_number = len(text) <= _MAX_NUMBER_LENGTH and _NUMBER.fullmatch(text) is not None
    return Decimal(text) if is_number else text


def _default_value(name: str, text: str, mapping: FieldMapping) -> object:
    cell = _Cell(name, text, is_typed=False, rounded=[])
    if name == "side" and text not in Side.__members__:
        raise cell.refused("unknown")
    return _CONVERTERS[name](cell, mapping)


def _amount(cell: _Cell, mapping: FieldMapping) -> str:
    try:
        amount_e8, is_rounded = parse_amount(cell.number())
    except AmountError as exc:
        raise cell.refused(exc.problem) from exc
    if is_rounded:
        if mapping.is_strict:
            raise cell.refused("too-many-decimals")
        cell.rounded.append(f"{reason_name(cell.name)}-rounded")
    return format_scaled(amount_e8)


def _text(cell: _Cell, _mapping: FieldMapping) -> str:
    value = cell.value
    if type(value) is str:
        if not value.isascii() and _SURROGATE.search(value):
            raise cell.refused("bad-character")
        return value
    if type(value) is int:
        return str(value)
    if type(value) is float:
        value = Decimal(repr(value))
    if not isinstance(value, Decimal):
        raise cell.refused("wrong-type")
    if not value.is_finite():
        raise cell.refused("not-finite")
    if abs(value.adjusted()) > _MAX_NUMBER_LENGTH:
        raise cell.refused("out-of-range")
    return f"{value:f}"


def _integer(cell: _Cell, _mapping: FieldMapping) -> int:
    if type(cell.value) is int:
        return cell.value
    if cell.is_typed or _INTEGER.fullmatch(str(cell.value)) is None:
        raise cell.refused("wrong-type")
    return int(cell.value)


def _flag(cell: _Cell, _mapping: FieldMapping) -> bool:
    value = cell.value if cell.is_typed else _BOOLEANS.get(str(cell.value).lower())
    if type(value) is not bool:
        raise cell.refused("wrong-type")
    return value


def _fees(cell: _Cell, mapping: FieldMapping) -> list[Fee]:
    if not isinstance(cell.value, list):
        raise cell.refused("wrong-type")
    return [_fee(fee, cell, mapping) for fee in cell.value]


def _fee(fee: object, cell: _Cell, mapping: FieldMapping) -> Fee:
    if not isinstance(fee, dict):
        raise cell.refused("wrong-type")
    converters: dict[str, _Converter] = {"amount": _amount, "type": _text, "currency": _text}
    return Fee(
        **{
            name: convert(_Cell(f"fee_{name}", fee[name], cell.is_typed, cell.rounded), mapping)
            for name, convert in converters.items()
            if fee.get(name) is not None
        }
    )


def _side_told(cell: _Cell, mapping: FieldMapping) -> str:
    sides = mapping.side_from.sides if mapping.side_from is not None else {}
    text = str(cell.value) if isinstance(cell.value, bool) else _text(cell, mapping)
    side = sides.get(text) or sides.get(text.lower() if text.lower() in _BOOLEANS else text)
    if side is None:
        raise cell.refused("unknown")
    return side


def _instant(cell: _Cell, mapping: FieldMapping) -> str:
    value = _number(cell.value) if type(cell.value) is str else cell.value
    try:
        if type(value) is str:
            return _instant_text(value, mapping.zone)
        return format_timestamp(_epoch_ns(value, mapping.time_unit))
    except TimestampError as exc:
        raise cell.refused(exc.problem) from exc


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


def _epoch_ns(value: object, unit: TimeUnit) -> int:
    if type(value) is float:
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int) or value.adjusted() > _MAX_EPOCH_EXPONENT:
            raise TimestampError("out-of-range")
        if exponent < -_MAX_FRACTION_DIGITS:
            raise TimestampError("unparseable")
    elif type(value) is not int:
        raise TimestampError("wrong-type")
    if unit is TimeUnit.AUTO:
        return parse_timestamp(value)[0]
    ns = int(value * _UNITS_NS[unit])
    if not MIN_NS <= ns < MAX_NS:
        raise TimestampError("out-of-range")
    return ns


_CONVERTERS: Final[Mapping[str, _Converter]] = {
    **dict.fromkeys(FIELDS, _text),
    **dict.fromkeys(("price", "quantity", "contract_multiplier", "fx_rate"), _amount),
    **dict.fromkeys(("timestamp", "event_time"), _instant),
    **dict.fromkeys(("version", "source_sequence", "schema_version"), _integer),
    **dict.fromkeys(("short_sale", "cleared"), _flag),
    "fees": _fees,
}


class Clock(Protocol):
    """The time, and the only way to wait for it."""

    def monotonic_s(self) -> float:
        """Seconds that never go back."""

    def time_ns(self) -> int:
        """UTC nanoseconds since 1970."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The clock of the machine."""

    def monotonic_s(self) -> float:
        """Give seconds that never go back."""
        return time.monotonic()

    def time_ns(self) -> int:
        """Give UTC nanoseconds since 1970."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class DryRunPublisher:
    """Takes every record and sends none."""

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        """Call every record sent."""
        return [SendOutcome(SendState.OK)] * len(records)

    async def partition_count(self, topic: str) -> int:  # noqa: ARG002 - the port's signature
        """Give one partition for every topic."""
        return 1


def parse_speed(text: str) -> float | None:
    """Read `max`, `1x`, `10x`, `0.5x`.

    Returns:
        How many times faster than the events happened; `None` is as fast as possible.

    Raises:
        ConfigError: It is neither.
    """
    if text == "max":
        return None
    match = _SPEED.fullmatch(text)
    if match is None or not float(match[1]):
        raise ConfigError([f"--speed {text}: must be max or a positive number such as 10x"])
    return float(match[1])


@dataclass(frozen=True, slots=True)
class FileCounts:
    """What became of the rows of one file; `error` is why it was not read to its end."""

    file: str
    rows: int = 0
    published: int = 0
    rejected: int = 0
    not_sent: int = 0
    unknown: int = 0
    error: str | None = None

    @property
    def adds_up(self) -> bool:
        """Whether every row has exactly one fate."""
        return self.rows == self.published + self.rejected + self.not_sent + self.unknown


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """What a replay came to.

    Attributes:
        rejected: Rows that gave no bookable trade, by reason.
        not_sent: Rows that are surely not in the topic.
        unknown: Rows that may or may not be in the topic; they were not sent again.
        rounded: Published numbers that were rounded to 8 decimals, by code.
        suspects: Published trades that a consumer will flag, by code.
        sum_quantity: Exact sum over published rows, whatever their side; likewise `sum_notional`.
        first_event_time: Earliest execution time published; likewise the last.
        rejects_path: File that names every row that was not published; `None` without any.
        is_stopped: Whether it was stopped ahead of the end.
    """

    rows: int
    published: int
    rejected: Mapping[str, int]
    not_sent: int
    unknown: int
    rounded: Mapping[str, int]
    suspects: Mapping[str, int]
    sum_quantity: Decimal
    sum_notional: Decimal
    files: tuple[FileCounts, ...]
    first_event_time: str | None
    last_event_time: str | None
    seconds: float
    rejects_path: str | None
    is_stopped: bool

    @property
    def rejected_total(self) -> int:
        """Rows rejected for any reason."""
        return sum(self.rejected.values())

    @property
    def rows_per_s(self) -> float:
        """Rows a second, from the first to the last."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def adds_up(self) -> bool:
        """Whether every row has exactly one fate, in every file and altogether."""
        total = self.published + self.rejected_total + self.not_sent + self.unknown
        by_file = sum(counts.rows for counts in self.files)
        return self.rows == total == by_file and all(counts.adds_up for counts in self.files)

    @property
    def is_success(self) -> bool:
        """Whether every row that could be mapped is published, and every file was read."""
        has_errors = any(counts.error for counts in self.files)
        return self.adds_up and not (self.not_sent or self.unknown or has_errors or self.is_stopped)

    def to_json(self) -> str:
        """Write it as one line of JSON; the sums are strings with every digit."""
        body = asdict(self) | {
            "rejected": self.rejected_total,
            "rejected_by_reason": dict(self.rejected),
            "sum_quantity": f"{self.sum_quantity:f}",
            "sum_notional": f"{self.sum_notional:f}",
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s),
            "adds_up": self.adds_up,
        }
        return json.dumps(body)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is; `bytes_read` counts the files as stored."""

    rows: int
    published: int
    rejected: int
    failed: int
    bytes_read: int
    bytes_total: int
    seconds: float


def check_files(
    files: Sequence[Path], mapping: FieldMapping, options: ReadOptions, rejects_path: Path
) -> None:
    """Open every file and compare its header with the mapping, ahead of any publishing.

    Raises:
        ConfigError: With every problem of every file at once.
        ImportError: A Parquet file is given and pyarrow is not installed.
    """
    problems = [f"{file}: is given twice" for file, n in Counter(files).items() if n > 1]
    for file in files:
        try:
            with closing(read_rows(file, options)) as rows:
                if rows.columns is not None:
                    problems += mapping.problems_with(str(file), rows.columns)
        except ReplayFileError as exc:
            problems.append(str(exc))
    if rejects_path.resolve() in {file.resolve() for file in files}:
        problems.append(f"--rejects {rejects_path}: is one of the files to be replayed")
    if not rejects_path.absolute().parent.is_dir() or rejects_path.is_dir():
        problems.append(f"--rejects {rejects_path}: cannot be written")
    if problems:
        raise ConfigError(problems)


def default_rejects_path(files: Sequence[Path]) -> Path:
    """Give the rejects file of a replay: named after its first file, in the current folder."""
    return Path(f"{files[0].name}.rejects.jsonl")


async def replay(
    files: Sequence[Path],
    mapping: FieldMapping,
    *,
    publisher: Publisher,
    topic: str,
    speed: float | None = None,
    options: ReadOptions | None = None,
    rejects_path: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
) -> ReplaySummary:
    """Publish the rows of files as trade events, in the order of the files.

    Args:
        files: At least one; read one after the other, each row once.
        mapping: How a row becomes a trade event.
        publisher: Where to.
        topic: Its topic.
        speed: Times as fast as the trades happened; `None` is as fast as possible.
        options: How to read the files.
        rejects_path: Where rows that are not published are named; see `default_rejects_path`.
        progress: Called after every chunk and at least four times a second while waiting.
        clock: Durations and pacing come from its monotonic time.
        stop: Set it to end after the chunk in flight.

    Returns:
        What became of every row that was read.

    Raises:
        ConfigError: A file or the rejects path is of no use; nothing has been published.
        ImportError: A Parquet file is given and pyarrow is not installed.

    Delivery:
        What is surely not sent is tried again, at most six times; a trade of the same position in
        the same chunk may then have overtaken it. What is unknown is never sent again.
    """
    options = options or ReadOptions()
    rejects_path = rejects_path or default_rejects_path(files)
    check_files(files, mapping, options, rejects_path)
    run = _Replay(
        mapper=RowMapper(mapping),
        publisher=publisher,
        topic=topic,
        speed=speed,
        clock=clock or SystemClock(),
        stop=stop or asyncio.Event(),
        progress=progress or (lambda _: None),
        bytes_total=sum(file.stat().st_size for file in files),
    )
    with _Rejects(rejects_path) as rejects:
        return await run.run(files, options, rejects)


class _Rejects:
    """The rejects file: JSON Lines, created by the first row that is named in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def written_path(self) -> str | None:
        return None if self._file is None else str(self._path)

    def add(self, row: Row, reason: str, message: str) -> None:
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
        entry = {
            "file": row.file,
            "line": row.line,
            "reason": reason,
            "message": message,
            "raw": row.raw(),
        }
        self._file.write(json.dumps(entry) + "\n")


@dataclass(slots=True)
class _Tally:
    """The sums of a replay so far."""

    files: dict[str, Counter[str]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    rounded: Counter[str] = field(default_factory=Counter)
    suspects: Counter[str] = field(default_factory=Counter)
    quantity_e8: int = 0
    notional_e24: int = 0
    first_ns: int = MAX_NS
    last_ns: int = 0

    def count(self, row: Row, fate: str) -> None:
        counts = self.files.setdefault(row.file, Counter())
        counts["rows"] += 1
        counts[fate] += 1

    def add_published(self, trade: MappedTrade) -> None:
        self.rounded.update(trade.rounded)
        self.suspects.update(trade.suspects)
        self.quantity_e8 += trade.quantity_e8
        self.notional_e24 += trade.notional_e24
        self.first_ns = min(self.first_ns, trade.time_ns)
        self.last_ns = max(self.last_ns, trade.time_ns)

    def total(self, fate: str) -> int:
        return sum(counts[fate] for counts in self.files.values())

    def summary(
        self, *, seconds: float, rejects_path: str | None, is_stopped: bool
    ) -> ReplaySummary:
        has_times = self.last_ns > 0
        return ReplaySummary(
            rows=self.total("rows"),
            published=self.total("published"),
            rejected=dict(self.rejected),
            not_sent=self.total("not_sent"),
            unknown=self.total("unknown"),
            rounded=dict(self.rounded),
            suspects=dict(self.suspects),
            sum_quantity=to_decimal(self.quantity_e8),
            sum_notional=to_decimal(self.notional_e24, 24),
            files=tuple(
                FileCounts(file, error=self.errors.get(file), **counts)
                for file, counts in self.files.items()
            ),
            first_event_time=format_timestamp(self.first_ns) if has_times else None,
            last_event_time=format_timestamp(self.last_ns) if has_times else None,
            seconds=seconds,
            rejects_path=rejects_path,
            is_stopped=is_stopped,
        )


class _Pace:
    """When each event is due: at once, or as long after the first as it happened after it."""

    def __init__(self, speed: float | None, clock: Clock) -> None:
        self._speed = speed
        self._clock = clock
        self._first: tuple[int, float, int] | None = None

    def due_s(self, time_ns: int) -> float | None:
        """Give the monotonic time at which an event is due; `None` is now."""
        if self._speed is None:
            return None
        if self._first is None:
            self._first = time_ns, self._clock.monotonic_s(), self._clock.time_ns()
        return self._first[1] + (time_ns - self._first[0]) / (self._speed * NS_PER_S)

    def published_at(self, due_s: float | None) -> str:
        """Write the scheduled time, so that latency includes what we are late ourselves."""
        if due_s is None or self._first is None:
            return format_timestamp(self._clock.time_ns())
        after_first_ns = max(0, round((due_s - self._first[1]) * NS_PER_S))
        return format_timestamp(self._first[2] + after_first_ns)


@dataclass(frozen=True, slots=True)
class _Due:
    """A mapped row that waits for its chunk."""

    row: Row
    trade: MappedTrade
    due_s: float | None


@dataclass(slots=True, kw_only=True)
class _Replay:
    """One run; the chunk in hand is all it keeps of the rows."""

    mapper: RowMapper
    publisher: Publisher
    topic: str
    speed: float | None
    clock: Clock
    stop: asyncio.Event
    progress: Callable[[Progress], None]
    bytes_total: int
    tally: _Tally = field(default_factory=_Tally)
    chunk: list[_Due] = field(default_factory=list)
    bytes_before: int = 0
    started_s: float = 0.0

    async def run(
        self, files: Sequence[Path], options: ReadOptions, rejects: _Rejects
    ) -> ReplaySummary:
        self.started_s = self.clock.monotonic_s()
        pace = _Pace(self.speed, self.clock)
        for file in files:
            if self.stop.is_set():
                break
            self.tally.files[str(file)] = Counter()
            try:
                with closing(read_rows(file, options)) as rows:
                    await self._replay_file(rows, pace, rejects)
            except ReplayFileError as exc:
                self.tally.errors[str(file)] = exc.problem
            self.bytes_before += file.stat().st_size
        await self._flush(pace, rejects, 0)
        return self.tally.summary(
            seconds=self.clock.monotonic_s() - self.started_s,
            rejects_path=rejects.written_path,
            is_stopped=self.stop.is_set(),
        )

    async def _replay_file(self, rows: RowFile, pace: _Pace, rejects: _Rejects) -> None:
        for index, row in enumerate(rows, start=1):
            try:
                trade = self.mapper.map_row(row)
            except RecordError as exc:
                self._reject(row, "rejected", rejects, exc.reason, str(exc))
            else:
                due_s = pace.due_s(trade.time_ns)
                if due_s is not None and due_s > self.clock.monotonic_s():
                    await self._flush(pace, rejects, rows.bytes_read)
                    await self._wait_until(due_s + _TICK_S, rows.bytes_read)
                if self.stop.is_set():
                    return  # the row is not counted: nothing was done with it
                self.chunk.append(_Due(row, trade, due_s))
            if index % CHUNK_ROWS == 0 or len(self.chunk) >= CHUNK_ROWS:
                await self._flush(pace, rejects, rows.bytes_read)
                if self.stop.is_set():
                    return

    async def _wait_until(self, due_s: float, bytes_read: int) -> None:
        while not self.stop.is_set() and (left_s := due_s - self.clock.monotonic_s()) > 0:
            self._report(bytes_read)
            await self.clock.sleep(min(left_s, _SLICE_S))

    async def _flush(self, pace: _Pace, rejects: _Rejects, bytes_read: int) -> None:
        chunk, self.chunk = self.chunk, []
        if chunk:
            outcomes = await self._send([self._record(due, pace) for due in chunk])
            for due, outcome in zip(chunk, outcomes, strict=True):
                self._settle(due, outcome, rejects)
        self._report(bytes_read)
        await asyncio.sleep(0)  # a file of rejects alone must not keep a stop from being noticed

    def _record(self, due: _Due, pace: _Pace) -> OutgoingRecord:
        event = replace_fields(due.trade.event, published_at=pace.published_at(due.due_s))
        return OutgoingRecord(self.topic, due.trade.key, encode_event(event))

    async def _send(self, records: list[OutgoingRecord]) -> list[SendOutcome]:
        """Send, and send again what is surely not in the topic, with full jitter in between."""
        outcomes: dict[int, SendOutcome] = {}
        left = list(range(len(records)))

        async def attempt() -> bool:
            answers = await self.publisher.publish([records[i] for i in left])
            outcomes.update(zip(left, answers, strict=True))
            left[:] = [i for i in left if _is_worth_repeating(outcomes[i])]
            return bool(left)

        def is_enough(state: RetryCallState) -> bool:
            return self.stop.is_set() or state.attempt_number >= SEND_ATTEMPTS

        await AsyncRetrying(
            sleep=self.clock.sleep,
            wait=wait_random_exponential(multiplier=0.1, max=_MAX_BACKOFF_S),
            stop=is_enough,
            retry=retry_if_result(bool),
            retry_error_callback=lambda _: True,  # what is left stays "not sent": no error
        )(attempt)
        return [outcomes[i] for i in range(len(records))]

    def _settle(self, due: _Due, outcome: SendOutcome, rejects: _Rejects) -> None:
        if outcome.state is SendState.OK:
            self.tally.count(due.row, "published")
            self.tally.add_published(due.trade)
        elif outcome.state is SendState.UNKNOWN:
            message = f"may or may not be in the topic: {outcome.error}"
            self._reject(due.row, "unknown", rejects, "send-unknown", message)
        else:
            message = f"is not in the topic: {outcome.error}"
            self._reject(due.row, "not_sent", rejects, "send-not-sent", message)

    def _reject(self, row: Row, fate: str, rejects: _Rejects, reason: str, message: str) -> None:
        self.tally.count(row, fate)
        if fate == "rejected":
            self.tally.rejected[reason] += 1
        rejects.add(row, reason, message)

    def _report(self, bytes_read: int) -> None:
        tally = self.tally
        self.progress(
            Progress(
                rows=tally.total("rows"),
                published=tally.total("published"),
                rejected=tally.total("rejected"),
                failed=tally.total("not_sent") + tally.total("unknown"),
                bytes_read=self.bytes_before + bytes_read,
                bytes_total=self.bytes_total,
                seconds=self.clock.monotonic_s() - self.started_s,
            )
        )


def _is_worth_repeating(outcome: SendOutcome) -> bool:
    return outcome.state is SendState.NOT_SENT and outcome.retryable
