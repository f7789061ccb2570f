"""Trades that live on: amended and cancelled, in one batch or in several, in memory alone."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app import ledger_processor, parking, services
from app.checkpoint import PartitionEffects
from app.codec import MAX_COMMON_BYTES, read_plain
from app.errors import InvalidTradeError
from app.ledger_codec import position_line, read_fills
from app.ledger_processor import LedgerProcessor
from app.memory_io import MemoryDatabase, MemoryLedger
from app.models import CostMethod, Fate, Position
from app.pnl.fifo import FifoHolding
from app.pnl.fills import method_of, replay
from app.ports import Ledger, LedgerWrite, ParkedRecord, RecordBatch
from app.services import BatchResult
from app.timestamps import NS_PER_S
from tests.test_services import StoredRecord

TIME = "2026-01-02T03:04:05.000001Z"
NOW_NS = 1_790_000_000 * NS_PER_S


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
        options: Of the processor.

    Attributes:
        now_ns: The clock.
    """

    def __init__(
        self, ledger: Ledger | None = None, *, next_offset: int = 0, **options: Any
    ) -> None:
        self.database = MemoryDatabase()
        self.ledger: Ledger = ledger or MemoryLedger(self.database)
        self.processor = LedgerProcessor(**options)
        self.next_offset = next_offset
        self.now_ns = NOW_NS
        self._options = options
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
        ids = [json.loads(value)["trade_id"] for value in values]
        for key in self.processor.missing_histories(batch, events, ids):
            lines = await self.ledger.history(0, key)
            assert lines is not None
            self.processor.load_history(key, read_fills(lines))
        events = self.processor.recall(await self.ledger.find(ids), events)
        result = self.processor.process_batch(batch, events=events, now_ns=self.now_ns)
        assert result.rows is not None
        effects = PartitionEffects(0, rows=result.rows, ledger_offset=start or None)
        effects.touched |= dict.fromkeys(result.touched)
        effects.freeze(batch.next_offset)
        assert await self.ledger.write({0: effects.for_ledger()}) == {}
        self.processor.identity.settle()
        self.next_offset = batch.next_offset
        await self._dead_letter(result.late_refusals)
        return result

    async def give_up_waiting(self, *, at_most: int = 100) -> list[ParkedRecord]:
        """Dead-letter what has waited for too long."""
        late = self.processor.overdue(self.now_ns, at_most=at_most)
        await self._dead_letter(late)
        return late

    async def _dead_letter(self, late: Sequence[ParkedRecord]) -> None:
        refused = {record.offset: record.refusal for record in late if record.refusal is not None}
        for more in ({"refused": refused}, {"released": list(refused)}):
            write = LedgerWrite(self.next_offset, self.next_offset, **more)
            assert await self.ledger.write({0: write}) == {}

    async def restart(self) -> None:
        """Forget everything but what the ledger has."""
        self.processor = LedgerProcessor(
            await self.ledger.positions(0), lots=await self.ledger.lots(0), **self._options
        )
        self.processor.restore(await self.ledger.parked(0))

    @property
    def position(self) -> Position:
        """The position, which is the same in memory and in the ledger."""
        ((_, line),) = self.database.positions.items()
        held = self.processor.positions["ABC"]
        method = method_of(held.book, self._options.get("fifo_books", ()))
        assert position_line(0, held, method) == line
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
        await desk.restart()
    result = await desk.process(event("B", 100, "10.50", **AMEND))
    assert desk.numbers == (40, 420, 30)
    assert result.fates[Fate.BOOKED] == 1
    if is_restarted:
        await desk.restart()
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


async def test_the_past_does_not_grow_for_ever_after_the_last_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A position whose trades are never changed again is as cheap as any other in the end."""
    monkeypatch.setattr(ledger_processor, "MOST_FILLS", 10)
    desk = Desk()
    await desk.process(event("A", 100), event("A", 200, **AMEND))
    for n in range(12):
        await desk.process(event(f"B{n}", 1))
    assert not desk.processor._histories
    await desk.process(event("A", 300, **AMEND | {"version": 3}))
    assert desk.numbers[0] == 312


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
    await desk.restart()
    desk.processor.load_history("ABC", None)
    result = await desk.process(event("B", 90, **AMEND), event("C", 5))
    assert reasons(result) == ["history-pruned"]
    assert desk.numbers == (105, 1050, 0)


# -- what comes too early


LIFE = [event("B", 100), event("B", 90, "10.50", **AMEND), event("B", 90, "10.50", **CANCEL)]


def late_reasons(late: Sequence[ParkedRecord]) -> list[str]:
    """Give the reason codes of parked records that are refused."""
    return [record.refusal.reason for record in late if record.refusal is not None]


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("is_together", [True, False])
async def test_row_9_a_change_waits_for_its_new(*, is_together: bool, is_restarted: bool) -> None:
    """In one batch, in several, and over a restart; it is booked at its own place."""
    desk = Desk()
    new, amend, cancel = LIFE
    if is_together:
        result = await desk.process(cancel, amend, new)
    else:
        result = await desk.process(cancel, amend)
        assert not result.fates.total()
        assert result.changed == {}
        assert desk.processor.parked == {0, 1}
        assert [row["action"] for row in desk.database.parked.values()] == ["CANCEL", "AMEND"]
        if is_restarted:
            await desk.restart()
        assert desk.processor.parked == {0, 1}
        result = await desk.process(new)
    assert result.fates == {Fate.BOOKED: 3}
    rows = [(place, row["version"]) for place, row in sorted(desk.database.trades.items())]
    assert rows == [((0, 0), "3"), ((0, 1), "2"), ((0, 2), "1")]
    assert desk.numbers == (0, 0, 0)
    assert desk.position.source_offset == 2
    assert not desk.processor.has_parked
    assert desk.database.parked == {}
    assert desk.database.corrections.keys() == {(0, 0), (0, 1)}


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_row_8_a_version_waits_for_the_one_before_it(*, is_restarted: bool) -> None:
    """The version between lets it go on; trades that are nobody's business are booked meanwhile."""
    desk = Desk()
    new, amend, cancel = LIFE
    await desk.process(new)
    result = await desk.process(cancel, event("C", 5))
    assert result.fates == {Fate.BOOKED: 1}
    if is_restarted:
        await desk.restart()
    result = await desk.process(event("D", 5), amend)
    assert result.fates == {Fate.BOOKED: 3}
    assert desk.numbers == (10, 100, 0)
    assert desk.position.source_offset == 4


async def test_what_has_waited_is_part_of_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position is folded again although the NEW stands behind its AMEND, whoever does it."""
    desk = Desk()
    await desk.process(LIFE[1], event("C", 10, "13"))
    await desk.process(LIFE[0])
    assert desk.numbers == (100, 1075, 0)
    await desk.restart()
    await desk.process(event("C", 20, "13", **AMEND))
    assert desk.numbers == (110, 1205, 0)
    await desk.process(LIFE[2])
    assert desk.numbers == (20, 260, 0)
    monkeypatch.setattr(ledger_processor, "MOST_FILLS", 1)
    await desk.restart()
    await desk.process(event("C", 30, "13", action="AMEND", version=3))
    assert desk.numbers == (30, 390, 0)


async def test_what_has_waited_is_judged_as_if_it_came_then() -> None:
    """One is booked; its repeats, other contents and what can never be applied are not."""
    desk = Desk()
    new, amend, cancel = LIFE
    await desk.process(
        *(amend, amend, event("B", 80, **AMEND), event("B", 80, symbol="X", **AMEND)),
        *(cancel, cancel, event("B", 70, action="AMEND", version=4), event("Z", 1, **AMEND)),
    )
    assert len(desk.database.parked) == 8
    result = await desk.process(new)
    assert result.fates == {Fate.BOOKED: 3, Fate.DUPLICATE: 2}
    letters = {place[1]: row["reason"] for place, row in desk.database.dead_letters.items()}
    assert letters == {2: "version-conflict", 3: "version-conflict", 6: "after-cancel"}
    assert desk.database.parked.keys() == {(0, 7)}


async def test_a_change_under_another_name_is_found_out_when_its_new_comes() -> None:
    """Although the NEW is a common trade of a position that nothing waits for."""
    desk = Desk()
    await desk.process(event("C", 5), event("B", 90, symbol="X", **AMEND))
    await desk.process(event("D", 5))
    result = await desk.process(event("B", 100))
    assert late_reasons(result.late_refusals) == ["key-changed"]
    assert result.fates == {Fate.BOOKED: 1}
    assert not desk.processor.has_parked


async def test_what_follows_a_refused_event_goes_on_waiting() -> None:
    """The refused one changes nothing; another one in its place does."""
    desk = Desk()
    await desk.process(event("B", 90, currency="EUR", **AMEND), LIFE[2])
    result = await desk.process(LIFE[0])
    assert late_reasons(result.late_refusals) == ["currency-differs-from-position"]
    assert desk.processor.parked == {1}
    result = await desk.process(LIFE[1])
    assert result.fates == {Fate.BOOKED: 2}
    assert desk.numbers == (0, 0, 0)


async def test_a_change_without_a_version_closes_a_gap() -> None:
    """It follows those with a version, and they are judged again after it."""
    desk = Desk()
    await desk.process(event("B", 80, action="AMEND"), LIFE[2])
    result = await desk.process(LIFE[0])
    assert result.fates == {Fate.BOOKED: 3}
    assert result.suspects == {"version-guessed": 1}
    assert desk.database.trades[0, 0]["version"] == "2"


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_row_10_nothing_waits_beyond_its_deadline(*, is_restarted: bool) -> None:
    """It is dead-lettered, and known by when its waiting began; what comes after it is too late."""
    desk = Desk(park_deadline_ns=100)
    await desk.process(LIFE[1])
    desk.now_ns += 50
    await desk.process(LIFE[2])
    desk.now_ns += 49
    if is_restarted:
        await desk.restart()
    assert await desk.give_up_waiting() == []
    desk.now_ns += 1
    (late,) = await desk.give_up_waiting()
    assert (late_reasons([late]), late.offset, late.value) == (["orphan-lifecycle"], 0, LIFE[1])
    assert late.parked_ns == NOW_NS
    assert desk.database.dead_letters[0, 0]["reason"] == "orphan-lifecycle"
    assert desk.processor.parked == {1}
    result = await desk.process(LIFE[0])
    assert result.fates == {Fate.BOOKED: 1}
    assert desk.numbers == (100, 1000, 0)


async def test_what_is_overdue_is_given_up_piece_by_piece() -> None:
    """However much there is, the loop goes on in between."""
    desk = Desk(park_deadline_ns=0)
    await desk.process(*(event(f"T{n}", 1, **AMEND) for n in range(5)))
    assert [len(await desk.give_up_waiting(at_most=2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_a_refusal_that_the_ledger_has_is_what_becomes_of_a_record() -> None:
    """Whoever takes over sends its dead letter, although the NEW is there by now."""
    desk = Desk(park_deadline_ns=100)
    await desk.process(LIFE[1])
    desk.now_ns += 100
    (late,) = desk.processor.overdue(desk.now_ns, at_most=9)
    assert late.refusal is not None
    await desk.ledger.write({0: LedgerWrite(1, 1, refused={0: late.refusal})})
    await desk.restart()
    assert desk.processor.parked == {0}
    result = await desk.process(LIFE[0])
    assert result.fates == {Fate.BOOKED: 1}
    (again,) = await desk.give_up_waiting()
    assert (again.refusal, again.value) == (late.refusal, late.value)
    assert desk.database.dead_letters.keys() == {(0, 0)}


async def test_row_11_what_finds_no_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number or by size; never dropped, and there is space again when others go on."""
    desk = Desk(park_max=2)
    result = await desk.process(*(event(f"T{n}", 1, **AMEND) for n in range(3)))
    assert late_reasons(result.late_refusals) == ["park-overflow"]
    assert desk.processor.parked == {0, 1}
    assert desk.database.dead_letters[0, 2]["reason"] == "park-overflow"
    result = await desk.process(event("T0", 1), event("T3", 1, **AMEND))
    assert result.fates == {Fate.BOOKED: 2}
    assert desk.processor.parked == {1, 4}
    monkeypatch.setattr(parking, "MOST_BYTES", 1)
    desk = Desk()
    result = await desk.process(*(event(f"T{n}", 1, **AMEND) for n in range(2)))
    assert late_reasons(result.late_refusals) == ["park-overflow"]


async def test_a_parked_record_that_is_not_understood_any_more_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a rule of a newer version."""
    desk = Desk()
    await desk.process(LIFE[1])

    def refuse(*_: object, **__: object) -> None:
        raise InvalidTradeError("price-not-positive", "no")

    monkeypatch.setattr(services, "check_event", refuse)
    await desk.restart()
    (late,) = await desk.give_up_waiting()
    assert late_reasons([late]) == ["price-not-positive"]
    assert desk.database.dead_letters.keys() == {(0, 0)}


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw an order of the events of two trades, each by trade and version, some of them twice.

    What two trades come to depends on which of them is booked first: that is the first one.
    """
    events = [(trade, version) for trade in range(2) for version in range(1, draw(VERSIONS) + 1)]
    repeats = draw(st.lists(st.sampled_from(events), max_size=4))
    order = draw(st.permutations(events + repeats))
    is_other_way = order.index((1, 1)) < order.index((0, 1))
    return [(trade ^ is_other_way, version) for trade, version in order]


VERSIONS = st.integers(1, 5)


def _version(trade: int, version: int, last: int) -> bytes:
    action = "NEW" if version == 1 else "CANCEL" if version == last == 5 else "AMEND"
    stamp = f"2026-01-02T03:04:0{trade}Z"
    more = {"action": action, "version": version, "timestamp": stamp}
    return event(f"T{trade}", (10 + version) * (-1) ** trade, str(7 + version), **more)


@given(order=deliveries(), cuts=st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=12))
async def test_any_order_comes_to_the_same_trades_and_position(
    order: list[tuple[int, int]], cuts: list[tuple[int, bool]]
) -> None:
    """However it is cut into batches, and whenever everything but the ledger is forgotten."""
    last = {trade: max(v for t, v in order if t == trade) for trade in range(2)}
    ends = []
    for versions, pieces in ((sorted(set(order)), []), (order, cuts)):
        desk, left = Desk(), [_version(*one, last[one[0]]) for one in versions]
        fates: Counter[Fate] = Counter()
        for size, is_restarted in [*pieces, (len(left), False)]:
            if not left:
                break
            fates += (await desk.process(*left[:size])).fates
            left = left[size:]
            if is_restarted:
                await desk.restart()
        trades = {(row["trade_id"], row["version"]) for row in desk.database.trades.values()}
        assert desk.database.parked == {}
        assert desk.database.dead_letters == {}
        assert fates.total() == len(versions)
        assert desk.position.source_offset == max(
            (offset for _, offset in desk.database.trades), default=-1
        )
        ends.append((trades, replace(desk.position, source_offset=0)))
    assert ends[0] == ends[1]


@st.composite
def lives(draw: st.DrawFn) -> list[bytes]:
    """Draw trades of one position, some of them amended and cancelled later, in order of time."""
    values: list[bytes] = []
    versions: dict[int, int] = {}
    for number in range(draw(st.integers(1, 14))):
        quantity = draw(st.sampled_from([-5, -3, -2, -1, 1, 2, 3, 4]))
        price, fee = draw(st.integers(1, 20)), draw(st.integers(-3, 3))
        trade, action = number, "NEW"
        is_change = draw(st.booleans())
        if versions and is_change:
            trade = draw(st.sampled_from(sorted(versions)))
            action = draw(st.sampled_from(["AMEND", "AMEND", "CANCEL"]))
        versions[trade] = versions.get(trade, 0) + 1
        more: dict[str, Any] = {"fees": [{"amount": str(fee)}]} if fee else {}
        more |= {"timestamp": f"2026-01-02T03:04:{trade:02}Z"}
        if action != "NEW":
            more |= {"action": action, "version": versions[trade]}
        values.append(event(f"T{trade}", quantity, str(price), **more))
        if action == "CANCEL":
            del versions[trade]
    return values


@given(values=lives(), cuts=st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=14))
async def test_lots_of_many_lives_are_those_of_one(
    values: list[bytes], cuts: list[tuple[int, bool]]
) -> None:
    """However it is cut into batches and lives; and they are those of the final fills."""
    desk, one_life = Desk(fifo_books="*"), Desk(fifo_books="*")
    for size, is_restarted in [*cuts, (len(values), True)]:
        if values:
            await desk.process(*values[:size])
            await one_life.process(*values[:size])
        values = values[size:]
        if is_restarted:
            await desk.restart()  # refuses lots that do not add up
        assert desk.position == one_life.position
        stored = [(await of.ledger.lots(0))["ABC"].lots for of in (desk, one_life)]
        assert stored[0] == stored[1]  # their numbers begin anew in a life that finds none
    lines = await desk.ledger.history(0, "ABC")
    assert lines is not None
    final = replay(read_fills(lines), CostMethod.FIFO, of=desk.position)
    assert final.position() == desk.position
    assert isinstance(final, FifoHolding)
    assert (await desk.ledger.lots(0))["ABC"].lots == list(final.lots)


async def test_a_book_by_fifo_and_one_by_average_cost_stand_side_by_side() -> None:
    """Each by its name; what has no book is none that is named."""
    desk = Desk(fifo_books=["EQ"])
    for number, book in enumerate(["EQ", "FX", None]):
        for sale, (quantity, price) in enumerate([(1, "10"), (1, "20"), (-1, "30")]):
            await desk.process(event(f"T{number}.{sale}", quantity, price, book=book))
    await desk.restart()
    positions = desk.processor.positions
    realized = {key: position.realized_e24 // 10**24 for key, position in positions.items()}
    assert realized == {"EQ|ABC": 20, "FX|ABC": 15, "ABC": 15}
    assert (await desk.ledger.lots(0)).keys() == {"EQ|ABC"}


async def test_lots_without_end_cost_no_more_to_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position with many lots leaves in the ledger what a batch has changed, and no more."""
    written: list[int] = []
    store = MemoryLedger._store

    def note(self: MemoryLedger, number: int, write: LedgerWrite) -> None:
        written.extend(len(change.lots) for change in write.lots.values() if change)
        store(self, number, write)

    monkeypatch.setattr(MemoryLedger, "_store", note)
    desk = Desk(fifo_books="*")
    await desk.process(*(event(f"T{number}", 2) for number in range(50)))
    await desk.process(event("A", 1), event("B", -3))
    await desk.restart()
    await desk.process(event("C", -8))
    await desk.process(event("D", 1))
    assert written == [50, 2, 1, 1]
