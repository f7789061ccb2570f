"""What a consumer shows of itself: counts for the metrics, and a line of progress in the log."""

from collections.abc import Mapping

from app.checkpointer import Checkpointer
from app.health import Health
from app.metrics import ConsumerCounts, PartitionCounts
from app.models import Fate
from app.ports import RecordSource
from app.stats import ConsumerStats
from app.takeover import OpenPartition

_MS_PER_S = 1_000


def consumer_counts(
    stats: ConsumerStats,
    partitions: Mapping[int, OpenPartition],
    *,
    checkpointer: Checkpointer,
    source: RecordSource,
    health: Health,
    is_paused: bool,
    is_reference_refused: bool,
    now_ms: int,
) -> ConsumerCounts:
    """Make the counts of this moment, between two turns of the loop.

    Args:
        stats: What was counted so far.
        partitions: The open ones.
        checkpointer: Knows what is in flight.
        source: Knows the assignment, and where the partitions ended when they were last fetched.
        health: Knows when there was progress.
        is_paused: Whether the partitions are paused because too much is in flight.
        is_reference_refused: Whether the file of reference data is not right.
        now_ms: Wall clock.
    """
    ends = source.known_ends()
    in_flight = {p.number: checkpointer.in_flight(p) for p in partitions.values()}
    return ConsumerCounts(
        consumed_records=stats.consumed_records,
        consumed_bytes=stats.consumed_bytes,
        outcomes=dict(stats.fates),
        uncounted_records=stats.uncounted_records,
        rejected=dict(stats.reasons),
        suspects=dict(stats.suspects),
        unknown_fields=stats.unknown_fields,
        dedupe_hits=stats.fates[Fate.DUPLICATE],
        dedupe_evictions=stats.evictions
        + sum(p.processor.window.evictions for p in partitions.values()),
        in_flight=sum(in_flight.values()),
        parked_records=sum(len(p.processor.parked) for p in partitions.values()),
        paused_partitions=len(partitions) if is_paused else 0,
        backpressure_s=stats.backpressure_s,
        assigned_partitions=len(source.assignment.partitions),
        stopped_partitions=len(stats.stopped),
        quarantined_batches=stats.quarantined_batches,
        is_reference_refused=is_reference_refused,
        rebalances=stats.rebalances,
        epoch=source.assignment.epoch,
        commits={"ok": stats.commits, "failed": stats.failed_commits},
        last_progress_s=health.last_progress_s,
        last_commit_s=stats.last_commit_s,
        latency_ns=stats.latency.counts(),
        partitions={
            number: _partition_counts(partition, ends.get(number), now_ms)
            for number, partition in partitions.items()
        },
    )


def _partition_counts(partition: OpenPartition, end: int | None, now_ms: int) -> PartitionCounts:
    lag = None if end is None else max(0, end - partition.committed)
    oldest_ms = partition.oldest_open_ms()
    if lag == 0:
        lag_s: float | None = 0.0
    elif oldest_ms is None:  # nothing of it was read yet
        lag_s = None
    else:
        lag_s = max(0.0, (now_ms - oldest_ms) / _MS_PER_S)
    return PartitionCounts(committed_offset=partition.committed, lag_records=lag, lag_s=lag_s)
