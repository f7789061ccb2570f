"""From Kafka alone to a ledger: nothing lost, nothing twice, wherever it is broken off."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from app.backfill import Backfill, Backfilled
from app.errors import LedgerError, OffsetGapError, TransportError
from app.memory_io import MemoryLogReader, partition_for
from app.models import Position
from app.ports import BeforeCommit, Ledger, LedgerWrite, nothing_before
from app.stores.backfill_ledger import BackfillLedger
from app.stores.changelog import Changelog
from tests.contract.postgres import Database
from tests.memory_world import DEAD_LETTERS, PARTITIONS, TRADES, World, symbols_of, trade

pytestmark = pytest.mark.integration


def publish(world: World, *values: bytes, partition: int = 0) -> None:
    """Append trades to a partition of the topic."""
    for value in values:
        world.broker.append(TRADES, value, partition=partition)


def history(world: World, count: int = 40, *, prefix: str = "T") -> None:
    """Publish trades of several positions, refusals, misplaced ones and some that come twice."""
    for partition in range(PARTITIONS):
        names = symbols_of(partition, 3)
        value = b""
        for number in range(count):
            if number % 9 == 8:
                value = b"useless"
            elif number % 11 != 10:  # else the one before comes again
                value = trade(
                    names[number % 3],
                    "SELL" if number % 4 == 3 else "BUY",
                    f"{10 + number % 7}.{number:02}",
                    str(1 + number % 5),
                    trade_id=f"{prefix}{partition}-{number}",
                )
            publish(world, value, partition=partition)
        publish(world, trade(symbols_of(1 - partition, 1)[0], trade_id=f"M{prefix}{partition}"),
                partition=partition)  # fmt: skip


def backfill_of(world: World, ledger: Ledger, **more: Any) -> Backfill:
    """Make a backfill of a group that does not run."""
    ranges = {p: world.broker.offset_range(TRADES, p) for p in range(PARTITIONS)}
    options: dict[str, Any] = {
        "committed": world.committed,
        "ranges": ranges,
        "unreadable": {},
        "reader": MemoryLogReader(world.broker),
        "changelog": world.changelog(),
    }
    return Backfill(
        world.settings,
        ledger=ledger,
        partition_of=lambda key: partition_for(key, PARTITIONS),
        **(options | more),
    )


async def run(world: World, ledger: Ledger, **more: Any) -> list[Backfilled]:
    """Backfill every partition."""
    filling = backfill_of(world, ledger, **more)
    await filling.claim()
    return [await filling.replay(number) for number in sorted(world.committed)]


def differences(done: Sequence[Backfilled]) -> list[Any]:
    """Give all differences."""
    return [difference for one in done for difference in one.differences]


async def tables(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Give everything that a ledger holds, but for owners and clocks."""
    questions = {
        "trades": "SELECT * FROM trades ORDER BY source_partition, source_offset",
        "ids": "SELECT * FROM trade_versions ORDER BY 1",
        "letters": "SELECT * FROM dead_letters ORDER BY 1, 2",
        "positions": "SELECT * FROM positions ORDER BY 1, 2",
        "offsets": "SELECT source_partition, next_offset FROM source_partitions ORDER BY 1",
    }
    return {
        name: [tuple(row) for row in await database.pool.fetch(question)]
        for name, question in questions.items()
    }


async def test_the_positions_of_the_replay_are_those_of_the_topic(database: Database) -> None:
    """Every position equal, every trade and dead letter a row, and nothing is sent."""
    world = World(dedupe_window=7)
    history(world)
    stats = await world.consume()
    letters = len(world.broker.records(DEAD_LETTERS))
    done = await run(world, BackfillLedger(database.pool))
    assert not differences(done)
    held = await tables(database)
    fates = {fate.value: count for fate, count in stats.fates.items()}
    assert len(held["trades"]) == fates["booked"] == sum(one.trades for one in done)
    assert len(held["letters"]) == fates["dead_lettered"] == letters
    assert fates["duplicate"] > 0
    assert fates["rekeyed"] == 2
    assert dict(held["offsets"]) == world.committed
    assert len(held["positions"]) == sum(one.equal for one in done) == 6
    assert len(world.broker.records(DEAD_LETTERS)) == letters


async def test_a_second_run_changes_nothing_and_compares_again(database: Database) -> None:
    """What is in the ledger is found to be so."""
    world = World(dedupe_window=7)
    history(world)
    await world.consume()
    ledger = BackfillLedger(database.pool)
    first = await run(world, ledger)
    before = await tables(database)
    second = await run(world, BackfillLedger(database.pool))
    assert await tables(database) == before
    assert [one.records for one in second] == [0, 0]
    assert [one.equal for one in second] == [one.equal for one in first]


class Dying(BackfillLedger):
    """A ledger whose process dies at its n-th write, before it or after it was stored."""

    left: int
    is_stored: bool

    async def write(
        self, writes: Mapping[int, LedgerWrite], before_commit: BeforeCommit = nothing_before
    ) -> dict[int, str]:
        self.left -= 1
        if self.left == 0 and not self.is_stored:
            raise TransportError("died before")
        lost = await super().write(writes, before_commit)
        if self.left == 0:
            raise TransportError("died after")
        return lost


@pytest.mark.parametrize("is_stored", [False, True], ids=["before", "after"])
async def test_it_goes_on_wherever_it_was_broken_off(
    new_ledger: Any, monkeypatch: pytest.MonkeyPatch, *, is_stored: bool
) -> None:
    """Killed at each write in turn, it ends with the same rows as one that went through."""
    monkeypatch.setattr("app.backfill._CHUNK", 4)
    monkeypatch.setattr("app.backfill._RECORDS_A_WRITE", 8)
    world = World(dedupe_window=7)
    history(world)
    await world.consume()
    async with new_ledger() as whole:
        await run(world, BackfillLedger(whole.pool))
        expected = await tables(whole)
    deaths = 0
    async with new_ledger() as database:
        for step in itertools.count(1):
            ledger = Dying(database.pool)
            ledger.left, ledger.is_stored = 1 + step % 3, is_stored
            try:
                assert not differences(await run(world, ledger))
            except TransportError:
                deaths += 1
                assert deaths < 100
            else:
                break
        assert await tables(database) == expected
    assert deaths > 3


async def test_a_consumer_goes_on_from_the_ledger(database: Database) -> None:
    """With the ledger set it finds the trades of before, and positions go on without a jump."""
    world = World(dedupe_window=0)
    first, _ = symbols_of(0, 2)
    publish(world, trade(first, "BUY", "10", "5", trade_id="A"))
    await world.consume()
    await run(world, BackfillLedger(database.pool))
    publish(world, trade(first, "BUY", "10", "5", trade_id="A"), trade(first, trade_id="B"))
    worker = world.worker(database.ledger())
    await worker.start(until_caught_up=True)
    stats = await worker.finish_by_itself()
    assert {fate.value: n for fate, n in stats.fates.items()} == {"duplicate": 1, "booked": 1}
    assert world.newest_positions()[first]["quantity"] == "6"
    assert [row[2] for row in await database.trades()] == ["A", "B"]


async def test_without_a_backfill_the_consumer_names_it(database: Database) -> None:
    """A group that consumed without a ledger stops, and says what to run."""
    world = World()
    publish(world, trade(symbols_of(0, 1)[0]))
    await world.consume()
    worker = world.worker(database.ledger())
    await worker.start(until_caught_up=True)
    stats = await worker.finish_by_itself()
    assert set(stats.stopped) == {0, 1}
    assert all("run `trade-stream db backfill`" in why for why in stats.stopped.values())


async def test_what_was_booked_twice_is_booked_twice(database: Database) -> None:
    """Beyond the window, and the same id in two partitions: that is what the positions hold."""
    world = World(dedupe_window=2)
    (first,), (other,) = symbols_of(0, 1), symbols_of(1, 1)
    publish(world, trade(first, trade_id="A"))
    publish(world, *(trade(first, trade_id=f"B{n}") for n in range(6)))
    publish(world, trade(first, trade_id="A"))
    publish(world, trade(other, trade_id="A"), partition=1)
    await world.consume()
    done = await run(world, BackfillLedger(database.pool))
    assert not differences(done)
    held = await tables(database)
    assert [row[4] for row in held["trades"]].count("A") == 3
    assert ("A", 1, 0, 0) in held["ids"]
    assert len(held["ids"]) == 7


async def test_positions_beyond_the_commit_are_compared_as_well(database: Database) -> None:
    """A worker was killed after its positions and before its commit: both agree up to there."""
    world = World(dedupe_window=7)
    history(world)
    await world.consume()
    committed = {number: offset - 12 for number, offset in world.committed.items()}
    done = await run(world, BackfillLedger(database.pool), committed=committed)
    assert not differences(done)
    assert sum(one.equal for one in done) == 6
    assert dict((await tables(database))["offsets"]) == committed


async def test_a_difference_is_shown_with_its_digits(database: Database) -> None:
    """A position that the trades do not come to is named, with the fields that differ."""
    world = World()
    (name,) = symbols_of(0, 1)
    publish(world, trade(name, "BUY", "10", "3"))
    await world.consume()
    changelog = world.changelog()
    position = (await changelog.restore(0)).positions[name]
    wrong = Position(
        **{f: getattr(position, f) for f in Position.__struct_fields__} | {"fees_e8": 1}
    )
    (record,) = changelog.records(0, [wrong])
    world.broker.append(record.topic, record.value, key=record.key, partition=0)
    done = await run(world, BackfillLedger(database.pool))
    (difference,) = differences(done)
    assert (difference.partition, difference.key) == (0, name)
    assert (difference.ledger, difference.topic) == ({"fees": None}, {"fees": "0.00000001"})


async def test_a_rebuilt_group_keeps_its_generation(database: Database) -> None:
    """Or the first record after the backfill would lose to those of the rebuild."""
    world = World()
    (name,) = symbols_of(0, 1)
    publish(world, trade(name))
    await world.consume()
    changelog: Changelog = world.changelog()
    position = (await changelog.restore(0)).positions[name]
    raised = Position(
        **{f: getattr(position, f) for f in Position.__struct_fields__} | {"generation": 3}
    )
    gone = Position(None, "GONE", "USD", generation=3)
    for record in changelog.records(0, [raised, gone]):
        world.broker.append(record.topic, record.value, key=record.key, partition=0)
    ledger = BackfillLedger(database.pool)
    assert not differences(await run(world, ledger))
    assert [p.generation for p in await ledger.positions(0)] == [3]


async def test_a_deleted_beginning_is_refused_before_anything_is_written(
    database: Database,
) -> None:
    """The ledger would lack trades that are part of the positions."""
    world = World()
    publish(world, trade(symbols_of(0, 1)[0]))
    publish(world, trade(symbols_of(1, 1)[0]), partition=1)
    await world.consume()
    ranges = {0: (0, 1), 1: (1, 2)}
    with pytest.raises(OffsetGapError, match="partition 1 begins at offset 1"):
        await run(world, BackfillLedger(database.pool), ranges=ranges)
    with pytest.raises(OffsetGapError, match="truncated or made anew"):
        await run(
            world,
            BackfillLedger(database.pool),
            ranges={0: (0, 0), 1: (0, 1)},
        )
    assert not await database.trades()


async def test_what_nobody_can_read_is_passed(database: Database) -> None:
    """A batch that the group has skipped is no trade here either."""
    world = World()
    names = symbols_of(0, 3)
    publish(world, *(trade(name) for name in names))
    await world.consume()
    done = await run(world, BackfillLedger(database.pool), unreadable={0: [range(1, 2)]})
    assert [row[1] for row in await database.trades()] == [0, 2]
    assert [d.key for d in differences(done)] == [names[1]]  # here it was no such batch


async def test_another_writer_ends_it(database: Database) -> None:
    """Whoever takes the partition over fences the backfill."""
    world = World()
    publish(world, trade(symbols_of(0, 1)[0]))
    await world.consume()
    filling = backfill_of(world, BackfillLedger(database.pool))
    await filling.claim()
    await database.ledger().claim(0)
    with pytest.raises(LedgerError, match="another worker has taken it over"):
        await filling.replay(0)
