"""The pace of a replay: when each trade is due by its event time."""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from app.errors import ConfigError
from app.timestamps import NS_PER_S, format_timestamp

AS_FAST_AS_POSSIBLE: Final = math.inf
_SPEED = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)x", re.ASCII)
_TICK_S: Final = 0.005  # trades due within one tick of each other are published as one batch


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, and the only way to wait for it; a test gives its own.

    Attributes:
        monotonic_s: Seconds that never go back.
        time_ns: UTC nanoseconds since 1970.
        wait: Waits for an event, but at most so many seconds.
    """

    monotonic_s: Callable[[], float] = time.monotonic
    time_ns: Callable[[], int] = time.time_ns
    wait: Callable[[asyncio.Event, float], Awaitable[None]] = _wait


def parse_speed(text: str) -> float:
    """Read `max`, `1x`, `10x`, `0.5x`: how many times as fast as the trades happened.

    Raises:
        ConfigError: It is neither.
    """
    if text == "max":
        return AS_FAST_AS_POSSIBLE
    match = _SPEED.fullmatch(text)
    if match is None or not float(match[1]):
        raise ConfigError([f"--speed {text}: must be max or a positive number such as 10x"])
    return float(match[1])


class Pace:
    """Each trade is due at once, or as long after the first as it happened after it."""

    def __init__(self, speed: float, clock: Clock) -> None:
        self._speed = speed
        self._clock = clock
        self._first: tuple[int, float, int] | None = None

    def due_s(self, time_ns: int) -> float | None:
        """Give the monotonic time at which a trade is due; `None` is now."""
        if self._speed == AS_FAST_AS_POSSIBLE:
            return None
        if self._first is None:
            self._first = time_ns, self._clock.monotonic_s(), self._clock.time_ns()
        return self._first[1] + (time_ns - self._first[0]) / (self._speed * NS_PER_S)

    def is_due(self, due_s: float) -> bool:
        """Tell whether the time has come."""
        return due_s <= self._clock.monotonic_s()

    async def wait(self, due_s: float, stop: asyncio.Event) -> None:
        """Wait until a trade is due, and one tick longer for those behind it; or for a stop."""
        while not stop.is_set():
            left_s = due_s + _TICK_S - self._clock.monotonic_s()
            if left_s <= 0:
                return
            await self._clock.wait(stop, left_s)

    def published_at(self, due_s: float | None) -> str:
        """Write the time it was due, so that latency includes what we are late ourselves."""
        if due_s is None or self._first is None:
            return format_timestamp(self._clock.time_ns())
        after_first_ns = max(0, round((due_s - self._first[1]) * NS_PER_S))
        return format_timestamp(self._first[2] + after_first_ns)
