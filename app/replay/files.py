"""Files of rows, told by their names: CSV, JSON Lines and Parquet, plain, `.gz` or `.zst`.

A row that cannot be read is given as a row with a problem, and the file goes on after it. What ends
a file (missing, cut off, no header, of no known format) is a `ReplayFileError`. At most one row,
one read buffer or one batch of Parquet rows is held in memory.
"""

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, Self

import zstandard

from app.errors import ReplayFileError
from app.replay.decompress import COMPRESSIONS, decompressed, unpacked
from app.replay.parquet import parquet_rows
from app.replay.rows import Row
from app.replay.text import csv_rows, json_rows

_JSON_LINES: Final = (".jsonl", ".ndjson", ".json")
_FORMATS: Final = (".csv", *_JSON_LINES, ".parquet")


class RowFile:
    """An open file of rows: an iterator of `Row`, to be closed.

    Args:
        path: A regular file; its extensions name the format and the compression.

    Raises:
        ReplayFileError: The file cannot be opened; while iterating: cannot be read any further.

    Attributes:
        columns: Column names, where the format names them ahead of the rows.
    """

    def __init__(self, path: Path) -> None:
        name = str(path)
        extension, compression = _kind(path)
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise ReplayFileError(name, problem)
        self.columns: tuple[str, ...] | None = None
        self._errors = _FileErrors(name)
        with ExitStack() as opened, self._errors:
            self._stored = opened.enter_context(path.open("rb"))
            stream = decompressed(self._stored, compression)
            if extension == ".parquet" and compression is not None:
                stream = opened.enter_context(unpacked(stream))
            self._rows = self._open(name, extension, stream)
            self._opened = opened.pop_all()

    def _open(self, name: str, extension: str, stream: IO[bytes]) -> Iterator[Row]:
        if extension in _JSON_LINES:
            return json_rows(name, stream)
        self.columns, rows = (csv_rows if extension == ".csv" else parquet_rows)(name, stream)
        return rows

    @property
    def bytes_read(self) -> int:
        """How far the stored file has been read."""
        return self._stored.tell()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        with self._errors:
            return next(self._rows)

    def __enter__(self) -> Self:
        """Give the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._opened.close()


def _kind(path: Path) -> tuple[str, str | None]:
    """Give the extensions that name format and compression, in lower case."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else None
    extension = (path.with_suffix("") if compression else path).suffix.lower()
    if extension not in _FORMATS:
        raise ReplayFileError(str(path), f"unknown format: use one of {' '.join(_FORMATS)}")
    return extension, compression


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
