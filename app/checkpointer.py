"""Effects and commits beside the loop: when they leave, and what their end means to a partition."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import structlog

from app.checkpoint import FlushResult, PartitionEffects, commit, flush
from app.config import Settings
from app.health import Health, Unready
from app.metrics import ConsumerMetrics, Stage
from app.ports import Ledger, Publisher, RecordSource
from app.stats import ConsumerStats
from app.stores.changelog import Changelog
from app.takeover import OpenPartition
from app.timestamps import NS_PER_S, TimestampError, parse_timestamp

log = structlog.get_logger(__name__)

EFFECTS_A_FLUSH: Final = 300
"""Of a flush that is started because nothing else is to do: some milliseconds of work."""
FINISH_TIMEOUT_S: Final = 12.0
"""Longest wait for the last flush and commit before partitions are given up."""


class Checkpointer:
    """Sends effects and commits offsets, at most one flush and one commit at a time.

    Args:
        partitions: The open partitions by number; the loop's own, which may change at any time.
        source: Commits, and is woken when something has ended.
        publisher: Where effects go.
        ledger: Where trades and positions are stored as well, if anywhere.
        changelog: Writes positions.
        settings: Intervals.
        stats: Takes what has become final.
        health: Told of progress, and of what is waited for.
        metrics: Gets durations, and what was tried again.
        now_ns: Wall clock, for stamps and latency.
        monotonic: Clock of intervals, in seconds.

    Attributes:
        refused: Partitions with an effect that the broker will never take, and why; the loop's to
            take out and act on. The same holds for `lost`, where another owner has newer state.
        progress: Rises with every commit, and every attempt that failed and is made again. A flush
            that ends says nothing: an owner that gets no records writes heartbeats all the same.
    """

    def __init__(
        self,
        partitions: Mapping[int, OpenPartition],
        *,
        source: RecordSource,
        publisher: Publisher,
        ledger: Ledger | None,
        changelog: Changelog,
        settings: Settings,
        stats: ConsumerStats,
        health: Health,
        metrics: ConsumerMetrics,
        now_ns: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._partitions = partitions
        self._source = source
        self._publisher = publisher
        self._ledger = ledger
        self._changelog = changelog
        self._settings = settings
        self._stats = stats
        self._health = health
        self._metrics = metrics
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._flush: asyncio.Task[FlushResult] | None = None
        self._in_flush: dict[int, PartitionEffects] = {}
        self._commit: asyncio.Task[bool] | None = None
        self._in_commit: dict[int, PartitionEffects] = {}
        self._commit_started_s = 0.0
        self.refused: dict[int, str] = {}
        self.lost: dict[int, str] = {}
        self.progress = 0

    @property
    def working(self) -> list[asyncio.Task[Any]]:
        """The flush and the commit that are on their way."""
        return [task for task in (self._flush, self._commit) if task is not None]

    def in_flight(self, partition: OpenPartition) -> int:
        """Count the records of a partition that have no committed fate yet."""
        if partition.number in self.refused or partition.number in self.lost:
            # Its effects are dropped, and the loop has yet to part with it.
            return partition.consumed_records - partition.settled_records
        of_it = [partition.effects, partition.acked]
        of_it += [
            w[partition.number] for w in (self._in_flush, self._in_commit) if partition.number in w
        ]
        return len(partition.processor.parked) + sum(effects.fates.total() for effects in of_it)

    @property
    def send_bytes(self) -> int:
        """Sum up the dead letters and re-keyed trades that wait for an acknowledgement."""
        waiting = (partition.effects for partition in self._partitions.values())
        return sum(effects.send_bytes for effects in chain(waiting, self._in_flush.values()))

    def is_settled(self, partition: OpenPartition) -> bool:
        """Tell whether every effect of a partition so far is acknowledged and committed."""
        number = partition.number
        is_working = number in self._in_flush or number in self._in_commit
        return not (is_working or partition.has_work)

    async def until_committed(self) -> None:
        """Wait for the commit that is on its way, so that what is read next is the newest."""
        if self._commit is not None:
            await asyncio.wait([self._commit])

    # -- starting

    def keep_pace(self) -> None:
        """Flush and commit what has waited for its interval."""
        interval_s = self._settings.commit_interval_ms / 1000
        now_s = self._monotonic()
        self._add_heartbeats(now_s)
        self.start_flush(waited_s=interval_s)
        if now_s - self._commit_started_s >= interval_s:
            self.start_commit()

    def _going_on(self) -> list[OpenPartition]:
        """Give the partitions that the loop has not yet to part with."""
        left = self.refused.keys() | self.lost.keys()
        return [p for number, p in self._partitions.items() if number not in left]

    def _add_heartbeats(self, now_s: float) -> None:
        for partition in self._partitions.values():
            if now_s - partition.last_write_s >= self._settings.positions_heartbeat_s:
                partition.last_write_s = now_s
                partition.effects.heartbeat = self._changelog.heartbeat(
                    partition.number, partition.next_offset - 1
                )

    def start_flush(self, *, waited_s: float = 0.0, at_most: float = math.inf) -> None:
        """Send the effects of partitions, unless a flush is on its way.

        Args:
            waited_s: Leave out the partitions whose last flush was less than so long ago.
            at_most: Take the partitions that waited longest, one at the least, up to so many
                effects: the shorter a flush, the sooner the next one.
        """
        if self._flush is not None:
            return
        now_s = self._monotonic()
        partitions = self._going_on()
        due = [p for p in partitions if now_s - p.flushed_s >= waited_s and p.has_effects]
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
            effects.ledger_offset = partition.ledger_offset
            partition.flushed_s = now_s
            self._in_flush[partition.number] = effects
        if not self._in_flush:
            self._health.clear(Unready.EFFECTS)  # those that waited may have been abandoned
            return
        self._flush = asyncio.ensure_future(
            flush(
                self._in_flush,
                publisher=self._publisher,
                ledger=self._ledger,
                changelog=self._changelog,
                positions={p.number: p.processor.positions for p in partitions},
                health=self._health,
                on_retry=partial(self._note_retry, "flush"),
                now_ns=self._now_ns,
            )
        )
        self._flush.add_done_callback(lambda _: self._source.wake())

    def start_commit(self) -> None:
        """Commit what is acknowledged, unless a commit is on its way."""
        if self._commit is not None:
            return
        for partition in self._going_on():
            # What was parked gets its fate with an offset that may be committed already.
            acked = partition.acked
            if acked.next_offset > partition.committed or acked.fates.total():
                self._in_commit[partition.number] = acked
                partition.acked = PartitionEffects(acked.next_offset)
        if not self._in_commit:
            self._health.clear(Unready.COMMIT)  # what it was about may have been given up
            return
        self._commit_started_s = self._monotonic()
        next_offsets = {number: acked.next_offset for number, acked in self._in_commit.items()}
        self._commit = asyncio.ensure_future(
            commit(self._source, next_offsets, on_retry=self._commit_unanswered)
        )
        self._commit.add_done_callback(lambda _: self._source.wake())

    def _note_retry(self, stage: Stage) -> None:
        self._metrics.count_retry(stage)
        self.progress += 1

    def _commit_unanswered(self) -> None:
        self._note_retry("commit")
        self._health.fail(Unready.COMMIT, "a commit is not answered")

    # -- ending

    def settle(self) -> None:
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
        self.refused |= result.refused
        self.lost |= result.lost
        if kinds := sum((effects.kinds for effects in flushed.values()), Counter[str]()):
            self._metrics.observe_dead_letters(
                kinds, seconds=result.sends_s, failures=result.send_retries
            )
        for number, effects in flushed.items():
            partition = self._partitions.get(number)
            if partition is None or number in result.refused or number in result.lost:
                continue
            partition.changelog_offset = result.changelog_offsets.get(
                number, partition.changelog_offset
            )
            if self._ledger is not None:
                partition.ledger_offset = effects.next_offset
            partition.processor.window.settle()
            partition.effects.sent_late += effects.late_sends
            for key in result.stale_keys.get(number, ()):
                position = partition.processor.positions[key]
                partition.effects.positions.setdefault(key, position)
            if effects.positions:
                partition.last_write_s = self._monotonic()
            partition.acked.absorb(effects)
            self._note_latency(effects.published_at, result.acked_ns)

    def _settle_commit(self, acked: dict[int, PartitionEffects], *, is_committed: bool) -> None:
        self._metrics.observe_commit(self._monotonic() - self._commit_started_s)
        if is_committed:
            self._health.clear(Unready.COMMIT)
            self.progress += 1
            self._health.progress()
            self._stats.commits += 1
            self._stats.last_commit_s = self._now_ns() / NS_PER_S
        else:
            self._stats.failed_commits += 1
        for number, effects in acked.items():
            if is_committed:
                self._stats.fates.update(effects.fates)
                self._stats.reasons.update(effects.reasons)
                self._stats.last_ns = time.monotonic_ns()
            partition = self._partitions.get(number)
            if partition is None:
                if is_committed:  # given up too early
                    self._stats.uncounted_records -= effects.fates.total()
                continue
            if is_committed:
                partition.committed = effects.next_offset
                partition.settled_records += effects.fates.total()
            else:  # not ours any more, or unknown: a later commit covers these fates too
                partition.acked.absorb(effects)

    def _note_latency(self, published_at: list[str], acked_ns: int) -> None:
        for text in published_at:
            try:
                self._stats.latency.add(acked_ns - parse_timestamp(text)[0])
            except TimestampError:
                continue  # not a stamp of ours; it decides nothing

    async def finish(self, *, sends_more: bool = True) -> None:
        """Bring what is in hand to its commit, within a bound.

        Args:
            sends_more: Whether effects that have not left may do so.
        """
        try:
            async with asyncio.timeout(FINISH_TIMEOUT_S):
                for _ in range(2):  # the one that runs, and the one for what came after it
                    if self._flush is not None:
                        await asyncio.wait([self._flush])
                    self.settle()
                    if sends_more:
                        self.start_flush()
                if self._flush is not None:
                    await asyncio.wait([self._flush])
                for _ in range(2):
                    if self._commit is not None:
                        await asyncio.wait([self._commit])
                    self.settle()
                    self.start_commit()
                if self._commit is not None:
                    await asyncio.wait([self._commit])
                self.settle()
        except TimeoutError:
            log.warning("finish_given_up", timeout_s=FINISH_TIMEOUT_S)

    async def abandon(self) -> None:
        """Cancel both; what was sent and not committed is recognised when it comes again."""
        tasks = self.working
        self._flush = self._commit = None
        self._in_flush, self._in_commit = {}, {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
