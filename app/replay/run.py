"""The loop of a replay: rows are read, mapped, paced, published in chunks, and settled.

Every row that is read ends in exactly one of four: published, rejected, not sent, unknown. The last
three are named in the rejects file, and the summary adds up.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace as replace_fields

from app.codec import encode_event
from app.errors import ConfigError, RecordError, ReplayFileError
from app.ports import OutgoingRecord, Publisher, SendOutcome, SendState
from app.replay.files import RowFile
from app.replay.mapper import MappedTrade, RowMapper
from app.replay.mapping import FieldMapping
from app.replay.pace import AS_FAST_AS_POSSIBLE, Clock, Pace
from app.replay.rejects import RejectsFile
from app.replay.rows import Row
from app.replay.summary import FileCounts, ReplaySummary, RowFate

CHUNK_ROWS: Final = 500
CHUNKS_IN_FLIGHT: Final = 4

ProgressCallback = Callable[[int, str], None]
"""Called with a number of further rows, and a note on the whole."""


def check_files(files: Sequence[Path], mapping: FieldMapping, rejects_path: Path) -> None:
    """Open every file and compare its header with the mapping, ahead of any publishing.

    Raises:
        ConfigError: With every problem of every file at once.
    """
    problems = [f"{file}: is given twice" for file, n in Counter(files).items() if n > 1]
    for file in files:
        try:
            with RowFile(file) as rows:
                if rows.columns is not None:
                    problems += mapping.problems_with(str(file), rows.columns)
        except ReplayFileError as exc:
            problems.append(str(exc))
    if rejects_path.resolve() in {file.resolve() for file in files}:
        problems.append(f"--rejects {rejects_path}: is one of the files to be replayed")
    if not rejects_path.absolute().parent.is_dir() or rejects_path.is_dir():
        problems.append(f"--rejects {rejects_path}: cannot be written")
    if problems:
        raise ConfigError(problems)


async def replay(
    files: Sequence[Path],
    mapping: FieldMapping,
    *,
    publisher: Publisher,
    topic: str,
    rejects_path: Path,
    stop: asyncio.Event,
    speed: float = AS_FAST_AS_POSSIBLE,
    progress: ProgressCallback = lambda *_: None,
    clock: Clock | None = None,
) -> ReplaySummary:
    """Publish the rows of files as trade events, in the order of the files.

    Args:
        files: Read one after the other, each row once; `check_files` has passed them.
        mapping: How a row becomes a trade event.
        publisher: Where to; it repeats what surely was not sent, within its bounds.
        topic: Its topic.
        rejects_path: Where rows that are not published are named.
        stop: Set it to end with the chunks in flight.
        speed: Times as fast as the trades happened.
        progress: Called after every chunk.
        clock: What paces it.

    Returns:
        What became of every row that was read; a file that cannot be read to its end is named.

    Raises:
        ReplayFileError: The rejects file cannot be written; what is in flight is settled first.

    Delivery:
        In the order of the rows, each at most once by us. What is unknown is never sent again.
    """
    clock = clock or Clock()
    started_s = clock.monotonic_s()
    with RejectsFile(rejects_path) as rejects:
        run = _Replay(
            RowMapper(mapping),
            publisher,
            topic,
            rejects=rejects,
            stop=stop,
            progress=progress,
            pace=Pace(speed, clock),
        )
        summary = await run.run(files)
        summary.rejects_path = rejects.written_path
    summary.seconds = clock.monotonic_s() - started_s
    return summary


@dataclass(frozen=True, slots=True)
class _Pending:
    """A mapped row whose fate is not yet known."""

    row: Row
    trade: MappedTrade
    due_s: float | None


class _Replay:
    """One run; the chunk in hand and those in flight are all it keeps of the rows."""

    def __init__(
        self,
        mapper: RowMapper,
        publisher: Publisher,
        topic: str,
        *,
        rejects: RejectsFile,
        stop: asyncio.Event,
        progress: ProgressCallback,
        pace: Pace,
    ) -> None:
        self._mapper = mapper
        self._publisher = publisher
        self._topic = topic
        self._rejects = rejects
        self._stop = stop
        self._progress = progress
        self._pace = pace
        self._chunk: list[_Pending] = []
        self._in_flight: deque[tuple[list[_Pending], asyncio.Task[list[SendOutcome]]]] = deque()
        self._summary = ReplaySummary()
        self._sizes: dict[Path, int] = {}
        self._open: RowFile | None = None
        self._bytes_before = self._rows_reported = 0

    async def run(self, files: Sequence[Path]) -> ReplaySummary:
        self._sizes = {file: file.stat().st_size for file in files if file.is_file()}
        try:
            for file in files:
                if self._stop.is_set():
                    self._summary.is_stopped = True
                    break
                await self._replay_file(file)
            await self._submit()
            await self._settle(leave=0)
        finally:  # only after an error is anything left: the publisher is given its time
            left = [sending for _, sending in self._in_flight]
            await asyncio.gather(*left, return_exceptions=True)
        self._report()
        return self._summary

    async def _replay_file(self, file: Path) -> None:
        counts = self._summary.files[str(file)] = FileCounts()
        with closing(self._read(file, counts)) as rows:
            for row in rows:
                trade = self._map(row)
                due_s = None if trade is None else self._pace.due_s(trade.time_ns)
                if due_s is not None and not self._pace.is_due(due_s):
                    await self._submit()
                    await self._pace.wait(due_s, self._stop)
                    if self._stop.is_set():
                        self._summary.is_stopped = True
                        return  # the row is not counted: nothing was done with it
                counts.rows += 1
                if trade is not None:
                    self._chunk.append(_Pending(row, trade, due_s))
                if counts.rows % CHUNK_ROWS == 0 or len(self._chunk) >= CHUNK_ROWS:
                    await self._submit()
                    if self._stop.is_set():
                        self._summary.is_stopped = True
                        return

    def _read(self, file: Path, counts: FileCounts) -> Generator[Row, None, None]:
        try:
            with RowFile(file) as rows:
                self._open = rows
                yield from rows
        except ReplayFileError as exc:
            counts.error = exc.problem
        finally:
            self._open = None
            self._bytes_before += self._sizes.get(file, 0)

    def _map(self, row: Row) -> MappedTrade | None:
        try:
            return self._mapper.map_row(row)
        except RecordError as exc:
            self._summary.rejected[exc.reason] += 1
            self._give_up(row, RowFate.REJECTED, exc.reason, str(exc))
            return None

    async def _submit(self) -> None:
        chunk, self._chunk = self._chunk, []
        if chunk:
            now = self._pace.published_at(None)
            records = [self._record(pending, now) for pending in chunk]
            sending = asyncio.ensure_future(self._publisher.publish(records))
            self._in_flight.append((chunk, sending))
        await asyncio.sleep(0)  # a turn for what is in flight, and for a stop to be noticed
        await self._settle(leave=CHUNKS_IN_FLIGHT - 1)
        self._report()

    def _record(self, pending: _Pending, now: str) -> OutgoingRecord:
        due_s = pending.due_s
        published_at = now if due_s is None else self._pace.published_at(due_s)
        event = replace_fields(pending.trade.event, published_at=published_at)
        return OutgoingRecord(self._topic, pending.trade.key, encode_event(event))

    async def _settle(self, *, leave: int) -> None:
        """Settle chunks from the oldest on: those whose fate is known, and all but so many."""
        while len(self._in_flight) > leave or (self._in_flight and self._in_flight[0][1].done()):
            chunk, sending = self._in_flight.popleft()
            for pending, outcome in zip(chunk, await sending, strict=True):
                self._settle_row(pending, outcome)

    def _settle_row(self, pending: _Pending, outcome: SendOutcome) -> None:
        row = pending.row
        if outcome.state is SendState.OK:
            self._summary.files[row.file].fates[RowFate.PUBLISHED] += 1
            self._summary.add_published(pending.trade)
        elif outcome.state is SendState.UNKNOWN:
            message = f"may or may not be in the topic: {outcome.error}"
            self._give_up(row, RowFate.UNKNOWN, "send-unknown", message)
        else:
            message = f"is not in the topic: {outcome.error}"
            self._give_up(row, RowFate.NOT_SENT, "send-not-sent", message)

    def _give_up(self, row: Row, fate: RowFate, reason: str, message: str) -> None:
        self._summary.files[row.file].fates[fate] += 1
        self._rejects.add(row, reason, message)

    def _report(self) -> None:
        rows = self._summary.rows
        bytes_read = self._bytes_before + (0 if self._open is None else self._open.bytes_read)
        share = bytes_read / max(1, sum(self._sizes.values()))
        note = f"{share:.0%} read, {self._summary.count(RowFate.REJECTED):,} rejected"
        self._progress(rows - self._rows_reported, note)
        self._rows_reported = rows
