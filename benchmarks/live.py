"""Under load: how long it takes from when a trade is due until its effects are acknowledged.

Three processes share the machine: the broker, the load and one consumer that writes positions. The
load notes partition and offset of each trade, the consumer when the effects up to where were
acknowledged; the two are joined afterwards, so that the latency of every trade is known.
"""

import contextlib
import math
import os
import time
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import linear_regression
from typing import Any, Final

import msgspec

from benchmarks.arena import Arena, check_counts
from benchmarks.backlog import (
    Backlog,
    check_committed,
)
from benchmarks.children import TIMEOUT_S, Child, python_module
from benchmarks.contestants import OURS_NONE, OURS_POSITIONS, Contestant
from benchmarks.machine import cpu_seconds, rss_mb
from benchmarks.rounds import Entry, GateError, measure
from benchmarks.suites import Scale, Table
from benchmarks.workload import Trade, Workload, expected_of

GOAL_MS: Final = 50
"""A second is a good one when 99 % of its trades took less."""
_UNIT_NS: Final = 100_000  # latencies are told apart to 0.1 ms
_SECOND_NS: Final = 1_000_000_000
_WARM_UP_S: Final = 2
_SAMPLE_S: Final = 0.5
_PARTITIONS: Final = 4  # for one worker; small batches in many would cost all three
_FLAT: Final = 0.005  # of the offered rate: what the lag may grow by in a second
_PERCENTILES: Final = {"p50_ms": 0.5, "p99_ms": 0.99, "p99_9_ms": 0.999}


def live(arena: Arena, scale: Scale) -> Table:
    """Offer trades at several rates."""
    seconds = 8 if scale.is_quick else 20
    plan = [(rate, seconds, OURS_POSITIONS) for rate in (50_000, 100_000, 150_000, 200_000)]
    if scale.is_quick:
        plan = plan[:2]
    plan.insert(0, (100_000, seconds, OURS_NONE))
    if scale.is_soak:
        plan += [(100_000, 600, OURS_POSITIONS), (150_000, 120, OURS_POSITIONS)]
    entries = [
        Entry(
            ("no sink: " if ours.sink == "none" else "") + f"{rate:,}/s, {seconds} s",
            ours.table,
            ours.sink,
            partial(_run, arena, ours, rate, seconds),
        )
        for rate, seconds, ours in plan
    ]
    rows = measure(entries, rounds=1, seed=scale.seed)
    sustained = [row.name for row in rows if row.kept and row.kept[0]["is_flat"]]
    return Table(
        "live",
        f"Broker, load and one consumer on the same cores, {_PARTITIONS} partitions. Latency of"
        " every trade, from the moment"
        " it was due until its positions are acknowledged; percentiles over"
        f" all trades, and the share of seconds in which p99 stayed below {GOAL_MS} ms. How many"
        " trades the lag grows by in a second; CPU of each process per million trades.",
        rows,
        label="offered",
        columns=(
            ("p50 ms", "p50_ms", 1),
            ("p99 ms", "p99_ms", 1),
            ("p99.9 ms", "p99_9_ms", 1),
            ("good seconds", "good_share", 2),
            ("lag grows by", "lag_slope", 0),
            ("consumer CPU s/M", "cpu_s_per_million", 2),
            ("load CPU s/M", "load_cpu_s_per_million", 2),
            ("broker CPU s/M", "broker_cpu_s_per_million", 2),
            ("cores used", "cores_used", 2),
            ("RSS MB", "peak_rss_mb", 0),
            ("RSS grows by MB/min", "rss_slope", 1),
        ),
        notes=[f"The lag does not grow at: {'; '.join(sustained) or 'none of these rates'}."],
    )


def _run(arena: Arena, ours: Contestant, rate: int, seconds: int, _: int) -> dict[str, Any]:
    """Run load and consumer once."""
    run = arena.run_id()
    settings = arena.fresh(f"live-{run}", run, partitions=_PARTITIONS)
    count = rate * seconds
    files = {name: arena.folder / f"{run}-{name}" for name in ("ready", "go", "acked", "stored")}
    backlog = Backlog(settings.kafka_topic, count, _PARTITIONS, expected_of(_trades(count)))
    consumer = ours.start(
        arena.job(settings, "drain", backlog)
        | {"members": 1, "ready": str(files["ready"]), "go": str(files["go"])}
        | {"acked_file": str(files["acked"])}
    )
    arena.open_gate([consumer], [files["ready"]], files["go"])
    broker_cpu_s = cpu_seconds(arena.broker_pid)
    job = {
        "bootstrap": arena.bootstrap,
        "topic": settings.kafka_topic,
        "rate": rate,
        "seconds": seconds,
        "output": str(files["stored"]),
    }
    load = Child(python_module("benchmarks.load"), job)
    rss = _watch(consumer, load, int(files["ready"].read_text()), seconds)
    loaded, drained = load.result(), consumer.result()
    broker_cpu_s = cpu_seconds(arena.broker_pid) - broker_cpu_s
    check_counts(drained, backlog, "drain")
    check_committed(settings)
    joined = _Joined.of(files["stored"], files["acked"], loaded["start_ns"], rate, count)
    cpu_s = {"": drained["busy_cpu_s"], "load_": loaded["cpu_s"], "broker_": broker_cpu_s}
    elapsed_s = (drained["last_ns"] - loaded["start_ns"]) / _SECOND_NS
    cores = os.cpu_count() or 1
    lag_slope = linear_regression(*zip(*joined.lag[_WARM_UP_S:], strict=True)).slope
    return {
        **_percentiles(sum(joined.windows, Counter())),
        "good_share": sum(w["p99_ms"] < GOAL_MS for w in joined.percentiles) / seconds,
        "lag_slope": lag_slope,
        "is_flat": lag_slope < _FLAT * rate,
        **{f"{name}cpu_s_per_million": s / count * 1e6 for name, s in cpu_s.items()},
        **{f"{name}share_of_cores": s / elapsed_s / cores for name, s in cpu_s.items()},
        "cores_used": sum(cpu_s.values()) / elapsed_s,
        "rate": count / elapsed_s,
        "largest_stall_ms": drained["largest_stall_ms"],
        "load_largest_delay_ms": loaded["largest_delay_ms"],
        "peak_rss_mb": drained["peak_rss_mb"],
        "rss_slope": linear_regression(*zip(*rss[len(rss) // 2 :], strict=True)).slope * 60,
        "windows": joined.percentiles,
        "lag": joined.lag,
        "rss": rss,
    }


def _trades(count: int) -> Iterator[Trade]:
    pool = Workload().pool()
    return (pool[number % len(pool)] for number in range(count))


def _watch(consumer: Child, load: Child, pid: int, seconds: int) -> list[tuple[float, float]]:
    """Sample the consumer's memory until both have ended; give (s, MB)."""
    samples: list[tuple[float, float]] = []
    started = time.monotonic()
    while not consumer.has_ended and not load.has_failed:
        elapsed_s = time.monotonic() - started
        if elapsed_s > seconds + TIMEOUT_S:
            break  # what is asked for its result next says so
        with contextlib.suppress(OSError):  # it has ended just now
            samples.append((round(elapsed_s, 1), round(rss_mb(pid), 1)))
        time.sleep(_SAMPLE_S)
    for child in (consumer, load):
        if child.has_failed:
            child.result()
    return samples


@dataclass
class _Joined:
    """Latencies by second, and the lag at the end of each.

    Attributes:
        windows: Trades by latency in 0.1 ms, for each second in which they were due.
        lag: Seconds since the start, and trades due by then that were not acknowledged.
    """

    windows: list[Counter[int]]
    percentiles: list[dict[str, float]]
    lag: list[tuple[int, int]]

    @classmethod
    def of(cls, stored: Path, acked: Path, start_ns: int, rate: int, count: int) -> "_Joined":
        """Join what load and consumer have noted.

        Raises:
            GateError: A trade is missing.
        """
        due = _due_by_offset(stored, start_ns, rate, count)
        done: Counter[int] = Counter()
        windows: dict[int, Counter[int]] = defaultdict(Counter)
        acknowledged = [(start_ns, 0)]
        for ack_ns, next_offsets in msgspec.msgpack.decode(acked.read_bytes(), type=_Acked):
            for partition, next_offset in next_offsets.items():
                times = due.get(partition, array("q"))
                first, done[partition] = done[partition], next_offset
                while first < next_offset:
                    second = (times[first] - start_ns) // _SECOND_NS
                    limit_ns = start_ns + (second + 1) * _SECOND_NS
                    until = bisect_left(times, limit_ns, first, next_offset)
                    windows[second].update(
                        (ack_ns - due_ns) // _UNIT_NS for due_ns in times[first:until]
                    )
                    first = until
            acknowledged.append((ack_ns, done.total()))
        if any(done[partition] != len(times) for partition, times in due.items()):
            raise GateError("trades without an acknowledgement")
        by_second = [windows[second] for second in range(count // rate)]
        lag = []
        for second in range(1, len(by_second) + 1):
            at = bisect_left(acknowledged, (start_ns + second * _SECOND_NS, 0)) - 1
            lag.append((second, second * rate - acknowledged[at][1]))
        return cls(by_second, [_percentiles(window) for window in by_second], lag)


_Acked = list[tuple[int, dict[int, int]]]


def _due_by_offset(stored: Path, start_ns: int, rate: int, count: int) -> dict[int, "array[int]"]:
    """Give the time at which each trade was due, by partition, in the order of offsets."""
    raw = stored.read_bytes()
    partitions, offsets = array("h"), array("q")
    partitions.frombytes(raw[: 2 * count])
    offsets.frombytes(raw[2 * count :])
    due = {p: array("q", bytes(8 * held)) for p, held in Counter(partitions).items()}
    for number, (partition, offset) in enumerate(zip(partitions, offsets, strict=True)):
        due[partition][offset] = start_ns + number * _SECOND_NS // rate
    return due


def _percentiles(window: Counter[int]) -> dict[str, float]:
    """Give the percentiles of latencies, rounded up to 0.1 ms."""
    wanted = {name: math.ceil(share * window.total()) for name, share in _PERCENTILES.items()}
    found: dict[str, float] = {}
    seen = 0
    for latency in sorted(window):
        seen += window[latency]
        for name, rank in wanted.items():
            if rank <= seen and name not in found:
                found[name] = (latency + 1) * _UNIT_NS / 1e6
    return found
