"""The simulated market: repeatable, valid unless asked otherwise, and poisoned as it says."""

from collections import Counter
from dataclasses import dataclass

import pytest

from app.codec import decode_event
from app.errors import RecordError
from app.models import position_key
from app.ports import Headers, RecordBatch
from app.services import TradeProcessor
from app.simulator import POISON, SimulatedTrade, TradeSimulator
from app.validation import check_event

DUE = "2026-01-02T03:04:05.000001Z"


@dataclass(frozen=True)
class StoredRecord:
    """One record as it stands in a log."""

    offset: int
    value: bytes | None
    timestamp: int = 1_767_323_045_000
    key: bytes | None = None
    headers: Headers = ()


def trades(
    count: int, *, run_id: str = "R", seed: int = 7, poison: float = 0.0
) -> list[SimulatedTrade]:
    """Make the first trades of a stream."""
    simulator = TradeSimulator(run_id=run_id, seed=seed, poison=poison)
    return [simulator.next_trade(DUE) for _ in range(count)]


def reason_of(value: bytes | None) -> str:
    """Give the reason code that a value is refused with."""
    with pytest.raises(RecordError) as refused:
        check_event(decode_event(value)[0])
    return refused.value.reason


def test_same_seed_gives_the_same_stream_but_for_ids() -> None:
    """Everything random comes from the seed; the run only names the trades."""
    assert trades(300, poison=0.2) == trades(300, poison=0.2)
    assert trades(50, seed=1) != trades(50, seed=2)
    one, two = trades(50, run_id="one"), trades(50, run_id="two")
    renamed = [t.value.replace(b'"one-', b'"two-') for t in one if t.value]
    assert renamed == [t.value for t in two]


def test_every_trade_is_booked_without_a_doubt() -> None:
    """Without poison each record is a plain trade, under its own position key and a unique id."""
    made = trades(500)
    for trade in made:
        event, is_plain, unknown_fields = decode_event(trade.value)
        assert event == trade.event
        assert (is_plain, unknown_fields, trade.poison_reason) == (True, 0, None)
        assert check_event(event, is_plain=True).suspects == ()
        assert trade.key == position_key(event.book, str(event.symbol)).encode()
        assert (event.timestamp, event.published_at) == (DUE, DUE)
    ids = [trade.event.trade_id for trade in made if trade.event]
    assert len(set(ids)) == 500
    assert ids[0] == "R-000000001"


def test_market_has_many_keys_and_a_long_tail() -> None:
    """Five books trade both ways, and few symbols have most of the trades."""
    events = [trade.event for trade in trades(3000) if trade.event]
    assert {event.side for event in events} == {"BUY", "SELL"}
    assert {event.book for event in events} == {f"BOOK-0{n}" for n in range(1, 6)}
    by_symbol = Counter(event.symbol for event in events)
    assert len(by_symbol) > 100
    assert sum(count for _, count in by_symbol.most_common(20)) > len(events) / 2


def test_symbols_are_unique_and_at_least_three_letters() -> None:
    """A large market has as many names as symbols."""
    simulator = TradeSimulator(run_id="R", seed=1, symbols=20_000)
    names = simulator._symbols
    assert len(set(names)) == 20_000
    assert all(3 <= len(name) <= 4 and name.isalpha() and name.isupper() for name in names)


def test_price_walks_in_ticks_and_stays_above_zero() -> None:
    """A price is a whole number of ticks; at the bottom it cannot fall further."""
    simulator = TradeSimulator(run_id="R", seed=1, symbols=1)
    simulator._ticks = [1]
    prices = [
        check_event(t.event).price_e8 for _ in range(200) if (t := simulator.next_trade(DUE)).event
    ]
    assert min(prices) == 1_000_000
    assert all(price % 1_000_000 == 0 for price in prices)


@pytest.mark.parametrize("reason", sorted(POISON))
def test_poison_is_refused_for_the_reason_it_names(reason: str) -> None:
    """Each way to spoil a trade leads to exactly its code."""
    made = trades(1)[0]
    assert made.event is not None
    assert reason_of(POISON[reason](made.event)) == reason


def test_poisoned_stream_is_dead_lettered_as_it_says() -> None:
    """A stream with every kind of poison is refused record by record, each for its reason."""
    made = trades(800, poison=0.5)
    records = [StoredRecord(n, trade.value) for n, trade in enumerate(made)]
    result = TradeProcessor().process_batch(
        RecordBatch(
            partition=0,
            epoch=1,
            records=records,
            values=[record.value for record in records],
            offsets=range(len(records)),
            headers={},
            next_offset=len(records),
        )
    )
    expected = {n: trade.poison_reason for n, trade in enumerate(made) if trade.event is None}
    assert {r.index: r.reason for r in result.refusals} == expected
    assert set(expected.values()) == set(POISON)
    assert 300 < len(expected) < 500
    assert all(trade.event is None for trade in trades(50, poison=1.0))
