"""Kafka's own performance tools, in Java: how fast this broker and this machine can be.

A limit, not a peer: `ProducerPerformance` sends payloads drawn at random from a file, without keys
(it cannot give any), so that its batches fill one partition after the other; `ConsumerPerformance`
counts records and bytes and commits by its client's default, at the end at the latest.

The wall time is the tools' own. The CPU time is that of their whole process, the start of Java
(about a second) included; so is the memory.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import os
import re
import resource
import subprocess
import tempfile
from typing import Any

import msgspec

from app.embedded.jars import default_cache_dir, ensure_jars, read_lock
from app.embedded.java import find_java
from benchmarks.peers.contestant import CannotRunError, Job, main

_LOCK = Path(__file__).with_suffix(".lock.toml")
_TIMEOUT_S = 600.0
_PRODUCED = re.compile(r"^(\d+) records sent, ([\d.]+) records/sec.* max latency", re.MULTILINE)
_CONSUMED = re.compile(r"^\d{4}-.*$", re.MULTILINE)
_CONSUMED_COLUMNS = 10
_PRODUCER = (
    "acks=all",
    "enable.idempotence=true",
    "linger.ms=5",
    "batch.size=262144",
    "compression.type=zstd",
)


def _class_path() -> str:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    lock = read_lock(_LOCK)
    cache_dir = default_cache_dir()
    tools = ensure_jars(lock, cache_dir=cache_dir / "benchmarks", notify=tell)
    broker = ensure_jars(read_lock(), cache_dir=cache_dir, notify=tell)
    # Two versions of one Kafka jar do not mix: of the broker's only what others have published.
    others = [jar for jar in broker if not jar.name.startswith("kafka")]
    return os.pathsep.join(str(jar) for jar in [*tools, *others])


def _run(tool: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    java = find_java()
    command = java.command(
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dfile.encoding=UTF-8",
        "-cp",
        _class_path(),
        f"org.apache.kafka.tools.{tool}",
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise CannotRunError(f"{tool} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, {
        "cpu_s": round(cpu_s, 4),
        "peak_rss_mb": round(after.ru_maxrss / 1024, 1),
        "versions": {"kafka-tools": read_lock(_LOCK).kafka_version, "java": str(java.major)},
    }


def _produce(job: Job) -> dict[str, Any]:
    pairs = msgspec.msgpack.decode(Path(job.input).read_bytes())
    with tempfile.NamedTemporaryFile(suffix=".txt") as payloads:
        payloads.write(b"\n".join(value for _, value in pairs[: job.count]))
        payloads.flush()
        shown, measured = _run(
            "ProducerPerformance",
            *("--bootstrap-server", job.bootstrap, "--topic", job.topic),
            *("--num-records", str(job.count), "--throughput", "-1"),
            *("--payload-file", payloads.name, "--command-property", *_PRODUCER),
        )
    found = _PRODUCED.findall(shown)
    if not found:
        raise CannotRunError(f"ProducerPerformance said nothing to be read: {shown[-500:]}")
    records, per_second = found[-1]  # the last line is the total
    wall_s = round(int(records) / float(per_second), 4)
    return {"records": int(records), "wall_s": wall_s, **measured}


def _consume(job: Job) -> dict[str, Any]:
    shown, measured = _run(
        "ConsumerPerformance",
        *("--bootstrap-server", job.bootstrap, "--topic", job.topic),
        *("--num-records", str(job.count), "--group", job.group),
        *("--reporting-interval", "600000"),
    )
    found = _CONSUMED.findall(shown)
    columns = found[-1].split(", ") if found else []
    if len(columns) != _CONSUMED_COLUMNS:
        raise CannotRunError(f"ConsumerPerformance said nothing to be read: {shown[-500:]}")
    # start, end, MB, MB/s, records, records/s, rebalance ms, fetch ms, fetch MB/s, fetch records/s
    return {"records": int(columns[4]), "wall_s": int(columns[7]) / 1000, **measured}


if __name__ == "__main__":
    main({("produce", "perf-test"): _produce, ("consume", "perf-test"): _consume})
