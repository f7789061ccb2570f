"""Rows of CSV, JSON Lines and Parquet files, one at a time, plain or compressed.

A row that cannot be read is given as a row with a problem, and the file goes on after it. What ends
a file (missing, cut off, no header, of no known format) is a `ReplayFileError`. At most one row,
one read buffer or one batch of Parquet rows is held in memory.
"""

import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final, Self

import msgspec
import zstandard

from app.errors import DecodeError, TradeStreamError
from app.timestamps import NS_PER_MS, NS_PER_S, format_timestamp

MAX_ROW_BYTES: Final = 128 * 1024
"""Longest row that is read, which is also the longest field the csv module takes."""

MAX_RAW_BYTES: Final = 4096
"""How much of a refused row is kept to show it."""

_ZSTD_INPUT_BYTES: Final = 2048  # zstd can grow 32,000-fold: this bounds one output at 64 MiB
_PARQUET_BATCH_ROWS: Final = 1024
_PARQUET_BUFFER_BYTES: Final = 64 * 1024
_BOM: Final = "\ufeff"
_UNIT_NS: Final = {"s": NS_PER_S, "ms": NS_PER_MS, "us": 1_000, "ns": 1}


class Format(StrEnum):
    """How the rows of a file are written."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


_FORMATS: Final = {
    ".csv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".parquet": Format.PARQUET,
}
_COMPRESSIONS: Final = frozenset({".gz", ".zst"})


class ReplayFileError(TradeStreamError):
    """A file cannot be read, or cannot be read any further.

    Args:
        file: The file as it was named.
        problem: What is wrong with it.
    """

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read files whose name or dialect does not say it.

    Attributes:
        file_format: Format of every file; by the extension of each when `None`.
        delimiter: One character between two CSV cells.
    """

    file_format: Format | None = None
    delimiter: str = ","


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row of a file.

    Attributes:
        file: The file as it was named.
        line: Physical line, from 1, on which the row starts; in Parquet the number of the row.
        columns: Values by column name; an empty CSV cell is `None`.
        is_typed: Whether the file tells numbers from text; CSV does not.
        text: The row as it stands in a text file.
        problem: Why it cannot be read; it then has no columns.
    """

    file: str
    line: int
    columns: Mapping[str, Any]
    is_typed: bool
    text: str | None = None
    problem: DecodeError | None = None

    def raw(self) -> str:
        """Show the row, cut at 4 KiB; bytes that are no UTF-8 are written as escapes."""
        text = json.dumps(self.columns, default=str) if self.text is None else self.text
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return shown.encode()[:MAX_RAW_BYTES].decode("utf-8", "ignore")


class RowFile:
    """An open file of rows: an iterator of `Row`, to be closed.

    Args:
        path: A regular file.
        options: What its name does not say.

    Raises:
        ReplayFileError: The file cannot be opened; while iterating: cannot be read any further.
        ImportError: It is a Parquet file and pyarrow is not installed.

    Attributes:
        columns: Column names, where the format names them ahead of the rows.
        bytes_total: Size of the file as stored.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self._name = str(path)
        file_format, compression = detect_format(path, options.file_format)
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise ReplayFileError(self._name, problem)
        self.columns: tuple[str, ...] | None = None
        self._errors = _FileErrors(self._name)
        with ExitStack() as opened, self._errors:
            self._stored = opened.enter_context(path.open("rb"))
            self.bytes_total = path.stat().st_size
            stream = _decompressed(self._stored, compression)
            if file_format is Format.PARQUET:
                if compression is not None:  # Parquet is read from its end: it has to be seekable
                    stream = _unpacked(stream, opened)
                self.columns, self._rows = _parquet_rows(self._name, stream)
            elif file_format is Format.CSV:
                self.columns, self._rows = _csv_rows(self._name, stream, options.delimiter)
            else:
                self._rows = _json_rows(self._name, stream)
            self._opened = opened.pop_all()

    @property
    def bytes_read(self) -> int:
        """How far the stored file has been read."""
        return 0 if self._stored.closed else self._stored.tell()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        with self._errors:
            return next(self._rows)

    def close(self) -> None:
        """Close the file; harmless when it is closed."""
        self._opened.close()


def read_rows(path: Path, options: ReadOptions | None = None) -> RowFile:
    """Open a file of rows; see `RowFile` for what it raises."""
    return RowFile(path, options or ReadOptions())


def detect_format(path: Path, file_format: Format | None = None) -> tuple[Format, str | None]:
    """Tell format and compression (`.gz`, `.zst`, `None`) by the extensions of a file name.

    Raises:
        ReplayFileError: No format is given, and the extension is none of ours.
    """
    compression = path.suffix.lower() if path.suffix.lower() in _COMPRESSIONS else None
    extension = (path.with_suffix("") if compression else path).suffix.lower()
    found = file_format or _FORMATS.get(extension)
    if found is None:
        known = " ".join(_FORMATS)
        raise ReplayFileError(str(path), f"unknown format: name it, or use one of {known}")
    return found, compression


class _FileErrors:
    """Turns what a library says of a broken file into a `ReplayFileError`; cheap to enter."""

    __slots__ = ("_file",)

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError | EOFError | zlib.error | zstandard.ZstdError):
            problem = getattr(error, "strerror", None) or str(error)
            raise ReplayFileError(self._file, f"cannot be read: {problem}") from error


class _ZstdStream(io.RawIOBase):
    """A zstd stream of one or more frames that notices when the last one is cut off."""

    def __init__(self, stored: IO[bytes]) -> None:
        self._stored = stored
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        while not self._output:
            if not self._input:
                self._input = self._stored.read(_ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the zstd stream is cut off")
                return 0
            self._decompress()
        taken = min(len(buffer), len(self._output))
        buffer[:taken] = self._output[:taken]
        self._output = self._output[taken:]
        return taken

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._output = self._frame.decompress(self._input)
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None


def _decompressed(stored: IO[bytes], compression: str | None) -> IO[bytes]:
    if compression == ".gz":
        # The buffer in front reads lines in C; a GzipFile reads them in Python.
        return io.BufferedReader(gzip.GzipFile(fileobj=stored))
    return io.BufferedReader(_ZstdStream(stored)) if compression == ".zst" else stored


def _unpacked(stream: IO[bytes], opened: ExitStack) -> IO[bytes]:
    unpacked = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is entered
    shutil.copyfileobj(stream, unpacked)
    unpacked.seek(0)
    return unpacked


def _physical_lines(stream: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Give each line with its line end, and whether it was too long and is only its beginning."""
    while line := stream.readline(MAX_ROW_BYTES):
        rest = line
        while len(rest) == MAX_ROW_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_ROW_BYTES)
        yield line, rest is not line


def _is_utf8(text: str) -> bool:
    """Tell whether text decoded with `surrogateescape` came from valid UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _body_problem(text: str, *, is_cut: bool) -> DecodeError | None:
    if is_cut:
        return DecodeError("body-too-large", f"the row is longer than {MAX_ROW_BYTES} bytes")
    if not text.strip():
        return DecodeError("body-empty", "the line is blank")
    if not _is_utf8(text):
        return DecodeError("body-not-utf8", "the row is not UTF-8")
    return None


def _json_rows(file: str, stream: IO[bytes]) -> Iterator[Row]:
    for number, (line, is_cut) in enumerate(_physical_lines(stream), start=1):
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if number == 1:
            text = text.removeprefix(_BOM)
        problem, columns = _body_problem(text, is_cut=is_cut), {}
        if problem is None:
            try:
                columns = _json_object(text)
            except DecodeError as exc:
                problem = exc
        yield Row(file, number, columns, is_typed=True, text=text, problem=problem)


def _json_object(text: str) -> dict[str, Any]:
    """Read one JSON object; numbers with a point or an exponent keep every digit, as `Decimal`."""
    try:
        body = _decode_json(text)
    except DecodeError:
        raise
    except (ValueError, InvalidOperation) as exc:
        raise DecodeError("body-not-json", "the row is not JSON") from exc
    except RecursionError as exc:
        raise DecodeError("body-too-deep", "the row is nested too deep") from exc
    if not isinstance(body, dict):
        raise DecodeError("body-not-object", "the row is not one JSON object")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise DecodeError("body-duplicate-key", "an object has the same key twice")
    return fields


_decode_json = json.JSONDecoder(object_pairs_hook=_unique, parse_float=Decimal).decode


class _CsvLines:
    """The physical lines that a CSV reader takes, kept until their row is known to be good.

    A quotation mark too many makes a reader swallow the rows that follow: the row is then refused
    by its first line alone, and the lines after it are given again.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines = _physical_lines(stream)
        self._again: deque[tuple[str, bool]] = deque()
        self._taken: list[tuple[str, bool]] = []
        self._size = 0
        self.number = 1
        """Line on which the row in hand starts."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._size >= MAX_ROW_BYTES:
            raise StopIteration
        if self._again:
            text, is_cut = self._again.popleft()
        else:
            line, is_cut = next(self._lines)
            text = line.decode("utf-8", "surrogateescape")
            if self.number == 1 and not self._taken:
                text = text.removeprefix(_BOM)
        self._taken.append((text, is_cut))
        self._size += len(text)
        return text

    @property
    def text(self) -> str:
        """The row in hand, without its last line end."""
        if len(self._taken) == 1:
            return self._taken[0][0].rstrip("\r\n")
        return "".join(text for text, _ in self._taken).rstrip("\r\n")

    @property
    def is_cut(self) -> bool:
        """Whether a line of the row in hand was too long to be read whole."""
        return any(is_cut for _, is_cut in self._taken)

    def give_back(self) -> None:
        """Keep the first line only; the others are read again."""
        self._again.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]

    def start_next(self) -> None:
        """Go on to the next row."""
        self.number += len(self._taken)
        self._taken.clear()
        self._size = 0


def _csv_rows(
    file: str, stream: IO[bytes], delimiter: str
) -> tuple[tuple[str, ...], Iterator[Row]]:
    lines = _CsvLines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as exc:
        raise ReplayFileError(file, f"the header is not CSV: {exc}") from exc
    if not any(header):
        raise ReplayFileError(file, "has no header")
    if lines.is_cut or not _is_utf8(lines.text):
        raise ReplayFileError(file, "the header is not UTF-8 text")
    return tuple(header), _csv_body(file, lines, reader, header)


def _csv_body(
    file: str, lines: _CsvLines, reader: Iterator[list[str]], header: list[str]
) -> Iterator[Row]:
    while True:
        lines.start_next()
        cells, problem = None, None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            problem = DecodeError("body-not-csv", "the quotation marks of the row do not pair up")
        if cells is not None and len(cells) != len(header):
            problem = DecodeError("body-column-count", f"the row must have {len(header)} columns")
        if problem is not None:
            lines.give_back()
        text = lines.text
        problem = _body_problem(text, is_cut=lines.is_cut) or problem
        columns = {}
        if problem is None and cells is not None:
            columns = dict(zip(header, [cell or None for cell in cells], strict=True))
        yield Row(file, lines.number, columns, is_typed=False, text=text, problem=problem)


def _parquet_rows(file: str, stream: IO[bytes]) -> tuple[tuple[str, ...], Iterator[Row]]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional and slow import
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as exc:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'trade-stream[parquet]'"
        ) from exc
    try:
        parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES)
    except pa.ArrowException as exc:
        raise ReplayFileError(file, "is not a Parquet file, or is cut off") from exc
    header = tuple(parquet.schema_arrow.names)

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in parquet.iter_batches(_PARQUET_BATCH_ROWS):
                columns = [_parquet_values(column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield Row(file, number, dict(zip(header, values, strict=True)), is_typed=True)
        except pa.ArrowException as exc:
            raise ReplayFileError(file, f"cannot be read after row {number}") from exc

    return header, rows()


def _parquet_values(column: Any) -> list[Any]:  # noqa: ANN401 - pyarrow has no types
    """Give the values of one column as the JSON reader would: text, int, `Decimal`, bool, `None`.

    Times become ISO text to the nanosecond, with a `Z` where the column has a time zone.
    """
    import pyarrow as pa  # noqa: PLC0415 - an optional and slow import

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _parquet_values(column.dictionary_decode())
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
    is_number = pa.types.is_decimal(kind) or (
        pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)
    )
    try:
        is_kept = is_number or pa.types.is_nested(kind)
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
