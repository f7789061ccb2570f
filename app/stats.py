"""What a run counted: plain numbers that add up, and a latency histogram of bounded size."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from app.models import Fate

_NS_PER_MS: Final = 1_000_000
_SIGNIFICANT_BITS: Final = 8  # buckets are at most 1% wide


class LatencyHistogram:
    """Counts durations in buckets that are at most 1% wide."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, duration_ns: int) -> None:
        """Count one duration; a negative one (clocks apart) counts as 0."""
        duration_ns = max(0, duration_ns)
        shift = max(0, duration_ns.bit_length() - _SIGNIFICANT_BITS)
        self._buckets[(duration_ns >> shift) << shift] += 1

    def percentile_ms(self, percent: float) -> float | None:
        """Give the duration in ms that so many percent do not exceed; `None` without samples."""
        total = self._buckets.total()
        if not total:
            return None
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen * 100 >= total * percent:
                break
        return round(bucket / _NS_PER_MS, 3)

    def counts(self) -> dict[int, int]:
        """Give the counts by bucket, in ns."""
        return dict(self._buckets)

    def to_json(self) -> dict[str, int]:
        """Give the counts by bucket (ns)."""
        return {str(bucket): count for bucket, count in sorted(self._buckets.items())}


@dataclass(slots=True)
class ConsumerStats:
    """What a consumer did; a fate counts once its effects are acknowledged and committed.

    Attributes:
        fates: Records by fate.
        reasons: Dead letters by reason code.
        suspects: Booked trades by suspicion code.
        consumed_records: Records taken from the topic, each time, and `consumed_bytes` of values.
        uncounted_records: Those of them whose fate another life counts: read below the commit, or
            given up uncommitted.
        evictions: Trade ids that left the window of partitions which are not ours any more.
        failed_commits: Commits that were refused, or whose outcome is unknown.
        last_commit_s: Unix time of the last commit.
        backpressure_s: Time for which partitions were paused.
        latency: Publish time to acknowledged effect, of a sample of the trades.
        first_ns: Monotonic time of the first record, and `last_ns` of the last acknowledgement.
        quarantined_batches: Batches that nobody can read, put aside if that was possible.
        stopped: What stopped partitions wait for, by partition.
    """

    fates: Counter[Fate] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    suspects: Counter[str] = field(default_factory=Counter)
    unknown_fields: int = 0
    already_applied: int = 0
    repaired: int = 0
    consumed_records: int = 0
    consumed_bytes: int = 0
    uncounted_records: int = 0
    evictions: int = 0
    commits: int = 0
    failed_commits: int = 0
    last_commit_s: float | None = None
    backpressure_s: float = 0.0
    rebalances: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    first_ns: int | None = None
    last_ns: int = 0
    quarantined_batches: int = 0
    stopped: dict[int, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Records that have their fate."""
        return self.fates.total()

    @property
    def per_second(self) -> float:
        """Records with a fate per second, from the first one read to the last acknowledgement."""
        if self.first_ns is None or self.last_ns <= self.first_ns:
            return 0.0
        return self.total / ((self.last_ns - self.first_ns) / 1_000_000_000)

    def to_json(self) -> dict[str, Any]:
        """Give the counts as a JSON object."""
        return {
            "fates": {fate.value: self.fates[fate] for fate in Fate if self.fates[fate]},
            "reasons": dict(sorted(self.reasons.items())),
            "suspects": dict(sorted(self.suspects.items())),
            "unknown_fields": self.unknown_fields,
            "already_applied": self.already_applied,
            "repaired": self.repaired,
            "commits": self.commits,
            "rebalances": self.rebalances,
            "quarantined_batches": self.quarantined_batches,
            "consume_per_s": round(self.per_second),
            "latency_ms": {
                "p50": self.latency.percentile_ms(50),
                "p99": self.latency.percentile_ms(99),
            },
            "latency_buckets_ns": self.latency.to_json(),
            "stopped_partitions": {str(p): why for p, why in sorted(self.stopped.items())},
        }

    def to_text(self) -> str:
        """Say the counts to a person."""
        fates = ", ".join(f"{count:,} {fate.value}" for fate, count in self.fates.items() if count)
        lines = [f"consumed {self.total:,} trades at {self.per_second:,.0f}/s: {fates or 'none'}"]
        lines += [f"  {reason}: {count:,}" for reason, count in sorted(self.reasons.items())]
        p50, p99 = (self.latency.percentile_ms(percent) for percent in (50, 99))
        if p50 is not None:
            lines.append(f"end-to-end latency: p50 {p50} ms, p99 {p99} ms")
        lines += [f"partition {p} is stopped: {why}" for p, why in sorted(self.stopped.items())]
        return "\n".join(lines)
