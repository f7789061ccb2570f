"""One row of a file, whatever the format of the file."""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.errors import DecodeError

MAX_ROW_BYTES: Final = 128 * 1024
"""Longest row that is read, which is also the longest field the csv module takes."""

MAX_RAW_BYTES: Final = 4096
"""How much of a refused row is kept to show it."""


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
