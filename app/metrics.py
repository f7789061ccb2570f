"""What a loop does for the metrics of its process: it hands numbers over, and observes durations.

What it counts anyway is handed over as one set of numbers when a scrape asks for it, made by the
loop itself between two turns: no count is kept twice, and the numbers of one scrape fit each other.
Durations, sizes and rare events are observed when they happen, once for a batch, a flush or a
commit. Nothing is done for a record.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

from app.dead_letters import APP_VERSION
from app.metric_table import (
    Family,
    Samples,
    distribution,
    family,
    new_counter,
    new_histogram,
)
from app.models import Fate
from app.ports import SendState
from app.timestamps import NS_PER_S

T = TypeVar("T")
Stage = Literal["poll", "restore", "flush", "commit", "gap_check", "ledger"]
ErrorKind = Literal["decode", "validation", "business", "transient", "unknown"]
"""The first three dead-letter a record, `transient` is waited out, the rest needs a person."""

HANDOVER_TIMEOUT_S: Final = 0.5
"""Longest wait of a scrape for the loop; after it, what the loop gave last is good enough."""
RATE_WINDOW_S: Final = 60.0
_MOST_TOTALS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionCounts:
    """How far one partition is; `None` where that is not known yet.

    Attributes:
        committed_offset: First offset that is not committed.
        lag_records: Records from there to the end of the partition.
        lag_s: Now less the append time of the first of them, in seconds; 0 without any.
    """

    committed_offset: int | None
    lag_records: int | None
    lag_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerCounts:
    """What a consumer has counted, at one moment between two turns of its loop.

    Attributes:
        consumed_records: Records taken from the topic, each time that they were.
        consumed_bytes: Bytes of their values.
        outcomes: Records by fate, committed.
        uncounted_records: Records consumed whose fate another life counts: those read below the
            commit for their positions alone, and those given up uncommitted at a rebalance.
        rejected: Dead letters by reason code, committed.
        suspects: Booked trades by suspicion code.
        unknown_fields: Fields that this version does not know.
        dedupe_hits: Trades recognised by their id.
        dedupe_evictions: Ids that left the window.
        in_flight: Records consumed whose fate is neither committed nor another's to count.
        parked_records: Those of them that wait for another event of their trade.
        paused_partitions: Partitions paused for backpressure.
        backpressure_s: Time for which any was, so far.
        assigned_partitions: Partitions that are ours, restored or not.
        stopped_partitions: Those of them that wait for a person.
        quarantined_batches: Batches that nobody can read.
        is_reference_refused: Whether the file of reference data is not right.
        rebalances: Assignments taken over.
        epoch: Number of the present one.
        commits: Commits by result, `ok` or `failed`.
        last_progress_s: Unix time of the last commit that moved an offset; at first, of the start.
        last_commit_s: Unix time of the last commit that was taken.
        latency_ns: Trades by latency, from publish to acknowledged effect; a sample.
        partitions: Of the open ones, by number.
    """

    consumed_records: int
    consumed_bytes: int
    outcomes: Mapping[Fate, int]
    uncounted_records: int
    rejected: Mapping[str, int]
    suspects: Mapping[str, int]
    unknown_fields: int
    dedupe_hits: int
    dedupe_evictions: int
    in_flight: int
    parked_records: int
    paused_partitions: int
    backpressure_s: float
    assigned_partitions: int
    stopped_partitions: int
    quarantined_batches: int
    is_reference_refused: bool
    rebalances: int
    epoch: int
    commits: Mapping[str, int]
    last_progress_s: float
    last_commit_s: float | None
    latency_ns: Mapping[int, int]
    partitions: Mapping[int, PartitionCounts]

    @property
    def conservation(self) -> int:
        """Records that are nowhere to be found (> 0) or counted twice (< 0): must be 0."""
        fates = sum(self.outcomes.values())
        return self.consumed_records - self.uncounted_records - fates - self.in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerCounts:
    """What a producer has counted.

    Attributes:
        outcomes: Records by what is known of their send.
        buffered: Records handed over whose outcome is open.
    """

    outcomes: Mapping[SendState, int]
    buffered: int


class ProcessMetrics:
    """What every process exports, and the registry that the rest of it goes to."""

    def __init__(self) -> None:
        # A second series for each counter, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build_info = family("build_info", {(APP_VERSION,): 1})
        self.registry.register(_Exported(lambda: [build_info]))
        self._stalls = new_counter(self.registry, "loop_stalls_total")
        self._stall_seconds = new_histogram(self.registry, "loop_stall_seconds")

    def loop_stalled(self) -> None:
        """Count a stall that has begun."""
        self._stalls.inc()

    def loop_recovered(self, seconds: float) -> None:
        """Note how long a stall was that is over."""
        self._stall_seconds.observe(seconds)


class ConsumerMetrics:
    """The consumer's part: observed by its loop, scraped from any thread.

    Cost: making one opens nothing and starts nothing; `offer` is one comparison a turn while nobody
    scrapes; an observation takes two microseconds.

    Args:
        topic: Topic of the trades, for the label of the same name.
        monotonic: Clock of the rate that the backlog is drained at, in seconds.
    """

    def __init__(self, *, topic: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.process = ProcessMetrics()
        registry = self.process.registry
        self._topic = topic
        self._monotonic = monotonic
        self._rate = _Rate()
        self._counts: Handover[ConsumerCounts] = Handover()
        registry.register(_Exported(self._families))
        self._batch_size = new_histogram(registry, "batch_size")
        self._batch_seconds = new_histogram(registry, "batch_duration_seconds")
        self._process_seconds = new_histogram(registry, "process_duration_seconds")
        self._commit_seconds = new_histogram(registry, "commit_duration_seconds")
        self._errors = new_counter(registry, "errors_total")
        self._retries = new_counter(registry, "retries_total")
        self._dlq_produced = new_counter(registry, "dlq_produced_total")
        self._dlq_failures = new_counter(registry, "dlq_produce_failures_total")
        self._dlq_seconds = new_histogram(registry, "dlq_produce_duration_seconds")

    def offer(self, count: Callable[[], ConsumerCounts]) -> None:
        """Give the numbers of now, if a scrape waits for them; called once a turn.

        Args:
            count: Makes them; called here and now, on this thread, or not at all.
        """
        self._counts.offer(count)

    def observe_batch(self, records: int, seconds: float) -> None:
        """Note a batch of one partition that is processed, with the turns that others took."""
        self._batch_size.observe(records)
        self._batch_seconds.observe(seconds)

    def observe_process(self, seconds: float) -> None:
        """Note a chunk that went through the processor."""
        self._process_seconds.observe(seconds)

    def observe_commit(self, seconds: float) -> None:
        """Note a commit that has ended, well or not."""
        self._commit_seconds.observe(seconds)

    def observe_dead_letters(
        self, acknowledged: Mapping[str, int], *, seconds: float, failures: int = 0
    ) -> None:
        """Note a flush with dead letters.

        Args:
            acknowledged: How many, by kind of error as the dead letter names it.
            seconds: From sending them to the last acknowledgement.
            failures: Sends among them that had to be made again, or were refused for good.
        """
        for kind, count in acknowledged.items():
            self._dlq_produced.labels(kind).inc(count)
        self._dlq_failures.inc(failures)
        self._dlq_seconds.observe(seconds)

    def count_error(self, kind: ErrorKind, error_class: str, count: int = 1) -> None:
        """Count errors of a class by what follows from them."""
        self._errors.labels(kind, error_class).inc(count)

    def count_retry(self, stage: Stage) -> None:
        """Count an attempt that failed and is made again."""
        self._retries.labels(stage).inc()

    def _families(self) -> list[Family]:
        counts = self._counts.take()
        if counts is None:
            return []
        totals = {
            "consumed_records_total": counts.consumed_records,
            "consumed_bytes_total": counts.consumed_bytes,
            "unknown_fields_total": counts.unknown_fields,
            "dedupe_hits_total": counts.dedupe_hits,
            "dedupe_evictions_total": counts.dedupe_evictions,
            "inflight_records": counts.in_flight,
            "parked_records": counts.parked_records,
            "paused_partitions": counts.paused_partitions,
            "backpressure_seconds_total": counts.backpressure_s,
            "time_to_drain_seconds": self._time_to_drain_s(counts),
            "assigned_partitions": counts.assigned_partitions,
            "stopped_partitions": counts.stopped_partitions,
            "quarantined_batches": counts.quarantined_batches,
            "reference_file_refused": counts.is_reference_refused,
            "rebalances_total": counts.rebalances,
            "assignment_epoch": counts.epoch,
            "last_progress_timestamp_seconds": counts.last_progress_s,
            "last_commit_timestamp_seconds": counts.last_commit_s,
            "conservation_records": counts.conservation,
        }
        outcomes = {fate.value: counts.outcomes.get(fate, 0) for fate in Fate}
        return [
            *(family(name, {(): total}) for name, total in totals.items()),
            family("processed_records_total", _by_label(outcomes)),
            family("rejected_records_total", _by_label(counts.rejected)),
            family("suspect_records_total", _by_label(counts.suspects)),
            family("commits_total", _by_label(counts.commits)),
            *self._of_partitions(counts.partitions),
            distribution(
                "end_to_end_latency_seconds",
                {ns / NS_PER_S: count for ns, count in counts.latency_ns.items()},
            ),
        ]

    def _of_partitions(self, partitions: Mapping[int, PartitionCounts]) -> list[Family]:
        labelled = {(self._topic, str(number)): of for number, of in partitions.items()}
        values: dict[str, Samples] = {
            "committed_offset": {key: of.committed_offset for key, of in labelled.items()},
            "consumer_lag_records": {key: of.lag_records for key, of in labelled.items()},
            "consumer_lag_seconds": {key: of.lag_s for key, of in labelled.items()},
        }
        return [family(name, samples) for name, samples in values.items()]

    def _time_to_drain_s(self, counts: ConsumerCounts) -> float | None:
        rate = self._rate.per_s(self._monotonic(), sum(counts.outcomes.values()))
        lags = [of.lag_records for of in counts.partitions.values() if of.lag_records is not None]
        if not lags:
            return None
        lag = sum(lags)
        if not lag:
            return 0.0
        if rate is None:
            return None
        return lag / rate if rate else math.inf


class ProducerMetrics:
    """The producer's part; costs as in `ConsumerMetrics`."""

    def __init__(self) -> None:
        self.process = ProcessMetrics()
        registry = self.process.registry
        self._counts: Handover[ProducerCounts] = Handover()
        registry.register(_Exported(self._families))
        self._send_seconds = new_histogram(registry, "producer_send_duration_seconds")
        self._retries = new_counter(registry, "producer_retries_total")

    def offer(self, count: Callable[[], ProducerCounts]) -> None:
        """Give the numbers of now, if a scrape waits for them; see `ConsumerMetrics.offer`."""
        self._counts.offer(count)

    def observe_send(self, seconds: float) -> None:
        """Note a chunk of which every outcome is known."""
        self._send_seconds.observe(seconds)

    def count_retries(self, records: int) -> None:
        """Count records that are sent again, because they surely were not sent."""
        self._retries.inc(records)

    def _families(self) -> list[Family]:
        counts = self._counts.take()
        if counts is None:
            return []
        sent = {state.value: counts.outcomes.get(state, 0) for state in SendState}
        return [
            family("producer_sent_total", _by_label(sent)),
            family("producer_buffered_records", {(): counts.buffered}),
        ]


class Handover(Generic[T]):
    """Carries numbers from the thread that counts to the thread that asks, when it asks."""

    def __init__(self) -> None:
        self._is_wanted = False
        self._was_offered = threading.Event()
        self._latest: T | None = None

    def offer(self, count: Callable[[], T]) -> None:
        """Make the numbers if they are wanted; on the thread that counts, at a quiet moment."""
        if self._is_wanted:
            self._is_wanted = False
            self._latest = count()
            self._was_offered.set()

    def take(self, timeout_s: float = HANDOVER_TIMEOUT_S) -> T | None:
        """Ask for the numbers and wait for them; on another thread, one at a time.

        Returns:
            Those of now. Where nobody offers any in time, because the loop is busy or hangs, those
            of last time; `None` if there never were any.
        """
        self._was_offered.clear()
        self._is_wanted = True
        self._was_offered.wait(timeout_s)
        return self._latest


class _Exported(Collector):
    """Exports what is made when a scrape comes."""

    def __init__(self, families: Callable[[], list[Family]]) -> None:
        self._families = families
        self._lock = threading.Lock()

    def collect(self) -> list[Family]:
        with self._lock:  # scrapes may come at once, and the numbers are handed to one at a time
            return self._families()


class _Rate:
    """The rate of a total that grows, over about the last minute."""

    def __init__(self) -> None:
        self._totals: deque[tuple[float, int]] = deque(maxlen=_MOST_TOTALS)

    def per_s(self, now_s: float, total: int) -> float | None:
        """Note a total and give the rate since the oldest one of the window; `None` at first."""
        totals = self._totals
        while len(totals) > 1 and now_s - totals[0][0] > RATE_WINDOW_S:
            totals.popleft()
        rate = None
        if totals and now_s > totals[0][0]:
            then_s, before = totals[0]
            rate = (total - before) / (now_s - then_s)
        totals.append((now_s, total))
        return rate


def _by_label(counts: Mapping[str, int]) -> Samples:
    return {(label,): count for label, count in counts.items()}
