"""A long time with mild faults."""

import time
from collections.abc import Callable
from statistics import linear_regression

from tests.faults.processes import Usage
from tests.faults.proxy import OFFSET_COMMIT, PRODUCE, Fault
from tests.faults.run import Run
from tests.faults.scenarios.registry import scenario

RATE = 400


@scenario(nodes=3)
def soak(run: Run) -> None:
    """Sixty minutes under load with a mild fault every half a minute; no growth, nothing lost."""
    seconds = run.pick(120, 3_600)
    run.worker()
    run.worker()
    run.load(count=RATE * seconds, rate=RATE, foreign=0.02, twice_after=500)
    run.await_progress(500)
    ends_s = time.monotonic() + seconds - 30
    steps: list[Callable[[Run], None]] = [_bounce, _kill, _join, _jitter, _cuts]
    while time.monotonic() < ends_s:
        step = run.draw.choice(steps)
        run.note(step.__name__.strip("_"))
        step(run)
        run.bite("faults", 1)
        run.pause(run.draw.uniform(10, 40))
        run.await_progress(100, timeout_s=90)
    for what, slope in _slopes(run).items():
        run.measure(what, slope)


def _bounce(run: Run) -> None:
    node = run.draw.choice(list(run.cluster.nodes))
    run.cluster.kill(node)
    run.pause(3)
    run.cluster.start()


def _kill(run: Run) -> None:
    run.running[-1].kill()  # the first lives on, for the slope of its memory
    run.worker()


def _join(run: Run) -> None:
    guest = run.worker()
    run.pause(8)
    guest.stop()


def _jitter(run: Run) -> None:
    with run.network.fault(Fault(latency_s=0.02, jitter_s=0.1)):
        run.pause(10)


def _cuts(run: Run) -> None:
    with run.network.fault(Fault(apis=frozenset({PRODUCE, OFFSET_COMMIT}), cut_share=0.05)):
        run.pause(10)


def _slopes(run: Run) -> dict[str, float]:
    """Give what the worker that lived longest has gained in an hour, once its tables were full."""
    first = run.workers[0]
    usage: list[Usage] = [used for used in run.sampler.usage if used.pid == first.pid]
    usage = usage[len(usage) // 2 :]
    if len(usage) < 2:
        return {}
    hours = [used.at_s / 3600 for used in usage]
    return {
        "rss_mb_per_h": linear_regression(hours, [used.rss_mb for used in usage]).slope,
        "files_per_h": linear_regression(hours, [float(u.open_files) for u in usage]).slope,
        "rss_mb": max(used.rss_mb for used in usage),
    }
