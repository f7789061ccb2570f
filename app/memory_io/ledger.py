"""A ledger in memory: what PostgreSQL would hold, and writers of it that can be fenced."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import TransportError
from app.ledger_codec import (
    DEAD_LETTER_COLUMNS,
    PLAIN_TRADE_COLUMNS,
    TRADE_COLUMNS,
    event_of,
    position_line,
    read_position,
)
from app.memory_io.faults import Fault, no_fault
from app.models import Position, TradeEvent
from app.ports import LedgerWrite

Place = tuple[int, int]
"""Partition and offset in the source topic."""


@dataclass
class MemoryDatabase:
    """The tables.

    Attributes:
        next_offsets: Next source offset, by partition.
        owners: The writer of each partition.
        trades: Rows by place, as text.
        trade_ids: Where the last event that was booked of a trade stands.
        positions: Lines by partition and key.
        dead_letters: Rows by place.
    """

    next_offsets: dict[int, int | None] = field(default_factory=dict)
    owners: dict[int, "MemoryLedger"] = field(default_factory=dict)
    trades: dict[Place, dict[str, Any]] = field(default_factory=dict)
    trade_ids: dict[str, Place] = field(default_factory=dict)
    positions: dict[tuple[int, str], str] = field(default_factory=dict)
    dead_letters: dict[Place, dict[str, Any]] = field(default_factory=dict)


class MemoryLedger:
    """One process's way to the database; see `ports.Ledger` for what it promises.

    Args:
        database: What it writes to.
        notes_ids: Whether the ids of trades are kept.

    Attributes:
        faults: Asked before each operation, by the name of its method.
    """

    def __init__(self, database: MemoryDatabase, *, notes_ids: bool = True) -> None:
        self.faults: Callable[[str], Fault] = no_fault
        self._database = database
        self._notes_ids = notes_ids

    async def claim(self, partition: int) -> int | None:
        """Become the only writer of a partition."""
        fault = await self._before("claim")
        self._database.owners[partition] = self
        _after(fault)
        return self._database.next_offsets.setdefault(partition, None)

    async def positions(self, partition: int) -> list[Position]:
        """Give the positions of a partition."""
        _after(await self._before("positions"))
        lines = self._database.positions.items()
        return [read_position(line) for (number, _), line in lines if number == partition]

    async def write(self, writes: Mapping[int, LedgerWrite]) -> dict[int, str]:
        """Store what is written, all at once."""
        fault = await self._before("write")
        lost = self._write(writes)
        _after(fault)
        return lost

    def _write(self, writes: Mapping[int, LedgerWrite]) -> dict[int, str]:
        new, lost = {}, {}
        for number, write in writes.items():
            held = self._database.next_offsets.get(number)
            if self._database.owners.get(number) is not self:
                lost[number] = "another worker has taken it over"
            elif held not in (write.expected, write.next_offset):
                lost[number] = f"the ledger is at offset {held}, not at {write.expected}"
            elif held != write.next_offset:
                new[number] = write
        ids = [row["trade_id"] for write in new.values() for row in _trades(write)]
        known = self._database.trade_ids.keys()
        if self._notes_ids and (len(set(ids)) < len(ids) or not known.isdisjoint(ids)):
            if len(writes) == 1:
                return dict.fromkeys(writes, "booked elsewhere meanwhile")
            apart = [self._write({number: writes[number]}) for number in sorted(writes)]
            return {number: why for one in apart for number, why in one.items()}
        for number, write in new.items():
            self._store(number, write)
        return lost

    def _store(self, number: int, write: LedgerWrite) -> None:
        database = self._database
        database.next_offsets[number] = write.next_offset
        for row in _trades(write):
            place = _place(row)
            assert place not in database.trades, "a primary key twice"
            database.trades[place] = row
            if self._notes_ids:
                database.trade_ids[row["trade_id"]] = place
        for line in write.dead_letters:
            row = _row(DEAD_LETTER_COLUMNS, line)
            assert _place(row) not in database.dead_letters, "a primary key twice"
            database.dead_letters[_place(row)] = row
        for position in write.positions:
            database.positions[number, position.key] = position_line(number, position)

    async def find(self, trade_ids: Sequence[str]) -> dict[str, TradeEvent]:
        """Give the trades that the ledger holds of these ids."""
        _after(await self._before("find"))
        places = {name: self._database.trade_ids.get(name) for name in trade_ids}
        return {
            name: event_of(self._database.trades[place])
            for name, place in places.items()
            if place is not None
        }

    async def _before(self, operation: str) -> Fault:
        fault = self.faults(operation)
        await asyncio.sleep(0)
        if fault not in (Fault.NONE, Fault.UNKNOWN_STORED):
            raise TransportError(f"{operation}: scripted fault {fault}")
        return fault


def _after(fault: Fault) -> None:
    if fault is Fault.UNKNOWN_STORED:
        raise TransportError("done, and the answer is lost")


def _trades(write: LedgerWrite) -> list[dict[str, Any]]:
    defaults = {"version": "1", "action": "NEW", "multiplier": "1", "fee": "0"}
    plain = [_row(PLAIN_TRADE_COLUMNS, line) | defaults for line in write.plain_trades]
    return plain + [_row(TRADE_COLUMNS, line) for line in write.trades]


def _row(columns: Sequence[str], line: str) -> dict[str, Any]:
    empty = dict.fromkeys(TRADE_COLUMNS)
    cells = zip(columns, line.split("\t"), strict=True)
    return empty | {name: cell or None for name, cell in cells}


def _place(row: Mapping[str, Any]) -> Place:
    return int(row["source_partition"]), int(row["source_offset"])
