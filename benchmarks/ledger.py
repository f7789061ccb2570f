"""What it costs to drain a backlog into the ledger in PostgreSQL, durable commits and all."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg

from app.config import IdentityScope
from app.embedded.postgres import EmbeddedPostgres
from app.stores.database import migrate_database, recreate_database
from benchmarks.arena import Arena
from benchmarks.contestants import LEDGER, LEDGER_PEERS, OURS_POSITIONS, Contestant
from benchmarks.rounds import Entry, measure, say
from benchmarks.suites import BASE, Scale, Table

ROWS: Final = 5_000_000
_QUICK_ROWS: Final = 500_000
_DATABASE: Final = "bench"
_FILLED: Final = "filled"
_OWN_AND_CHILDREN: Final = slice(11, 15)  # user and system time, of itself and of those it buried
# Of partitions that the topic does not have, and of its books and symbols.
_FILL: Final = """
INSERT INTO trades (source_partition, source_offset, trade_id, book, symbol, side, price, quantity,
    currency, executed_ns)
SELECT 1000 + n % 8, n / 8, 'T18000000000-000000-' || lpad(n::text, 9, '0'),
    'BOOK-' || lpad((n % 10)::text, 2, '0'), 'S' || lpad((n / 10 % 200)::text, 3, '0'),
    CASE n % 2 WHEN 0 THEN 'BUY' ELSE 'SELL' END, 100 + n % 700 * 0.01, 100, 'USD',
    1750000000000000000 + n::bigint * 10000
FROM generate_series(0, $1 - 1) AS n
"""
_NOTE: Final = """
INSERT INTO trade_versions SELECT trade_id, 1, source_partition, source_offset FROM trades
"""


@dataclass(frozen=True, slots=True)
class _Databases:
    """Gives each run a database of its own."""

    server: EmbeddedPostgres
    rows: int

    def empty(self) -> str:
        """Give a database without tables."""
        asyncio.run(recreate_database(self.server.url, _DATABASE))
        return self.server.url_of(_DATABASE)

    def ledger(self, scope: IdentityScope, *, is_filled: bool) -> str:
        """Give a ledger without trades, or with many."""
        template = _FILLED if is_filled else None
        asyncio.run(recreate_database(self.server.url, _DATABASE, template=template))
        url = self.server.url_of(_DATABASE)
        asyncio.run(migrate_database(url, scope, is_asked=True))
        return url

    def fill(self) -> None:
        """Make the ledger that the filled ones are copies of."""
        say(f"  filling a ledger with {self.rows:,} trades")
        asyncio.run(recreate_database(self.server.url, _FILLED))
        url = self.server.url_of(_FILLED)
        asyncio.run(migrate_database(url))
        asyncio.run(_fill(url, self.rows))


async def _fill(url: str, rows: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_FILL, rows)
        await connection.execute(_NOTE)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def ledger(arena: Arena, scale: Scale) -> Table:
    """Drain into a ledger, with one process and with two of a group, and as others do it."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="bench-ledger-"))
        folder.chmod(0o711)  # PostgreSQL never runs as root
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres", notify=lambda _: None))
        databases = _Databases(server, _QUICK_ROWS if scale.is_quick else ROWS)
        databases.fill()
        entries = list(_entries(arena, scale, databases))
        rows = measure(
            entries,
            rounds=scale.rounds_among_ours,
            seed=scale.seed,
            baseline=entries[0].name,
        )
    about = (
        f"{scale.count:,} trades (others a share of it) into empty tables, or into a ledger that"
        f" has {databases.rows:,}; a new database for each run: embedded PostgreSQL on a unix"
        " socket, fsync and synchronous_commit on, autovacuum on. Kafka and PostgreSQL need their"
        " share of the same cores. The counts of the tables are a gate."
    )
    columns = (*Table.columns, ("server CPU s/M", "server_cpu_s_per_million", 2))
    return Table("ledger", about, rows, entries[0].name, columns=columns)


def _entries(arena: Arena, scale: Scale, databases: _Databases) -> Iterator[Entry]:
    backlog = partial(arena.backlogs.get, BASE)

    def without(members: int, _: int) -> dict[str, Any]:
        return arena.drain_together(OURS_POSITIONS, backlog(scale.count), members)

    def ours(contestant: Contestant, members: int, is_filled: bool, _: int) -> dict[str, Any]:  # noqa: FBT001 - bound below
        scope = IdentityScope(contestant.env["IDENTITY"])
        url = databases.ledger(scope, is_filled=is_filled)
        rows = databases.rows if is_filled else 0
        return _with_server_cpu(
            databases.server,
            lambda: arena.drain_together(
                contestant, backlog(scale.count), members, database_url=url, rows=rows
            ),
        )

    def others(contestant: Contestant, count: int) -> dict[str, Any]:
        url = databases.empty()
        return _with_server_cpu(
            databases.server, lambda: arena.drain(contestant, backlog(count), database_url=url)
        )

    for members in (1, 2):
        name = f"{OURS_POSITIONS.title}, {_processes(members)}"
        yield Entry(name, "ours", OURS_POSITIONS.sink, partial(without, members))
    for is_filled in (False, True):
        for contestant in LEDGER:
            for members in (1, 2):
                name = f"{contestant.title}, {_processes(members)}"
                name += f", {databases.rows:,} trades there" if is_filled else ""
                run = partial(ours, contestant, members, is_filled)
                yield Entry(name, contestant.table, contestant.sink, run)
    for contestant in LEDGER_PEERS if scale.with_peers else ():
        yield arena.entry(contestant, others, count=scale.count)


def _processes(members: int) -> str:
    return f"{members} process{'es' * (members > 1)}"


def _with_server_cpu(server: EmbeddedPostgres, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    pid = server.status(probe=False).pid
    assert pid is not None
    before_s = _cpu_seconds(pid)
    figures = run()
    spent_s = _cpu_seconds(pid) - before_s
    return {**figures, "server_cpu_s_per_million": spent_s / figures["records"] * 1e6}


def _cpu_seconds(postmaster: int) -> float:
    """Sum up the CPU of a server: the living processes of it, and those that have ended."""
    tasks = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text(encoding="ascii")
    ticks = 0
    for pid in (postmaster, *map(int, tasks.split())):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            continue  # it has ended between the two looks
        ticks += sum(map(int, stat.rpartition(")")[2].split()[_OWN_AND_CHILDREN]))
    return ticks / os.sysconf("SC_CLK_TCK")
