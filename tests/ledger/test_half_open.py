"""Connections to the database that are open and silent: whoever gives up is free at once."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from app.config import Settings
from app.embedded.loopback import pick_ports
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.postgres_settings import SOCKET
from app.ports import LedgerWrite
from app.stores.postgres import open_ledger
from tests.contract.postgres import Database
from tests.faults.proxy import HOST, Fault, Network

pytestmark = pytest.mark.integration

_LONG_ENOUGH_S = 0.5
_AT_ONCE_S = 5.0  # a database that is there answers in milliseconds, one that is not in never
_BLACK_HOLE = Fault(is_black_hole=True)


class Relay:
    """A way to a database that can be made to swallow everything."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        (self._port,) = pick_ports(1)
        (socket_dir,) = parse_qs(urlsplit(server.url).query)["host"]
        self.network = Network({1: (self._port, Path(socket_dir) / SOCKET)}, seed=1)

    def url(self, database: Database) -> str:
        """Give the address of a database through the relay."""
        parts = urlsplit(database.url)
        return f"postgresql://{parts.username}@{HOST}:{self._port}{parts.path}?sslmode=disable"


@pytest.fixture
def relay(ledger_server: EmbeddedPostgres) -> Iterator[Relay]:
    """Give a relay in front of the server."""
    made = Relay(ledger_server)
    yield made
    made.network.stop()


@pytest.mark.parametrize("call", ["write", "find"])
async def test_what_is_given_up_ends_at_once(database: Database, relay: Relay, call: str) -> None:
    """A cancelled call does not wait for a database that no longer answers."""
    async with open_ledger(Settings(), relay.url(database)) as ledger:
        assert await ledger.claim(0) is None
        with relay.network.fault(_BLACK_HOLE):
            calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "write": lambda: ledger.write({0: LedgerWrite(expected=None, next_offset=7)}),
                "find": lambda: ledger.find(["T1"]),
            }
            calling = asyncio.ensure_future(calls[call]())
            await asyncio.wait([calling], timeout=_LONG_ENOUGH_S)
            assert not calling.done()
            calling.cancel()
            await asyncio.wait([calling], timeout=_AT_ONCE_S)
            assert calling.cancelled()
        assert await ledger.next_offsets() == {}
