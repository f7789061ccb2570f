"""A group that ran on Kafka alone gets a ledger: real processes, broker and database."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.embedded.postgres import EmbeddedPostgres
from app.stores.database import recreate_database
from tests.e2e.harness import World, kill, trade, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def world(kafka_bootstrap: str) -> Iterator[World]:
    """A world of one test."""
    made = World(kafka_bootstrap)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(open_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server for the tests of this module."""
    with EmbeddedPostgres(open_dir / "move") as postgres:
        yield postgres


@pytest.fixture
def database_url(server: EmbeddedPostgres, world: World) -> str:
    """Address of a database without any tables."""
    name = world.name.replace("-", "_")
    asyncio.run(recreate_database(server.url, name))
    return server.url_of(name)


@pytest.mark.timeout(600)
def test_a_group_moves_to_a_ledger_without_loss(world: World, database_url: str) -> None:
    """Refused while it runs; killed and run again; compared; and consumers go on from there."""
    produced = json.loads(
        world.run("produce", "--count", "4000", "--rate", "0", "--poison", "0.02", "--json")
    )
    world.publish([(None, trade(n, symbol=f"S{n % 5}", side="BUY", price="1.5", quantity="2"))
                   for n in range(50)])  # fmt: skip
    consumer = world.start("app/consumer.py")
    wait_for(lambda: world.progress()[0] > 0, "the consumer runs")
    world.run("db", "migrate", DATABASE_URL=database_url)
    world.run("db", "backfill", exit_code=1, DATABASE_URL=database_url)  # it has members
    consumer.terminate()
    consumer.communicate(timeout=30)
    world.consume_all()
    letters = len(world.read(world.dead_letters))
    before = world.positions()

    stopped = json.loads(
        world.run("consume", "--until-caught-up", "--json", exit_code=4, DATABASE_URL=database_url)
    )
    assert "trade-stream db backfill" in json.dumps(stopped)

    broken_off = world.start("-m", "app", "db", "backfill", DATABASE_URL=database_url)
    time.sleep(2.5)  # somewhere in it, or before it
    kill(broken_off)
    report = json.loads(
        world.run("db", "backfill", "--json", timeout_s=180, DATABASE_URL=database_url)
    )
    assert not report["differences"]
    assert report["equal"] == len(before)
    assert len(world.read(world.dead_letters)) == letters

    world.publish([(None, trade(n, symbol=f"S{n % 5}", side="SELL", price="2.5", quantity="1"))
                   for n in range(50, 60)])  # fmt: skip
    consumed = json.loads(
        world.run("consume", "--until-caught-up", "--json", DATABASE_URL=database_url)
    )
    assert consumed["fates"]["booked"] == 10
    held = json.loads(world.run("positions", "--json", DATABASE_URL=database_url))
    shown = [{name: row[name] for name in before[0]} for row in held]
    by_key = {(row["book"], row["symbol"]): row for row in world.positions()}
    assert {(row["book"], row["symbol"]): row for row in shown} == by_key
    trades = json.loads(world.run("trades", "--json", DATABASE_URL=database_url))
    assert len(trades) == 4000 - sum(produced["poison"].values()) + 60

    other = world.run(
        "db", "backfill", exit_code=1, KAFKA_GROUP_ID="another", DATABASE_URL=database_url
    )
    assert not other


async def _owned(url: str) -> dict[int, tuple[Any, int | None]]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT source_partition, owner, next_offset FROM source_partitions"
        )
        return {number: (owner, next_offset) for number, owner, next_offset in rows}
    finally:
        await connection.close()


def _ends(url: str) -> list[int]:
    return sorted(end for _, end in asyncio.run(_owned(url)).values() if end is not None)


@pytest.mark.timeout(300)
def test_nothing_is_skipped_while_a_consumer_runs(world: World, database_url: str) -> None:
    """A refusal leaves it the owner; once it has gone, the same command skips what is named."""
    world.extra["DATABASE_URL"] = database_url
    world.create_topics()
    world.run("db", "migrate")
    consumer = world.start("app/consumer.py")
    world.publish([(b"S0", trade(n, symbol="S0", side="BUY", price="1", quantity="1"))
                   for n in range(5)])  # fmt: skip
    wait_for(lambda: _ends(database_url) == [0, 0, 0, 5], "all is booked")
    before = asyncio.run(_owned(database_url))
    (number,) = [number for number, (_, end) in before.items() if end == 5]
    skip = ("gap", "accept", "--partition", str(number), "--to")
    world.run(*skip, "5", exit_code=1)
    assert asyncio.run(_owned(database_url)) == before
    consumer.terminate()
    consumer.communicate(timeout=30)
    world.publish([(b"S0", trade(n, symbol="S0", side="BUY", price="1", quantity="1"))
                   for n in range(5, 9)])  # fmt: skip
    for _ in range(2):
        assert "goes on at offset 8" in world.run(*skip, "8")
    assert world.consume_all()["fates"] == {"booked": 1}
    assert [row["quantity"] for row in world.positions()] == ["6"]
