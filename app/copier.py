"""TradeCopier: every record of the topic into the analytics copy, by a consumer group of its own.

Records are gathered into blocks, which end at multiples of `BLOCK_OFFSETS`, whoever reads and from
where; the last one of a partition is written as far as it goes once nothing more comes, and the
next one begins where it ended. A gap that is passed is a block of its own, without rows. What is
copied of a partition is what the copy itself says: Kafka's commits are hints for lag tools. So a
crash, a lost answer or a second process at the same partition can only write rows again, each at
its own place.

    poll ──▶ open block of its partition ──full, or old──▶ ready ──▶ one write at a time ──▶ commit
"""

import asyncio
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from app.config import OnGap, Settings
from app.copy_codec import CopyBlock
from app.errors import OffsetGapError, TransportError, UnreadableError
from app.ports import RecordBatch, RecordSource
from app.quarantine import UnreadableBatch

log = structlog.get_logger(__name__)

BLOCK_OFFSETS: Final = 50_000
"""Offsets of a block; few enough to be written again for one lost answer, enough for ClickHouse."""
POLL_TIMEOUT_S: Final = 0.1
PROGRESS_INTERVAL_S: Final = 5.0
FINISH_TIMEOUT_S: Final = 8.0
"""How long a stop, or a rebalance, waits for what is in hand."""
_BUFFERED: Final = 6 * BLOCK_OFFSETS
"""Most records held in memory; beyond it the partitions are paused."""
_A_WRITE: Final = 4 * BLOCK_OFFSETS
_OLD_AT_END_S: Final = 1.0
_OLD_S: Final = 10.0
"""A block that does not fill up is written after so long; sooner where its partition has ended."""
_RETRY_PAUSE_S: Final = 0.5
_MAX_BACKOFF_S: Final = 5.0
_UNREADABLE_TRIES: Final = 10
_NOT_COPIED: Final = "They were not copied: `copy clickhouse --rebuild` begins with what there is"


class CopyStore(Protocol):
    """Where the copy is."""

    async def progress(self) -> dict[int, tuple[int, int]]:
        """Give, by partition, where the copy begins and its next offset.

        Raises:
            TransportError: It is away.
        """

    async def write(self, blocks: Sequence[CopyBlock], firsts: Mapping[int, int]) -> None:
        """Store blocks and how far their partitions are copied; safe to repeat.

        Raises:
            TransportError: It is away, or the outcome is unknown.
        """


@dataclass
class CopyStats:
    """What a run has copied.

    Attributes:
        rows: Records that are rows now.
        refused: Records that could not be read as trades.
        writes: Writes that were answered.
        retries: Writes that had to be repeated.
        next_offsets: Where the copy of each partition goes on.
        stopped: Why partitions wait for a person, by partition.
    """

    rows: int = 0
    refused: int = 0
    writes: int = 0
    retries: int = 0
    next_offsets: dict[int, int] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give them as one JSON object."""
        return {
            "rows": self.rows,
            "refused": self.refused,
            "writes": self.writes,
            "retries": self.retries,
            "next_offsets": {str(n): offset for n, offset in sorted(self.next_offsets.items())},
            "stopped_partitions": {str(n): why for n, why in sorted(self.stopped.items())},
        }

    def to_text(self) -> str:
        """Give them for a person."""
        lines = [f"copied {self.rows:,} trades, and the places of {self.refused:,} refused records"]
        lines += [f"partition {n} waits: {why}" for n, why in sorted(self.stopped.items())]
        return "\n".join(lines)


@dataclass
class _Partition:
    """An open partition.

    Attributes:
        first: Where its copy begins.
        next_offset: Where reading goes on.
        written: Where the copy goes on.
        block: What is being gathered, since `since_s`.
        ready: Blocks that wait to be written.
    """

    number: int
    first: int
    next_offset: int
    written: int
    block: CopyBlock | None = None
    since_s: float = 0.0
    ready: list[CopyBlock] = field(default_factory=list)
    unreadable_tries: int = 0

    def end_block(self) -> None:
        """Let what is gathered be written."""
        if self.block is not None:
            self.ready.append(self.block)
            self.block = None


class TradeCopier:
    """Copies the records of one topic as a member of a group.

    Args:
        source: The group member, started.
        store: The copy.
        settings: Default currency, and what is done about gaps.
        monotonic: Clock of every duration, in seconds.
    """

    def __init__(
        self,
        *,
        source: RecordSource,
        store: CopyStore,
        settings: Settings,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = CopyStats()
        self._source = source
        self._store = store
        self._settings = settings
        self._monotonic = monotonic
        self._epoch = 0
        self._open: dict[int, _Partition] = {}
        self._adopting: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._in_write: list[CopyBlock] = []
        self._is_paused = False
        self._told_s = monotonic()

    async def run(self, stop: asyncio.Event, *, until_caught_up: bool = False) -> CopyStats:
        """Copy until told to stop, then write what is in hand.

        Args:
            stop: Set it to stop after the batch in hand.
            until_caught_up: Stop as well when everything up to the end of the topic is copied.

        Raises:
            CopyError: The copy is not fit; a person decides.
            TopicError: The topic is not what it was.
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
        """Do one round; tell whether nothing has come."""
        if self._source.is_revoking:
            await self._finish()
            await self._close_all()
            self._source.confirm_revocation()
        if self._source.assignment.epoch != self._epoch:
            await self._close_all()
            self._epoch = self._source.assignment.epoch
            self.stats.stopped.clear()
            self._adopting = asyncio.ensure_future(self._adopt())
        if self._adopting is not None and self._adopting.done():
            self._adopting.result()
            self._adopting = None
        self._settle()
        self._write_what_is_due()
        self._bound_buffer()
        try:
            batches = await self._source.poll(timeout_s=0)
            if not batches:
                batches = await self._source.poll(timeout_s=POLL_TIMEOUT_S)
        except TransportError as exc:
            log.warning("poll_failed", error=str(exc))
            self._seek_all()
            await asyncio.sleep(_RETRY_PAUSE_S)
            return False
        except OffsetGapError as exc:
            log.warning("position_out_of_range", error=str(exc))
            await self._check_ranges()
            return False
        except UnreadableError as exc:
            await self._note_unreadable(exc)
            await asyncio.sleep(_RETRY_PAUSE_S)
            return False
        for batch in batches:
            self._take(batch)
            await asyncio.sleep(0)  # heartbeats and fetches share this loop
        self._tell_progress()
        return not batches

    # -- from records to blocks

    def _take(self, batch: RecordBatch) -> None:
        partition = self._open.get(batch.partition)
        if partition is None or batch.epoch != self._epoch:
            return  # read for an assignment that is over
        if batch.base_offset > partition.next_offset:
            why = f"offsets {partition.next_offset} to {batch.base_offset - 1} are missing"
            if not self._goes_on(partition, f"{why}. {_NOT_COPIED}", batch.base_offset):
                return
        partition.unreadable_tries = 0
        index = 0
        while partition.next_offset < batch.next_offset:
            boundary = (partition.next_offset // BLOCK_OFFSETS + 1) * BLOCK_OFFSETS
            is_last = batch.next_offset <= boundary
            last = len(batch.offsets) if is_last else bisect_left(batch.offsets, boundary, index)
            next_offset = batch.next_offset if is_last else boundary
            self._block_of(partition).add(batch, index, last, next_offset)
            index, partition.next_offset = last, next_offset
            if next_offset == boundary:
                partition.end_block()

    def _block_of(self, partition: _Partition) -> CopyBlock:
        if partition.block is None:
            currency = self._settings.defaults_currency
            partition.block = CopyBlock(
                partition.number, partition.next_offset, default_currency=currency
            )
            partition.since_s = self._monotonic()
        return partition.block

    # -- from blocks to the copy

    def _write_what_is_due(self) -> None:
        if self._writing is not None:
            return
        now_s, ends = self._monotonic(), self._source.known_ends()
        is_full = self._buffered >= _BUFFERED
        for partition in self._open.values():
            if partition.block is not None:
                has_ended = partition.next_offset >= ends.get(partition.number, 0)
                age_s = now_s - partition.since_s
                if is_full or age_s >= (_OLD_AT_END_S if has_ended else _OLD_S):
                    partition.end_block()
        self._start_write()

    def _start_write(self) -> None:
        blocks: list[CopyBlock] = []
        size = 0
        for partition in self._open.values():
            while partition.ready and size < _A_WRITE:
                block = partition.ready.pop(0)
                size += block.next_offset - block.start
                blocks.append(block)
        if blocks:
            firsts = {number: partition.first for number, partition in self._open.items()}
            self._in_write = blocks
            self._writing = asyncio.ensure_future(self._write(blocks, firsts))
            self._writing.add_done_callback(lambda _: self._source.wake())

    async def _write(self, blocks: Sequence[CopyBlock], firsts: Mapping[int, int]) -> None:
        """Write blocks, the very same ones until it is known that they are stored."""
        attempt = 0
        while True:
            try:
                await self._store.write(blocks, firsts)
            except TransportError as exc:
                attempt += 1
                self.stats.retries += 1
                log.warning("copy_waits_for_clickhouse", error=str(exc), attempt=attempt)
                await asyncio.sleep(_backoff_s(attempt))
            else:
                break
        ends = {block.partition: block.next_offset for block in blocks}
        try:
            await self._source.commit(ends)
        except TransportError as exc:  # a hint: the copy knows better, and the next one covers it
            log.info("commit_failed", error=str(exc))

    def _settle(self) -> None:
        if self._writing is None or not self._writing.done():
            return
        self._writing.result()
        self._writing = None
        self.stats.writes += 1
        for block in self._in_write:
            self.stats.rows += block.rows
            self.stats.refused += block.refused
            self.stats.next_offsets[block.partition] = block.next_offset
            if (partition := self._open.get(block.partition)) is not None:
                partition.written = block.next_offset
        self._in_write = []

    @property
    def _buffered(self) -> int:
        return sum(p.next_offset - p.written for p in self._open.values())

    def _bound_buffer(self) -> None:
        is_full = self._buffered >= _BUFFERED
        if is_full != self._is_paused:
            self._is_paused = is_full  # polling goes on, so that the group sees us alive
            (self._source.pause if is_full else self._source.resume)(self._open.keys())

    async def _finish(self) -> None:
        """Write what is in hand, within a bound; what is not written is read again."""
        deadline_s = self._monotonic() + FINISH_TIMEOUT_S
        while True:
            if self._writing is not None:
                left_s = deadline_s - self._monotonic()
                await asyncio.wait([self._writing], timeout=max(left_s, 0))
                if not self._writing.done():
                    log.warning("write_left_behind", timeout_s=FINISH_TIMEOUT_S)
                    return
                self._settle()
            for partition in self._open.values():
                partition.end_block()
            self._start_write()
            if self._writing is None:
                return

    async def _abandon(self) -> None:
        for task in (self._adopting, self._writing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._adopting = self._writing = None
        self._in_write = []

    async def _close_all(self) -> None:
        await self._abandon()
        self._open.clear()
        self._is_paused = False

    # -- assignment and gaps

    async def _adopt(self) -> None:
        """Open the partitions that are ours where the copy of each goes on."""
        assignment = self._source.assignment
        progress: dict[int, tuple[int, int]] = {}
        ranges: dict[int, tuple[int, int]] = {}
        attempt = 0
        while not ranges:
            try:
                progress = await self._store.progress()
                ranges = await self._source.offset_ranges(assignment.partitions)
            except TransportError as exc:
                attempt += 1
                log.warning("copy_waits", error=str(exc), attempt=attempt)
                await asyncio.sleep(_backoff_s(attempt))
            if not assignment.partitions:
                return
        for number, (first, end) in ranges.items():
            begins, goes_on = progress.get(number, (first, first))
            partition = _Partition(number, begins, goes_on, goes_on)
            if self._judge_range(partition, first, end):
                self._open[number] = partition
                self.stats.next_offsets[number] = partition.written
                self._source.seek(number, partition.next_offset)
                log.info("partition_opened", partition=number, offset=partition.next_offset)
            else:
                self._source.pause([number])

    def _judge_range(self, partition: _Partition, first: int, end: int) -> bool:
        """Tell whether a partition goes on, given what the topic holds."""
        goes_on = partition.next_offset
        if goes_on > end:
            why = f"the topic ends at offset {end}, before offset {goes_on} that was copied"
            self._stop(partition, f"{why}: it is another one. `copy clickhouse --rebuild`")
            return False
        if goes_on < first:
            why = f"offsets {goes_on} to {first - 1} are gone from the topic"
            return self._goes_on(partition, f"{why}. {_NOT_COPIED}", first)
        return True

    def _goes_on(self, partition: _Partition, why: str, at: int) -> bool:
        """Tell whether a partition goes on without records that nobody can copy."""
        if self._settings.on_gap is not OnGap.CONTINUE:
            self._stop(partition, f"{why}. ON_GAP=continue goes on at offset {at}")
            return False
        log.warning("records_missing", partition=partition.number, why=why)
        # Passed like control records, by a block: the copy itself says that it is beyond them.
        self._block_of(partition).next_offset = at
        partition.next_offset = at
        partition.end_block()
        return True

    async def _check_ranges(self) -> None:
        try:
            ranges = await self._source.offset_ranges(self._open.keys())
        except TransportError as exc:
            log.warning("poll_failed", error=str(exc))
            await asyncio.sleep(_RETRY_PAUSE_S)
            ranges = {}
        for number, (first, end) in ranges.items():
            self._judge_range(self._open[number], first, end)
        self._seek_all()

    async def _note_unreadable(self, exc: UnreadableError) -> None:
        partition = self._open.get(exc.partition)
        if partition is not None:
            partition.unreadable_tries += 1
            if partition.unreadable_tries >= _UNREADABLE_TRIES:
                await self._judge_unreadable(partition, str(exc))
        self._seek_all()

    async def _judge_unreadable(self, partition: _Partition, why: str) -> None:
        """Let a partition go on after a batch that is broken in the log, or stop it."""
        if not self._source.is_raw:  # a good batch before it fails with it
            self._stop(partition, f"{why}; to go on, start again with KAFKA_RAW_BATCHES=true")
            return
        try:
            fetched = await self._source.stored_bytes(partition.number, partition.next_offset)
        except TransportError as exc:  # asked again when it is read again
            log.warning("poll_failed", error=str(exc))
            return
        batch = UnreadableBatch.first_of(fetched, partition.next_offset)
        if batch.next_offset is None:
            self._stop(partition, f"{why}, nor where it ends")
        elif self._goes_on(partition, why, batch.next_offset):
            partition.unreadable_tries = 0

    def _stop(self, partition: _Partition, why: str) -> None:
        log.error("partition_stopped", partition=partition.number, why=why)
        self.stats.stopped[partition.number] = why
        self._open.pop(partition.number, None)
        self._source.pause([partition.number])

    def _seek_all(self) -> None:
        # Positions may have moved past records that nobody was given.
        for partition in self._open.values():
            self._source.seek(partition.number, partition.next_offset)

    async def _is_caught_up(self) -> bool:
        if self._epoch == 0 or self._adopting is not None or self._source.is_revoking:
            return False
        if self._source.assignment.epoch != self._epoch:
            return False
        try:
            ranges = await self._source.offset_ranges(self._open.keys())
        except TransportError:
            return False
        return all(self._open[number].written >= end for number, (_, end) in ranges.items())

    def _tell_progress(self) -> None:
        now_s = self._monotonic()
        if now_s - self._told_s >= PROGRESS_INTERVAL_S:
            self._told_s = now_s
            ends = self._source.known_ends()
            counts = Counter(rows=self.stats.rows, refused=self.stats.refused)
            lag = sum(
                max(ends.get(n, 0) - partition.written, 0) for n, partition in self._open.items()
            )
            log.info("copy_progress", **counts, lag=lag, stopped=sorted(self.stats.stopped))


def _backoff_s(attempt: int) -> float:
    most_s = min(_RETRY_PAUSE_S * 2 ** min(attempt, 10), _MAX_BACKOFF_S)
    return random.uniform(0, most_s)  # noqa: S311 - jitter
