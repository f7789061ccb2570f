"""What a COPY of trades costs the server, by how the table could be laid out for old ones to go.

`python -m benchmarks.retention`: the forms in turns, each time 10,000 trades in a transaction of
their own, on an embedded PostgreSQL that is thrown away; CPU of the one process that serves them.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

import asyncpg

from app.embedded.postgres import EmbeddedPostgres
from app.ledger_codec import PLAIN_TRADE_COLUMNS, copy_text
from app.stores.database import migrate_database

_ROWS: Final = 10_000
_MINUTE_NS: Final = 60 * 10**9
_DAY_NS: Final = 1440 * _MINUTE_NS
_START_NS: Final = 1_772_323_200 * 10**9
_PARTS: Final = 90

FORMS: Final = {
    "as in 0001": "CREATE TABLE form_0 (LIKE trades INCLUDING DEFAULTS INCLUDING CONSTRAINTS,"
    " PRIMARY KEY (source_partition, source_offset))",
    "with a BRIN index of times, as in 0002": "CREATE TABLE form_1 (LIKE trades INCLUDING DEFAULTS"
    " INCLUDING CONSTRAINTS, PRIMARY KEY (source_partition, source_offset));"
    " CREATE INDEX ON form_1 USING brin (executed_ns)"
    " WITH (pages_per_range = 64, autosummarize = on)",
    "with a B-tree of times": "CREATE TABLE form_2 (LIKE trades INCLUDING DEFAULTS INCLUDING"
    " CONSTRAINTS, PRIMARY KEY (source_partition, source_offset));"
    " CREATE INDEX ON form_2 (executed_ns)",
    f"in {_PARTS} partitions by day": "CREATE TABLE form_3 (LIKE trades INCLUDING DEFAULTS"
    " INCLUDING CONSTRAINTS, PRIMARY KEY (source_partition, source_offset, executed_ns))"
    " PARTITION BY RANGE (executed_ns);"
    + "".join(
        f"CREATE TABLE form_3_{n} PARTITION OF form_3"
        f" FOR VALUES FROM ({_START_NS + n * _DAY_NS}) TO ({_START_NS + (n + 1) * _DAY_NS});"
        for n in range(_PARTS)
    ),
    "in blocks of offsets": "CREATE TABLE form_4 (LIKE trades INCLUDING DEFAULTS INCLUDING"
    " CONSTRAINTS, PRIMARY KEY (source_partition, source_offset)) PARTITION BY RANGE"
    " (source_offset);"
    + "".join(
        f"CREATE TABLE form_4_{n} PARTITION OF form_4"
        f" FOR VALUES FROM ({n * 2_000}) TO ({(n + 1) * 2_000});"
        for n in range(_PARTS)
    ),
}


def _lines(round_: int) -> Iterator[str]:
    for n in range(_ROWS):
        # Eight partitions in turn, all of them about as far; a minute from one to the next.
        partition, offset = n % 8, round_ * _ROWS // 8 + n // 8
        executed_ns = _START_NS + offset * _MINUTE_NS
        yield (
            f"{partition}\t{offset}\tT-{partition}-{offset}\tBOOK\tS{n % 500}\tBUY\t189.42\t100"
            f"\tUSD\t{executed_ns}"
        )


def _cpu_ms(pid: int) -> float:
    """Give the time that a process was on a CPU; Linux counts it in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


async def measure(url: str, rounds: int) -> dict[str, float]:
    """Give the mean of CPU milliseconds for 10,000 trades, by form."""
    await migrate_database(url)
    connections: list[asyncpg.Connection] = []
    pids: list[int] = []
    for statement in FORMS.values():
        connection = await asyncpg.connect(url)
        await connection.execute(statement)
        connections.append(connection)
        pids.append(await connection.fetchval("SELECT pg_backend_pid()"))
    spent: list[list[float]] = [[] for _ in FORMS]
    for round_ in range(rounds):
        text = copy_text(_lines(round_))
        for number, connection in enumerate(connections):
            before_ms = _cpu_ms(pids[number])
            await connection.copy_to_table(
                f"form_{number}",
                source=BytesIO(text),
                columns=PLAIN_TRADE_COLUMNS,
                format="text",
                null="",
            )
            spent[number].append(_cpu_ms(pids[number]) - before_ms)
    for connection in connections:
        await connection.close()
    # The first rounds extend empty tables.
    return {form: statistics.mean(of[2:]) for form, of in zip(FORMS, spent, strict=True)}


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=80, choices=range(5, 101))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trade-stream-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder / "postgres") as postgres:
            print(json.dumps(asyncio.run(measure(postgres.url, arguments.rounds)), indent=2))


if __name__ == "__main__":
    main()
