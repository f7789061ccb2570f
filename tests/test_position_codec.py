"""Records of the positions topic: what is restored is what was written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DecodeError
from app.models import Position
from app.money import ONE_E8
from app.position_codec import (
    HEARTBEAT_KEY,
    SourceRef,
    decode_position_record,
    encode_heartbeat,
    encode_position,
    position_json,
    position_of,
)
from app.timestamps import MAX_NS, MIN_NS

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
amounts = st.integers(-(10**30), 10**30)
sums = st.integers(-(10**80), 10**80)
offsets = st.integers(0, 2**63 - 1)
positions = st.builds(
    Position,
    book=st.none() | words,
    symbol=words,
    currency=st.none() | words,
    quantity_e8=amounts,
    open_cost_e24=sums,
    multiplier_e8=st.integers(1, 10**20 - 1),
    realized_e24=sums,
    fees_e8=amounts,
    mark_e8=amounts,
    mark_ns=st.just(0) | st.integers(MIN_NS, MAX_NS - 1),
    trade_count=offsets,
    source_offset=st.just(-1) | offsets,
    origins=st.none() | st.dictionaries(st.integers(0, 1023), offsets, min_size=1),
    generation=st.integers(0, 1000),
)


def written(position: Position, **changes: Any) -> bytes:
    """Write a position record, with some of its fields spoilt."""
    body = json.loads(encode_position(position, group="g", topic="t", partition=3))
    return json.dumps({**body, **changes}).encode()


@given(positions)
def test_position_survives_its_record_to_the_last_digit(position: Position) -> None:
    """Every field comes back as it was, the source it covers included."""
    record = decode_position_record(encode_position(position, group="g", topic="t", partition=3))
    assert position_of(record) == position
    assert record.source == SourceRef("t", 3, position.source_offset)
    assert (record.type, record.group, record.schema_version) == ("position", "g", 1)


def test_position_record_is_plain_json_with_decimal_text() -> None:
    """Readers in other languages find amounts as exact text and times as RFC 3339."""
    position = Position(
        "DESK",
        "X",
        "USD",
        quantity_e8=-3 * ONE_E8,
        open_cost_e24=-(10**25),
        realized_e24=15 * 10**23,
        fees_e8=1,
        mark_e8=350_000_000,
        mark_ns=MIN_NS + 1,
        trade_count=2,
        source_offset=41,
        origins={7: 9},
    )
    assert json.loads(encode_position(position, group="g", topic="t", partition=3)) == {
        "schema_version": 1,
        "type": "position",
        "group": "g",
        "source": {"topic": "t", "partition": 3, "offset": 41},
        "book": "DESK",
        "symbol": "X",
        "currency": "USD",
        "quantity": "-3",
        "open_cost": "-10",
        "average_price": "3.33333333",
        "realized_pnl": "1.5",
        "unrealized_pnl": "-0.5",
        "fees": "0.00000001",
        "mark": "3.5",
        "mark_time": "2000-01-01T00:00:00.000000001Z",
        "trade_count": 2,
        "origins": {"7": 9},
    }


def test_heartbeat_says_who_and_how_far() -> None:
    """A heartbeat names owner and source offset, under a key that no position can have."""
    record = decode_position_record(
        encode_heartbeat(group="g", topic="t", partition=1, offset=5, partitions=8)
    )
    assert record.source_partitions == 8
    assert (record.type, record.group, record.source) == ("heartbeat", "g", SourceRef("t", 1, 5))
    assert not HEARTBEAT_KEY.decode().isprintable()


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"null", b"[]", b"{}", b"\xff", b"{" * 100_000, b'{"x":' * 100_000),
        b'{"schema_version":1,"type":"other","group":"g","source":["t",1,2]}',
        b'{"schema_version":1,"type":"position","group":"g"}',
        b'{"schema_version":"1","type":"position","group":"g","source":{}}',
    ],
)
def test_value_that_is_no_position_record_is_refused(value: bytes) -> None:
    """What this version did not write is never guessed at, whatever it is."""
    with pytest.raises(DecodeError) as refused:
        decode_position_record(value)
    assert refused.value.reason == "position-record-unreadable"


def test_record_of_another_schema_is_refused() -> None:
    """A newer schema is named as such, so that a person updates the reader."""
    with pytest.raises(DecodeError, match="schema 2") as refused:
        decode_position_record(written(Position(None, "X"), schema_version=2))
    assert refused.value.reason == "schema-version-unsupported"


def test_field_of_a_later_minor_version_is_tolerated() -> None:
    """Changes only add fields, and an unknown one is passed over."""
    assert (
        position_of(decode_position_record(written(Position(None, "X"), later=[1]))).symbol == "X"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"symbol": None},
        {"quantity": "1e3"},
        {"quantity": "0.123456789"},
        {"open_cost": "NaN"},
        {"multiplier": ""},
        {"mark_time": "yesterday"},
        {"origins": {"first": 1}},
        {"realized_pnl": "9" * 5000},
    ],
    ids=str,
)
def test_position_record_with_an_unreadable_field_is_refused(changes: dict[str, Any]) -> None:
    """A state is restored whole or not at all."""
    record = decode_position_record(written(Position(None, "X"), **changes))
    with pytest.raises(DecodeError) as refused:
        position_of(record)
    assert refused.value.reason == "position-record-unreadable"


def test_position_is_shown_with_its_source() -> None:
    """The short form has the amounts as written and where the last trade stands."""
    position = Position("B", "X", quantity_e8=ONE_E8, open_cost_e24=2 * 10**24, mark_e8=3 * ONE_E8)
    record = decode_position_record(encode_position(position, group="g", topic="t", partition=0))
    assert position_json(record) == {
        "book": "B",
        "symbol": "X",
        "quantity": "1",
        "average_price": "2",
        "realized_pnl": "0",
        "unrealized_pnl": "1",
        "mark": "3",
        "fees": "0",
        "source": {"topic": "t", "partition": 0, "offset": -1},
    }
