"""Rows out of CSV and JSON Lines, one at a time; a broken one costs none of its neighbours."""

import csv
import json
from collections import deque
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import IO, Any, Final, Self

from app.errors import DecodeError, ReplayFileError
from app.replay.rows import MAX_ROW_BYTES, Row

_BOM: Final = "\ufeff"


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


def json_rows(file: str, stream: IO[bytes]) -> Iterator[Row]:
    """Give one row for each line of JSON Lines."""
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


def csv_rows(file: str, stream: IO[bytes]) -> tuple[tuple[str, ...], Iterator[Row]]:
    """Read the header of a CSV file; give it and the rows.

    Raises:
        ReplayFileError: There is no header, or it is no CSV in UTF-8.
    """
    lines = _CsvLines(stream)
    reader = csv.reader(lines, strict=True)
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
