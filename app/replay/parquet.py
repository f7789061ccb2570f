"""Rows out of Parquet files, one batch of them in memory at a time."""

from collections.abc import Iterator
from decimal import Decimal
from typing import IO, Any, Final

from app.errors import ReplayFileError
from app.replay.rows import Row
from app.timestamps import NS_PER_MS, NS_PER_S, format_timestamp

_BATCH_ROWS: Final = 1024
_BUFFER_BYTES: Final = 64 * 1024
_UNIT_NS: Final = {"s": NS_PER_S, "ms": NS_PER_MS, "us": 1_000, "ns": 1}


def parquet_rows(file: str, stream: IO[bytes]) -> tuple[tuple[str, ...], Iterator[Row]]:
    """Open a seekable stream; give its column names and its rows.

    Raises:
        ReplayFileError: pyarrow is not installed, or it is no whole Parquet file; while iterating:
            it cannot be read any further.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional and slow import
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as exc:
        problem = "Parquet needs pyarrow: pip install 'trade-stream[parquet]'"
        raise ReplayFileError(file, problem) from exc
    try:
        parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except pa.ArrowException as exc:
        raise ReplayFileError(file, "is not a Parquet file, or is cut off") from exc
    header = tuple(parquet.schema_arrow.names)

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in parquet.iter_batches(_BATCH_ROWS):
                columns = [_values(pa, column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield Row(file, number, dict(zip(header, values, strict=True)), is_typed=True)
        except pa.ArrowException as exc:
            raise ReplayFileError(file, f"cannot be read after row {number}") from exc

    return header, rows()


def _values(pa: Any, column: Any) -> list[Any]:  # noqa: ANN401 - pyarrow has no types
    """Give the values of one column as the JSON reader would: text, int, `Decimal`, bool, `None`.

    Times become ISO text to the nanosecond, with a `Z` where the column has a time zone.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(pa, column.dictionary_decode())
    if pa.types.is_timestamp(kind):
        zone = "Z" if kind.tz else ""
        return [
            None if value is None else _instant_text(value * _UNIT_NS[kind.unit], zone)
            for value in column.cast(pa.int64()).to_pylist()
        ]
    if pa.types.is_float32(kind):
        # Their own shortest text: widened to a double, 0.1 would become 0.10000000149011612.
        texts = column.cast(pa.string()).to_pylist()
        return [None if text is None else Decimal(text) for text in texts]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return [_text_or_bytes(value) for value in column.cast(pa.binary()).to_pylist()]
    is_kept = pa.types.is_decimal(kind) or pa.types.is_nested(kind)
    is_kept |= pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)
    try:
        return list((column if is_kept else column.cast(pa.string())).to_pylist())
    except (pa.ArrowException, ValueError):
        return [str(kind).encode() for _ in range(len(column))]  # bytes: no field takes them


def _instant_text(ns: int, zone: str) -> str:
    try:
        return format_timestamp(ns).removesuffix("Z") + zone
    except (OverflowError, ValueError):  # a year that the calendar does not have
        return f"{ns} ns"


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
