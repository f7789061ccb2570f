"""A ledger in memory: what PostgreSQL would hold, and writers of it that can be fenced."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app.errors import TransportError
from app.ledger_codec import (
    CORRECTION_COLUMNS,
    DEAD_LETTER_COLUMNS,
    HISTORY_COLUMNS,
    PARKED_COLUMNS,
    PARKED_RECORD_COLUMNS,
    PLAIN_TRADE_COLUMNS,
    STORED_LOT_COLUMNS,
    TRADE_COLUMNS,
    changed_trades,
    event_of,
    gone_lots,
    lot_lines,
    position_line,
    read_lots,
    read_parked,
    read_position,
)
from app.memory_io.faults import Fault, no_fault
from app.models import (
    CostMethod,
    NumberedLots,
    Position,
    TradeEvent,
    position_key,
)
from app.ports import BeforeCommit, LedgerWrite, ParkedRecord, StoredTrade, nothing_before

Place = tuple[int, int]
"""Partition and offset in the source topic."""


@dataclass
class MemoryDatabase:
    """The tables.

    Attributes:
        next_offsets: Next source offset, by partition.
        owners: The writer of each partition.
        trades: Rows by place, as text.
        versions: Where each version of a trade stands.
        corrections: Rows by place.
        positions: Lines by partition and key.
        lots: Lines by number, by partition and key.
        dead_letters: Rows by place.
        parked: Rows by place.
        lock: Held by a write to its end, as a row of a partition is: a claim waits for it.
    """

    next_offsets: dict[int, int | None] = field(default_factory=dict)
    owners: dict[int, "MemoryLedger"] = field(default_factory=dict)
    trades: dict[Place, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[int, Place]] = field(default_factory=dict)
    corrections: dict[Place, dict[str, Any]] = field(default_factory=dict)
    positions: dict[tuple[int, str], str] = field(default_factory=dict)
    lots: dict[tuple[int, str], dict[int, str]] = field(default_factory=dict)
    dead_letters: dict[Place, dict[str, Any]] = field(default_factory=dict)
    parked: dict[Place, dict[str, Any]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


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
        async with self._database.lock:
            self._database.owners[partition] = self
        _after(fault)
        return self._database.next_offsets.setdefault(partition, None)

    async def positions(self, partition: int) -> list[Position]:
        """Give the positions of a partition."""
        _after(await self._before("positions"))
        lines = self._database.positions.items()
        return [read_position(line) for (number, _), line in lines if number == partition]

    async def lots(self, partition: int) -> dict[str, NumberedLots]:
        """Give the lots of the positions of a partition that are kept first in, first out."""
        _after(await self._before("lots"))
        lines = []
        for (number, key), line in self._database.positions.items():
            if number == partition and line.endswith(f"\t{CostMethod.FIFO}"):
                cells = [line.split("\t", 1)[1] for line in self._lots_of(number, key)]
                lines += cells or [key + "\t" * (len(STORED_LOT_COLUMNS) - 1)]
        return read_lots(lines)

    def _lots_of(self, number: int, key: str) -> list[str]:
        return [line for _, line in sorted(self._database.lots.get((number, key), {}).items())]

    async def parked(self, partition: int) -> list[ParkedRecord]:
        """Give the parked records of a partition."""
        _after(await self._before("parked"))
        return [
            read_parked("\t".join(row[name] or "" for name in PARKED_RECORD_COLUMNS))
            for (number, _), row in sorted(self._database.parked.items())
            if number == partition
        ]

    async def write(
        self, writes: Mapping[int, LedgerWrite], before_commit: BeforeCommit = nothing_before
    ) -> dict[int, str]:
        """Store what is written, all at once."""
        fault = await self._before("write")
        async with self._database.lock:
            lost = await self._write(writes, before_commit)
        _after(fault)
        return lost

    async def _write(
        self, writes: Mapping[int, LedgerWrite], before_commit: BeforeCommit
    ) -> dict[int, str]:
        new: dict[int, LedgerWrite] = {}
        lost: dict[int, str] = {}
        for number, write in writes.items():
            held = self._database.next_offsets.get(number)
            if self._database.owners.get(number) is not self:
                lost[number] = "another worker has taken it over"
            elif held not in (write.expected, write.next_offset):
                lost[number] = f"the ledger is at offset {held}, not at {write.expected}"
            elif held == write.next_offset != write.expected:
                continue  # stored before
            elif self._notes_ids and self._is_misjudged(write):
                lost[number] = "refuses as new what is booked, or changes what is not"
            else:
                new[number] = write
        keys = [_version_key(row) for write in new.values() for row in _trades(write)]
        is_known = any(version in self._database.versions.get(name, ()) for name, version in keys)
        if self._notes_ids and (len(set(keys)) < len(keys) or is_known):
            if len(writes) == 1:
                return dict.fromkeys(writes, "booked elsewhere meanwhile")
            apart = [
                await self._write({number: writes[number]}, before_commit)
                for number in sorted(writes)
            ]
            return {number: why for one in apart for number, why in one.items()}
        if new:
            await before_commit(new)
        for number, write in new.items():
            self._store(number, write)
        return lost

    def _is_misjudged(self, write: LedgerWrite) -> bool:
        booked = self._database.versions.keys()
        changed = changed_trades(write)
        return bool(booked & write.refused_new or changed - booked)

    def _store(self, number: int, write: LedgerWrite) -> None:
        database = self._database
        database.next_offsets[number] = write.next_offset
        for row in _trades(write):
            place = _place(row)
            assert place not in database.trades, "a primary key twice"
            database.trades[place] = row
            if self._notes_ids:
                trade_id, version = _version_key(row)
                database.versions.setdefault(trade_id, {})[version] = place
        for line in write.corrections:
            row = _row(CORRECTION_COLUMNS, line)
            database.corrections[_place(row)] = row
        for line in write.dead_letters:
            row = _row(DEAD_LETTER_COLUMNS, line)
            assert _place(row) not in database.dead_letters, "a primary key twice"
            database.dead_letters[_place(row)] = row
        self._store_parked(number, write)
        for position in write.positions:
            database.positions[number, position.key] = position_line(
                number, position, write.method_of(position.key)
            )
        for key, change in write.lots.items():
            lots = database.lots.setdefault((number, key), {})
            for start, stop in gone_lots(change):
                for gone in [n for n in lots if start <= n and (stop is None or n < stop)]:
                    del lots[gone]
            for line in lot_lines(number, key, change):
                lot_number = int(line.split("\t")[2])
                assert lot_number not in lots, "a primary key twice"
                lots[lot_number] = line

    def _store_parked(self, number: int, write: LedgerWrite) -> None:
        database = self._database
        for line in write.parked:
            row = dict.fromkeys(PARKED_RECORD_COLUMNS) | _row(PARKED_COLUMNS, line)
            assert _place(row) not in database.parked, "a primary key twice"
            database.parked[_place(row)] = row
        for offset, refusal in write.refused.items():
            why = {name: getattr(refusal, name) for name in ("reason", "kind", "message")}
            database.parked[number, offset].update(why)
        for offset in write.released:
            row = database.parked.pop((number, offset), {"reason": None})
            if row["reason"] is not None:
                assert (number, offset) not in database.dead_letters, "a primary key twice"
                database.dead_letters[number, offset] = {
                    name: row[name] for name in DEAD_LETTER_COLUMNS
                }

    async def find(self, trade_ids: Sequence[str]) -> dict[str, StoredTrade]:
        """Give the trades that the ledger holds of these ids."""
        _after(await self._before("find"))
        known, trades = self._database.versions, self._database.trades
        return {
            trade_id: StoredTrade(
                [_version(trades[place]) for _, place in sorted(known[trade_id].items())]
            )
            for trade_id in trade_ids
            if trade_id in known
        }

    async def history(self, partition: int, key: str) -> list[str] | None:
        """Give the events that were booked of one position, by offset."""
        _after(await self._before("history"))
        return [
            "\t".join(str(row[name]) for name in HISTORY_COLUMNS)
            for (number, _), row in sorted(self._database.trades.items())
            if number == partition and position_key(row["book"], row["symbol"]) == key
        ]

    async def _before(self, operation: str) -> Fault:
        fault = self.faults(operation)
        await asyncio.sleep(0)
        if fault not in (Fault.NONE, Fault.UNKNOWN_STORED):
            raise TransportError(f"{operation}: scripted fault {fault}")
        return fault


def _after(fault: Fault) -> None:
    if fault is Fault.UNKNOWN_STORED:
        raise TransportError("done, and the answer is lost")


_DEFAULTS: Final = {"version": "1", "action": "NEW", "multiplier": "1", "fee": "0"}


def _trades(write: LedgerWrite) -> list[dict[str, Any]]:
    plain = [_row(PLAIN_TRADE_COLUMNS, line) for line in write.plain_trades]
    rows = plain + [_row(TRADE_COLUMNS, line) for line in write.trades]
    return [dict.fromkeys(TRADE_COLUMNS) | _DEFAULTS | row for row in rows]


def _row(columns: Sequence[str], line: str) -> dict[str, Any]:
    cells = zip(columns, line.split("\t"), strict=True)
    return {name: cell or None for name, cell in cells}


def _version_key(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["trade_id"], int(row["version"])


def _version(row: Mapping[str, Any]) -> tuple[TradeEvent, bytes | None]:
    return event_of(row), bytes.fromhex(row["content"][2:]) if row["content"] else None


def _place(row: Mapping[str, Any]) -> Place:
    return int(row["source_partition"]), int(row["source_offset"])
