"""Taking a partition over: restore its state, and judge where it goes on, before it is read."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from app.breaker import Breaker
from app.checkpoint import PartitionEffects
from app.config import IdentityScope, KeyMismatch, OnGap, Settings
from app.errors import OffsetGapError, TransportError
from app.ledger_processor import LedgerProcessor
from app.models import NumberedLots, Position
from app.ports import (
    Ledger,
    LedgerWrite,
    ParkedRecord,
    Publisher,
    RecordSource,
    SendState,
)
from app.reference_file import ReferenceFile
from app.refold import StoredPositions, stored_positions
from app.services import TradeProcessor
from app.starting_point import starting_point
from app.stores.changelog import Changelog, Restored
from app.timestamps import NS_PER_MS, NS_PER_S

_STAMP_SPACING_MS: Final = 100
_MOST_STAMPS: Final = 4_096


@dataclass(slots=True)
class OpenPartition:
    """One partition that is ours, with its state.

    Attributes:
        number: In the source topic and in the positions topic.
        processor: Holds the positions.
        next_offset: First offset that is not processed.
        effects_from: First offset whose fate was open when it was taken over.
        committed: First offset that is not committed.
        changelog_offset: Offset that our next write of a position should get.
        ledger_offset: Next source offset that the ledger holds; `None` before its first write, or
            where there is no ledger.
        last_write_s: Monotonic time of the last of them.
        flushed_s: Monotonic time at which the last flush with something of it began.
        effects: What is processed and not yet sent.
        acked: What is acknowledged and not yet committed.
        consumed_records: Records processed whose fate was open, with those that were parked when it
            was taken over, and `settled_records` how many of them have their fate by a commit.
        breaker: Counts what is refused.
        unreadable_tries: How often the batch at `next_offset` could not be read.
        read_again_s: Monotonic time at which it is tried again; 0 where nothing waits for that.
        appended: Offsets of records in flight and their append times (ms), some of them.
    """

    number: int
    processor: TradeProcessor
    next_offset: int
    effects_from: int
    committed: int
    changelog_offset: int
    last_write_s: float
    breaker: Breaker
    ledger_offset: int | None = None
    flushed_s: float = 0.0
    effects: PartitionEffects = field(default_factory=lambda: PartitionEffects(0))
    acked: PartitionEffects = field(default_factory=lambda: PartitionEffects(0))
    consumed_records: int = 0
    settled_records: int = 0
    unreadable_tries: int = 0
    read_again_s: float = 0.0
    appended: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_MOST_STAMPS))

    @property
    def in_flight(self) -> int:
        """Offsets that are processed and not committed; none while a margin is read again."""
        return max(0, self.next_offset - self.committed)

    @property
    def has_effects(self) -> bool:
        """Whether a flush would have something to do."""
        effects = self.effects
        return (
            self.next_offset > max(effects.next_offset, self.acked.next_offset, self.committed)
            or bool(effects.touched or effects.positions or effects.sends or effects.has_parked)
            or effects.heartbeat is not None
        )

    def note_appended(self, offset: int, appended_ms: int) -> None:
        """Remember when a record was appended, unless one was at about the same time."""
        if not self.appended or appended_ms - self.appended[-1][1] >= _STAMP_SPACING_MS:
            self.appended.append((offset, appended_ms))

    def reached_ns(self, now_ns: int, end: int | None, fetched_ms: int) -> int:
        """Give the time up to which everything is processed: at the end, that of the last fetch.

        Behind it what was awaited in time may stand in what is not read yet, after an outage or the
        restore of a backup.

        Args:
            now_ns: Wall clock, UTC nanoseconds.
            end: Of the partition, as the last fetch told it; `None` where it is not known yet.
            fetched_ms: When that was, by the same clock.
        """
        if end is not None and self.next_offset >= end:
            return min(now_ns, fetched_ms * NS_PER_MS)
        return min(now_ns, self.appended[-1][1] * NS_PER_MS) if self.appended else 0

    def oldest_open_ms(self) -> int | None:
        """Give the append time of the first record that is not committed, or one before it."""
        while len(self.appended) > 1 and self.appended[1][0] <= self.committed:
            self.appended.popleft()
        return self.appended[0][1] if self.appended else None

    @property
    def has_work(self) -> bool:
        """Whether anything is left to send or to commit."""
        return (
            self.next_offset > self.committed
            or bool(self.effects.positions or self.effects.has_parked)
            or self.acked.fates.total() > 0
        )


class Takeover:
    """Restores partitions; the arguments are those of `TradeConsumer`.

    Attributes:
        positions_folded: Positions that were folded anew by all takeovers so far.
    """

    def __init__(
        self,
        *,
        source: RecordSource,
        publisher: Publisher,
        ledger: Ledger | None,
        changelog: Changelog,
        partition_of: Callable[[bytes], int],
        settings: Settings,
        reference_file: ReferenceFile | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._ledger = ledger
        self._changelog = changelog
        self._partition_of = partition_of
        self._settings = settings
        self._reference_file = reference_file
        self._monotonic = monotonic
        self.positions_folded = 0

    async def take_over(self, number: int, kept: OpenPartition | None) -> OpenPartition:
        """Restore one partition, or go on with what is still the newest state.

        It comes from the ledger where there is one, and otherwise from the changelog; what the
        changelog lacks of the ledger is to be written to it.

        Args:
            number: The partition.
            kept: Its state when it was last ours, settled, if it was.

        Raises:
            OffsetGapError: A person has to decide how it goes on.
            TopicError: Its positions are another group's, or unreadable.
            TransportError: A broker or the database is away.
        """
        booked = None if self._ledger is None else await self._ledger.claim(number)
        parked = [] if self._ledger is None else await self._ledger.parked(number)
        committed = hint = (await self._source.committed([number]))[number]
        if (
            kept is not None
            and committed == kept.committed
            and booked == kept.ledger_offset
            and await self._changelog.end_offset(number) == kept.changelog_offset
            and all(record.refusal is None for record in parked)
            and kept.processor.parked == {record.offset for record in parked}
        ):
            return kept  # nobody has written since
        restored = await self._changelog.restore(number)
        lots: Mapping[str, NumberedLots] = {}
        if self._ledger is not None:
            if booked is None and (committed is not None or restored.is_known):
                raise OffsetGapError(
                    "the ledger has nothing of it, but this group has consumed it before. Stop its"
                    " consumers and run `trade-stream db backfill`, which books what it has"
                    " consumed; or set a new KAFKA_GROUP_ID and POSITIONS_TOPIC, and an empty"
                    " DATABASE_URL: that starts from the beginning"
                )
            committed = booked  # what Kafka has is a hint, which is mended below
            stored = await stored_positions(
                self._ledger,
                number,
                booked,
                fifo_books=self._settings.books_by_fifo,
                on_folded=self._note_folded,
            )
            self._prefer(stored, restored)
            lots = stored.lots
        await self._check_placement(number, restored)
        first, end = (await self._source.offset_ranges([number]))[number]
        start = starting_point(
            committed=committed,
            is_known=restored.is_known or booked is not None,
            has_positions=bool(restored.positions),
            source_offset=restored.newest[1],
            first=first,
            end=end,
            may_continue=self._settings.on_gap is OnGap.CONTINUE,
        )
        changelog_offset, committed = restored.next_offset, start.offset
        if start.is_first_start:
            changelog_offset, booked = await self._claim(number, start.offset)
        elif self._ledger is not None:
            # Behind the ledger it stays until the changelog has what it lacks.
            if hint is None:
                await self._source.commit({number: first})
            committed = min(first if hint is None else hint, start.offset)
        # Reading again is free, and mends a state that a late write put back; no late write gets
        # into the ledger.
        margin = 0 if self._ledger is not None else self._settings.consumer_takeover_margin
        applies_from = max(first, start.offset - margin)
        processor = self._processor(number, restored.positions.values(), applies_from, parked, lots)
        partition = OpenPartition(
            number=number,
            processor=processor,
            next_offset=max(first, processor.window.start_before(applies_from)),
            effects_from=start.offset,
            committed=committed,
            changelog_offset=changelog_offset,
            ledger_offset=booked,
            last_write_s=self._monotonic(),
            breaker=Breaker(self._settings.dlq_breaker_share),
            consumed_records=len(processor.parked),
        )
        partition.effects.positions = {key: restored.positions[key] for key in restored.stale_keys}
        return partition

    def _note_folded(self) -> None:
        self.positions_folded += 1

    @staticmethod
    def _prefer(stored: StoredPositions, restored: Restored) -> None:
        """Put the ledger's state in the place of the changelog's."""
        booked = {position.key: position for position in stored.positions}
        for key, theirs in restored.positions.items():
            ours = booked.get(key, Position(theirs.book, theirs.symbol, theirs.currency))
            if theirs.generation > ours.generation:
                # Made anew beside the ledger: readers take ours again, or none where it has none.
                is_ours = replace(ours, generation=theirs.generation) == theirs
                generation = theirs.generation if is_ours else theirs.generation + 1
                booked[key] = replace(ours, generation=generation)
        for key, position in booked.items():
            if restored.positions.get(key) != position:
                restored.stale_keys.add(key)
        restored.stale_keys &= booked.keys()
        restored.positions = booked
        offsets = (position.source_offset for position in booked.values())
        restored.newest = (restored.newest[0], max(offsets, default=-1))

    async def _check_placement(self, number: int, restored: Restored) -> None:
        """Refuse a partition where keys are that belong elsewhere, or may be at home elsewhere."""
        if self._settings.key_mismatch is KeyMismatch.ACCEPT:
            return
        count = await self._changelog.source_partitions()
        # A partition that is new has nothing to compare with; the first one is as old as the topic.
        oldest = restored if restored.is_known or not number else await self._changelog.restore(0)
        if oldest.source_partitions not in (0, count) or any(
            self._partition_of(key.encode()) != number for key in restored.positions
        ):
            raise OffsetGapError(
                "it holds positions whose keys belong to another partition, or others do: the"
                " number of partitions was changed, or KEY_MISMATCH was `accept`. Set a new"
                " KAFKA_TOPIC, POSITIONS_TOPIC and KAFKA_GROUP_ID, and with a ledger an empty"
                " DATABASE_URL, and publish the trades anew"
            )

    async def _claim(self, number: int, first: int) -> tuple[int, int | None]:
        """Leave a first sign of this group, then commit where it starts.

        From then on a commit without positions means that they were deleted, and one without
        anything in the ledger that the ledger is a new one.

        Returns:
            The offsets of the changelog and of the ledger to go on with.
        """
        booked = None
        if self._ledger is not None:
            start = LedgerWrite(expected=None, next_offset=first)
            for why in (await self._ledger.write({number: start})).values():
                raise TransportError(f"the ledger takes no first offset: {why}")
            booked = first
        heartbeat = self._changelog.heartbeat(number, first - 1)
        (outcome,) = await self._publisher.publish([heartbeat])
        if outcome.state is not SendState.OK:
            raise TransportError(f"the positions topic takes no records: {outcome.error}")
        if not await self._source.commit({number: first}):
            # Opened without a commit, its positions would look like those of a group that lost it.
            raise TransportError("the first commit was refused: the partition is no longer ours")
        return outcome.offset + 1, booked

    def _processor(
        self,
        number: int,
        positions: Iterable[Position],
        applies_from: int,
        parked: Iterable[ParkedRecord],
        lots: Mapping[str, NumberedLots],
    ) -> TradeProcessor:
        def belongs(key: str) -> bool:
            return self._partition_of(key.encode()) == number

        policy = self._settings.key_mismatch
        belongs_or_any = None if policy is KeyMismatch.ACCEPT else belongs
        reference = None if self._reference_file is None else self._reference_file.reference
        if self._ledger is not None and self._settings.identity is IdentityScope.FULL:
            try:
                processor = LedgerProcessor(
                    positions,
                    default_currency=self._settings.defaults_currency,
                    belongs=belongs_or_any,
                    rekeys=policy is KeyMismatch.REKEY,
                    recent=self._settings.dedupe_window,
                    reference=reference,  # what is restored is marked by it as well
                    is_strict=self._settings.validation_strict,
                    park_max=self._settings.park_max,
                    park_deadline_ns=int(self._settings.park_deadline_s * NS_PER_S),
                    fifo_books=self._settings.books_by_fifo,
                    lots=lots,
                )
            except ValueError as exc:
                raise OffsetGapError(
                    f"{exc}: somebody has changed the tables. Restore a backup of the ledger; or"
                    " start once without its book in FIFO_BOOKS, which folds the position anew from"
                    " its trades, and then with it again"
                ) from exc
            processor.restore(parked)
            return processor
        return TradeProcessor(
            positions,
            default_currency=self._settings.defaults_currency,
            belongs=belongs_or_any,
            rekeys=policy is KeyMismatch.REKEY,
            dedupe_window=self._settings.dedupe_window,
            applies_from=applies_from,
            reference=reference,
            is_strict=self._settings.validation_strict,
        )
