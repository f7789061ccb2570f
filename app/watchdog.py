"""Tells a worker that is stuck from one that has nothing to do, and from one that has to wait."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import structlog

from app.errors import StalledError, TopicError, TransportError
from app.ports import LogReader

log = structlog.get_logger(__name__)

_LOOKS: Final = 10
"""How often it looks within its time; it is late by at most that share of it."""
_ANSWER_TIMEOUT_S: Final = 30.0


class Watched(Protocol):
    """What the watchdog sees of a consumer."""

    @property
    def progress(self) -> int:
        """Something that changes with whatever moves, or fails and is tried again."""

    def is_behind(self, ends: Mapping[int, int]) -> bool:
        """Tell whether there is anything left to do, given where the partitions end."""


class Watchdog:
    """Ends a worker that is behind and gets nowhere although the brokers answer.

    What counts as progress: a batch that is processed, a commit, a partition that is opened; of one
    that is being restored each record that is read and each position that is folded anew, so that a
    restore may take as long as it has to. And an attempt that has failed and is made again: it
    tells what the worker waits for, a broker or the database, and to start again would not bring
    that back. Every attempt is bounded, so that what neither ends nor fails is stuck. Heartbeats do
    not count: they go on while nothing is fetched.

    What counts as behind: a partition that is not committed up to its end, or not open yet, unless
    a person has to look at it. One that is stuck beside others that move is not found, nor is one
    whose restore fails over and over: `/readyz` has both.

    A broker that is away does not always show by an error. So the brokers are asked first, by a
    client of its own, since the worker's may be what is stuck (B10).

    Args:
        watched: The consumer.
        reader: Asks the brokers.
        topic: Topic of the trades.
        timeout_s: Longest time without progress.
        monotonic: Clock, in seconds.
    """

    def __init__(
        self,
        watched: Watched,
        *,
        reader: LogReader,
        topic: str,
        timeout_s: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._watched = watched
        self._reader = reader
        self._topic = topic
        self._timeout_s = timeout_s
        self._monotonic = monotonic

    async def watch(self) -> None:
        """Look on until the worker is stuck.

        Raises:
            StalledError: It is.
        """
        seen, since_s = self._watched.progress, self._monotonic()
        while True:
            await asyncio.sleep(self._timeout_s / _LOOKS)
            now_s = self._monotonic()
            if self._watched.progress != seen:
                seen, since_s = self._watched.progress, now_s
            elif now_s - since_s >= self._timeout_s:
                if await self._is_behind():
                    raise StalledError(
                        f"no progress for {now_s - since_s:.0f} s, although brokers answer and not"
                        f" all of {self._topic} is restored and processed"
                    )
                since_s = now_s

    async def _is_behind(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                ranges = await self._reader.offset_ranges(self._topic)
        except (TransportError, TopicError, TimeoutError) as exc:
            log.warning("watchdog_waits_for_broker", error=str(exc) or type(exc).__name__)
            return False
        return self._watched.is_behind({number: end for number, (_, end) in ranges.items()})
