"""A trade that was sent twice is booked once, within a window that is a function of the log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import MAX_COMMON_BYTES
from app.dedupe import LedgerIdentity
from app.models import Fate, TradeEvent
from app.ports import Headers, RecordBatch
from app.services import BatchResult, TradeProcessor

NOW_MS = 1_790_000_000_000


@dataclass(frozen=True)
class Stored:
    """One record of a partition."""

    offset: int
    value: bytes
    timestamp: int = NOW_MS
    key: bytes | None = None
    headers: Headers = field(default_factory=tuple)


def trade(trade_id: str, **more: Any) -> bytes:
    """Write one trade."""
    event = {
        "trade_id": trade_id,
        "symbol": "A",
        "side": "BUY",
        "price": "10",
        "quantity": "1",
        "timestamp": "2026-09-01T10:00:00Z",
    }
    return json.dumps(event | more).encode()


def process(
    processor: TradeProcessor, records: Sequence[Stored], effects_from: int = 0
) -> BatchResult:
    """Process records as one batch."""
    batch = RecordBatch.of(0, 1, records, records[-1].offset + 1)
    return processor.process_batch(batch, effects_from=effects_from)


def repeats(ids: Sequence[str], offsets: Sequence[int], window: int) -> list[bool]:
    """Say of each trade whether its id stands in its own block or in the one before."""
    last_block: dict[str, int] = {}
    found = []
    for trade_id, offset in zip(ids, offsets, strict=True):
        block = offset // window
        found.append(block - last_block.get(trade_id, -2) <= 1)
        last_block[trade_id] = block
    return found


ids = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60)


@given(ids, st.integers(1, 20), st.integers(0, 40), st.randoms(use_true_random=False))
def test_window_is_a_function_of_the_log(
    names: list[str], window: int, first: int, draw: Any
) -> None:
    """However the log is cut into batches, and with gaps in it, the same trades are duplicates."""
    offsets = [first]
    for _ in names[1:]:
        offsets.append(offsets[-1] + draw.choice([1, 1, 1, 2, window, 3 * window]))
    records = [Stored(o, trade(name)) for o, name in zip(offsets, names, strict=True)]
    processor = TradeProcessor(dedupe_window=window)
    at = 0
    while at < len(records):
        size = draw.randint(1, 10)
        before = processor.positions["A"].trade_count if at else 0
        fates = process(processor, records[at : at + size]).fates
        booked = processor.positions["A"].trade_count - before
        assert fates[Fate.BOOKED] == booked
        assert fates.total() == len(records[at : at + size])
        expected = repeats(names, offsets, window)[at : at + size]
        assert fates[Fate.DUPLICATE] == sum(expected)
        at += size


@given(ids, st.integers(1, 12), st.data())
def test_restart_recognises_what_the_first_life_would_have(
    names: list[str], window: int, data: st.DataObject
) -> None:
    """Read again from the start of the block before, later trades meet the same fates."""
    records = [Stored(offset, trade(name)) for offset, name in enumerate(names)]
    committed = data.draw(st.integers(0, len(records)))
    first_life = TradeProcessor(dedupe_window=window)
    if committed:
        process(first_life, records[:committed])
    # What was written before the crash may cover more than what was committed.
    written = data.draw(st.integers(committed, len(records)))
    ahead = TradeProcessor(dedupe_window=window)
    if written:
        process(ahead, records[:written])
    restarted = TradeProcessor(
        ahead.positions.values(), dedupe_window=window, applies_from=committed
    )
    again = records[restarted.window.start_before(committed) :]
    if not again:
        return
    fates = process(restarted, again, effects_from=committed).fates
    left = repeats(names, range(len(names)), window)[committed:]
    assert fates[Fate.DUPLICATE] == sum(left)
    assert fates[Fate.BOOKED] == len(left) - sum(left)
    whole = TradeProcessor(dedupe_window=window)
    process(whole, records)
    assert dict(restarted.positions) == dict(whole.positions)


def test_repeat_with_another_publish_time_is_the_same_trade() -> None:
    """A sender may stamp a trade anew when it sends it again."""
    processor = TradeProcessor(dedupe_window=100)
    again = trade("T1", published_at="2026-09-01T10:00:01Z", processed_at="2026-09-01T10:00:02Z")
    result = process(processor, [Stored(0, trade("T1")), Stored(1, again)])
    assert result.fates == {Fate.BOOKED: 1, Fate.DUPLICATE: 1}
    assert processor.positions["A"].trade_count == 1


@pytest.mark.parametrize("changed", [{"price": "11"}, {"side": "SELL"}, {"symbol": "B"}])
def test_other_trade_under_the_same_id_is_refused(changed: dict[str, str]) -> None:
    """Two systems that disagree about one trade are a matter for a person, in any batch."""
    for records in (
        ([[Stored(0, trade("T1")), Stored(1, trade("T1", **changed))]]),
        (
            [Stored(0, trade("T1"))],
            [Stored(1, trade("T1", **changed))],
        ),
    ):
        processor = TradeProcessor(dedupe_window=100)
        (refusal,) = [r for some in records for r in process(processor, some).refusals]
        assert (refusal.reason, refusal.kind) == ("version-conflict", "business")
        assert sum(p.trade_count for p in processor.positions.values()) == 1


@pytest.mark.parametrize("is_restarted", [False, True])
def test_trade_is_compared_with_the_first_of_its_id_in_a_block(*, is_restarted: bool) -> None:
    """What is a conflict in one block is the trade itself to the next, also after a restart."""
    other = trade("T1", price="11")
    names = [trade("T1"), trade("T2"), other, trade("T3"), other]
    records = [Stored(*item) for item in enumerate(names)]
    processor = TradeProcessor(dedupe_window=2)
    result = process(processor, records[:4])
    assert [refusal.reason for refusal in result.refusals] == ["version-conflict"]
    if is_restarted:
        processor = TradeProcessor(result.changed.values(), dedupe_window=2, applies_from=4)
        process(processor, records[2:4], effects_from=4)
    assert +process(processor, records[4:], effects_from=4).fates == {Fate.DUPLICATE: 1}


def test_large_trade_is_recognised_without_being_kept() -> None:
    """Of a body with much around its content a digest is kept, which the next copy must match."""
    processor = TradeProcessor(dedupe_window=100)
    padding = b" " * MAX_COMMON_BYTES
    again = trade("T1", published_at="2026-09-01T10:00:01Z")
    for number, records in enumerate(
        ([trade("T1") + padding, trade("T2")], [again + padding, trade("T2") + padding, again])
    ):
        process(processor, [Stored(3 * number + n, value) for n, value in enumerate(records)])
    assert processor.positions["A"].trade_count == 2
    result = process(processor, [Stored(9, trade("T1", price="11") + padding)])
    assert [refusal.reason for refusal in result.refusals] == ["version-conflict"]
    for noted in processor.window.known.values():
        assert isinstance(noted, bytes | str)
        assert len(noted) <= MAX_COMMON_BYTES


@pytest.mark.parametrize("is_restarted", [False, True])
def test_copies_of_a_repeat_are_known_by_their_origin(*, is_restarted: bool) -> None:
    """A re-keyed trade that was sent twice stays known when it is re-keyed again, much later."""

    def rekeyed(offset: int, origin: int, name: str) -> Stored:
        headers = [("x-rekeyed-from", f"t/3/{origin}".encode())]
        return Stored(offset, trade(name), headers=headers)

    processor = TradeProcessor(dedupe_window=2)
    result = process(processor, [rekeyed(0, 5, "T1"), rekeyed(1, 9, "T1")])
    assert result.fates == {Fate.BOOKED: 1, Fate.DUPLICATE: 1}
    assert result.changed["A"].origins == {3: 9}
    if is_restarted:
        processor = TradeProcessor(result.changed.values(), dedupe_window=2, applies_from=2)
    result = process(processor, [rekeyed(10, 9, "T1"), Stored(20, trade("T2"))])
    assert result.fates == {Fate.BOOKED: 1, Fate.DUPLICATE: 1}
    assert processor.positions["A"].trade_count == 2


def test_refused_trade_may_come_again_under_its_id() -> None:
    """What was dead-lettered was not booked: its mended second try is no duplicate."""
    processor = TradeProcessor(dedupe_window=100)
    bad = trade("T1", price="-1")
    late = trade("T2", currency="EUR")  # refused only when its position is looked at
    process(processor, [Stored(0, trade("T0")), Stored(1, bad), Stored(2, late)])
    result = process(processor, [Stored(3, trade("T1")), Stored(4, trade("T2"))])
    assert result.fates == {Fate.BOOKED: 2}


def test_without_a_window_nothing_is_recognised() -> None:
    """`DEDUPE_WINDOW=0` books whatever stands in the log."""
    processor = TradeProcessor(dedupe_window=0)
    result = process(processor, [Stored(0, trade("T1")), Stored(1, trade("T1"))])
    assert result.fates == {Fate.BOOKED: 2}


def test_what_is_recent_is_known_however_much_is_awaited() -> None:
    """Trades of which events wait have their places beside those that were booked of late."""
    awaited = {f"W{n}": None for n in range(5)}
    identity = LedgerIdentity(3, "USD", awaited)
    for trade_id in awaited:
        identity.expect(trade_id)
    for name in ("A", "B", "C"):
        identity.note(TradeEvent(trade_id=name), trade(name))
        identity.settle()
    assert identity.known_before.keys() == {"A", "B", "C", *awaited}
    assert identity.known.keys() == awaited.keys()
    identity.settle()
    assert "A" in identity.known_before


def test_what_leaves_the_window_is_counted() -> None:
    """The count tells an operator how many trades are beyond recognition by now."""
    processor = TradeProcessor(dedupe_window=2)
    process(processor, [Stored(offset, trade(f"T{offset}")) for offset in range(7)])
    assert processor.window.evictions == 4
    process(processor, [Stored(100, trade("T100"))])
    assert processor.window.evictions == 7
