"""The file of reference data: read as a whole, and read again when it has changed."""

import asyncio
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog

from app.config import Settings
from app.errors import ConfigError
from app.reference import Calendar, Reference, parse_reference

log = structlog.get_logger(__name__)

LOOK_INTERVAL_S: Final = 5.0
_MOST_BYTES: Final = 64 * 1024 * 1024

_Version = tuple[int, int, int, int]
"""Device, inode, size and time of the last change: what differs when another file is there."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Reference data with the version of the file that they were read from."""

    reference: Reference
    version: _Version


def read_reference(path: Path) -> Loaded:
    """Read a file of reference data; blocks, a large one for seconds.

    Raises:
        ConfigError: It cannot be read, or something in it is wrong: every problem at once.
    """
    try:
        with path.open("rb") as file:
            version = _version(os.fstat(file.fileno()))
            content = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        raise ConfigError([f"{path}: cannot be read: {exc.strerror or exc}"]) from exc
    if len(content) > _MOST_BYTES:
        raise ConfigError([f"{path}: must have at most {_MOST_BYTES:,} bytes"])
    try:
        document = tomllib.loads(content.decode(), parse_float=_decimal)
    except (ValueError, RecursionError) as exc:  # no UTF-8, or no TOML: says line and column
        raise ConfigError([f"{path}: is not TOML: {exc}"]) from exc
    try:
        return Loaded(parse_reference(document, calendar_of=load_calendar), version)
    except ConfigError as exc:
        raise ConfigError([f"{path}: {problem}" for problem in exc.problems]) from exc


def reference_of(settings: Settings) -> Reference | None:
    """Read the reference data that are set, for a program that reads them once; `None` without.

    Raises:
        ConfigError: As of `read_reference`.
    """
    path = settings.reference_file
    return None if path is None else read_reference(path).reference


async def open_reference_file(
    settings: Settings, *, monotonic: Callable[[], float]
) -> "ReferenceFile | None":
    """Read the reference data that are set, for a program that goes on; `None` without.

    Raises:
        ConfigError: As of `read_reference`.
    """
    path = settings.reference_file
    if path is None:
        return None
    loaded = await asyncio.to_thread(read_reference, path)
    return ReferenceFile(path, loaded, monotonic=monotonic)


@cache
def load_calendar(name: str) -> Calendar:
    """Give a calendar of the library, from 20 years ago to a year ahead; slow the first time.

    Raises:
        ValueError: There is none of this name, or no library.
    """
    try:
        import exchange_calendars  # noqa: PLC0415 - an optional and slow import
    except ImportError as exc:
        raise ValueError("needs exchange-calendars: pip install 'trade-stream[calendars]'") from exc
    try:
        calendar: Any = exchange_calendars.get_calendar(name)
    except exchange_calendars.errors.InvalidCalendarName as exc:
        raise ValueError("no calendar of this name is known to exchange-calendars") from exc
    days = [session.date() for session in calendar.sessions]
    return Calendar(ZoneInfo(str(calendar.tz)), frozenset(days), days[0], days[-1])


class ReferenceFile:
    """The reference data of a program that goes on, as new as its file is right.

    What is wrong with a file is logged once, and the data from before stay.

    Args:
        path: The file.
        loaded: What was read of it at the start.
        monotonic: Clock of the interval, in seconds.

    Attributes:
        reference: The data to judge by.
        is_refused: Whether the file is not there, or not right, so that older data are used.
    """

    def __init__(self, path: Path, loaded: Loaded, *, monotonic: Callable[[], float]) -> None:
        self._path = path
        self._monotonic = monotonic
        self._seen: _Version | None = loaded.version
        self._look: asyncio.Task[Loaded | None] | None = None
        self._looked_s = monotonic()
        self.reference = loaded.reference
        self.is_refused = False

    def look(self) -> bool:
        """Look at the file now and then, beside the loop; tell whether there are newer data."""
        if self._look is None:
            if self._monotonic() - self._looked_s >= LOOK_INTERVAL_S:
                self._look = asyncio.ensure_future(asyncio.to_thread(self._read_if_changed))
            return False
        if not self._look.done():
            return False
        look, self._look = self._look, None
        self._looked_s = self._monotonic()
        try:
            loaded = look.result()
        except ConfigError as exc:
            self.is_refused = True
            log.error("reference_file_refused", problems=exc.problems)  # noqa: TRY400 - no bug of ours
            return False
        if loaded is None:
            return False
        self.reference = loaded.reference
        self.is_refused = False
        log.info("reference_file_read", file=str(self._path))
        return True

    def close(self) -> None:
        """Look no more; what a thread is reading is thrown away."""
        if self._look is not None:
            self._look.cancel()

    def _read_if_changed(self) -> Loaded | None:
        version = _version_or_none(self._path)
        if version == self._seen:
            return None
        self._seen = version  # a broken one is not read again before it changes
        loaded = read_reference(self._path)
        self._seen = loaded.version
        return loaded


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _version_or_none(path: Path) -> _Version | None:
    try:
        return _version(path.stat())
    except OSError:
        return None


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as exc:  # an exponent beyond what the decimal module holds
        raise ValueError("a number is out of range") from exc
