"""The records of the positions topic: JSON that readers in any language can follow.

`docs/position-record.md` is the schema for them. Amounts are exact decimal text: what is restored
is what was written, to the last digit.
"""

from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from app.errors import DecodeError
from app.models import Position, position_key
from app.money import ONE_E8, SCALE, format_scaled, parse_scaled
from app.timestamps import format_timestamp, parse_timestamp

SCHEMA_VERSION: Final = 1
HEARTBEAT_KEY: Final = b"\x00owner"
"""Record key of heartbeats; a control character keeps it apart from every position key."""
_E24: Final = 3 * SCALE


class SourceRef(msgspec.Struct, frozen=True, gc=False):
    """Where the last trade applied stands: the record's state covers the source up to here."""

    topic: str
    partition: int
    offset: int


class PositionRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One record of the positions topic; the fields are described in docs/position-record.md."""

    schema_version: int
    type: Literal["position", "heartbeat"]
    group: str
    source: SourceRef
    generation: int = 0
    book: str | None = None
    symbol: str | None = None
    currency: str | None = None
    quantity: str = "0"
    open_cost: str = "0"
    multiplier: str = "1"
    average_price: str = "0"
    realized_pnl: str = "0"
    unrealized_pnl: str = "0"
    fees: str = "0"
    mark: str = "0"
    mark_time: str | None = None
    trade_count: int = 0
    origins: dict[str, int] | None = None
    source_partitions: int = 0

    @property
    def key(self) -> str:
        """Record key of the position.

        Raises:
            DecodeError: The record has no symbol.
        """
        if self.symbol is None:
            raise DecodeError("position-record-unreadable", "a position record without a symbol")
        return position_key(self.book, self.symbol)


_text_e8 = lru_cache(maxsize=65_536)(format_scaled)  # of what is the same in many records
_decode = msgspec.json.Decoder(PositionRecord).decode
_encode = msgspec.json.Encoder().encode


def encode_position(position: Position, *, group: str, topic: str, partition: int) -> bytes:
    """Write a position with the source offset it covers.

    Args:
        position: State to write.
        group: Consumer group that owns the state.
        topic: Source topic of the trades in it, and `partition` of that topic.
        partition: Same number in the source topic and in the positions topic.
    """
    multiplier_e8, origins = position.multiplier_e8, position.origins
    return _encode(
        PositionRecord(  # in the order of its fields: names would take as long as all the rest
            SCHEMA_VERSION,
            "position",
            group,
            SourceRef(topic, partition, position.source_offset),
            position.generation,
            position.book,
            position.symbol,
            position.currency,
            _text_e8(position.quantity_e8),
            format_scaled(position.open_cost_e24, _E24),
            "1" if multiplier_e8 == ONE_E8 else format_scaled(multiplier_e8),
            format_scaled(position.average_price_e8),
            format_scaled(position.realized_e24, _E24),
            format_scaled(position.unrealized_e24, _E24),
            _text_e8(position.fees_e8),
            _text_e8(position.mark_e8),
            format_timestamp(position.mark_ns) if position.mark_ns else None,
            position.trade_count,
            {str(p): o for p, o in origins.items()} if origins else None,
        )
    )


def encode_heartbeat(
    *, group: str, topic: str, partition: int, offset: int, partitions: int
) -> bytes:
    """Write that the owner of a partition is alive and has applied the source up to an offset.

    Args:
        group: Consumer group that owns the state.
        topic: Source topic of the trades.
        partition: Same number in the source topic and in the positions topic.
        offset: Last offset applied, or -1.
        partitions: How many the source topic has, by which keys were placed.
    """
    source = SourceRef(topic, partition, offset)
    return _encode(
        PositionRecord(
            schema_version=SCHEMA_VERSION,
            type="heartbeat",
            group=group,
            source=source,
            source_partitions=partitions,
        )
    )


def decode_position_record(value: bytes) -> PositionRecord:
    """Read one record of the positions topic.

    Raises:
        DecodeError: Not a record that this version wrote; never guessed at.
    """
    try:
        record = _decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DecodeError("position-record-unreadable", f"not a position record: {exc}") from exc
    if record.schema_version != SCHEMA_VERSION:
        raise DecodeError(
            "schema-version-unsupported",
            f"position record of schema {record.schema_version}; this reads {SCHEMA_VERSION}",
        )
    return record


def position_of(record: PositionRecord) -> Position:
    """Give the state that a position record holds, to the last digit.

    Raises:
        DecodeError: The record has no symbol or an amount is no plain decimal.
    """
    if record.symbol is None:
        raise DecodeError("position-record-unreadable", "a position record without a symbol")
    origins = record.origins
    try:
        return Position(
            book=record.book,
            symbol=record.symbol,
            currency=record.currency,
            quantity_e8=parse_scaled(record.quantity, SCALE),
            open_cost_e24=parse_scaled(record.open_cost, _E24),
            multiplier_e8=parse_scaled(record.multiplier, SCALE),
            realized_e24=parse_scaled(record.realized_pnl, _E24),
            fees_e8=parse_scaled(record.fees, SCALE),
            mark_e8=parse_scaled(record.mark, SCALE),
            mark_ns=parse_timestamp(record.mark_time)[0] if record.mark_time else 0,
            trade_count=record.trade_count,
            source_offset=record.source.offset,
            origins={int(p): o for p, o in origins.items()} if origins else None,
            generation=record.generation,
        )
    except ValueError as exc:
        raise DecodeError("position-record-unreadable", "an amount is not readable") from exc


def position_json(record: PositionRecord) -> dict[str, Any]:
    """Show a position record as the command line and other readers print it."""
    return {
        "book": record.book,
        "symbol": record.symbol,
        "quantity": record.quantity,
        "average_price": record.average_price,
        "realized_pnl": record.realized_pnl,
        "unrealized_pnl": record.unrealized_pnl,
        "mark": record.mark,
        "fees": record.fees,
        "source": msgspec.to_builtins(record.source),
    }
