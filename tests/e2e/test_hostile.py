"""Records that nobody can read: one partition stops with an alarm, the others flow."""

import asyncio
import json
import struct
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c

from tests.e2e.harness import World, trade

pytestmark = [pytest.mark.integration, pytest.mark.slow]


CRC_FIELD = slice(17, 21)  # of a record batch of magic 2; it covers everything after it


def spoilt_batch(producer: AIOKafkaProducer, value: bytes) -> BatchBuilder:
    """Build a batch whose one header key is no UTF-8, which no honest client can make."""
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=value, headers=[("header", b"")])
    raw = bytearray(batch._build())
    raw[raw.index(b"header")] = 0xFF
    raw[CRC_FIELD] = struct.pack(">I", calc_crc32c(bytes(raw[CRC_FIELD.stop :])))
    batch._buffer = raw
    return batch


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
        for _ in range(20):
            await producer.send_and_wait(world.events, b"{", partition=1)


def test_unreadable_header_stops_its_partition_and_no_other(world: World) -> None:
    """The good partition is finished; the bad one is named with its offset, exit code 4."""
    world.create_topics()
    asyncio.run(_publish(world))
    summary = json.loads(world.run("consume", "--until-caught-up", "--json", exit_code=4))
    assert summary["stopped_partitions"].keys() == {"0"}
    assert "cannot be read" in summary["stopped_partitions"]["0"]
    assert summary["reasons"] == {"body-not-json": 20}


def test_compressed_bomb_is_cut_in_its_dead_letter_and_the_stream_goes_on(world: World) -> None:
    """A value that only compression can carry is dead-lettered in part, with size and hash."""
    world.create_topics()
    bomb = b"0" * 3_000_000
    world.publish(
        [(b"k", bomb), (b"k", b"{")],
        **{"compression.type": "zstd", "message.max.bytes": 4_000_000},
    )
    assert world.consume_all()["reasons"] == {"body-not-json": 1, "body-too-large": 1}
    letter = next(m for m in world.read(world.dead_letters) if (m.value() or b"") != b"{")
    headers = dict(letter.headers() or [])
    assert headers["x-dlq-value-cut"] == b"3000000"
    assert bomb.startswith(letter.value() or b"-")
