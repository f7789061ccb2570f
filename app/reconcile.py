"""Hold the analytics copy against the ledger or, where there is none, against the topic itself.

Both sides hash the text of each row in their own SQL and add the hashes up for ranges of offsets,
in no order. A range whose count or sum differs is split, and what is left of it is compared row by
row. What is compared lies below what both sides have finished, and is changed by nobody.

A ledger holds booked trades only, so of the copy the rows at other places are taken off first, and
each of them has to be explained: dead-lettered, pruned, or of a trade that is booked at another
place.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

import structlog

from app.config import Settings
from app.copy_codec import TRADE_COLUMNS, VERSION_NOT_TOLD, CopyBlock
from app.ports import LogReader, Record, RecordBatch
from app.stores.clickhouse import ClickHouseCopy, CopiedRow, Digest
from app.stores.ledger_digests import LedgerDigests, Place

log = structlog.get_logger(__name__)

_WINDOW: Final = 2**20
"""Offsets that are looked at together: a bound of time and memory."""
_RANGE: Final = 2**16
_CELL: Final = 2**8
_MAX_SPANS: Final = 32
"""Of one range; where more cells differ, it is compared row by row at once."""
_MAX_GAPS: Final = 5_000
_MAX_IDS: Final = 50_000
_MAX_SHOWN: Final = 1_000
_BLOCK: Final = 50_000
_CHUNK: Final = 500
_COLUMNS: Final = tuple(name for name, _ in TRADE_COLUMNS if name != "appended_at")
_MASK: Final = 2**64
_NOTHING: Final = (0, 0)
_BEFORE: Final = "before the first record of the ledger"
_ELSEWHERE: Final = "booked at another place: sent twice, or re-keyed"


class Kind(StrEnum):
    """In what a place differs."""

    MISSING = "missing"
    SURPLUS = "surplus"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Difference:
    """One place at which the copy is not as it should be."""

    partition: int
    offset: int
    kind: Kind
    detail: str


@dataclass
class Reconciliation:
    """What a comparison has come to.

    Attributes:
        against: `ledger` or `topic`.
        rows: Rows of the copy that were compared.
        refused: Refused records that were compared.
        explained: Rows of the copy that the ledger has not booked at their place, by why.
        skipped: Rows that nothing is left to compare with, by why.
        ranges: Ranges that were compared.
        differing: Ranges that differ, as partition, first offset and end.
        counts: Differences by kind.
        differences: The first of them.
        repaired: How many were repaired.
        unrepaired: Why others were not.
    """

    against: str
    rows: int = 0
    refused: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    ranges: int = 0
    differing: list[tuple[int, int, int]] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    repaired: int = 0
    unrepaired: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs, or nothing any more."""
        return self.counts.total() == self.repaired and not self.unrepaired

    def to_json(self) -> dict[str, Any]:
        """Give it as one JSON object."""
        return {
            "against": self.against,
            "equal": self.is_equal,
            "rows": self.rows,
            "refused": self.refused,
            "explained": dict(self.explained),
            "skipped": dict(self.skipped),
            "ranges": self.ranges,
            "differing_ranges": [
                {"partition": p, "from": start, "to": end - 1} for p, start, end in self.differing
            ],
            "counts": {kind.value: count for kind, count in self.counts.items()},
            "differences": [
                {"partition": d.partition, "offset": d.offset, "kind": d.kind, "detail": d.detail}
                for d in self.differences
            ],
            "repaired": self.repaired,
            "unrepaired": self.unrepaired,
        }

    def to_text(self) -> str:
        """Give it for a person."""
        lines = [
            (
                f"compared {self.rows:,} rows and {self.refused:,} refused records with the"
                f" {self.against}, in {self.ranges:,} ranges"
            )
        ]
        lines += [f"  {count:,} rows: {why}" for why, count in sorted(self.explained.items())]
        lines += [f"  {count:,} not compared: {why}" for why, count in sorted(self.skipped.items())]
        lines += [
            f"partition {p}, offsets {start} to {end - 1} differ"
            for p, start, end in self.differing
        ]
        lines += [
            f"  partition {d.partition}, offset {d.offset}: {d.kind}: {d.detail}"
            for d in self.differences
        ]
        if (more := self.counts.total() - len(self.differences)) > 0:
            lines.append(f"  and {more:,} more")
        lines += [f"not repaired: {why}" for why in self.unrepaired]
        if not self.counts and not self.unrepaired:
            lines.append("equal")
        elif self.is_equal:
            lines.append(f"{self.repaired:,} differences were repaired; equal now")
        else:
            lines.append(f"{self.counts.total():,} differences, {self.repaired:,} repaired")
        return "\n".join(lines)


class _Side(Protocol):
    """One side of a comparison, of one partition."""

    async def digests(self, start: int, end: int, *, size: int) -> dict[int, Digest]:
        """Give the digest of each range of `size` offsets that holds rows, by its number."""

    async def texts(self, start: int, end: int) -> dict[int, str]:
        """Give the texts of rows, by offset."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the copy's database; rows at some offsets are left out of it."""

    copy: ClickHouseCopy
    name: str
    partition: int
    without: Mapping[int, CopiedRow] = field(default_factory=dict)

    async def digests(self, start: int, end: int, *, size: int) -> dict[int, Digest]:
        found = await self.copy.digests(self.name, self.partition, start, end, size=size)
        for offset, row in self.without.items():
            if start <= offset < end:
                count, total = found[offset // size]
                found[offset // size] = (count - 1, (total - row.number) % _MASK)
        return {number: digest for number, digest in found.items() if digest != _NOTHING}

    async def texts(self, start: int, end: int) -> dict[int, str]:
        found = await self.copy.texts(self.name, self.partition, start, end)
        return {offset: text for offset, text in found.items() if offset not in self.without}


@dataclass(frozen=True, slots=True)
class _Booked:
    """The trades of a ledger."""

    ledger: LedgerDigests
    partition: int

    async def digests(self, start: int, end: int, *, size: int) -> dict[int, Digest]:
        return await self.ledger.digests(self.partition, start, end, size=size)

    async def texts(self, start: int, end: int) -> dict[int, str]:
        return await self.ledger.texts(self.partition, start, end)


@dataclass(slots=True)
class _Found:
    """What the comparison of some offsets has found."""

    rows: int = 0
    refused: int = 0
    ranges: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[int, int]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


class Reconciler:
    """Compares a copy, and repairs it.

    Args:
        copy: The copy.
        reader: Reads the topic: what is copied of it, and what it is repaired with.
        settings: The topic, and the currency of a trade that names none.
        ledger: What it is held against, instead of the topic.
    """

    def __init__(
        self,
        *,
        copy: ClickHouseCopy,
        reader: LogReader,
        settings: Settings,
        ledger: LedgerDigests | None = None,
    ) -> None:
        self._copy = copy
        self._reader = reader
        self._settings = settings
        self._ledger = ledger
        self._begins: dict[int, int] = {}
        self._booked_to: dict[int, int] = {}

    async def run(self, *, repair: bool = False) -> Reconciliation:
        """Compare everything that both sides have.

        Args:
            repair: Put in the copy what the topic holds, where they differ, and compare again.

        Raises:
            TransportError: Something that is needed is away.
        """
        result = Reconciliation("topic" if self._ledger is None else "ledger")
        if self._ledger is None or repair:
            await self._copy.prepare_check()
        try:
            topic = await self._reader.offset_ranges(self._settings.kafka_topic)
            for partition, start, end in await self._bounds(topic, result):
                for low in range(start, end, _WINDOW):
                    high = min(low + _WINDOW, end)
                    await self._look_at(result, partition, low, high, topic, repair=repair)
        finally:
            if self._ledger is None or repair:
                await self._copy.drop_check()
        return result

    async def _bounds(
        self, topic: Mapping[int, tuple[int, int]], result: Reconciliation
    ) -> list[tuple[int, int, int]]:
        """Give partitions and offsets that can be compared; note what cannot."""
        other = topic
        if self._ledger is not None:
            other = await self._ledger.ranges()
            self._begins = {number: first for number, (first, _) in other.items()}
            self._booked_to = {number: end for number, (_, end) in other.items()}
            # From where the copy begins: what the ledger has re-keyed leaves nothing at its place.
            other = {number: (0, end) for number, (_, end) in other.items()}
        bounds = []
        progress = await self._copy.progress()
        for partition, (first, end) in sorted(other.items()):
            if partition not in progress and end > first:
                result.unrepaired.append(
                    f"partition {partition} is not copied: run `copy clickhouse`"
                )
        for partition, (begins, goes_on) in sorted(progress.items()):
            first, end = other.get(partition, (goes_on, goes_on))
            if self._ledger is None and goes_on > end:
                result.unrepaired.append(
                    f"partition {partition} is copied to offset {goes_on} and the topic ends at"
                    f" {end}: it is another one; `copy clickhouse --rebuild`"
                )
            low, high = max(begins, first), min(goes_on, end)
            for why, count in (
                (f"before the {result.against} begins", min(low, goes_on) - begins),
                (f"not in the {result.against} yet", goes_on - max(high, low)),
                ("not in the copy yet", end - max(high, low)),
            ):
                if count > 0:
                    result.skipped[f"offsets {why}"] += count
            bounds.append((partition, low, high))
        return bounds

    async def _look_at(
        self,
        result: Reconciliation,
        partition: int,
        start: int,
        end: int,
        topic: Mapping[int, tuple[int, int]],
        *,
        repair: bool,
    ) -> None:
        found = await self._compare(partition, start, end)
        result.rows += found.rows
        result.refused += found.refused
        result.ranges += found.ranges
        result.explained.update(found.explained)
        result.differing += [(partition, low, high) for low, high in found.spans]
        result.counts.update(difference.kind for difference in found.differences)
        room = _MAX_SHOWN - len(result.differences)
        result.differences += found.differences[: max(room, 0)]
        if repair and found.differences:
            first, last = topic[partition]
            held = (max(first, start), min(last, end))
            await self._repair(result, partition, found.differences, held)

    # -- comparing

    async def _compare(self, partition: int, start: int, end: int) -> _Found:
        if self._ledger is None:
            await self._fill_check(partition, start, end)
            return await self._compare_with_topic(partition, start, end)
        async with self._ledger.moment():  # what happens to it meanwhile would be half seen
            return await self._compare_with_ledger(self._ledger, partition, start, end)

    async def _compare_with_topic(self, partition: int, start: int, end: int) -> _Found:
        found = _Found()
        trades = _Table(self._copy, "trades", partition)
        there = _Table(self._copy, "check_trades", partition)
        found.rows += await self._compare_sides(found, partition, trades, there, start, end)
        refused = _Table(self._copy, "refused", partition)
        there = _Table(self._copy, "check_refused", partition)
        found.refused += await self._compare_sides(found, partition, refused, there, start, end)
        return found

    async def _compare_with_ledger(
        self, ledger: LedgerDigests, partition: int, start: int, end: int
    ) -> _Found:
        found = _Found()
        others = await self._not_booked(ledger, partition, start, end)
        parked = await ledger.parked(partition, start, end) & others.keys()
        letters = await ledger.dead_letters(partition, start, end)
        if parked:
            found.explained["parked: they wait for another event of their trade"] += len(parked)
        unexplained = {offset: row for offset, row in others.items() if offset not in parked}
        await self._explain(found, ledger, partition, unexplained, letters)
        copied = _Table(self._copy, "booked", partition, others)
        booked = _Booked(ledger, partition)
        found.rows += await self._compare_sides(found, partition, copied, booked, start, end)
        found.rows += len(others)
        refused = await self._copy.refused(partition, start, end)
        found.refused += len(refused)
        for offset in sorted(refused.keys() | letters.keys()):
            why, (said, _) = refused.get(offset), letters.get(offset, (None, ""))
            if why == said or (why is None and offset in others):
                continue
            if said is None and offset < self._begins[partition]:
                found.explained[_BEFORE] += 1
                continue
            kind = Kind.MISSING if why is None else Kind.DIFFERENT
            detail = f"refused as {why}, the ledger has dead-lettered it as {said}"
            found.differences.append(Difference(partition, offset, kind, detail))
        return found

    async def _not_booked(
        self, ledger: LedgerDigests, partition: int, start: int, end: int
    ) -> dict[int, CopiedRow]:
        """Give the rows of the copy at places where the ledger has booked nothing."""
        others: dict[int, CopiedRow] = {}
        for gaps in _by_range(await ledger.gaps(partition, start, end)):
            low, high = gaps[0][0], gaps[-1][1]
            asked = gaps if len(gaps) <= _MAX_GAPS else [(low, high)]
            starts = [begin for begin, _ in gaps]
            rows = await self._copy.rows_in(partition, asked)
            others |= {
                offset: row
                for offset, row in rows.items()
                if offset < gaps[bisect_right(starts, offset) - 1][1]
            }
        return others

    async def _explain(
        self,
        found: _Found,
        ledger: LedgerDigests,
        partition: int,
        others: Mapping[int, CopiedRow],
        letters: Mapping[int, tuple[str, str]],
    ) -> None:
        """Find out why rows are in the copy and not booked at their place."""
        for offset in sorted(others.keys() & letters.keys()):
            reason, kind = letters[offset]
            if kind == "business":  # not by what it says, but by what was there before
                found.explained["dead-lettered"] += 1
            else:
                detail = f"the ledger has refused it as {reason}"
                found.differences.append(Difference(partition, offset, Kind.SURPLUS, detail))
        rest = {offset: row for offset, row in others.items() if offset not in letters}
        noted = await _asked(ledger.noted, sorted({row.trade_id for row in rest.values()}))
        pruned_ns = await ledger.pruned_ns(sorted({row.key for row in rest.values()}))
        unknown: dict[int, str] = {}
        for offset, row in sorted(rest.items()):
            if row.trade_id in noted:
                found.explained[_ELSEWHERE] += 1
            elif row.new_ns is not None and row.new_ns <= pruned_ns.get(row.key, -1):
                found.explained["pruned"] += 1
            elif offset < self._begins[partition]:
                found.explained[_BEFORE] += 1
            else:
                unknown[offset] = row.trade_id
        elsewhere = await self._elsewhere(ledger, partition, unknown)
        found.explained.update(elsewhere.values())
        for offset in sorted(unknown.keys() - elsewhere.keys()):
            detail = f"trade {unknown[offset]} is in the copy, and the ledger does not know it"
            found.differences.append(Difference(partition, offset, Kind.SURPLUS, detail))

    async def _elsewhere(
        self, ledger: LedgerDigests, partition: int, unknown: Mapping[int, str]
    ) -> dict[int, str]:
        """Look at the other places of trades whose ids are not noted: sent twice, or re-keyed?"""
        places: dict[str, list[Place]] = {}
        booked: set[Place] = set()
        for chunk in _chunks(sorted(set(unknown.values())), _MAX_IDS):
            rows = await self._copy.places(chunk)
            booked |= await ledger.booked([(number, offset) for _, number, offset in rows])
            for trade_id, number, offset in rows:
                places.setdefault(trade_id, []).append((number, offset))
        why: dict[int, str] = {}
        for own, trade_id in unknown.items():
            stands = places.get(trade_id, [])
            others = [place for place in stands if place[0] != partition]
            if not booked.isdisjoint(stands):
                why[own] = _ELSEWHERE
            elif (told := await self._rekeyed(ledger, others)) is not None:
                why[own] = told
        return why

    async def _rekeyed(self, ledger: LedgerDigests, places: Sequence[Place]) -> str | None:
        for number, offset in places:
            if offset >= self._booked_to.get(number, 0):
                return "re-keyed, and not in the ledger yet"
            if await ledger.dead_letters(number, offset, offset + 1):
                return "re-keyed, and dead-lettered there"
            if await ledger.parked(number, offset, offset + 1):
                return "re-keyed, and parked there"
        return None

    async def _compare_sides(  # noqa: PLR0917 - two sides and two ends
        self, found: _Found, partition: int, copied: _Side, there: _Side, start: int, end: int
    ) -> int:
        """Compare two sides from whole ranges down to rows; give the rows of the copy."""
        have = await copied.digests(start, end, size=_RANGE)
        want = await there.digests(start, end, size=_RANGE)
        found.ranges += len(have.keys() | want.keys())
        for number in _differing(have, want):
            low, high = max(number * _RANGE, start), min((number + 1) * _RANGE, end)
            cells = _differing(
                await copied.digests(low, high, size=_CELL),
                await there.digests(low, high, size=_CELL),
            )
            spans = list(_spans(cells, low, high))
            if len(spans) > _MAX_SPANS:
                spans = [(low, high)]
            for span in spans:
                differences = await self._compare_rows(partition, copied, there, *span)
                if differences:
                    found.spans.append(span)
                    found.differences += differences
        return sum(count for count, _ in have.values())

    async def _compare_rows(
        self, partition: int, copied: _Side, there: _Side, start: int, end: int
    ) -> list[Difference]:
        have, want = await copied.texts(start, end), await there.texts(start, end)
        differences = []
        for offset in sorted(have.keys() | want.keys()):
            mine, theirs = have.get(offset), want.get(offset)
            if mine == theirs:
                continue
            if mine is None:
                kind, detail = Kind.MISSING, "it is not in the copy"
            elif theirs is None:
                kind, detail = Kind.SURPLUS, "only the copy has it"
            else:
                kind, detail = Kind.DIFFERENT, _what_differs(mine, theirs)
                if not detail:
                    continue
            differences.append(Difference(partition, offset, kind, detail))
        return differences

    # -- repairing

    async def _fill_check(self, partition: int, start: int, end: int) -> None:
        """Read a part of the topic into the check tables."""
        await self._copy.empty_check()
        currency = self._settings.defaults_currency
        block = CopyBlock(partition, start, default_currency=currency)
        records: list[Record] = []

        async def gather(*, is_last: bool) -> None:
            nonlocal block, records
            if records:
                batch = RecordBatch.of(partition, 0, records, records[-1].offset + 1)
                block.add(batch, 0, len(records), batch.next_offset)
                records = []
            if is_last or block.rows + block.refused >= _BLOCK:
                await self._copy.fill_check(block)
                block = CopyBlock(partition, block.next_offset, default_currency=currency)

        async for record in self._reader.read(self._settings.kafka_topic, partition, start, end):
            records.append(record)
            if len(records) >= _CHUNK:
                await gather(is_last=False)
        await gather(is_last=True)

    async def _repair(
        self,
        result: Reconciliation,
        partition: int,
        differences: Sequence[Difference],
        bounds: tuple[int, int],
    ) -> None:
        """Copy the cells that differ again, and compare them again.

        Args:
            result: Gets what has come of it.
            partition: Their partition.
            differences: What differs.
            bounds: What the topic holds of the offsets that were compared.
        """
        first, end = bounds
        gone = [d for d in differences if not first <= d.offset < end]
        if gone:
            result.unrepaired.append(
                f"{len(gone)} of partition {partition}: the topic does not hold them any more"
            )
        held = [d for d in differences if first <= d.offset < end]
        spans = list(_spans(sorted({d.offset // _CELL for d in held}), first, end))
        if len(spans) > _MAX_SPANS:
            spans = [(spans[0][0], spans[-1][1])]
        left = 0
        for low, high in spans:
            await self._fill_check(partition, low, high)
            await self._copy.replace(partition, low, high)
            left += len((await self._compare(partition, low, high)).differences)
        log.info("copy_repaired", partition=partition, differences=len(held), left=left)
        result.repaired += len(held) - left
        if left:
            result.unrepaired.append(
                f"{left} of partition {partition}: the copy is as the topic says, the"
                f" {result.against} is not"
            )


async def _asked(
    question: Callable[[Sequence[str]], Awaitable[set[str]]], trade_ids: Sequence[str]
) -> set[str]:
    known: set[str] = set()
    for chunk in _chunks(trade_ids, _MAX_IDS):
        known |= await question(chunk)
    return known


def _chunks(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _by_range(gaps: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Give gaps by the range that they lie in; one across a boundary is cut there."""
    current: list[tuple[int, int]] = []
    for start, end in gaps:
        while start < end:
            boundary = (start // _RANGE + 1) * _RANGE
            if current and current[0][0] // _RANGE != start // _RANGE:
                yield current
                current = []
            current.append((start, min(end, boundary)))
            start = boundary  # noqa: PLW2901 - the rest of the same gap
    if current:
        yield current


def _differing(have: Mapping[int, Digest], want: Mapping[int, Digest]) -> list[int]:
    return sorted(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))


def _spans(cells: Iterable[int], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Join neighbouring cells to ranges of offsets, within bounds."""
    span: tuple[int, int] | None = None
    for cell in cells:
        low, high = max(cell * _CELL, start), min((cell + 1) * _CELL, end)
        if span is not None and span[1] == low:
            span = (span[0], high)
            continue
        if span is not None:
            yield span
        span = (low, high)
    if span is not None:
        yield span


def _what_differs(mine: str, theirs: str) -> str:
    """Name the columns that differ; of a version that nobody has told, the ledger's is right."""
    ours, others = mine.split("\t"), theirs.split("\t")
    if len(ours) != len(_COLUMNS):
        return f"{ours[-1]} in the copy, {others[-1]} in the topic"
    return "; ".join(
        f"{name} is {own} in the copy, {other} there"
        for name, own, other in zip(_COLUMNS, ours, others, strict=True)
        if own != other and not (name == "version" and own == str(VERSION_NOT_TOLD))
    )
