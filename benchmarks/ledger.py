"""What it costs to drain a backlog into the ledger in PostgreSQL, durable commits and all."""

import asyncio
import os
import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from app.config import IdentityScope
from app.embedded.postgres import EmbeddedPostgres
from app.stores.postgres import migrate_database, recreate_database
from benchmarks.arena import Arena
from benchmarks.contestants import LEDGER, OURS_POSITIONS, Contestant
from benchmarks.rounds import Entry, measure
from benchmarks.suites import BASE, Scale, Table

_DATABASE: Final = "bench"
_OWN_AND_CHILDREN: Final = slice(11, 15)  # user and system time, of itself and of those it buried


def ledger(arena: Arena, scale: Scale) -> Table:
    """Drain with positions alone, and into a ledger, with one process and with two of a group."""
    contestants = (OURS_POSITIONS, *LEDGER)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="bench-ledger-"))
        folder.chmod(0o711)  # PostgreSQL never runs as root
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres", notify=lambda _: None))
        entries = [
            Entry(
                f"{contestant.title}, {members} process{'es' * (members > 1)}",
                contestant.table,
                contestant.sink,
                partial(_run, arena, server, scale, contestant, members),
            )
            for contestant in contestants
            for members in (1, 2)
        ]
        rows = measure(
            entries,
            rounds=scale.rounds_among_ours,
            seed=scale.seed,
            baseline=entries[0].name,
        )
    about = (
        f"{scale.count:,} trades into empty tables, a new database for each run: embedded"
        " PostgreSQL on a unix socket, fsync and synchronous_commit on, autovacuum on. Kafka and"
        " PostgreSQL need their share of the same cores. The counts of the tables are a gate."
    )
    columns = (*Table.columns, ("server CPU s/M", "server_cpu_s_per_million", 2))
    return Table("ledger", about, rows, entries[0].name, "sink", columns)


def _run(
    arena: Arena,
    server: EmbeddedPostgres,
    scale: Scale,
    contestant: Contestant,
    members: int,
    _: int,
) -> dict[str, Any]:
    backlog = arena.backlogs.get(BASE, scale.count)
    if contestant is OURS_POSITIONS:
        return arena.drain_together(contestant, backlog, members)
    asyncio.run(recreate_database(server.url, _DATABASE))
    url = server.url_of(_DATABASE)
    asyncio.run(migrate_database(url, IdentityScope(contestant.env["IDENTITY"])))
    pid = server.status(probe=False).pid
    assert pid is not None
    before_s = _cpu_seconds(pid)
    figures = arena.drain_together(contestant, backlog, members, database_url=url)
    spent_s = _cpu_seconds(pid) - before_s
    return {**figures, "server_cpu_s_per_million": spent_s / backlog.count * 1e6}


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
