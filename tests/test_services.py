"""TradeProcessor: the outside contract, and a stream that may come in any pieces and again."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidTradeError
from app.headers import REKEYED_FROM, Origin, origin_of
from app.models import Fate, Fee, Position, TradeEvent
from app.ports import Headers, RecordBatch
from app.services import LATENCY_STRIDE, MAX_MOVED_HEADER_BYTES, BatchResult, TradeProcessor

TIME = "2026-01-02T03:04:05Z"
TIME_MS = 1_767_323_045_000
GOOD: dict[str, Any] = {
    "trade_id": "T1",
    "symbol": "ABC",
    "side": "BUY",
    "price": "10",
    "quantity": "5",
    "timestamp": TIME,
}


@dataclass(frozen=True)
class StoredRecord:
    """One record as it stands in a log."""

    offset: int
    value: bytes | None
    timestamp: int = TIME_MS
    key: bytes | None = None
    headers: Headers = ()


def event(**fields: Any) -> TradeEvent:
    """Build a good event with some fields changed."""
    return TradeEvent(**{**GOOD, **fields})


def trade(**fields: Any) -> bytes:
    """Write a good trade as JSON with some fields changed."""
    return json.dumps({**GOOD, **fields}).encode()


def log(
    values: Sequence[bytes | None], headers: Mapping[int, Headers] | None = None
) -> list[StoredRecord]:
    """Store values at offsets 0, 1, 2, ..."""
    return [StoredRecord(n, v, headers=(headers or {}).get(n, ())) for n, v in enumerate(values)]


def batch_of(records: Sequence[StoredRecord], next_offset: int | None = None) -> RecordBatch:
    """Give consecutive records as one poll would."""
    return RecordBatch(
        partition=0,
        epoch=1,
        records=records,
        values=[record.value for record in records],
        offsets=[record.offset for record in records],
        headers={n: record.headers for n, record in enumerate(records) if record.headers},
        next_offset=records[-1].offset + 1 if next_offset is None else next_offset,
    )


def rekeyed(offset: int, partition: int = 3) -> Headers:
    """Give the header of a trade that stood elsewhere first."""
    return (Origin("trade-events", partition, offset).to_header(),)


def reasons(result: BatchResult) -> list[str]:
    """Give the reason codes of a batch's refusals."""
    return [refusal.reason for refusal in result.refusals]


# -- process: the outside contract


def test_documented_sale_gives_its_notional() -> None:
    """Plain Python numbers are fine: 200.25 x 4 sold is 801.0, signed -801.0."""
    done = TradeProcessor().process(
        TradeEvent(
            trade_id="T1", symbol="ABC", side="SELL", price=200.25, quantity=4, timestamp=TIME
        )
    )
    assert done == {
        "trade_id": "T1",
        "symbol": "ABC",
        "book": None,
        "side": "SELL",
        "notional": Decimal("801.0"),
        "signed_notional": Decimal("-801.0"),
        "position_quantity": Decimal(-4),
        "average_price": Decimal("200.25"),
        "realized_pnl": Decimal(0),
        "realized_pnl_change": Decimal(0),
        "unrealized_pnl": Decimal(0),
        "fees": Decimal(0),
        "mark": Decimal("200.25"),
        "suspects": [],
    }
    assert all(isinstance(done[name], Decimal) for name in ("notional", "fees", "realized_pnl"))


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("trade_id", None, "trade_id is required"),
        ("trade_id", "", "trade_id is required"),
        ("symbol", None, "symbol is required"),
        ("symbol", "", "symbol is required"),
        ("quantity", 0, "quantity must be > 0"),
        ("quantity", "-1", "quantity must be > 0"),
        ("price", 0, "price must be > 0"),
        ("price", -0.5, "price must be > 0"),
        ("side", "HOLD", "side must be BUY or SELL"),
        ("side", None, "side must be BUY or SELL"),
    ],
)
def test_invalid_event_raises_a_value_error_with_its_exact_message(
    field: str, wrong: object, message: str
) -> None:
    """The messages are part of the outside contract, and a refusal changes nothing."""
    processor = TradeProcessor()
    processor.process(event())
    before = dict(processor.positions)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        processor.process(event(**{field: wrong}))
    assert str(refused.value) == message
    assert processor.positions == before


def test_float_enters_by_its_repr() -> None:
    """0.1 is a tenth, three times 0.1 is 0.3, and no binary noise is ever seen."""
    processor = TradeProcessor()
    processor.process(event(price=0.1, quantity=1))
    processor.process(event(price=0.1, quantity=1))
    done = processor.process(event(price=0.1, quantity=1))
    assert processor.positions["ABC"].open_cost_e24 == 3 * 10**23
    assert done["average_price"] == Decimal("0.1")


def test_notional_of_largest_numbers_is_exact() -> None:
    """Forty digits and the multiplier come out without rounding."""
    done = TradeProcessor().process(
        event(
            side="SELL",
            price="999999999999.99999999",
            quantity="999999999999.99999999",
            contract_multiplier="0.00000001",
        )
    )
    assert str(done["notional"]) == "9999999999999999.999800000000000000000001"
    assert str(done["signed_notional"]) == "-9999999999999999.999800000000000000000001"


def test_sale_realises_and_shows_its_own_share() -> None:
    """The change is what this trade realised; the sum is the position's so far; fees are apart."""
    processor = TradeProcessor()
    processor.process(event(quantity="10", price="10", fees=[Fee(amount="1")]))
    processor.process(event(side="SELL", quantity="4", price="12"))
    done = processor.process(event(side="SELL", quantity="4", price="13", book=""))
    assert done["realized_pnl_change"] == 12
    assert done["realized_pnl"] == 20
    assert [done["position_quantity"], done["average_price"]] == [2, 10]
    assert [done["unrealized_pnl"], done["fees"], done["mark"]] == [6, 1, 13]


def test_books_keep_separate_positions() -> None:
    """The position key is book and symbol."""
    processor = TradeProcessor()
    processor.process(event(book="A"))
    processor.process(event(book="B", side="SELL"))
    done = processor.process(event())
    assert done["book"] is None
    assert done["position_quantity"] == 5
    quantities = {key: position.quantity_e8 for key, position in processor.positions.items()}
    assert quantities == {"A|ABC": 5 * 10**8, "B|ABC": -5 * 10**8, "ABC": 5 * 10**8}


def test_doubtful_trade_is_booked_and_says_so() -> None:
    """Suspicions travel with the result."""
    done = TradeProcessor().process(event(price=0.1 + 0.2, timestamp=TIME[:-1]))
    assert done["suspects"] == ["price-rounded", "timestamp-no-offset"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "AMEND", "version": 2}, "lifecycle-unavailable"),
        ({"action": "CANCEL"}, "lifecycle-unavailable"),
        ({"version": 2}, "version-invalid"),
        ({"currency": "EUR"}, "currency-differs-from-position"),
        ({"contract_multiplier": 50}, "multiplier-differs-from-position"),
    ],
    ids=str,
)
def test_trade_that_does_not_fit_its_position_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    """AMEND and CANCEL are never booked as fills, and units are never mixed."""
    processor = TradeProcessor()
    processor.process(event())
    before = dict(processor.positions)
    with pytest.raises(InvalidTradeError) as refused:
        processor.process(event(**fields))
    assert refused.value.reason == reason
    assert processor.positions == before
    result = processor.process_batch(batch_of([StoredRecord(9, trade(**fields))]))
    assert [(r.reason, r.kind, r.error_class) for r in result.refusals] == [
        (reason, "business", "InvalidTradeError")
    ]


def test_multiplier_may_change_once_the_position_is_flat() -> None:
    """A new multiplier opens a new position; it never revalues an open one."""
    processor = TradeProcessor()
    processor.process(event())
    processor.process(event(side="SELL", price="11"))
    done = processor.process(event(contract_multiplier=50))
    assert [done["realized_pnl"], done["notional"], done["average_price"]] == [5, 2500, 10]


def test_default_currency_is_that_of_trades_that_name_none() -> None:
    """A trade that names the default and one that names none share a position."""
    processor = TradeProcessor(default_currency="CHF")
    processor.process(event())
    processor.process(event(currency="CHF"))
    assert processor.positions["ABC"].currency == "CHF"
    with pytest.raises(InvalidTradeError, match="currency differs"):
        processor.process(event(currency="USD"))


def test_booking_goes_on_from_restored_positions() -> None:
    """A processor starts from what was kept, and a fill stands after all that is in it."""
    kept = Position("B", "ABC", "USD", quantity_e8=10**8, open_cost_e24=10**24, source_offset=41)
    processor = TradeProcessor([kept])
    done = processor.process(event(book="B", quantity="1", price="3"))
    assert [done["position_quantity"], done["average_price"]] == [2, 2]
    assert processor.positions["B|ABC"].source_offset == 42


# -- process_batch: fates


def test_each_record_of_a_batch_gets_its_fate() -> None:
    """Good trades are booked around bad ones; refusals keep their place and reason."""
    records = log([trade(), b"x", trade(side="HOLD"), None, trade(price=True), trade(coupon=1)])
    processor = TradeProcessor()
    result = processor.process_batch(batch_of(records))
    assert result.fates == Counter({Fate.BOOKED: 2})
    assert [(r.index, r.reason, r.kind, r.error_class) for r in result.refusals] == [
        (1, "body-not-json", "decode", "DecodeError"),
        (2, "side-unknown", "validation", "InvalidTradeError"),
        (3, "body-empty", "decode", "DecodeError"),
        (4, "price-wrong-type", "validation", "DecodeError"),
    ]
    assert result.refusals[1].message == "side must be BUY or SELL"
    assert result.unknown_fields == 1
    assert result.changed == processor.positions
    assert processor.positions["ABC"].source_offset == 5
    assert processor.positions["ABC"].trade_count == 2


def test_batch_without_records_changes_nothing() -> None:
    """A poll may only say that the log went on."""
    result = TradeProcessor().process_batch(batch_of([], next_offset=7))
    assert result == BatchResult()


def test_unsupported_schema_is_a_decode_refusal() -> None:
    """An unknown version is never a guess."""
    result = TradeProcessor().process_batch(batch_of(log([trade(schema_version=2)])))
    assert [(r.reason, r.kind) for r in result.refusals] == [
        ("schema-version-unsupported", "decode")
    ]


@pytest.mark.parametrize(("late_ms", "count"), [(0, 0), (1, 1), (-1, 0)])
def test_future_trade_is_suspect_beyond_five_minutes(late_ms: int, count: int) -> None:
    """The trade's time is judged against the append time of its own record, to the millisecond."""
    values = [trade(), trade(timestamp=TIME_MS + 600_000 + 300_000 + late_ms)]
    early, late = log(values)
    records = [early, StoredRecord(late.offset, late.value, timestamp=TIME_MS + 600_000)]
    result = TradeProcessor().process_batch(batch_of(records))
    assert result.fates[Fate.BOOKED] == 2
    assert result.suspects["timestamp-in-future"] == count


def test_suspects_and_publish_times_are_collected() -> None:
    """Codes are counted; of the publish times a fixed share of the offsets is sampled."""
    values = [trade(timestamp=TIME[:-1], published_at=f"P{n}") for n in range(2 * LATENCY_STRIDE)]
    result = TradeProcessor().process_batch(batch_of(log(values)))
    assert result.suspects == Counter({"timestamp-no-offset": len(values)})
    assert result.published_at == ["P0", f"P{LATENCY_STRIDE}"]


# -- placement


def test_misplaced_trade_is_handed_back_with_its_key() -> None:
    """A key that belongs elsewhere is not booked here; a key at home is asked about once."""
    asked: list[str] = []

    def belongs(key: str) -> bool:
        asked.append(key)
        return key == "ABC"

    processor = TradeProcessor(belongs=belongs)
    values = [trade(), trade(book="B"), trade(), trade(symbol="XYZ"), b"x"]
    result = processor.process_batch(batch_of(log(values)), effects_from=0)
    assert result.misplaced == [(1, "B|ABC"), (3, "XYZ")]
    assert result.fates == Counter({Fate.BOOKED: 2})
    assert asked == ["ABC", "B|ABC", "XYZ"]
    assert list(processor.positions) == ["ABC"]


def test_misplaced_trade_is_refused_where_rekeying_is_off() -> None:
    """`KEY_MISMATCH=dead-letter` turns misplacement into a business refusal."""
    processor = TradeProcessor(belongs=lambda _: False, rekeys=False)
    result = processor.process_batch(batch_of(log([trade()])))
    assert [(r.reason, r.kind) for r in result.refusals] == [("key-mismatch", "business")]
    assert result.misplaced == []


def test_rekeyed_trade_in_the_wrong_partition_does_not_go_round() -> None:
    """What was moved once and is wrong again is refused instead of moved for ever."""
    processor = TradeProcessor(belongs=lambda _: False)
    result = processor.process_batch(batch_of(log([trade()], {0: rekeyed(7)})))
    assert reasons(result) == ["key-mismatch"]


def test_misplaced_trade_whose_headers_no_broker_would_take_is_refused() -> None:
    """512 KiB of headers are moved with it, one byte more is not."""
    headers = [("n", b"x" * (MAX_MOVED_HEADER_BYTES - 1))]
    processor = TradeProcessor(belongs=lambda _: False)
    result = processor.process_batch(batch_of(log([trade()], {0: headers})))
    assert [index for index, _ in result.misplaced] == [0]
    result = processor.process_batch(batch_of(log([trade()], {0: [*headers, ("m", None)]})))
    assert reasons(result) == ["key-mismatch"]


def test_misplaced_trade_below_the_open_offset_is_not_sent_again() -> None:
    """What was re-keyed before the commit passed it is left alone in a replay."""
    processor = TradeProcessor(belongs=lambda _: False)
    result = processor.process_batch(batch_of(log([trade(), trade()])), effects_from=1)
    assert [index for index, _ in result.misplaced] == [1]


def test_second_copy_of_a_rekeyed_trade_is_a_duplicate() -> None:
    """After a crash a re-keyed trade may stand twice; its origin offset books it once."""
    headers = {0: rekeyed(5), 1: rekeyed(5), 2: rekeyed(6), 3: rekeyed(5), 4: rekeyed(4, 9)}
    processor = TradeProcessor()
    result = processor.process_batch(batch_of(log([trade()] * 5, headers)))
    assert result.fates == Counter({Fate.BOOKED: 3, Fate.DUPLICATE: 2})
    assert processor.positions["ABC"].origins == {3: 6, 9: 4}
    assert processor.positions["ABC"].trade_count == 3
    later = [StoredRecord(8, trade(), headers=rekeyed(6)), StoredRecord(9, trade())]
    restarted = TradeProcessor(processor.positions.values())
    result = restarted.process_batch(batch_of(later), effects_from=9)
    assert result.fates == Counter({Fate.BOOKED: 1})
    assert result.already_applied == 0


def test_refused_rekeyed_trade_leaves_its_origin_open() -> None:
    """Only what was booked is remembered by origin: a mended copy is still accepted."""
    values = [trade(side="HOLD"), trade()]
    processor = TradeProcessor()
    result = processor.process_batch(batch_of(log(values, {0: rekeyed(5), 1: rekeyed(5)})))
    assert reasons(result) == ["side-unknown"]
    assert result.fates == Counter({Fate.BOOKED: 1})


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            b"",
            b"trade-events",
            b"trade-events/3",
            b"trade-events/x/5",
            b"t/3/-1",
            b"\xff/1/x",
        ),
        *(b"t/3/5/7", b"t/\xb2/5", b"t/3/" + b"9" * 60),
    ],
)
def test_unreadable_origin_is_no_origin(value: bytes | None) -> None:
    """Headers are anybody's: one that cannot be read changes nothing and stops nothing."""
    headers = (("other", b"x"), (REKEYED_FROM, value))
    assert origin_of(headers) is None
    processor = TradeProcessor()
    result = processor.process_batch(batch_of(log([trade()], {0: headers})))
    assert result.fates == Counter({Fate.BOOKED: 1})
    assert processor.positions["ABC"].origins is None


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))
def test_origin_survives_its_header(partition: int, offset: int) -> None:
    """The header of a re-keyed trade reads back as it was written."""
    origin = Origin("trade.events-1", partition, offset)
    assert origin_of([("traceparent", b""), origin.to_header()]) == origin


# -- replays


def test_refusal_of_an_earlier_life_is_said_again() -> None:
    """A later trade of the key does not make an unsettled refusal before it look booked."""
    values = [
        trade(),
        trade(action="CANCEL"),
        trade(version=2),
        trade(currency="EUR"),
        trade(side="HOLD"),
        trade(),
    ]
    first = TradeProcessor()
    result = first.process_batch(batch_of(log(values)))
    again = TradeProcessor(first.positions.values()).process_batch(batch_of(log(values)))
    assert reasons(again) == reasons(result)
    assert len(reasons(again)) == 4
    assert again.fates == result.fates
    assert again.already_applied == 2
    assert again.changed == {}


def test_records_below_the_open_offset_mend_positions_only() -> None:
    """A replayed margin books what a late write put back, and settles no fate twice."""
    values = [trade(), b"x", trade(symbol="XYZ"), trade()]
    whole = TradeProcessor()
    whole.process_batch(batch_of(log(values)))
    behind = TradeProcessor([whole.positions["XYZ"]])
    result = behind.process_batch(batch_of(log(values)), effects_from=3)
    assert behind.positions == whole.positions
    assert (result.repaired, result.already_applied) == (1, 0)  # only open fates are counted
    assert result.fates == Counter({Fate.BOOKED: 1})
    assert result.refusals == []


symbols = st.sampled_from(["A", "B", "C"])
good = st.builds(
    trade,
    symbol=symbols,
    side=st.sampled_from(["BUY", "SELL"]),
    price=st.integers(1, 9).map(str) | st.sampled_from([0.1, 2.5, 0.30000000000000004]),
    quantity=st.integers(1, 9),
    book=st.sampled_from([None, "DESK"]),
    contract_multiplier=st.sampled_from([1, 1, 1, "50"]),
    currency=st.sampled_from(["USD", "USD", "USD", "EUR"]),
    action=st.sampled_from(["NEW", "NEW", "NEW", "CANCEL"]),
    fees=st.just([]) | st.just([{"amount": "0.25"}]),
)
bad = st.sampled_from([None, b"", b"{}", b"[1]", trade(side="HOLD"), trade(price="x"), b"\xff"])
maybe_origin = st.one_of(
    st.just(()), st.just(()), st.builds(rekeyed, st.integers(0, 5), st.integers(0, 1))
)
logs = st.lists(
    st.tuples(st.one_of(good, good, good, bad), maybe_origin, st.integers(1, 3)),
    min_size=1,
    max_size=25,
).map(
    lambda rows: [
        StoredRecord(sum(gap for _, _, gap in rows[:n]), value, headers=headers)
        for n, (value, headers, _) in enumerate(rows)
    ]
)


def totals(results: Sequence[tuple[Sequence[StoredRecord], BatchResult]]) -> dict[str, Any]:
    """Add results of batches up, with offsets in place of indexes."""
    fates: Counter[Fate] = Counter()
    suspects: Counter[str] = Counter()
    refusals: list[tuple[int, str, str]] = []
    misplaced: list[tuple[int, str]] = []
    changed: dict[str, Position] = {}
    for records, result in results:
        fates += result.fates
        suspects += result.suspects
        refusals += [(records[r.index].offset, r.reason, r.message) for r in result.refusals]
        misplaced += [(records[index].offset, key) for index, key in result.misplaced]
        changed |= result.changed
    return {
        "fates": fates,
        "suspects": suspects,
        "refusals": refusals,
        "misplaced": misplaced,
        "changed": changed,
    }


def a_processor(positions: Sequence[Position] = ()) -> TradeProcessor:
    """Give a processor to which every key but those of `C` belongs."""
    return TradeProcessor(positions, belongs=lambda key: not key.endswith("C"))


@given(logs, st.data())
def test_stream_may_be_cut_into_any_batches(
    records: list[StoredRecord], data: st.DataObject
) -> None:
    """One batch or many, the states and fates are the same."""
    whole, cut = a_processor(), a_processor()
    expected = totals([(records, whole.process_batch(batch_of(records)))])
    ends = data.draw(
        st.sets(st.integers(1, len(records))).map(lambda s: sorted({*s, len(records)}))
    )
    pieces = [records[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    found = totals([(piece, cut.process_batch(batch_of(piece))) for piece in pieces])
    assert cut.positions == whole.positions
    assert found == expected


@given(logs, st.data())
def test_replay_of_any_prefix_changes_nothing(
    records: list[StoredRecord], data: st.DataObject
) -> None:
    """What is in a position already is recognised by its offset, and counted as applied."""
    processor = a_processor()
    first = processor.process_batch(batch_of(records))
    before = dict(processor.positions)
    prefix = records[: data.draw(st.integers(1, len(records)))]
    again = processor.process_batch(batch_of(prefix))
    assert processor.positions == before
    assert again.changed == {}
    assert again.repaired == 0
    fates = again.fates.total() + len(again.refusals) + len(again.misplaced)
    assert fates == len(prefix)
    assert [pair for pair in first.misplaced if pair[0] < len(prefix)] == again.misplaced


@given(logs, st.data())
def test_restart_from_positions_of_any_age_comes_to_the_same_state(
    records: list[StoredRecord], data: st.DataObject
) -> None:
    """Positions are kept at different moments; a replay from the start brings all of them up."""
    whole = a_processor()
    history: dict[str, list[Position]] = {}
    for record in records:
        for key, position in whole.process_batch(batch_of([record])).changed.items():
            history.setdefault(key, []).append(position)
    kept = [data.draw(st.sampled_from(states)) for states in history.values()]
    restarted = a_processor(kept)
    restarted.process_batch(batch_of(records))
    assert restarted.positions == whole.positions


hostile_values = st.one_of(
    st.none(),
    st.binary(max_size=80),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(TradeEvent.__struct_fields__) | st.text(max_size=5),
                inner,
                max_size=5,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda field, junk: trade(**{field: junk}),
        st.sampled_from(TradeEvent.__struct_fields__),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    ),
    st.builds(
        lambda at, byte: trade()[:at] + bytes([byte]) + trade()[at + 1 :],
        st.integers(0, len(trade()) - 1),
        st.integers(0, 255),
    ),
)
hostile_headers = st.lists(
    st.tuples(
        st.sampled_from([REKEYED_FROM, "x"]),
        st.none() | st.binary(max_size=9) | st.just(b"t/1/5"),
    ),
    max_size=2,
).map(tuple)


@given(st.lists(st.tuples(hostile_values, hostile_headers), max_size=12))
def test_any_bytes_get_exactly_one_fate_each(
    rows: list[tuple[bytes | None, Headers]],
) -> None:
    """Whatever stands in a topic, nothing is raised and nothing is counted twice or not at all."""
    records = [StoredRecord(n, value, headers=headers) for n, (value, headers) in enumerate(rows)]
    result = a_processor().process_batch(batch_of(records, next_offset=len(rows)))
    fates = result.fates.total() + len(result.refusals) + len(result.misplaced)
    assert fates == len(records)
    assert {r.index for r in result.refusals}.isdisjoint(index for index, _ in result.misplaced)
    codes = [*reasons(result), *result.suspects]
    assert [code for code in codes if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", code)] == []
    assert all(r.kind in {"decode", "validation", "business"} for r in result.refusals)
