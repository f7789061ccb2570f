"""Reconciliation: what was planted is found at its place, named, and repaired; nothing else is."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from app import reconcile
from app.config import IdentityScope
from app.consumer import TradeConsumer
from app.errors import CopyError
from app.health import Health
from app.memory_io import MemoryLogReader, MemoryPublisher, MemorySource
from app.metrics import ConsumerMetrics
from app.reconcile import Kind, Reconciler
from app.stores.changelog import Changelog
from app.stores.clickhouse import ClickHouseCopy
from app.stores.ledger_digests import LedgerDigests, open_digests
from app.timestamps import parse_timestamp
from tests.clickhouse.trades import event, some_events
from tests.contract.postgres import Database, MakeDatabase
from tests.copy_world import TOPIC, CopyWorld

pytestmark = pytest.mark.slow

Plant = tuple[str, int, Kind]
UPDATE = "ALTER TABLE trades UPDATE {} WHERE source_offset = {{o}}"
SURPLUS = (
    "INSERT INTO trades SELECT * REPLACE(toInt64({o}) AS source_offset)"
    " FROM (SELECT * FROM trades LIMIT 1)"
)
PLANTED: list[Plant] = [
    (UPDATE.format("price = price + 0.00000001"), 7, Kind.DIFFERENT),
    (UPDATE.format("book = 'XX'"), 300, Kind.DIFFERENT),
    (UPDATE.format("executed_at = executed_at + INTERVAL 1 NANOSECOND"), 0, Kind.DIFFERENT),
    (UPDATE.format("fee = 1"), 599, Kind.DIFFERENT),
    ("ALTER TABLE trades DELETE WHERE source_offset = {o}", 256, Kind.MISSING),
    (SURPLUS, 600, Kind.SURPLUS),
]


@pytest.fixture
async def world(copy: ClickHouseCopy) -> CopyWorld:
    """A topic of 600 good trades and one that is none, copied."""
    made = CopyWorld(copy, partitions=1)
    for number in range(600):
        made.broker.append(TOPIC, event(f"T-{number}", price=f"{number + 1}.5"), partition=0)
    made.broker.append(TOPIC, b"{", partition=0)
    await made.copy()
    return made


def reconciler(world: CopyWorld, ledger: LedgerDigests | None = None) -> Reconciler:
    """Give what compares the copy of a world."""
    assert isinstance(world.store, ClickHouseCopy)
    return Reconciler(
        copy=world.store, reader=world.reader(), settings=world.settings, ledger=ledger
    )


async def changed(copy: ClickHouseCopy, statement: str) -> None:
    """Change the copy behind its back."""
    await copy._worker.run(lambda: copy._client.command(statement))


@pytest.mark.parametrize(("statement", "offset", "kind"), PLANTED)
async def test_a_planted_difference_is_found_and_repaired(
    world: CopyWorld, copy: ClickHouseCopy, statement: str, offset: int, kind: Kind
) -> None:
    """The report names the very row; after the repair nothing differs, nor before the planting."""
    before = await copy.query("SELECT * FROM trade_list ORDER BY ALL")
    assert (await reconciler(world).run()).is_equal
    await changed(copy, statement.format(o=offset))
    found = await reconciler(world).run()
    assert [(d.partition, d.offset, d.kind) for d in found.differences] == [(0, offset, kind)]
    assert not found.is_equal
    ((_, low, high),) = found.differing
    assert low <= offset < high
    assert high - low <= 256
    assert f"offset {offset}: {kind}" in found.to_text()
    repaired = await reconciler(world).run(repair=True)
    assert repaired.is_equal
    assert repaired.repaired == 1
    again = await reconciler(world).run()
    assert again.is_equal
    assert not again.counts
    assert await copy.query("SELECT * FROM trade_list ORDER BY ALL") == before
    await copy.query("OPTIMIZE TABLE trades FINAL")
    assert (await reconciler(world).run()).is_equal


async def test_a_refusal_that_is_gone_or_another_is_found(
    world: CopyWorld, copy: ClickHouseCopy
) -> None:
    """Records that are no trades are compared as well, with their reasons."""
    for _ in range(3):
        world.broker.append(TOPIC, b"{", partition=0)
    await world.copy()
    await changed(
        copy, "ALTER TABLE refused UPDATE reason = 'body-empty' WHERE source_offset = 602"
    )
    await changed(copy, "ALTER TABLE refused DELETE WHERE source_offset = 603")
    found = await reconciler(world).run()
    assert [(d.offset, d.kind) for d in found.differences] == [
        (602, Kind.DIFFERENT), (603, Kind.MISSING),
    ]  # fmt: skip
    assert "body-empty in the copy, body-not-json in the topic" in found.differences[0].detail
    assert (await reconciler(world).run(repair=True)).is_equal


async def test_everything_gone_is_found_and_repaired(
    world: CopyWorld, copy: ClickHouseCopy
) -> None:
    """Many differences are counted, shown up to a bound, and repaired together."""
    await changed(copy, "TRUNCATE TABLE trades")
    result = await reconciler(world).run(repair=True)
    assert result.counts == {Kind.MISSING: 600}
    assert result.repaired == 600
    assert result.is_equal
    assert (await copy.query("SELECT count() FROM trade_list")) == [(600,)]


async def test_what_the_topic_no_longer_holds_is_not_compared_and_said(
    world: CopyWorld, copy: ClickHouseCopy
) -> None:
    """Without a ledger there is nothing to hold it against."""
    await changed(copy, "ALTER TABLE trades DELETE WHERE source_offset = 5")
    world.broker.delete_records_before(TOPIC, 0, 100)
    result = await reconciler(world).run()
    assert result.is_equal
    assert (result.rows, result.refused) == (500, 1)
    assert result.skipped == {"offsets before the topic begins": 100}


async def test_a_topic_that_ends_before_the_copy_is_no_equal(world: CopyWorld) -> None:
    """A topic made anew under the same name is not what was copied."""
    world.broker.create_topic(TOPIC, 1)
    result = await reconciler(world).run()
    assert not result.is_equal
    assert "another one" in result.to_text()


async def test_a_copy_of_nothing_is_no_equal(copy: ClickHouseCopy) -> None:
    """Where nothing was copied, nothing was compared, and that is not what was asked."""
    world = CopyWorld(copy, partitions=2)
    assert (await reconciler(world).run()).is_equal
    world.broker.append(TOPIC, event("A"), partition=1)
    result = await reconciler(world).run()
    assert not result.is_equal
    assert "partition 1 is not copied" in result.to_text()


# -- with a ledger


async def booked(
    world: CopyWorld, database: Database, identity: IdentityScope = IdentityScope.FULL
) -> None:
    """Consume the topic into a ledger, as the application does."""
    for topic in ("letters", "positions"):
        world.broker.create_topic(topic, world.broker.partition_count(TOPIC))
    settings = world.settings.model_copy(
        update={
            "dlq_topic": "letters", "positions_topic": "positions", "commit_interval_ms": 10,
            "dlq_breaker_share": 1.0, "identity": identity,
        }
    )  # fmt: skip
    source = MemorySource(world.broker, TOPIC, settings.kafka_group_id)
    reader = MemoryLogReader(world.broker)
    consumer = TradeConsumer(
        source=source,
        publisher=MemoryPublisher(world.broker),
        changelog=Changelog.of(reader, settings),
        partition_of=source.partition_of,
        settings=settings,
        ledger=database.ledger(identity),
        health=Health(),
        metrics=ConsumerMetrics(topic=TOPIC),
    )
    await source.start()
    await consumer.run(asyncio.Event(), until_caught_up=True)
    await source.stop()


@pytest.fixture
async def database(new_database: MakeDatabase) -> AsyncIterator[Database]:
    """A ledger of its own."""
    async with new_database() as made:
        yield made


def mixture(copy: ClickHouseCopy) -> CopyWorld:
    """Give a topic of good, bad, misplaced, repeated and changed trades."""
    made = CopyWorld(copy, partitions=2)
    for number, value in enumerate(some_events(900, seed=5)):
        made.broker.append(TOPIC, value, partition=number % 2)
    made.broker.append(TOPIC, event("A", action="AMEND", version=2), partition=0)
    made.broker.append(TOPIC, event("E", currency="EUR"), partition=0)
    made.broker.append(TOPIC, event("E2", currency="EUR"), partition=1)
    made.broker.append(TOPIC, event("M", contract_multiplier="3", fees=[{"amount": "1"}],
                                    symbol="NEW"), partition=0)  # fmt: skip
    for version, action, stamp in ((1, "NEW", 9), (2, "AMEND", 10), (3, "CANCEL", 11)):
        changed = event("C", version=version, action=action, symbol="CHANGED",
                        timestamp=f"2026-03-03T{stamp:02}:00:00Z")  # fmt: skip
        made.broker.append(TOPIC, changed, partition=0)
    return made


@pytest.fixture
async def mixed(copy: ClickHouseCopy, database: Database) -> CopyWorld:
    """A mixture, consumed into a ledger and copied."""
    made = mixture(copy)
    await booked(made, database)
    await made.copy()
    return made


async def test_the_ledger_and_its_copy_are_equal(mixed: CopyWorld, database: Database) -> None:
    """Every booked trade is there and equal, and every other row is explained."""
    async with open_digests(database.url) as ledger:
        result = await reconciler(mixed, ledger).run()
    assert result.is_equal, result.to_text()
    assert not result.counts
    ends = sum(mixed.broker.offset_range(TOPIC, p)[1] for p in (0, 1))
    assert result.rows + result.refused == ends
    trades = len(await database.trades())
    assert result.rows == trades + result.explained.total()
    assert result.explained["booked at another place: sent twice, or re-keyed"] > 100
    assert result.explained["dead-lettered"] >= 2
    assert result.explained["parked: they wait for another event of their trade"] == 1
    assert result.explained["re-keyed, and parked there"] == 1
    assert json.dumps(result.to_json())
    changes = "SELECT count(*) FROM trades WHERE action <> 'NEW'"
    assert await database.pool.fetchval(changes) == 2


@pytest.mark.parametrize(
    ("against", "columns"), [("ledger", {"price"}), ("topic", {"price", "executed_at"})]
)
async def test_of_a_change_the_ledger_does_not_tell_the_time_alone(
    mixed: CopyWorld, copy: ClickHouseCopy, database: Database, against: str, columns: set[str]
) -> None:
    """Its row keeps the time of its trade there; the topic has its own, which is compared."""
    await changed(
        copy, "ALTER TABLE trades UPDATE executed_at = now() WHERE action = 'AMEND' AND version = 2"
    )
    await changed(copy, "ALTER TABLE trades UPDATE price = 1 WHERE action = 'CANCEL'")
    async with open_digests(database.url) as ledger:
        result = await reconciler(mixed, ledger if against == "ledger" else None).run()
    assert {d.detail.partition(" ")[0] for d in result.differences} == columns


async def test_trades_of_a_window_are_found_by_their_places(
    copy: ClickHouseCopy, database: Database
) -> None:
    """Where no id is noted, the copy knows where else a trade stands."""
    await database.keep(IdentityScope.WINDOW)
    world = mixture(copy)
    await booked(world, database, IdentityScope.WINDOW)
    await world.copy()
    async with open_digests(database.url) as ledger:
        result = await reconciler(world, ledger).run()
    assert result.is_equal, result.to_text()
    assert result.explained["booked at another place: sent twice, or re-keyed"] > 100


async def test_pruned_trades_are_explained_and_lost_ones_are_not(
    mixed: CopyWorld, database: Database
) -> None:
    """By position and time of execution, wherever they stand or were re-keyed from."""
    half: int = parse_timestamp("2026-03-02T14:30:00Z")[0]
    pruned = await database.prune(half)
    assert 300 < pruned < 600
    async with open_digests(database.url) as ledger:
        result = await reconciler(mixed, ledger).run()
        assert result.is_equal, result.to_text()
        assert result.explained["pruned"] >= pruned
        lost = await database.pool.fetch(
            "DELETE FROM trades WHERE trade_id IN (SELECT trade_id FROM trades"
            " WHERE executed_ns >= $1 AND action = 'NEW' LIMIT 5) RETURNING trade_id",
            half,
        )
        result = await reconciler(mixed, ledger).run()
    assert result.counts.keys() == {Kind.SURPLUS}
    told = result.to_text()
    assert all(f"trade {row[0]} is in the copy, and the ledger" in told for row in lost)


async def test_a_position_of_which_nothing_was_pruned_has_all_its_trades(
    mixed: CopyWorld, database: Database
) -> None:
    """That others were pruned explains nothing of it."""
    await database.prune(parse_timestamp("2026-03-02T14:30:00Z")[0])
    sums = "FROM carried_forward WHERE key = (SELECT min(key) FROM carried_forward)"
    pruned = await database.pool.fetchval(f"SELECT sum(trade_count)::int {sums}")
    async with open_digests(database.url) as ledger:
        assert (await reconciler(mixed, ledger).run()).is_equal
        await database.pool.execute(f"DELETE {sums}")
        result = await reconciler(mixed, ledger).run()
    assert result.counts.keys() == {Kind.SURPLUS}
    assert result.counts[Kind.SURPLUS] >= pruned > 0  # and where some of them were re-keyed from


async def test_a_copy_that_fails_is_told_as_that(
    mixed: CopyWorld, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the ledger is asked, or has been, it is the copy that is away."""

    async def refuse(*_: object, **__: object) -> None:
        raise CopyError("refused")

    monkeypatch.setattr(ClickHouseCopy, "digests", refuse)
    async with open_digests(database.url) as ledger:
        with pytest.raises(CopyError, match="refused"):
            await reconciler(mixed, ledger).run()


class Meanwhile(LedgerDigests):
    """Lets something happen to the ledger after its gaps were read."""

    happens: Callable[[], Awaitable[object]]

    async def gaps(self, partition: int, start: int, end: int) -> list[tuple[int, int]]:
        found = await super().gaps(partition, start, end)
        await self.happens()
        return found


@pytest.mark.parametrize("what", ["released", "pruned"])
async def test_what_happens_to_the_ledger_meanwhile_is_no_difference(
    mixed: CopyWorld, database: Database, what: str
) -> None:
    """An event that waited is booked at a place that was a gap, or trades are deleted."""
    first = event("A")
    for partition in (0, 1):
        mixed.broker.append(TOPIC, first, partition=partition)
    async with open_digests(database.url) as ledger:
        moving = Meanwhile(ledger._connection)
        if what == "released":
            moving.happens = lambda: booked(mixed, database)
        else:
            moving.happens = lambda: database.prune(parse_timestamp("2026-03-02T14:30:00Z")[0])
        result = await reconciler(mixed, moving).run()
    assert result.is_equal, result.to_text()
    changes = "SELECT count(*) FROM trades WHERE trade_id = 'A'"
    assert bool(await database.pool.fetchval(changes)) == (what == "released")


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("ALTER TABLE trades UPDATE quantity = quantity + 1 WHERE {place}", Kind.DIFFERENT),
        ("ALTER TABLE trades DELETE WHERE {place}", Kind.MISSING),
    ],
)
async def test_a_difference_from_the_ledger_is_found_and_repaired(
    mixed: CopyWorld, copy: ClickHouseCopy, database: Database, statement: str, kind: Kind
) -> None:
    """Of a booked trade the place is named, and the topic repairs it."""
    partition, offset, _ = (await database.trades())[100]
    place = f"source_partition = {partition} AND source_offset = {offset}"
    await changed(copy, statement.format(place=place))
    async with open_digests(database.url) as ledger:
        found = await reconciler(mixed, ledger).run()
        assert [(d.partition, d.offset, d.kind) for d in found.differences] == [
            (partition, offset, kind)
        ]
        assert (await reconciler(mixed, ledger).run(repair=True)).is_equal
        again = await reconciler(mixed, ledger).run()
    assert again.is_equal
    assert not again.counts


async def test_a_row_that_nobody_knows_is_found(
    mixed: CopyWorld, copy: ClickHouseCopy, database: Database
) -> None:
    """A row at a place where nothing was booked has to be explained by its trade."""
    ((partition, offset),) = await copy.query(
        "SELECT source_partition, source_offset FROM refused FINAL ORDER BY ALL LIMIT 1"
    )
    await changed(
        copy,
        f"INSERT INTO trades SELECT * REPLACE('INVENTED' AS trade_id,"  # noqa: S608 - numbers
        f" toInt32({partition}) AS source_partition, toInt64({offset}) AS source_offset)"
        " FROM (SELECT * FROM trades LIMIT 1)",
    )
    async with open_digests(database.url) as ledger:
        found = await reconciler(mixed, ledger).run()
        assert [(d.partition, d.offset, d.kind) for d in found.differences] == [
            (partition, offset, Kind.SURPLUS)
        ]
        assert "the ledger has refused it as" in found.to_text()
        assert (await reconciler(mixed, ledger).run(repair=True)).is_equal


async def test_a_trade_of_which_the_ledger_knows_nothing_is_found(
    mixed: CopyWorld, database: Database
) -> None:
    """Both have the place of a trade that was sent twice; the ledger has lost all of the trade."""
    rows = await database.pool.fetch(
        "DELETE FROM trades WHERE trade_id = 'T-5-0' RETURNING source_partition, source_offset"
    )
    places = [tuple(row) for row in rows]
    assert places
    async with open_digests(database.url) as ledger:
        found = await reconciler(mixed, ledger).run()
    assert {(d.partition, d.offset) for d in found.differences} >= set(places)
    assert "trade T-5-0 is in the copy, and the ledger does not know it" in found.to_text()


async def test_a_ledger_that_lacks_a_trade_is_not_mended_by_a_repair(
    mixed: CopyWorld, database: Database
) -> None:
    """The copy is as the topic says; that the ledger is not stays a difference, and exit code 1."""
    partition, offset, trade_id = (await database.trades())[50]
    await database.pool.execute(
        "DELETE FROM trades WHERE source_partition = $1 AND source_offset = $2", partition, offset
    )
    await database.pool.execute("DELETE FROM trade_versions WHERE trade_id = $1", trade_id)
    async with open_digests(database.url) as ledger:
        result = await reconciler(mixed, ledger).run(repair=True)
    assert [(d.partition, d.offset) for d in result.differences][:1] == [(partition, offset)]
    assert not result.is_equal
    assert "the copy is as the topic says" in result.to_text()


async def test_dead_letters_and_refusals_are_held_against_each_other(
    mixed: CopyWorld, copy: ClickHouseCopy, database: Database
) -> None:
    """A refused record is dead-lettered for the same reason, and the other way round."""
    ((partition, offset),) = await copy.query(
        "SELECT source_partition, source_offset FROM refused FINAL ORDER BY ALL LIMIT 1"
    )
    place = f"source_partition = {partition} AND source_offset = {offset}"
    await changed(copy, f"ALTER TABLE refused DELETE WHERE {place}")
    async with open_digests(database.url) as ledger:
        found = await reconciler(mixed, ledger).run()
        assert [(d.partition, d.offset, d.kind) for d in found.differences] == [
            (partition, offset, Kind.MISSING)
        ]
        assert (await reconciler(mixed, ledger).run(repair=True)).is_equal


async def test_a_copy_that_is_behind_is_compared_as_far_as_it_goes(
    mixed: CopyWorld, database: Database
) -> None:
    """What one of them has not yet is no difference."""
    for number in range(20):
        mixed.broker.append(TOPIC, event(f"LATE-{number}"), partition=0)
    async with open_digests(database.url) as ledger:
        assert (await reconciler(mixed, ledger).run()).is_equal
        await booked(mixed, database)
        result = await reconciler(mixed, ledger).run()
    assert result.is_equal
    assert result.skipped["offsets not in the copy yet"] >= 20


def test_gaps_are_cut_at_the_boundaries_of_ranges() -> None:
    """A gap across a boundary belongs to both ranges."""
    size = reconcile._RANGE
    gaps = [(5, 7), (size - 1, 2 * size + 3)]
    assert list(reconcile._by_range(gaps)) == [
        [(5, 7), (size - 1, size)], [(size, 2 * size)], [(2 * size, 2 * size + 3)],
    ]  # fmt: skip


def test_neighbouring_cells_are_joined() -> None:
    """Ranges are of whole cells, but for the bounds."""
    assert list(reconcile._spans([0, 1, 3], 10, 1000)) == [(10, 512), (768, 1000)]
