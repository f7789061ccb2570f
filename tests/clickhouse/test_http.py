"""The copy over HTTP, as with a server: through a shim that can lose requests and answers."""

import asyncio
from pathlib import Path

import pytest

from app import copier
from app.config import Settings
from app.errors import CopyError, TransportError
from app.reconcile import Reconciler
from app.stores.clickhouse import open_copy
from tests.clickhouse.http_shim import PASSWORD, http_shim
from tests.clickhouse.trades import block_of, event, model, some_events
from tests.copy_world import TOPIC, CopyWorld

pytestmark = pytest.mark.slow


def settings_of(url: str) -> Settings:
    """Give settings for a server."""
    return Settings.model_validate({"clickhouse_url": url, "kafka_topic": TOPIC})


async def test_a_server_that_loses_requests_and_answers_has_the_same_copy(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of the requests and a tenth of the answers get lost, and then all for a while."""
    monkeypatch.setattr(copier, "BLOCK_OFFSETS", 64)
    monkeypatch.setattr(copier, "_A_WRITE", 64)
    monkeypatch.setattr(copier, "_RETRY_PAUSE_S", 0.01)
    values = list(some_events(900, seed=21))
    with http_shim(engine_dir) as (shim, url):
        async with open_copy(settings_of(url), rebuild=True) as copy:
            world = CopyWorld(copy)
            for value in values:
                world.broker.append(TOPIC, value, partition=0)
            shim.loss = 0.1
            running = world.copier()
            await running.start()
            await asyncio.sleep(0.5)
            shim.is_down = True
            await asyncio.sleep(0.5)
            shim.is_down = False
            async with asyncio.timeout(120):
                while await _end(copy) < len(values):  # noqa: ASYNC110 - only the server knows
                    await asyncio.sleep(0.1)
            shim.loss = 0.0
            await running.finish()
            assert shim.lost > 5
            assert running.copier.stats.retries > 0
            rows = dict(await copy.query("SELECT source_offset, price FROM trade_list"))
            expected = model(values)
            assert rows == {offset: row["price"] for offset, row in expected.items()}
            settings = world.settings
            result = await Reconciler(copy=copy, reader=world.reader(), settings=settings).run()
            assert result.is_equal
            assert result.rows + result.refused == 900
        # An answer means stored, and nothing is taken for a repeat.
        assert shim.settings["async_insert"] == "0"
        assert shim.settings["insert_deduplicate"] == "0"


async def _end(copy: object) -> int:
    try:
        return (await copy.progress()).get(0, (0, 0))[1]  # type: ignore[attr-defined, no-any-return]
    except TransportError:
        return 0


async def test_a_server_that_is_away_is_an_outage(engine_dir: Path) -> None:
    """Nobody listens, or nobody answers: to be tried again, and no password in the line."""
    with http_shim(engine_dir) as (shim, url):
        async with open_copy(settings_of(url), rebuild=True) as copy:
            shim.is_down = True
            with pytest.raises(TransportError) as away:
                await copy.progress()
            assert PASSWORD not in str(away.value)
            shim.is_down = False
            assert await copy.progress() == {}
    with pytest.raises(TransportError) as gone:
        async with open_copy(settings_of(url)):
            pass
    assert PASSWORD not in str(gone.value)


async def test_what_a_server_refuses_is_no_outage(engine_dir: Path) -> None:
    """A table that is gone is told at once."""
    with http_shim(engine_dir) as (_, url):
        async with open_copy(settings_of(url), rebuild=True) as copy:
            await copy._worker.run(lambda: copy._client.command("DROP TABLE trades SYNC"))
            world = CopyWorld(copy)
            world.broker.append(TOPIC, event("A"), partition=0)
            with pytest.raises(CopyError, match="ClickHouse refuses"):
                await copy.write([block_of(world.broker, 0, 0, 1)], {0: 0})
