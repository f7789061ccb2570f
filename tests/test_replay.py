"""Replay of files: every row has one fate, sums are exact, and what is refused is named."""

import asyncio
import csv
import dataclasses
import gzip
import io
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from app.cli import replay as command
from app.codec import decode_event
from app.errors import ConfigError, RecordError
from app.models import Fee, TradeEvent
from app.ports import OutgoingRecord, SendOutcome, SendState
from app.replay import (
    CHUNK_ROWS,
    FIELDS,
    SEND_ATTEMPTS,
    DryRunPublisher,
    FieldMapping,
    Progress,
    ReplaySummary,
    RowMapper,
    SystemClock,
    TimeUnit,
    default_rejects_path,
    parse_speed,
    replay,
)
from app.replay_files import Row, read_rows
from app.timestamps import NS_PER_S, format_timestamp, parse_timestamp

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
EQUITY = DATA / "equity_prints.csv.gz"
PERPETUAL = DATA / "perpetual_prints.jsonl"
needs_prints = pytest.mark.skipif(
    not (EQUITY.is_file() and PERPETUAL.is_file()), reason="the market prints are not here"
)

OK = SendOutcome(SendState.OK, 0, 0)
NOT_SENT = SendOutcome(SendState.NOT_SENT, error="away")
REFUSED = SendOutcome(SendState.NOT_SENT, error="too large", retryable=False)
UNKNOWN = SendOutcome(SendState.UNKNOWN, error="no answer")
BEGIN_NS = 1_700_000_000 * NS_PER_S

EQUITY_MAPPING = FieldMapping.parse(
    maps=["symbol=SYMBOL", "price=PRICE", "quantity=SIZE", "timestamp=DT"],
    defaults=["book=EQ", "side=BUY"],
    generate_ids=True,
    zone="Europe/Amsterdam",
)
PERPETUAL_MAPPING = FieldMapping.parse(
    maps=["symbol=s", "price=p", "quantity=q", "timestamp=T", "trade_id=t"],
    defaults=["book=PERP"],
    side_from="m=true:SELL,false:BUY",
)


class FakeClock:
    """Time that moves only while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []

    def monotonic_s(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return BEGIN_NS + round(self.now_s * NS_PER_S)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


class FakePublisher:
    """Keeps what it is given; `answer` decides the outcome of each record."""

    def __init__(self, answer: Callable[[TradeEvent, int], SendOutcome] = lambda *_: OK) -> None:
        self.calls: list[list[TradeEvent]] = []
        self.records: list[OutgoingRecord] = []
        self._answer = answer

    @property
    def events(self) -> list[TradeEvent]:
        return [event for call in self.calls for event in call]

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        events = [decode_event(record.value)[0] for record in records]
        self.calls.append(events)
        self.records += records
        return [self._answer(event, len(self.calls)) for event in events]

    async def partition_count(self, topic: str) -> int:
        return 1


def trade(**changes: object) -> dict[str, object]:
    """Give one good row, changed."""
    row = {
        "trade_id": "T1",
        "symbol": "ABC",
        "side": "BUY",
        "price": "10.5",
        "quantity": "2",
        "timestamp": "2024-05-01T10:00:00Z",
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not ...}


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    """Write rows as JSON Lines; text goes in as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def map_row(mapping: FieldMapping | None = None, *, is_typed: bool = True, **changes: Any) -> Any:
    """Map one good row, changed, to its event."""
    row = Row("prints.jsonl", 1, trade(**changes), is_typed=is_typed)
    return RowMapper(mapping or FieldMapping()).map_row(row).event


def reason_of(mapping: FieldMapping | None = None, **changes: Any) -> str:
    """Give the reason code for which a changed row is refused."""
    with pytest.raises(RecordError) as caught:
        map_row(mapping, **changes)
    return caught.value.reason


async def run(
    *files: Path, mapping: FieldMapping | None = None, publisher: Any = None, **options: Any
) -> ReplaySummary:
    """Replay files beside their rejects file."""
    options.setdefault("rejects_path", files[0].parent / "rejects.jsonl")
    options.setdefault("clock", FakeClock())
    return await replay(
        files,
        mapping or FieldMapping(),
        publisher=publisher or FakePublisher(),
        topic="trades",
        **options,
    )


def rejects_of(summary: ReplaySummary) -> list[dict[str, Any]]:
    """Read the rejects file of a replay."""
    if summary.rejects_path is None:
        return []
    return [json.loads(line) for line in Path(summary.rejects_path).read_text().splitlines()]


async def test_trade_events_replay_without_any_mapping(tmp_path: Path) -> None:
    """Columns named like fields fill them, and the key is the position key."""
    row = trade(book="B", fees=[{"amount": 0.1, "type": "tax", "currency": "EUR"}, {}], version=1)
    extra = {"published_at": "2020-01-01T00:00:00Z", "unknown": {"x": 1}, "cleared": True}
    publisher = FakePublisher()
    summary = await run(write_jsonl(tmp_path / "a.jsonl", [row | extra]), publisher=publisher)
    assert summary.rejected == {"fee-amount-missing": 1}
    row["fees"] = row["fees"][:1]  # type: ignore[index]
    summary = await run(write_jsonl(tmp_path / "a.jsonl", [row | extra]), publisher=publisher)
    assert publisher.events == [
        TradeEvent(
            **(trade() | {"fees": [Fee(amount="0.1", type="tax", currency="EUR")]}),  # type: ignore[arg-type]
            book="B",
            version=1,
            cleared=True,
            published_at=format_timestamp(BEGIN_NS),
        )
    ]
    assert publisher.records[0].key == b"B|ABC"
    assert publisher.records[0].topic == "trades"
    assert summary.adds_up
    assert summary.is_success


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"price": "1.123456789"}, "price-too-many-decimals"),
        ({"price": "1e3"}, "price-bad-character"),
        ({"price": float("nan")}, "price-not-finite"),
        ({"price": Decimal("1e1000000")}, "price-out-of-range"),
        ({"price": True}, "price-wrong-type"),
        ({"price": None}, "price-missing"),
        ({"price": 1e-9}, "price-not-positive"),
        ({"quantity": -1}, "quantity-not-positive"),
        ({"quantity": "1,250"}, "quantity-bad-character"),
        ({"trade_id": None}, "trade-id-missing"),
        ({"trade_id": "x" * 65}, "trade-id-too-long"),
        ({"trade_id": True}, "trade-id-wrong-type"),
        ({"trade_id": ["x"]}, "trade-id-wrong-type"),
        ({"trade_id": float("inf")}, "trade-id-not-finite"),
        ({"trade_id": Decimal("1e1000")}, "trade-id-out-of-range"),
        ({"symbol": "A|B"}, "symbol-bad-character"),
        ({"symbol": "A\ud800"}, "symbol-bad-character"),
        ({"side": "buy"}, "side-unknown"),
        ({"side": None}, "side-missing"),
        ({"timestamp": "2024-05-01T10:00:00.1234567891Z"}, "timestamp-unparseable"),
        ({"timestamp": "yesterday"}, "timestamp-unparseable"),
        ({"timestamp": Decimal("1714557600.1234567891")}, "timestamp-unparseable"),
        ({"timestamp": Decimal("1e1000000")}, "timestamp-out-of-range"),
        ({"timestamp": 20_240_501}, "timestamp-out-of-range"),
        ({"timestamp": {}}, "timestamp-wrong-type"),
        ({"version": "1"}, "version-wrong-type"),
        ({"cleared": "true"}, "cleared-wrong-type"),
        ({"fees": "1"}, "fees-wrong-type"),
        ({"fees": [1]}, "fees-wrong-type"),
        ({"fees": [{"amount": "x"}]}, "fee-amount-bad-character"),
        ({"schema_version": 2}, "schema-version-unsupported"),
        ({"action": "BUST"}, "action-unknown"),
    ],
)
def test_row_that_no_consumer_would_book_is_refused(changes: dict[str, Any], reason: str) -> None:
    """The reason codes are those of the event contract."""
    assert reason_of(**changes) == reason


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("190.98000000000002", "190.98"),
        ("0.000000025", "0.00000002"),
        ("0.000000035", "0.00000004"),
        ("1.5e3", "1500"),
        ("+7.", "7"),
        (".5", "0.5"),
        ("007", "7"),
    ],
)
def test_csv_cell_is_a_number(value: str, text: str) -> None:
    """Cells have no type: digits beyond the eighth are a double's noise."""
    assert map_row(is_typed=False, price=value).price == text


@pytest.mark.parametrize("value", [" 10 ", "1_000", "\u0661", "1e9999999", "0x10"])
def test_csv_cell_that_is_no_plain_number_is_refused(value: str) -> None:
    """Nothing is guessed of a cell."""
    assert reason_of(is_typed=False, price=value) == "price-bad-character"


def test_csv_cell_of_too_many_digits_is_out_of_range() -> None:
    """An endless row of digits is a number, and no price."""
    assert reason_of(is_typed=False, price="9" * 65) == "price-out-of-range"


def test_strict_decimals_refuse_instead_of_rounding() -> None:
    """The same number is rounded and noted, or refused."""
    row = Row("f", 1, trade(price=0.1 + 0.2, quantity=Decimal("1.000000001")), is_typed=True)
    mapped = RowMapper(FieldMapping()).map_row(row)
    assert sorted(mapped.rounded) == ["price-rounded", "quantity-rounded"]
    assert mapped.event.price == "0.3"
    assert reason_of(FieldMapping(is_strict=True), price=0.1 + 0.2) == "price-too-many-decimals"


def test_values_of_csv_cells_reach_fields_that_are_no_text() -> None:
    """Whole numbers and flags are read out of cells; anything else is refused."""
    event = map_row(is_typed=False, version="3", cleared="TRUE")
    assert (event.version, event.cleared) == (3, True)
    assert reason_of(is_typed=False, version="3.0") == "version-wrong-type"
    assert reason_of(is_typed=False, cleared="yes") == "cleared-wrong-type"


def test_numbers_become_plain_text_in_text_fields() -> None:
    """An id that the file holds as a number keeps its digits and gets no exponent."""
    assert map_row(trade_id=849_714_402).trade_id == "849714402"
    assert map_row(trade_id=Decimal("1.5e3")).trade_id == "1500"
    assert map_row(trade_id=1e16).trade_id == "10000000000000000"
    assert map_row(account="ä").account == "ä"


@pytest.mark.parametrize(
    ("value", "side"),
    [(True, "SELL"), (False, "BUY"), ("TRUE", "SELL"), ("false", "BUY"), ("S", "SELL")],
)
def test_side_is_told_by_a_column(value: object, side: str) -> None:
    """JSON and text booleans are alike; other values count exactly as they are listed."""
    mapping = FieldMapping.parse(side_from="m=True:SELL,false:BUY,S:SELL")
    assert map_row(mapping, m=value).side == side


@pytest.mark.parametrize("value", [1, 0, "one", "s", "", [1]])
def test_value_that_is_not_listed_tells_no_side(value: object) -> None:
    """0 and 1 are no booleans unless they are listed."""
    mapping = FieldMapping.parse(side_from="m=true:SELL,false:BUY,S:SELL")
    assert reason_of(mapping, m=value) in {"side-unknown", "side-wrong-type"}
    listed = FieldMapping.parse(side_from="m=1:SELL,0:BUY")
    assert map_row(listed, m=1).side == "SELL"


def test_default_fills_what_is_missing_and_nothing_else() -> None:
    """A value in the row wins over the default."""
    mapping = FieldMapping.parse(defaults=["book=B", "side=SELL", "price=7.50", "version=2"])
    event = map_row(mapping, side=..., price=None, book="OWN")
    assert (event.book, event.side, event.price, event.version) == ("OWN", "SELL", "7.5", 2)


def test_columns_named_like_fields_can_be_left_alone() -> None:
    """Without names only what is mapped is taken."""
    mapping = FieldMapping(columns={name: name for name in trade()}, by_name=False)
    assert map_row(mapping, action="whatever").action is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2013-06-08 09:00:01.625473976", "2013-06-08T07:00:01.625473976Z"),
        ("2013-01-08 09:00:01", "2013-01-08T08:00:01Z"),
        ("2013-06-08T09:00:01.5+05:30", "2013-06-08T03:30:01.500Z"),
        ("2013-06-08 09:00:01+02", "2013-06-08T07:00:01Z"),
        ("2013-06-08 09:00:01.5+0200", "2013-06-08T07:00:01.500Z"),
        ("2013-10-27 02:30:00", "2013-10-27T00:30:00Z"),
        (1_370_674_801, "2013-06-08T07:00:01Z"),
        (1_370_674_801_625, "2013-06-08T07:00:01.625Z"),
        ("1370674801625473", "2013-06-08T07:00:01.625473Z"),
        (1_370_674_801_625_473_976, "2013-06-08T07:00:01.625473976Z"),
        (Decimal("1370674801.625473976"), "2013-06-08T07:00:01.625473976Z"),
        (1_370_674_801.5, "2013-06-08T07:00:01.500Z"),
    ],
)
def test_times_become_utc_to_the_precision_given(value: object, text: str) -> None:
    """Local times take the zone, an hour that comes twice is its first, numbers tell their unit."""
    mapping = FieldMapping(zone=ZoneInfo("Europe/Amsterdam"))
    assert map_row(mapping, timestamp=value).timestamp == text


def test_local_time_that_the_clocks_skip_is_refused() -> None:
    """In spring there is no half past two."""
    mapping = FieldMapping(zone=ZoneInfo("Europe/Amsterdam"))
    assert reason_of(mapping, timestamp="2013-03-31 02:30:00") == "timestamp-unparseable"
    assert map_row(mapping, timestamp="2013-03-31 03:00:00").timestamp == "2013-03-31T01:00:00Z"


def test_local_time_without_a_zone_is_passed_on_and_flagged() -> None:
    """Whoever reads it decides, and the summary says so."""
    text = "2013-06-08 09:00:01.50"
    row = Row("f", 1, trade(timestamp=text), is_typed=True)
    mapped = RowMapper(FieldMapping()).map_row(row)
    assert mapped.event.timestamp == text
    assert mapped.suspects == ("timestamp-no-offset",)


def test_time_unit_can_be_named() -> None:
    """A named unit holds for every number, also where its magnitude says something else."""
    nanos = FieldMapping(time_unit=TimeUnit.NS)
    assert map_row(nanos, timestamp=1_370_674_801 * NS_PER_S).timestamp == "2013-06-08T07:00:01Z"
    assert reason_of(nanos, timestamp=1_370_674_801) == "timestamp-out-of-range"
    seconds = FieldMapping(time_unit=TimeUnit.S)
    assert map_row(seconds, timestamp="1370674801.5").timestamp == "2013-06-08T07:00:01.500Z"


def test_generated_ids_are_stable_and_tell_equal_prints_apart(tmp_path: Path) -> None:
    """Folder and compression do not matter; the line and the trade do."""
    body = "symbol,side,price,quantity,timestamp\n" + "A,BUY,1,1,2024-05-01T10:00:00Z\n" * 3
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "a.csv").write_text(body)
    (other / "a.csv.gz").write_bytes(gzip.compress(body.encode()))
    (tmp_path / "b.csv").write_text(body)
    mapper = RowMapper(FieldMapping(generate_ids=True))

    def ids(path: Path) -> list[str]:
        with closing(read_rows(path)) as rows:
            return [str(mapper.map_row(row).event.trade_id) for row in rows]

    first = ids(tmp_path / "a.csv")
    assert first == ids(tmp_path / "a.csv") == ids(other / "a.csv.gz")
    assert len(set(first) | set(ids(tmp_path / "b.csv"))) == 6
    assert max(map(len, first)) <= 64


def test_wrong_options_are_named_all_at_once() -> None:
    """Nobody mends one option to be told of the next."""
    with pytest.raises(ConfigError) as caught:
        FieldMapping.parse(
            maps=["prize=P", "price", "price=P", "price=Q", "published_at=X", "trade_id=I"],
            defaults=["side=buy", "quantity=many", "=x", "side_=y"],
            side_from="m=true:SOLD",
            generate_ids=True,
            zone="Mars/Olympus",
        )
    assert len(caught.value.problems) == 11
    with pytest.raises(ConfigError, match="side is also mapped"):
        FieldMapping.parse(maps=["side=S"], side_from="m=1:SELL")
    for side_from in ["m", "=1:SELL", "m=1", "m=1:SELL,1:BUY", "m=true:SELL,TRUE:BUY"]:
        with pytest.raises(ConfigError, match="--side-from"):
            FieldMapping.parse(side_from=side_from)


async def test_files_are_compared_with_the_mapping_before_anything_is_published(
    tmp_path: Path,
) -> None:
    """Every problem of every file is named, and nothing has been sent."""
    good = write_jsonl(tmp_path / "good.jsonl", [trade()])
    (tmp_path / "bad.csv").write_text("symbol,symbol,price,side\n")
    publisher = FakePublisher()
    files = [good, good, tmp_path / "bad.csv", tmp_path / "none.csv"]
    with pytest.raises(ConfigError) as caught:
        await run(
            *files,
            mapping=FieldMapping.parse(maps=["price=PRICE"]),
            publisher=publisher,
            rejects_path=good,
        )
    text = str(caught.value)
    for problem in [
        "good.jsonl: is given twice",
        "column symbol stands twice",
        "no column PRICE; there are symbol, symbol, price, side",
        "nothing gives quantity; use --map quantity=COLUMN",
        "nothing gives trade_id",
        "none.csv: does not exist",
        "is one of the files to be replayed",
    ]:
        assert problem in text
    assert publisher.calls == []
    with pytest.raises(ConfigError, match="cannot be written"):
        await run(good, rejects_path=tmp_path / "none" / "rejects.jsonl")


async def test_chunks_are_bounded_and_everything_is_summed(tmp_path: Path) -> None:
    """Two files go out in their order, in calls of bounded size, with exact sums."""
    rows = [
        trade(trade_id=i, price="0.00000001", quantity=f"{i}.00000001") for i in range(1, 1_201)
    ]
    files = [
        write_jsonl(tmp_path / "a.jsonl", rows[:700]),
        write_jsonl(tmp_path / "b.jsonl", rows[700:]),
    ]
    publisher, seen = FakePublisher(), list[Progress]()
    summary = await run(*files, publisher=publisher, progress=seen.append)
    assert max(map(len, publisher.calls)) == CHUNK_ROWS
    assert [event.trade_id for event in publisher.events] == [str(i) for i in range(1, 1_201)]
    assert summary.sum_quantity == Decimal("720600.00001200")
    assert summary.sum_notional == Decimal("0.0072060000001200")
    assert [counts.rows for counts in summary.files] == [700, 500]
    assert seen[-1].rows == seen[-1].published == 1_200
    assert seen[-1].bytes_total == seen[-1].bytes_read
    assert not (tmp_path / "rejects.jsonl").exists()


async def test_speed_follows_the_event_times_in_batches(tmp_path: Path) -> None:
    """Rows go out when they are due, many a timer, and carry the time at which they were due."""
    times = [0, 1, 1, *(2_000 + i for i in range(100)), 4_000]
    rows = [trade(trade_id=i, timestamp=1_714_557_600_000 + t) for i, t in enumerate(times)]
    publisher, clock = FakePublisher(), FakeClock()
    summary = await run(
        write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher, clock=clock, speed=10.0
    )
    assert summary.published == len(rows)
    assert summary.seconds == pytest.approx(0.405)
    assert len(publisher.calls) < 10
    published = [event.published_at for event in publisher.events]
    assert published[0] == format_timestamp(BEGIN_NS)
    assert published[-1] == format_timestamp(BEGIN_NS + 400_000_000)
    due_ns = [parse_timestamp(str(text))[0] for text in published]
    assert due_ns == sorted(due_ns)


async def test_late_rows_are_due_at_once_and_never_before_the_start(tmp_path: Path) -> None:
    """An event older than the first one waits for nothing."""
    rows = [trade(trade_id=i, timestamp=1_714_557_600 - i * 100) for i in range(3)]
    publisher, clock = FakePublisher(), FakeClock()
    await run(write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher, clock=clock, speed=1.0)
    assert clock.sleeps == []
    assert {event.published_at for event in publisher.events} == {format_timestamp(BEGIN_NS)}


@pytest.mark.parametrize(("text", "speed"), [("max", None), ("1x", 1), ("10x", 10), ("0.5x", 0.5)])
def test_speed_is_read(text: str, speed: float | None) -> None:
    """As fast as possible, or a multiple of real time."""
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "x", "0x", "-1x", "10", "1e3x", "MAX", "nanx"])
def test_other_speeds_are_refused(text: str) -> None:
    """Nothing is guessed of a speed."""
    with pytest.raises(ConfigError, match="--speed"):
        parse_speed(text)


async def test_what_is_surely_not_sent_is_tried_again(tmp_path: Path) -> None:
    """Only the records that failed are repeated, and they count once."""
    rows = [trade(trade_id=f"T{i}") for i in range(3)]
    publisher = FakePublisher(lambda e, call: NOT_SENT if e.trade_id == "T1" and call < 3 else OK)
    summary = await run(write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher)
    assert [len(call) for call in publisher.calls] == [3, 1, 1]
    assert (summary.published, summary.is_success, summary.rejects_path) == (3, True, None)


async def test_repeats_are_bounded_and_every_failure_is_named(tmp_path: Path) -> None:
    """A permanent refusal is not repeated, and what is unknown is never sent again."""
    answers = {"T0": OK, "T1": NOT_SENT, "T2": REFUSED, "T3": UNKNOWN}
    rows: list[object] = [trade(trade_id=name) for name in answers]
    rows.append(trade(price="0"))
    publisher = FakePublisher(lambda event, _: answers[str(event.trade_id)])
    summary = await run(write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher)
    assert len(publisher.calls) == SEND_ATTEMPTS
    assert [event.trade_id for event in publisher.events].count("T3") == 1
    assert (summary.rows, summary.published, summary.rejected_total) == (5, 1, 1)
    assert (summary.not_sent, summary.unknown) == (2, 1)
    assert summary.adds_up
    assert not summary.is_success
    assert summary.sum_quantity == 2
    assert {(entry["line"], entry["reason"]) for entry in rejects_of(summary)} == {
        (2, "send-not-sent"),
        (3, "send-not-sent"),
        (4, "send-unknown"),
        (5, "price-not-positive"),
    }


async def test_rejects_file_names_row_and_reason_and_replaces_an_old_one(tmp_path: Path) -> None:
    """The raw row is there to be mended, cut at 4 KiB, with control characters escaped."""
    (tmp_path / "rejects.jsonl").write_text("old\n" * 10)
    raw = '{"trade_id": "\u001b[31m' + "x" * 5_000 + '"}'
    path = write_jsonl(tmp_path / "a.jsonl", [trade(), raw])
    summary = await run(path)
    assert "\x1b" not in (tmp_path / "rejects.jsonl").read_text()
    (entry,) = rejects_of(summary)
    assert list(entry) == ["file", "line", "reason", "message", "raw"]
    assert (entry["file"], entry["line"]) == (str(path), 2)
    assert entry["reason"] == "body-not-json"
    assert entry["raw"] == raw[:4096]


async def test_cut_off_file_is_an_error_and_the_rest_adds_up(tmp_path: Path) -> None:
    """Rows ahead of the cut are published, and the next file is replayed as well."""
    rows = "".join(json.dumps(trade(trade_id=f"{i * 7919 % 104_729}")) + "\n" for i in range(3_000))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(rows.encode())[:-3_000])
    whole = write_jsonl(tmp_path / "whole.jsonl", [trade()])
    summary = await run(cut, whole)
    first, second = summary.files
    assert first.error is not None
    assert "cannot be read" in first.error
    assert 0 < first.rows < 3_000
    assert (second.rows, second.error) == (1, None)
    assert summary.published == first.rows + 1
    assert summary.adds_up
    assert not summary.is_success


@pytest.mark.parametrize("speed", [None, 1.0])
async def test_stop_ends_after_the_chunk_in_flight(tmp_path: Path, speed: float | None) -> None:
    """What was read adds up, and the second file is not begun."""
    rows = [trade(trade_id=i, timestamp=1_714_557_600 + i) for i in range(2_000)]
    files = [
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_jsonl(tmp_path / "b.jsonl", rows),
    ]
    stop = asyncio.Event()

    def answer(event: TradeEvent, _call: int) -> SendOutcome:
        if event.trade_id == "3":
            stop.set()
        return NOT_SENT if event.trade_id == "2" else OK

    publisher = FakePublisher(answer)
    summary = await run(*files, publisher=publisher, stop=stop, speed=speed)
    assert summary.is_stopped
    assert summary.adds_up
    assert not summary.is_success
    assert len(summary.files) == 1
    assert summary.rows == (CHUNK_ROWS if speed is None else 4)
    assert summary.not_sent == 1


async def test_stop_is_noticed_in_a_file_of_rejects_alone(tmp_path: Path) -> None:
    """The loop gets its turn even when there is nothing to publish."""
    path = write_jsonl(tmp_path / "a.jsonl", ["{"] * 2_000)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_soon(stop.set)
    summary = await run(path, stop=stop)
    assert summary.rows == summary.rejected_total == CHUNK_ROWS


async def test_rows_with_ever_other_columns_are_mapped(tmp_path: Path) -> None:
    """What is remembered of columns is bounded."""
    rows = [trade(trade_id=i, **{f"column{i}": i}) for i in range(200)]
    summary = await run(write_jsonl(tmp_path / "a.jsonl", rows))
    assert summary.published == 200


async def test_the_clock_and_the_dry_run_need_no_broker(tmp_path: Path) -> None:
    """The real clock goes on, and a dry run calls everything sent."""
    clock = SystemClock()
    before = clock.monotonic_s(), clock.time_ns()
    await clock.sleep(0)
    assert clock.monotonic_s() >= before[0]
    assert clock.time_ns() > BEGIN_NS
    publisher = DryRunPublisher()
    assert await publisher.partition_count("trades") == 1
    path = write_jsonl(tmp_path / "a.jsonl", [trade()])
    summary = await run(path, publisher=publisher, clock=clock)
    assert summary.is_success
    assert default_rejects_path([path]) == Path("a.jsonl.rejects.jsonl")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["10.5", "0.000000019", "BUY", "SELL", "2024-05-01T10:00:00Z", 1_714_557_600]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3), max_size=20))
def test_any_rows_add_up_and_their_sums_are_exact(
    tmp_path: Path, changes: list[dict[str, Any]]
) -> None:
    """Whatever is in the rows, each has one fate, and sums equal those of independent decimals."""
    path = write_jsonl(tmp_path / "a.jsonl", [trade(**change) for change in changes])
    publisher = FakePublisher()
    summary = asyncio.run(run(path, publisher=publisher))
    assert summary.rows == len(changes) == summary.published + summary.rejected_total
    assert summary.adds_up
    assert [entry["line"] for entry in rejects_of(summary)] == [
        line
        for line in range(1, len(changes) + 1)
        if line in {e["line"] for e in rejects_of(summary)}
    ]
    assert len(rejects_of(summary)) == summary.rejected_total
    with localcontext(prec=100):
        events = publisher.events
        quantity = sum((Decimal(str(e.quantity)) for e in events), Decimal(0))
        notional = sum(
            (
                Decimal(str(e.price))
                * Decimal(str(e.quantity))
                * Decimal(str(e.contract_multiplier or 1))
                for e in events
            ),
            Decimal(0),
        )
        assert (summary.sum_quantity, summary.sum_notional) == (quantity, notional)


def independent_sums(rows: Sequence[tuple[object, object]]) -> tuple[int, Decimal, Decimal]:
    """Sum quantity and notional of price and quantity pairs by plain decimals."""
    with localcontext(prec=60):
        unit = Decimal("0.00000001")
        pairs = [[Decimal(str(x)).quantize(unit, ROUND_HALF_EVEN) for x in row] for row in rows]
        quantity = sum((q for _, q in pairs), Decimal(0))
        return len(pairs), quantity, sum((p * q for p, q in pairs), Decimal(0))


def equity_rows() -> list[dict[str, str]]:
    """Read the equity prints with the csv module alone."""
    with gzip.open(EQUITY, "rt", newline="") as file:
        return list(csv.DictReader(file))


@needs_prints
async def test_equity_prints_equal_an_independent_sum() -> None:
    """Counts, quantity and notional of real prints are those of a ten-line script."""
    pairs = [(row["PRICE"], row["SIZE"]) for row in equity_rows()]
    summary = await run(
        EQUITY, mapping=EQUITY_MAPPING, publisher=DryRunPublisher(), rejects_path=Path("none")
    )
    found = summary.published, summary.sum_quantity, summary.sum_notional
    assert found == independent_sums(pairs)
    assert summary.rounded == {"price-rounded": 148}
    assert summary.is_success


@needs_prints
async def test_perpetual_prints_equal_an_independent_sum() -> None:
    """The taker's side, ids that are numbers and times in ms come out of the raw fields."""
    rows = [json.loads(line) for line in PERPETUAL.read_text().splitlines()]
    publisher = FakePublisher()
    summary = await run(
        PERPETUAL, mapping=PERPETUAL_MAPPING, publisher=publisher, rejects_path=Path("none")
    )
    found = summary.published, summary.sum_quantity, summary.sum_notional
    assert found == independent_sums([(row["p"], row["q"]) for row in rows])
    sides = ["SELL" if row["m"] else "BUY" for row in rows]
    assert [event.side for event in publisher.events] == sides
    assert summary.is_success


BROKEN_CSV = [
    "2013-06-08 09:00:00,ABC,39.5,100.0",
    "2013-06-08 09:00:00,ABC,39.5,100.0,1,2",
    '2013-06-08 09:00:00,ABC,"39.5,100.0,1',
    "",
    "2013-06-08 09:00:00,ABC,,100.0,1",
    "2013-06-08 09:00:00,ABC,thirty,100.0,1",
    "2013-06-08 09:00:00,ABC,39.5,-1,1",
    "2013-03-31 02:30:00,ABC,39.5,100.0,1",
    "2013-06-08 09:00:00,A|C,39.5,100.0,1",
    "2013-06-08 09:00:00,ABC\udcff,39.5,100.0,1",
]
BROKEN_JSON = [
    "{",
    "[]",
    "",
    '{"s": "A", "s": "B"}',
    '{"T": 1723161257679, "s": "X", "t": 1, "p": "1.123456789", "q": "4", "m": true}',
    '{"T": 1723161257679, "s": "X", "t": 1, "p": "1", "q": "0", "m": true}',
    '{"T": 1723161257679, "s": "X", "t": 1, "p": "1", "q": "4", "m": "maybe"}',
    '{"T": "soon", "s": "X", "t": 1, "p": "1", "q": "4", "m": true}',
    '{"T": 1723161257679, "s": "X", "p": "1", "q": "4", "m": true}',
    '{"T": 1723161257679, "s": "\udcff", "t": 1, "p": "1", "q": "4", "m": true}',
]


def mixed(lines: list[str], broken: list[str], *, begin: int) -> tuple[bytes, list[int]]:
    """Spread five broken rows of each kind over lines; give the bytes and their line numbers."""
    places = range(begin, begin + 50 * 37, 37)
    for place, row in zip(places, broken * 5, strict=True):
        lines.insert(place, row)
    body = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    return body, [place + 1 for place in places]


def small_csv() -> list[str]:
    """Give the lines of a CSV file of good prints."""
    return ["DT,SYMBOL,PRICE,SIZE,NUMTRADES"] + [
        f"2013-06-08 09:00:01.{i:09d},ABC,39.{i},{i}.0,1" for i in range(1, 2_501)
    ]


def small_json() -> list[str]:
    """Give the lines of a JSON Lines file of good prints."""
    row = {"T": 1_723_161_257_679, "s": "X", "p": "61804.8", "m": False}
    return [json.dumps(row | {"t": i, "q": str(i)}) for i in range(1, 2_501)]


@pytest.mark.parametrize("source", ["small", pytest.param("real", marks=needs_prints)])
@pytest.mark.parametrize("kind", ["csv.gz", "jsonl"])
async def test_fifty_broken_rows_are_all_named_and_cost_no_other_row(
    tmp_path: Path, kind: str, source: str
) -> None:
    """Ten kinds of broken rows, five of each: the rest is counted and summed as if alone."""
    is_csv = kind == "csv.gz"
    if source == "small":
        lines = small_csv() if is_csv else small_json()
    elif is_csv:
        lines = gzip.decompress(EQUITY.read_bytes()).decode().splitlines()
    else:
        lines = PERPETUAL.read_text().splitlines()
    good = list(csv.DictReader(lines)) if is_csv else [json.loads(line) for line in lines]
    names = ("PRICE", "SIZE") if is_csv else ("p", "q")
    expected = independent_sums([(row[names[0]], row[names[1]]) for row in good])
    body, places = mixed(lines, BROKEN_CSV if is_csv else BROKEN_JSON, begin=3)
    path = tmp_path / f"prints.{kind}"
    path.write_bytes(gzip.compress(body) if is_csv else body)
    summary = await run(path, mapping=EQUITY_MAPPING if is_csv else PERPETUAL_MAPPING)
    assert (summary.published, summary.sum_quantity, summary.sum_notional) == expected
    rejects = rejects_of(summary)
    assert [entry["line"] for entry in rejects] == places
    assert len({entry["reason"] for entry in rejects}) >= 9
    assert summary.rows == len(good) + 50
    assert summary.is_success


def invoke(*arguments: str | Path) -> Any:
    """Run the command as the command line does."""
    app = typer.Typer()
    app.command()(command.replay)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_sums_without_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run needs no broker and prints the summary, for people or as JSON."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [trade(price=0.1 + 0.2), trade(price="0"), trade()])
    result = invoke("a.jsonl", "--dry-run", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["published"], summary["rejected"]) == (3, 2, 1)
    assert summary["sum_notional"] == "21.6"
    assert summary["rejects_path"] == "a.jsonl.rejects.jsonl"
    assert (tmp_path / "a.jsonl.rejects.jsonl").is_file()
    text = invoke("a.jsonl", "--dry-run").stdout
    assert "price-not-positive" in text
    assert "price-rounded" in text


def test_command_names_wrong_options_and_ends_with_2(tmp_path: Path) -> None:
    """All problems at once, and nothing is connected."""
    result = invoke(
        tmp_path / "a.csv", "--map", "x", "--speed", "fast", "--trade-id", "y", "--delimiter", ";;"
    )
    assert result.exit_code == 2
    for option in ("--map x", "--speed fast", "--trade-id y", "--delimiter"):
        assert option in result.output
    assert invoke(tmp_path / "a.csv", "--dry-run").exit_code == 2


def test_command_ends_with_1_when_a_file_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary says which file, and after which row."""
    monkeypatch.chdir(tmp_path)
    body = "".join(json.dumps(trade(trade_id=i * 7919 % 104_729)) + "\n" for i in range(3_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body.encode())[:-2_000])
    result = invoke("a.jsonl.gz", "--dry-run")
    assert result.exit_code == 1
    assert "FILE ERROR    a.jsonl.gz" in result.stdout


class FakeSettings:
    """The one setting that the command asks for."""

    kafka_topic = "trade-events"


def install_publisher(monkeypatch: pytest.MonkeyPatch, publisher: FakePublisher) -> None:
    """Let the command find a publisher where it looks for the connection."""

    @asynccontextmanager
    async def open_publisher(_timeout_s: float) -> AsyncIterator[tuple[Any, FakePublisher]]:
        yield FakeSettings(), publisher

    context = ModuleType("app.cli.context")
    context.open_publisher = open_publisher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app.cli.context", context)


@pytest.mark.parametrize(("options", "topic"), [((), "trade-events"), (("--topic", "t"), "t")])
def test_command_publishes_to_the_topic_of_the_settings_or_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], topic: str
) -> None:
    """What is not sent ends the command with 1."""
    publisher = FakePublisher(lambda *_: UNKNOWN)
    install_publisher(monkeypatch, publisher)
    path = write_jsonl(tmp_path / "a.jsonl", [trade()])
    result = invoke(path, "--rejects", tmp_path / "r.jsonl", *options)
    assert result.exit_code == 1
    assert [record.topic for record in publisher.records] == [topic]


def test_command_stopped_by_a_signal_prints_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk in flight is finished, the summary adds up, and the exit code says stopped."""

    def answer(event: TradeEvent, _call: int) -> SendOutcome:
        if event.trade_id == "0":
            signal.raise_signal(signal.SIGINT)
        return OK

    install_publisher(monkeypatch, FakePublisher(answer))
    path = write_jsonl(tmp_path / "a.jsonl", [trade(trade_id=i) for i in range(2_000)])
    result = invoke(path)
    assert result.exit_code == 130
    assert "stopped ahead of the end" in result.stdout
    assert "DO NOT ADD UP" not in result.stdout


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, rejects and rate are shown while it goes on."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    with command._progress_shown() as show:
        show(Progress(1_200, 1_100, 100, 0, 50, 100, 2.0))
        show(Progress(0, 0, 0, 0, 0, 100, 0.0))
        show(Progress(1_200, 1_100, 100, 0, 50, 100, 2.0))
    assert "1,200 rows  100 rejected  600 rows/s" in terminal.getvalue()


def test_progress_is_a_line_of_json_now_and_then_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every five seconds at most."""
    now_s = iter([0.0, 1.0, 5.0, 5.0, 6.0])
    monkeypatch.setattr("app.cli.replay.time.monotonic", lambda: next(now_s))
    with command._progress_shown() as show:
        for rows in (1, 2, 3):
            show(Progress(rows, rows, 0, 0, 10, 20, 1.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["rows"] == 2


def test_summary_that_does_not_add_up_is_a_failure(tmp_path: Path) -> None:
    """A lost row is never reported as success."""
    summary = asyncio.run(run(write_jsonl(tmp_path / "a.jsonl", [trade()])))
    broken = dataclasses.replace(summary, rows=2)
    assert not broken.adds_up
    assert not broken.is_success
    assert "DO NOT ADD UP" in "\n".join(command._lines(broken, is_dry=False))
