"""Checks of one event: what is refused, what is only suspect, and under which code."""

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import validation
from app.codec import decode_event
from app.errors import InvalidTradeError
from app.models import MAX_ID_LENGTH, Action, Fee, Side, TradeEvent
from app.money import ONE_E8
from app.timestamps import parse_timestamp
from app.validation import MAX_TEXT_LENGTH, CheckedTrade, check_event

GOOD: dict[str, Any] = {
    "trade_id": "T1",
    "symbol": "ABC",
    "side": "BUY",
    "price": "10.5",
    "quantity": "5",
    "timestamp": "2026-01-02T03:04:05Z",
}
LEI = "5493001KJTIIGC8Y1R12"


def event(**fields: Any) -> TradeEvent:
    """Build a good event with some fields changed."""
    return TradeEvent(**{**GOOD, **fields})


def reason_of(**fields: Any) -> str:
    """Give the reason code that the changed event is refused with."""
    with pytest.raises(InvalidTradeError) as refused:
        check_event(event(**fields))
    assert isinstance(refused.value, ValueError)
    return refused.value.reason


def suspects_of(**fields: Any) -> tuple[str, ...]:
    """Give what is doubtful about the changed event, which is booked all the same."""
    return check_event(event(**fields)).suspects


def test_six_fields_are_a_complete_trade() -> None:
    """The minimum event is checked into its numbers, without any doubt."""
    time_ns = parse_timestamp(GOOD["timestamp"])[0]
    expected = CheckedTrade(1, 1_050_000_000, 5 * ONE_E8, time_ns, ONE_E8, 0, ())
    assert check_event(event()) == expected
    assert check_event(event(), is_plain=True) == expected


@pytest.mark.parametrize(
    ("side", "sign"), [("BUY", 1), ("SELL", -1), (Side.BUY, 1), (Side.SELL, -1)]
)
def test_side_gives_the_sign(side: str, sign: int) -> None:
    """Bought counts up, sold counts down."""
    assert check_event(event(side=side)).sign == sign


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trade_id": None}, "trade-id-missing"),
        ({"trade_id": ""}, "trade-id-missing"),
        ({"trade_id": 17}, "trade-id-wrong-type"),
        ({"trade_id": "T" * 10_000}, "trade-id-too-long"),
        ({"trade_id": "T\x00"}, "trade-id-bad-character"),
        ({"trade_id": "T\u202e1"}, "trade-id-bad-character"),
        ({"symbol": None}, "symbol-missing"),
        ({"symbol": ""}, "symbol-missing"),
        ({"symbol": 17}, "symbol-wrong-type"),
        ({"symbol": ["ABC"]}, "symbol-wrong-type"),
        ({"symbol": "A|B"}, "symbol-bad-character"),
        ({"symbol": "ABC "}, "symbol-bad-character"),
        ({"symbol": " ABC"}, "symbol-bad-character"),
        ({"symbol": " "}, "symbol-bad-character"),
        ({"symbol": "A\nC"}, "symbol-bad-character"),
        ({"symbol": "A\u0000C"}, "symbol-bad-character"),
        ({"symbol": "A\ud800"}, "symbol-bad-character"),
        ({"symbol": "A\u00a0"}, "symbol-bad-character"),
        ({"symbol": "A\u200bC"}, "symbol-bad-character"),
        ({"book": "DESK|1"}, "book-bad-character"),
        ({"book": "DESK "}, "book-bad-character"),
        ({"book": 0}, "book-wrong-type"),
        ({"side": None}, "side-missing"),
        ({"side": "buy"}, "side-unknown"),
        ({"side": "SELL_SHORT"}, "side-unknown"),
        ({"side": " BUY"}, "side-unknown"),
        ({"side": ""}, "side-unknown"),
        ({"side": 1}, "side-wrong-type"),
        ({"side": ["BUY"]}, "side-wrong-type"),
        ({"quantity": None}, "quantity-missing"),
        ({"quantity": "0"}, "quantity-not-positive"),
        ({"quantity": "-1"}, "quantity-not-positive"),
        ({"quantity": -0.0}, "quantity-not-positive"),
        ({"quantity": Decimal("1e-9")}, "quantity-not-positive"),
        ({"quantity": "250,000,000+"}, "quantity-bad-character"),
        ({"quantity": "1e12"}, "quantity-bad-character"),
        ({"quantity": 10**12}, "quantity-out-of-range"),
        ({"quantity": float("inf")}, "quantity-not-finite"),
        ({"quantity": True}, "quantity-wrong-type"),
        ({"quantity": "0.000000001"}, "quantity-too-many-decimals"),
        ({"price": None}, "price-missing"),
        ({"price": "0"}, "price-not-positive"),
        ({"price": "-0"}, "price-not-positive"),
        ({"price": -37.63}, "price-not-positive"),
        ({"price": -37.63, "asset_class": "EQUITY"}, "price-not-positive"),
        ({"price": -37.63, "asset_class": ["FUTURE"]}, "price-not-positive"),
        ({"price": "1,250,000"}, "price-bad-character"),
        ({"price": " 10 "}, "price-bad-character"),
        ({"price": ""}, "price-bad-character"),
        ({"price": "null"}, "price-bad-character"),
        ({"price": "1_000"}, "price-bad-character"),
        ({"price": "\uff11\uff10"}, "price-bad-character"),
        ({"price": "NaN"}, "price-not-finite"),
        ({"price": Decimal("1e1000000")}, "price-out-of-range"),
        ({"price": "0.123456789"}, "price-too-many-decimals"),
        ({"price": False}, "price-wrong-type"),
        ({"timestamp": None}, "timestamp-missing"),
        ({"timestamp": ""}, "timestamp-unparseable"),
        ({"timestamp": "2026-01-02"}, "timestamp-unparseable"),
        ({"timestamp": "1999-12-31T23:59:59Z"}, "timestamp-out-of-range"),
        ({"timestamp": 1}, "timestamp-out-of-range"),
        ({"timestamp": True}, "timestamp-wrong-type"),
        ({"version": 0}, "version-out-of-range"),
        ({"version": "1"}, "version-wrong-type"),
        ({"version": True}, "version-wrong-type"),
        ({"action": "REPLACE"}, "action-unknown"),
        ({"action": "new"}, "action-unknown"),
        ({"action": 1}, "action-wrong-type"),
        ({"asset_class": "SHARE"}, "asset-class-unknown"),
        ({"price_type": "TICKS"}, "price-type-unknown"),
        ({"price_type": "PERCENT"}, "price-type-unsupported"),
        ({"price_type": "YIELD"}, "price-type-unsupported"),
        ({"currency": "GBp"}, "currency-unknown"),
        ({"currency": "US"}, "currency-unknown"),
        ({"currency": ""}, "currency-unknown"),
        ({"currency": "U5D"}, "currency-unknown"),
        ({"currency": "\u00c9UR"}, "currency-unknown"),
        ({"currency": 840}, "currency-wrong-type"),
        ({"contract_multiplier": "0"}, "multiplier-not-positive"),
        ({"contract_multiplier": -50}, "multiplier-not-positive"),
        ({"contract_multiplier": "x"}, "multiplier-bad-character"),
        ({"contract_multiplier": Decimal("1e13")}, "multiplier-out-of-range"),
        ({"fees": [Fee()]}, "fee-amount-missing"),
        ({"fees": [Fee(amount="1"), Fee(amount="1e3")]}, "fee-amount-bad-character"),
        ({"fees": [Fee(amount="0.000000001")]}, "fee-amount-too-many-decimals"),
        ({"fees": [Fee(amount="1", currency="usd")]}, "fee-currency-unknown"),
        ({"fees": [Fee(amount="1", currency=3)]}, "fee-currency-wrong-type"),  # type: ignore[arg-type]
        ({"fees": [Fee(amount="1", type="a\x00")]}, "fee-type-bad-character"),
        ({"fees": [Fee(amount="1", type="a" * 257)]}, "fee-type-too-long"),
        ({"fees": [Fee(amount="999999999999")] * 2}, "fee-amount-out-of-range"),
        ({"fees": [Fee(amount="-999999999999")] * 2}, "fee-amount-out-of-range"),
        ({"event_time": "noon\x00"}, "event-time-bad-character"),
        ({"event_time": "a" * 257}, "event-time-too-long"),
        ({"fx_rate": "\x00"}, "fx-rate-bad-character"),
        ({"account": "A\x00"}, "account-bad-character"),
        ({"account": "A" * (MAX_TEXT_LENGTH + 1)}, "account-too-long"),
        ({"isin": 5}, "isin-wrong-type"),
        ({"counterparty_lei": "\u2028"}, "counterparty-lei-bad-character"),
    ],
    ids=str,
)
def test_fault_that_feeds_key_or_arithmetic_is_refused(fields: dict[str, Any], reason: str) -> None:
    """What cannot be booked as it is has one code, named by its field."""
    assert reason_of(**fields) == reason


@pytest.mark.parametrize(
    "fields",
    [
        {"symbol": "ES%2FH6"},
        {"symbol": "\u0410BC"},  # a Cyrillic letter: another symbol, not ours to judge
        {"symbol": "BRK B"},
        {"trade_id": "T1 "},
        {"trade_id": "null"},
        {"book": ""},
        {"quantity": "+5"},
        {"asset_class": "FUTURE", "price": "-37.63"},
        {"asset_class": "OPTION", "price": 0},
        {"price_type": "PER_UNIT"},
        {"action": Action.NEW, "version": 1},
        {"currency": "JPY", "fees": [Fee(amount="0.55", type="CLEARING")]},
        {"published_at": "never\x00"},
        {"short_sale": True, "cleared": False, "source_sequence": 7},
        {"isin": "US0378331005", "figi": "BBG000B9XRY4", "our_lei": LEI, "ccp_lei": LEI},
        {"trade_date": "2026-01-02", "settlement_date": "2026-01-02"},
        {"settlement_currency": "EUR", "fx_rate": "0.9"},
        {"timestamp": 1767323045123},
        {"timestamp": "2024-02-29T00:00:00Z"},
    ],
    ids=str,
)
def test_unusual_trade_is_booked_without_a_doubt(fields: dict[str, Any]) -> None:
    """What is rare but right is neither refused nor flagged."""
    assert suspects_of(**fields) == ()


@pytest.mark.parametrize(
    ("fields", "suspects"),
    [
        ({"price": 0.1 + 0.2}, ("price-rounded",)),
        ({"quantity": Decimal("1.000000001")}, ("quantity-rounded",)),
        ({"contract_multiplier": Decimal("0.123456789")}, ("multiplier-rounded",)),
        (
            {"fees": [Fee(amount=0.1 + 0.2), Fee(amount=Decimal("1e-9"))]},
            ("fee-amount-rounded",),
        ),
        ({"timestamp": "2026-01-02T03:04:05"}, ("timestamp-no-offset",)),
        ({"isin": "US0378331006"}, ("isin-check-digit",)),
        ({"isin": "-"}, ("isin-check-digit",)),
        ({"figi": "BBG000B9XRY5"}, ("figi-check-digit",)),
        ({"our_lei": "X", "ccp_lei": "Y"}, ("lei-check-digit",)),
        ({"fx_rate": "1.1"}, ("settlement-currency-missing",)),
        ({"settlement_currency": "EUR"}, ("fx-rate-missing",)),
        ({"settlement_currency": "EUR", "fx_rate": "0"}, ("fx-rate-not-positive",)),
        ({"settlement_currency": "EUR", "fx_rate": "x"}, ("fx-rate-bad-character",)),
        ({"trade_date": "02/01/2026"}, ("trade-date-unparseable",)),
        ({"settlement_date": "soon"}, ("settlement-date-unparseable",)),
        ({"settlement_date": "2026-01-01"}, ("settlement-before-trade",)),
        (
            {"trade_date": "2026-01-06", "settlement_date": "2026-01-05"},
            ("settlement-before-trade",),
        ),
        ({"fees": [Fee(amount="1", currency="EUR")] * 2}, ("fee-currency-differs",)),
        (
            {"price": 1 / 3, "timestamp": "2026-01-02T03:04:05", "isin": "X"},
            ("price-rounded", "timestamp-no-offset", "isin-check-digit"),
        ),
    ],
    ids=str,
)
def test_fault_in_a_describing_field_is_only_suspect(
    fields: dict[str, Any], suspects: tuple[str, ...]
) -> None:
    """A trade that was done is not dropped: every doubt is collected, each once."""
    assert suspects_of(**fields) == suspects


@pytest.mark.parametrize("field", ["trade_id", "symbol", "book"])
def test_name_length_is_bounded_on_both_sides(field: str) -> None:
    """64 characters are accepted, 65 refused."""
    assert suspects_of(**{field: "N" * MAX_ID_LENGTH}) == ()
    name = field.replace("_", "-")
    assert reason_of(**{field: "N" * (MAX_ID_LENGTH + 1)}) == f"{name}-too-long"


def test_text_length_is_bounded_on_both_sides() -> None:
    """256 characters of describing text are accepted, 257 refused."""
    assert suspects_of(trader_id="N" * MAX_TEXT_LENGTH) == ()
    assert reason_of(trader_id="N" * (MAX_TEXT_LENGTH + 1)) == "trader-id-too-long"


def test_amount_range_is_bounded_on_both_sides() -> None:
    """Twelve integer digits are accepted, thirteen refused, as text and as a number."""
    assert check_event(event(price="999999999999.99999999")).price_e8 == 10**20 - 1
    assert check_event(event(price=Decimal("999999999999.99999999"))).price_e8 == 10**20 - 1
    assert reason_of(price="1000000000000") == "price-out-of-range"
    assert reason_of(price=Decimal("999999999999.999999995")) == "price-out-of-range"


def test_fees_in_the_currency_of_the_trade_are_summed() -> None:
    """Rebates count down; a fee in another currency has no rate and stays out of the sum."""
    fees = [
        Fee(amount="1.25"),
        Fee(amount=-0.5, currency="EUR"),
        Fee(amount=2, currency="EUR"),
        Fee(amount="7", currency="USD"),
    ]
    checked = check_event(event(currency="EUR", fees=fees))
    assert (checked.fee_e8, checked.suspects) == (275_000_000, ("fee-currency-differs",))
    checked = check_event(event(fees=fees[:1]), default_currency="CHF")
    assert (checked.fee_e8, checked.suspects) == (125_000_000, ())


def test_multiplier_is_read_exactly() -> None:
    """A contract multiplier is an amount like any other, 1 where there is none."""
    assert check_event(event(contract_multiplier=50)).multiplier_e8 == 50 * ONE_E8
    assert check_event(event(contract_multiplier="0.00000001")).multiplier_e8 == 1


def test_plain_event_keeps_its_doubts() -> None:
    """The short way through a plain event still says what was rounded and what was missing."""
    doubtful = event(price=0.1 + 0.2, quantity=1 / 3, timestamp="2026-01-02T03:04:05")
    expected = ("price-rounded", "quantity-rounded", "timestamp-no-offset")
    assert check_event(doubtful, is_plain=True).suspects == expected
    assert check_event(doubtful).suspects == expected


def test_cache_of_good_key_parts_that_is_full_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is bounded, refuses as before, and never holds what was refused."""
    monkeypatch.setattr(validation, "_GOOD_KEY_PARTS_LIMIT", 3)
    monkeypatch.setattr(validation, "_good_key_parts", set())
    for number in range(10):
        assert suspects_of(symbol=f"S{number}") == ()
    assert reason_of(symbol="S|1") == "symbol-bad-character"
    assert reason_of(symbol="S|1") == "symbol-bad-character"
    assert len(validation._good_key_parts) <= 3


def test_message_names_the_field_and_never_its_value() -> None:
    """Messages may be logged and sent anywhere, so that no value stands in them."""
    for field in ("price", "quantity", "timestamp", "side", "currency", "action", "account"):
        with pytest.raises(InvalidTradeError) as refused:
            check_event(event(**{field: "SECRET\x00"}))
        assert field in str(refused.value)
        assert "SECRET" not in str(refused.value)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.text(max_size=70),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["BUY", "NEW", "FUTURE", "EUR", "PERCENT", "2026-01-02", "1.5", "-3"]),
)
names = st.sampled_from(sorted(set(TradeEvent.__struct_fields__) - {"fees"}))
fee_lists = st.lists(st.builds(Fee, amount=junk, type=junk, currency=junk), max_size=3)


@given(st.dictionaries(names, junk, max_size=6), st.none() | fee_lists)
def test_whatever_a_program_puts_into_an_event_is_checked_or_refused(
    fields: dict[str, Any], fees: list[Fee] | None
) -> None:
    """No value of any type raises anything but a refusal with a lower-case kebab code."""
    try:
        codes = suspects_of(**fields, **({} if fees is None else {"fees": fees}))
    except InvalidTradeError as exc:
        codes = (exc.reason,)
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(-[a-z]+)+", code)] == []


def test_number_from_json_is_judged_like_the_same_number_from_a_program() -> None:
    """0.1 + 0.2 is rounded and flagged, whichever way it came in."""
    decoded, is_plain, _ = decode_event(
        b'{"trade_id":"T1","symbol":"ABC","side":"BUY","price":0.30000000000000004,'
        b'"quantity":5,"timestamp":"2026-01-02T03:04:05Z"}'
    )
    checked = check_event(decoded, is_plain=is_plain)
    assert (checked.price_e8, checked.suspects) == (30_000_000, ("price-rounded",))
