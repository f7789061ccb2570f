"""One run of one scenario: its topics, its processes, what was done to them, what was measured."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from confluent_kafka import KafkaException

from tests.e2e.harness import ROOT, World, wait_for
from tests.faults.checker import Sample, Verdict, check
from tests.faults.cluster import FaultCluster
from tests.faults.journal import Attempt, first_ack_after, read_journals, stalls
from tests.faults.reading import search_disks

DRAIN_TIMEOUT_S: Final = 120.0
EXIT_TIMEOUT_S: Final = 30.0
LOAD_TIMEOUT_S: Final = 300.0
_SAMPLE_S: Final = 0.5
_TAIL_BYTES: Final = 3_000
T = TypeVar("T")


class SkippedError(Exception):
    """This machine cannot run the scenario; says why."""


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
        self.wait(EXIT_TIMEOUT_S)
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
    """Looks at a world and its workers again and again, in a thread of its own."""

    def __init__(self, world: World, workers: list[Child]) -> None:
        self.samples: list[Sample] = []
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
                with suppress(KafkaException):  # brokers are down on purpose
                    self.samples.append(self._world.sample(consumer))
        finally:
            consumer.close()


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        status: `ok`; `failed`; `invalid`, where a fault changed nothing; or `skipped`.
        figures: What was counted and measured.
        problems: Why it is not ok.
        schedule: What was done, with the seconds since the start.
    """

    name: str
    seed: int
    status: str = "ok"
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    schedule: list[str] = field(default_factory=list)


class Run:
    """What a scenario works with.

    Args:
        name: Of the scenario.
        cluster: Running, without faults.
        replicas: Of the topics.
        seed: Of everything that is left to chance.
        is_quick: Whether to be short.
        folder: For journals and logs.
    """

    def __init__(
        self,
        name: str,
        cluster: FaultCluster,
        *,
        replicas: int,
        seed: int,
        is_quick: bool,
        folder: Path,
    ) -> None:
        self.cluster = cluster
        self.network = cluster.network
        self._replicas = replicas
        self.seed = seed
        self.is_quick = is_quick
        self.folder = folder
        self.bug = ""
        self.draw = random.Random(f"{name} {seed}")
        self.outcome = Outcome(name, seed)
        self.figures = self.outcome.figures
        self.loads: list[Child] = []
        self.workers: list[Child] = []
        self.holes: dict[int, range] = {}
        self.expected_exits: set[int] = {0}
        self.is_checked = False
        self._bites: dict[str, float] = {}
        self._counted_before = self.network.counts()
        self._began_s = time.monotonic()
        self._load_timeout_s = LOAD_TIMEOUT_S  # and what the loads take without faults
        self.world = World(
            cluster.bootstrap,
            name=f"{name}-{seed}-{uuid.uuid4().hex[:6]}",
            direct=cluster.direct,
            extra={"QUARANTINE_DIR": str(folder / "quarantine")},
        )
        self.sampler = Sampler(self.world, self.workers)

    def pick(self, quick: T, full: T) -> T:
        """Choose by how long the run may take."""
        return quick if self.is_quick else full

    # -- what is done and seen

    def note(self, what: str) -> int:
        """Write down what is done now; give the monotonic time in nanoseconds."""
        self.outcome.schedule.append(f"{time.monotonic() - self._began_s:6.1f} s  {what}")
        return time.monotonic_ns()

    def bite(self, what: str, seen: float) -> None:
        """Prove that a fault had its effect: what was seen of it must not be nothing."""
        self._bites[what] = self._bites.get(what, 0) + seen

    def seen(self, what: str) -> int:
        """Give how often the relays have done something in this run."""
        return self.network.counts()[what] - self._counted_before[what]

    def require(self, what: str, *, holds: bool) -> None:
        """Note a promise that was not kept."""
        if not holds:
            self.outcome.problems.append(what)

    def measure(self, what: str, value: float, *, most: float | None = None) -> None:
        """Keep the largest value of a figure; above `most` it is a problem."""
        self.figures[what] = max(self.figures.get(what, 0.0), round(value, 2))
        if most is not None:
            self.require(f"{what} is {value:.1f}, and may be {most:.1f}", holds=value <= most)

    # -- processes

    def load(self, *, count: int, rate: float, is_direct: bool = False, **options: object) -> Child:
        """Start to publish trades, past the relays if asked to; see `tests.faults.load`."""
        name = f"load-{len(self.loads)}"
        given: list[str] = []
        named: dict[str, object] = {"count": count, "rate": rate}
        for option, value in (named | options).items():
            flag = f"--{option.replace('_', '-')}"
            given += [flag] if value is True else [flag, str(value)]
        self.note(f"publish {count:,} trades at {rate:,.0f}/s {options or ''}")
        command = ["-m", "tests.faults.load", name, str(self.folder), *given]
        seed = str(self.seed * 100 + len(self.loads))
        environment = self.world.environment
        if is_direct:
            environment["KAFKA_BOOTSTRAP_SERVERS"] = self.world.direct
        child = Child(name, [*command, "--seed", seed], environment, self.folder)
        self._load_timeout_s += count / rate
        self.loads.append(child)
        return child

    def worker(self, *options: str, errors: Path | None = None, **environment: str) -> Child:
        """Start a consumer; see `tests.faults.worker`."""
        name = f"worker-{len(self.workers)}"
        bug = ["--bug", self.bug] if self.bug else []
        self.note(f"start {name} {' '.join(options)}")
        child = Child(
            name,
            ["-m", "tests.faults.worker", *bug, *options, "--json"],
            self.world.environment | environment,
            self.folder,
            errors,
        )
        self.workers.append(child)
        return child

    @property
    def running(self) -> list[Child]:
        """The workers that run."""
        return [worker for worker in self.workers if worker.is_running]

    def watch(self) -> None:
        """Start a worker again in the place of each that has ended by itself, as supervisors do."""
        for worker in self.workers:
            if not worker.is_done and not worker.is_running:
                worker.is_done = True
                self.note(f"{worker.name} ended by itself with code {worker.code}")
                self.figures["exits"] = self.figures.get("exits", 0) + 1
                self.require(
                    f"{worker.name} ended by itself: {worker.tail()}",
                    holds=worker.code in self.expected_exits and worker.code != 0,
                )
                self.worker()

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.watch()
            time.sleep(min(left_s, 0.2))

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> float:
        """Wait until a condition holds; give the seconds that it took."""
        began_s = time.monotonic()

        def holds() -> bool:
            self.watch()
            with suppress(KafkaException):
                return condition()
            return False

        wait_for(holds, what, timeout_s=timeout_s)
        return time.monotonic() - began_s

    def position_records(self) -> int:
        """Give how many records the positions topic has got so far."""
        consumer = self.world.outside()
        try:
            return sum(self.world.sample(consumer).position_ends.values())
        finally:
            consumer.close()

    def await_end(self, child: Child, timeout_s: float = 60.0) -> None:
        """Wait until a process has ended, while the others go on."""
        self.wait(lambda: not child.is_running, f"the end of {child.name}", timeout_s)

    def await_frozen(self, child: Child) -> None:
        """Wait until a process has stopped itself."""
        self.wait(lambda: child.is_frozen, f"{child.name} freezes")

    def await_progress(self, records: int = 1, timeout_s: float = 60.0) -> float:
        """Wait until the group has committed so many records more; give the seconds it took."""
        goal = self.world.progress()[0] + records
        reached = f"commits up to {goal:,}"
        return self.wait(lambda: self.world.progress()[0] >= goal, reached, timeout_s)

    def finish_loads(self) -> None:
        """Wait until everything is published."""
        for load in self.loads:
            if not load.is_done:
                code = load.wait(self._load_timeout_s)
                # Code 0: whatever became of each record is in the journal.
                self.require(f"{load.name} failed: {load.tail()}", holds=code == 0)

    def drain(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Wait until nothing lags, with a worker that runs."""
        self.finish_loads()
        self.note("everything is published; drain")
        if not self.running and self.world.lag():
            self.worker()
        self.measure("drain_s", self.wait(lambda: self.world.lag() == 0, "lag 0", timeout_s))

    def stop_workers(self) -> None:
        """Stop the workers in an orderly way."""
        for worker in self.running:
            self.measure("exit_s", worker.stop(), most=20.0)
            problem = f"{worker.name} was stopped: {worker.tail()}"
            self.require(problem, holds=worker.code in self.expected_exits)

    # -- the end

    def attempts(self) -> list[Attempt]:
        """Read the journals."""
        return read_journals(self.folder)

    def recovered(self, healed_ns: int, *, records: int = 50, most_s: float = 60.0) -> None:
        """Measure from when all is well until the first trade is acknowledged, and some booked."""
        self.await_progress(records, timeout_s=most_s + 30)
        booked_s = (time.monotonic_ns() - healed_ns) / 1e9
        first_ack_s = first_ack_after(self.attempts(), healed_ns)
        self.measure("recovery_s", max(first_ack_s, booked_s), most=most_s)

    def check(self, *, with_samples: bool = True) -> Verdict:
        """Prove that nothing is lost or doubled, and look for what is missing on the disks."""
        self.is_checked = True
        attempts = self.attempts()
        evidence = self.world.evidence(
            attempts=attempts,
            samples=self.sampler.samples if with_samples else (),
            holes=self.holes,
        )
        verdict = check(evidence)
        self.figures.update(verdict.counts)
        if attempts:
            waits = stalls(attempts)
            self.measure("stall_s", waits.longest_s)
            self.measure("slowest_ack_s", waits.slowest_s)
        if verdict.findings:
            digests = {finding.digest for finding in verdict.findings if finding.digest}
            on_disk = search_disks(self.cluster.data_folders, self.world.events, digests)
            self.outcome.problems.append(verdict.report())
            self.outcome.problems += [
                f"on disk (node/partition/offset): {sha[:12]} {places[:3]}"
                for sha, places in list(on_disk.items())[:20]
            ]
        return verdict

    def play(self, scenario: Callable[["Run"], None]) -> Outcome:
        """Run a scenario, drain and check what it left, and judge."""
        outcome = self.outcome
        try:
            self.world.create_topics(replicas=self._replicas)
            with self.sampler:
                scenario(self)
                self.cluster.heal()
                if not self.is_checked:
                    self.drain()
                    self.stop_workers()
            if not self.is_checked:
                self.check()
        except SkippedError as exc:
            outcome.status, outcome.problems = "skipped", [str(exc)]
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this run's result
            outcome.problems.append(f"{type(exc).__name__}: {exc}")
        finally:
            for child in (*self.workers, *self.loads):
                if child.is_running:
                    child.kill()
        outcome.seconds = time.monotonic() - self._began_s
        self.figures |= {f"bite: {what}": seen for what, seen in self._bites.items()}
        missed = [what for what, seen in self._bites.items() if not seen]
        if outcome.problems and outcome.status != "skipped":
            outcome.status = "failed"
        elif outcome.status == "ok" and (missed or not self._bites):
            outcome.status = "invalid"
            outcome.problems = [f"the fault changed nothing: {', '.join(missed) or 'no probe'}"]
        return outcome
