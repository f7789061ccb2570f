"""Rows of the copy: exactly what the rules make of each record, in ClickHouse's Native format."""

import io
import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import decode_event
from app.copy_codec import CopyBlock
from app.errors import RecordError
from app.memory_io import MemoryRecord
from app.ports import RecordBatch
from app.simulator import POISON, TradeSimulator
from app.validation import check_event

Row = dict[str, Any]


def read_native(body: bytes) -> list[Row]:
    """Read blocks of the Native format, knowing only the types that the copy sends."""
    stream = io.BytesIO(body)
    rows: list[Row] = []
    while stream.tell() < len(body):
        columns, count = _varint(stream), _varint(stream)
        named = {}
        for _ in range(columns):
            name, kind = _text(stream), _text(stream)
            named[name] = [_cell(stream, kind) for _ in range(count)]
        rows += [
            dict(zip(named, cells, strict=True)) for cells in zip(*named.values(), strict=True)
        ]
    return rows


def _varint(stream: io.BytesIO) -> int:
    number = shift = 0
    while True:
        (byte,) = stream.read(1)
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number


def _text(stream: io.BytesIO) -> str:
    return stream.read(_varint(stream)).decode()


def _cell(stream: io.BytesIO, kind: str) -> Any:
    if kind == "String":
        return _text(stream)
    if kind.startswith("Decimal"):
        return Decimal(int.from_bytes(stream.read(16), "little", signed=True)).scaleb(-8)
    if kind.startswith("Enum8('BUY'"):
        return {1: "BUY", -1: "SELL"}[struct.unpack("<b", stream.read(1))[0]]
    if kind.startswith("Enum8('NEW'"):
        return ("NEW", "AMEND", "CANCEL")[stream.read(1)[0] - 1]
    sizes = {"Int32": "<i", "UInt64": "<Q"}
    form = sizes.get(kind, "<q")
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def batch_of(values: Sequence[bytes | None], *, start: int = 0) -> RecordBatch:
    """Make a batch of records that follow each other."""
    records = [
        MemoryRecord(start + i, 1_790_000_000_000 + start + i, None, v)
        for i, v in enumerate(values)
    ]
    return RecordBatch.of(3, 1, records, start + len(values))


def block_of(values: Sequence[bytes | None], *, chunk: int = 500) -> CopyBlock:
    """Make a block of records, in chunks as a source would give them."""
    block = CopyBlock(3, 0)
    for start in range(0, len(values), chunk):
        batch = batch_of(values[start : start + chunk], start=start)
        block.add(batch, 0, len(batch.values), batch.next_offset)
    return block


def oracle(values: Sequence[bytes | None]) -> tuple[list[Row], list[Row]]:
    """Give rows and refusals by the rules alone, one record after the other."""
    rows, refusals = [], []
    for offset, value in enumerate(values):
        place: Row = {"source_partition": 3, "source_offset": offset}
        appended = {"appended_at": 1_790_000_000_000 + offset}
        try:
            event, is_plain, _ = decode_event(value)
            trade = check_event(event, is_plain=is_plain)
        except RecordError as exc:
            refusals.append(place | {"reason": exc.reason} | appended)
            continue
        rows.append(
            place
            | {
                "trade_id": event.trade_id,
                "version": event.version or (1 if event.action in (None, "NEW") else 0),
                "action": event.action or "NEW",
                "book": event.book or "",
                "symbol": event.symbol,
                "side": event.side,
                "price": Decimal(trade.price_e8).scaleb(-8),
                "quantity": Decimal(trade.quantity_e8).scaleb(-8),
                "multiplier": Decimal(trade.multiplier_e8).scaleb(-8),
                "fee": Decimal(trade.fee_e8).scaleb(-8),
                "currency": event.currency or "USD",
                "executed_at": trade.time_ns,
            }
            | appended
        )
    return rows, refusals


def assert_exact(values: Sequence[bytes | None], *, chunk: int = 500) -> None:
    """Hold a block against the oracle."""
    block = block_of(values, chunk=chunk)
    rows, refusals = oracle(values)

    def by_offset(found: list[Row]) -> list[Row]:
        return sorted(found, key=lambda row: row["source_offset"])

    assert by_offset(read_native(block.trades())) == rows
    assert by_offset(read_native(block.refusals())) == refusals
    assert (block.rows, block.refused, block.next_offset) == (
        len(rows),
        len(refusals),
        len(values),
    )


def event(**changes: Any) -> bytes:
    """Give a trade event, with some fields changed."""
    fields: dict[str, Any] = {
        "trade_id": "T-1",
        "symbol": "AAPL",
        "side": "BUY",
        "price": "189.42",
        "quantity": "100",
        "timestamp": "2026-03-02T14:30:00.123456Z",
        "book": "EQ",
        "published_at": "2026-03-02T14:30:00.123456Z",
    }
    return json.dumps({k: v for k, v in (fields | changes).items() if v is not None}).encode()


@pytest.mark.parametrize("poison", [0.0, 0.01, 0.5])
def test_simulated_trades_with_poison_become_what_the_rules_say(poison: float) -> None:
    """Good and bad records, in chunks of which most have one of each."""
    simulator = TradeSimulator(run_id="copy", seed=7, books=3, symbols=20, poison=poison)
    moment = datetime(2026, 3, 2, tzinfo=UTC)
    values = [
        simulator.next_trade(
            (moment + timedelta(microseconds=37 * n)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ).value
        for n in range(1500)
    ]
    assert_exact(values)


def test_each_poison_alone_among_good_ones_is_refused_alone() -> None:
    """A bad record takes nothing else of its chunk along."""
    simulator = TradeSimulator(run_id="copy", seed=8, books=2, symbols=5, poison=1.0)
    bad = [
        simulator.next_trade("2026-03-02T14:30:00.000001Z").value for _ in range(20 * len(POISON))
    ]
    values = [value for one in bad for value in (event(), one, event(trade_id="T-2"))]
    assert_exact(values, chunk=7)


@pytest.mark.parametrize(
    "changes",
    [
        {"price": 5}, {"price": 189.42}, {"price": 1e-8}, {"price": "0.00000001"}, {"price": "0"},
        {"price": "-1"}, {"price": "1.123456789"}, {"price": 1.1234567891}, {"price": "1e3"},
        {"price": "999999999999.99999999"}, {"price": "1000000000000"}, {"quantity": "+7"},
        {"quantity": 7}, {"price": True}, {"trade_id": "é" * 64}, {"trade_id": "x" * 64},
        {"trade_id": "x" * 65}, {"trade_id": " "}, {"trade_id": "a\tb"}, {"trade_id": "q'\\"},
        {"symbol": "A|B"}, {"symbol": " A"}, {"symbol": "日本"}, {"symbol": ""}, {"book": None},
        {"book": ""}, {"book": "B|"}, {"book": "ü"}, {"side": "HOLD"}, {"published_at": None},
        {"timestamp": "2026-03-02T14:30:00Z"}, {"timestamp": "2026-03-02T14:30:00.1Z"},
        {"timestamp": "2026-03-02 14:30:00.123456789+01:00"}, {"timestamp": "2016-12-31T23:59:60Z"},
        {"timestamp": "2016-12-31T23:59:60.999999Z"}, {"timestamp": "2026-03-02T14:30:00.123"},
        {"timestamp": "1999-12-31T23:59:59.999999Z"}, {"timestamp": "2099-12-31T23:59:59.999999Z"},
        {"timestamp": "2100-01-01T00:00:00.000000Z"}, {"timestamp": "2026-13-02T14:30:00.123456Z"},
        {"timestamp": "2026-03-02T14:30:00.123 56Z"}, {"timestamp": "x"}, {"timestamp": 1772461800},
        {"timestamp": 1772461800123456789}, {"action": "AMEND"}, {"action": "AMEND", "version": 3},
        {"action": "CANCEL", "version": 2}, {"action": "NEW", "version": 1}, {"action": "LATER"},
        {"version": 2**64 - 1}, {"version": 0}, {"contract_multiplier": "100"},
        {"contract_multiplier": "0"}, {"fees": [{"amount": "1.5"}, {"amount": "-0.25"}]},
        {"currency": "EUR"}, {"currency": "eur"}, {"asset_class": "FUTURE", "price": "-5"},
        {"note": "unknown field"},
    ],
)  # fmt: skip
def test_odd_events_become_what_the_rules_say(changes: dict[str, Any]) -> None:
    """First seen and seen before, alone and among others."""
    odd = event(**changes)
    assert_exact([odd])
    assert_exact([event(), odd, event(trade_id="T-2"), odd, odd])


def test_versions_that_fit_no_column_are_refused() -> None:
    """What 64 bits cannot hold is no version that anybody counts."""
    block = block_of([event(version=2**64)])
    assert [row["reason"] for row in read_native(block.refusals())] == ["version-out-of-range"]


def test_append_times_beyond_the_calendar_do_no_harm() -> None:
    """A broken clock of a sender, on a topic with create times, keeps nothing from being copied."""
    records = [MemoryRecord(n, stamp, None, event()) for n, stamp in enumerate((-1, 2**63 - 1, 5))]
    block = CopyBlock(0, 0)
    block.add(RecordBatch.of(0, 1, records, 3), 0, 3, 3)
    stamps = [row["appended_at"] for row in read_native(block.trades())]
    assert stamps == [0, 253_402_300_799_999, 5]


_TEXT = st.text(max_size=12)
_NUMBER = st.one_of(
    st.decimals(allow_nan=False, places=8, min_value=-10, max_value=10**13).map(str),
    st.integers(-5, 10**13),
    st.floats(allow_nan=False, allow_infinity=False),
    _TEXT,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "trade_id": _TEXT,
                "symbol": _TEXT,
                "book": _TEXT,
                "side": st.sampled_from(["BUY", "SELL", "buy", ""]),
                "price": _NUMBER,
                "quantity": _NUMBER,
                "timestamp": st.one_of(
                    st.datetimes(datetime(1999, 1, 1), datetime(2101, 1, 1)).map(  # noqa: DTZ001 - written as UTC
                        lambda moment: moment.isoformat(timespec="microseconds") + "Z"
                    ),
                    _TEXT,
                    _NUMBER,
                ),
                "version": st.integers(0, 9),
                "action": st.sampled_from(["NEW", "AMEND", "CANCEL"]),
            },
        ),
        max_size=8,
    )
)
def test_any_events_become_what_the_rules_say(changes: list[dict[str, Any]]) -> None:
    """The short way and the rules give the same rows and the same reasons."""
    assert_exact([event(**some) for some in changes], chunk=5)
