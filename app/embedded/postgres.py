"""Supervise a real PostgreSQL that only this machine's own programs reach, by a unix socket.

A start leaves the server running on its own; whoever has the data directory can see and stop it
later, from any process. Every state that a killed start, stop or server can leave behind is one
that the next start takes up:

    nothing ──▶ data.partial ──▶ data ──▶ process launched ──▶ recovered ──▶ ready
                (made afresh)   (renamed)   (pid file)

Every process of the server holds a lock on `in-use` of its directory, which the system releases
with the last of them. So two servers never work on the same data, whatever pid files say: not when
pids are used again, and not from two containers that share the directory.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from app.config import data_home
from app.embedded.postgres_dir import PostgresDir
from app.embedded.postgres_programs import Programs, find_programs
from app.embedded.postgres_settings import PORT, server_settings
from app.embedded.process import Process, exclusive, launch_detached, read_pid_file, terminate
from app.errors import EmbeddedDatabaseError, EmbeddedError

DATABASE: Final = "trade_stream"
SUPERUSER: Final = "postgres"
START_TIMEOUT_S: Final = 300.0  # a recovery reads up to max_wal_size of log
STOP_TIMEOUT_S: Final = 60.0  # the last checkpoint writes what is in shared_buffers
_LAST_PROCESS_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.05
_PROGRESS_S: Final = 5.0
_LOG_TAIL_LINES: Final = 20

_log = logging.getLogger(__name__)


def default_data_dir() -> Path:
    """Give the data directory of `DATABASE_URL=embedded`."""
    return data_home() / "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresStatus:
    """What is known about an embedded PostgreSQL at one moment.

    Args:
        running: Its process is there.
        ready: It lets clients in.
        pid: Of its first process; None when it does not run.
        url: Where clients find it while it runs.
        data_dir: Where everything of it is.
        version: Of PostgreSQL.
    """

    running: bool
    ready: bool
    pid: int | None
    url: str
    data_dir: Path
    version: str


class EmbeddedPostgres:
    """A PostgreSQL server that lives in one data directory, with one database, `trade_stream`.

    All methods block; from a coroutine call them by `asyncio.to_thread`. As a context manager it
    starts the server and stops it at the end.

    Args:
        data_dir: Made when missing; holds data, log and pid file.
        settings: Added to the configuration, or put in the place of ours.
        notify: Told what happens in single lines; by default they are logged.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        notify: Callable[[str], None] = _log.info,
    ) -> None:
        self._dir = PostgresDir(data_dir)
        self._settings = dict(settings or {})
        self._notify = notify

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where clients find the database; the same for as long as the directory has its name."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Give where clients find another database of the server."""
        host = quote(str(self._dir.socket_dir))
        # The port too, or a PGPORT that is meant for another server would be taken.
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={host}&port={PORT}"

    @property
    def log_path(self) -> Path:
        """What the server has said since its start."""
        return self._dir.log

    def program(self, name: str) -> Path:
        """Give one of PostgreSQL's own programs, such as `psql`.

        Raises:
            EmbeddedDatabaseError: PostgreSQL is not installed.
        """
        return self._programs().path(name)

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server unless it runs, and return when it lets clients in.

        Args:
            timeout_s: Bound on the wait for another start or stop, and on the wait until ready.

        Raises:
            EmbeddedDatabaseError: What is in the way and what to do. A server that was only not
                ready in time is left to go on, since a recovery that is broken off has to begin
                again; any other that this call has launched is not left running.
            EmbeddedError: Another start or stop was under way for all that time.
        """
        self._dir.make()
        deadline = time.monotonic() + timeout_s
        with self._locked(timeout_s):
            programs = self._programs()
            process = self._running()
            # One that is on its way to its end is not the one that was asked for.
            if process is not None and self._becomes_ready(programs, process, deadline):
                self._notify(f"already running at {self.url}")
                return
            self._tell_of_crash()
            with self._data_for_ourselves() as descriptor:
                process = self._launch(programs, descriptor)
                try:
                    is_ready = self._becomes_ready(programs, process, deadline)
                except _NotReadyYetError:
                    raise
                except BaseException:  # an interrupt too must not leave it half started
                    self._end(process, STOP_TIMEOUT_S)
                    raise
            if not is_ready:
                raise EmbeddedDatabaseError(f"PostgreSQL has died; {self._log_tail()}")
            self._notify(f"running at {self.url}")

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Disconnect all clients, write everything out and end.

        Args:
            timeout_s: A server that takes longer is ended at once, and recovers at its next start.

        Raises:
            EmbeddedDatabaseError: The server belongs to another user.
            EmbeddedError: Another start or stop is under way for all that time.
        """
        if not self._dir.path.is_dir():
            self._notify("not running")
            return
        with self._locked(timeout_s):
            process = self._running()
            if process is None:
                self._tell_of_crash()
                self._notify("not running")
                return
            if not self._end(process, timeout_s):
                self._notify(
                    f"process {process.pid} did not stop in time and was made to; "
                    "nothing committed is lost, the next start recovers it"
                )
            self._notify("stopped")

    def status(self, *, probe: bool = True) -> PostgresStatus:
        """Say what runs now.

        Args:
            probe: Ask the server whether it lets clients in, for 2 s at most; without it `ready`
                is False.

        Raises:
            EmbeddedDatabaseError: PostgreSQL is not installed.
        """
        programs = self._programs()
        process = self._running()
        return PostgresStatus(
            running=process is not None,
            ready=probe and process is not None and self._is_ready(programs, process),
            pid=process.pid if process else None,
            url=self.url,
            data_dir=self._dir.path,
            version=programs.version,
        )

    def _programs(self) -> Programs:
        return find_programs(self._dir.data)

    def _locked(self, timeout_s: float) -> AbstractContextManager[int]:
        return exclusive(
            self._dir.lock,
            timeout_s=timeout_s,
            on_wait=lambda: self._notify("waiting for another start or stop to end"),
        )

    @contextmanager
    def _data_for_ourselves(self) -> Iterator[int]:
        """Hold the lock that the server is going to inherit."""
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(
                    exclusive(
                        self._dir.in_use,
                        timeout_s=_LAST_PROCESS_TIMEOUT_S,
                        on_wait=lambda: self._notify("waiting for the last server to be all gone"),
                    )
                )
            except EmbeddedError as exc:
                raise EmbeddedDatabaseError(
                    f"{self._dir.data} is in use by a server that has no pid file here; find it by "
                    "`ps ax | grep postgres` and end it, here or in another container, or choose "
                    "another data directory (--data-dir)"
                ) from exc
            yield descriptor

    def _running(self) -> Process | None:
        process = read_pid_file(self._dir.pid_file)
        return process if process is not None and process.is_alive() else None

    def _tell_of_crash(self) -> None:
        if self._dir.pid_file.exists():  # a stop removes it
            self._notify("the server had ended without a stop; a start recovers what it had done")

    def _launch(self, programs: Programs, descriptor: int) -> Process:
        programs = programs.within_reach(self._dir.path)
        version = programs.version
        if not self._dir.data.exists():
            self._make_data(programs, version, descriptor)
        self._dir.require_version(version)
        self._dir.make_socket_dir(programs.account)
        if (before := read_pid_file(self._dir.pid_file)) is not None:
            self._dir.forget_server(before.pid)
        text = server_settings(self._dir.socket_dir, self._settings)
        self._dir.settings.write_text(text, encoding="utf-8")
        self._dir.keep_log()
        account = programs.account
        return launch_detached(
            [
                str(programs.path("postgres")),
                *("-D", str(self._dir.data)),
                *("-c", f"config_file={self._dir.settings}"),
            ],
            pid_file=self._dir.pid_file,
            log_file=self._dir.log,
            cwd=self._dir.path,
            account=(account.uid, account.gid) if account else None,
            descriptors=(descriptor,),
        )

    def _make_data(self, programs: Programs, version: str, descriptor: int) -> None:
        self._notify(f"making the database, PostgreSQL {version}")
        self._dir.begin_data(programs.account)
        programs.run(
            "initdb",
            *("-D", str(self._dir.partial)),
            *("--username", SUPERUSER),
            *("--encoding", "UTF8"),
            *("--locale", "C"),
            # Texts sort alike on every system, and at every version of its libraries.
            *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            *("--auth-local", "trust"),  # the folder of the socket keeps everybody else out
            *("--auth-host", "reject"),
            "--data-checksums",
            "--no-instructions",
            descriptors=(descriptor,),
        )
        programs.run(
            "postgres",
            *("--single", "-D", str(self._dir.partial), "-c", "exit_on_error=on", SUPERUSER),
            statements=f"CREATE DATABASE {DATABASE};\n",
            descriptors=(descriptor,),
        )
        self._dir.end_data()

    def _is_ready(self, programs: Programs, process: Process) -> bool:
        return self._dir.is_serving(process.pid) and programs.accepts_connections(
            self._dir.socket_dir, DATABASE
        )

    def _becomes_ready(self, programs: Programs, process: Process, deadline: float) -> bool:
        """Wait until the server lets clients in; False when it ends instead."""
        began = told = time.monotonic()
        while not self._is_ready(programs, process):
            if not process.is_alive():
                return False
            now = time.monotonic()
            if now > deadline:
                raise _NotReadyYetError(
                    f"PostgreSQL is not ready after {now - began:.0f} s, and goes on: a recovery "
                    "after a crash takes its time. `trade-stream db status` says when it is ready; "
                    f"{self._log_tail()}"
                )
            if now - told >= _PROGRESS_S:
                told = now
                last = (self._dir.log_lines() or ["nothing"])[-1]
                self._notify(f"not ready after {now - began:.0f} s; its log says: {last}")
            time.sleep(_POLL_S)
        return True

    def _end(self, process: Process, timeout_s: float) -> bool:
        """End the server; tell whether it did so in an orderly way."""
        try:
            # SIGINT is its fast shutdown. SIGKILL would leave its other processes to themselves,
            # SIGQUIT takes them along.
            forced = terminate(
                [process], timeout_s=timeout_s, request=signal.SIGINT, force=signal.SIGQUIT
            )
        except PermissionError as exc:
            raise EmbeddedDatabaseError(
                f"process {process.pid} belongs to another user; stop it as that user or as root"
            ) from exc
        self._dir.pid_file.unlink(missing_ok=True)
        self._dir.forget_socket_dir()
        return not forced

    def _log_tail(self) -> str:
        tail = "\n".join(self._dir.log_lines()[-_LOG_TAIL_LINES:]) or "(empty)"
        return f"the end of {self._dir.log}:\n{tail}"


class _NotReadyYetError(EmbeddedDatabaseError):
    """The server is alive, and neither ready nor to be given up."""
