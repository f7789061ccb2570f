"""Time that passes only when nothing else is left to do: seconds of waiting cost no time."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec

P = ParamSpec("P")
LONGEST_TEST_S: Final = 3600.0
"""Virtual seconds after which a test that still waits has failed."""

MOST_TURNS: Final = 20_000
"""Turns of the loop without any waiting after which something runs hot."""


class _NeverWaits(selectors.SelectSelector):
    """Moves the clock where another selector would block."""

    now_s = 0.0
    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert timeout is not None or ready, "every task waits for something that never comes"
        self.turns += 1
        if timeout:
            self.now_s += timeout
            self.turns = 0
        assert self.turns < MOST_TURNS, "a task spins: it neither waits nor comes to an end"
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer when all tasks wait."""

    def __init__(self) -> None:
        self._clock = _NeverWaits()
        super().__init__(self._clock)

    def time(self) -> float:
        """Give the virtual time, in seconds since the loop was made."""
        return self._clock.now_s


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a loop of its own with virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(LONGEST_TEST_S):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(bounded())

    return run
