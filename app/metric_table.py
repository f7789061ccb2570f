"""The closed list of metrics, one row each, and how a row becomes what Prometheus scrapes.

Names are a contract: some are added, none is renamed. docs/metrics.md explains each.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Samples = Mapping[tuple[str, ...], float | None]
"""Values by the values of the labels, in their order; `None` is not exported."""

PREFIX: Final = "trade_stream_"
_SECONDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0),
)
"""Up to the longest batch that is legal; 2 s is the objective of docs/metrics.md."""
_RECORDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Kind(StrEnum):
    """What a metric may do from one scrape to the next."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    Attributes:
        name: Without the prefix; a counter ends in `_total`, a unit stands in the name.
        kind: Counter, gauge or histogram.
        help: One sentence, as the scrape shows it.
        labels: Names of its labels, each of a bounded set of values.
        buckets: Upper bounds of a histogram, without the infinite one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as Prometheus knows it."""
        return PREFIX + self.name


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, (), buckets)


OF_EVERY_PROCESS: Final = (
    _gauge("build_info", "Always 1; the label says which version runs.", "version"),
    _counter("loop_stalls_total", "Times that the event loop did not turn for seconds."),
    _histogram("loop_stall_seconds", "How long it did not turn, of the stalls that are over."),
)
OF_THE_CONSUMER: Final = (
    _counter("consumed_records_total", "Records taken from the topic."),
    _counter("consumed_bytes_total", "Bytes of their values."),
    _histogram("batch_size", "Records in one batch of one partition, as it was read.", _RECORDS),
    _histogram("batch_duration_seconds", "From the start of a batch to its last record processed."),
    _histogram("process_duration_seconds", "One chunk in the processor; the loop stands so long."),
    _histogram(
        "end_to_end_latency_seconds", "Publish time to acknowledged effect, of a sample of trades."
    ),
    _counter("processed_records_total", "Records by their fate, once committed.", "outcome"),
    _counter("rejected_records_total", "Dead letters by reason, once committed.", "reason"),
    _counter("suspect_records_total", "Trades booked in spite of a doubtful field.", "reason"),
    _counter("errors_total", "Errors by what follows from them.", "kind", "error_class"),
    _counter("unknown_fields_total", "Fields that this version does not know."),
    _gauge("conservation_records", "In, less fates, less in flight: anything but 0 is a fault."),
    _counter("retries_total", "Attempts that failed and are made again.", "stage"),
    _counter("dedupe_hits_total", "Trades recognised by their id as sent twice."),
    _counter("dedupe_evictions_total", "Trade ids that left the window of recognition."),
    _gauge("inflight_records", "Records consumed whose fate is not committed yet."),
    _gauge("parked_records", "Records that wait for another event of their trade."),
    _gauge("paused_partitions", "Partitions not read because too much is in flight."),
    _counter("backpressure_seconds_total", "Time for which partitions were paused."),
    _gauge("consumer_lag_records", "Records not committed yet.", "topic", "partition"),
    _gauge("consumer_lag_seconds", "Age of the oldest record not committed.", "topic", "partition"),
    _gauge("time_to_drain_seconds", "Lag over the rate of the last minute; +Inf without any rate."),
    _gauge("assigned_partitions", "Partitions that the group has given us."),
    _gauge("stopped_partitions", "Partitions that wait for a person."),
    _gauge("quarantined_batches", "Batches that nobody can read, put aside if possible."),
    _gauge("reference_file_refused", "1 while the file is not right, so that older data are used."),
    _counter("rebalances_total", "Assignments taken over."),
    _gauge("assignment_epoch", "Number of the assignment that is worked on."),
    _gauge("last_progress_timestamp_seconds", "When a commit last moved an offset, or the start."),
    _counter("commits_total", "Commits by what became of them.", "result"),
    _histogram("commit_duration_seconds", "One commit, with what it was tried again."),
    _gauge("committed_offset", "Next offset of the group.", "topic", "partition"),
    _gauge("last_commit_timestamp_seconds", "When the group last took a commit of ours."),
    _counter("dlq_produced_total", "Dead letters acknowledged, by kind of error.", "kind"),
    _counter("dlq_produce_failures_total", "Dead letters that were not acknowledged at once."),
    _histogram("dlq_produce_duration_seconds", "From sending dead letters to their last ack."),
)
OF_THE_PRODUCER: Final = (
    _counter("producer_sent_total", "Records by what is known of their send.", "result"),
    _histogram("producer_send_duration_seconds", "One chunk, from sending to its last outcome."),
    _counter("producer_retries_total", "Records sent again because they surely were not sent."),
    _gauge("producer_buffered_records", "Records handed over whose outcome is open."),
)
_BY_NAME: Final = {
    metric.name: metric for metric in (*OF_EVERY_PROCESS, *OF_THE_CONSUMER, *OF_THE_PRODUCER)
}


def family(name: str, samples: Samples) -> Family:
    """Make a counter or a gauge of values that are counted elsewhere."""
    metric = _BY_NAME[name]
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    made = make(metric.full_name, metric.help, labels=metric.labels)
    for labels, value in samples.items():
        if value is not None:
            made.add_metric(labels, value)
    return made


def distribution(name: str, counts: Mapping[float, int]) -> Family:
    """Make a histogram of values and how often each was seen."""
    metric = _BY_NAME[name]
    in_buckets = [0] * (len(metric.buckets) + 1)
    for value, count in counts.items():
        in_buckets[bisect_left(metric.buckets, value)] += count
    bounds = [*map(str, metric.buckets), "+Inf"]
    made = HistogramMetricFamily(metric.full_name, metric.help)
    made.add_metric(
        [],
        list(zip(bounds, accumulate(in_buckets), strict=True)),
        sum(value * count for value, count in counts.items()),
    )
    return made


def new_counter(registry: CollectorRegistry, name: str) -> Counter:
    """Make a counter that is counted up where things happen."""
    metric = _BY_NAME[name]
    return Counter(metric.full_name, metric.help, metric.labels, registry=registry)


def new_histogram(registry: CollectorRegistry, name: str) -> Histogram:
    """Make a histogram that is observed where things happen."""
    metric = _BY_NAME[name]
    return Histogram(metric.full_name, metric.help, buckets=metric.buckets, registry=registry)
