"""Reference data and limits: what they mark, on the short way and by all the rules, and no more."""

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import approved, reference
from app.errors import ConfigError, InvalidTradeError
from app.models import TradeEvent
from app.ports import RecordBatch
from app.reference import Calendar, Reference, parse_reference
from app.services import TradeProcessor
from tests.test_fast_path import forget, only_closer_looks
from tests.test_ledger_processor import Desk

TIME: Final = "2026-03-02T14:30:00.001Z"  # a Monday
NOW_MS: Final = 1_772_461_801_000  # a second later
LEI: Final = "5493001KJTIIGC8Y1R12"
NEW_YORK: Final = Calendar(
    ZoneInfo("America/New_York"),
    frozenset({date(2026, 2, 26), date(2026, 2, 27), date(2026, 3, 2), date(2026, 3, 3)}),
    date(2026, 2, 26),
    date(2026, 3, 3),
)
FILE: Final = f"""
[instruments.ACME]
currency = "USD"
venues = ["XNAS", "XNYS"]
tick = 0.01
lot = 10
multiplier = 1
reference_price = 100
collar_percent = 10

[instruments.GONE]
tradable = false

[instruments.BUND]
currency = "EUR"

[instruments.FUT]
multiplier = 50

[instruments.BLIND]
collar = "0.5"

[instruments.DRIFT]
collar_percent = 1

[instruments.ANY]

[instruments.YUAN]

[books.EQ]
limits = {{ max_quantity = 1000, max_notional = {{ USD = 50_000 }} }}

[books.OLD]
active = false

[books.MM.limits]
collar_around = "last-trade"

[limits]
max_quantity = 2000

[dates]
max_age_days = 30

[venues.XNYS]
calendar = "XNYS"

[counterparties.{LEI}]
active = false
"""


@dataclass(frozen=True)
class Stored:
    """One record as it stands in a log."""

    offset: int
    value: bytes
    timestamp: int = NOW_MS
    key: bytes | None = None
    headers: tuple[()] = ()


def calendar_of(name: str) -> Calendar:
    """Know one calendar."""
    if name != "XNYS":
        raise ValueError("no such calendar")
    return NEW_YORK


def parsed(text: str) -> Reference:
    """Read a file's text."""
    document = tomllib.loads(text, parse_float=Decimal)
    return parse_reference(document, calendar_of=calendar_of)


def fields(**changed: Any) -> dict[str, Any]:
    """Give the fields of a trade about which nothing is doubtful."""
    good = {
        "trade_id": "T",
        "symbol": "ACME",
        "book": "EQ",
        "side": "BUY",
        "price": "100.00",
        "quantity": "10",
        "timestamp": TIME,
    }
    return good | changed


def batch_of(trades: Sequence[dict[str, Any]], start: int = 0) -> RecordBatch:
    """Give trades as one poll would, each under an id of its own."""
    records = [
        Stored(offset, json.dumps(trade | {"trade_id": f"T{offset}"}).encode())
        for offset, trade in enumerate(trades, start)
    ]
    return RecordBatch.of(0, 1, records, start + len(records))


def marked(
    processor: TradeProcessor, trades: Sequence[dict[str, Any]], start: int = 0
) -> Counter[str]:
    """Book trades, and give what they are marked with."""
    result = processor.process_batch(batch_of(trades, start))
    assert not result.refusals
    return result.suspects


CODES: Final[dict[str, dict[str, Any]]] = {
    "instrument-unknown": {"symbol": "NEW"},
    "instrument-not-tradable": {"symbol": "GONE"},
    "book-unknown": {"book": "NEW"},
    "book-inactive": {"book": "OLD"},
    "currency-differs-from-instrument": {"symbol": "BUND"},
    "multiplier-differs-from-instrument": {"symbol": "FUT"},
    "mic-differs-from-instrument": {"mic": "XLON"},
    "off-tick": {"price": "100.001"},
    "off-lot": {"quantity": "5"},
    "counterparty-inactive": {"counterparty_lei": LEI},
    "not-a-trading-day": {"mic": "XNYS", "timestamp": "2026-03-01T18:00:00.001Z"},
    "timestamp-too-old": {"timestamp": "2026-01-31T14:30:00.000Z"},
    "price-outside-collar": {"price": "110.01"},
    "price-unchecked": {"symbol": "BLIND"},
    "quantity-over-cap": {"book": None, "quantity": "2010"},
    "notional-over-cap": {"quantity": "510"},
    "currency-unknown": {"symbol": "YUAN", "currency": "CNH"},
    "fee-currency-unknown": {"fees": [{"amount": "1", "currency": "CNH"}]},
    "fee-scale": {"fees": [{"amount": "0.005"}, {"amount": "0.001"}]},
    "mic-unknown": {"symbol": "ANY", "mic": "QQQQ"},
    "mic-inactive": {"symbol": "ANY", "mic": "XOCH"},
    "isin-check-digit": {"isin": "US0378331006"},
}


@pytest.mark.parametrize("is_short", [True, False], ids=["short", "long"])
@pytest.mark.parametrize(("code", "changed"), CODES.items(), ids=CODES)
def test_each_code_marks_a_trade_that_is_booked(
    code: str, changed: dict[str, Any], *, is_short: bool
) -> None:
    """Good trades of its position came before and after, and its texts have all been read."""
    bad = fields(**changed)
    # Elsewhere its amounts are good, so that their texts are known; and so are its own position's.
    elsewhere = bad | {"symbol": "ANY", "book": "EQ", "mic": None, "fees": None, "currency": None}
    stream = [fields(), fields(), fields(symbol="ANY"), elsewhere, bad, fields(), bad, fields()]
    forget()
    with_data = TradeProcessor(reference=parsed(FILE))
    without = TradeProcessor()
    if is_short:
        found = marked(with_data, stream)
    else:
        with only_closer_looks():
            found = marked(with_data, stream)
    assert found[code] >= 2
    assert not found.keys() - {code, "notional-over-cap", "fee-currency-differs"}
    marked(without, stream)
    assert with_data.positions == without.positions


def test_nothing_is_marked_without_data_nor_by_empty_ones() -> None:
    """No section is no rule: only what ships with the program is held against lists."""
    of_lists = {
        "currency-unknown",
        "fee-currency-unknown",
        "fee-scale",
        "mic-unknown",
        "mic-inactive",
    }
    for code, changed in CODES.items():
        plain = marked(TradeProcessor(), [fields(**changed)])
        by_fields = {code} & {"isin-check-digit"}
        if code == "fee-currency-unknown":
            by_fields = {"fee-currency-differs"}
        assert plain.keys() == by_fields
        empty = marked(TradeProcessor(reference=Reference()), [fields(**changed)])
        assert empty.keys() == by_fields | ({code} & of_lists)


def judged(processor: TradeProcessor, trades: Sequence[dict[str, Any]], start: int) -> list[int]:
    """Book trades, and give which of them were judged by all the rules."""
    return processor.process_batch(batch_of(trades, start)).judged


def test_good_trades_go_the_short_way() -> None:
    """After the first of a position, what is surely within all bounds needs no closer look."""
    processor = TradeProcessor(reference=parsed(FILE))
    assert judged(processor, [fields()], 0) == [0]
    # 110 is the highest price, taken as 100's bound on the notional: 50,000 / 110 units.
    stream = [
        fields(price="109.99", quantity="450"),
        fields(price="110.00", quantity="450"),
        fields(price="90.00", quantity=450, side="SELL"),
        fields(quantity="460"),  # fine, but with the highest price it would not be
        fields(),
    ]
    assert judged(processor, stream, 1) == [3]
    assert not processor.process_batch(batch_of(stream, 6)).suspects


def test_trade_that_may_be_too_old_is_looked_at() -> None:
    """To the nanosecond, whatever was read before, and by the time of its own record."""
    processor = TradeProcessor(reference=parsed("[dates]\nmax_age_days = 1"))
    oldest = "2026-03-01T14:30:01.000Z"
    stream = [oldest, oldest, "2026-03-01T14:30:00.999999999Z", TIME, "2026-03-01T14:30:01Z"]
    trades = [fields(timestamp=time) for time in stream]
    result = processor.process_batch(batch_of(trades))
    assert result.suspects == {"timestamp-too-old": 1}
    assert result.judged == [0, 2]
    records = [
        Stored(9, json.dumps(fields(timestamp=oldest, trade_id="A")).encode(), NOW_MS),
        Stored(10, json.dumps(fields(timestamp=oldest, trade_id="B")).encode(), NOW_MS + 1),
    ]
    result = processor.process_batch(RecordBatch.of(0, 1, records, 11))
    assert result.suspects == {"timestamp-too-old": 1}


def test_batch_with_what_is_not_plain_goes_on_where_age_is_looked_at() -> None:
    """What turns out to be no plain event in a batch that looks plain is judged alone."""
    processor = TradeProcessor(reference=parsed("[dates]\nmax_age_days = 1"))
    trades = [
        fields(published_at=TIME, side="HOLD" if n in {1, 3} else "BUY", timestamp=TIME)
        for n in range(5)
    ]
    result = processor.process_batch(batch_of(trades))
    assert [refusal.index for refusal in result.refusals] == [1, 3]
    assert result.fates.total() == 3


def test_collar_around_the_last_trade_moves_with_it() -> None:
    """Each price is held against the one before, whichever way that was booked."""
    processor = TradeProcessor(reference=parsed(FILE))

    def of(price: str) -> dict[str, Any]:
        return fields(symbol="DRIFT", book="MM", price=price)

    assert marked(processor, [of("100"), of("100.5"), of("101.2")]) == {"price-unchecked": 1}
    assert marked(processor, [of("102.3")], 3) == {"price-outside-collar": 1}
    assert marked(processor, [of("102.3"), of("103.32"), of("102.3")], 4) == {}
    # A single way far off is marked, and so is the way back.
    assert marked(processor, [of("1"), of("102.3")], 7) == {"price-outside-collar": 2}
    # What is near needs no closer look, however far the price comes in small steps.
    steps = [of(str(Decimal("102.3") + Decimal(n) / 10)) for n in range(30)]
    assert len(judged(processor, steps, 9)) < 12
    assert processor.positions["MM|DRIFT"].mark_e8 == 10_520_000_000


def test_approved_prices_are_within_the_collar_of_each_other() -> None:
    """Not only of the price that they were approved after: one up and one down is too far."""
    data = parsed('[limits]\ncollar_percent = 10\ncollar_around = "last-trade"')
    processor = TradeProcessor(reference=data)
    stream = [fields(price=price) for price in ("100", "97", "107", "97", "107")]
    assert marked(processor, stream) == {"price-unchecked": 1, "price-outside-collar": 2}


def test_lot_that_is_no_whole_number_is_counted_in_fractions() -> None:
    """Of a position in whole units as well: what is good for the lot may not be for the unit."""
    processor = TradeProcessor(reference=parsed("[instruments.ACME]\nlot = 1.5"))
    stream = [fields(quantity=quantity) for quantity in ("3", "3", "1.5", "4.5", "1.5")]
    assert marked(processor, stream) == {}
    assert processor.positions["EQ|ACME"].quantity_e8 == 1_350_000_000


def test_positions_without_a_trade_have_no_last_price() -> None:
    """What was kept as zero by a rebuild has no price to hold a trade against."""
    kept = TradeProcessor()
    marked(kept, [fields(symbol="DRIFT", book="MM")])
    (position,) = kept.positions.values()
    restored = TradeProcessor([position], reference=parsed(FILE))
    assert marked(restored, [fields(symbol="DRIFT", book="MM")], 1) == {}
    emptied = TradeProcessor(
        [type(position)(position.book, position.symbol, "USD")], reference=parsed(FILE)
    )
    assert marked(emptied, [fields(symbol="DRIFT", book="MM")], 1) == {"price-unchecked": 1}


def test_price_below_zero_is_held_against_its_bounds() -> None:
    """A share of a negative reference price is a distance all the same; notional has no sign."""
    data = parsed(
        """
        [instruments.OIL]
        reference_price = -40
        collar_percent = 10
        [limits]
        max_notional = { USD = 1000 }
        """
    )

    def of(price: str, quantity: str = "1") -> dict[str, Any]:
        return fields(symbol="OIL", price=price, quantity=quantity, asset_class="FUTURE")

    stream = [of("-44"), of("-36"), of("-36", "28")]
    assert marked(TradeProcessor(reference=data), stream) == {"notional-over-cap": 1}
    stream = [of("-44.01"), of("-35.99"), of("1")]
    assert marked(TradeProcessor(reference=data), stream) == {"price-outside-collar": 3}
    around_last = parsed('[limits]\ncollar_percent = 10\ncollar_around = "last-trade"')
    stream = [of("-40"), of("-44"), of("-48.5"), fields(symbol="OIL", price="1")]
    assert marked(TradeProcessor(reference=around_last), stream) == {
        "price-unchecked": 1,
        "price-outside-collar": 2,
    }


def test_multiplier_counts_in_the_notional() -> None:
    """A contract of 50 is worth 50 times its price."""
    data = parsed("[instruments.FUT]\nmultiplier = 50\n[limits]\nmax_notional = { USD = 5000 }")
    trade = fields(symbol="FUT", contract_multiplier=50, price="100", quantity="1")
    assert marked(TradeProcessor(reference=data), [trade, trade | {"quantity": "1.00000001"}]) == {
        "notional-over-cap": 1
    }


def test_caps_are_by_currency() -> None:
    """A cap in one currency says nothing of another."""
    data = parsed("[limits]\nmax_notional = { USD = 100, JPY = 10_000 }")

    def of(currency: str, price: str) -> dict[str, Any]:
        return fields(symbol=f"IN-{currency}", currency=currency, price=price, quantity="1")

    stream = [of("USD", "101"), of("JPY", "101"), of("JPY", "10001"), of("EUR", "99999")]
    assert marked(TradeProcessor(reference=data), stream) == {"notional-over-cap": 2}


def test_caps_of_a_book_go_before_the_common_ones_by_currency() -> None:
    """Those of currencies that it does not name are common."""
    data = parsed(
        "[limits]\nmax_notional = { USD = 100, JPY = 10_000 }\n"
        "[books.MM.limits]\nmax_notional = { USD = 7, EUR = 9 }"
    )
    unit = 10**24
    assert data.rules("MM", "ANY").most_notional_e24 == {
        "USD": 7 * unit, "EUR": 9 * unit, "JPY": 10_000 * unit,
    }  # fmt: skip
    assert data.rules(None, "ANY").most_notional_e24 == {"USD": 100 * unit, "JPY": 10_000 * unit}


def test_limits_of_a_book_go_before_the_common_ones() -> None:
    """Key by key: what a book does not say is common; no book has the common ones."""
    data = parsed(FILE)
    assert data.rules("EQ", "ANY").most_quantity_e8 == 1000 * 10**8
    assert data.rules("MM", "ANY").most_quantity_e8 == 2000 * 10**8
    assert data.rules(None, "ANY").most_quantity_e8 == 2000 * 10**8
    assert data.rules(None, "ANY").most_notional_e24 == {}
    assert data.rules(None, "ANY").codes == ()


def test_day_of_a_trade_is_that_of_its_venue() -> None:
    """Two o'clock in the morning, UTC, is the evening before in New York."""
    processor = TradeProcessor(reference=parsed(FILE))

    def of(timestamp: str, **more: Any) -> dict[str, Any]:
        return fields(mic="XNYS", timestamp=timestamp, **more)

    on_a_day = [of("2026-02-28T02:00:00Z"), of("2026-02-27T02:00:00Z")]
    assert marked(processor, on_a_day) == {}
    on_none = [of("2026-03-02T02:00:00Z"), of(TIME, trade_date="2026-03-01")]
    assert marked(processor, on_none, 2) == {"not-a-trading-day": 2}
    unknown = [of("2026-02-20T12:00:00Z"), of(TIME, trade_date="2027-01-01")]
    assert marked(processor, unknown, 4) == {}


def test_venue_is_judged_as_of_the_day_of_the_trade() -> None:
    """A code that has ended since was good then."""
    trade = fields(symbol="ANY", mic="XOCH", timestamp="2021-08-23T12:00:00Z")
    assert marked(TradeProcessor(reference=Reference()), [trade]) == {}


def test_process_gives_the_codes_of_one_trade() -> None:
    """A program of its own gets them with the result, and the position as ever."""
    processor = TradeProcessor(reference=parsed(FILE))
    done = processor.process(TradeEvent(**fields(price="100.001", quantity=5)))
    assert done["suspects"] == ["off-tick", "off-lot"]
    assert done["position_quantity"] == 5
    assert TradeProcessor().process(TradeEvent(**fields(price="100.001")))["suspects"] == []


async def test_changes_of_a_trade_are_judged_and_cancellations_are_not() -> None:
    """An AMEND says new economics; the price of a CANCEL counts nowhere."""
    desk = Desk(reference=parsed(FILE))
    on_time = {"timestamp": "2026-01-02T03:04:05Z"}  # before the records are appended

    async def suspects(**changed: Any) -> dict[str, int]:
        return dict(
            (await desk.process(json.dumps(fields(**on_time, **changed)).encode())).suspects
        )

    assert not await suspects()
    assert await suspects(action="AMEND", version=2, price="100.001") == {"off-tick": 1}
    assert not await suspects(action="CANCEL", version=3, price="0.001", quantity="1")
    assert desk.processor.positions["EQ|ACME"].quantity_e8 == 0
    assert await suspects(quantity="5", trade_id="U") == {"off-lot": 1}


# -- strict


@pytest.mark.parametrize(
    "changed",
    [
        {"isin": "US0378331006"},
        {"counterparty_lei": LEI[:-1] + "3"},
        {"figi": "BBG000BLNQ17"},
        {"trade_date": "x"},
        {"settlement_date": "x"},
        {"settlement_date": "2026-02-27"},
        {"timestamp": "2026-03-02T14:40:00.001Z"},
    ],
    ids=str,
)
def test_strict_refuses_doubtful_identifiers_and_dates(changed: dict[str, Any]) -> None:
    """With the code as its reason, and without any effect; otherwise it is booked."""
    lenient = TradeProcessor().process_batch(batch_of([fields(**changed)]))
    (code,) = lenient.suspects
    strict = TradeProcessor(is_strict=True)
    (refusal,) = strict.process_batch(batch_of([fields(**changed)])).refusals
    # By a rule of the house, as those are that know what was there before: the analytics copy,
    # which knows neither, has a row of such a trade.
    assert (refusal.reason, refusal.kind) == (code, "business")
    assert not strict.positions
    if code != "timestamp-in-future":  # nobody has appended it
        with pytest.raises(InvalidTradeError, match=code):
            strict.process(TradeEvent(**fields(**changed)))


def test_strict_refuses_what_the_lists_do_not_have_and_marks_the_rest() -> None:
    """What a file says may change while a record is read twice, so that it decides no fate."""
    of_lists = {
        "currency-unknown",
        "fee-currency-unknown",
        "fee-scale",
        "mic-unknown",
        "mic-inactive",
    }
    for code, changed in CODES.items():
        processor = TradeProcessor(reference=parsed(FILE), is_strict=True)
        result = processor.process_batch(batch_of([fields(**changed)]))
        if code in of_lists | {"isin-check-digit"}:
            assert [refusal.reason for refusal in result.refusals] == [code]
            assert not result.touched
        else:
            assert not result.refusals
            assert code in result.suspects


# -- another file while trades come


def test_other_data_count_from_the_next_trade_on() -> None:
    """Texts that were approved by the old ones are judged anew; positions go on."""
    processor = TradeProcessor(reference=parsed(FILE))
    stream = [fields(), fields(), fields()]
    assert marked(processor, stream) == {}
    processor.refer_to(parsed("[instruments.ACME]\ntick = 0.03"))
    assert marked(processor, stream, 3) == {"off-tick": 3}
    processor.refer_to(parsed("[instruments.ACME]\nlot = 7"))
    assert marked(processor, stream, 6) == {"off-lot": 3}
    processor.refer_to(None)
    assert marked(processor, stream, 9) == {}
    assert processor.positions["EQ|ACME"].quantity_e8 == 120 * 10**8


def test_same_data_keep_what_is_approved() -> None:
    """To be told the same again costs nothing."""
    data = parsed(FILE)
    processor = TradeProcessor(reference=data)
    assert judged(processor, [fields(), fields()], 0) == [0]
    processor.refer_to(data)
    assert judged(processor, [fields(), fields()], 2) == []


def test_tables_are_forgotten_together_and_gone_with_their_positions() -> None:
    """However many positions have tables of their own, their sizes share a bound."""
    forget()
    with mock.patch.object(approved, "_LIMIT", 5):
        shelf = approved.Shelf()
        tables = [shelf.table(1, approved.Bounds(most_quantity_e8=n * 10**8)) for n in (7, 8, 9)]
        for n in range(30):
            assert tables[n % 3].read("7", str(n + 1))
            assert sum(len(table.values) for table in tables) <= 5
    assert shelf.table(1, approved.Bounds(most_quantity_e8=7 * 10**8)) is tables[0]
    assert shelf.table(2, approved.Bounds(most_quantity_e8=7 * 10**8)) is not tables[0]
    tables.clear()
    assert not shelf._tables


# -- any trades, any data


_AMOUNTS: Final = ["0.5", "1", "1.5", "2", "3", "10", "10.5", "11", "12", "16", "40", 1, 3, "99.9"]


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Give tables of a file, about the symbols A and B and the books X and Y."""

    def some(name: str, values: Sequence[Any]) -> dict[str, Any]:
        value = draw(st.sampled_from([None, *values]))
        return {} if value is None else {name: value}

    def limits() -> dict[str, Any]:
        caps = some("USD", [Decimal(20), Decimal(120), Decimal(1000)])
        return {
            **some("max_quantity", [Decimal(2), Decimal("10.5"), Decimal(50)]),
            **({"max_notional": caps} if caps else {}),
            **some("collar_percent", [Decimal(5), Decimal(50), Decimal(150)]),
            **some("collar_around", ["last-trade", "last-trade", "reference-price"]),
        }

    def instrument() -> dict[str, Any]:
        return {
            **some("currency", ["USD", "USD", "EUR"]),
            **some("tick", [Decimal("0.5"), Decimal(1), Decimal(3)]),
            **some("lot", [Decimal("0.5"), Decimal(1), Decimal("1.5")]),
            **some("multiplier", [Decimal(1), Decimal(1), Decimal(50)]),
            **some("reference_price", [Decimal(10), Decimal(40)]),
            **draw(
                st.sampled_from(
                    [{}, {}, {"collar": Decimal("1.5")}, {"collar_percent": Decimal(10)}]
                )
            ),
        }

    document: dict[str, Any] = {"limits": limits()}
    if draw(st.booleans()):
        document["instruments"] = {
            name: instrument() for name in draw(st.sets(st.sampled_from("AB")))
        }
    if draw(st.booleans()):
        document["books"] = {
            name: {"active": draw(st.booleans()), "limits": limits()}
            for name in draw(st.sets(st.sampled_from("XY")))
        }
    if draw(st.booleans()):
        document["dates"] = {"max_age_days": draw(st.sampled_from([1, 30]))}
    return document


trades = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from("AAB"),
        "side": st.sampled_from(["BUY", "SELL"]),
        "price": st.sampled_from(_AMOUNTS),
        "quantity": st.sampled_from(_AMOUNTS),
        "timestamp": st.sampled_from(
            [TIME, TIME, TIME, "2026-02-27T10:00:00.001Z", "2026-01-20T10:00:00.002Z"]
        ),
    },
    optional={
        "book": st.sampled_from("XXY"),
        "fees": st.just([{"amount": "0.1"}]),
        "asset_class": st.just("FUTURE"),
    },
)


def expected(document: dict[str, Any], stream: Sequence[dict[str, Any]]) -> Counter[str]:
    """Judge trades by the tables as they stand, in fractions."""
    last: dict[tuple[str | None, str], Fraction] = {}
    found: Counter[str] = Counter()
    for trade in stream:
        found.update(_expected_of(document, trade, last.get((trade.get("book"), trade["symbol"]))))
        last[trade.get("book"), trade["symbol"]] = Fraction(trade["price"])
    return found


def _expected_of(
    document: dict[str, Any], trade: dict[str, Any], last: Fraction | None
) -> Iterator[str]:
    instruments, books = document.get("instruments"), document.get("books")
    name = trade.get("book")
    instrument, book = (instruments or {}).get(trade["symbol"], {}), (books or {}).get(name, {})
    limits = document["limits"] | book.get("limits", {})
    caps = document["limits"].get("max_notional", {}) | limits.get("max_notional", {})
    price, quantity = Fraction(trade["price"]), Fraction(trade["quantity"])
    notional = price * quantity
    age = document.get("dates", {}).get("max_age_days")
    is_old = {1: trade["timestamp"] != TIME, 30: "2026-01-20" in trade["timestamp"], None: False}
    holds = {
        "instrument-unknown": instruments is not None and trade["symbol"] not in instruments,
        "book-unknown": books is not None and bool(name) and name not in books,
        "book-inactive": book.get("active") is False,
        "currency-differs-from-instrument": instrument.get("currency", "USD") != "USD",
        "multiplier-differs-from-instrument": instrument.get("multiplier", 1) != 1,
        "off-tick": price % Fraction(instrument.get("tick", "1e-8")) != 0,
        "off-lot": quantity % Fraction(instrument.get("lot", "1e-8")) != 0,
        "quantity-over-cap": quantity > limits.get("max_quantity", quantity),
        "notional-over-cap": notional > caps.get("USD", notional),
        "timestamp-too-old": is_old[age],
    }
    yield from (code for code, is_so in holds.items() if is_so)
    yield from _expected_of_collar(instrument, limits, price, last)


def _expected_of_collar(
    instrument: dict[str, Any], limits: dict[str, Any], price: Fraction, last: Fraction | None
) -> Iterator[str]:
    around = instrument.get("reference_price")
    if around is None and limits.get("collar_around") == "last-trade":
        around = last
    width, share = instrument.get("collar"), instrument.get("collar_percent")
    if width is None:
        share = share or limits.get("collar_percent")
    if width is None and share is None:
        return
    if around is None:
        yield "price-unchecked"
        return
    if width is None:
        width = Fraction(around) * Fraction(share or 0) / 100
    if abs(price - Fraction(around)) > width:
        yield "price-outside-collar"


@given(documents(), st.lists(trades, min_size=1, max_size=25), st.integers(1, 8))
@example(
    {"limits": {"max_notional": {"USD": Decimal(120)}}},
    [
        {"symbol": "A", "side": "BUY", "price": price, "quantity": quantity, "timestamp": TIME}
        for price, quantity in [("1", "1"), ("1", "100"), ("3", "1"), ("3", "100"), ("3", "40")]
    ],
    1,
)
def test_any_trades_are_marked_as_the_tables_say_and_booked_as_ever(
    document: dict[str, Any], stream: list[dict[str, Any]], size: int
) -> None:
    """On both ways, in any batches, with amounts that were approved before; positions are equal."""
    data = parse_reference(document, calendar_of=calendar_of)
    for is_short in (True, False):
        with_data, without = TradeProcessor(reference=data), TradeProcessor()
        found: Counter[str] = Counter()
        for start in range(0, len(stream), size):
            some = stream[start : start + size]
            if is_short:
                found += marked(with_data, some, start)
            else:
                with only_closer_looks():
                    found += marked(with_data, some, start)
            marked(without, some, start)
        assert found == expected(document, stream)
        assert with_data.positions == without.positions


# -- what a file may not say


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[instrument.A]\ntick = 1", "instrument: unknown, must be one of instruments, books"),
        ("[instruments.A]\nticks = 1", "instruments.A: Object contains unknown field `ticks`"),
        ("[instruments.A]\ntick = 0", "instruments.A.tick: must be > 0"),
        ("[instruments.A]\ntick = -0.01", "instruments.A.tick: must be > 0"),
        ("[instruments.A]\ntick = 0.000000001", "instruments.A.tick: must have at most 8 decimals"),
        ("[instruments.A]\ntick = nan", "instruments.A.tick: not finite"),
        ("[instruments.A]\ntick = 1e30", "instruments.A.tick: out of range"),
        ('[instruments.A]\ntick = "a lot"', "instruments.A.tick: "),
        ("[instruments.A]\ntick = true", "instruments.A.tick: Expected `decimal`, got `bool`"),
        ("[instruments.A]\ntradable = 1", "instruments.A.tradable: Expected `bool`, got `int`"),
        ('[instruments.A]\ncurrency = "usd"', "instruments.A.currency: Expected `str` matching"),
        ('[instruments.A]\nvenues = ["XNY"]', "instruments.A.venues[0]: Expected `str` matching"),
        (
            "[instruments.A]\ncollar = 1\ncollar_percent = 1",
            "instruments.A: either collar or collar_percent, not both",
        ),
        ("instruments = 1", "instruments: must be a table of tables"),
        ("[instruments]\nA = 1", "instruments.A: Expected `object`, got `int`"),
        ("[books.X.limits]\nmax_quantity = -1", "books.X.limits.max_quantity: must be > 0"),
        ("[books.X.limits]\nmax = 1", "books.X.limits: Object contains unknown field `max`"),
        ("[limits]\nmax_notional = 5", "limits.max_notional: Expected `object`, got `int`"),
        ("[limits.max_notional]\nUSD = 0", "limits.max_notional.USD: must be > 0"),
        ("[limits.max_notional]\nusd = 1", "limits.max_notional"),
        ('[limits]\ncollar_around = "mid"', "limits.collar_around: Invalid enum value 'mid'"),
        ("[dates]\nmax_age_days = 0", "dates.max_age_days: Expected `int` >= 1"),
        ("[dates]", "dates: Object missing required field `max_age_days`"),
        ('[venues.XLON]\ncalendar = "X"', "venues.XLON.calendar: no such calendar"),
        ("[counterparties.X]\nactive = false", "counterparties.X: must be an LEI"),
    ],
)
def test_wrong_file_is_refused_by_place(text: str, problem: str) -> None:
    """Where it is, and what is allowed, in one line."""
    with pytest.raises(ConfigError) as refused:
        parsed(text)
    (line,) = refused.value.problems
    assert line.startswith(problem)


def test_all_problems_are_told_at_once_up_to_a_bound() -> None:
    """A file that is wrong all over does not fill the log."""
    tables = "".join(f"[instruments.S{n}]\ntick = 0\n" for n in range(30))
    with pytest.raises(ConfigError) as refused:
        parsed("[limits]\nmax_quantity = 0\n" + tables)
    assert len(refused.value.problems) == 21
    assert refused.value.problems[-1] == "and 11 more problems"


def test_rules_that_are_remembered_are_bounded() -> None:
    """Symbols without end leave no trace that grows."""
    data = Reference()
    with mock.patch.object(reference, "_MOST_RULES", 3):
        for n in range(10):
            assert data.rules(None, f"S{n}").codes == ()
            assert len(data._rules) <= 3


def test_fees_without_a_minor_unit_are_not_judged_by_it() -> None:
    """Gold has none; a yen has no decimals, and a dinar has three."""
    of = {"XAU": "0.00000001", "JPY": "1", "KWD": "0.001", "USD": "0.01"}
    for currency, amount in of.items():
        fee = [{"amount": amount, "currency": currency}]
        assert "fee-scale" not in marked(TradeProcessor(reference=Reference()), [fields(fees=fee)])
    fee = [{"amount": "0.1", "currency": "JPY"}]
    assert "fee-scale" in marked(TradeProcessor(reference=Reference()), [fields(fees=fee)])
