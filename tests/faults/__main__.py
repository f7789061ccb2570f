"""`./run.sh faults`: hurts real brokers and processes, and proves that nothing was lost."""

import dataclasses
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

from app.utils import configure_logging
from tests.faults.cluster import FaultCluster, tmpfs
from tests.faults.report import table, write_outcomes
from tests.faults.run import Outcome, Run, is_cancelled
from tests.faults.scenarios import SCENARIOS, Scenario

_LABELS: Final = {"ok": "ok", "failed": "FAILED", "invalid": "INVALID", "skipped": "skipped"}
_CANCELLED: Final = 130
_talking = threading.Lock()
Jobs = deque[tuple[Scenario, int]]
"""Scenarios and seeds that are still to be run."""


def say(line: str) -> None:
    """Tell the person who waits; two lanes talk in turn."""
    with _talking:
        print(line, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run."""

    scenarios: Sequence[Scenario]
    seeds: range
    is_quick: bool
    folder: Path

    @property
    def total(self) -> int:
        """Number of runs."""
        return len(self.scenarios) * len(self.seeds)


class Lane:
    """Runs scenarios one after the other, on clusters that it keeps as long as they fit.

    Args:
        plan: What is to be run.
        jobs: Runs to take the next one from, the first ones first; other lanes take from them too.
    """

    def __init__(self, plan: Plan, *jobs: Jobs) -> None:
        self._plan = plan
        self._jobs = jobs
        self._cluster: FaultCluster | None = None
        self._kind: tuple[int, int] | None = None
        self._stack = ExitStack()

    def outcomes(self) -> Iterator[Outcome]:
        """Run everything."""
        with self._stack:
            for jobs in self._jobs:
                while jobs and not is_cancelled.is_set():
                    try:
                        job = jobs.popleft()
                    except IndexError:  # another lane was faster
                        break
                    yield self._one(*job)

    def _one(self, scenario: Scenario, seed: int) -> Outcome:
        folder = self._plan.folder / f"{scenario.name}-{seed}"
        folder.mkdir()
        say(f"{scenario.name}, seed {seed}: {scenario.summary}")
        try:
            cluster = self._cluster_for(scenario, seed)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this run's result
            outcome = Outcome(scenario.name, seed, "failed", problems=[f"no cluster: {exc}"])
        else:
            run = Run(
                scenario.name,
                cluster,
                replicas=scenario.replicas,
                seed=seed,
                is_quick=self._plan.is_quick,
                folder=folder,
            )
            outcome = scenario.play_in(run)
            if outcome.status == "ok":
                cluster.delete_topics(run.world.name)
        if outcome.status == "failed":
            if self._cluster is not None:
                self._cluster.keep_logs(folder)
            self._forget_cluster()  # whatever it left behind hurts no other
        elif outcome.status in ("ok", "skipped"):
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _cluster_for(self, scenario: Scenario, seed: int) -> FaultCluster:
        kind = (scenario.nodes, scenario.tmpfs_mb)
        if self._cluster is None or kind != self._kind or scenario.tmpfs_mb:
            self._forget_cluster()
            folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=self._plan.folder))
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            if scenario.tmpfs_mb:
                self._stack.enter_context(tmpfs(folder / "small", scenario.tmpfs_mb))
                folder /= "small"
            made = FaultCluster(folder, nodes=scenario.nodes, seed=seed)
            self._cluster, self._kind = self._stack.enter_context(made), kind
        return self._cluster

    def _forget_cluster(self) -> None:
        self._cluster = None
        self._stack.close()


def _tell(outcome: Outcome, plan: Plan, done: int) -> None:
    label = _LABELS[outcome.status]
    say(f"{done}/{plan.total}  {label}  {outcome.name}, seed {outcome.seed}: {_figures(outcome)}")
    if outcome.status in ("ok", "skipped"):
        for problem in outcome.problems:
            say("  " + "\n  ".join(problem.splitlines()[:2]))
        return
    for line in (*outcome.schedule, *outcome.problems):
        say("  " + line.replace("\n", "\n  "))
    quick = "--quick " if plan.is_quick else ""
    say(f"  logs and journals: {plan.folder / f'{outcome.name}-{outcome.seed}'}")
    say(f"  again: ./run.sh faults {quick}--seed {outcome.seed} {outcome.name}")


def _figures(outcome: Outcome) -> str:
    shown = [f"{outcome.seconds:.0f} s"]
    shown += [f"{name} {value:,g}" for name, value in outcome.figures.items() if value]
    return ", ".join(shown)


def _run_all(plan: Plan, json_file: Path | None) -> list[Outcome]:
    """Run calm scenarios in one lane and the others in a second one beside it, which helps then.

    `json_file` holds the outcomes so far at any time: hours of them survive whatever ends this.
    """
    outcomes: list[Outcome] = []

    def jobs(*, is_calm: bool) -> Jobs:
        # Those of one kind of cluster after each other: each kind is started once.
        scenarios = sorted(plan.scenarios, key=lambda s: (s.nodes, s.tmpfs_mb))
        return deque((s, seed) for s in scenarios if s.is_calm == is_calm for seed in plan.seeds)

    def drive(*jobs: Jobs) -> None:
        for outcome in Lane(plan, *jobs).outcomes():
            with _talking:
                outcomes.append(outcome)
                if json_file is not None:
                    write_outcomes(json_file, outcomes)
            _tell(outcome, plan, len(outcomes))

    calm, rough = jobs(is_calm=True), jobs(is_calm=False)
    with ThreadPoolExecutor(2) as pool:
        for lane in [pool.submit(drive, calm), pool.submit(drive, rough, calm)]:
            lane.result()
    return outcomes


def _chosen(what: list[str], *, is_soak: bool) -> list[Scenario]:
    known = {*SCENARIOS, *(scenario.family for scenario in SCENARIOS.values())}
    if unknown := [name for name in what if name not in known]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; --list shows them all")
    return [
        scenario
        for scenario in SCENARIOS.values()
        if (scenario.name in what or scenario.family in what)
        or (not what and (scenario.family == "soak" if is_soak else scenario.is_usual))
    ]


def main(
    what: Annotated[
        list[str] | None, typer.Argument(help="Scenarios or families; all without.")
    ] = None,
    *,
    list_them: Annotated[bool, typer.Option("--list", help="Say what there is.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Less of each; 13 minutes.")] = False,
    soak: Annotated[bool, typer.Option("--soak", help="The hour under load, alone.")] = False,
    seed: Annotated[int, typer.Option(help="Of every choice that is left to chance.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="So many, from --seed on.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write outcomes.")] = None,
    report_file: Annotated[Path | None, typer.Option("--report", help="Write a table.")] = None,
) -> None:
    """Run fault scenarios; exit code 1 when a promise was broken or a fault did not bite."""
    if list_them:
        for scenario in SCENARIOS.values():
            print(f"{scenario.family:8} {scenario.name:29} {scenario.summary}")
        return
    configure_logging("ERROR")  # what the harness's own clients see is no news
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_cancelled.set())
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    plan = Plan(
        scenarios=_chosen(what or [], is_soak=soak),
        seeds=range(seed, seed + seeds),
        is_quick=quick,
        folder=folder,
    )
    began_s = time.monotonic()
    outcomes = _run_all(plan, json_file)
    seconds = time.monotonic() - began_s
    text = table(outcomes, SCENARIOS)
    if report_file is not None:
        report_file.write_text(text)
    print(text)
    bad = sorted({o.name for o in outcomes if o.status in ("failed", "invalid")})
    say(f"{len(outcomes)} runs in {seconds:.0f} s; {', '.join(bad) or 'nothing'} failed")
    if not bad:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(_CANCELLED if is_cancelled.is_set() else 1 if bad else 0)


if __name__ == "__main__":
    typer.run(main)
