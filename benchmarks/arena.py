"""One run of one contestant: its topics and its job, the gates, and its figures."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count as counter
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec

from app.config import Settings
from app.embedded.kafka import EmbeddedKafka
from benchmarks.backlog import (
    PARTITIONS,
    Backlog,
    Backlogs,
    check_committed,
    check_dead_letters,
    delete_topics,
    end_offsets,
    make_topics,
    settings_of,
    write_positions_again,
)
from benchmarks.children import Child, ContestantError
from benchmarks.contestants import OURS_POSITIONS, Contestant
from benchmarks.rounds import Entry, GateError
from benchmarks.workload import Workload, hash_of

_JOIN_TIMEOUT_S: Final = 30.0
_READY_POLL_S: Final = 0.02


class Arena:
    """Runs contestants on one broker; every run has a group and output topics of its own.

    Args:
        kafka: The broker, running.
        folder: For the files that are handed to contestants.
    """

    def __init__(self, kafka: EmbeddedKafka, folder: Path) -> None:
        self.bootstrap = kafka.bootstrap
        self.broker_pid = kafka.status(probe=False).pids[1]
        self.folder = folder
        self.backlogs = Backlogs(self.bootstrap)
        self._numbers = counter()
        self._used: list[Settings] = []

    def run_id(self) -> str:
        """Give a name that no other run has."""
        return f"run{next(self._numbers)}"

    def fresh(self, topic: str, run: str, *, partitions: int = PARTITIONS) -> Settings:
        """Give settings for one run, whose topics are there; the backlog's may be already."""
        settings = settings_of(self.bootstrap, topic, run=run, partitions=partitions)
        make_topics(settings)
        self._used.append(settings)
        return settings

    def tidy(self) -> None:
        """Delete the topics of all runs so far; between runs it would keep the broker busy."""
        delete_topics(self._used, keep=self.backlogs.topics)
        self._used.clear()

    def entry(
        self,
        contestant: Contestant,
        run: Callable[[Contestant, int], dict[str, Any]],
        *,
        count: int,
    ) -> Entry:
        """Make the entry of a contestant: its name says the sink where that is what differs."""
        records = max(1_000, int(count * contestant.share))
        return Entry(
            contestant.title,
            contestant.table,
            contestant.sink,
            lambda _: run(contestant, records),
            is_optional=contestant.is_peer,
        )

    def drain(
        self,
        contestant: Contestant,
        backlog: Backlog,
        *,
        mode: str = "drain",
        database_url: str | None = None,
    ) -> dict[str, Any]:
        """Let one contestant drain a backlog, and check what it came to.

        Args:
            contestant: Who.
            backlog: What.
            mode: How much of the work.
            database_url: Of an empty database, where trades are to be stored.

        Raises:
            ContestantError: It failed.
            GateError: It did something else than it had to.
        """
        settings = self.fresh(backlog.topic, self.run_id())
        job = self.job(settings, mode, backlog)
        if database_url is not None:
            job["database_url"] = database_url
        result = contestant.start(job).result()
        check_counts(result, backlog, mode)
        check_committed(settings)
        if database_url is not None:
            check_rows(database_url, "trades", backlog.expected.booked)
        if not contestant.is_peer and mode == "drain":
            check_dead_letters(settings, backlog.expected.refused)
        return figures(result)

    def drain_together(
        self,
        contestant: Contestant,
        backlog: Backlog,
        members: int,
        *,
        database_url: str | None = None,
        rows: int = 0,
    ) -> dict[str, Any]:
        """Let several processes of one group drain a backlog; they start when all have joined.

        Args:
            contestant: Who.
            backlog: What.
            members: How many processes.
            database_url: Of a ledger, if there is to be one.
            rows: Trades that are in it already.

        Raises:
            ContestantError: One failed, or they did not all get partitions.
            GateError: Together they did something else than they had to.
        """
        run = self.run_id()
        settings = self.fresh(backlog.topic, run)
        go = self.folder / f"{run}-go"
        ready = [self.folder / f"{run}-ready-{number}" for number in range(members)]
        lines = [self.folder / f"{run}-positions-{number}" for number in range(members)]
        job = self.job(settings, "drain", backlog)
        job |= {"until_end": True, "members": members, "go": str(go)}
        if database_url is not None:
            job["database_url"] = database_url
        children = [
            contestant.start(job | {"ready": str(ready[n]), "positions_file": str(lines[n])})
            for n in range(members)
        ]
        self.open_gate(children, ready, go)
        results = [child.result() for child in children]
        last_ns = max(result["last_ns"] for result in results)
        together = {
            **{
                name: sum(result[name] for result in results)
                for name in ("records", "booked", "refused", "cpu_s", "peak_rss_mb")
            },
            "wall_s": (last_ns - min(result["first_ns"] for result in results)) / 1e9,
            "positions": hash_of(
                line for file in lines for line in file.read_text().splitlines(keepends=True)
            ),
        }
        check_counts(together, backlog, "drain")
        check_committed(settings)
        if database_url is not None:
            check_rows(database_url, "trades", rows + backlog.expected.booked)
            check_rows(database_url, "dead_letters", backlog.expected.refused.total())
        return figures(together)

    def restorer(
        self, workload: Workload, count: int, writes: int
    ) -> Callable[[int], dict[str, Any]]:
        """Give what starts a consumer on a positions topic with so many records.

        The topic is made at the first run: a backlog is drained, and the positions that it came to
        are written again until there are enough.
        """
        made: list[tuple[Settings, Backlog, int]] = []

        def prepare() -> None:
            backlog = self.backlogs.get(workload, count)
            settings = self.fresh(backlog.topic, self.run_id())
            drained = OURS_POSITIONS.start(self.job(settings, "drain", backlog)).result()
            check_counts(drained, backlog, "drain")
            write_positions_again(settings, writes)
            ends = end_offsets(settings, settings.positions_topic)
            made.append((settings, backlog, sum(ends.values())))

        def run(_: int) -> dict[str, Any]:
            if not made:
                prepare()
            ((settings, backlog, records),) = made
            result = OURS_POSITIONS.start(self.job(settings, "restore", backlog)).result()
            if result["positions"] != backlog.expected.positions:
                raise GateError("the restored positions are not the oracle's")
            return figures({**result, "records": records, "wall_s": result["open_s"]})

        return run

    def open_gate(self, children: Sequence[Child], ready: Sequence[Path], go: Path) -> None:
        """Wait until all children have their partitions, then let them read.

        Raises:
            ContestantError: They do not all get there.
        """
        deadline_s = time.monotonic() + _JOIN_TIMEOUT_S
        while not all(file.exists() for file in ready):
            for child in children:
                if child.has_ended:
                    child.result()
                    raise ContestantError("it ended before it had its partitions")
            if time.monotonic() > deadline_s:
                raise ContestantError("the partitions were not shared in time")
            time.sleep(_READY_POLL_S)
        go.touch()

    def produce(self, contestant: Contestant, count: int, workload: Workload) -> dict[str, Any]:
        """Let one contestant fill a fresh topic.

        Raises:
            ContestantError: It failed.
            GateError: The topic does not hold what it says it stored.
        """
        run = self.run_id()
        topic = f"produced-{run}"
        settings = self.fresh(topic, run)
        job = {
            "mode": "produce",
            "bootstrap": self.bootstrap,
            "topic": topic,
            "count": count,
            "partitions": PARTITIONS,
            "input": str(self.input(workload, count)),
        }
        result = contestant.start(job).result()
        stored = sum(end_offsets(settings, topic).values())
        if not result["records"] == stored == count:
            raise GateError(f"{stored} of {count} stored, {result['records']} said to be")
        return figures(result)

    def input(self, workload: Workload, count: int) -> Path:
        """Give the file of the records to produce; made once for all contestants."""
        path = self.folder / f"input-{count}.msgpack"
        if not path.exists():
            pairs = [(trade.key, value) for trade, value, _ in workload.records(count)]
            path.write_bytes(msgspec.msgpack.encode(pairs))
        return path

    def job(self, settings: Settings, mode: str, backlog: Backlog) -> dict[str, Any]:
        """Make the job of a run, but for the variant."""
        return {
            "mode": mode,
            "bootstrap": self.bootstrap,
            "topic": settings.kafka_topic,
            "dlq_topic": settings.dlq_topic,
            "positions_topic": settings.positions_topic,
            "group": settings.kafka_group_id,
            "count": backlog.count,
            "partitions": backlog.partitions,
            "dedupe_window": settings.dedupe_window,
        }


def check_counts(result: Mapping[str, Any], backlog: Backlog, mode: str) -> None:
    """Gate: every record has its fate, and the positions are the oracle's.

    Raises:
        GateError: They are not.
    """
    expected = backlog.expected
    if result["records"] != backlog.count:
        raise GateError(f"{result['records']} records of {backlog.count}")
    if mode == "consume":
        return
    fates = (result["booked"], result["refused"])
    if fates != (expected.booked, expected.refused.total()):
        raise GateError(
            f"booked and refused {fates}, not {expected.booked} and {expected.refused.total()}"
        )
    if result["positions"] != expected.positions:
        raise GateError("the positions are not the oracle's")


def check_rows(database_url: str, table: str, rows: int) -> None:
    """Gate: a table of the database has so many rows.

    Raises:
        GateError: It has not.
    """

    async def count() -> int:
        connection = await asyncpg.connect(database_url)
        try:
            found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
            return found
        finally:
            await connection.close()

    if (found := asyncio.run(count())) != rows:
        raise GateError(f"{table} has {found} rows, not {rows}")


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the result of a run into its figures."""
    records = result["records"]
    if "busy_cpu_s" in result:
        result = {**result, "open_cpu_s_per_million": result["busy_cpu_s"] / records * 1e6}
    more = ("largest_stall_ms", "commits", "open_cpu_s_per_million", "versions")
    return {
        "cpu_s_per_million": result["cpu_s"] / records * 1e6,
        "rate": records / result["wall_s"],
        "wall_s": result["wall_s"],
        "peak_rss_mb": result["peak_rss_mb"],
        "records": records,
        **{name: result[name] for name in more if name in result},
    }
