"""Events of one partition that wait for another one of their trade: found by trade, and by age."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

from app.headers import size_of
from app.ports import ParkedRecord
from app.services import Incoming
from app.verdicts import LifeEvent, Parked

MOST_BYTES: Final = 32 * 1024 * 1024
"""Of keys, values and headers that wait in a partition: they are held in memory as well."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One event that waits.

    Attributes:
        record: Its record.
        came: What it says.
        parked: What it is judged by; the arrival is its offset.
    """

    record: ParkedRecord
    came: Incoming
    parked: Parked


class Parking:
    """The events of one partition that wait, in the order in which they were parked.

    Args:
        most: Events that there is space for.
        deadline_ns: How long each may wait.
    """

    def __init__(self, *, most: int, deadline_ns: int) -> None:
        self._most = most
        self._deadline_ns = deadline_ns
        self._waiting: dict[int, Waiting] = {}
        self._of_trade: dict[str, dict[int, Waiting]] = {}
        self._deadlines: list[tuple[int, int]] = []  # a heap; some of them wait no longer
        self._bytes = 0

    @property
    def offsets(self) -> Collection[int]:
        """Where they stand, as it is at the moment of asking."""
        return self._waiting.keys()

    @property
    def trade_ids(self) -> Collection[str]:
        """The trades that they are of, as it is at the moment of asking."""
        return self._of_trade.keys()

    @property
    def is_full(self) -> bool:
        """Whether there is no space for one more."""
        return len(self._waiting) >= self._most or self._bytes >= MOST_BYTES

    def add(self, record: ParkedRecord, came: Incoming, event: LifeEvent) -> None:
        """Let an event wait."""
        parked = Parked(
            event=event,
            arrival=record.offset,
            parked_ns=record.parked_ns,
            deadline_ns=record.parked_ns + self._deadline_ns,
        )
        one = Waiting(record, came, parked)
        self._waiting[record.offset] = one
        if len(self._deadlines) >= 2 * len(self._waiting):
            self._deadlines = [d for d in self._deadlines if d[1] in self._waiting]
            heapify(self._deadlines)
        heappush(self._deadlines, (parked.deadline_ns, record.offset))
        self._of_trade.setdefault(str(came.event.trade_id), {})[record.offset] = one
        self._bytes += _size(record)

    def remove(self, one: Waiting) -> None:
        """Let an event wait no longer."""
        del self._waiting[one.record.offset]
        trade_id = str(one.came.event.trade_id)
        of_trade = self._of_trade[trade_id]
        del of_trade[one.record.offset]
        if not of_trade:
            del self._of_trade[trade_id]
        self._bytes -= _size(one.record)

    def __getitem__(self, offset: int) -> Waiting:
        """Give the event that stands at an offset."""
        return self._waiting[offset]

    def of_trade(self, trade_id: str) -> list[Parked]:
        """Give the events of a trade."""
        return [one.parked for one in self._of_trade.get(trade_id, {}).values()]

    def position_keys(self, trade_ids: Iterable[str]) -> Iterator[str]:
        """Give the keys of the positions that change if events of these trades are applied."""
        for trade_id in self._of_trade.keys() & trade_ids if self._of_trade else ():
            for one in self._of_trade[trade_id].values():
                yield one.parked.event.position_key

    def first_due(self) -> Waiting | None:
        """Give the event whose waiting ends first; `None` where nothing waits."""
        # Mostly in the order of the log, but not where the clock was set back.
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heappop(self._deadlines)
        return self._waiting[self._deadlines[0][1]] if self._deadlines else None


def _size(record: ParkedRecord) -> int:
    return len(record.key or b"") + len(record.value) + size_of(record.headers)
