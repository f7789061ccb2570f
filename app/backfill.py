"""From Kafka alone to a ledger: what a group has booked so far is replayed into the database.

Each partition is replayed from its beginning to the offset that the group has committed, as it was
booked then: a trade that its sender repeated beyond the window was booked again, and is again.
Every write moves the ledger's offset along with its rows, so that a replay that was broken off at
any point goes on there. What comes out is compared with the positions topic.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from app.codec import read_plain
from app.config import KeyMismatch, Settings
from app.dedupe import DedupeWindow
from app.errors import LedgerError, OffsetGapError
from app.ledger_codec import LedgerRows
from app.models import Position
from app.pnl.holding import Holding
from app.ports import Ledger, LedgerWrite, LogReader, Record, RecordBatch
from app.position_codec import decode_position_record, encode_position
from app.reference import Reference
from app.services import TradeProcessor
from app.stores.changelog import Changelog, Restored

_CHUNK: Final = 500
_RECORDS_A_WRITE: Final = 20_000
_BYTES_A_WRITE: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Difference:
    """A position that the replay and the positions topic do not agree on.

    Attributes:
        partition: Where it is.
        key: Which one.
        ledger: The fields that differ, as the replay has them; `None` where it has no such key.
        topic: The same fields as the positions topic has them.
    """

    partition: int
    key: str
    ledger: dict[str, Any] | None
    topic: dict[str, Any] | None


@dataclass(slots=True)
class Backfilled:
    """One partition after its replay.

    Attributes:
        partition: Its number.
        next_offset: Where the ledger goes on.
        resumed_at: Where it had been before; `None`: it had nothing.
        records: Replayed now.
        trades: Rows of trades written now, and likewise the dead letters.
        dead_letters: See `trades`.
        equal: Positions that equal those of the positions topic.
        differences: All others.
    """

    partition: int
    next_offset: int
    resumed_at: int | None
    records: int = 0
    trades: int = 0
    dead_letters: int = 0
    equal: int = 0
    differences: list[Difference] = field(default_factory=list)


class Backfill:
    """Replays partitions of a group that does not run.

    Args:
        settings: Topics, group, currency and placement, as the group has them.
        committed: Where the group goes on, by partition.
        ranges: First offset that the topic holds of each partition, and its end.
        unreadable: Offsets of batches that were put into quarantine and skipped, by partition.
        reader: Reads both topics.
        ledger: Takes every trade that was booked, twice where it was booked twice.
        changelog: The positions of the group.
        partition_of: Partition of a key.
        reference: By which trades are marked as suspect, if any.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        committed: Mapping[int, int],
        ranges: Mapping[int, tuple[int, int]],
        unreadable: Mapping[int, Sequence[range]],
        reader: LogReader,
        ledger: Ledger,
        changelog: Changelog,
        partition_of: Callable[[bytes], int],
        reference: Reference | None = None,
    ) -> None:
        self._settings = settings
        self._committed = committed
        self._ranges = ranges
        self._unreadable = unreadable
        self._reader = reader
        self._ledger = ledger
        self._changelog = changelog
        self._partition_of = partition_of
        self._reference = reference
        self._booked: dict[int, int | None] = {}

    async def claim(self) -> int:
        """Look at every partition before anything of any is written; give how much there is to do.

        Raises:
            OffsetGapError: What is to be replayed is deleted; or the topic is another one.
            LedgerError: The database is not fit.
            TransportError: It is away.
        """
        problems, records = [], 0
        window = DedupeWindow(self._settings.dedupe_window, self._settings.defaults_currency)
        for number, committed in sorted(self._committed.items()):
            first, end = self._ranges.get(number, (0, 0))
            booked = self._booked[number] = await self._ledger.claim(number)
            if booked is not None and booked >= committed:
                continue
            records += committed - (booked or 0)
            if committed > end:
                problems.append(
                    f"partition {number} ends at offset {end}, and the group has processed it up to"
                    f" {committed}: the topic was truncated or made anew"
                )
            elif first > window.start_before(booked or 0):
                problems.append(
                    f"partition {number} begins at offset {first}: what was before is deleted, so"
                    " that the ledger would lack trades that are part of the positions"
                )
        if problems:
            problems.append(
                "To begin a ledger with what the topic still holds, set a new KAFKA_GROUP_ID and"
                " POSITIONS_TOPIC, and an empty DATABASE_URL"
            )
            raise OffsetGapError("\n".join(problems))
        return records

    async def replay(
        self, number: int, on_progress: Callable[[int], None] = lambda _: None
    ) -> Backfilled:
        """Replay one partition into the ledger and compare what comes out.

        Args:
            number: The partition.
            on_progress: Told how many records were replayed; may raise to break off.

        Raises:
            LedgerError: Another process has taken the partition over.
            TransportError: A broker or the database is away; the next run goes on here.
        """
        booked, committed = self._booked[number], self._committed[number]
        restored = await self._changelog.restore(number)
        done = Backfilled(number, max(booked or 0, committed), booked)
        if booked is not None and booked > committed:
            return done  # a consumer has gone on from it: it writes the positions, from the ledger
        processor = self._processor(
            number, await self._ledger.positions(number), applies_from=booked or 0
        )
        pending = _Pending(LedgerRows(number, self._settings.defaults_currency))
        async for chunk in self._chunks(number, processor.window.start_before(booked or 0)):
            self._process(processor, number, chunk, pending)
            done.records += sum(record.offset >= (booked or 0) for record in chunk)
            on_progress(len(chunk))
            if pending.is_full:
                await self._write(done, pending, chunk[-1].offset + 1, restored)
        await self._write(done, pending, committed, restored)
        await self._compare(done, processor, restored)
        return done

    def _processor(
        self, number: int, positions: Iterable[Position], *, applies_from: int
    ) -> TradeProcessor:
        policy = self._settings.key_mismatch
        return TradeProcessor(
            positions,
            default_currency=self._settings.defaults_currency,
            belongs=None
            if policy is KeyMismatch.ACCEPT
            else lambda key: self._partition_of(key.encode()) == number,
            rekeys=policy is KeyMismatch.REKEY,
            dedupe_window=self._settings.dedupe_window,
            applies_from=applies_from,
            reference=self._reference,
            is_strict=self._settings.validation_strict,
        )

    def _process(
        self, processor: TradeProcessor, number: int, chunk: list[Record], pending: "_Pending"
    ) -> None:
        batch = RecordBatch.of(number, 0, chunk, chunk[-1].offset + 1)
        result = processor.process_batch(
            batch,
            effects_from=self._booked[number] or 0,
            events=read_plain(batch.values, batch.headers),
        )
        assert result.rows is not None, "there were events for them"
        for refusal in result.refusals:
            result.rows.add_refusal(batch.offsets[refusal.index], refusal)
        pending.rows.absorb(result.rows)
        pending.touched |= dict.fromkeys(result.touched)
        pending.records += len(chunk)
        pending.size += sum(len(value or b"") for value in batch.values)

    async def _write(
        self, done: Backfilled, pending: "_Pending", next_offset: int, restored: Restored
    ) -> None:
        number = done.partition
        rows = pending.rows
        write = LedgerWrite(
            expected=self._booked[number],
            next_offset=next_offset,
            plain_trades=rows.plain_trades,
            trades=rows.trades,
            dead_letters=rows.dead_letters,
            positions=[_as_stored(h.position(), restored) for h in pending.touched],
        )
        for why in (await self._ledger.write({number: write})).values():
            raise LedgerError(
                f"partition {number}: {why}. Stop whoever writes to this ledger, and run the"
                " backfill again"
            )
        self._booked[number] = next_offset
        done.trades += len(rows.plain_trades) + len(rows.trades)
        done.dead_letters += len(rows.dead_letters)
        pending.clear()

    async def _chunks(
        self, number: int, start: int, *, stop: int | None = None, size: int = _CHUNK
    ) -> AsyncIterator[list[Record]]:
        """Give the records of a partition, none before and after `booked` in one piece."""
        end = self._committed[number] if stop is None else stop
        booked = self._booked[number] or 0
        for since, until in ((start, min(booked, end)), (max(start, booked), end)):
            for readable in _without(range(since, until), self._unreadable.get(number, ())):
                chunk: list[Record] = []
                topic = self._settings.kafka_topic
                async for record in self._reader.read(topic, number, readable.start, readable.stop):
                    chunk.append(record)
                    if len(chunk) == size:
                        yield chunk
                        chunk = []
                if chunk:
                    yield chunk

    async def _compare(
        self, done: Backfilled, processor: TradeProcessor, restored: Restored
    ) -> None:
        """Compare what the ledger holds by now with the positions topic, to the last digit.

        A worker that was killed may have written positions beyond its last commit. What they hold
        more is replayed for the comparison alone: the consumer books it when it goes on.
        """
        number = done.partition
        ours = {position.key: position for position in await self._ledger.positions(number)}
        ahead: dict[int, str] = {
            position.source_offset: key
            for key, position in restored.positions.items()
            if position.source_offset >= done.next_offset
        }
        if ahead:
            end = min(max(ahead) + 1, self._ranges[number][1])
            async for (record,) in self._chunks(number, done.next_offset, stop=end, size=1):
                processor.process_batch(RecordBatch.of(number, 0, [record], record.offset + 1))
                if (key := ahead.get(record.offset)) in processor.positions:
                    ours[str(key)] = _as_stored(processor.positions[str(key)], restored)
        for key in sorted(ours.keys() | restored.positions.keys()):
            mine, theirs = ours.get(key), restored.positions.get(key)
            if mine is None and theirs is not None and not theirs.trade_count:
                continue  # emptied by a rebuild: kept for its offset, which the ledger needs not
            if mine == theirs:
                done.equal += 1
            else:
                done.differences.append(_difference(number, key, mine, theirs))


@dataclass(slots=True)
class _Pending:
    """What is replayed and not yet written."""

    rows: LedgerRows
    touched: dict[Holding, None] = field(default_factory=dict)
    records: int = 0
    size: int = 0

    @property
    def is_full(self) -> bool:
        return self.records >= _RECORDS_A_WRITE or self.size >= _BYTES_A_WRITE

    def clear(self) -> None:
        self.rows = LedgerRows(self.rows.partition, self.rows.currency)
        self.touched = {}
        self.records = self.size = 0


def _as_stored(position: Position, restored: Restored) -> Position:
    """Give a position the generation of its record, or it would lose to that later."""
    stored = restored.positions.get(position.key)
    return position if stored is None else replace(position, generation=stored.generation)


def _without(offsets: range, holes: Sequence[range]) -> list[range]:
    left = []
    start = offsets.start
    for hole in sorted(holes, key=lambda hole: hole.start):
        if start <= hole.start < offsets.stop:
            left.append(range(start, hole.start))
        if hole.start < offsets.stop:
            start = max(start, hole.stop)
    left.append(range(start, offsets.stop))
    return [part for part in left if part]


def _difference(
    partition: int, key: str, ours: Position | None, theirs: Position | None
) -> Difference:
    mine, other = _fields(ours), _fields(theirs)
    if mine is None or other is None:
        return Difference(partition, key, mine, other)
    names = [name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)]
    return Difference(
        partition,
        key,
        {name: mine.get(name) for name in sorted(names)},
        {name: other.get(name) for name in sorted(names)},
    )


def _fields(position: Position | None) -> dict[str, Any] | None:
    if position is None:
        return None
    record = decode_position_record(encode_position(position, group="", topic="", partition=0))
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return fields
