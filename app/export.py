"""Rows of the ledger into a file, CSV or Parquet, a piece at a time; there whole, or not at all."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from app.errors import ConfigError, TradeStreamError
from app.tabular import Row, csv_lines, csv_text
from app.timestamps import format_timestamp

_ROWS_A_GROUP: Final = 65_536
_DIGITS: Final = 38  # of a decimal128


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a file.

    Attributes:
        name: In the file.
        kind: `text`, `int`, `long`, `amount` (an exact decimal), `instant` or `texts`.
        digits: Of an amount, in all, and `scale` of them after the point.
        scale: See `digits`.
        source: Its name in the rows, where that is another one.
    """

    name: str
    kind: str = "text"
    digits: int = 20
    scale: int = 8
    source: str = ""

    def of(self, row: Row) -> Any:  # noqa: ANN401 - a cell of any kind
        """Give its cell of a row."""
        return row[self.source or self.name]


TRADES: Final = (
    *map(Column, ("trade_id", "action", "book", "symbol", "side")),
    Column("version", "int"),
    *(Column(name, "amount") for name in ("price", "quantity", "multiplier", "fee")),
    Column("currency"),
    Column("executed_at", "instant", source="executed_ns"),
    Column("suspects", "texts"),
    Column("details"),
    Column("source_partition", "int"),
    Column("source_offset", "long"),
)
POSITIONS: Final = (
    *map(Column, ("book", "symbol", "currency")),
    Column("quantity", "amount", _DIGITS),
    Column("average_price", "amount", _DIGITS),
    *(
        Column(name, "amount", _DIGITS, 24)
        for name in ("open_cost", "realized_pnl", "unrealized_pnl")
    ),
    Column("fees", "amount", _DIGITS),
    Column("multiplier", "amount"),
    Column("mark", "amount"),
    Column("mark_at", "instant", source="mark_ns"),
    Column("trade_count", "long"),
    Column("method"),
    Column("source_partition", "int"),
    Column("source_offset", "long"),
)
DEAD_LETTERS: Final = (
    Column("source_partition", "int"),
    Column("source_offset", "long"),
    *map(Column, ("reason", "kind", "message")),
)


class Sheet(Protocol):
    """Takes rows for a file."""

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows."""

    def flush(self) -> None:
        """Write what is left."""

    def close(self) -> None:
        """Let go of the file."""


def writer_for(path: Path) -> Callable[[IO[bytes], Sequence[Column]], Sheet]:
    """Choose the format by the file's name.

    Raises:
        ConfigError: It is neither of the two, or pyarrow is not installed.
    """
    if path.suffix == ".csv":
        return _CsvSheet
    if path.suffix != ".parquet":
        raise ConfigError([f"{path}: must end with .parquet or .csv, which tells the format"])
    try:
        import pyarrow.parquet  # noqa: F401, PLC0415 - an optional and slow import
    except ImportError as exc:
        raise ConfigError(
            [f"{path}: Parquet needs pyarrow: pip install 'trade-stream[parquet]'"]
        ) from exc
    return _ParquetSheet


@contextmanager
def sheet_at(path: Path, columns: Sequence[Column]) -> Iterator[Sheet]:
    """Give a sheet that becomes the file at the end of the block, in the place of an older one.

    Whatever ends the block early leaves things as they were.

    Raises:
        ConfigError: As `writer_for`.
        TradeStreamError: The file cannot be written.
    """
    make = writer_for(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            with closing(make(file, columns)) as sheet:
                yield sheet
                sheet.flush()
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as exc:
        raise TradeStreamError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    finally:
        partial.unlink(missing_ok=True)


class _CsvSheet:
    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self._file = file
        self._columns = columns
        file.write(csv_lines([[column.name for column in columns]]).encode())

    def add(self, rows: Sequence[Row]) -> None:
        self._file.write(csv_text(map(self._cells, rows)).encode())

    def _cells(self, row: Row) -> Row:
        cells = {column.name: column.of(row) for column in self._columns}
        for column in self._columns:
            if column.kind == "instant":
                cells[column.name] = format_timestamp(cells[column.name])
        return cells

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing but the file is open, which is not ours."""


class _ParquetSheet:
    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an optional and slow import
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._pa = pa
        self._columns = columns
        self._schema = pa.schema([(column.name, _arrow_type(pa, column)) for column in columns])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._batches: list[Any] = []  # a small part of what the same rows take as objects
        self._count = 0

    def add(self, rows: Sequence[Row]) -> None:
        self._batches.append(self._batch(rows))
        self._count += len(rows)
        if self._count >= _ROWS_A_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._count:
            table = self._pa.Table.from_batches(self._batches, self._schema)
            self._writer.write_table(table, row_group_size=self._count)
        self._batches = []
        self._count = 0

    def close(self) -> None:
        self._writer.close()

    def _batch(self, rows: Sequence[Row]) -> Any:  # noqa: ANN401 - pyarrow has no types
        pa = self._pa
        arrays = []
        for column, kind in zip(self._columns, self._schema.types, strict=True):
            try:
                arrays.append(pa.array([column.of(row) for row in rows], kind))
            except pa.ArrowInvalid as exc:
                raise TradeStreamError(
                    f"{column.name}: an amount has more digits than a decimal128"
                    f"({column.digits}, {column.scale}) holds; a .csv file takes it"
                ) from exc
        return pa.record_batch(arrays, schema=self._schema)


def _arrow_type(pa: Any, column: Column) -> Any:  # noqa: ANN401 - pyarrow has no types
    kinds = {
        "text": pa.string(),
        "int": pa.int32(),
        "long": pa.int64(),
        "amount": pa.decimal128(column.digits, column.scale),
        "instant": pa.timestamp("ns", tz="UTC"),
        "texts": pa.list_(pa.string()),
    }
    return kinds[column.kind]
