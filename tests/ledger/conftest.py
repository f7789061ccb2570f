"""A real PostgreSQL for all tests of this folder."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.embedded.postgres import EmbeddedPostgres
from tests.contract.postgres import Database, MakeDatabase, maker_of_databases


@pytest.fixture(scope="session")
def ledger_server(open_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Give a server that all tests share, each with a database of its own."""
    with EmbeddedPostgres(open_dir / "ledger") as postgres:
        yield postgres


@pytest.fixture(scope="session")
def new_ledger(ledger_server: EmbeddedPostgres) -> MakeDatabase:
    """Give what makes a database with the ledger's tables."""
    return maker_of_databases(ledger_server.url)


@pytest.fixture
async def database(new_ledger: MakeDatabase) -> AsyncIterator[Database]:
    """Give an empty ledger."""
    async with new_ledger() as made:
        yield made
