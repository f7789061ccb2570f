"""One engine for the process, which can have no second one; each test makes its copy anew."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.embedded.postgres import EmbeddedPostgres
from app.stores.clickhouse import ClickHouseCopy, open_copy
from tests.contract.postgres import MakeDatabase, maker_of_databases
from tests.copy_world import TOPIC

WITHOUT_ENGINE = find_spec("chdb") is None or find_spec("clickhouse_connect") is None

OpenCopy = Callable[..., AbstractAsyncContextManager[ClickHouseCopy]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the engine where it is not installed."""
    if WITHOUT_ENGINE:
        reason = "ClickHouse's engine is not installed: ./run.sh clickhouse installs it"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine of this process keeps its data."""
    return tmp_path_factory.mktemp("clickhouse") / "data"


@pytest.fixture
def open_it(engine_dir: Path) -> OpenCopy:
    """Give what opens the copy."""

    @asynccontextmanager
    async def opened(*, rebuild: bool = False, **settings: Any) -> AsyncIterator[ClickHouseCopy]:
        made = Settings.model_validate(
            {"clickhouse_url": "embedded", "kafka_topic": TOPIC} | settings
        )
        async with open_copy(made, rebuild=rebuild, data_dir=engine_dir) as copy:
            yield copy

    return opened


@pytest.fixture
async def copy(open_it: OpenCopy) -> AsyncIterator[ClickHouseCopy]:
    """An empty copy."""
    async with open_it(rebuild=True) as made:
        yield made


@pytest.fixture(scope="session")
def new_database(open_dir: Path) -> Iterator[MakeDatabase]:
    """Give what makes a database with the ledger's tables, on a real PostgreSQL."""
    with EmbeddedPostgres(open_dir / "clickhouse") as postgres:
        yield maker_of_databases(postgres.url)
