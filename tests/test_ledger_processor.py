"""Trades that live on: amended and cancelled, in one batch or in several, in memory alone."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from app import ledger_processor
from app.codec import MAX_COMMON_BYTES, read_plain
from app.ledger_codec import position_line, read_fills
from app.ledger_processor import LedgerProcessor
from app.memory_io import MemoryDatabase, MemoryLedger
from app.models import Fate, Position
from app.ports import Ledger, LedgerWrite, RecordBatch
from app.services import BatchResult
from tests.test_services import StoredRecord

TIME = "2026-01-02T03:04:05.000001Z"


def event(trade_id: str, quantity: int, price: str = "10", **more: Any) -> bytes:
    """Write one event; a sale has a quantity below zero."""
    fields = {
        "trade_id": trade_id,
        "symbol": "ABC",
        "side": "BUY" if quantity > 0 else "SELL",
        "price": price,
        "quantity": str(abs(quantity)),
        "timestamp": TIME,
    }
    return json.dumps(fields | more).encode()


class Desk:
    """A processor with a ledger, which it is told of as the loop would tell it.

    Args:
        ledger: Where it stores; one in memory without.
        next_offset: What the ledger has.
    """

    def __init__(self, ledger: Ledger | None = None, *, next_offset: int = 0) -> None:
        self.database = MemoryDatabase()
        self.ledger: Ledger = ledger or MemoryLedger(self.database)
        self.processor = LedgerProcessor()
        self.next_offset = next_offset
        self._is_claimed = False

    async def process(self, *values: bytes) -> BatchResult:
        """Process values as one batch, and store what it leaves."""
        start = self.next_offset
        records = [StoredRecord(start + n, value) for n, value in enumerate(values)]
        batch = RecordBatch.of(0, 1, records, start + len(values))
        if not self._is_claimed:
            self._is_claimed = True
            await self.ledger.claim(0)
        events = read_plain(batch.values)
        for key in self.processor.missing_histories(batch, events):
            lines = await self.ledger.history(0, key)
            assert lines is not None
            self.processor.load_history(key, read_fills(lines))
        ids = [json.loads(value)["trade_id"] for value in values]
        events = self.processor.recall(await self.ledger.find(ids), events)
        result = self.processor.process_batch(batch, events=events)
        assert result.rows is not None
        write = LedgerWrite(
            expected=start or None,
            next_offset=batch.next_offset,
            plain_trades=result.rows.plain_trades,
            trades=result.rows.trades,
            corrections=result.rows.corrections,
            positions=list(result.changed.values()),
        )
        assert await self.ledger.write({0: write}) == {}
        self.processor.identity.settle()
        self.next_offset = batch.next_offset
        return result

    def restart(self, positions: Sequence[Position] | None = None) -> None:
        """Forget everything but the positions that the ledger has."""
        self.processor = LedgerProcessor([self.position] if positions is None else positions)

    @property
    def position(self) -> Position:
        """The position, which is the same in memory and in the ledger."""
        ((_, line),) = self.database.positions.items()
        held = self.processor.positions["ABC"]
        assert position_line(0, held) == line
        return held

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Quantity, open cost and realised PnL in whole units."""
        position = self.position
        return (
            position.quantity_e8 // 10**8,
            position.open_cost_e24 // 10**24,
            position.realized_e24 // 10**24,
        )


def reasons(result: BatchResult) -> list[str]:
    """Give the reason codes of a batch."""
    return [refusal.reason for refusal in result.refusals]


AMEND: dict[str, Any] = {"action": "AMEND", "version": 2}
CANCEL: dict[str, Any] = {"action": "CANCEL", "version": 3}


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_amend_and_then_cancel_recompute_the_position(*, is_restarted: bool) -> None:
    """The worked case: 100 bought at 10, 60 sold at 11; the former amended to 10.50, then gone."""
    desk = Desk()
    await desk.process(event("B", 100, "10"), event("S", -60, "11"))
    assert desk.numbers == (40, 400, 60)
    if is_restarted:
        desk.restart()
    result = await desk.process(event("B", 100, "10.50", **AMEND))
    assert desk.numbers == (40, 420, 30)
    assert result.fates[Fate.BOOKED] == 1
    if is_restarted:
        desk.restart()
    await desk.process(event("B", 100, "10.50", **CANCEL))
    assert desk.numbers == (-60, -660, 0)
    rows = [desk.database.corrections[0, offset] for offset in (2, 3)]
    shown = [(row["realized_before"], row["realized_after"]) for row in rows]
    assert shown == [("60", "30"), ("30", "0")]


async def test_a_life_in_one_batch() -> None:
    """NEW, AMEND, CANCEL and repeats of all of them, before the ledger has any of it."""
    desk = Desk()
    new, amend = event("B", 100), event("B", 100, "10.50", **AMEND)
    cancel = event("B", 100, "10.50", **CANCEL)
    result = await desk.process(new, amend, amend, new, cancel, cancel, amend)
    assert result.fates == {Fate.BOOKED: 3, Fate.DUPLICATE: 2, Fate.STALE: 2}
    assert desk.numbers == (0, 0, 0)
    assert desk.position.trade_count == 0
    assert desk.position.source_offset == 4


@pytest.mark.parametrize(
    ("before", "value", "reason"),
    [
        ([], event("B", 100, **AMEND), "orphan-lifecycle"),
        ([], event("B", 100, **CANCEL), "orphan-lifecycle"),
        ([event("B", 100)], event("B", 100, **CANCEL), "orphan-lifecycle"),
        ([], event("B", 100, version=2), "version-invalid"),
        ([event("B", 100)], event("B", 100, action="AMEND", version=1), "version-conflict"),
        ([event("B", 100)], event("B", 101), "version-conflict"),
        ([event("B", 100)], event("B", 100, book="X", **AMEND), "key-changed"),
        ([event("B", 100)], event("B", 1, book="X", action="CANCEL", version=2), "key-changed"),
        (
            [event("B", 100)],
            event("B", 100, currency="EUR", **AMEND),
            "currency-differs-from-position",
        ),
        (
            [event("B", 100), event("C", 100)],
            event("B", 100, contract_multiplier="2", **AMEND),
            "multiplier-differs-from-position",
        ),
        (
            [event("B", 100), event("B", 100, action="CANCEL", version=2)],
            event("B", 100, action="AMEND", version=3),
            "after-cancel",
        ),
    ],
)
async def test_what_cannot_be_applied_changes_nothing(
    before: Sequence[bytes], value: bytes, reason: str
) -> None:
    """In the batch of what came before it, and in one of its own."""
    for is_together in (True, False):
        desk = Desk()
        if is_together:
            result = await desk.process(*before, value)
        else:
            if before:
                await desk.process(*before)
            result = await desk.process(value)
        assert reasons(result) == [reason]
        changes = [row for row in desk.database.trades.values() if row["action"] == "AMEND"]
        assert changes == []


async def test_an_amend_keeps_the_place_in_time_of_its_trade() -> None:
    """The first execution time stays, the one that was sent is kept, and the trade is suspect."""
    desk = Desk()
    later = "2026-01-02T03:05:00Z"
    await desk.process(
        event("B", 100, "10"), event("S", -50, "12", timestamp=later), event("C", 50, "11")
    )
    result = await desk.process(event("B", 100, "10.50", timestamp="2026-01-02T03:06:00Z", **AMEND))
    assert result.suspects == {"execution-time-changed": 1}
    # Bought 100 at 10.50 and 50 at 11, sold 50 of them at 12 after that.
    assert desk.numbers[0] == 100
    assert desk.position.realized_e24 == 600 * 10**24 - 1600 * 10**24 // 3
    row = desk.database.trades[0, 3]
    assert json.loads(row["details"])["event_time"] == "2026-01-02T03:06:00Z"
    assert row["executed_ns"] == desk.database.trades[0, 0]["executed_ns"]
    again = await desk.process(event("B", 100, "10.50", timestamp="2026-01-02T03:06:00Z", **AMEND))
    assert again.fates[Fate.DUPLICATE] == 1


async def test_an_amend_without_a_version_is_the_next_one() -> None:
    """And suspect for that; the same again is a repeat."""
    desk = Desk()
    await desk.process(event("B", 100))
    for fate in (Fate.BOOKED, Fate.DUPLICATE):
        result = await desk.process(event("B", 90, action="AMEND"))
        assert result.fates[fate] == 1
    assert desk.database.trades[0, 1]["version"] == "2"
    assert desk.database.trades[0, 1]["suspects"] == "{version-guessed}"


async def test_trades_after_an_amend_are_part_of_the_next_one() -> None:
    """Common trades, too, are noted once the past of their position is known."""
    desk = Desk()
    await desk.process(event("B", 100), event("B", 100, "11", **AMEND))
    await desk.process(event("C", 100, "13"))
    await desk.process(event("B", 100, "12", action="AMEND", version=3))
    assert desk.numbers == (200, 2500, 0)


async def test_a_large_event_is_known_again() -> None:
    """A body that is too large to be read the short way lives like any other."""
    desk = Desk()
    padding = b" " * MAX_COMMON_BYTES
    large, amend = event("B", 100) + padding, event("B", 90, **AMEND) + padding
    result = await desk.process(large, large, amend, amend)
    assert result.fates == {Fate.BOOKED: 2, Fate.DUPLICATE: 2}


async def test_the_past_of_few_positions_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not needed now makes room, is loaded again when it is, and the sums stay right."""
    monkeypatch.setattr(ledger_processor, "MOST_FILLS", 1)
    desk = Desk()
    symbols: list[dict[str, Any]] = [{"symbol": f"S{n}"} for n in range(4)]
    for n, symbol in enumerate(symbols):
        await desk.process(event(f"A{n}", 100, **symbol), event(f"B{n}", 100, **symbol))
        await desk.process(event(f"A{n}", 100, "12", **AMEND, **symbol))
    assert desk.processor._histories.keys() == {"S3"}
    for n, symbol in enumerate(symbols):
        await desk.process(event(f"C{n}", 100, "10", **symbol))
        await desk.process(event(f"B{n}", 100, "12", **AMEND, **symbol))
        position = desk.processor.positions[f"S{n}"]
        assert (position.quantity_e8, position.open_cost_e24) == (300 * 10**8, 3400 * 10**24)


async def test_changes_of_positions_that_do_not_exist_leave_nothing() -> None:
    """However many a sender makes up."""
    desk = Desk()
    for n in range(3):
        await desk.process(event(f"T{n}", 1, symbol=f"S{n}", **AMEND))
    assert len(desk.processor._histories) <= 1
    assert not desk.processor.positions


async def test_a_position_with_pruned_trades_is_not_folded_again() -> None:
    """A sum that lacked them would be wrong: the change is refused, and the position stays."""
    desk = Desk()
    await desk.process(event("B", 100))
    desk.restart()
    desk.processor.load_history("ABC", None)
    result = await desk.process(event("B", 90, **AMEND), event("C", 5))
    assert reasons(result) == ["history-pruned"]
    assert desk.numbers == (105, 1050, 0)
