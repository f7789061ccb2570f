"""A real PostgreSQL of a run's own, behind a relay, which can be ended, filled and slowed down."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

from app.embedded.loopback import pick_ports
from app.embedded.postgres import DATABASE, SUPERUSER, EmbeddedPostgres
from app.embedded.postgres_settings import SOCKET
from app.stores.database import migrate_database
from tests.e2e.harness import wait_for
from tests.faults.cluster import tmpfs
from tests.faults.proxy import HOST, Network
from tests.faults.tables import Psql

_ENTERED_BY_ALL: Final = 0o711  # PostgreSQL never runs as root
_START_TIMEOUT_S: Final = 120.0
_TERMINATE_ONE: Final = """
SELECT pg_terminate_backend(pid) FROM (
    SELECT pid FROM pg_stat_activity WHERE application_name = 'trade-stream'
    ORDER BY random() LIMIT 1
) AS chosen;
"""


class Database:
    """One server with one database, which has the ledger's tables.

    Args:
        seed: Of what the relay leaves to chance.
        megabytes: Of a file system of its own; 0 for none.
        settings: Of the server, in addition.
    """

    def __init__(
        self, *, seed: int, megabytes: int = 0, settings: Mapping[str, str] | None = None
    ) -> None:
        self._seed = seed
        self._megabytes = megabytes
        self._settings = settings
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="faults-db-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(_ENTERED_BY_ALL)
            if self._megabytes:
                stack.enter_context(tmpfs(folder / "small", self._megabytes))
            self.folder = folder / ("small" if self._megabytes else "data")
            self._server = EmbeddedPostgres(self.folder, settings=self._settings)
            stack.callback(self._server.stop)
            self._server.start(timeout_s=_START_TIMEOUT_S)
            asyncio.run(migrate_database(self._server.url))
            self.psql = Psql(self._server.program("psql"), self._server.url)
            (self._port,) = pick_ports(1)
            (socket_dir,) = parse_qs(urlsplit(self._server.url).query)["host"]
            self.network = Network({1: (self._port, Path(socket_dir) / SOCKET)}, self._seed)
            stack.callback(self.network.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Where it is found, past the relay."""
        return self._server.url

    @property
    def relayed_url(self) -> str:
        """Where it is found through the relay."""
        return f"postgresql://{SUPERUSER}@{HOST}:{self._port}/{DATABASE}?sslmode=disable"

    @property
    def is_running(self) -> bool:
        """Whether its first process is there."""
        return self._server.status(probe=False).running

    def kill(self) -> None:
        """End it at once, as `pg_ctl stop -m immediate` does: the next start recovers."""
        pid = self._server.status(probe=False).pid
        assert pid is not None, "there is nothing to end"
        os.kill(pid, signal.SIGQUIT)
        wait_for(lambda: not self.is_running, "the end of the database")

    def start(self) -> None:
        """Start it, and return when it lets clients in."""
        self._server.start(timeout_s=_START_TIMEOUT_S)

    def terminate_one(self) -> int:
        """End one of the product's connections by chance; give how many were ended."""
        return len(self.psql.ask(_TERMINATE_ONE))

    def said(self, words: str) -> int:
        """Count some words in what it has said, in this life and the one before."""
        log = self._server.log_path
        paths = [path for path in (log, log.with_suffix(".log.1")) if path.exists()]
        return sum(path.read_text(errors="replace").count(words) for path in paths)
