"""TradeConsumer: batches in, positions and dead letters out, offsets committed after their effects.

The loop owns every side effect. Per turn: settle the group's affairs, poll, process in chunks, and
flush the effects when the last flush is done. Commits follow at a slower pace of their own. A
partition is open from the moment its state is restored and its offset sought until it is revoked or
something about it needs a person.
"""

import os.path
import sys

if not __package__:  # `python app/consumer.py`: put the root, not app/, on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import asyncio
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Annotated, Any, Final

import structlog
import typer

from app.checkpoint import FlushResult, PartitionEffects, commit, flush
from app.config import OnGap, Settings
from app.dead_letters import dead_letter
from app.errors import OffsetGapError, TransportError, UnreadableError
from app.headers import Origin
from app.kafka_io.connect import open_publisher, open_source
from app.kafka_io.log_reader import KafkaLogReader
from app.lifecycle import EXIT_NEEDS_PERSON, run_program, run_with_stop, start_up
from app.models import Fate
from app.ports import (
    OutgoingRecord,
    Publisher,
    RecordBatch,
    RecordSource,
)
from app.services import BatchResult
from app.starting_point import starting_point
from app.stats import ConsumerStats
from app.stores.changelog import Changelog
from app.takeover import OpenPartition, Takeover
from app.timestamps import TimestampError, parse_timestamp

log = structlog.get_logger(__name__)

POLL_TIMEOUT_S: Final = 0.1
PROGRESS_INTERVAL_S: Final = 5.0
PARENT_POLL_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 30.0
RETRY_PAUSE_S: Final = 0.5
_EFFECTS_A_FLUSH: Final = 300
"""Of a flush that is started because nothing else is to do: some milliseconds of work."""
FINISH_TIMEOUT_S: Final = 12.0
"""Longest wait for the last flush and commit before partitions are given up."""


class TradeConsumer:
    """Consumes trades of one topic as a member of a group.

    Args:
        source: The group member, started.
        publisher: Where dead letters, re-keyed trades and positions go, started.
        changelog: Where positions are restored from, and written to.
        partition_of: Partition that a record key belongs to.
        settings: Intervals, bounds and policies.
        now_ns: Wall clock, UTC nanoseconds; for stamps and latency only.
        monotonic: Clock of every duration, in seconds.
    """

    def __init__(
        self,
        *,
        source: RecordSource,
        publisher: Publisher,
        changelog: Changelog,
        partition_of: Callable[[bytes], int],
        settings: Settings,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._partition_of = partition_of
        self._settings = settings
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._changelog = changelog
        self._takeover = Takeover(
            source=source,
            publisher=publisher,
            changelog=changelog,
            partition_of=partition_of,
            settings=settings,
            monotonic=monotonic,
        )
        self.stats = ConsumerStats()
        self._epoch = 0
        self._open: dict[int, OpenPartition] = {}
        self._left: dict[int, OpenPartition] = {}
        self._restoring: dict[int, asyncio.Task[OpenPartition | None]] = {}
        self._flush: asyncio.Task[FlushResult] | None = None
        self._in_flush: dict[int, PartitionEffects] = {}
        self._commit: asyncio.Task[bool] | None = None
        self._in_commit: dict[int, PartitionEffects] = {}
        self._commit_started_s = 0.0
        self._is_paused = False
        self._progress_s = monotonic()

    # -- the loop

    async def run(self, stop: asyncio.Event, *, until_caught_up: bool = False) -> ConsumerStats:
        """Consume until told to stop, then finish what is in hand.

        Args:
            stop: Set it to stop after the chunk in hand; a last flush and commit follow.
            until_caught_up: Stop as well when every partition of ours has been read to its end.

        Returns:
            What was counted; `stats.stopped` names partitions that wait for a person.

        Raises:
            TopicError: A topic is not fit, such as positions of another group.
        """
        try:
            while not stop.is_set():
                is_idle = await self._turn()
                if until_caught_up and is_idle and await self._is_caught_up():
                    break
            await self._finish()
        finally:
            await self._abandon()
        return self.stats

    async def _turn(self) -> bool:
        """Do one round of the loop; tell whether there was nothing to do."""
        if self._source.is_revoking:
            await self._finish()
            await self._close_all()
            self._source.confirm_revocation()
        self._settle()
        if self._source.assignment.epoch != self._epoch:
            await self._adopt()
        self._open_restored()
        await self._bound_work_in_flight()
        try:
            batches = await self._source.poll(timeout_s=0)
            if not batches:
                # Nothing is at hand: what is processed need not wait for more, nor for much else.
                self._start_flush(at_most=_EFFECTS_A_FLUSH)
                batches = await self._source.poll(timeout_s=POLL_TIMEOUT_S)
        except TransportError as exc:
            log.warning("poll_failed", error=str(exc))
            self._seek_all()
            await asyncio.sleep(RETRY_PAUSE_S)
            return False
        except UnreadableError as exc:
            await self._finish()  # what is processed already must not wait for a person
            self._stop_partition(exc.partition, str(exc))
            self._seek_all()
            return False
        except OffsetGapError as exc:
            log.warning("position_out_of_range", error=str(exc))
            await self._check_gaps()
            return False
        for batch in batches:
            await self._process(batch)
        self._keep_pace()
        self._report_progress()
        return not batches

    async def _process(self, batch: RecordBatch) -> None:
        partition = self._open.get(batch.partition)
        if partition is None or batch.epoch != self._epoch:
            return  # read for an assignment that is over, or before its gate was opened
        if self.stats.first_ns is None and batch.values:
            self.stats.first_ns = time.monotonic_ns()
        size = self._settings.consumer_chunk_records
        for start in range(0, len(batch.values), size):
            chunk = batch if len(batch.values) <= size else _slice(batch, start, start + size)
            result = partition.processor.process_batch(chunk, effects_from=partition.effects_from)
            self._collect(partition, chunk, result)
            await asyncio.sleep(0)  # heartbeats, fetches and sends share this loop
            if batch.epoch != self._source.assignment.epoch:
                return
        partition.next_offset = batch.next_offset

    def _collect(self, partition: OpenPartition, batch: RecordBatch, result: BatchResult) -> None:
        effects = partition.effects
        if result.refusals or result.misplaced:
            self._collect_sends(partition, batch, result)
        if result.touched:
            effects.touched |= dict.fromkeys(result.touched)
        for fate, count in result.fates.items():
            effects.fates[fate] += count
        effects.published_at += result.published_at
        if result.suspects:
            self.stats.suspects.update(result.suspects)
        self.stats.unknown_fields += result.unknown_fields
        self.stats.already_applied += result.already_applied
        self.stats.repaired += result.repaired
        partition.next_offset = batch.next_offset
        partition.is_settled = False

    def _collect_sends(
        self, partition: OpenPartition, batch: RecordBatch, result: BatchResult
    ) -> None:
        effects, settings = partition.effects, self._settings
        now_ns = self._now_ns()
        sends: list[tuple[int, OutgoingRecord]] = [
            (
                refusal.index,
                dead_letter(
                    batch.records[refusal.index],
                    refusal,
                    topic=settings.dlq_topic,
                    source_topic=settings.kafka_topic,
                    source_partition=partition.number,
                    group=settings.kafka_group_id,
                    failed_at_ns=now_ns,
                ),
            )
            for refusal in result.refusals
        ]
        sends += [
            (index, self._rekeyed(partition.number, batch, index, key))
            for index, key in result.misplaced
        ]
        effects.sends += [record for _, record in sorted(sends, key=lambda send: send[0])]
        effects.fates[Fate.DEAD_LETTERED] += len(result.refusals)
        effects.fates[Fate.REKEYED] += len(result.misplaced)
        effects.reasons.update(refusal.reason for refusal in result.refusals)

    def _rekeyed(self, partition: int, batch: RecordBatch, index: int, key: str) -> OutgoingRecord:
        record = batch.records[index]
        origin = Origin(self._settings.kafka_topic, partition, record.offset)
        encoded = key.encode()
        return OutgoingRecord(
            topic=self._settings.kafka_topic,
            key=encoded,
            value=record.value,
            headers=[*record.headers, origin.to_header()],
            partition=self._partition_of(encoded),
            timestamp_ms=record.timestamp,
        )

    async def _bound_work_in_flight(self) -> None:
        """Hold the partitions while too much waits for acknowledgement: no unbounded growth."""
        if self._is_full:
            self._start_flush()
            self._start_commit()
            working = [task for task in (self._flush, self._commit) if task is not None]
            await asyncio.wait(working, timeout=POLL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            self._settle()
        if self._is_full != self._is_paused:
            self._is_paused = self._is_full  # polling goes on, so that the group sees us alive
            change = self._source.pause if self._is_paused else self._source.resume
            change(self._open.keys())

    @property
    def _is_full(self) -> bool:
        in_flight = sum(p.next_offset - p.committed for p in self._open.values())
        return in_flight >= self._settings.commit_every

    # -- effects and commits

    def _keep_pace(self) -> None:
        """Flush and commit what has waited for its interval."""
        interval_s = self._settings.commit_interval_ms / 1000
        now_s = self._monotonic()
        self._add_heartbeats(now_s)
        self._start_flush(waited_s=interval_s)
        if now_s - self._commit_started_s >= interval_s:
            self._start_commit()

    def _add_heartbeats(self, now_s: float) -> None:
        for partition in self._open.values():
            if now_s - partition.last_write_s >= self._settings.positions_heartbeat_s:
                partition.last_write_s = now_s
                partition.effects.heartbeat = self._changelog.heartbeat(
                    partition.number, partition.next_offset - 1
                )

    def _start_flush(self, *, waited_s: float = 0.0, at_most: float = math.inf) -> None:
        """Send the effects of partitions, unless a flush is on its way.

        Args:
            waited_s: Leave out the partitions whose last flush was less than so long ago.
            at_most: Take the partitions that waited longest, one at the least, up to so many
                effects: the shorter a flush, the sooner the next one.
        """
        if self._flush is not None:
            return
        now_s = self._monotonic()
        due = [p for p in self._open.values() if now_s - p.flushed_s >= waited_s and p.has_effects]
        due.sort(key=attrgetter("flushed_s"))
        count = 0
        for partition in due:
            count += partition.effects.size
            if count > at_most and self._in_flush:
                break
            effects, partition.effects = partition.effects, PartitionEffects(0)
            # Never backwards: a margin is read again below what is committed.
            effects.freeze(max(partition.next_offset, partition.committed))
            effects.changelog_offset = partition.changelog_offset
            partition.flushed_s = now_s
            self._in_flush[partition.number] = effects
        if not self._in_flush:
            return
        self._flush = asyncio.ensure_future(
            flush(
                self._in_flush,
                publisher=self._publisher,
                changelog=self._changelog,
                positions={p.number: p.processor.positions for p in self._open.values()},
                now_ns=self._now_ns,
            )
        )
        self._flush.add_done_callback(lambda _: self._source.wake())

    def _start_commit(self) -> None:
        if self._commit is not None:
            return
        for partition in self._open.values():
            if partition.acked.next_offset > partition.committed:
                self._in_commit[partition.number] = partition.acked
                partition.acked = PartitionEffects(partition.acked.next_offset)
        if not self._in_commit:
            return
        self._commit_started_s = self._monotonic()
        next_offsets = {number: acked.next_offset for number, acked in self._in_commit.items()}
        self._commit = asyncio.ensure_future(commit(self._source, next_offsets))
        self._commit.add_done_callback(lambda _: self._source.wake())

    def _settle(self) -> None:
        """Take the results of a flush and a commit that have ended; raises what they raised."""
        if self._flush is not None and self._flush.done():
            done, self._flush = self._flush, None
            flushed, self._in_flush = self._in_flush, {}
            self._settle_flush(flushed, done.result())
        if self._commit is not None and self._commit.done():
            ended, self._commit = self._commit, None
            acked, self._in_commit = self._in_commit, {}
            self._settle_commit(acked, is_committed=ended.result())

    def _settle_flush(self, flushed: dict[int, PartitionEffects], result: FlushResult) -> None:
        for number, why in result.refused.items():
            self._stop_partition(number, why)
        for number, why in result.lost.items():
            # A late write of a former owner with newer state: what we hold is not the newest.
            log.warning("partition_restored_again", partition=number, why=why)
            if self._open.pop(number, None) is not None:
                self._start_restore(number, None)
        for number, effects in flushed.items():
            partition = self._open.get(number)
            if partition is None:
                continue
            partition.changelog_offset = result.changelog_offsets.get(
                number, partition.changelog_offset
            )
            for key in result.stale_keys.get(number, ()):
                position = partition.processor.positions[key]
                partition.effects.positions.setdefault(key, position)
            if effects.positions:
                partition.last_write_s = self._monotonic()
            partition.acked.absorb(effects)
            self._note_latency(effects.published_at, result.acked_ns)
            self._judge_settled(partition)

    def _settle_commit(self, acked: dict[int, PartitionEffects], *, is_committed: bool) -> None:
        self.stats.commits += is_committed
        for number, effects in acked.items():
            if is_committed:
                self.stats.fates.update(effects.fates)
                self.stats.reasons.update(effects.reasons)
                self.stats.last_ns = time.monotonic_ns()
            partition = self._open.get(number)
            if partition is None:
                continue
            if is_committed:
                partition.committed = effects.next_offset
            else:  # not ours any more, or unknown: a later commit covers these fates too
                partition.acked.absorb(effects)
            self._judge_settled(partition)

    def _judge_settled(self, partition: OpenPartition) -> None:
        partition.is_settled = not (
            partition.has_work
            or partition.number in self._in_flush
            or partition.number in self._in_commit
        )

    def _note_latency(self, published_at: list[str], acked_ns: int) -> None:
        for text in published_at:
            try:
                self.stats.latency.add(acked_ns - parse_timestamp(text)[0])
            except TimestampError:
                continue  # not a stamp of ours; it decides nothing

    async def _finish(self) -> None:
        """Bring what is in hand to its commit, within a bound."""
        try:
            async with asyncio.timeout(FINISH_TIMEOUT_S):
                for _ in range(2):  # the one that runs, and the one for what came after it
                    if self._flush is not None:
                        await asyncio.wait([self._flush])
                    self._settle()
                    self._start_flush()
                if self._flush is not None:
                    await asyncio.wait([self._flush])
                for _ in range(2):
                    if self._commit is not None:
                        await asyncio.wait([self._commit])
                    self._settle()
                    self._start_commit()
                if self._commit is not None:
                    await asyncio.wait([self._commit])
                self._settle()
        except TimeoutError:
            log.warning("finish_given_up", timeout_s=FINISH_TIMEOUT_S)

    async def _abandon(self) -> None:
        """End every task of ours; what was sent and not committed is recognised when it returns."""
        tasks: list[asyncio.Task[Any]] = [
            *self._restoring.values(),
            *(task for task in (self._flush, self._commit) if task is not None),
        ]
        self._restoring.clear()
        self._flush = self._commit = None
        self._in_flush, self._in_commit = {}, {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- assignment, restore, gaps

    async def _close_all(self) -> None:
        await self._abandon()
        self._left |= {n: p for n, p in self._open.items() if p.is_settled}
        self._open = {}

    async def _adopt(self) -> None:
        """Take over an assignment: every partition of it is restored before it is read."""
        await self._close_all()
        assignment = self._source.assignment
        self._epoch = assignment.epoch
        self._is_paused = False
        self.stats.rebalances += 1
        self.stats.stopped.clear()
        log.info("partitions_assigned", partitions=sorted(assignment.partitions))
        left, self._left = self._left, {}
        for number in assignment.partitions:
            self._start_restore(number, left.get(number))

    def _start_restore(self, number: int, kept: OpenPartition | None) -> None:
        restoring = asyncio.ensure_future(self._take_over(number, kept))
        restoring.add_done_callback(lambda _: self._source.wake())
        self._restoring[number] = restoring

    async def _take_over(self, number: int, kept: OpenPartition | None) -> OpenPartition | None:
        """Restore one partition, waiting for a broker; `None` where a person has to decide."""
        while True:
            try:
                return await self._takeover.take_over(number, kept)
            except OffsetGapError as exc:
                self._stop_partition(number, str(exc))
                return None
            except TransportError as exc:
                log.warning("restore_waits_for_broker", partition=number, error=str(exc))
                await asyncio.sleep(RETRY_PAUSE_S)

    def _open_restored(self) -> None:
        for number, task in list(self._restoring.items()):
            if not task.done():
                continue
            del self._restoring[number]
            partition = task.result()
            if partition is not None:
                self._open[number] = partition
                self._source.seek(number, partition.next_offset)
                if self._is_paused:
                    self._source.pause([number])
                log.info(
                    "partition_opened",
                    partition=number,
                    offset=partition.next_offset,
                    positions=len(partition.processor.positions),
                )

    def _seek_all(self) -> None:
        # A1: positions may have moved past records that nobody was given.
        for partition in self._open.values():
            self._source.seek(partition.number, partition.next_offset)

    async def _check_gaps(self) -> None:
        """Find the partitions whose position fell out of the log, and stop those alone."""
        await self._finish()  # what is processed already must not wait for a person
        try:
            ranges = await self._source.offset_ranges(self._open.keys())
        except TransportError as exc:
            log.warning("gap_check_waits_for_broker", error=str(exc))
            self._seek_all()  # the gap shows again
            await asyncio.sleep(RETRY_PAUSE_S)
            return
        for number, (first, end) in ranges.items():
            partition = self._open[number]
            if first <= partition.next_offset <= end:
                continue
            try:
                start = starting_point(
                    committed=partition.next_offset,
                    is_known=True,
                    has_positions=True,
                    source_offset=partition.next_offset - 1,
                    first=first,
                    end=end,
                    may_continue=self._settings.on_gap is OnGap.CONTINUE,
                )
            except OffsetGapError as gap:
                self._stop_partition(number, str(gap))
            else:
                partition.next_offset = start.offset
        self._seek_all()

    def _stop_partition(self, number: int, why: str) -> None:
        log.error("partition_stopped", partition=number, why=why)
        self.stats.stopped[number] = why
        self._open.pop(number, None)
        self._source.pause([number])

    async def _is_caught_up(self) -> bool:
        if self._epoch == 0 or self._restoring or self._flush or self._commit:
            return False
        assignment = self._source.assignment  # between two of them nothing is open
        if self._source.is_revoking or assignment.epoch != self._epoch:
            return False
        if self._open.keys() | self.stats.stopped.keys() != assignment.partitions:
            return False
        if any(p.has_work for p in self._open.values()):
            return False
        try:
            ranges = await self._source.offset_ranges(self._open.keys())
        except TransportError:
            return False
        return all(self._open[n].next_offset >= end for n, (_, end) in ranges.items())

    def _report_progress(self) -> None:
        now_s = self._monotonic()
        if now_s - self._progress_s >= PROGRESS_INTERVAL_S:
            self._progress_s = now_s
            log.info(
                "consumer_progress",
                fates={fate.value: count for fate, count in self.stats.fates.items()},
                in_flight=sum(p.next_offset - p.committed for p in self._open.values()),
                partitions=len(self._open),
                stopped=sorted(self.stats.stopped),
            )


def _slice(batch: RecordBatch, start: int, stop: int) -> RecordBatch:
    offsets = batch.offsets[start:stop]
    is_last = stop >= len(batch.offsets)
    return replace(
        batch,
        records=batch.records[start:stop],
        values=batch.values[start:stop],
        offsets=offsets,
        headers={i - start: h for i, h in batch.headers.items() if start <= i < stop},
        next_offset=batch.next_offset if is_last else batch.offsets[stop],
    )


async def consume(
    settings: Settings,
    stop: asyncio.Event,
    *,
    until_caught_up: bool = False,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> ConsumerStats:
    """Run one consumer against real Kafka until it is told to stop; see `TradeConsumer.run`."""
    async with (
        open_publisher(settings, stop, connect_timeout_s=connect_timeout_s) as publisher,
        open_source(settings, stop, connect_timeout_s=connect_timeout_s) as source,
    ):
        consumer = TradeConsumer(
            source=source,
            publisher=publisher,
            changelog=Changelog.of(KafkaLogReader(settings), settings),
            partition_of=source.partition_of,
            settings=settings,
        )
        return await consumer.run(stop, until_caught_up=until_caught_up)


def main(
    *,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="Stop at the end of the topic.")
    ] = False,
    connect_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for a broker.", min=0)
    ] = CONNECT_TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    parent_pid: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Consume trades: validate, keep positions and PnL, dead-letter what cannot be used."""
    settings = start_up()

    async def run(stop: asyncio.Event) -> ConsumerStats:
        watching = asyncio.ensure_future(_stop_with_parent(parent_pid, stop))
        try:
            return await consume(
                settings, stop, until_caught_up=until_caught_up, connect_timeout_s=connect_timeout
            )
        finally:
            watching.cancel()

    grace_s = settings.shutdown_graceful_timeout_s
    stats = asyncio.run(run_with_stop(run, grace_s=grace_s))
    typer.echo(json.dumps(stats.to_json()) if as_json else stats.to_text())
    if stats.stopped:
        raise typer.Exit(EXIT_NEEDS_PERSON)


async def _stop_with_parent(parent_pid: int | None, stop: asyncio.Event) -> None:
    """Stop when the supervisor that started us is gone, rather than live on unwatched."""
    if parent_pid is None:
        return
    while os.getppid() == parent_pid:  # noqa: ASYNC110 - nobody tells a process of this
        await asyncio.sleep(PARENT_POLL_S)
    stop.set()


if __name__ == "__main__":
    run_program(main)
