"""Our own contestant: `python -m benchmarks.ours JOB` prints one JSON object.

The pipeline runs as it is. Times are taken from outside, in a source that notes when it was
polled and when a commit was acknowledged.
"""

import asyncio
import json
import os
import resource
import sys
import time
from array import array
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from app.checkpoint import FlushResult, PartitionEffects
from app.config import Settings
from app.consumer import TradeConsumer
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.publisher import KafkaPublisher
from app.ledger import open_ledger_of
from app.lifecycle import spare_the_collector
from app.models import Fate, Position
from app.ports import OutgoingRecord, RecordBatch, SendState
from app.stores.changelog import Changelog
from app.utils import configure_logging
from benchmarks.backlog import publish_all
from benchmarks.workload import hash_of, plain

_CHUNK: Final = 2_000
_CONNECT_S: Final = 30.0
_COMMIT_INTERVAL_S: Final = 0.1
_WATCH_S: Final = 0.05
_GO_POLL_S: Final = 0.01
_STALL_S: Final = 0.004  # more often would be work that shows in the figures

Job = dict[str, Any]


class ObservedSource(KafkaSource):
    """Notes the first record, the last commit and the end; holds partitions back until told to go.

    Args:
        settings: Of the source.
        job: With `until_end` the stop is somebody else's; with `ready` and `go` nothing is read
            until every member has its share of the partitions.
        stop: Set when `count` records are in hand.
    """

    def __init__(self, settings: Settings, job: Job, stop: asyncio.Event) -> None:
        super().__init__(settings)
        self._job = job
        self._stop = stop
        self._reached: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._is_held = "go" in job
        self.first_ns = self.last_ns = self.open_ns = 0
        self.first_cpu_s = self.last_cpu_s = 0.0

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        """Note what arrives."""
        batches = await super().poll(timeout_s=timeout_s)
        if batches and not self.first_ns:
            self.first_ns, self.first_cpu_s = time.monotonic_ns(), time.process_time()
        for batch in batches:
            self._reached[batch.partition] = batch.next_offset
        if not self._job.get("until_end") and sum(self._reached.values()) >= self._job["count"]:
            self._stop.set()
        return batches

    async def commit(self, next_offsets: Mapping[int, int]) -> bool:
        """Note what is acknowledged."""
        is_stored = await super().commit(next_offsets)
        if is_stored:
            self.last_ns, self.last_cpu_s = time.monotonic_ns(), time.process_time()
        return is_stored

    def seek(self, partition: int, offset: int) -> None:
        """Open a partition, at once or when everybody is there."""
        mine = self.assignment.partitions
        self._held = {p: o for p, o in self._held.items() if p in mine} | {partition: offset}
        if not self._is_held:
            super().seek(partition, offset)
        if self._held.keys() != mine:
            return
        self.open_ns = self.open_ns or time.monotonic_ns()
        if self._job["mode"] == "restore":
            self._stop.set()
        elif self._is_held and len(mine) == self._job["partitions"] // self._job["members"]:
            Path(self._job["ready"]).write_text(str(os.getpid()), encoding="ascii")

    async def go(self) -> None:
        """Open what is held as soon as the harness says so."""
        go = Path(self._job.get("go", ""))
        while self._is_held and not go.exists():  # noqa: ASYNC110, ASYNC240 - a file is all we share
            await asyncio.sleep(_GO_POLL_S)
        if self._is_held:
            self._is_held = False
            for partition, offset in self._held.items():
                super().seek(partition, offset)

    async def watch_group(self) -> None:
        """Stop when the whole group has committed all there is."""
        while self._job.get("until_end"):
            await asyncio.sleep(_WATCH_S)
            committed = await self.committed(range(self._job["partitions"]))
            if sum(offset or 0 for offset in committed.values()) == self._job["count"]:
                self._stop.set()
                return


class NoSink(Changelog):
    """Restores positions and writes none."""

    def records(self, partition: int, positions: Iterable[Position]) -> list[OutgoingRecord]:  # noqa: ARG002
        """Give the records to write: none."""
        return []


class ObservedConsumer(TradeConsumer):
    """Notes when effects were acknowledged, on the monotonic clock, and up to where."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        # Time, partition, next offset: as small as can be, since our memory is what is measured.
        self._acked = array("q")
        epoch_ns = time.time_ns() - time.monotonic_ns()
        settle_flush = self._checkpointer._settle_flush  # noqa: SLF001 - observed from outside

        def observed(flushed: dict[int, PartitionEffects], result: FlushResult) -> None:
            settle_flush(flushed, result)
            for partition, effects in flushed.items():
                self._acked.extend((result.acked_ns - epoch_ns, partition, effects.next_offset))

        self._checkpointer._settle_flush = observed  # type: ignore[method-assign]  # noqa: SLF001

    @property
    def acked(self) -> list[tuple[int, dict[int, int]]]:
        """When effects were acknowledged, and up to which offset of their partition."""
        columns = (self._acked[0::3], self._acked[1::3], self._acked[2::3])
        return [(ns, {partition: offset}) for ns, partition, offset in zip(*columns, strict=True)]

    def lines(self) -> list[str]:
        """Write the positions of all partitions as the contract says."""
        return [
            f"{key} {plain(position.quantity_e8, 8)} {plain(position.open_cost_e24, 24)}"
            f" {plain(position.realized_e24, 24)}\n"
            for partition in self._open.values()
            for key, position in partition.processor.positions.items()
        ]


async def drain(job: Job, settings: Settings) -> dict[str, Any]:
    """Run the consumer over a backlog, or until its partitions are open."""
    stop = asyncio.Event()
    stalls = asyncio.ensure_future(_largest_stall_ms(stop))
    started_ns, cpu_s = time.monotonic_ns(), time.process_time()
    changelog = (NoSink if job["variant"] == "none" else Changelog).of(
        KafkaLogReader(settings), settings
    )
    source = ObservedSource(settings, job, stop)
    async with (
        KafkaPublisher(settings) as publisher,
        open_ledger_of(settings, stop, connect_timeout_s=_CONNECT_S) as ledger,
    ):
        await source.start()
        helpers = [asyncio.ensure_future(source.go()), asyncio.ensure_future(source.watch_group())]
        try:
            consumer = ObservedConsumer(
                source=source,
                publisher=publisher,
                changelog=changelog,
                partition_of=source.partition_of,
                settings=settings,
                ledger=ledger,
            )
            stats = await consumer.run(stop)
        finally:
            for helper in helpers:
                helper.cancel()
            await source.stop()
    if stats.stopped:
        raise RuntimeError(f"partitions stopped: {stats.stopped}")
    if job["mode"] == "restore":
        source.last_cpu_s = time.process_time()
    _write_files(job, consumer)
    return {
        "records": stats.fates.total(),
        "booked": stats.fates[Fate.BOOKED],
        "refused": stats.fates[Fate.DEAD_LETTERED],
        "wall_s": (source.last_ns - source.first_ns) / 1e9,
        "open_s": (source.open_ns - started_ns) / 1e9,
        "cpu_s": source.last_cpu_s - cpu_s,
        "busy_cpu_s": source.last_cpu_s - source.first_cpu_s,
        "first_ns": source.first_ns,
        "last_ns": source.last_ns,
        "largest_stall_ms": await stalls,
        "commits": stats.commits,
        "positions": hash_of(consumer.lines()),
    }


def _write_files(job: Job, consumer: ObservedConsumer) -> None:
    if "acked_file" in job:
        Path(job["acked_file"]).write_bytes(msgspec.msgpack.encode(consumer.acked))
    if "positions_file" in job:
        Path(job["positions_file"]).write_text("".join(consumer.lines()), encoding="utf-8")


async def consume(job: Job, settings: Settings) -> dict[str, Any]:
    """Take the records off the topic and commit: what the client alone costs."""
    stop = asyncio.Event()
    cpu_s = time.process_time()
    source = ObservedSource(settings, job, stop)
    await source.start()
    next_offsets: dict[int, int] = {}
    records = touched = epoch = 0
    commit_s = time.monotonic()
    while not stop.is_set():
        if source.assignment.epoch != epoch:
            epoch = source.assignment.epoch
            for partition in source.assignment.partitions:
                source.seek(partition, 0)
        for batch in await source.poll(timeout_s=_COMMIT_INTERVAL_S):
            touched += sum(map(len, batch.values))  # type: ignore[arg-type]  # none is null
            records += len(batch.values)
            next_offsets[batch.partition] = batch.next_offset
        if next_offsets and (stop.is_set() or time.monotonic() - commit_s >= _COMMIT_INTERVAL_S):
            await source.commit(next_offsets)
            commit_s = time.monotonic()
    await source.stop()
    return {
        "records": records,
        "bytes": touched,
        "wall_s": (source.last_ns - source.first_ns) / 1e9,
        "cpu_s": source.last_cpu_s - cpu_s,
    }


async def produce(job: Job, settings: Settings) -> dict[str, Any]:
    """Publish what was loaded before the clock starts."""
    records = _loaded(job)
    count, stored = job["count"], 0

    def chunks() -> Any:  # noqa: ANN401
        for start in range(0, count, _CHUNK):
            first = start % len(records)
            yield records[first : first + min(_CHUNK, count - start)]

    async with KafkaPublisher(settings) as publisher:
        started_s, cpu_s = time.monotonic(), time.process_time()
        async for outcomes in publish_all(publisher, chunks()):
            stored += sum(outcome.state is SendState.OK for outcome in outcomes)
        wall_s, cpu_s = time.monotonic() - started_s, time.process_time() - cpu_s
    return {"records": stored, "wall_s": wall_s, "cpu_s": cpu_s}


def _loaded(job: Job) -> list[OutgoingRecord]:
    pairs = msgspec.msgpack.decode(Path(job["input"]).read_bytes())
    return [OutgoingRecord(job["topic"], key, value) for key, value in pairs]


async def _largest_stall_ms(stop: asyncio.Event) -> float:
    """Find the longest time for which the event loop gave nobody a turn."""
    largest_s = 0.0
    while not stop.is_set():
        before_s = time.monotonic()
        await asyncio.sleep(_STALL_S)
        largest_s = max(largest_s, time.monotonic() - before_s - _STALL_S)
    return largest_s * 1000


def main() -> None:
    """Do the job and print the result."""
    job: Job = json.loads(sys.argv[1])
    configure_logging("WARNING")
    spare_the_collector()
    settings = Settings.from_env(
        {
            **job.get("env", {}),
            "KAFKA_BOOTSTRAP_SERVERS": job["bootstrap"],
            "KAFKA_TOPIC": job["topic"],
            **{
                name: job[key]
                for name, key in (
                    ("DLQ_TOPIC", "dlq_topic"),
                    ("POSITIONS_TOPIC", "positions_topic"),
                    ("KAFKA_GROUP_ID", "group"),
                    ("DATABASE_URL", "database_url"),
                )
                if key in job
            },
        }
    )
    mode = {"drain": drain, "restore": drain, "consume": consume, "produce": produce}[job["mode"]]
    result = asyncio.run(mode(job, settings))
    peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {name: version(name) for name in ("aiokafka", "msgspec")}
    print(json.dumps({**result, "peak_rss_mb": peak_rss_mb, "versions": versions}))


if __name__ == "__main__":
    main()
