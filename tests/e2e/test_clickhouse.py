"""The copy as users run it: killed at random points, resumed, compared, repaired, made anew."""

import asyncio
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from app.embedded.postgres import EmbeddedPostgres
from tests.e2e.harness import World, kill, trade
from tests.faults.spoilt import spoilt_batch

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        find_spec("chdb") is None or find_spec("clickhouse_connect") is None,
        reason="ClickHouse's engine is not installed: ./run.sh clickhouse installs it",
    ),
]

# The command line, but for where the engine has its data and how large a block is.
_PROGRAM = """
import sys
from pathlib import Path
from app import copier
from app.stores import clickhouse
folder = Path(sys.argv.pop(1))
clickhouse.default_data_dir = lambda: folder
copier.BLOCK_OFFSETS = 1_000
from app.cli import main
main()
"""
_CHANGE = """
import asyncio, sys
from pathlib import Path
from app.config import Settings
from app.stores.clickhouse import open_copy
async def change():
    async with open_copy(Settings.from_env(), data_dir=Path(sys.argv[1])) as copy:
        await copy._worker.run(lambda: copy._client.command(sys.argv[2]))
asyncio.run(change())
"""


class Copied:
    """A world with a copy of its own."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder / "clickhouse"
        world.extra["CLICKHOUSE_URL"] = "embedded"
        world.extra["CLICKHOUSE_GROUP_ID"] = f"{world.name}-copy"

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command."""
        return self.world.start("-c", _PROGRAM, str(self.folder), *command)

    def run(self, *command: str, exit_code: int = 0) -> dict[str, Any]:
        """Run a command to its end; give what it says in JSON."""
        process = self.start(*command, "--json")
        output, errors = process.communicate(timeout=180)
        assert process.returncode == exit_code, f"{command}: {output}\n{errors[-3000:]}"
        said: dict[str, Any] = json.loads(output)
        return said

    def change(self, statement: str) -> None:
        """Change the copy behind its back."""
        process = self.world.start("-c", _CHANGE, str(self.folder), statement)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.fixture
def copied(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Copied]:
    """A world of one test, with its copy."""
    made = Copied(World(kafka_bootstrap), tmp_path)
    yield made
    made.world.close()


def publish(copied: Copied, count: int, *, start: int = 0) -> None:
    """Publish good trades, each tenth of them twice, and some that are no trades."""
    records: list[tuple[bytes | None, bytes | None]] = []
    for number in range(start, start + count):
        value = trade(
            number,
            symbol=f"S{number % 11}",
            side="SELL" if number % 3 else "BUY",
            price=f"{100 + number % 17}.{number % 10**8:08d}",
            quantity="10",
        )
        records.append((None, value))
        if number % 10 == 0:
            records.append((None, value))
        if number % 50 == 0:
            records.append((b"k", b"{"))
    copied.world.publish(records)


def test_a_copy_that_is_killed_again_and_again_is_whole(copied: Copied) -> None:
    """SIGKILL at random points; what is resumed is equal to the topic, row by row."""
    copied.world.create_topics()
    draw = random.Random(11)
    publish(copied, 30_000)
    for turn in range(6):
        process = copied.start("copy", "clickhouse")
        # From before the engine is open to amid the copying.
        time.sleep(draw.uniform(2.0, 9.0))
        kill(process)
        publish(copied, 500, start=30_000 + 500 * turn)
    summary = copied.run("copy", "clickhouse", "--until-caught-up")
    assert not summary["stopped_partitions"]
    result = copied.run("reconcile")
    assert result["equal"]
    assert result["counts"] == {}
    ends = sum(summary["next_offsets"].values())
    assert result["rows"] + result["refused"] == ends


def test_ledger_copy_and_repair(copied: Copied, open_dir: Path) -> None:
    """The whole of it beside a ledger in PostgreSQL: equal; then a planted difference."""
    with EmbeddedPostgres(open_dir / "e2e-clickhouse") as postgres:
        copied.world.extra["DATABASE_URL"] = postgres.url
        copied.world.create_topics()
        publish(copied, 3_000)
        copied.world.run("db", "migrate")
        copied.world.consume_all()
        copied.run("copy", "clickhouse", "--until-caught-up")
        result = copied.run("reconcile")
        assert result["against"] == "ledger"
        assert result["explained"]
        copied.change(
            "ALTER TABLE trades UPDATE price = price + 1 WHERE source_partition = 0"
            " AND source_offset % 50 = 7"
        )
        found = copied.run("reconcile", exit_code=1)
        assert found["counts"].keys() == {"different"}
        repaired = copied.run("reconcile", "--repair")
        assert repaired["repaired"] == found["counts"]["different"]
        assert copied.run("reconcile")["counts"] == {}


def test_sigterm_ends_it_in_time_and_rebuild_makes_it_anew(copied: Copied) -> None:
    """A stop writes what is in hand; a rebuild gives the same copy."""
    copied.world.create_topics()
    publish(copied, 2_000)
    process = copied.start("copy", "clickhouse", "--json")
    time.sleep(8)
    asked_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=25)
    assert time.monotonic() - asked_s < 20
    assert process.returncode == 0, errors
    json.loads(output)
    first = copied.run("copy", "clickhouse", "--until-caught-up")
    anew = copied.run("copy", "clickhouse", "--rebuild", "--until-caught-up")
    assert anew["next_offsets"] == first["next_offsets"]
    assert anew["rows"] + anew["refused"] == sum(anew["next_offsets"].values())
    assert copied.run("reconcile")["equal"]


def test_on_gap_continue_copies_what_is_behind_a_batch_that_nobody_can_read(
    copied: Copied,
) -> None:
    """Its partition stops, and goes on when somebody says so."""
    world = copied.world
    world.extra["KAFKA_RAW_BATCHES"] = "true"
    world.create_topics()

    async def publish_spoilt() -> None:
        values = [trade(n, symbol="S", side="BUY", price="1", quantity="1") for n in (1, 2)]
        async with AIOKafkaProducer(bootstrap_servers=world.bootstrap, acks="all") as producer:
            await producer.send_and_wait(world.events, values[0], partition=0)
            spoilt = spoilt_batch(producer, values[0])
            await (await producer.send_batch(spoilt, world.events, partition=0))
            await producer.send_and_wait(world.events, values[1], partition=0)

    asyncio.run(publish_spoilt())
    summary = copied.run("copy", "clickhouse", "--until-caught-up", exit_code=4)
    assert "cannot be read" in summary["stopped_partitions"]["0"]
    assert "ON_GAP=continue goes on at offset 2" in summary["stopped_partitions"]["0"]
    world.extra["ON_GAP"] = "continue"
    summary = copied.run("copy", "clickhouse", "--until-caught-up")
    assert (summary["rows"], summary["next_offsets"]["0"]) == (2, 3)


def test_without_an_address_the_line_says_what_to_set(copied: Copied) -> None:
    """A copy that nobody asked for is none."""
    process = copied.world.start("-m", "app", "copy", "clickhouse", CLICKHOUSE_URL="")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "CLICKHOUSE_URL" in errors
