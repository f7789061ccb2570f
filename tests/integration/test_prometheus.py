"""A real Prometheus scrapes a real process, and judges our rules."""

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.metric_table import OF_EVERY_PROCESS, OF_THE_CONSUMER, OF_THE_PRODUCER, Kind, Metric
from tests.e2e.harness import World, wait_for

ALERTS = Path(__file__).parents[2] / "deploy/prometheus"
RULES = [
    rule
    for group in yaml.safe_load((ALERTS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
HAPPENINGS = {"reason", "kind", "error_class", "stage"}
"""Labels of counters that have no sample until something has happened."""

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)

PROGRAMS = [
    pytest.param(
        ["app/producer.py", "--rate", "200"],
        OF_THE_PRODUCER,
        ['increase(trade_stream_producer_sent_total{result="ok"}[10s]) > 0'],
        id="producer",
    ),
    pytest.param(
        ["app/consumer.py"],
        OF_THE_CONSUMER,
        [
            'increase(trade_stream_processed_records_total{outcome="booked"}[10s]) > 0',
            "increase(trade_stream_end_to_end_latency_seconds_count[10s]) > 0",
            "count(trade_stream_committed_offset) == sum(trade_stream_assigned_partitions)",
            "trade_stream_conservation_records == 0",
            "trade_stream_time_to_drain_seconds < 10",
        ],
        id="consumer",
    ),
]
"""Command line, rows of the table, and queries that have a result once it runs."""


class Prometheus:
    """A running Prometheus and its HTTP API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> str:
        """Ask it something; give the body of the answer."""
        url = f"{self._url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - http
            return str(answer.read(), "utf-8")

    def api(self, path: str, **query: str) -> Any:
        """Ask its API; give the data of the answer."""
        answer = json.loads(self.get(f"/api/v1/{path}", **query))
        assert answer["status"] == "success", answer
        return answer["data"]

    def is_ready(self) -> bool:
        """Tell whether it serves already."""
        try:
            return "Ready" in self.get("/-/ready")
        except OSError:
            return False

    def names(self) -> set[str]:
        """Give the names of our metrics that it has samples of."""
        series = self.api("series", **{"match[]": '{__name__=~"trade_stream_.+"}'})
        return {labels["__name__"] for labels in series}

    def holds(self, query: str) -> bool:
        """Tell whether a query has a result."""
        return bool(self.api("query", query=query)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Give the rules with what it thinks of them."""
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]]


@contextmanager
def scraping(port: int, directory: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a port every second and judges our rules."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS / "alerts.yml")],
        "scrape_configs": [
            {
                "job_name": "trade-stream-test",
                "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
            }
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        own_port = free.getsockname()[1]
    with (directory / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{own_port}",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        prometheus = Prometheus(own_port)
        wait_for(prometheus.is_ready, "Prometheus is ready")
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def port_of(process: "subprocess.Popen[str]") -> int:
    """Read the port that a process has taken from its log."""
    assert process.stderr is not None
    for line in process.stderr:
        if "monitor_listens" in line:
            port: int = json.loads(line)["port"]
            return port
    raise AssertionError("the process ended without a word on its port")


def expected_names(rows: tuple[Metric, ...]) -> set[str]:
    """Give the names that have samples from the start."""
    return {
        f"{row.full_name}_count" if row.kind is Kind.HISTOGRAM else row.full_name
        for row in (*OF_EVERY_PROCESS, *rows)
        if not HAPPENINGS & set(row.labels)
    }


@pytest.mark.integration
@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize(("command", "rows", "truths"), PROGRAMS)
def test_prometheus_finds_every_series_of_a_process(
    kafka_bootstrap: str,
    tmp_path: Path,
    command: list[str],
    rows: tuple[Metric, ...],
    truths: list[str],
) -> None:
    """All names have samples, they say what is going on, and rules are judged without an alert."""
    world = World(kafka_bootstrap, extra={"HEALTH_PORT": "0"})
    try:
        world.start("app/producer.py", "--rate", "200")
        port = port_of(world.start(*command))
        with scraping(port, tmp_path) as prometheus:
            expected = expected_names(rows)
            wait_for(lambda: expected <= prometheus.names(), "a sample of every name")
            for truth in ("up == 1", *truths):
                wait_for(lambda truth=truth: prometheus.holds(truth), truth)  # type: ignore[misc]
            wait_for(
                lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, "rules judged"
            )
            assert len(prometheus.rules()) == len(RULES)
            assert not [a for a in prometheus.api("alerts")["alerts"] if a["state"] == "firing"]
    finally:
        world.close()


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=["check", "test"],
)
def test_promtool_accepts_the_rules(command: list[str]) -> None:
    """The rules are well formed, and each fires on its fault and on nothing else."""
    done = subprocess.run(
        ["promtool", *command], cwd=ALERTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
