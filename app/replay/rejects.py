"""The rejects file: every row that was not published, with its place and the reason."""

import json
from pathlib import Path
from typing import IO, Self

from app.errors import ReplayFileError
from app.replay.rows import Row


class RejectsFile:
    """JSON Lines, created by the first row that is named in it.

    Raises:
        ReplayFileError: On adding or on leaving: it cannot be written, as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    @property
    def written_path(self) -> str | None:
        """Path of the file, once there is one."""
        return None if self._file is None else str(self._path)

    def add(self, row: Row, reason: str, message: str) -> None:
        """Name one row."""
        entry = {
            "file": row.file,
            "line": row.line,
            "reason": reason,
            "message": message,
            "raw": row.raw(),
        }
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8")
            self._file.write(json.dumps(entry) + "\n")
        except OSError as exc:
            raise self._error(exc) from exc

    def __enter__(self) -> Self:
        """Write nothing yet."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Write what is buffered, and close."""
        try:
            if self._file is not None:
                self._file.close()
        except OSError as exc:
            if kind is None:  # otherwise an error is on its way already
                raise self._error(exc) from exc

    def _error(self, exc: OSError) -> ReplayFileError:
        return ReplayFileError(str(self._path), f"cannot be written: {exc.strerror or exc}")
