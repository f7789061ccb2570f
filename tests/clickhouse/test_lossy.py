"""Lost calls, lost answers, repeats and other pieces: the copy is the same, and is told to be."""

import asyncio
from functools import partial

import pytest

from app import copier
from app.reconcile import Reconciler
from app.stores.clickhouse import ClickHouseCopy
from tests.clickhouse.trades import block_of, model, some_events
from tests.copy_world import TOPIC, CopyWorld, LossyStore

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, and no long waits for what is lost on purpose."""
    monkeypatch.setattr(copier, "BLOCK_OFFSETS", 64)
    monkeypatch.setattr(copier, "_BUFFERED", 512)
    monkeypatch.setattr(copier, "_A_WRITE", 128)
    monkeypatch.setattr(copier, "_OLD_AT_END_S", 0.05)
    monkeypatch.setattr(copier, "_RETRY_PAUSE_S", 0.01)


@pytest.mark.parametrize("seed", range(1, 5))
async def test_a_lossy_way_to_the_store_changes_nothing(copy: ClickHouseCopy, seed: int) -> None:
    """Half of the calls go wrong in some way, copiers crash, and every row is there once."""
    world = CopyWorld(copy)
    values = list(some_events(700, seed=seed))
    for value in values:
        world.broker.append(TOPIC, value, partition=0)
    for value in values[:90]:
        world.broker.append(TOPIC, value, partition=1)
    lossy = LossyStore(copy, seed, partial(block_of, world.broker))
    for pause_s in (0.05, 0.1, 0.2):
        running = world.copier(lossy)
        await running.start()
        await asyncio.sleep(pause_s)
        await running.crash()
    async with asyncio.timeout(60):
        await world.copy(lossy)
    assert lossy.lost > 0
    assert await copy.progress() == {0: (0, 700), 1: (0, 90)}
    rows = await copy.query("SELECT source_partition, source_offset, price FROM trade_list")
    assert len(rows) == len({row[:2] for row in rows})
    expected = {0: model(values), 1: model(values[:90])}
    assert {(p, offset): price for p, offset, price in rows} == {
        (p, offset): row["price"] for p, of in expected.items() for offset, row in of.items()
    }
    result = await Reconciler(copy=copy, reader=world.reader(), settings=world.settings).run()
    assert result.is_equal
    assert not result.counts
    assert result.rows == len(rows)
    assert result.rows + result.refused == 790


async def test_a_second_copier_at_the_same_partitions_does_no_harm(copy: ClickHouseCopy) -> None:
    """A former owner that writes on beside the new one writes the same rows."""
    world = CopyWorld(copy)
    for value in some_events(300, seed=9):
        world.broker.append(TOPIC, value, partition=0)
    for start in (0, 100, 50, 200, 0):
        block = block_of(world.broker, 0, start, start + 100)
        await copy.write([block], {0: 0})
    zombie = world.copier()
    await zombie.start()
    zombie.source.crash()
    await world.copy()
    await zombie.crash()
    result = await Reconciler(copy=copy, reader=world.reader(), settings=world.settings).run()
    assert result.is_equal
    assert await copy.progress() == {0: (0, 300)}
