"""The content hash: equal for what says the same, different for everything economic."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from app.codec import decode_event
from app.content import SIZE_BYTES, content_hash
from app.models import Fee, TradeEvent
from app.money import AmountError
from app.timestamps import TimestampError

GOOD = TradeEvent(
    trade_id="T1",
    symbol="ABC",
    side="BUY",
    price="10",
    quantity="5",
    timestamp="2026-01-02T03:04:05Z",
)
ECONOMIC: dict[str, Any] = {
    "symbol": "ABD",
    "book": "EQ",
    "side": "SELL",
    "price": "10.00000001",
    "quantity": "6",
    "timestamp": "2026-01-02T03:04:05.000000001Z",
    "action": "AMEND",
    "currency": "EUR",
    "contract_multiplier": "50",
    "price_type": "PERCENT",
    "fees": [Fee(amount="1")],
    "asset_class": "FUTURE",
    "isin": "US0378331005",
    "figi": "BBG000BLNNH6",
    "account": "A",
    "settlement_currency": "EUR",
    "fx_rate": "1.1",
    "trade_date": "2026-01-02",
    "settlement_date": "2026-01-05",
    "counterparty_lei": "529900T8BM49AURSDO55",
    "our_lei": "529900T8BM49AURSDO55",
    "ccp_lei": "529900T8BM49AURSDO55",
    "netting_set": "N",
    "cleared": True,
}
DESCRIBING: dict[str, Any] = {
    "trade_id": "T2",
    "version": 2,
    "event_reason": "CORRECTION",
    "event_id": "E",
    "prev_event_id": "P",
    "order_id": "O",
    "exec_id": "X",
    "mic": "XNAS",
    "event_time": "2026-01-03T00:00:00Z",
    "source": "S",
    "source_sequence": 7,
    "short_sale": True,
    "trading_capacity": "DEAL",
    "liquidity": "MAKER",
    "trader_id": "T",
    "strategy_id": "S",
    "schema_version": 1,
    "published_at": "2026-01-02T03:04:06Z",
    "processed_at": "2026-01-02T03:04:07Z",
}
SAME: list[dict[str, Any]] = [
    {"price": 10},
    {"price": 10.0},
    {"price": "10.00"},
    {"price": Decimal("1e1")},
    {"price": "+10"},
    {"quantity": 5.0},
    {"timestamp": "2026-01-02T03:04:05"},
    {"timestamp": "2026-01-02T04:04:05.000+01:00"},
    {"timestamp": 1_767_323_045},
    {"timestamp": 1_767_323_045_000},
    {"action": "NEW"},
    {"book": ""},
    {"currency": "USD"},
    {"contract_multiplier": "1.0"},
    {"price_type": "PER_UNIT"},
    {"asset_class": "EQUITY"},
    {"cleared": False},
    {"fees": []},
    {"fees": [Fee(amount="0.00", type="x")]},
]


def hashed(event: TradeEvent) -> bytes:
    """Hash by the default of a system that trades in dollars."""
    return content_hash(event, default_currency="USD")


def test_every_field_is_either_economic_or_not() -> None:
    """A field that is added to the event has to be placed."""
    assert {*ECONOMIC, *DESCRIBING} == set(TradeEvent.__struct_fields__)
    assert not {*ECONOMIC} & {*DESCRIBING}


@pytest.mark.parametrize("field", ECONOMIC)
def test_economic_field_changes_the_hash(field: str) -> None:
    """Who owes what to whom, for what and when."""
    assert hashed(replace(GOOD, **{field: ECONOMIC[field]})) != hashed(GOOD)


def test_economic_fields_are_told_apart() -> None:
    """The same value in another field is another content."""
    found = [hashed(replace(GOOD, **{field: value})) for field, value in ECONOMIC.items()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("field", DESCRIBING)
def test_other_field_does_not_change_the_hash(field: str) -> None:
    """Names, times of ours and descriptions say nothing economic."""
    assert hashed(replace(GOOD, **{field: DESCRIBING[field]})) == hashed(GOOD)


@pytest.mark.parametrize("same", SAME, ids=str)
def test_same_content_in_another_form_has_the_same_hash(same: dict[str, Any]) -> None:
    """Amounts are compared as amounts, times as instants, absent fields as their defaults."""
    assert hashed(replace(GOOD, **same)) == hashed(GOOD)


def test_hash_is_of_the_content_and_not_of_the_bytes() -> None:
    """Order of keys, blanks, forms of numbers: one event."""
    one = (
        b'{"trade_id":"T1","symbol":"ABC","side":"BUY","price":"10.00","quantity":5,'
        b'"timestamp":"2026-01-02T03:04:05Z"}'
    )
    other = (
        b'{ "timestamp": 1767323045, "quantity": "5.0", "price": 10.0, "side": "BUY",'
        b' "symbol": "ABC", "trade_id": "T1", "published_at": "x" }'
    )
    assert hashed(decode_event(one)[0]) == hashed(decode_event(other)[0]) == hashed(GOOD)


def test_hash_stays_what_it_is() -> None:
    """It is stored beside trades: a change of it would make every trade a conflict."""
    every = TradeEvent(**(asdict(GOOD) | ECONOMIC | {"currency": "CHF"}))
    assert hashed(GOOD).hex() == "0e5188be0e928042bc000526425eb599"
    assert hashed(every).hex() == "fea4d4e5505d285f3b095e1d48ec52f1"
    assert len(hashed(GOOD)) == SIZE_BYTES


def test_order_of_fees_says_nothing_and_their_number_does() -> None:
    """Fees are a bag, each in the trade's currency unless it says another one."""
    one, two = Fee(amount="1", type="a"), Fee(amount="2.0", currency="USD")
    fees = hashed(replace(GOOD, fees=[one, two]))
    assert fees == hashed(replace(GOOD, fees=[Fee(amount=2), Fee(amount="1.0", type="a")]))
    assert fees != hashed(replace(GOOD, fees=[one]))
    assert fees != hashed(replace(GOOD, fees=[one, two, two]))
    assert fees != hashed(replace(GOOD, fees=[one, Fee(amount="2", currency="EUR")]))


def test_default_currency_counts_as_if_it_was_sent() -> None:
    """The same event means another trade in a system with another default."""
    in_euros = content_hash(GOOD, default_currency="EUR")
    assert in_euros != hashed(GOOD)
    assert in_euros == hashed(replace(GOOD, currency="EUR"))


def test_rate_that_cannot_be_read_is_told_apart_by_its_text() -> None:
    """Such a trade is booked, suspect: its hash must not fail."""
    one, two = (hashed(replace(GOOD, fx_rate=text)) for text in ("much", "more"))
    assert one != two
    assert hashed(replace(GOOD, fx_rate="1.10")) == hashed(replace(GOOD, fx_rate=1.1))


def test_event_that_the_checks_refuse_has_no_content() -> None:
    """There is no content without a price or a time."""
    with pytest.raises(AmountError):
        hashed(replace(GOOD, price="much"))
    with pytest.raises(TimestampError):
        hashed(replace(GOOD, timestamp="then"))


texts = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=8)


@given(texts, texts, texts, texts)
def test_texts_do_not_run_into_each_other(a: str, b: str, c: str, d: str) -> None:
    """What is said in one field is not mistaken for what is said in the next."""
    one = hashed(replace(GOOD, book=a, symbol=b, account=c, netting_set=d))
    assert one == hashed(replace(GOOD, book=a, symbol=b, account=c, netting_set=d))
    for parts in ((b, a, c, d), (a, b, d, c), (a + b, b, c, d), (a, b + c, c, d)):
        if parts != (a, b, c, d):
            other = dict(zip(("book", "symbol", "account", "netting_set"), parts, strict=True))
            assert hashed(replace(GOOD, **other)) != one
