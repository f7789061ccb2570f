"""What every ledger promises: all or nothing, one writer, a repeated write found to be there."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import pytest

from app.codec import decode_event
from app.content import content_hash
from app.errors import RecordError
from app.ledger_codec import LedgerRows, read_fills
from app.memory_io import MemoryDatabase, MemoryLedger
from app.models import Fee, Lot, LotChange, NumberedLots, Position, Refusal, TradeEvent
from app.money import ONE_E8
from app.ports import Ledger, LedgerWrite, ParkedRecord
from app.validation import check_event
from tests.contract.postgres import Database


class Tables(Protocol):
    """What a test reads of a ledger behind its back."""

    async def trades(self) -> list[tuple[int, int, str]]:
        """Give partition, offset and id of every trade, sorted."""

    async def dead_letters(self) -> list[tuple[int, int, str]]:
        """Give partition, offset and reason of every dead letter, sorted."""

    async def lots(self) -> int:
        """Count the lots of all positions."""


@dataclass
class Backend:
    """One back end with an empty ledger."""

    make: Callable[[], Ledger]
    tables: Tables


class MemoryTables:
    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def trades(self) -> list[tuple[int, int, str]]:
        rows = self._database.trades.items()
        return sorted((*place, row["trade_id"]) for place, row in rows)

    async def dead_letters(self) -> list[tuple[int, int, str]]:
        rows = self._database.dead_letters.items()
        return sorted((*place, row["reason"]) for place, row in rows)

    async def lots(self) -> int:
        return sum(map(len, self._database.lots.values()))


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.integration)])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Give each back end in turn."""
    if request.param == "memory":
        database = MemoryDatabase()
        yield Backend(lambda: MemoryLedger(database), MemoryTables(database))
        return
    real: Database
    async with request.getfixturevalue("new_database")() as real:
        yield Backend(real.ledger, real)


def write(
    partition: int, offsets: range, *, expected: int | None, prefix: str = "T", **more: Any
) -> LedgerWrite:
    """Give a write of one trade for each offset, and of one position."""
    rows = LedgerRows(partition, "USD")
    for offset in offsets:
        event = trade_event(f"{prefix}{offset}")
        rows.add(offset, event, check_event(event), ())
    return LedgerWrite(
        expected=expected,
        next_offset=offsets.stop,
        trades=rows.trades,
        **({"positions": [position(offsets.stop - 1)]} | more),
    )


def trade_event(trade_id: str, **more: Any) -> TradeEvent:
    """Give a trade event."""
    fields: dict[str, Any] = {
        "trade_id": trade_id,
        "symbol": "AAPL",
        "side": "BUY",
        "price": "10.5",
        "quantity": "3",
        "timestamp": "2026-09-01T10:00:00.123456789Z",
    }
    return TradeEvent(**(fields | more))


def position(source_offset: int, **more: Any) -> Position:
    """Give a position up to an offset."""
    fields: dict[str, Any] = {
        "book": None,
        "symbol": "AAPL",
        "currency": "USD",
        "quantity_e8": 3 * ONE_E8,
        "open_cost_e24": 10**24 // 3,
        "realized_e24": -1,
        "mark_e8": 5,
        "mark_ns": 1_756_720_800_123_456_789,
        "trade_count": source_offset + 1,
        "source_offset": source_offset,
    }
    return Position(**(fields | more))


async def test_a_ledger_is_empty_at_first(backend: Backend) -> None:
    """A claim of an unknown partition tells that nothing of it was ever there."""
    ledger = backend.make()
    assert await ledger.claim(0) is None
    assert await ledger.positions(0) == []
    assert await ledger.find(["T1"]) == {}


async def test_trades_positions_and_offset_are_stored_together(backend: Backend) -> None:
    """What was written is there, to the last digit, and the next write goes on after it."""
    ledger = backend.make()
    await ledger.claim(3)
    assert await ledger.write({3: write(3, range(5), expected=None)}) == {}
    assert await ledger.write({3: write(3, range(5, 7), expected=5)}) == {}
    assert await ledger.claim(3) == 7
    assert await ledger.positions(3) == [position(6)]
    assert await backend.tables.trades() == [(3, n, f"T{n}") for n in range(7)]


async def test_a_former_owner_writes_nothing(backend: Backend) -> None:
    """Whoever claimed a partition last is its only writer, at whatever offset the others are."""
    old, new = backend.make(), backend.make()
    await old.claim(0)
    assert await old.write({0: write(0, range(2), expected=None)}) == {}
    assert await new.claim(0) == 2
    assert (await old.write({0: write(0, range(2, 4), expected=2)})).keys() == {0}
    assert await backend.tables.trades() == [(0, 0, "T0"), (0, 1, "T1")]
    assert await new.write({0: write(0, range(2, 3), expected=2)}) == {}
    assert (await old.write({0: write(0, range(2, 3), expected=2)})).keys() == {0}
    assert len(await backend.tables.trades()) == 3


async def test_a_write_that_is_repeated_is_found_to_be_there(backend: Backend) -> None:
    """As after an answer that was lost: nothing is stored twice, and nobody is told to restore."""
    ledger = backend.make()
    await ledger.claim(0)
    for _ in range(2):
        assert await ledger.write({0: write(0, range(3), expected=None)}) == {}
    assert len(await backend.tables.trades()) == 3


async def test_a_write_from_elsewhere_is_refused(backend: Backend) -> None:
    """It must go on where the ledger is: nothing is skipped and nothing is stored again."""
    ledger = backend.make()
    await ledger.claim(0)
    await ledger.write({0: write(0, range(3), expected=None)})
    for offsets, expected in ((range(5, 6), 5), (range(1, 4), 1), (range(1), None)):
        assert (await ledger.write({0: write(0, offsets, expected=expected)})).keys() == {0}
    assert len(await backend.tables.trades()) == 3
    assert await ledger.positions(0) == [position(2)]


async def test_one_lost_partition_does_not_stop_the_others(backend: Backend) -> None:
    """Of several partitions in one call those are stored that are ours."""
    ledger, other = backend.make(), backend.make()
    for number in (0, 1):
        await ledger.claim(number)
    await other.claim(1)
    writes = {n: write(n, range(2), expected=None, prefix=f"P{n}-") for n in (0, 1)}
    assert (await ledger.write(writes)).keys() == {1}
    assert await backend.tables.trades() == [(0, 0, "P0-0"), (0, 1, "P0-1")]
    assert await ledger.claim(1) is None


async def test_a_trade_is_stored_once_in_all_partitions(backend: Backend) -> None:
    """Who writes the id of another partition's trade stores nothing, and has to look again."""
    ledger = backend.make()
    for number in (0, 1):
        await ledger.claim(number)
    assert await ledger.write({0: write(0, range(3), expected=None)}) == {}
    assert (await ledger.write({1: write(1, range(2, 4), expected=None)})).keys() == {1}
    assert len(await backend.tables.trades()) == 3
    assert await ledger.claim(1) is None


async def test_a_write_that_refuses_a_booked_trade_as_a_new_one_is_refused(
    backend: Backend,
) -> None:
    """Nothing of it is stored or sent, of no other partition; what was never booked may be."""
    ledger, before = backend.make(), Before()
    for number in (0, 1):
        await ledger.claim(number)
    assert await ledger.write({0: write(0, range(3), expected=None)}) == {}
    writes = {
        0: write(0, range(3, 5), expected=3, refused_new=["never"]),
        1: write(1, range(1), expected=None, prefix="P1-", refused_new=["never", "T1"]),
    }
    assert (await ledger.write(writes, before)).keys() == {1}
    assert before.calls == [{0}]
    assert [await ledger.claim(n) for n in (0, 1)] == [5, None]
    assert len(await backend.tables.trades()) == 5


async def test_a_write_that_changes_a_trade_that_is_not_there_is_refused(
    backend: Backend,
) -> None:
    """Nothing of it is stored or sent; a trade that begins in the same write is there."""
    ledger, before = backend.make(), Before()
    for number in (0, 1):
        await ledger.claim(number)
    rows = {0: LedgerRows(0, "USD"), 1: LedgerRows(1, "USD")}
    amend = trade_event("T0", action="AMEND", version=2)
    for number, offset, event in ((0, 0, trade_event("T0")), (0, 1, amend), (1, 0, amend)):
        rows[number].add(offset, event, check_event(event), ())
    lone, whole = (
        LedgerWrite(
            expected=None,
            next_offset=next_offset,
            trades=rows[number].trades,
            changed=rows[number].changed,
        )
        for number, next_offset in ((1, 1), (0, 2))
    )
    assert (await ledger.write({1: lone}, before)).keys() == {1}
    assert await ledger.write({0: whole}, before) == {}
    assert before.calls == [{0}]
    assert [await ledger.claim(n) for n in (0, 1)] == [2, None]
    assert await backend.tables.trades() == [(0, 0, "T0"), (0, 1, "T0")]


async def test_a_trade_of_two_partitions_in_one_write_is_stored_once(backend: Backend) -> None:
    """One of the two is stored, and whatever else there is: to look again would find it so."""
    ledger = backend.make()
    for number in (0, 1, 2):
        await ledger.claim(number)
    writes = {n: write(n, range(2), expected=None) for n in (0, 1)}
    writes[2] = write(2, range(2), expected=None, prefix="other")
    (lost,) = await ledger.write(writes)
    (stored,) = {0, 1} - {lost}
    assert await backend.tables.trades() == sorted(
        [(stored, 0, "T0"), (stored, 1, "T1"), (2, 0, "other0"), (2, 1, "other1")]
    )
    assert [await ledger.claim(n) for n in (lost, stored, 2)] == [None, 2, 2]


class Before:
    """Remembers before which commits it was called; may object to one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[set[int]] = []
        self._error = error

    async def __call__(self, partitions: Collection[int]) -> None:
        """Take note."""
        self.calls.append(set(partitions))
        if self._error is not None:
            raise self._error


async def test_what_has_to_leave_before_a_commit_leaves_once_nothing_else_can_fail(
    backend: Backend,
) -> None:
    """Not for a partition that is lost, nor for a trade that is booked, nor for a repeat."""
    ledger, other = backend.make(), backend.make()
    for number in (0, 1):
        await ledger.claim(number)
    await other.claim(2)
    before = Before()
    writes = {n: write(n, range(2), expected=None, prefix=f"P{n}-") for n in range(3)}
    assert (await ledger.write(writes, before)).keys() == {2}
    assert before.calls == [{0, 1}]
    assert (await ledger.write({0: writes[0]}, before)) == {}
    assert (await ledger.write({1: write(1, range(2, 3), expected=2)}, before)) == {}
    assert before.calls == [{0, 1}, {1}]
    repeated = write(0, range(2, 3), expected=2, prefix="T")  # partition 1 has T2
    assert (await ledger.write({0: repeated}, before)).keys() == {0}
    assert before.calls == [{0, 1}, {1}]


async def test_an_error_before_a_commit_undoes_everything(backend: Backend) -> None:
    """And is raised as it is."""
    ledger = backend.make()
    await ledger.claim(0)
    with pytest.raises(ZeroDivisionError):
        await ledger.write({0: write(0, range(2), expected=None)}, Before(ZeroDivisionError()))
    assert await backend.tables.trades() == []
    assert await ledger.write({0: write(0, range(2), expected=None)}) == {}


async def test_a_claim_waits_for_the_write_of_the_former_owner(backend: Backend) -> None:
    """What leaves before a commit leaves as long as the partition is ours."""
    old, new = backend.make(), backend.make()
    await old.claim(0)
    claiming: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def before(_: Collection[int]) -> None:
        nonlocal claiming
        claiming = asyncio.ensure_future(new.claim(0))
        await asyncio.wait([claiming], timeout=0.2)
        assert not claiming.done()

    assert await old.write({0: write(0, range(2), expected=None)}, before) == {}
    assert await claiming == 2


async def test_trades_are_found_by_their_ids(backend: Backend) -> None:
    """With everything that their content is compared by, and none that is not there."""
    ledger = backend.make()
    await ledger.claim(0)
    event = trade_event(
        "T1",
        book='B\\k"1',
        currency="EUR",
        contract_multiplier="2.5",
        isin="US0378331005",
        fees=[Fee(amount="1.25")],
    )
    rows = LedgerRows(0, "USD")
    rows.add(4, event, check_event(trade_event("T1", contract_multiplier="2.5")), ("late",))
    await ledger.write({0: LedgerWrite(expected=None, next_offset=5, trades=rows.trades)})
    found = await ledger.find(["T0", "T1", "T'2"])
    assert found.keys() == {"T1"}
    ((stored, content),) = found["T1"].versions
    assert (stored.book, stored.isin, content) == ('B\\k"1', "US0378331005", None)
    assert (stored.currency, stored.version) == ("EUR", 1)
    assert content_hash(stored, default_currency="USD") == content_hash(
        event, default_currency="USD"
    )


_ODD: tuple[object, ...] = (
    *("", "\x00", "\\x", "'", "\u00e9\U0001f600", "1e400", "0.1", "x" * 256, "x" * 257),
    *(True, 0, -1, 2**31, 2**64, -(10**30), 1e-7, 0.1 + 0.2, 1.0825123456789, 1e308),
    *([], {}, ["\x00"], {"a": "\x00"}),
    *([{"amount": amount}] for amount in (0.1 + 0.2, 1e-7, 1e3, "0.10", -5, "999999999999")),
    [{"amount": 999_999_999_999, "type": "\x00"}],
    [{"amount": 999_999_999_999}, {"amount": 999_999_999_999}],
)


async def test_what_passes_the_checks_can_be_stored_and_says_the_same(backend: Backend) -> None:
    """Whatever value a field has: it is refused, or any ledger takes it."""
    ledger = backend.make()
    expected = await ledger.claim(0)
    rows, sent = LedgerRows(0, "USD"), dict[str, bytes]()
    for field in sorted({*TradeEvent.__struct_fields__} - {"version"}):  # that follows the last one
        for value in _ODD:
            body = msgspec.to_builtins(trade_event(f"T{len(sent)}")) | {field: value}
            try:
                event = decode_event(json.dumps(body).encode())[0]
                checked = check_event(event)
            except RecordError:
                continue
            rows.add(len(sent), event, checked, checked.suspects)
            sent[str(event.trade_id)] = content_hash(event, default_currency="USD")
    assert len(sent) > len(TradeEvent.__struct_fields__)
    end = len(sent)
    await ledger.write({0: LedgerWrite(expected=expected, next_offset=end, trades=rows.trades)})
    found = await ledger.find(list(sent))
    stored = {trade_id: trade.versions[-1][0] for trade_id, trade in found.items()}
    said = {name: content_hash(event, default_currency="USD") for name, event in stored.items()}
    assert said == sent


async def test_dead_letters_are_noted_where_they_stood(backend: Backend) -> None:
    """With their reason, in the same write."""
    ledger = backend.make()
    await ledger.claim(0)
    rows = LedgerRows(0, "USD")
    rows.add_refusal(7, Refusal(0, "price-missing", "price is required", "validation", "E"))
    await ledger.write(
        {0: LedgerWrite(expected=None, next_offset=8, dead_letters=rows.dead_letters)}
    )
    assert await backend.tables.dead_letters() == [(0, 7, "price-missing")]


async def test_positions_come_back_as_they_went_in(backend: Backend) -> None:
    """Names with every character that is allowed, amounts of any length, and the last state."""
    ledger = backend.make()
    await ledger.claim(0)
    odd = position(
        3,
        book="a\\b\\\\n 'é\u00df",
        symbol="{x}\\N",
        currency=None,
        open_cost_e24=-(10**60) - 1,
        origins={1: 10**12, 7: 0},
        generation=4,
    )
    await ledger.write({0: write(0, range(4), expected=None, positions=[odd, position(3)])})
    await ledger.write({0: write(0, range(4, 5), expected=4, positions=[position(4)])})
    assert {p.key: p for p in await ledger.positions(0)} == {odd.key: odd, "AAPL": position(4)}


def lot(quantity: int, price: int = 10, **more: Any) -> Lot:
    """Give a lot."""
    fields: dict[str, Any] = {"fee_e24": 0, "time_ns": 1, "offset": 0}
    return Lot(quantity * ONE_E8, price * ONE_E8, **(fields | more))


async def test_lots_come_back_as_they_went_in(backend: Backend) -> None:
    """Those of every position that has a method for them, to the last digit, in their order."""
    ledger = backend.make()
    for number in (0, 1):
        await ledger.claim(number)
    odd = position(3, book="a\\b\\\\ 'é", symbol="{x}\\N")
    lots = [
        lot(1, fee_e24=-(10**36) - 1, time_ns=-(10**18), offset=2**62),
        Lot(-(10**19) - 1, -1, 1, 0, 0),
    ]
    lots += [lot(1, n) for n in range(1, 12)]
    changes = {
        odd.key: LotChange(0, range(0), [*enumerate(lots)]),
        "FLAT": LotChange(0, range(0), []),
    }
    positions = [odd, position(3, symbol="FLAT"), position(3)]
    one = write(0, range(4), expected=None, positions=positions, lots=changes)
    other = write(1, range(1), expected=None, prefix="O", lots={"AAPL": changes["FLAT"]})
    assert await ledger.write({0: one, 1: other}) == {}
    assert await ledger.lots(0) == {odd.key: NumberedLots(0, lots), "FLAT": NumberedLots(0, [])}
    assert await ledger.lots(1) == {"AAPL": NumberedLots(0, [])}
    assert {p.key: p for p in await ledger.positions(0)} == {p.key: p for p in positions}


async def test_what_became_of_lots_is_stored(backend: Backend) -> None:
    """Closed, made smaller, added; of others nothing is touched; and once more if repeated."""
    ledger = backend.make()
    await ledger.claim(0)
    steps = [
        (LotChange(0, range(0), [(n, lot(9, n)) for n in range(4)]), 0, [9, 9, 9, 9]),
        (LotChange(0, range(2, 4), [(1, lot(5, 1)), (4, lot(7, 4))]), 1, [5, 9, 9, 7]),
        (LotChange(1, range(1, 5), []), 1, [5, 9, 9, 7]),
        (LotChange(1, range(4, 5), []), 4, [7]),
        (LotChange(4, range(6, 6), [(6, lot(-3, 8))]), 6, [-3]),
        (LotChange(0, range(0), [(0, lot(1)), (1, lot(2))]), 0, [1, 2]),
        (LotChange(0, range(2, 2), []), 0, []),
    ]
    for offset, (change, first, expected) in enumerate(steps):
        one = write(0, range(offset, offset + 1), expected=offset or None, lots={"AAPL": change})
        for _ in range(2):
            assert await ledger.write({0: one}) == {}
        found = (await ledger.lots(0))["AAPL"]
        assert (found.first, [lot.quantity_e8 // ONE_E8 for lot in found.lots]) == (first, expected)


async def test_a_position_that_is_folded_anew_is_written_without_an_offset(
    backend: Backend,
) -> None:
    """By either method, whatever was there, and again."""
    ledger = backend.make()
    await ledger.claim(0)
    await ledger.write({0: write(0, range(2), expected=None)})
    assert await ledger.lots(0) == {}
    by_fifo = LotChange(0, range(0), [(0, lot(1)), (1, lot(2))])
    for generation, change in enumerate([by_fifo, None, by_fifo]):
        anew = position(1, generation=generation)
        for _ in range(2):
            one = LedgerWrite(2, 2, positions=[anew], lots={"AAPL": change})
            assert await ledger.write({0: one}) == {}
            found = {} if change is None else {"AAPL": NumberedLots(0, [lot(1), lot(2)])}
            assert await ledger.lots(0) == found
            assert await ledger.positions(0) == [anew]
        assert await backend.tables.lots() == (0 if change is None else 2)


async def test_lots_of_a_write_that_is_refused_are_not_stored(backend: Backend) -> None:
    """They change with their position, or not at all."""
    old, new = backend.make(), backend.make()
    await old.claim(0)
    change = LotChange(0, range(0), [(0, lot(3))])
    await old.write({0: write(0, range(2), expected=None, lots={"AAPL": change})})
    await new.claim(0)
    gone = LotChange(0, range(1, 1), [(1, lot(4))])
    late = write(0, range(2, 3), expected=2, lots={"AAPL": gone})
    assert (await old.write({0: late})).keys() == {0}
    assert (await new.write({0: write(0, range(1, 3), expected=1, lots={"AAPL": gone})})) != {}
    assert await new.lots(0) == {"AAPL": NumberedLots(0, [lot(3)])}


async def test_two_writers_at_once_store_what_one_of_them_wrote(backend: Backend) -> None:
    """However their transactions interleave."""
    ledgers = [backend.make() for _ in range(4)]
    for ledger in ledgers:
        await ledger.claim(0)
    outcomes = await asyncio.gather(
        *(ledger.write({0: write(0, range(3), expected=None)}) for ledger in ledgers)
    )
    assert [bool(lost) for lost in outcomes] == [True, True, True, False]
    assert len(await backend.tables.trades()) == 3


def parking(partition: int, *records: ParkedRecord, **more: Any) -> dict[int, LedgerWrite]:
    """Give a first write that parks records and moves the offset behind them."""
    rows = LedgerRows(partition, "USD")
    for record in records:
        rows.park(record, trade_event(f"T{record.offset}", action="AMEND", **more))
    next_offset = max(record.offset for record in records) + 1
    return {partition: LedgerWrite(None, next_offset, parked=list(rows.parked.values()))}


def parked(offset: int, **more: Any) -> ParkedRecord:
    """Give a parked record."""
    fields: dict[str, Any] = {
        "timestamp": 1_790_000_000_000,
        "key": b"AAPL",
        "value": b'{"trade_id": "T"}',
        "headers": [],
        "parked_ns": 1_790_000_000_123_456_789,
    }
    return ParkedRecord(offset, **(fields | more))


ORPHAN = Refusal(-1, "orphan-lifecycle", "it did\\n not come", "business", "InvalidTradeError")


async def test_parked_records_come_back_as_they_went_in(backend: Backend) -> None:
    """Every byte of them, by offset, and those of no other partition."""
    ledger = backend.make()
    records = [
        parked(7, key=None, timestamp=-1),
        parked(2, key=b"", value=bytes(range(256))),
        parked(
            5,
            key=b"\\x\t\n\0",
            headers=[("a\\b\tc\nd\0", b"\0\xff"), ("é\u2028", None), ("é\u2028", b"")],
        ),
    ]
    for number in (0, 1):
        await ledger.claim(number)
        assert await ledger.parked(number) == []
    more = {"version": 10**30, "book": "a\\b"}
    assert await ledger.write(parking(0, *records, **more) | parking(1, parked(0))) == {}
    assert await ledger.parked(0) == [records[1], records[2], records[0]]
    assert await ledger.parked(1) == [parked(0)]


async def test_what_becomes_of_parked_records_may_be_written_without_an_offset(
    backend: Backend,
) -> None:
    """And again: a refusal stays until it is released as a dead letter; others leave nothing."""
    ledger = backend.make()
    await ledger.claim(0)
    for _ in range(2):
        assert await ledger.write(parking(0, *map(parked, range(4)))) == {}
    for _ in range(2):
        write = LedgerWrite(expected=4, next_offset=4, refused={1: ORPHAN, 3: ORPHAN})
        assert await ledger.write({0: write}) == {}
        found = {record.offset: record.refusal for record in await ledger.parked(0)}
        assert found == {0: None, 1: ORPHAN, 2: None, 3: ORPHAN}
        assert await backend.tables.dead_letters() == []
    for _ in range(2):
        write = LedgerWrite(expected=4, next_offset=4, released=[0, 1])
        assert await ledger.write({0: write}) == {}
        assert [record.offset for record in await ledger.parked(0)] == [2, 3]
        assert await backend.tables.dead_letters() == [(0, 1, "orphan-lifecycle")]
    assert await ledger.claim(0) == 4


async def test_a_parked_record_is_released_with_its_effect(backend: Backend) -> None:
    """It is booked at its own place, before the offset that the ledger had reached."""
    ledger = backend.make()
    await ledger.claim(0)
    await ledger.write(parking(0, parked(0), parked(1)))
    rows = LedgerRows(0, "USD")
    for offset, version in ((0, 2), (2, 1)):
        event = trade_event("T", version=version, action="AMEND" if version > 1 else "NEW")
        rows.add(offset, event, check_event(event), ())
    write = LedgerWrite(2, 3, trades=rows.trades, released=[0], positions=[position(2)])
    for _ in range(2):
        assert await ledger.write({0: write}) == {}
    assert await backend.tables.trades() == [(0, 0, "T"), (0, 2, "T")]
    assert [record.offset for record in await ledger.parked(0)] == [1]
    lines = await ledger.history(0, "AAPL")
    assert lines is not None
    (fill,) = read_fills(lines)
    assert (fill.trade_id, fill.offset) == ("T", 2)


async def test_a_former_owner_releases_nothing(backend: Backend) -> None:
    """Nor does anybody who is not where the ledger is."""
    old, new = backend.make(), backend.make()
    await old.claim(0)
    await old.write(parking(0, parked(0)))
    assert await new.claim(0) == 1
    for ledger, offset in ((old, 1), (new, 2), (new, 0)):
        for more in ({"refused": {0: ORPHAN}}, {"released": [0]}):
            write = LedgerWrite(offset, offset, **more)
            assert (await ledger.write({0: write})).keys() == {0}
    assert await new.parked(0) == [parked(0)]
    assert await backend.tables.dead_letters() == []
