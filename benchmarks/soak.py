"""`python -m benchmarks.soak`: does a consumer grow? An hour at a steady rate, and nothing fails.

Broker, load and `trade-stream consume` are processes of their own on the same cores; the consumer
has the settings that it has by default. The broker deletes what lies some minutes back, since an
hour of trades is more than a disk should have to hold.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import correlation, linear_regression, stdev
from typing import Annotated, Any, Final

import typer

from app.config import Settings
from app.embedded.kafka import EmbeddedKafka
from app.kafka_io.log_reader import KafkaLogReader
from app.stores.changelog import Changelog
from app.utils import configure_logging
from benchmarks import machine
from benchmarks.backlog import check_committed, check_dead_letters, make_topics, settings_of
from benchmarks.children import ROOT, Child, ContestantError, end_all, python_module
from benchmarks.rounds import GateError, say

_PARTITIONS: Final = 4  # as in the live suite, whose highest flat rate this is a share of
_SAMPLE_S: Final = 5.0
_TELL_S: Final = 60.0
_READY_S: Final = 60.0
_DRAIN_S: Final = 120.0
_KEPT: Final = {
    "log.retention.bytes": str(512 * 2**20),
    "log.segment.bytes": str(64 * 2**20),
    "log.retention.check.interval.ms": "10000",
}

Sample = tuple[float, float]
"""Seconds since the start of the load, and the consumer's resident memory in MB."""


def soak(kafka: EmbeddedKafka, rate: int, seconds: int) -> dict[str, Any]:
    """Offer `rate` trades a second and watch one consumer.

    Raises:
        ContestantError: The load failed.
        GateError: The consumer ended, or some trade was not booked exactly once.
    """
    settings = settings_of(kafka.bootstrap, "trades-soak", partitions=_PARTITIONS)
    make_topics(settings)
    port = _free_port()
    with tempfile.TemporaryFile() as said:
        consumer = subprocess.Popen(
            [*python_module("app"), "consume"],
            cwd=ROOT,
            env=os.environ | _environment(settings) | {"HEALTH_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            _await_ready(consumer, port)
            job = {"bootstrap": kafka.bootstrap, "topic": settings.kafka_topic}
            load = Child(python_module("benchmarks.load"), job | {"rate": rate, "seconds": seconds})
            samples = _watch(consumer, load, seconds)
            loaded = load.result(timeout_s=_DRAIN_S)
            _await_committed(settings)
            cpu_s = machine.cpu_seconds(consumer.pid)
        except GateError as exc:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-3:]
            raise GateError(" / ".join([str(exc), *last])) from None
        finally:
            consumer.terminate()
            consumer.wait(timeout=settings.shutdown_graceful_timeout_s + 10)
    count = rate * seconds
    check_dead_letters(settings, Counter())
    began_s = time.monotonic()
    booked, position_records = asyncio.run(_booked(settings))
    restore_s = time.monotonic() - began_s
    if booked != count:
        raise GateError(f"{booked:,} trades are booked, of {count:,}")
    slope, error = growth(samples[len(samples) // 2 :])
    return {
        "rate": rate,
        "seconds": seconds,
        "trades": count,
        "rss_mb": max(mb for _, mb in samples),
        "rss_mb_per_h": slope,
        "rss_mb_per_h_error": error,
        "cpu_s_per_million": cpu_s / count * 1e6,
        "position_records": position_records,
        "restore_s": restore_s,
        "load_cpu_s_per_million": loaded["cpu_s"] / count * 1e6,
        "load_largest_delay_ms": loaded["largest_delay_ms"],
        "samples": samples,
    }


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """Give the slope of the least-squares line through samples, and its standard error, in MB/h."""
    hours, sizes = [at_s / 3600 for at_s, _ in samples], [mb for _, mb in samples]
    unexplained = 1 - correlation(hours, sizes) ** 2
    error = stdev(sizes) / stdev(hours) * sqrt(unexplained / (len(samples) - 2))
    return linear_regression(hours, sizes).slope, error


def _environment(settings: Settings) -> dict[str, str]:
    names = settings.model_dump(include=settings.model_fields_set, mode="json")
    return {name.upper(): str(value) for name, value in names.items()}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _await_ready(consumer: "subprocess.Popen[bytes]", port: int) -> None:
    ends_s = time.monotonic() + _READY_S
    while time.monotonic() < ends_s and consumer.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise GateError("the consumer did not get ready")


def _watch(consumer: "subprocess.Popen[bytes]", load: Child, seconds: int) -> list[Sample]:
    samples: list[Sample] = []
    started_s = told_s = time.monotonic()
    while not load.has_ended:
        time.sleep(_SAMPLE_S)
        if consumer.poll() is not None:
            raise GateError(f"the consumer ended with {consumer.returncode}")
        now_s = time.monotonic()
        mb = round(machine.rss_mb(consumer.pid), 1)
        samples.append((round(now_s - started_s, 1), mb))
        if now_s - told_s >= _TELL_S:
            told_s = now_s
            say(f"  {now_s - started_s:,.0f} of {seconds:,} s: {mb:.1f} MB")
    return samples


def _await_committed(settings: Settings) -> None:
    ends_s = time.monotonic() + _DRAIN_S
    while True:
        try:
            check_committed(settings)
        except GateError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(1)
        else:
            return


async def _booked(settings: Settings) -> tuple[int, int]:
    """Restore all positions; give the trades in them, and the records that were read for it."""
    changelog = Changelog.of(KafkaLogReader(settings), settings)
    restored = [await changelog.restore(partition) for partition in range(_PARTITIONS)]
    trades = sum(position.trade_count for r in restored for position in r.positions.values())
    return trades, changelog.records_read


def main(
    *,
    rate: Annotated[int, typer.Option(help="Trades a second.", min=1)] = 105_000,
    seconds: Annotated[int, typer.Option(help="How long.", min=60)] = 3_600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how much memory a consumer has, and by how much it grows in an hour."""
    configure_logging("ERROR")
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            EmbeddedKafka(
                data_dir=Path(folder) / "kafka", port=0, heap_mb=1024, properties=_KEPT
            ) as kafka,
        ):
            result = {"machine": machine.describe(), **soak(kafka, rate, seconds)}
    except (ContestantError, GateError) as exc:
        print(f"failed: {exc}", file=sys.stderr)
        raise typer.Exit(1) from None
    finally:
        end_all()
    if as_json:
        json.dump(result, sys.stdout)
        return
    print(
        f"{result['trades']:,} trades in {seconds:,} s: at most {result['rss_mb']:.0f} MB;"
        f" over the second half {result['rss_mb_per_h']:+.2f} MB an hour"
        f" (standard error {result['rss_mb_per_h_error']:.2f});"
        f" {result['cpu_s_per_million']:.2f} CPU s per million;"
        f" {result['position_records']:,} position records read in {result['restore_s']:.1f} s"
    )


if __name__ == "__main__":
    typer.run(main)
