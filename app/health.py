"""The word of a process on itself, and the watch over its event loop.

A process is alive while its event loop turns and, as long as it holds partitions with records left,
its own loop comes round as well. It is ready once it has started and nothing is named that it waits
for. A broker that is away makes it unready and never dead: to start it again would not help.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from types import FrameType, TracebackType
from typing import Any, Final, Self

import structlog

log = structlog.get_logger(__name__)

DEAD_AFTER_S: Final = 120.0
STALL_S: Final = 5.0
"""Silence of the event loop that is looked into."""
BEAT_S: Final = 0.5
_CHECK_S: Final = 1.0
_MOST_FRAMES: Final = 30
_MOST_TASKS: Final = 20
_MOST_FRAMES_OF_A_TASK: Final = 8
_MOST_TEXT: Final = 256


class Unready(StrEnum):
    """What keeps a process from being ready: a closed set, so that an answer stays small."""

    ASSIGNMENT = "assignment"
    """Not yet, or not any more, a member of its group."""
    RESTORE = "restore"
    """Partitions of ours are still being restored."""
    BROKER = "broker"
    """Nothing can be fetched: a broker is away."""
    EFFECTS = "effects"
    """Dead letters or positions wait for a broker, or the database."""
    COMMIT = "commit"
    """Commits are not answered."""
    LEDGER = "ledger"
    """The database cannot be asked which trades it has."""
    STOPPED_PARTITIONS = "stopped_partitions"
    """Partitions wait for a person."""
    STOPPING = "stopping"
    """It was told to stop, and finishes what it has in hand."""


class Health:
    """What a process knows of its own health; written by its loop, read from any thread.

    Args:
        dead_after_s: Silence, in seconds, after which the process is taken for dead: longer than
            anything that its loop may rightly wait for in one turn.
        monotonic: Clock of every duration, in seconds.
        now_s: Wall clock, Unix seconds.

    Attributes:
        dead_after_s: As given.
        holds_lag: Whether partitions of ours have records that are not processed yet.
        last_progress_s: Unix time of the last progress; before the first, of the start.
    """

    def __init__(
        self,
        *,
        dead_after_s: float = DEAD_AFTER_S,
        monotonic: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.dead_after_s = dead_after_s
        self._monotonic = monotonic
        self._now_s = now_s
        self._beat_s = self._turn_s = monotonic()
        self._has_started = False
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}
        self.holds_lag = False
        self.last_progress_s = now_s()

    # -- said by the process

    def beat(self) -> None:
        """The event loop turns, whatever the program in it waits for; see `monitor`."""
        self._beat_s = self._monotonic()

    def tick(self) -> None:
        """The loop of the program has come round."""
        self._turn_s = self._monotonic()

    def progress(self) -> None:
        """A commit has moved an offset."""
        self._turn_s = self._monotonic()
        self.last_progress_s = self._now_s()

    def started(self) -> None:
        """It is connected, and whatever it needs from the past is restored."""
        self._has_started = True

    def fail(self, name: Unready, reason: str) -> None:
        """Not ready, until `clear`: `reason` says why, to a person; long ones are cut."""
        with self._lock:
            self._reasons[name.value] = reason[:_MOST_TEXT]

    def clear(self, name: Unready) -> None:
        """Whatever was said under this name is over."""
        with self._lock:
            self._reasons.pop(name.value, None)

    # -- asked by others: reasons against it, by name; none means yes

    def live(self) -> dict[str, str]:
        """Tell what says that only a restart can help."""
        now_s = self._monotonic()
        reasons = {}
        if (silent_s := now_s - self._beat_s) > self.dead_after_s:
            reasons["event_loop"] = f"the event loop has not turned for {silent_s:.0f} s"
        if (silent_s := now_s - self._turn_s) > self.dead_after_s and self.holds_lag:
            reasons["progress"] = f"no turn and no commit for {silent_s:.0f} s, with records left"
        return reasons

    def ready(self) -> dict[str, str]:
        """Tell what it waits for."""
        with self._lock:
            return {**self.startup(), **self._reasons}

    def startup(self) -> dict[str, str]:
        """Tell whether it is still starting."""
        return {} if self._has_started else {"startup": "still starting"}

    @property
    def beat_s(self) -> float:
        """Monotonic time at which the event loop last turned."""
        return self._beat_s


class StallDetector:
    """A thread that says where the event loop hangs, while it hangs.

    It logs one `loop_stalled` for each stall, with the stack of the loop's thread and what the
    tasks wait for: files, lines and functions, no values. It looks at other threads and changes
    nothing in them. A loop that does not turn for as long as makes its process dead is given up:
    nothing that runs in it could end it.

    Args:
        health: Whose beat is watched.
        loop: The event loop; its thread is the one that makes this.
        on_stall: Called once when a stall is seen.
        on_recovery: Called with its length, in seconds, when it is over.
        on_hang: Called, in the thread, when the loop is given up. That goes by looks, one a second,
            since a process that was frozen itself finds that much time has gone at once.
        monotonic: The clock of `health`.
    """

    def __init__(
        self,
        health: Health,
        *,
        loop: asyncio.AbstractEventLoop,
        on_stall: Callable[[], None],
        on_recovery: Callable[[float], None],
        on_hang: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._health = health
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._on_stall = on_stall
        self._on_recovery = on_recovery
        self._on_hang = on_hang
        self._monotonic = monotonic
        self._stalled_since_s: float | None = None
        self._beat_s = health.beat_s
        self._looks_in_vain = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall-detector", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=_CHECK_S)

    def check(self) -> None:
        """Look once; a stall that goes on is not told again."""
        beat_s = self._health.beat_s
        if self._stalled_since_s is not None:
            if beat_s > self._stalled_since_s:
                seconds = beat_s - self._stalled_since_s
                self._stalled_since_s = None
                self._on_recovery(seconds)
                log.warning("loop_recovered", stalled_s=round(seconds, 1))
        elif (silent_s := self._monotonic() - beat_s) >= STALL_S:
            self._stalled_since_s = beat_s
            self._on_stall()
            log.error(
                "loop_stalled",
                silent_s=round(silent_s, 1),
                stack=_stack(sys._current_frames().get(self._loop_thread)),  # noqa: SLF001 - no other way to another thread
                tasks=_waiting(self._loop),
            )
        self._looks_in_vain = self._looks_in_vain + 1 if beat_s == self._beat_s else 0
        self._beat_s = beat_s
        if self._looks_in_vain * _CHECK_S > self._health.dead_after_s:
            self._on_hang()

    def _run(self) -> None:
        while not self._stop.wait(_CHECK_S):
            try:
                self.check()
            except Exception:  # outermost: what only looks on must not end for what it saw
                log.exception("stall_check_failed")


def _stack(frame: FrameType | None) -> list[str]:
    """Give the places of a stack, the innermost first."""
    places: list[str] = []
    while frame is not None and len(places) < _MOST_FRAMES:
        places.append(_place(frame))
        frame = frame.f_back
    return places


def _waiting(loop: asyncio.AbstractEventLoop) -> dict[str, list[str]]:
    """Give what tasks wait for, by their names: from their own function inwards."""
    waiting: dict[str, list[str]] = {}
    for task in list(asyncio.all_tasks(loop))[:_MOST_TASKS]:
        places: list[str] = []
        awaited: Any = task.get_coro()
        while len(places) < _MOST_FRAMES_OF_A_TASK:
            frame = getattr(awaited, "cr_frame", None)
            if frame is None:  # a future, at the end of the chain
                break
            places.append(_place(frame))
            awaited = awaited.cr_await
        waiting[task.get_name()[:_MOST_TEXT]] = places
    return waiting


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}"[-_MOST_TEXT:]
