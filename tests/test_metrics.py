"""The metrics: a closed list, explained and alerted on; a scrape gets what a loop hands over."""

import math
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from app.dead_letters import APP_VERSION
from app.metric_table import (
    OF_EVERY_PROCESS,
    OF_THE_CONSUMER,
    OF_THE_PRODUCER,
    Kind,
    Metric,
    distribution,
)
from app.metrics import (
    ConsumerCounts,
    ConsumerMetrics,
    Handover,
    PartitionCounts,
    ProducerCounts,
    ProducerMetrics,
)
from app.models import Fate
from app.ports import SendState

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs/metrics.md").read_text()
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
ALERT_TESTS: dict[str, Any] = yaml.safe_load(
    (ROOT / "deploy/prometheus/alerts_test.yml").read_text()
)
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
TABLE = (*OF_EVERY_PROCESS, *OF_THE_CONSUMER, *OF_THE_PRODUCER)

# To rename one breaks dashboards and alerts of others: add to this list, take nothing away.
NAMES = [
    "build_info",
    "loop_stalls_total",
    "loop_stall_seconds",
    "consumed_records_total",
    "consumed_bytes_total",
    "batch_size",
    "batch_duration_seconds",
    "process_duration_seconds",
    "end_to_end_latency_seconds",
    "processed_records_total",
    "rejected_records_total",
    "suspect_records_total",
    "errors_total",
    "unknown_fields_total",
    "conservation_records",
    "retries_total",
    "dedupe_hits_total",
    "dedupe_evictions_total",
    "inflight_records",
    "parked_records",
    "paused_partitions",
    "backpressure_seconds_total",
    "consumer_lag_records",
    "consumer_lag_seconds",
    "time_to_drain_seconds",
    "assigned_partitions",
    "stopped_partitions",
    "quarantined_batches",
    "reference_file_refused",
    "rebalances_total",
    "assignment_epoch",
    "last_progress_timestamp_seconds",
    "commits_total",
    "commit_duration_seconds",
    "committed_offset",
    "last_commit_timestamp_seconds",
    "dlq_produced_total",
    "dlq_produce_failures_total",
    "dlq_produce_duration_seconds",
    "producer_sent_total",
    "producer_send_duration_seconds",
    "producer_retries_total",
    "producer_buffered_records",
]

Scraped = dict[str, dict[tuple[tuple[str, str], ...], float]]


def counts(**changed: Any) -> ConsumerCounts:
    """Make the numbers of a consumer that has done a little of everything."""
    values: dict[str, Any] = {
        "consumed_records": 1000,
        "consumed_bytes": 300_000,
        "outcomes": Counter({Fate.BOOKED: 800, Fate.DEAD_LETTERED: 50}),
        "uncounted_records": 100,
        "rejected": {"symbol-missing": 50},
        "suspects": {"price-rounded": 3},
        "unknown_fields": 7,
        "dedupe_hits": 2,
        "dedupe_evictions": 1,
        "in_flight": 50,
        "parked_records": 4,
        "paused_partitions": 1,
        "backpressure_s": 0.25,
        "assigned_partitions": 3,
        "stopped_partitions": 1,
        "quarantined_batches": 4,
        "is_reference_refused": True,
        "rebalances": 5,
        "epoch": 6,
        "commits": {"ok": 9, "failed": 1},
        "last_progress_s": 1_700_000_000.5,
        "last_commit_s": 1_700_000_001.5,
        "latency_ns": {1_000_000: 3, 3_000_000_000: 1},
        "partitions": {
            0: PartitionCounts(committed_offset=90, lag_records=30, lag_s=1.5),
            7: PartitionCounts(committed_offset=80, lag_records=20, lag_s=0.5),
        },
    }
    return ConsumerCounts(**values | changed)


def scrape(registry: CollectorRegistry) -> Scraped:
    """Read what a scrape gets, by full name of the sample and its labels."""
    scraped: Scraped = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            scraped.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return scraped


def row_of(name: str) -> Metric:
    """Find a row of the table."""
    (row,) = [metric for metric in TABLE if metric.name == name]
    return row


class Loop:
    """Stands in for a loop, in a thread of its own: it offers at each turn until the block ends."""

    def __init__(self, metrics: ConsumerMetrics | ProducerMetrics, numbers: Any) -> None:
        self._metrics = metrics
        self.numbers = numbers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._turn)

    def _turn(self) -> None:
        while not self._over.wait(0.001):
            self._metrics.offer(lambda: self.numbers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def scrape_consumer(given: ConsumerCounts, metrics: ConsumerMetrics | None = None) -> Scraped:
    """Scrape a consumer whose loop turns."""
    metrics = metrics or ConsumerMetrics(topic="t")
    with Loop(metrics, given):
        return scrape(metrics.process.registry)


def observe_everything(metrics: ConsumerMetrics) -> None:
    """Call each way in that a loop has, once."""
    metrics.observe_batch(500, 0.1)
    metrics.observe_process(0.002)
    metrics.observe_commit(0.02)
    metrics.observe_dead_letters({"decode": 2, "business": 1}, seconds=0.03, failures=1)
    metrics.count_error("decode", "DecodeError", 2)
    metrics.count_retry("commit")
    metrics.process.loop_stalled()
    metrics.process.loop_recovered(7.0)


# -- the list


def test_names_are_a_contract() -> None:
    """The table has exactly the names that are pinned here, each once, and none is renamed."""
    assert [metric.name for metric in TABLE] == NAMES
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_name_and_kind_follow_the_conventions(metric: Metric) -> None:
    """A counter ends in `_total`, nothing else does; only histograms have buckets, in order."""
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER)
    assert bool(metric.buckets) is (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    if metric.buckets and metric.name.endswith("_seconds"):
        assert metric.buckets[-1] == 600.0
        assert 2.0 in metric.buckets
    assert set(metric.labels) <= {
        *("version", "outcome", "reason", "kind", "error_class", "stage"),
        *("topic", "partition", "result"),
    }


def test_documentation_lists_exactly_the_table() -> None:
    """The page has a row for each metric with its kind and labels, in order, and no other."""
    rows = re.findall(r"^\| `trade_stream_(\w+)` \| (\w+) \| (.*?) \| (.+) \|$", DOCS, re.MULTILINE)
    assert [(name, kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels, _ in rows] == [
        (metric.name, metric.kind.value, list(metric.labels)) for metric in TABLE
    ]


def test_every_metric_that_is_named_anywhere_exists() -> None:
    """Rules, their tests and the page name only metrics of the table."""
    exported = {metric.full_name for metric in TABLE}
    for path in (
        "docs/metrics.md",
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/alerts_test.yml",
    ):
        for name in re.findall(r"(?<!job:)\btrade_stream_\w+", (ROOT / path).read_text()):
            assert re.sub(r"_(bucket|count|sum)$", "", name) in exported, f"{path}: {name}"


# -- what is scraped


def test_consumer_exports_exactly_its_part_of_the_table() -> None:
    """Each row is there with its labels, nothing else of ours is, and the process has its own."""
    metrics = ConsumerMetrics(topic="t")
    observe_everything(metrics)
    scrape_consumer(counts(), metrics)  # the rate of the second scrape is since the first
    expect_rows(scrape_consumer(counts(), metrics), (*OF_EVERY_PROCESS, *OF_THE_CONSUMER))


def test_producer_exports_exactly_its_part_of_the_table() -> None:
    """As for the consumer."""
    metrics = ProducerMetrics()
    metrics.observe_send(0.5)
    metrics.count_retries(3)
    with Loop(
        metrics, ProducerCounts(outcomes={SendState.OK: 4, SendState.UNKNOWN: 1}, buffered=6)
    ):
        scraped = scrape(metrics.process.registry)
    expect_rows(scraped, (*OF_EVERY_PROCESS, *OF_THE_PRODUCER))
    assert scraped["trade_stream_producer_sent_total"] == {
        (("result", "ok"),): 4,
        (("result", "not_sent"),): 0,
        (("result", "unknown"),): 1,
    }
    assert scraped["trade_stream_producer_buffered_records"] == {(): 6}
    assert scraped["trade_stream_producer_retries_total"] == {(): 3}
    assert scraped["trade_stream_producer_send_duration_seconds_sum"] == {(): 0.5}


def expect_rows(scraped: Scraped, rows: tuple[Metric, ...]) -> None:
    """Compare all that is scraped with rows of the table."""
    expected: dict[str, set[str]] = {}
    for row in rows:
        if row.kind is Kind.HISTOGRAM:
            expected |= {f"{row.full_name}_{end}": set() for end in ("count", "sum")}
            expected[f"{row.full_name}_bucket"] = {"le"}
        else:
            expected[row.full_name] = set(row.labels)
    found = {
        name: {label for labels in samples for label, _ in labels}
        for name, samples in scraped.items()
    }
    assert {n: labels for n, labels in found.items() if n.startswith("trade_stream_")} == expected
    others = {name for name in found if not name.startswith("trade_stream_")}
    assert "process_resident_memory_bytes" in others
    assert all(re.match(r"(process|python)_", name) for name in others)


def test_counts_arrive_as_they_were_handed_over() -> None:
    """Numbers keep their value, fates that never were stand at 0, and labels are in their place."""
    scraped = scrape_consumer(counts())
    assert scraped["trade_stream_consumed_records_total"] == {(): 1000}
    assert scraped["trade_stream_last_progress_timestamp_seconds"] == {(): 1_700_000_000.5}
    outcomes = scraped["trade_stream_processed_records_total"]
    assert outcomes == {
        (("outcome", fate.value),): {"booked": 800, "dead_lettered": 50}.get(fate.value, 0)
        for fate in Fate
    }
    assert scraped["trade_stream_rejected_records_total"] == {(("reason", "symbol-missing"),): 50}
    assert scraped["trade_stream_commits_total"] == {
        (("result", "ok"),): 9,
        (("result", "failed"),): 1,
    }
    place = (("partition", "7"), ("topic", "t"))
    assert scraped["trade_stream_consumer_lag_records"][place] == 20
    assert scraped["trade_stream_consumer_lag_seconds"][place] == 0.5
    assert scraped["trade_stream_committed_offset"][place] == 80
    assert scraped["trade_stream_build_info"] == {(("version", APP_VERSION),): 1}


def test_observations_are_counted_where_they_belong() -> None:
    """A batch, a flush, an error and a stall each end up under their own name."""
    metrics = ConsumerMetrics(topic="t")
    observe_everything(metrics)
    scraped = scrape_consumer(counts(), metrics)
    assert scraped["trade_stream_batch_size_sum"] == {(): 500}
    assert scraped["trade_stream_batch_size_bucket"][("le", "200.0"),] == 0
    assert scraped["trade_stream_batch_size_bucket"][("le", "500.0"),] == 1
    assert scraped["trade_stream_batch_duration_seconds_sum"] == {(): 0.1}
    assert scraped["trade_stream_process_duration_seconds_sum"] == {(): 0.002}
    assert scraped["trade_stream_commit_duration_seconds_sum"] == {(): 0.02}
    assert scraped["trade_stream_dlq_produced_total"] == {
        (("kind", "decode"),): 2,
        (("kind", "business"),): 1,
    }
    assert scraped["trade_stream_dlq_produce_failures_total"] == {(): 1}
    assert scraped["trade_stream_dlq_produce_duration_seconds_sum"] == {(): 0.03}
    assert scraped["trade_stream_errors_total"] == {
        (("error_class", "DecodeError"), ("kind", "decode")): 2
    }
    assert scraped["trade_stream_retries_total"] == {(("stage", "commit"),): 1}
    assert scraped["trade_stream_loop_stalls_total"] == {(): 1}
    assert scraped["trade_stream_loop_stall_seconds_sum"] == {(): 7}


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ({}, 0),
        ({"consumed_records": 1001}, 1),
        ({"in_flight": 51}, -1),
        ({"uncounted_records": 99}, 1),
        ({"outcomes": {Fate.BOOKED: 850, Fate.SKIPPED: 2}}, -2),
    ],
)
def test_conservation_is_zero_only_if_the_books_balance(
    changed: dict[str, Any], value: int
) -> None:
    """What is lost counts up, what is counted twice counts down."""
    scraped = scrape_consumer(counts(**changed))
    assert scraped["trade_stream_conservation_records"] == {(): value}


def test_what_is_not_known_is_absent() -> None:
    """No commit yet, and a partition of which only the offset is known: no sample, not a 0."""
    partial = PartitionCounts(committed_offset=5, lag_records=None, lag_s=None)
    scraped = scrape_consumer(counts(last_commit_s=None, partitions={3: partial}))
    assert "trade_stream_last_commit_timestamp_seconds" not in scraped
    assert "trade_stream_consumer_lag_records" not in scraped
    assert "trade_stream_consumer_lag_seconds" not in scraped
    assert "trade_stream_time_to_drain_seconds" not in scraped
    place = (("partition", "3"), ("topic", "t"))
    assert scraped["trade_stream_committed_offset"] == {place: 5}


@given(st.dictionaries(st.floats(0, 10_000), st.integers(1, 1000), max_size=30))
def test_values_are_sorted_into_cumulative_buckets(latencies: dict[float, int]) -> None:
    """Each bucket holds what is at or below its bound, the last one all; the sum is kept."""
    row = row_of("end_to_end_latency_seconds")
    samples = {
        (sample.name.removeprefix(row.full_name), sample.labels.get("le")): sample.value
        for sample in distribution(row.name, latencies).samples
    }
    for bound in row.buckets:
        below = sum(count for value, count in latencies.items() if value <= bound)
        assert samples.pop(("_bucket", str(bound))) == below
    everything = sum(latencies.values())
    assert samples.pop(("_sum", None)) == pytest.approx(sum(v * n for v, n in latencies.items()))
    assert samples == {("_bucket", "+Inf"): everything, ("_count", None): everything}


def test_latency_is_exported_in_seconds() -> None:
    """Nanoseconds of the loop end up in the buckets of seconds."""
    buckets = scrape_consumer(counts())["trade_stream_end_to_end_latency_seconds_bucket"]
    assert buckets[("le", "0.001"),] == 3
    assert buckets[("le", "2.0"),] == 3
    assert buckets[("le", "5.0"),] == 4


# -- time to drain


def test_time_to_drain_follows_the_recent_rate() -> None:
    """Unknown at the first scrape, then lag over rate; infinite without any; 0 without a lag."""
    now_s = [1000.0]
    metrics = ConsumerMetrics(topic="t", monotonic=lambda: now_s[0])

    def drain(booked: int, lag: int) -> float | None:
        partition = PartitionCounts(committed_offset=0, lag_records=lag, lag_s=1.0)
        given = counts(outcomes={Fate.BOOKED: booked}, partitions={0: partition})
        scraped = scrape_consumer(given, metrics)
        return scraped.get("trade_stream_time_to_drain_seconds", {}).get(())

    assert drain(0, 500) is None
    now_s[0] += 10
    assert drain(1000, 500) == 5.0
    assert drain(1000, 0) == 0.0
    now_s[0] += 50
    assert drain(1000, 500) == pytest.approx(500 / (1000 / 60))
    now_s[0] += 100  # by now the oldest total of the window is from after the last record
    assert drain(1000, 500) == math.inf


# -- the handover


def test_nothing_is_made_while_nobody_asks() -> None:
    """A loop that is not scraped is never asked for its numbers."""
    metrics = ConsumerMetrics(topic="t")

    def fail() -> ConsumerCounts:
        raise AssertionError("nobody asked")

    metrics.offer(fail)


def test_each_question_gets_the_numbers_of_now() -> None:
    """A loop that turns answers a scrape with what it has counted by then, not with old news."""
    metrics = ConsumerMetrics(topic="t")
    with Loop(metrics, counts(consumed_records=1)) as loop:
        for number in range(2, 6):
            loop.numbers = counts(consumed_records=number)
            scraped = scrape(metrics.process.registry)
            assert scraped["trade_stream_consumed_records_total"] == {(): number}


def test_a_loop_that_does_not_turn_is_not_waited_for() -> None:
    """Nothing before its first turn, later what it gave last."""
    handover: Handover[int] = Handover()
    assert handover.take(timeout_s=0) is None
    handover.offer(lambda: 1)
    assert handover.take(timeout_s=0) == 1
    assert handover.take(timeout_s=0) == 1
    handover.offer(lambda: 2)
    handover.offer(lambda: 3)
    assert handover.take(timeout_s=0) == 2


def test_scrapes_at_once_each_get_whole_numbers() -> None:
    """Eight scrapes in parallel of a loop that counts on: each has books that balance."""
    metrics = ConsumerMetrics(topic="t")
    found: list[Scraped] = []

    def ask() -> None:
        found.append(scrape(metrics.process.registry))

    with Loop(metrics, counts()):
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [each["trade_stream_conservation_records"] for each in found] == [{(): 0}] * 8


# -- alerts


def test_every_alert_has_a_runbook_and_a_severity() -> None:
    """The annotation leads to a heading of the page, and every such heading is an alert's."""
    names = [rule["alert"] for rule in RULES if "alert" in rule]
    headings = re.findall(r"^### (TradeStream\w+)$", DOCS, re.MULTILINE)
    assert headings == names
    for rule in RULES:
        if "alert" in rule:
            assert rule["annotations"]["runbook"] == f"docs/metrics.md#{rule['alert'].lower()}"
            assert rule["labels"]["severity"] in ("page", "ticket")
            (text,) = re.findall(rf"### {rule['alert']}\n\n(\w+)", DOCS)
            assert text.lower() == rule["labels"]["severity"]


def test_every_alert_is_tested_to_fire_and_to_be_silent() -> None:
    """Each alert has a moment at which it must be there, and one at which it must not."""
    fires: Counter[tuple[str, bool]] = Counter()
    for case in ALERT_TESTS["tests"]:
        for moment in case["alert_rule_test"]:
            fires[moment["alertname"], bool(moment.get("exp_alerts"))] += 1
    for rule in RULES:
        if "alert" in rule:
            assert fires[rule["alert"], True], rule["alert"]
            assert fires[rule["alert"], False], rule["alert"]


def test_bucket_of_the_objective_exists() -> None:
    """The bound that the rules look at is one that is exported, written the same way."""
    bounds = set(re.findall(r'le="([^"]+)"', (ROOT / "deploy/prometheus/alerts.yml").read_text()))
    assert bounds == {"2.0"}
    assert bounds <= set(map(str, row_of("end_to_end_latency_seconds").buckets))
