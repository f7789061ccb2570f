"""One run of one scenario: its topics, its processes, what was done to them, what was measured."""

import math
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from confluent_kafka import KafkaException

from tests.e2e.harness import World, wait_for
from tests.faults.checker import Verdict, check
from tests.faults.cluster import FaultCluster
from tests.faults.database import Database
from tests.faults.journal import Attempt, first_ack_after, read_journals, stalls
from tests.faults.processes import Child, Sampler
from tests.faults.reading import search_disks
from tests.faults.tables import DatabaseAwayError

DRAIN_TIMEOUT_S: Final = 120.0
ENDLESS: Final = 1_000_000
"""Trades of a load that goes on, however slow the machine, until `stop_loads`."""
LOAD_TIMEOUT_S: Final = 300.0
_MOST_EXITS: Final = 5
_REFUSED: Final = "SELECT count(*) FROM parked_events WHERE reason IS NOT NULL;"
T = TypeVar("T")


is_cancelled = threading.Event()
"""Set where somebody has asked the whole command to end."""


class SkippedError(Exception):
    """This machine cannot run the scenario; says why."""


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
        self.is_deadline_over = False
        """Whether what waits for ever is refused by the end; see `expect`."""
        self._changes_trades = False
        self._sends_early = False
        self._stack = ExitStack()
        self._database: Database | None = None
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

    def open_database(self, *, megabytes: int = 0, is_relayed: bool = False) -> Database:
        """Give this run a database of its own, in which its workers keep a ledger.

        Args:
            megabytes: Of a file system of its own; 0 for none.
            is_relayed: Whether the workers find it through its relay.
        """
        database = self._stack.enter_context(Database(seed=self.seed, megabytes=megabytes))
        self._database = database
        self.world.extra["DATABASE_URL"] = database.relayed_url if is_relayed else database.url
        self.sampler.look_at_ledger = database.psql.sample
        return database

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
        """Start to publish trades, past the relays if asked to; see `tests.faults.load`.

        A load that changes trades has to come to corrections in the ledger, and one that sends
        some of them too early to events that wait there.
        """
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
        self._changes_trades |= bool(options.get("changes"))
        self._sends_early |= bool(options.get("early"))
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
        assert not is_cancelled.is_set(), "the command was asked to end"
        for worker in self.workers:
            if not worker.is_done and not worker.is_running:
                worker.is_done = True
                self.note(f"{worker.name} ended by itself with code {worker.code}")
                self.figures["exits"] = self.figures.get("exits", 0) + 1
                self.require(
                    f"{worker.name} ended by itself: {worker.tail()}",
                    holds=worker.code in self.expected_exits and worker.code != 0,
                )
                assert self.figures["exits"] < _MOST_EXITS, "workers end again and again"
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
            with suppress(KafkaException, DatabaseAwayError, TimeoutError):  # down on purpose
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

    def await_joined(self, child: Child) -> None:
        """Wait until a worker has got partitions, or none, as a member of its group."""
        self.wait(lambda: child.logged("partitions_assigned") > 0, f"{child.name} joins")

    def await_frozen(self, child: Child) -> None:
        """Wait until a process has stopped itself."""
        self.wait(lambda: child.is_frozen, f"{child.name} freezes")

    def await_progress(self, records: int = 1, timeout_s: float = 60.0) -> float:
        """Wait until the group has committed so many records more; give the seconds it took."""
        goal = 0

        def is_reached() -> bool:
            nonlocal goal
            done, _ = self.world.progress()
            goal = goal or done + records
            return done >= goal

        return self.wait(is_reached, f"{records:,} commits more", timeout_s)

    def stop_loads(self) -> None:
        """Let the producers end that would go on for ever."""
        for load in self.loads:
            if load.is_running:
                load.stop()
        self.finish_loads()

    def finish_loads(self) -> None:
        """Wait until everything is published."""
        running = [load for load in self.loads if not load.is_done]
        self.wait(
            lambda: not any(load.is_running for load in running),
            "the end of the loads",
            self._load_timeout_s,
        )
        for load in running:
            load.is_done = True
            # Code 0: whatever became of each record is in the journal.
            self.require(f"{load.name} failed: {load.tail()}", holds=load.code == 0)

    def drain(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Wait until nothing lags and no dead letter is due, with a worker that runs."""
        self.finish_loads()
        self.note("everything is published; drain")
        if not self.running and not self._is_drained():
            self.worker()
        self.measure("drain_s", self.wait(self._is_drained, "lag 0", timeout_s))

    def _is_drained(self) -> bool:
        if self.world.lag():
            return False
        # What was refused after it had waited is behind the offsets already.
        return self._database is None or self._database.psql.ask(_REFUSED) == [["0"]]

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

        def first_ack_s() -> float:
            return first_ack_after(self.attempts(), healed_ns)

        self.wait(lambda: first_ack_s() < math.inf, "an acknowledgement", most_s)
        self.measure("recovery_s", max(first_ack_s(), booked_s), most=most_s)

    def check(self, *, with_samples: bool = True) -> Verdict:
        """Prove that nothing is lost or doubled, and look for what is missing on the disks."""
        self.is_checked = True
        attempts = self.attempts()
        evidence = self.world.evidence(
            attempts=attempts,
            samples=self.sampler.samples if with_samples else (),
            holes=self.holes,
        )
        if self._database is not None:
            evidence.tables = self._database.psql.read()
            evidence.ledger_samples = self.sampler.ledger_samples
            evidence.is_deadline_over = self.is_deadline_over
        verdict = check(evidence)
        self.figures.update(verdict.counts)
        if self._changes_trades:
            self.bite("corrections", verdict.counts["corrections"])
        if self._sends_early:
            self.bite("events that came too early", verdict.counts["released"])
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
            self._stack.close()
        outcome.seconds = time.monotonic() - self._began_s
        self.figures |= {f"bite: {what}": seen for what, seen in self._bites.items()}
        missed = [what for what, seen in self._bites.items() if not seen]
        if outcome.problems and outcome.status != "skipped":
            outcome.status = "failed"
        elif outcome.status == "ok" and (missed or not self._bites):
            outcome.status = "invalid"
            outcome.problems = [f"the fault changed nothing: {', '.join(missed) or 'no probe'}"]
        return outcome
