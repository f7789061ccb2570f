"""A backup that was tried: dumped, lost, restored, and repaired from the topic."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.config import Settings
from app.embedded.postgres import EmbeddedPostgres
from app.stores.database import migrate_database
from app.stores.postgres import open_ledger
from tests.contract.postgres import Database
from tests.ledger.filling import book, trade
from tests.ledger.test_backfill import history, tables
from tests.memory_world import DEAD_LETTERS, TRADES, World, headers_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def lone(open_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Give a server of one's own, whose only database is the ledger."""
    with EmbeddedPostgres(open_dir / "backup") as postgres:
        yield postgres


def db(postgres_dir: Path, command: str, *arguments: str) -> None:
    """Run `trade-stream db …` as a process."""
    subprocess.run(
        [sys.executable, "-m", "app", "db", command, "--data-dir", postgres_dir, *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )


async def consume(world: World, url: str) -> Any:
    """Run one consumer with the ledger until it has caught up."""
    async with open_ledger(world.settings, url) as ledger:
        worker = world.worker(ledger)
        await worker.start(until_caught_up=True)
        return await worker.finish_by_itself()


async def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Give what a ledger holds."""
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        return await tables(Database(url, pool))


def test_an_older_backup_is_repaired_from_the_topic(
    lone: EmbeddedPostgres, open_dir: Path, tmp_path: Path
) -> None:
    """Rows, positions and offsets come out as if nothing had been lost."""
    dump = str(tmp_path / "ledger.dump")
    asyncio.run(migrate_database(lone.url))
    with asyncio.Runner() as runner:
        world = runner.run(_world())
        runner.run(consume(world, lone.url))
        db(open_dir / "backup", "pg_dump", "-Fc", "-f", dump)
        kept = runner.run(contents(lone.url))
        history(world, 25, prefix="N")
        runner.run(consume(world, lone.url))
        whole = runner.run(contents(lone.url))
        letters = len(world.broker.records(DEAD_LETTERS))
        assert len(whole["trades"]) > len(kept["trades"])

        db(open_dir / "backup", "pg_restore", "--clean", "--if-exists", "-1", dump)
        assert runner.run(contents(lone.url)) == kept
        stats = runner.run(consume(world, lone.url))
        assert not stats.stopped
        repaired = runner.run(contents(lone.url))
        # Re-keyed trades were moved once more, and recognised: the topic is longer by them.
        assert dict(repaired.pop("offsets")) == world.ends
        assert repaired.items() <= whole.items()
        again = world.broker.records(DEAD_LETTERS)[:]
        origins = {(h["__dlq.errors.partition"], h["__dlq.errors.offset"])
                   for h in map(headers_of, again)}  # fmt: skip
        assert len(again) > letters == len(origins)
        newest = world.newest_positions()
        assert {row[1]: row[13] for row in whole["positions"]} == {
            key: state["source"]["offset"] for key, state in newest.items()
        }

        # Where the topic does not reach back to the backup, that is said.
        db(open_dir / "backup", "pg_restore", "--clean", "--if-exists", "-1", dump)
        world.broker.log(TRADES, 0).first = dict(kept["offsets"])[0] + 3
        stats = runner.run(consume(world, lone.url))
        assert "were deleted before they were processed" in stats.stopped[0]


async def _world() -> World:
    world = World(commit_interval_ms=10)
    history(world)
    return world


def test_a_copy_of_a_stopped_server_is_a_backup(open_dir: Path) -> None:
    """It starts somewhere else, with the same ledger in it."""
    original, copy = open_dir / "original", open_dir / "copy"
    settings = Settings.from_env({})

    async def fill(url: str) -> None:
        await migrate_database(url)
        async with open_ledger(settings, url) as ledger:
            await book(ledger, [trade("A", "BUY", "1", "1")])

    with EmbeddedPostgres(original) as postgres:
        asyncio.run(fill(postgres.url))
        before = asyncio.run(contents(postgres.url))
    subprocess.run(["cp", "-a", original, copy], check=True)
    with EmbeddedPostgres(copy) as postgres:
        assert asyncio.run(contents(postgres.url)) == before
