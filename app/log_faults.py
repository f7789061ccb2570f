"""What is wrong with the log of a partition: a gap, a hole, a batch that nobody can read.

Each is judged here: either the partition goes on, or a person has to look at it and is told why.
To stop it is the loop's.
"""

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from app.config import OnGap, Settings
from app.errors import OffsetGapError, TransportError, UnreadableError
from app.ports import RecordSource
from app.quarantine import Quarantine, UnreadableBatch
from app.starting_point import starting_point
from app.stats import ConsumerStats
from app.takeover import OpenPartition

log = structlog.get_logger(__name__)

_UNREADABLE_TRIES: Final = 5
_UNREADABLE_PAUSE_S: Final = 0.5
"""What broke on its way is read well the next time; what is broken in the log never is."""


class LogFaults:
    """Judges the faults of a log; says `None` where a partition goes on, or why it must not.

    Args:
        source: Gives the bytes of what cannot be read.
        quarantine: Keeps them.
        settings: Whether to go on where records are missing.
        stats: Counts what cannot be read.
        monotonic: Clock of pauses, in seconds.
    """

    def __init__(
        self,
        *,
        source: RecordSource,
        quarantine: Quarantine,
        settings: Settings,
        stats: ConsumerStats,
        monotonic: Callable[[], float],
    ) -> None:
        self._source = source
        self._quarantine = quarantine
        self._goes_on_at_gaps = settings.on_gap is OnGap.CONTINUE
        self._stats = stats
        self._monotonic = monotonic

    def judge_range(self, partition: OpenPartition, first: int, end: int) -> str | None:
        """Judge a partition by what the topic holds: from `first` up to, not including, `end`.

        Its next offset moves where it goes on without records that are gone.
        """
        if first <= partition.next_offset <= end:
            return None
        try:
            start = starting_point(
                committed=partition.next_offset,
                is_known=True,
                has_positions=True,
                source_offset=partition.next_offset - 1,
                first=first,
                end=end,
                may_continue=self._goes_on_at_gaps,
            )
        except OffsetGapError as gap:
            return str(gap)
        partition.next_offset = start.offset
        return None

    def judge_hole(self, partition: OpenPartition, base_offset: int) -> str | None:
        """Judge a hole: records before `base_offset` that were due and that nobody will get."""
        number, first = partition.number, max(partition.next_offset, partition.effects_from)
        why = f"offsets {first} to {base_offset - 1} are missing in the log"
        if self._goes_on_at_gaps:
            log.warning("records_missing", partition=number, why=why)
            partition.next_offset = base_offset
            return None
        return (
            f"{why}. `trade-stream gap accept --partition {number} --to {base_offset}` goes on"
            " without them"
        )

    async def judge_unreadable(self, partition: OpenPartition, why: UnreadableError) -> str | None:
        """Pause a partition before its batch is fetched again; in the end put the bytes aside."""
        partition.unreadable_tries += 1
        if partition.unreadable_tries < _UNREADABLE_TRIES:
            log.warning("batch_read_again", partition=partition.number, why=str(why))
            pause_s = _UNREADABLE_PAUSE_S * 2 ** (partition.unreadable_tries - 1)
            partition.read_again_s = self._monotonic() + pause_s
            self._source.pause([partition.number])
            return None
        if not self._source.is_raw:
            # A good batch before it fails with it: put aside, it would be lost to whoever skips.
            return (
                f"{why}; to find out which one, and to put it aside, start again with"
                " KAFKA_RAW_BATCHES=true"
            )
        try:
            fetched = await self._source.stored_bytes(partition.number, partition.next_offset)
        except TransportError as failure:
            return f"{why}; its bytes could not be fetched: {failure}"
        batch = UnreadableBatch.first_of(fetched, partition.next_offset)
        if partition.next_offset < partition.effects_from:
            # Read again for the margin alone: whoever went on after it has said so by a commit.
            partition.unreadable_tries = 0
            partition.next_offset = batch.next_offset or partition.effects_from
            return None
        return f"{why}; {await self._put_aside(batch, partition.number, str(why))}"

    async def _put_aside(self, batch: UnreadableBatch, number: int, why: str) -> str:
        """Put a batch into quarantine; say where it is, and which command goes on after it."""
        self._stats.quarantined_batches += 1
        accept = f"gap accept --partition {number} --to {batch.next_offset or 'OFFSET'}"
        try:
            path = await self._quarantine.put(batch, number, why)
        except (TransportError, OSError) as failure:
            return (
                f"its bytes could not be kept: {failure}. Mend that and start again, or"
                f" `trade-stream {accept}` goes on without them"
            )
        # Where its end is not known, a person has to find it.
        skip = f"quarantine skip --partition {number}" if batch.next_offset else accept
        return f"its bytes are in {path}; `trade-stream {skip}` goes on after it"

    def due_again(self, partitions: Iterable[OpenPartition]) -> list[int]:
        """Give the partitions whose pause is over, once."""
        now_s = self._monotonic()
        due = [p for p in partitions if 0 < p.read_again_s <= now_s]
        for partition in due:
            partition.read_again_s = 0.0
        return [partition.number for partition in due]
