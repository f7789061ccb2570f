"""What a producer meant to send, written before it sends, and what it was told afterwards.

One line for each attempt, in the order of sending, and a second one with its outcome. A line is
given to the kernel at once, so that a killed process loses none; an attempt without an outcome is
unknown. Fields are parted by tabs:

    S  number  key  sequence  trade id  sha256 of the value  monotonic ns
    O  number  ok | not_sent | unknown  partition  offset  monotonic ns
"""

import hashlib
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_SUFFIX: Final = ".journal"
_SYNC_EVERY: Final = 5_000  # lines; a kernel that dies is beyond these tests


class State(StrEnum):
    """What is known of an attempt."""

    OK = "ok"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Attempt:
    """One try to send one record.

    Attributes:
        key: Record key, as text; empty for none.
        sequence: 1, 2, 3… for the trades of one key; a repeat has the number of what it repeats.
        trade_id: Of the trade.
        digest: SHA-256 of the value, in hex; of a null value that of no bytes.
        sent_ns: Monotonic time, one clock for all processes of a machine; likewise `known_ns`.
        is_repeat: An earlier attempt of the same run had this key and sequence.
    """

    run: str
    key: str
    sequence: int
    trade_id: str
    digest: str
    sent_ns: int
    state: State = State.UNKNOWN
    partition: int = -1
    offset: int = -1
    known_ns: int = 0
    is_repeat: bool = False


def digest(value: bytes | None) -> str:
    """Name a value by its content."""
    return hashlib.sha256(value or b"").hexdigest()


class JournalWriter:
    """Appends to the journal of one run of a producer; used by one thread.

    Args:
        folder: Of all journals of a test.
        run: Name of this run, and of its file; no other one has it.
    """

    def __init__(self, folder: Path, run: str) -> None:
        path = folder / f"{run}{_SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._count = 0
        self._unsynced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def sending(self, records: Sequence[tuple[str, int, str, str]], now_ns: int) -> range:
        """Note records that are about to be sent: key, sequence, trade id, digest of the value.

        Returns:
            The number of each attempt, for its outcome.
        """
        numbers = range(self._count, self._count + len(records))
        self._count = numbers.stop
        self._write(
            f"S\t{number}\t{key}\t{sequence}\t{trade_id}\t{sha}\t{now_ns}\n"
            for number, (key, sequence, trade_id, sha) in zip(numbers, records, strict=True)
        )
        return numbers

    def known(self, outcomes: Iterable[tuple[int, str, int, int]], now_ns: int) -> None:
        """Note outcomes: number of the attempt, state, partition, offset."""
        self._write(
            f"O\t{number}\t{state}\t{partition}\t{offset}\t{now_ns}\n"
            for number, state, partition, offset in outcomes
        )

    def _write(self, lines: Iterable[str]) -> None:
        data = "".join(lines).encode()
        self._unsynced += data.count(b"\n")
        while data:
            data = data[os.write(self._file, data) :]
        if self._unsynced >= _SYNC_EVERY:
            os.fsync(self._file)
            self._unsynced = 0


def read_journals(folder: Path) -> list[Attempt]:
    """Read every attempt of every run, in the order of sending; a last line cut short is none."""
    paths = sorted(folder.glob(f"*{_SUFFIX}"))
    return [attempt for path in paths for attempt in _read(path)]


def _read(path: Path) -> list[Attempt]:
    attempts: list[Attempt] = []
    seen: set[tuple[str, int]] = set()
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        kind, number, *fields = line.split("\t")
        if kind == "S":
            assert int(number) == len(attempts), path
            key, sequence, trade_id, sha, sent_ns = fields
            identity = (key, int(sequence))
            attempts.append(
                Attempt(
                    path.stem, key, int(sequence), trade_id, sha, int(sent_ns),
                    is_repeat=identity in seen,
                )
            )  # fmt: skip
            seen.add(identity)
        else:
            attempt = attempts[int(number)]
            state, partition, offset, known_ns = fields
            attempt.state, attempt.known_ns = State(state), int(known_ns)
            attempt.partition, attempt.offset = int(partition), int(offset)
    return attempts


@dataclass(frozen=True, slots=True)
class Stalls:
    """How long a producer was told nothing.

    Attributes:
        longest_s: Longest time without an acknowledgement while at least one was due.
        slowest_s: Longest time from an attempt to its acknowledgement.
    """

    longest_s: float
    slowest_s: float


def stalls(attempts: Iterable[Attempt]) -> Stalls:
    """Measure the waits of all runs in a journal."""
    runs: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        runs[attempt.run].append(attempt)
    longest_ns = max(map(_longest_stall_ns, runs.values()), default=0)
    acked = (a for of_run in runs.values() for a in of_run if a.state is State.OK)
    slowest_ns = max((a.known_ns - a.sent_ns for a in acked), default=0)
    return Stalls(longest_ns / 1e9, slowest_ns / 1e9)


def _longest_stall_ns(attempts: Sequence[Attempt]) -> int:
    sent = sorted(attempt.sent_ns for attempt in attempts)
    known = sorted(attempt.known_ns for attempt in attempts if attempt.known_ns)
    acked = sorted({attempt.known_ns for attempt in attempts if attempt.state is State.OK})
    longest = 0
    for last, ack in pairwise([sent[0], *acked]):
        sent_by_then = bisect_right(sent, last)
        is_due = sent_by_then > bisect_right(known, last)  # whatever is to become of it
        longest = max(longest, ack - (last if is_due else sent[sent_by_then]))
    return longest


def first_ack_after(attempts: Iterable[Attempt], moment_ns: int) -> float:
    """Give the seconds from a moment to the first acknowledgement after it.

    Infinite where none came although some were due, and 0 where none was due any more.
    """
    left = [attempt for attempt in attempts if not attempt.known_ns or attempt.known_ns > moment_ns]
    known = [attempt.known_ns for attempt in left if attempt.state is State.OK]
    if not left:
        return 0.0
    return (min(known) - moment_ns) / 1e9 if known else float("inf")
