"""Batches that are small in the log and large in memory, against a real consumer."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from confluent_kafka import Producer

from app.kafka_io.partitioner import KeyPartitioner
from tests.e2e.harness import World, trade, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MIB: Final = 1 << 20
MEMORY_LIMIT_MIB: Final = 512
LARGE: Final = 600  # dead letters of 1 MiB each


@pytest.fixture
def world(kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    """A world of one test."""
    made = World(
        kafka_bootstrap,
        partitions=2,
        extra={
            "QUARANTINE_DIR": str(tmp_path),
            "DLQ_BREAKER_SHARE": "1",
            "KAFKA_RAW_BATCHES": "true",  # the public way gives nothing of a fetch with a bad batch
        },
    )
    yield made
    made.close()


def publish(world: World, partition: int, values: list[bytes], *, batch_bytes: int) -> None:
    """Publish to one partition, compressed, in batches of a size."""
    producer = Producer(
        {
            "bootstrap.servers": world.bootstrap,
            "acks": "all",
            "compression.type": "zstd",
            "message.max.bytes": 200 * MIB,
            "batch.size": batch_bytes,
            "linger.ms": 100,
        }
    )
    for value in values:
        producer.produce(world.events, key=b"S", value=value, partition=partition)
    assert producer.flush(60) == 0


def peak_mib(pid: int) -> int:
    """Give the largest memory that a process had so far, 0 when it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found.group(1)) >> 10 if found else 0


def test_bombs_take_neither_the_memory_nor_the_other_partition(world: World) -> None:
    """What is within the bound is dead-lettered, what is not stops its partition: in 512 MiB."""
    world.create_topics()
    at_home = (f"S{n}" for n in count())
    symbol = next(s for s in at_home if KeyPartitioner().partition(s.encode(), 2) == 0)
    good = [trade(n, symbol=symbol, side="BUY", price="1", quantity="1") for n in range(500)]
    publish(world, 0, good, batch_bytes=16 * 1024)
    publish(world, 1, [b"\0" * MIB] * LARGE, batch_bytes=40 * MIB)
    publish(world, 1, [b"\0" * (80 * MIB)], batch_bytes=MIB)
    process = world.start("-m", "app", "consume", "--until-caught-up", "--json")
    peaks = [0]

    def has_ended() -> bool:
        peaks.append(peak_mib(process.pid))
        return process.poll() is not None

    wait_for(has_ended, "the end of the consumer", timeout_s=240)
    output, errors = process.communicate()
    assert process.returncode == 4, errors[-3000:]
    summary = json.loads(output)
    assert summary["stopped_partitions"].keys() == {"1"}
    assert "cannot be decompressed to 64 MiB" in summary["stopped_partitions"]["1"]
    assert summary["reasons"] == {"body-too-large": LARGE}
    assert summary["fates"]["booked"] == len(good)
    assert max(peaks) < MEMORY_LIMIT_MIB
