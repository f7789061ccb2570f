"""The processes of a run, and who looks at them while they work."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from confluent_kafka import KafkaException

from tests.e2e.harness import ROOT, World
from tests.faults.checker import Sample
from tests.faults.tables import DatabaseAwayError, LedgerSample

_EXIT_TIMEOUT_S: Final = 30.0
_SAMPLE_S: Final = 0.5
_TAIL_BYTES: Final = 1_500


class Child:
    """A Python program of the project, whose output goes to files.

    Args:
        name: Of its files.
        command: Options of `python`.
        environment: All of it.
        folder: For its files.
        errors: Another place for its standard error.
    """

    def __init__(
        self,
        name: str,
        command: Iterable[str],
        environment: Mapping[str, str],
        folder: Path,
        errors: Path | None = None,
    ) -> None:
        self.name = name
        self._output = folder / f"{name}.out"
        self.errors = errors or folder / f"{name}.log"
        self.is_done = False  # told to end, or expected to
        self._asked_s = 0.0
        with self._output.open("wb") as out, self.errors.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT, env=dict(environment), stdout=out, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code; `None` while it runs."""
        return self._process.poll()

    @property
    def is_running(self) -> bool:
        """Whether it runs, or is frozen."""
        return self.code is None

    def kill(self) -> None:
        """End it at once."""
        self.is_done = True
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it where it is."""
        self._process.send_signal(signal.SIGSTOP)

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped."""
        return "\nState:\tT" in self._status()

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end."""
        self.is_done = True
        self._asked_s = time.monotonic()
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> float:
        """Ask it to end, unless it was asked; give the seconds that it took from then on."""
        if not self._asked_s:
            self.terminate()
        self.wait(_EXIT_TIMEOUT_S)
        return time.monotonic() - self._asked_s

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; give its exit code."""
        self.is_done = True
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end; {self.tail()}") from None

    def result(self) -> dict[str, Any]:
        """Give the JSON that it printed at its end; empty where it printed none."""
        lines = self._output.read_text(encoding="utf-8").splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found

    def logged(self, event: str) -> int:
        """Count the log lines of an event."""
        return self.errors.read_text(encoding="utf-8", errors="replace").count(f'"{event}"')

    def said(self, words: str) -> bool:
        """Tell whether its log has some words."""
        return words in self.errors.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """Give the end of its log."""
        text = self.errors.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
        return f"exit code {self.code}, the end of {self.errors}:\n{text}"

    @property
    def rss_mb(self) -> float:
        """Resident memory."""
        _, _, rest = self._status().partition("VmRSS:")
        return int(rest.split()[0]) / 1024 if rest else 0.0

    @property
    def open_files(self) -> int:
        """Number of open file descriptors."""
        with suppress(OSError):
            return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())
        return 0

    def _status(self) -> str:
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one worker held at one moment."""

    at_s: float
    pid: int
    rss_mb: float
    open_files: int


class Sampler:
    """Looks at a world and its workers again and again, in a thread of its own.

    Attributes:
        look_at_ledger: Gives the ledger, when it is told Kafka's commits of a moment before.
    """

    def __init__(self, world: World, workers: list[Child]) -> None:
        self.samples: list[Sample] = []
        self.ledger_samples: list[LedgerSample] = []
        self.look_at_ledger: Callable[[Mapping[int, int]], LedgerSample] | None = None
        self.usage: list[Usage] = []
        self._world = world
        self._workers = workers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        consumer = self._world.outside()
        try:
            while not self._stopping.wait(_SAMPLE_S):
                now_s = time.monotonic()
                self.usage += [
                    Usage(now_s, worker.pid, worker.rss_mb, worker.open_files)
                    for worker in list(self._workers)
                    if worker.is_running
                ]
                with suppress(KafkaException, DatabaseAwayError):  # they are down on purpose
                    self.samples.append(self._world.sample(consumer))
                    if self.look_at_ledger is not None:
                        committed = self.samples[-1].committed
                        self.ledger_samples.append(self.look_at_ledger(committed))
        finally:
            consumer.close()
