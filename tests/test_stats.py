"""Counts that add up, and a histogram that is right within its bound."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import Fate
from app.stats import ConsumerStats, LatencyHistogram

durations = st.lists(st.integers(0, 10**12), min_size=1, max_size=50)


def histogram(values: list[int]) -> LatencyHistogram:
    """Count durations."""
    counted = LatencyHistogram()
    for value in values:
        counted.add(value)
    return counted


@given(durations, st.sampled_from([1, 50, 99, 100]))
def test_percentile_is_within_one_percent(values: list[int], percent: int) -> None:
    """The percentile is a sample's, rounded down by at most 1% and to a microsecond."""
    rank = max(1, -(-len(values) * percent // 100))
    exact_ms = sorted(values)[rank - 1] / 1_000_000
    found = histogram(values).percentile_ms(percent)
    assert found is not None
    assert exact_ms * 0.99 - 0.001 <= found <= exact_ms + 0.001


def test_histogram_without_samples_has_no_percentile() -> None:
    """Nothing measured is not the same as 0 ms."""
    assert LatencyHistogram().percentile_ms(50) is None


def test_negative_duration_counts_as_zero() -> None:
    """Clocks that are apart make no negative latency."""
    assert histogram([-5]).to_json() == {"0": 1}


def test_histogram_stays_small() -> None:
    """A million times larger durations need no more than some thousand buckets."""
    assert len(histogram([7**n for n in range(22)] + list(range(20_000))).to_json()) < 1_500


def test_stats_of_a_run_are_plain_json() -> None:
    """Counts, rates and what is stopped come out as documented; zero fates are left out."""
    stats = ConsumerStats(first_ns=1_000_000_000, last_ns=3_000_000_000)
    stats.fates.update({Fate.BOOKED: 3, Fate.DEAD_LETTERED: 1, Fate.STALE: 0})
    stats.reasons.update(["side-unknown"])
    stats.suspects.update(["price-rounded", "price-rounded"])
    stats.latency.add(2_000_000)
    stats.stopped = {10: "gap", 2: "foreign"}
    assert stats.total == 4
    assert stats.per_second == pytest.approx(2)
    assert json.loads(json.dumps(stats.to_json())) == {
        "fates": {"booked": 3, "dead_lettered": 1},
        "reasons": {"side-unknown": 1},
        "suspects": {"price-rounded": 2},
        "unknown_fields": 0,
        "already_applied": 0,
        "repaired": 0,
        "commits": 0,
        "rebalances": 0,
        "quarantined_batches": 0,
        "consume_per_s": 2,
        "latency_ms": {"p50": pytest.approx(2, rel=0.01), "p99": pytest.approx(2, rel=0.01)},
        "latency_buckets_ns": stats.latency.to_json(),
        "stopped_partitions": {"2": "foreign", "10": "gap"},
    }


def test_run_without_records_has_no_rate() -> None:
    """Neither a run that read nothing nor one that settled nothing divides by zero."""
    assert ConsumerStats().per_second == 0
    assert ConsumerStats(first_ns=5, last_ns=5).per_second == 0
    assert ConsumerStats().to_json()["latency_ms"] == {"p50": None, "p99": None}


def test_text_says_the_counts_to_a_person() -> None:
    """One line for the total, one for each reason, the latency, and what is stopped."""
    stats = ConsumerStats(first_ns=0, last_ns=1_000_000_000)
    assert stats.to_text() == "consumed 0 trades at 0/s: none"
    stats.fates.update({Fate.BOOKED: 12_000, Fate.DUPLICATE: 0})
    stats.reasons.update(["symbol-missing"])
    stats.latency.add(0)
    stats.stopped[1] = "gap"
    assert stats.to_text().splitlines() == [
        "consumed 12,000 trades at 12,000/s: 12,000 booked",
        "  symbol-missing: 1",
        "end-to-end latency: p50 0.0 ms, p99 0.0 ms",
        "partition 1 is stopped: gap",
    ]
