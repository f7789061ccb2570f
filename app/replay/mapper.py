"""Rows to trade events that can be booked."""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from app.codec import MAX_VALUE_BYTES, SCHEMA_VERSION, encode_event
from app.errors import DecodeError
from app.models import TradeEvent, position_key
from app.replay.mapping import FIELDS, REQUIRED, FieldMapping
from app.replay.rows import Row
from app.replay.values import Reader, ValueReader
from app.validation import check_event

_MAX_PLANS: Final = 64
_ID_PARTS: Final = ("book", "symbol", "side", "price", "quantity", "timestamp")
_COMMON: Final = frozenset({*REQUIRED, "book"})
_PUBLISHED_AT_BYTES: Final = 64  # room for the field that is added when it is published

_Plan = list[tuple[str, str, Reader]]


class MappedTrade(msgspec.Struct, frozen=True, gc=False):
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
        self._typed = mapping.value_reader(is_typed=True)
        self._untyped = mapping.value_reader(is_typed=False)
        self._defaults: dict[str, Any] = {
            name: self._untyped.default(name, text) for name, text in mapping.defaults.items()
        }
        self._plans: dict[tuple[ValueReader, tuple[str, ...]], _Plan] = {}

    def map_row(self, row: Row) -> MappedTrade:
        """Map one row.

        Raises:
            RecordError: The row cannot be read, or gives no trade event that could be booked; the
                reason codes are those of dead letters.
        """
        if row.problem is not None:
            raise row.problem
        reader = self._typed if row.is_typed else self._untyped
        reader.rounded.clear()
        fields = self._defaults.copy()
        for name, column, read in self._plan(reader, tuple(row.columns)):
            value = row.columns[column]
            if value is not None:
                fields[name] = read(name, value)
        if self._mapping.generate_ids:
            fields["trade_id"] = _generated_id(row, fields)
        event = TradeEvent(**fields)
        is_plain = fields.keys() <= _COMMON
        checked = check_event(event, is_plain=is_plain)
        if not is_plain:
            _check_decodable(event)
        return MappedTrade(
            event=event,
            key=position_key(event.book, str(event.symbol)).encode(),
            time_ns=checked.time_ns,
            quantity_e8=checked.quantity_e8,
            notional_e24=checked.price_e8 * checked.quantity_e8 * checked.multiplier_e8,
            rounded=tuple(reader.rounded),
            suspects=checked.suspects,
        )

    def _plan(self, reader: ValueReader, header: tuple[str, ...]) -> _Plan:
        """Give field, column and reader of what rows with these columns fill."""
        plan = self._plans.get((reader, header))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[reader, header] = [
                (name, column, reader.reader(name))
                for name in FIELDS
                if (column := self._mapping.column_of(name)) in header and column is not None
            ]
        return plan


def _check_decodable(event: TradeEvent) -> None:
    """Refuse what consumers would; of the common fields alone every value is short and plain."""
    if event.schema_version not in (None, SCHEMA_VERSION):
        raise DecodeError("schema-version-unsupported", f"schema_version must be {SCHEMA_VERSION}")
    if len(encode_event(event)) > MAX_VALUE_BYTES - _PUBLISHED_AT_BYTES:
        raise DecodeError("body-too-large", f"the event is larger than {MAX_VALUE_BYTES} bytes")


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
