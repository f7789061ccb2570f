"""Bytes to events: exact numbers, hostile bodies, and every refusal under its own code."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import (
    MAX_DEPTH,
    MAX_VALUE_BYTES,
    decode_event,
    encode_event,
    reason_name,
)
from app.errors import DecodeError
from app.models import Fee, TradeEvent

FIELDS = {
    "trade_id": '"T1"',
    "symbol": '"ABC"',
    "side": '"BUY"',
    "price": '"10.5"',
    "quantity": '"5"',
    "timestamp": '"2026-01-02T03:04:05Z"',
}
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
amounts = words | st.integers(-(2**63), 2**64 - 1) | decimals


def body(extra: str = "", **literals: str | None) -> bytes:
    """Write a trade with JSON literals in place of some of its values; `None` leaves one out."""
    fields = {**FIELDS, **literals}
    text = ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None)
    return ("{" + text + extra + "}").encode()


def reason_of(value: bytes | None) -> str:
    """Give the reason code that a value is refused with; its message has no value in it."""
    with pytest.raises(DecodeError) as refused:
        decode_event(value)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", refused.value.reason)
    assert "SECRET" not in str(refused.value)
    return refused.value.reason


def outcome_of(value: bytes) -> str:
    """Give `decoded`, or the reason code of the refusal."""
    try:
        decode_event(value)
    except DecodeError as exc:
        return exc.reason
    return "decoded"


events = st.builds(
    TradeEvent,
    trade_id=st.none() | words,
    symbol=st.none() | words,
    side=st.none() | words,
    price=st.none() | amounts,
    quantity=st.none() | amounts,
    timestamp=st.none() | amounts,
    book=st.none() | words,
    published_at=st.none() | words,
    version=st.none() | st.integers(-(2**63), 2**64 - 1),
    contract_multiplier=st.none() | amounts,
    fx_rate=st.none() | amounts,
    fees=st.none()
    | st.lists(
        st.builds(
            Fee, amount=st.none() | amounts, type=st.none() | words, currency=st.none() | words
        ),
        max_size=3,
    ),
    short_sale=st.none() | st.booleans(),
    schema_version=st.none() | st.just(1),
)


@given(events)
def test_event_survives_its_bytes(event: TradeEvent) -> None:
    """Every field comes back; a `Decimal` goes as text, which holds all of its digits."""

    def as_sent(value: Any) -> Any:
        return str(value) if isinstance(value, Decimal) else value

    decoded, _, unknown_fields = decode_event(encode_event(event))
    assert unknown_fields == 0
    for name in event.__struct_fields__:
        sent = getattr(event, name)
        if name == "fees" and sent is not None:
            assert [(f.amount, f.type, f.currency) for f in decoded.fees or []] == [
                (as_sent(f.amount), f.type, f.currency) for f in sent
            ]
        else:
            assert getattr(decoded, name) == as_sent(sent)


@given(decimals, st.sampled_from(["price", "quantity", "contract_multiplier", "fx_rate"]))
def test_number_literal_keeps_every_digit(number: Decimal, field: str) -> None:
    """A literal with a point or an exponent comes out as it was written, never as a fraction."""
    literal = f"{number:f}" if abs(number.adjusted()) < 200 else "0.5"
    event, _, _ = decode_event(body(**{field: literal}))
    decoded = getattr(event, field)
    assert isinstance(decoded, int | Decimal)
    assert Decimal(decoded) == Decimal(literal)


@pytest.mark.parametrize(
    "literal",
    [
        *("0.1", "0.30000000000000004", "1234567890.123456789", "12345678901234567.5"),
        *("1e3", "1E-9", "-0.0", "1.00000000", "100000000000000000000000000001"),
        "1." + "0" * 60_000 + "1",
    ],
)
def test_literal_that_a_double_cannot_hold_is_exact(literal: str) -> None:
    """Long literals, long integers and exponents come out to the last digit, in fees too."""
    event, _, _ = decode_event(body(quantity=literal))
    assert event.quantity == Decimal(literal)
    event, _, _ = decode_event(body(fees=f'[{{"amount":"1"}},{{"amount":{literal[:4000]}}}]'))
    assert event.fees is not None
    assert [fee.amount for fee in event.fees] == ["1", Decimal(literal[:4000])]
    assert event.price == "10.5"


def test_epoch_literal_keeps_its_fraction() -> None:
    """A timestamp number with nine decimals keeps them."""
    event, is_plain, _ = decode_event(body(timestamp="1767323045.123456789"))
    assert event.timestamp == Decimal("1767323045.123456789")
    assert is_plain


@pytest.mark.parametrize(
    ("value", "is_plain", "unknown_fields"),
    [
        (body(), True, 0),
        (body(price="1.5", quantity="3", timestamp="1767323045"), True, 0),
        (body(book='"B"', published_at='"2026-01-02T03:04:05Z"'), True, 0),
        (body().replace(b",", b" ,\n\t").replace(b":", b" : "), True, 0),
        (body(symbol='"A\\u0022B"'), True, 0),  # a quotation mark that is not one of JSON's
        (body(symbol='"A\\"B"'), False, 0),
        (body(book="null"), False, 0),
        (body(fees="[]"), False, 0),
        (body(schema_version="1"), False, 0),
        (body(action='"NEW"', mic='"XNYS"'), False, 0),
        (body(coupon="3"), False, 1),
        (body(coupon='"3"', multiplier="[[1]]", pryce="null"), False, 3),
    ],
)
def test_plain_body_is_told_from_one_that_needs_a_closer_look(
    value: bytes, *, is_plain: bool, unknown_fields: int
) -> None:
    """Only the common fields make a plain event; unknown ones are tolerated and counted."""
    assert decode_event(value)[1:] == (is_plain, unknown_fields)


@pytest.mark.parametrize(
    "extra",
    [
        *(',"price":"9"', ',"price" :"9"', ',"price"\n:\t9', ',"pr\\u0069ce":"9"', ',"price":9'),
        *(',"\\u0070\\u0072\\u0069\\u0063\\u0065":"9"', ',"symbol":null', ',"book":"a","book":"b"'),
        *(',"x":1,"x":2', ',"x":{"a":1,"a":2}', ',"fees":[{"amount":1,"amount":2}]'),
        *(',"x":1,"\\u0078":1', ',"price":"10.5"', ',"trade_id":"T1"'),
    ],
)
def test_key_that_stands_twice_is_refused(extra: str) -> None:
    """Last-wins is not acceptable for a trade, however the second key is spelt."""
    assert reason_of(body(extra)) == "body-duplicate-key"


@pytest.mark.parametrize(
    ("literals", "extra"),
    [
        ({"trade_id": None}, ',"price":"9"'),
        ({"trade_id": None}, ',"x":1,"y":1'),
        ({"symbol": "null"}, ',"x":9'),
    ],
)
def test_repeated_key_hides_only_behind_a_missing_field(
    literals: dict[str, str | None], extra: str
) -> None:
    """A body may pass for plain by its count of quotation marks only if it cannot be booked."""
    event, is_plain, _ = decode_event(body(extra, **literals))
    assert is_plain
    assert None in (event.trade_id, event.symbol, event.price)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "body-empty"),
        (b"", "body-empty"),
        (b" ", "body-not-json"),
        (b"\xef\xbb\xbf" + body(), "body-not-json"),
        (body() + body(), "body-not-json"),
        (body() + b"x", "body-not-json"),
        (body() + b"\x00", "body-not-json"),
        (body()[:-1], "body-not-json"),
        (body(",")[:-1] + b"}", "body-not-json"),
        (body().replace(b'"', b"'"), "body-not-json"),
        (body().decode().encode("utf-16-le"), "body-not-json"),
        (body().decode().encode("utf-16"), "body-not-utf8"),
        (body(symbol='"\x01"'), "body-not-json"),
        (body(symbol='"\\ud800"'), "body-not-json"),
        (body(symbol='"\\x41"'), "body-not-json"),
        (body().replace(b"ABC", b"A\xffC"), "body-not-utf8"),
        (body().replace(b"ABC", b"A\xc0\xafC"), "body-not-utf8"),
        (body(note='"?"').replace(b"?", b"\xff"), "body-not-utf8"),
        (body(note='"?"').replace(b"?", b"\xed\xa0\x80"), "body-not-utf8"),
        *((text, "body-not-object") for text in (b"[]", b"1", b"null", b'"x"', b"true", b"[{}]")),
        (b"[" * 60_000, "body-too-deep"),
        (b'{"a":' * 10_000, "body-too-deep"),
        (body(note="[" * 10_000 + "]" * 10_000), "body-too-deep"),
        (body(note="[" * 600 + "]" * 600), "body-too-deep"),
        (body(schema_version="2"), "schema-version-unsupported"),
        (body(schema_version="0"), "schema-version-unsupported"),
        (body(schema_version='"1"'), "schema-version-wrong-type"),
    ],
)
def test_body_that_is_no_trade_is_refused(value: bytes | None, reason: str) -> None:
    """Tombstones, other encodings, other shapes and broken JSON each have their code."""
    assert reason_of(value) == reason


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", ".5", "5.", "+5", "01", "1e"])
def test_number_that_json_does_not_know_is_refused(literal: str) -> None:
    """What other parsers let pass as a number is not JSON."""
    assert reason_of(body(price=literal)) == "body-not-json"
    assert reason_of(body(note=literal)) == "body-not-json"


@pytest.mark.parametrize("field", ["price", "quantity", "contract_multiplier", "timestamp"])
@pytest.mark.parametrize(
    "literal",
    [
        *("1e1000000", "1E+400", "-1e1000000", "1e99999999999999999999", "9" * 60_000),
        "1e-99999999999999999999",  # nearer to 0 than the decimal module can say
    ],
)
def test_number_beyond_every_bound_is_refused_before_it_is_expanded(
    field: str, literal: str
) -> None:
    """Nine bytes must not become a million digits."""
    assert reason_of(body(**{field: literal})) == f"{reason_name(field)}-out-of-range"


@pytest.mark.parametrize("literal", ["1e400", "1e-99999999999999999999"])
def test_fee_beyond_every_bound_is_refused(literal: str) -> None:
    """A fee's number is bounded like any other and named by one code on every path."""
    assert reason_of(body(fees=f'[{{"amount":{literal}}}]')) == "fee-amount-out-of-range"


@pytest.mark.parametrize(
    ("literals", "reason"),
    [
        ({"price": "true"}, "price-wrong-type"),
        ({"price": "[]"}, "price-wrong-type"),
        ({"quantity": "{}"}, "quantity-wrong-type"),
        ({"timestamp": "false"}, "timestamp-wrong-type"),
        ({"trade_id": "17"}, "trade-id-wrong-type"),
        ({"symbol": '["SECRET"]'}, "symbol-wrong-type"),
        ({"side": "1"}, "side-wrong-type"),
        ({"version": "1.5"}, "version-wrong-type"),
        ({"version": '"1"'}, "version-wrong-type"),
        ({"version": "true"}, "version-wrong-type"),
        ({"short_sale": '"Y"'}, "short-sale-wrong-type"),
        ({"short_sale": '""'}, "short-sale-wrong-type"),
        ({"cleared": "1"}, "cleared-wrong-type"),
        ({"contract_multiplier": "true"}, "multiplier-wrong-type"),
        ({"fees": "{}"}, "fees-wrong-type"),
        ({"fees": "[3]"}, "fees-wrong-type"),
        ({"fees": '[{"amount":1},{"amount":true}]'}, "fee-amount-wrong-type"),
        ({"fees": '[{"currency":7}]'}, "fee-currency-wrong-type"),
        ({"isin": "1"}, "isin-wrong-type"),
    ],
)
def test_value_of_another_type_is_refused_by_its_field(
    literals: dict[str, str], reason: str
) -> None:
    """The code names the field, and neither code nor message shows what was in it."""
    assert reason_of(body(**literals)) == reason


def test_value_size_is_bounded_on_both_sides() -> None:
    """64 KiB are accepted, one byte more is refused unread."""
    filler = b" " * (MAX_VALUE_BYTES - len(body()))
    assert decode_event(body() + filler)[0].trade_id == "T1"
    assert reason_of(body() + filler + b" ") == "body-too-large"
    assert reason_of(b"[" * (MAX_VALUE_BYTES + 1)) == "body-too-large"


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_depth_is_bounded_on_both_sides(brackets: str) -> None:
    """Eight levels are accepted, the ninth is refused; the body itself is the first."""

    def nested(levels: int) -> str:
        value = "1"
        for _ in range(levels):
            value = f'{{"a":{value}}}' if brackets == "{}" else f"[{value}]"
        return value

    assert decode_event(body(note=nested(MAX_DEPTH - 1)))[2] == 1
    assert reason_of(body(note=nested(MAX_DEPTH))) == "body-too-deep"


DEEP = [
    lambda note: body(note=note),
    lambda note: body(trade_id=None, price="1.5", note=note, other="1"),  # plain by its count
    lambda note: body(note=note)[:-1],
    lambda note: body(note=note, price="true"),
    lambda note: body(price=note),
    lambda note: body(',"x":1,"x":2', note=note),
    lambda note: body(note=note, schema_version="2"),
    lambda note: note.encode(),
]


@pytest.mark.parametrize("write", DEEP, ids=range(len(DEEP)))
def test_depth_is_judged_before_anything_else(write: Callable[[str], bytes]) -> None:
    """How deep a parser gets depends on how deep its caller stands; what it is refused for not."""
    outcomes = {
        outcome_of(write("[" * levels + "]" * levels))
        for levels in (MAX_DEPTH + 1, 600, *range(900, 1000), 10_000)
    }
    assert outcomes == {"body-too-deep"}


@pytest.mark.parametrize(
    "note",
    [
        *('"[[[[[[[[[[[[[[[["', '"\\"[[[[[[[[[[[[{{{{{{{"', '"\\\\","b":"[[[[[[[[[[[["'),
        *("[[],[],[],[],[],[],[],[],[],[],[]]", '{"a":[{}],"b":[{}],"c":[{}],"d":[{}],"e":[{}]}'),
        '"' + '\\"' * 30_000 + '"',
    ],
)
def test_brackets_that_do_not_nest_are_no_depth(note: str) -> None:
    """Brackets in text, and one after the other, are as good as any."""
    assert outcome_of(body(note=note)) == "decoded"


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(value: bytes) -> None:
    """No bytes raise anything but the one error of this layer."""
    outcome = outcome_of(value)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", outcome)
    if outcome == "decoded":
        event = decode_event(value)[0]
        assert decode_event(encode_event(event))[0] == event


def test_event_is_written_compactly_without_what_is_not_set() -> None:
    """Absent fields take no bytes; text and numbers are written as they are."""
    event = TradeEvent(trade_id="T", price="1.50", quantity=2, short_sale=False)
    assert encode_event(event) == b'{"trade_id":"T","price":"1.50","quantity":2,"short_sale":false}'


@pytest.mark.parametrize(
    ("field", "name"),
    [("trade_id", "trade-id"), ("contract_multiplier", "multiplier"), ("price", "price")],
)
def test_reason_name_is_kebab(field: str, name: str) -> None:
    """Reason codes call a field by its kebab name, the multiplier by its short one."""
    assert reason_name(field) == name
