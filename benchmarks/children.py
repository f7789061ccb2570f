"""Scripts run as processes of their own: JSON in, one JSON object out, and none is left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
TIMEOUT_S: Final = 300.0
_ERROR_LINES: Final = 3
# A process starts with the peak memory of the one that launched it: a small shell, which stays.
_LAUNCHER: Final = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
_running: set["Child"] = set()


class ContestantError(Exception):
    """A contestant that cannot run here, or that failed."""


def python_module(name: str) -> list[str]:
    """Give the command that runs a module of ours, with the Python that we run with."""
    return [sys.executable, "-m", name]


class Child:
    """One script in a process group of its own.

    Args:
        command: Python of an environment, and what it runs; see `python_module`.
        job: What it has to do; `env` in it are variables of its environment.
    """

    def __init__(self, command: list[str], job: dict[str, Any]) -> None:
        self._name = command[-1]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        self._process = subprocess.Popen(
            [*_LAUNCHER, *command, json.dumps(job)],
            cwd=ROOT,
            env={**os.environ, **job.get("env", {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        _running.add(self)

    @property
    def has_ended(self) -> bool:
        """Whether the process is over."""
        return self._process.poll() is not None

    @property
    def has_failed(self) -> bool:
        """Whether the process is over, and not well."""
        return self._process.poll() not in (None, 0)

    def result(self, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Wait for the end and give what it printed last.

        Raises:
            ContestantError: It failed, took too long or printed something else.
        """
        try:
            output, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ContestantError(f"{self._name} took longer than {timeout_s:.0f} s") from None
        finally:
            self.end()
        try:
            result: dict[str, Any] = json.loads(output.splitlines()[-1])
        except (ValueError, IndexError):
            result = {}
        code = self._process.returncode
        if code or not result:
            why = result.get("error") or self._said()
            raise ContestantError(f"{self._name} exited with {code}: {why}")
        return result

    def end(self) -> None:
        """Kill the whole group, if there is anything left of it."""
        _running.discard(self)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _said(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-_ERROR_LINES:])


def end_all() -> None:
    """Kill every child that still runs."""
    for child in list(_running):
        child.end()
