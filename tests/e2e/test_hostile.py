"""Records that nobody can read: one partition stops with an alarm, the others flow."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.e2e.harness import World, trade
from tests.faults.spoilt import spoilt_batch

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def world(kafka_bootstrap: str) -> Iterator[World]:
    """A world of one test."""
    made = World(kafka_bootstrap, partitions=2)
    yield made
    made.close()


async def _publish(world: World) -> None:
    good = trade(1, symbol="S", side="BUY", price="1", quantity="1")
    producer = AIOKafkaProducer(bootstrap_servers=world.bootstrap, acks="all")
    async with producer:
        await producer.send_and_wait(world.events, good, partition=0)
        await (await producer.send_batch(spoilt_batch(producer, good), world.events, partition=0))
        another = trade(2, symbol="S", side="BUY", price="1", quantity="1")
        await producer.send_and_wait(world.events, another, partition=0)
        for _ in range(20):
            await producer.send_and_wait(world.events, b"{", partition=1)


def test_unreadable_header_stops_its_partition_and_no_other(world: World, tmp_path: Path) -> None:
    """The bytes of the bad batch are kept; a command goes on after it, and the rest is booked."""
    world.extra |= {"QUARANTINE_DIR": str(tmp_path), "KAFKA_RAW_BATCHES": "true"}
    world.create_topics()
    asyncio.run(_publish(world))
    summary = json.loads(world.run("consume", "--until-caught-up", "--json", exit_code=4))
    assert summary["stopped_partitions"].keys() == {"0"}
    assert "cannot be read" in summary["stopped_partitions"]["0"]
    assert summary["reasons"] == {"body-not-json": 20}
    assert world.run("quarantine", "skip", "--partition", "1", exit_code=1) == ""
    (batch,) = json.loads(world.run("quarantine", "list", "--json"))
    (file,) = tmp_path.iterdir()
    assert (batch["partition"], batch["offset"], batch["next_offset"]) == (0, 1, 2)
    assert batch["file"].endswith(str(file))
    assert batch["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert b"GOOD-1" in file.read_bytes()
    assert (
        world.run("quarantine", "skip", "--partition", "0") == "partition 0 goes on at offset 2\n"
    )
    assert world.consume_all()["fates"] == {"booked": 1, "rekeyed": 1}
    assert [row["quantity"] for row in world.positions()] == ["2"]


def test_no_good_batch_is_put_aside_where_the_bad_one_is_not_known(
    world: World, tmp_path: Path
) -> None:
    """Public calls fail for the good batch before it as well: the other way tells them apart."""
    world.extra |= {"QUARANTINE_DIR": str(tmp_path), "KAFKA_RAW_BATCHES": "false"}
    world.create_topics()
    asyncio.run(_publish(world))
    summary = json.loads(world.run("consume", "--until-caught-up", "--json", exit_code=4))
    assert "KAFKA_RAW_BATCHES=true" in summary["stopped_partitions"]["0"]
    assert summary["reasons"] == {"body-not-json": 20}
    assert not list(tmp_path.iterdir())
    assert json.loads(world.run("quarantine", "list", "--json")) == []
    world.extra["KAFKA_RAW_BATCHES"] = "true"
    world.run("consume", "--until-caught-up", "--json", exit_code=4)
    (batch,) = json.loads(world.run("quarantine", "list", "--json"))
    assert (batch["partition"], batch["offset"]) == (0, 1)


def test_compressed_bomb_is_cut_in_its_dead_letter_and_the_stream_goes_on(world: World) -> None:
    """A value that only compression can carry is dead-lettered in part, with size and hash."""
    world.create_topics()
    bomb = b"0" * 3_000_000
    world.publish(
        [(b"k", bomb), (b"k", b"{")],
        **{"compression.type": "zstd", "message.max.bytes": 4_000_000},
    )
    assert world.consume_all()["reasons"] == {"body-not-json": 1, "body-too-large": 1}
    letter = next(m for m in world.read(world.dead_letters) if m.value != b"{")
    assert letter.headers["x-dlq-value-cut"] == b"3000000"
    assert bomb.startswith(letter.value or b"-")
