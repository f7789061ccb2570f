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
import os
import time
from asyncio import FIRST_COMPLETED
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any, Final

import structlog
import typer

from app.checkpointer import EFFECTS_A_FLUSH, FINISH_TIMEOUT_S, Checkpointer
from app.collector import Collector
from app.config import Settings
from app.errors import OffsetGapError, StalledError, TransportError, UnreadableError
from app.health import Health, Unready
from app.inquiry import Inquiry
from app.kafka_io.connect import open_publisher, open_source
from app.kafka_io.log_reader import KafkaLogReader
from app.ledger import open_ledger_of
from app.ledger_processor import LedgerProcessor
from app.lifecycle import EXIT_NEEDS_PERSON, end_within, run_program, run_with_stop, start_up
from app.log_faults import LogFaults
from app.metrics import ConsumerCounts, ConsumerMetrics, Stage
from app.monitor import monitored
from app.ports import (
    Ledger,
    Publisher,
    RecordBatch,
    RecordSource,
)
from app.quarantine import Quarantine
from app.reference_file import ReferenceFile, open_reference_file
from app.reporting import consumer_counts
from app.services import BatchResult
from app.stats import ConsumerStats
from app.stores.changelog import Changelog
from app.takeover import OpenPartition, Takeover
from app.timestamps import NS_PER_MS
from app.watchdog import Watchdog

log = structlog.get_logger(__name__)

POLL_TIMEOUT_S: Final = 0.1
PROGRESS_INTERVAL_S: Final = 5.0
PARENT_POLL_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 30.0
RETRY_PAUSE_S: Final = 0.5
BOOK_TIMEOUT_S: Final = 5.0
"""Longest wait for the ledger before the past of a position can be read."""
_SEND_BYTES_IN_FLIGHT: Final = 32 * 1024 * 1024
"""Dead letters and re-keyed trades are few or small; where they are not, partitions are paused."""


class TradeConsumer:
    """Consumes trades of one topic as a member of a group.

    Args:
        source: The group member, started.
        publisher: Where dead letters, re-keyed trades and positions go, started.
        changelog: Where positions are restored from, and written to.
        partition_of: Partition that a record key belongs to.
        ledger: Where trades and positions are stored as well, and restored from, if anywhere.
        settings: Intervals, bounds and policies.
        reference_file: Data and limits by which trades are marked as suspect, if any.
        health: The word of this process on itself; its own without.
        metrics: Gets what is counted when it is asked for, and durations; its own without.
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
        ledger: Ledger | None = None,
        reference_file: ReferenceFile | None = None,
        health: Health | None = None,
        metrics: ConsumerMetrics | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._inquiry = (
            None
            if ledger is None
            else Inquiry(
                ledger,
                recent=settings.dedupe_window,
                until_booked=self._until_booked,
                has_to_finish=self._has_to_finish,
            )
        )
        self._reference_file = reference_file
        self._settings = settings
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._changelog = changelog
        self._takeover = Takeover(
            source=source,
            publisher=publisher,
            ledger=ledger,
            changelog=changelog,
            partition_of=partition_of,
            settings=settings,
            reference_file=reference_file,
            monotonic=monotonic,
        )
        self.stats = ConsumerStats()
        self._collector = Collector(
            settings=settings, stats=self.stats, partition_of=partition_of, now_ns=now_ns
        )
        self._health = health or Health()
        self._metrics = metrics or ConsumerMetrics(topic=settings.kafka_topic)
        self._epoch = 0
        self._stop = asyncio.Event()
        self._open: dict[int, OpenPartition] = {}
        self._left: dict[int, OpenPartition] = {}
        self._restoring: dict[int, asyncio.Task[OpenPartition | None]] = {}
        self._checkpointer = Checkpointer(
            self._open,
            source=source,
            publisher=publisher,
            ledger=ledger,
            changelog=changelog,
            settings=settings,
            stats=self.stats,
            health=self._health,
            metrics=self._metrics,
            now_ns=now_ns,
            monotonic=monotonic,
        )
        self._log_faults = LogFaults(
            source=source,
            quarantine=Quarantine(settings, publisher, now_ns=now_ns),
            settings=settings,
            stats=self.stats,
            monotonic=monotonic,
        )
        self._is_paused = False
        self._progress_s = monotonic()
        self._steps = 0
        self._paused_s = 0.0
        self._health.fail(Unready.ASSIGNMENT, "not a member of the group yet")

    # -- what the watchdog sees

    @property
    def progress(self) -> int:
        """Something that rises with whatever moves: records, commits, restores, failed attempts."""
        restored = self._changelog.records_read + self._takeover.positions_folded
        return self._steps + self._checkpointer.progress + restored

    def is_behind(self, ends: Mapping[int, int]) -> bool:
        """Tell whether a partition of ours that no person has to look at is not committed whole."""
        if Unready.ASSIGNMENT in self._health.ready():
            return False  # while the group shares them out none is ours
        ours = self._source.assignment.partitions - self.stats.stopped.keys()
        return any(
            number not in self._open or self._open[number].committed < ends.get(number, 0)
            for number in ours
        )

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
        self._stop = stop
        try:
            while not stop.is_set():
                is_idle = await self._turn()
                if until_caught_up and is_idle and await self._is_caught_up():
                    break
            await self._finish()
        finally:
            await self._abandon()
            if self._reference_file is not None:
                self._reference_file.close()
        return self.stats

    async def _turn(self) -> bool:
        """Do one round of the loop; tell whether there was nothing to do."""
        self._health.tick()
        self._metrics.offer(self._counts)
        if self._source.is_revoking:
            await self._finish()
            await self._close_all()
            self._health.fail(Unready.ASSIGNMENT, "the group is sharing out its partitions")
            self._source.confirm_revocation()
        self._settle()
        if self._source.assignment.epoch != self._epoch:
            await self._adopt()
        self._open_restored()
        self._refer_to_newest()
        await self._bound_work_in_flight()
        self._give_up_waiting()
        again = self._log_faults.due_again(self._open.values())
        if again and not self._is_paused:
            self._source.resume(again)
        try:
            batches = await self._source.poll(timeout_s=0)
            if not batches:
                # Nothing is at hand: what is processed need not wait for more, nor for much else.
                self._checkpointer.start_flush(at_most=EFFECTS_A_FLUSH)
                batches = await self._source.poll(timeout_s=POLL_TIMEOUT_S)
        except TransportError as exc:
            self._health.fail(Unready.BROKER, str(exc))
            self._note_retry("poll")
            self._metrics.count_error("transient", type(exc.__cause__ or exc).__name__)
            log.warning("poll_failed", error=str(exc))
            self._seek_all()
            await asyncio.sleep(RETRY_PAUSE_S)
            return False
        except UnreadableError as exc:
            await self._finish()  # what is processed already must not wait for a person
            if (partition := self._open.get(exc.partition)) is not None:
                why = await self._log_faults.judge_unreadable(partition, exc)
                self._stop_if(exc.partition, why)
            self._seek_all()
            return False
        except OffsetGapError as exc:
            log.warning("position_out_of_range", error=str(exc))
            await self._check_gaps()
            return False
        self._health.clear(Unready.BROKER)
        await self._process_all(batches)
        self._checkpointer.keep_pace()
        self._health.holds_lag = any(p.has_work for p in self._open.values())
        self._report_progress()
        return not batches

    def _note_retry(self, stage: Stage) -> None:
        """Note an attempt that failed and is made again: it waits, and is not stuck."""
        self._metrics.count_retry(stage)
        self._steps += 1

    def _refer_to_newest(self) -> None:
        """Mark the next trades by what the file of reference data says by now."""
        if self._reference_file is not None and self._reference_file.look():
            for partition in self._open.values():
                partition.processor.refer_to(self._reference_file.reference)

    async def _process_all(self, batches: Sequence[RecordBatch]) -> None:
        try:
            for batch in batches:
                try:
                    await self._process(batch)
                except OffsetGapError as exc:  # what the ledger has of a position makes no sense
                    await self._finish()  # what is processed already must not wait for a person
                    if batch.partition in self._open:  # otherwise it is restored, and found again
                        self._stop_partition(batch.partition, str(exc))
            if self._has_to_finish():
                self._seek_all()  # the rest comes again
            self._health.clear(Unready.LEDGER)
        except TransportError as exc:  # the ledger could not be asked: the rest comes again
            self._health.fail(Unready.LEDGER, str(exc))
            self._note_retry("ledger")
            self._metrics.count_error("transient", type(exc.__cause__ or exc).__name__)
            log.warning("ledger_not_asked", error=str(exc))
            self._seek_all()
            await asyncio.sleep(RETRY_PAUSE_S)

    def _has_to_finish(self) -> bool:
        """Whether what is in hand is to be finished after this chunk, for a stop or a rebalance."""
        return self._stop.is_set() or self._source.is_revoking

    async def _process(self, batch: RecordBatch) -> None:
        partition = self._open.get(batch.partition)
        if self._has_to_finish():
            return
        if partition is None or batch.epoch != self._epoch:
            return  # read for an assignment that is over, or before its gate was opened
        is_hole = batch.base_offset > max(partition.next_offset, partition.effects_from)
        if is_hole and not await self._check_hole(partition, batch.base_offset):
            return
        if self.stats.first_ns is None and batch.values:
            self.stats.first_ns = time.monotonic_ns()
        self.stats.consumed_bytes += _size(batch.values)
        if batch.records:
            partition.note_appended(batch.offsets[0], batch.records[0].timestamp)
        began_s = self._monotonic()
        size = self._settings.consumer_chunk_records
        for start in range(0, len(batch.values), size):
            chunk = batch if len(batch.values) <= size else _slice(batch, start, start + size)
            events = None if self._inquiry is None else await self._inquiry.read(partition, chunk)
            if batch.epoch != self._source.assignment.epoch:
                return
            started_s = self._monotonic()
            result = partition.processor.process_batch(
                chunk,
                effects_from=partition.effects_from,
                events=events,
                now_ns=self._now_ns(),
            )
            self._metrics.observe_process(self._monotonic() - started_s)
            count = _count_open(chunk.offsets, partition.effects_from)
            refused = len(result.refusals) + len(result.late_refusals)
            if partition.breaker.note(count, refused):
                await self._hold_back(partition, result)
                return
            self._collector.collect(partition, chunk, result, count=count)
            await asyncio.sleep(0)  # heartbeats, fetches and sends share this loop
            if batch.epoch != self._source.assignment.epoch or self._has_to_finish():
                return
        partition.next_offset = batch.next_offset
        partition.unreadable_tries = 0
        self._steps += 1
        self._metrics.observe_batch(len(batch.values), self._monotonic() - began_s)

    async def _until_booked(self, partition: OpenPartition) -> None:
        """Wait until the ledger has all that is processed of a partition.

        Raises:
            TransportError: It does not come to have it.
        """
        async with _in_time(BOOK_TIMEOUT_S, "the ledger does not take what is processed"):
            while partition.next_offset > max(partition.ledger_offset or 0, partition.effects_from):
                self._checkpointer.start_flush()
                if not (working := self._checkpointer.working):
                    raise TransportError("nothing is on its way to the ledger")
                await asyncio.wait(working, return_when=FIRST_COMPLETED)
                self._settle()
                if self._open.get(partition.number) is not partition:
                    raise TransportError("the partition was given up")

    async def _hold_back(self, partition: OpenPartition, result: BatchResult) -> None:
        """Stop a partition before a flood of dead letters leaves; what has left already ends."""
        # Nothing more may leave: its holdings are ahead of the dead letters that are held back.
        await self._checkpointer.finish(sends_more=False)
        self._part_with_refused()
        if self._open.get(partition.number) is partition:
            late = [r.refusal for r in result.late_refusals if r.refusal is not None]
            refusals = Counter(refusal.reason for refusal in result.refusals + late)
            ((reason, _),) = refusals.most_common(1)
            self._stop_partition(
                partition.number,
                f"{partition.breaker}, at last mostly as {reason}; they are held back. Mend the"
                " cause and start again, or let them become dead letters: DLQ_BREAKER_SHARE=1",
            )

    def _give_up_waiting(self) -> None:
        """Refuse the parked records that have waited for too long."""
        if self._is_paused:
            return
        waiting = [
            (partition, partition.processor)
            for partition in self._open.values()
            if isinstance(partition.processor, LedgerProcessor) and partition.processor.has_parked
        ]
        if not waiting:
            return
        ends, fetched_ms = self._source.known_ends(), self._source.fetched_ms()
        for partition, processor in waiting:
            number = partition.number
            reached_ns = partition.reached_ns(
                self._now_ns(), ends.get(number), fetched_ms.get(number, 0)
            )
            at_most = self._settings.consumer_chunk_records
            if late := processor.overdue(reached_ns, at_most=at_most):
                self._collector.collect_late(partition, late)

    async def _bound_work_in_flight(self) -> None:
        """Hold the partitions while too much waits for acknowledgement: no unbounded growth."""
        if self._is_full:
            self._checkpointer.start_flush()
            self._checkpointer.start_commit()
            working = self._checkpointer.working
            await asyncio.wait(working, timeout=POLL_TIMEOUT_S, return_when=FIRST_COMPLETED)
            self._settle()
        if self._is_full != self._is_paused:
            self._is_paused = self._is_full  # polling goes on, so that the group sees us alive
            if self._is_paused:
                self._paused_s = self._monotonic()
            else:
                self.stats.backpressure_s += self._monotonic() - self._paused_s
            change = self._source.pause if self._is_paused else self._source.resume
            change(self._open.keys())

    @property
    def _is_full(self) -> bool:
        in_flight = sum(p.in_flight for p in self._open.values())
        return (
            in_flight >= self._settings.commit_every
            or self._checkpointer.send_bytes >= _SEND_BYTES_IN_FLIGHT
        )

    # -- what flushes and commits have come to

    def _settle(self) -> None:
        self._checkpointer.settle()
        self._part_with_refused()

    async def _finish(self) -> None:
        """Bring what is in hand to its commit, within a bound."""
        await self._checkpointer.finish()
        self._part_with_refused()

    def _part_with_refused(self) -> None:
        refused, self._checkpointer.refused = self._checkpointer.refused, {}
        for number, why in refused.items():
            self._stop_partition(number, why)
        lost, self._checkpointer.lost = self._checkpointer.lost, {}
        for number, why in lost.items():
            # A late write of a former owner with newer state: what we hold is not the newest.
            log.warning("partition_restored_again", partition=number, why=why)
            partition = self._open.get(number)
            if partition is not None:
                self._doubt(partition)
                self._give_up(number)
                self._start_restore(number, None)

    async def _abandon(self) -> None:
        """End every task of ours; what was sent and not committed is recognised when it returns."""
        restoring = list(self._restoring.values())
        self._restoring.clear()
        for task in restoring:
            task.cancel()
        await asyncio.gather(*restoring, return_exceptions=True)
        await self._checkpointer.abandon()

    # -- assignment, restore, gaps

    async def _close_all(self) -> None:
        # What is broken off is not settled: whether it has left, only the log and the ledger know.
        is_settled = self._checkpointer.is_settled
        self._left |= {n: p for n, p in self._open.items() if is_settled(p)}
        await self._abandon()
        for number in list(self._open):
            self._give_up(number)

    async def _adopt(self) -> None:
        """Take over an assignment: every partition of it is restored before it is read."""
        await self._close_all()
        assignment = self._source.assignment
        self._epoch = assignment.epoch
        self.stats.rebalances += 1
        self.stats.stopped.clear()
        self._health.clear(Unready.STOPPED_PARTITIONS)
        self._health.clear(Unready.ASSIGNMENT)
        log.info("partitions_assigned", partitions=sorted(assignment.partitions))
        left, self._left = self._left, {}
        for number in assignment.partitions:
            self._start_restore(number, left.get(number))

    def _start_restore(self, number: int, kept: OpenPartition | None) -> None:
        restoring = asyncio.ensure_future(self._take_over(number, kept))
        restoring.add_done_callback(lambda _: self._source.wake())
        self._restoring[number] = restoring
        self._health.fail(Unready.RESTORE, "positions are being restored")

    async def _take_over(self, number: int, kept: OpenPartition | None) -> OpenPartition | None:
        """Restore one partition, however often it takes; `None` where a person has to decide."""
        await self._checkpointer.until_committed()
        while True:
            try:
                return await self._takeover.take_over(number, kept)
            except OffsetGapError as exc:
                self._stop_partition(number, str(exc))
                return None
            except TransportError as exc:
                self._health.fail(Unready.RESTORE, str(exc))
                self._note_retry("restore")
                log.warning("restore_waits", partition=number, error=str(exc))
                await asyncio.sleep(RETRY_PAUSE_S)

    def _open_restored(self) -> None:
        for number, task in list(self._restoring.items()):
            if not task.done():
                continue
            del self._restoring[number]
            partition = task.result()
            if partition is not None:
                self._open[number] = partition
                self._doubt(partition)
                if self._reference_file is not None:
                    partition.processor.refer_to(self._reference_file.reference)
                # What was parked when it was taken over gets its fate here.
                waiting = partition.consumed_records - partition.settled_records
                self.stats.uncounted_records -= waiting
                self._steps += 1
                self._source.seek(number, partition.next_offset)
                # One that is restored again may have been paused when it was given up.
                change = self._source.pause if self._is_paused else self._source.resume
                change([number])
                log.info(
                    "partition_opened",
                    partition=number,
                    offset=partition.next_offset,
                    positions=len(partition.processor.positions),
                )
        if not self._restoring:
            self._health.clear(Unready.RESTORE)
            if self._epoch:
                self._health.started()

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
            self._note_retry("gap_check")
            self._seek_all()  # the gap shows again
            await asyncio.sleep(RETRY_PAUSE_S)
            return
        for number, (first, end) in ranges.items():
            self._stop_if(number, self._log_faults.judge_range(self._open[number], first, end))
        self._seek_all()

    async def _check_hole(self, partition: OpenPartition, base_offset: int) -> bool:
        """Tell whether a partition goes on although records before `base_offset` are missing."""
        why = self._log_faults.judge_hole(partition, base_offset)
        if why is not None:
            await self._finish()  # what is processed already must not wait for a person
            self._stop_if(partition.number, why)
        return self._open.get(partition.number) is partition

    def _stop_if(self, number: int, why: str | None) -> None:
        if why is not None:
            self._stop_partition(number, why)

    def _stop_partition(self, number: int, why: str) -> None:
        log.error("partition_stopped", partition=number, why=why)
        self.stats.stopped[number] = why
        stopped = ", ".join(str(n) for n in sorted(self.stats.stopped))
        self._health.fail(Unready.STOPPED_PARTITIONS, f"partitions {stopped} wait for a person")
        self._give_up(number)
        self._source.pause([number])

    def _doubt(self, partition: OpenPartition) -> None:
        """Believe of none of the records up to here that its trade is new."""
        if self._inquiry is not None:
            self._inquiry.doubt(partition.number, partition.next_offset)

    def _give_up(self, number: int) -> None:
        """Close a partition, if it is open; what it has not committed comes again."""
        partition = self._open.pop(number, None)
        if partition is None:
            return
        self.stats.uncounted_records += partition.consumed_records - partition.settled_records
        window = partition.processor.window
        self.stats.evictions, window.evictions = self.stats.evictions + window.evictions, 0

    async def _is_caught_up(self) -> bool:
        if self._epoch == 0 or self._restoring or self._checkpointer.working:
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

    def _counts(self) -> ConsumerCounts:
        return consumer_counts(
            self.stats,
            self._open,
            checkpointer=self._checkpointer,
            source=self._source,
            health=self._health,
            is_paused=self._is_paused,
            is_reference_refused=(
                self._reference_file is not None and self._reference_file.is_refused
            ),
            now_ms=self._now_ns() // NS_PER_MS,
        )

    def _report_progress(self) -> None:
        now_s = self._monotonic()
        if now_s - self._progress_s >= PROGRESS_INTERVAL_S:
            self._progress_s = now_s
            log.info(
                "consumer_progress",
                fates={fate.value: count for fate, count in self.stats.fates.items()},
                in_flight=sum(p.in_flight for p in self._open.values()),
                partitions=len(self._open),
                stopped=sorted(self.stats.stopped),
            )


@asynccontextmanager
async def _in_time(timeout_s: float, error: str) -> AsyncIterator[None]:
    """Bound what is awaited inside; what is late is an outage."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as exc:
        raise TransportError(error) from exc


def _count_open(offsets: Sequence[int], effects_from: int) -> int:
    """Count the records whose fate was open when their partition was taken over."""
    if offsets and offsets[0] >= effects_from:
        return len(offsets)
    return len(offsets) - bisect_left(offsets, effects_from)


def _size(values: Sequence[bytes | None]) -> int:
    """Sum up the bytes of values."""
    try:
        return sum(map(len, values))  # type: ignore[arg-type]  # a tombstone: TypeError
    except TypeError:
        return sum(len(value or b"") for value in values)


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
    health = Health(dead_after_s=settings.watchdog_timeout_s)
    metrics = ConsumerMetrics(topic=settings.kafka_topic)
    reference_file = await open_reference_file(settings, monotonic=time.monotonic)
    async with (
        monitored(settings, health, metrics.process),
        open_publisher(settings, stop, connect_timeout_s=connect_timeout_s) as publisher,
        open_ledger_of(settings, stop, connect_timeout_s=connect_timeout_s) as ledger,
        open_source(settings, stop, connect_timeout_s=connect_timeout_s) as source,
    ):
        reader = KafkaLogReader(settings)
        consumer = TradeConsumer(
            source=source,
            publisher=publisher,
            changelog=Changelog.of(reader, settings),
            partition_of=source.partition_of,
            settings=settings,
            ledger=ledger,
            reference_file=reference_file,
            health=health,
            metrics=metrics,
        )
        watchdog = Watchdog(
            consumer,
            reader=reader,
            topic=settings.kafka_topic,
            timeout_s=settings.watchdog_timeout_s,
            monotonic=time.monotonic,
        )
        try:
            return await _unless_stalled(
                consumer.run(stop, until_caught_up=until_caught_up), watchdog.watch()
            )
        except StalledError:
            end_within(settings.shutdown_graceful_timeout_s)  # its clients may be what is stuck
            raise


async def _unless_stalled(
    running: Coroutine[Any, Any, ConsumerStats], watching: Coroutine[Any, Any, None]
) -> ConsumerStats:
    """Await a run, or break it off with what the watchdog raises."""
    run, watch = asyncio.ensure_future(running), asyncio.ensure_future(watching)
    try:
        await asyncio.wait([run, watch], return_when=FIRST_COMPLETED)
        if not run.done():
            watch.result()
        return run.result()
    finally:
        for task in (run, watch):
            task.cancel()
        await asyncio.wait([run, watch], timeout=FINISH_TIMEOUT_S)


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
