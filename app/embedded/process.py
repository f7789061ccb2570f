"""Processes known by pid files: launched detached, recognised later, ended in bounded time.

A pid alone proves nothing, since systems reuse them: a pid file also holds the start token of its
process, and a process counts as alive only while both agree.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from app.embedded import launch
from app.errors import EmbeddedError

_POLL_S = 0.02  # of a process that is no child of ours, and of a lock held by another
_LAUNCH_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 10.0  # a killed process goes at once, unless the kernel waits for a disk


class Process(msgspec.Struct, frozen=True):
    """One life of one process."""

    pid: int
    token: str | None

    def is_alive(self) -> bool:
        """Tell whether this very process still runs; a zombie does not."""
        return self.token is not None and launch.start_token(self.pid) == self.token


def read_pid_file(path: Path) -> Process | None:
    """Read who a pid file names; None when it is missing or not readable as one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Process)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def launch_detached(
    command: list[str],
    *,
    pid_file: Path,
    log_file: Path,
    cwd: Path,
    account: tuple[int, int] | None = None,
    descriptors: Sequence[int] = (),
) -> Process:
    """Start a program in a session of its own, its output going to `log_file`.

    Args:
        command: Absolute path of the program and its arguments.
        pid_file: Written before this returns.
        log_file: Appended to.
        cwd: Working directory of the program.
        account: User and group id that the program runs as; by default our own.
        descriptors: Open files that the program inherits.

    Raises:
        EmbeddedError: The system refused to start it.
    """
    user = launch.SAME_ACCOUNT if account is None else f"{account[0]}:{account[1]}"
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(pid_file), user, *command]
    try:
        with log_file.open("ab") as log:
            subprocess.run(  # noqa: S603 - our own arguments, no shell
                launcher,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                start_new_session=True,
                pass_fds=descriptors,
                timeout=_LAUNCH_TIMEOUT_S,
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as exc:
        raise EmbeddedError(f"cannot start {command[0]}: {exc}; see {log_file}") from exc
    process = read_pid_file(pid_file)
    assert process is not None, "the launcher ends well only after writing the pid file"
    return process


def terminate(
    processes: Iterable[Process],
    *,
    timeout_s: float,
    request: signal.Signals = signal.SIGTERM,
    force: signal.Signals = signal.SIGKILL,
) -> list[Process]:
    """Ask the processes to end, all at once, and force those still there after `timeout_s`.

    Args:
        processes: Those already gone are passed over.
        timeout_s: How long they may take.
        request: The signal that asks them.
        force: The signal that they cannot take their time over.

    Returns:
        The processes that had to be forced.

    Raises:
        EmbeddedError: One survived even that.
    """
    waiting = list(processes)
    _signal(waiting, request)
    stubborn = _wait_gone(waiting, timeout_s)
    _signal(stubborn, force)
    if immortal := _wait_gone(stubborn, _KILL_TIMEOUT_S):
        pids = ", ".join(str(process.pid) for process in immortal)
        raise EmbeddedError(f"process {pids} does not end, not even by {force.name}")
    return stubborn


def _signal(processes: list[Process], number: signal.Signals) -> None:
    for process in processes:
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _wait_gone(processes: list[Process], timeout_s: float) -> list[Process]:
    deadline = time.monotonic() + timeout_s
    while processes and time.monotonic() < deadline:
        processes = [process for process in processes if process.is_alive()]
        if processes:
            time.sleep(_POLL_S)
    return processes


@contextmanager
def exclusive(path: Path, *, timeout_s: float, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold the lock file `path`; the system releases it when we die, however that happens.

    Args:
        path: Created when missing; its folder exists. Its holder may delete it.
        timeout_s: How long to wait for another holder.
        on_wait: Called once when there is one.

    Yields:
        The descriptor of the lock; a child that inherits it holds the lock until it ends too.

    Raises:
        EmbeddedError: Another process held it all that time.
    """
    deadline = time.monotonic() + timeout_s
    waited = False
    while True:
        with path.open("ab") as file:
            if _try_lock(file.fileno(), path):
                yield file.fileno()
                return
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"another process has been holding {path} for {timeout_s:.0f} s; "
                "wait for that start or stop to end, or end it"
            )
        if not waited:
            on_wait()
            waited = True
        time.sleep(_POLL_S)


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A holder may have deleted the file in between; a lock on a deleted file holds nobody off.
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def is_locked_by_java(path: Path) -> bool:
    """Tell whether another process holds a `FileChannel` lock (a POSIX record lock) on `path`."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False
