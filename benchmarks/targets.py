"""What the platform is to reach: each target finds its figure in a result."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

Result = dict[str, Any]
Row = dict[str, Any]
Find = Callable[[Result], float | None]


class Target(NamedTuple):
    """What is to be reached, and how to find it."""

    text: str
    sign: str
    limit: float
    find: Find


def table_of_targets(result: Result) -> str:
    """Say of each target that was measured whether it is met."""
    lines = []
    for text, sign, limit, find in TARGETS:
        value = find(result)
        if value is None:
            continue  # not measured this time
        is_met = value <= limit if sign == _AT_MOST else value >= limit
        verdict = "met" if is_met else "**not met**"
        lines.append(f"| {text} | {sign} {limit:g} | {value:,.2f} | {verdict} |")
    if not lines:
        return ""
    heading = ["## Targets", "", "| target | | measured | |", "| --- | ---: | ---: | --- |"]
    return "\n".join([*heading, *lines, ""])


def rows_of(result: Result, table: str | None = None) -> list[Row]:
    """Give the rows of one table, or of all."""
    chosen = (t for t in result["tables"] if table in (None, t["name"]))
    return [row for t in chosen for row in t["rows"]]


def _median(table: str, row: str, figure: str, *, is_last: bool = False) -> Find:
    """Find the median of a figure in the first row whose name begins so, or in the last one."""

    def find(result: Result) -> float | None:
        rows = rows_of(result, table)
        for found in reversed(rows) if is_last else rows:
            if found["name"].startswith(row) and figure in found["figures"]:
                median: float = found["figures"][figure][1]
                return median
        return None

    return find


def _live(rate: int, figure: str) -> Find:
    """Find a figure of the longest run at a rate: rows go from short to long."""
    return _median("live", f"{rate:,}/s", figure, is_last=True)


def _over(table: str, upper: str, lower: str, figure: str) -> Find:
    """Find the ratio of two rows' medians."""

    def find(result: Result) -> float | None:
        above = _median(table, upper, figure)(result)
        below = _median(table, lower, figure)(result)
        return above / below if above and below else None

    return find


def _ours_over_peer(table: str, peer: str, figure: str) -> Find:
    """Find the median of the ratios to a peer, each taken within a round."""

    def find(result: Result) -> float | None:
        for row in rows_of(result, table):
            if row["name"].startswith(peer) and figure in row["ratios"]:
                ratio: float = row["ratios"][figure][1]
                return ratio
        return None

    return find


def _peer_over_ours(table: str, peer: str, figure: str) -> Find:
    """Find the same the other way round."""

    def find(result: Result) -> float | None:
        ratio = _ours_over_peer(table, peer, figure)(result)
        return 1 / ratio if ratio else None

    return find


_AT_MOST, _AT_LEAST = "\u2264", "\u2265"
_CPU: Final = "cpu_s_per_million"
_OURS: Final = "trade-stream"


def _less_cpu(peer: str) -> Target:
    text = f"drain: CPU of {peer} over ours, in the same rounds"
    limits = {
        "aiokafka getmany": 1.25,
        "FastStream batch, raw": 1.9,
        "confluent-kafka consume": 1.1,
        "aiokafka async for": 5.0,
    }
    return Target(text, _AT_LEAST, limits[peer], _peer_over_ours("drain", peer, _CPU))


def _into_ledger(scope: str, group: str, limit: float) -> Target:
    text = f"ledger of 5,000,000 trades, IDENTITY={scope}, {group}: trades per second"
    row = f"{_OURS}, ledger, IDENTITY={scope}, {group}, 5,000,000 trades there"
    return Target(text, _AT_LEAST, limit, _median("ledger", row, "rate"))


def _faster_ledger(peer: str, limit: float) -> Target:
    text = f"ledger, IDENTITY=full, empty tables: our rate over that of {peer}"
    ours = f"{_OURS}, ledger, IDENTITY=full, 1 process"
    return Target(text, _AT_LEAST, limit, _over("ledger", ours, peer, "rate"))


TARGETS: Final = (
    Target(
        "drain, no sink: CPU s per million at reference speed",
        _AT_MOST,
        2.2,
        _median("drain", _OURS, "scaled_cpu"),
    ),
    Target(
        "drain, positions written: CPU s per million at reference speed",
        *(_AT_MOST, 2.6, _median("drain", f"{_OURS}, positions", "scaled_cpu")),
    ),
    Target(
        "drain, no sink: trades per second at reference speed",
        *(_AT_LEAST, 400_000, _median("drain", _OURS, "scaled_rate")),
    ),
    *(
        _less_cpu(peer)
        for peer in (
            "aiokafka getmany",
            "FastStream batch, raw",
            "confluent-kafka consume",
            "aiokafka async for",
        )
    ),
    Target(
        "produce: CPU s per million at reference speed",
        _AT_MOST,
        1.7,
        _median("produce", _OURS, "scaled_cpu"),
    ),
    Target(
        "produce: our rate over that of confluent-kafka, in the same rounds",
        *(_AT_LEAST, 0.75, _ours_over_peer("produce", "confluent-kafka produce", "rate")),
    ),
    Target(
        "produce: our rate over that of Kafka's perf tool, in the same rounds",
        *(_AT_LEAST, 0.75, _ours_over_peer("produce", "Kafka's producer", "rate")),
    ),
    Target(
        "consume: our rate over that of Kafka's perf tool, in the same rounds",
        *(_AT_LEAST, 0.75, _ours_over_peer("consume", "Kafka's consumer", "rate")),
    ),
    Target("live, 100,000/s: p50 ms", _AT_MOST, 8.0, _live(100_000, "p50_ms")),
    Target(
        "live, 100,000/s: share of seconds with p99 < 50 ms",
        *(_AT_LEAST, 0.95, _live(100_000, "good_share")),
    ),
    Target(
        "live, 100,000/s: trades by which the lag grows in a second",
        *(_AT_MOST, 500.0, _live(100_000, "lag_slope")),
    ),
    Target(
        "live, 150,000/s: trades by which the lag grows in a second",
        *(_AT_MOST, 750.0, _live(150_000, "lag_slope")),
    ),
    Target(
        "trades per second, two processes over one",
        *(
            _AT_LEAST,
            1.7,
            _over(
                "workers",
                f"{_OURS}, positions written, 2",
                f"{_OURS}, positions written, 1",
                "rate",
            ),
        ),
    ),
    Target(
        "trades per second, two of our processes over two of confluent-kafka",
        *(
            _AT_LEAST,
            1.3,
            _over("workers", f"{_OURS}, 2", "confluent-kafka consume, 2", "rate"),
        ),
    ),
    Target(
        "peak RSS of a worker with 2,000 keys, MB",
        *(_AT_MOST, 150.0, _median("drain", f"{_OURS}, positions", "peak_rss_mb")),
    ),
    Target(
        "CPU per trade from the first record on, 128 partitions over 4",
        *(
            _AT_MOST,
            1.3,
            _over("growth", "128 partitions", "4 partitions", "open_cpu_s_per_million"),
        ),
    ),
    Target(
        "restore, 2,000 keys: s until the last partition is open",
        *(_AT_MOST, 15.0, _median("restore", "2,000 keys", "wall_s")),
    ),
    Target(
        "largest stall of the event loop in a drain, ms",
        *(_AT_MOST, 25.0, _median("drain", f"{_OURS}, positions", "largest_stall_ms")),
    ),
    Target(
        "layers over the hand-fused loop",
        _AT_MOST,
        1.1,
        _over("layers", "in layers", "one loop", "cpu_ns"),
    ),
    Target(
        "money step, share of the pipeline",
        _AT_MOST,
        0.15,
        _over("layers", "money", "in layers", "cpu_ns"),
    ),
    _into_ledger("full", "1 process", 70_000),
    _into_ledger("full", "2 processes", 100_000),
    _into_ledger("window", "1 process", 120_000),
    _into_ledger("window", "2 processes", 160_000),
    _faster_ledger("asyncpg executemany, a batch", 3.0),
    _faster_ledger("asyncpg INSERT, a trade", 30.0),
    _faster_ledger("Quix Streams' PostgreSQL sink", 3.0),
)
