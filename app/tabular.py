"""Rows for people and programs: exact decimals as text, CSV that runs nothing in a spreadsheet."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from io import StringIO
from typing import Any, Final

Row = Mapping[str, Any]
"""Text, ints, `Decimal`, `None`, lists of text and JSON objects, by name."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "'")


def plain(amount: Decimal) -> str:
    """Write a decimal with all its digits: no exponent, no trailing zeros."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def json_text(row: Row) -> str:
    """Write a row as a JSON object on one line; decimals become text."""
    return json.dumps(row, default=_plain, ensure_ascii=False)


def csv_text(rows: Iterable[Row]) -> str:
    """Write rows as lines of CSV.

    Text that a spreadsheet would take for a formula gets a `'` in front, and so does text that has
    one already: to take one away gives back what it was. Numbers are left alone.
    """
    return csv_lines([_csv_cell(value) for value in row.values()] for row in rows)


def csv_lines(lines: Iterable[Sequence[str]]) -> str:
    """Write cells as lines of CSV, as they are."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def shown(value: object) -> str:
    """Write a cell for a person."""
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, list):
        return ", ".join(value)
    return json_text(value) if isinstance(value, dict) else str(value)


def _csv_cell(value: object) -> str:
    if isinstance(value, list):
        value = ",".join(value)
    text = shown(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA_STARTS) else text


def _plain(value: object) -> str:
    assert isinstance(value, Decimal), f"no cell of a row: {type(value)}"
    return plain(value)
