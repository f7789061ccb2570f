"""The tables and views of the analytics copy.

A row is known by its place in the topic, so that copying it again replaces it by itself; whoever
reads with FINAL sees it once. No view adds up rows as they arrive: a sum over a stream counts a
replay twice, and would not know it.
"""

from typing import Final

SCHEMA: Final = 1
"""Raised with every change of a table, or of what a row is made of: a copy is then made anew."""

_PLACE: Final = """
    source_partition Int32 COMMENT 'Place of the record in the topic: partition',
    source_offset Int64 CODEC(Delta, LZ4) COMMENT 'and offset',"""
_END: Final = """
    appended_at DateTime64(3, 'UTC') CODEC(Delta, LZ4) COMMENT 'When the broker took it',
    revision UInt32 COMMENT '0 as copied; one more with every repair of its range'"""

_TRADES: Final = f"""
CREATE TABLE IF NOT EXISTS {{name}} ({_PLACE}
    trade_id String,
    version UInt64 COMMENT '0: a change whose sender does not count versions',
    action Enum8('NEW' = 1, 'AMEND' = 2, 'CANCEL' = 3),
    book LowCardinality(String) COMMENT 'Empty: none',
    symbol LowCardinality(String),
    side Enum8('BUY' = 1, 'SELL' = -1),
    price Decimal(20, 8),
    quantity Decimal(20, 8),
    multiplier Decimal(20, 8),
    fee Decimal(20, 8) COMMENT 'Sum of the fees in the currency of the trade',
    currency LowCardinality(String),
    executed_at DateTime64(9, 'UTC') CODEC(Delta, LZ4),{_END},
    notional Decimal(76, 24) ALIAS toDecimal256(price, 8) * quantity * multiplier,
    signed_notional Decimal(76, 24) ALIAS notional * toInt8(side),
    INDEX by_time executed_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(revision) ORDER BY (source_partition, source_offset)
COMMENT 'Every record of the topic that is a trade event, booked or not'
"""
_REFUSED: Final = f"""
CREATE TABLE IF NOT EXISTS {{name}} ({_PLACE}
    reason LowCardinality(String) COMMENT 'As in the dead letters',{_END}
) ENGINE = ReplacingMergeTree(revision) ORDER BY (source_partition, source_offset)
COMMENT 'Every other record of the topic'
"""
_COPY_OF: Final = """
CREATE TABLE IF NOT EXISTS copy_of (
    copy_id UUID,
    topic String,
    default_currency String,
    schema UInt32,
    created_at DateTime DEFAULT now()
) ENGINE = MergeTree ORDER BY copy_id
COMMENT 'What this is a copy of: one row'
"""
_PROGRESS: Final = """
CREATE TABLE IF NOT EXISTS copy_progress (
    copy_id UUID COMMENT 'Of another one: written by a process that did not know of the rebuild',
    source_partition Int32,
    first_offset Int64 COMMENT 'Where the copy begins',
    next_offset Int64 COMMENT 'Every record before it is in the copy',
    written_at DateTime DEFAULT now()
) ENGINE = ReplacingMergeTree(next_offset) ORDER BY (copy_id, source_partition)
COMMENT 'How far each partition is copied; the highest offset counts'
"""

_TRADE_LIST: Final = """
CREATE OR REPLACE VIEW trade_list AS
SELECT
    trade_id, version, action, book, symbol, side, price, quantity, multiplier, currency,
    notional, signed_notional, fee, executed_at, appended_at, source_partition, source_offset
FROM trades FINAL
COMMENT 'Every trade event by its place, each once; one that was sent twice is there twice'
"""
_CELLS: Final = (
    *("version", "action", "book", "symbol", "side", "price", "quantity", "multiplier"),
    *("currency", "notional", "signed_notional", "fee", "executed_at", "appended_at"),
    *("source_partition", "source_offset"),
)
# The last word on a trade: a cancellation is final; a change that carries no version comes after
# those that do, the later place last; of equal versions the first place, as a ledger books it.
_LAST: Final = (
    "tuple(action = 'CANCEL', if(version = 0, toUInt64(-1), version),"
    " if(version = 0, source_offset, -source_offset), -source_partition)"
)
_LAST_TRADES: Final = f"""
CREATE OR REPLACE VIEW last_trades AS
SELECT
    trade_id,
    {", ".join(f"last.{number} AS {name}" for number, name in enumerate(_CELLS, 1))},
    events
FROM (
    SELECT
        trade_id,
        argMax(tuple({", ".join(_CELLS)}), {_LAST}) AS last,
        count() AS events
    FROM trades FINAL
    GROUP BY trade_id
)
COMMENT 'Every trade once, as its last version; events counts what was sent about it'
"""  # noqa: S608 - names of our own


def _volumes(name: str, keys: str, comment: str) -> str:
    names = ", ".join(key.rpartition(" AS ")[2] for key in keys.split("; "))
    return f"""
CREATE OR REPLACE VIEW {name} AS
SELECT
    {keys.replace("; ", ", ")},
    count() AS trades,
    sum(toDecimal256(quantity, 8)) AS volume,
    sum(notional) AS notional,
    sum(signed_notional) AS signed_notional,
    roundBankers(sum(toDecimal256(price, 8) * quantity) / toDecimal256(volume, 8), 8) AS vwap
FROM (SELECT * FROM last_trades WHERE action != 'CANCEL')
GROUP BY {names}
COMMENT '{comment}'
"""  # noqa: S608 - names of our own


TABLES: Final = (
    _COPY_OF,
    _PROGRESS,
    _TRADES.format(name="trades"),
    _REFUSED.format(name="refused"),
)
VIEWS: Final = (
    _TRADE_LIST,
    _LAST_TRADES,
    _volumes(
        "volume_by_minute",
        "toStartOfMinute(executed_at) AS minute; book; symbol; currency",
        "Distinct trades by minute, book and symbol",
    ),
    _volumes("volume_by_symbol", "symbol; currency", "Distinct trades by symbol"),
    _volumes("volume_by_book", "book; currency", "Distinct trades by book"),
)
CHECK_TABLES: Final = (
    _TRADES.format(name="check_trades"),
    _REFUSED.format(name="check_refused"),
)
"""What the topic holds of a range, beside the copy, while the two are compared."""
NAMES: Final = (
    *("volume_by_minute", "volume_by_symbol", "volume_by_book", "last_trades", "trade_list"),
    *("trades", "refused", "copy_progress", "copy_of", "check_trades", "check_refused"),
)
"""Everything of ours, in the order in which it can be dropped."""
