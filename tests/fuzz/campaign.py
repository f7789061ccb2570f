"""A run of many fuzz inputs: what they came to and cost, and which of them broke something."""

import hashlib
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

from tests.fuzz.mutator import SEEDS, mutate
from tests.fuzz.one_fate import check, values_of

CPU_LIMIT_US: Final = 50_000
KEPT_IN: Final = Path("build/fuzz")
_HANG_CPU_S: Final = 10.0
_MAX_FAILURES: Final = 10
_PROGRESS_EVERY_S: Final = 10.0
_POOL_SIZE: Final = 4096
_TRIES: Final = 3


def _hangs(*_: object) -> None:
    raise TimeoutError(f"more than {_HANG_CPU_S:.0f} s of CPU")


class Campaign:
    """Counts inputs and CPU time, and keeps the inputs that break a promise.

    Args:
        engine: What makes the inputs, as it is to be named.
        runs: How many inputs at most.
        seconds: How long at most; 0 for no bound.
        seed: Another one makes other inputs.
        kept_in: Where failing inputs are written.
    """

    def __init__(
        self, engine: str, *, runs: int, seconds: float = 0, seed: int = 1, kept_in: Path = KEPT_IN
    ) -> None:
        self._engine = engine
        self.seed = seed
        self._runs = runs
        self._seconds = seconds or float("inf")
        self._kept_in = kept_in
        self._started_s = time.monotonic()
        self._told_s = self._started_s
        self._cpu_us: Counter[int] = Counter()
        self._fates: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._worst_us, self._worst = 0, b""
        self.done = 0
        self.failures: list[Path] = []
        signal.signal(signal.SIGVTALRM, _hangs)  # of CPU time: the machine may stand still
        print(f"seed {seed}, at most {runs:,} inputs, {engine}", flush=True)

    @property
    def is_over(self) -> bool:
        """Whether a bound is reached."""
        return (
            self.done >= self._runs
            or time.monotonic() - self._started_s >= self._seconds
            or len(self.failures) >= _MAX_FAILURES
        )

    def run(self, data: bytes) -> None:
        """Check one input."""
        values = values_of(data)
        self.done += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, _HANG_CPU_S)
        try:
            cpu_ns, outcome = check(values)
            if cpu_ns > 1000 * min(self._worst_us, CPU_LIMIT_US):  # again: was it the machine?
                cpu_ns = min(cpu_ns, *(check(values)[0] for _ in range(_TRIES)))
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is what we are looking for
            self._keep(data, f"{type(exc).__name__}: {exc}")
            return
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        cpu_us = round(cpu_ns / 1000)
        self._cpu_us[cpu_us] += 1
        if cpu_us > self._worst_us:
            self._worst_us, self._worst = cpu_us, data
        if cpu_us > CPU_LIMIT_US:
            self._keep(data, f"{cpu_us / 1000:.1f} ms of CPU")
        self._fates.update({str(fate): count for fate, count in outcome.fates.items()})
        self._fates["refused"] += len(outcome.refusals)
        self._fates["misplaced"] += len(outcome.misplaced)
        self._reasons.update(reason for reason, _ in outcome.refusals.values())
        self._tell_progress()

    def _keep(self, data: bytes, problem: str) -> None:
        path = self._written(hashlib.sha256(data).hexdigest()[:16], data)
        self.failures.append(path)
        print(f"FAILED: {problem[:300]}\n  again: ./run.sh fuzz --repeat {path}", flush=True)

    def _written(self, name: str, data: bytes) -> Path:
        self._kept_in.mkdir(parents=True, exist_ok=True)
        path = self._kept_in / f"{name}.bin"
        path.write_bytes(data)
        return path

    def _tell_progress(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _PROGRESS_EVERY_S:
            self._told_s = now_s
            rate = self.done / (now_s - self._started_s)
            worst = f"worst {self._worst_us / 1000:.2f} ms"
            print(f"  {self.done:,} inputs, {rate:,.0f}/s, {worst}", flush=True)

    def percentile_us(self, share: float) -> int:
        """Give the CPU time in microseconds that so many inputs stayed within."""
        left = share * self._cpu_us.total()
        for cpu_us, count in sorted(self._cpu_us.items()):
            left -= count
            if left <= 0:
                return cpu_us
        return 0

    def report(self) -> str:
        """Say what came of it."""
        seconds = time.monotonic() - self._started_s
        at = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
        costs = [f"{name} {self.percentile_us(share) / 1000:.2f}" for name, share in at.items()]
        fates = ", ".join(f"{fate} {count:,}" for fate, count in self._fates.most_common())
        worst = f"worst {self._worst_us / 1000:.2f} ({self._written('worst', self._worst)})"
        return (
            f"{self.done:,} inputs in {seconds:,.0f} s by {self._engine}\n"
            f"CPU of an input in ms: {', '.join(costs)}, {worst}; limit {CPU_LIMIT_US // 1000}\n"
            f"records, with the good ones around them: {fates}\n"
            f"{len(self._reasons)} reason codes met\n"
            f"{len(self.failures)} failures"
        )


def random_changes(campaign: Campaign) -> None:
    """Check the corpus, then random changes of it, and changes of those."""
    rng = Random(campaign.seed)
    pool = list(SEEDS)
    for data in SEEDS:
        if campaign.is_over:
            return
        campaign.run(data)
    while not campaign.is_over:
        data = mutate(rng.choice(pool), rng.getrandbits(64))
        campaign.run(data)
        if len(pool) < _POOL_SIZE:
            pool.append(data)
        else:
            pool[rng.randrange(len(SEEDS), _POOL_SIZE)] = data
