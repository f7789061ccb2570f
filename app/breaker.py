"""Holds back a flood of dead letters: where a large share of records is refused, somebody erred.

A dead letter that is written cannot be taken back, and thousands of them hide the few that matter.
"""

from collections import deque
from typing import Final

WINDOW: Final = 1_000
"""Records that are looked back upon: not seconds, since a backlog is read far faster than live."""
LEAST: Final = 200
"""Records below which a share says nothing."""


class Breaker:
    """Watches which share of the last records of one partition was refused.

    Args:
        most: Share that is borne, up to 1, which is never exceeded.
    """

    __slots__ = ("_chunks", "_judged", "_most", "_refused")

    def __init__(self, most: float) -> None:
        self._most = most
        self._chunks: deque[tuple[int, int]] = deque()
        self._judged = self._refused = 0

    def note(self, judged: int, refused: int) -> bool:
        """Take in the next records, some of which were refused; tell whether that is too many."""
        self._chunks.append((judged, refused))
        self._judged += judged
        self._refused += refused
        while self._judged - self._chunks[0][0] >= WINDOW:
            oldest_judged, oldest_refused = self._chunks.popleft()
            self._judged -= oldest_judged
            self._refused -= oldest_refused
        is_too_much = self._judged >= LEAST and self._refused > self._most * self._judged
        return is_too_much and refused > 0

    def __str__(self) -> str:
        """Say what was seen."""
        return f"{self._refused} of the last {self._judged} records were refused"
