"""Replay of files: every row has one fate, sums are exact, and what is refused is named."""

import asyncio
import csv
import gzip
import json
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.codec import decode_event
from app.errors import ConfigError, ReplayFileError
from app.models import Fee, TradeEvent
from app.ports import OutgoingRecord, SendOutcome
from app.replay import Clock, FieldMapping, RowFate, parse_speed
from app.replay.mapping import FIELDS
from app.replay.run import CHUNK_ROWS, CHUNKS_IN_FLIGHT
from app.timestamps import format_timestamp, parse_timestamp
from app.validation import check_event
from tests.replay.fakes import (
    BEGIN_NS,
    BROKEN_CSV,
    BROKEN_JSON,
    EQUITY_MAPPING,
    NOT_SENT,
    OK,
    PERPETUAL_MAPPING,
    UNKNOWN,
    FakeClock,
    FakePublisher,
    rejects_of,
    run,
    trade,
    write_jsonl,
)


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
    publisher, seen = FakePublisher(), list[tuple[int, str]]()
    summary = await run(
        *files, publisher=publisher, progress=lambda *progress: seen.append(progress)
    )
    assert max(map(len, publisher.calls)) == CHUNK_ROWS
    assert [event.trade_id for event in publisher.events] == [str(i) for i in range(1, 1_201)]
    assert summary.sum_quantity == Decimal("720600.00001200")
    assert summary.sum_notional == Decimal("0.0072060000001200")
    assert [counts.rows for counts in summary.files.values()] == [700, 500]
    assert sum(rows for rows, _ in seen) == 1_200
    assert seen[-1][1] == "100% read, 0 rejected"
    assert not (tmp_path / "rejects.jsonl").exists()


async def test_speed_follows_the_event_times_in_batches(tmp_path: Path) -> None:
    """Rows go out when they are due, many a timer, and carry the time at which they were due."""
    times = [0, 1, 1, *(2_000 + i for i in range(100)), 4_000]
    rows = [trade(trade_id=i, timestamp=1_714_557_600_000 + t) for i, t in enumerate(times)]
    publisher, clock = FakePublisher(), FakeClock()
    summary = await run(
        write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher, clock=clock.clock, speed=10.0
    )
    assert summary.count(RowFate.PUBLISHED) == len(rows)
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
    await run(
        write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher, clock=clock.clock, speed=1.0
    )
    assert clock.waits == []
    assert {event.published_at for event in publisher.events} == {format_timestamp(BEGIN_NS)}


@pytest.mark.parametrize(
    ("text", "speed"), [("max", float("inf")), ("1x", 1), ("10x", 10), ("0.5x", 0.5)]
)
def test_speed_is_read(text: str, speed: float) -> None:
    """As fast as possible, or a multiple of real time."""
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "x", "0x", "-1x", "10", "1e3x", "MAX", "nanx"])
def test_other_speeds_are_refused(text: str) -> None:
    """Nothing is guessed of a speed."""
    with pytest.raises(ConfigError, match="--speed"):
        parse_speed(text)


async def test_every_failed_send_is_named_and_none_is_repeated(tmp_path: Path) -> None:
    """The publisher has repeated what it may; its word is the last one."""
    answers = {"T0": OK, "T1": NOT_SENT, "T2": UNKNOWN}
    rows: list[object] = [trade(trade_id=name) for name in answers]
    rows.append(trade(price="0"))
    publisher = FakePublisher(lambda event, _: answers[str(event.trade_id)])
    summary = await run(write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher)
    assert len(publisher.calls) == 1
    assert summary.rows == 4
    assert [summary.count(fate) for fate in RowFate] == [1, 1, 1, 1]
    assert summary.adds_up
    assert not summary.is_success
    assert summary.sum_quantity == 2
    assert {(entry["line"], entry["reason"]) for entry in rejects_of(summary)} == {
        (2, "send-not-sent"),
        (3, "send-unknown"),
        (4, "price-not-positive"),
    }


async def test_mapping_goes_on_while_chunks_are_in_flight(tmp_path: Path) -> None:
    """Up to four chunks are submitted in order before the first one has to be answered."""
    rows = [trade(trade_id=i) for i in range(CHUNK_ROWS * 7)]
    submitted: list[bytes | None] = []
    is_full = asyncio.Event()

    class SlowPublisher(FakePublisher):
        async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
            submitted.extend(record.value for record in records)
            in_flight = len(submitted) // CHUNK_ROWS - len(self.calls)
            assert in_flight <= CHUNKS_IN_FLIGHT
            if in_flight == CHUNKS_IN_FLIGHT:
                is_full.set()
            await is_full.wait()
            return await super().publish(records)

    publisher = SlowPublisher()
    summary = await run(write_jsonl(tmp_path / "a.jsonl", rows), publisher=publisher)
    ids = [int(str(decode_event(value)[0].trade_id)) for value in submitted]
    assert ids == list(range(len(rows)))
    assert summary.is_success


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_full_disk_under_the_rejects_file_is_said_plainly(tmp_path: Path) -> None:
    """What is in flight is settled, and one clear error names the file."""
    publisher = FakePublisher()
    rows = [*[trade()] * CHUNK_ROWS, "x" * 4_000]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    full = Path("/dev/full")
    with pytest.raises(ReplayFileError, match="/dev/full: cannot be written: No space left"):
        await run(path, publisher=publisher, rejects_path=full)
    assert len(publisher.events) == CHUNK_ROWS
    path = write_jsonl(tmp_path / "b.jsonl", ["x" * 4_000] * 100)
    with pytest.raises(ReplayFileError, match="/dev/full: cannot be written"):
        await run(path, rejects_path=full)


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
    first, second = summary.files.values()
    assert first.error is not None
    assert "cannot be read" in first.error
    assert 0 < first.rows < 3_000
    assert (second.rows, second.error) == (1, None)
    assert summary.count(RowFate.PUBLISHED) == first.rows + 1
    assert summary.adds_up
    assert not summary.is_success


@pytest.mark.parametrize("speed", [float("inf"), 1.0])
async def test_stop_ends_after_the_chunk_in_flight(tmp_path: Path, speed: float) -> None:
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
    assert summary.rows == (4 if speed == 1 else CHUNK_ROWS)
    assert summary.count(RowFate.NOT_SENT) == 1


async def test_stop_is_noticed_in_a_file_of_rejects_alone(tmp_path: Path) -> None:
    """The loop gets its turn even when there is nothing to publish."""
    path = write_jsonl(tmp_path / "a.jsonl", ["{"] * 2_000)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_soon(stop.set)
    summary = await run(path, stop=stop)
    assert summary.rows == summary.count(RowFate.REJECTED) == CHUNK_ROWS


async def test_stop_ahead_of_the_start_reads_nothing(tmp_path: Path) -> None:
    """As when it comes while a broker is waited for."""
    stop = asyncio.Event()
    stop.set()
    summary = await run(write_jsonl(tmp_path / "a.jsonl", [trade()]), stop=stop)
    assert (summary.rows, summary.is_stopped, summary.adds_up) == (0, True, True)


async def test_rows_with_ever_other_columns_are_mapped(tmp_path: Path) -> None:
    """What is remembered of columns is bounded."""
    rows = [trade(trade_id=i, **{f"column{i}": i}) for i in range(200)]
    summary = await run(write_jsonl(tmp_path / "a.jsonl", rows))
    assert summary.count(RowFate.PUBLISHED) == 200


async def test_clock_of_the_machine_waits_for_a_stop_or_the_time() -> None:
    """Whichever comes first."""
    clock, stop = Clock(), asyncio.Event()
    before_s = clock.monotonic_s()
    await clock.wait(stop, 0.001)
    assert clock.monotonic_s() > before_s
    asyncio.get_running_loop().call_soon(stop.set)
    await clock.wait(stop, 60)
    assert clock.time_ns() > BEGIN_NS


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.integers(), max_size=2),
    st.lists(
        st.dictionaries(st.sampled_from(["amount", "type", "currency"]), st.text()), max_size=2
    ),
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
    assert summary.rows == len(changes) == len(publisher.events) + len(rejects_of(summary))
    assert summary.adds_up
    events = publisher.events
    for event in events:
        check_event(event)  # decoded again, each one can be booked
    with localcontext(prec=100):
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


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl"])
async def test_fifty_broken_rows_are_all_named_and_cost_no_other_row(
    tmp_path: Path, kind: str
) -> None:
    """Ten kinds of broken rows, five of each: the rest is counted and summed as if alone."""
    is_csv = kind == "csv.gz"
    lines = small_csv() if is_csv else small_json()
    good = list(csv.DictReader(lines)) if is_csv else [json.loads(line) for line in lines]
    names = ("PRICE", "SIZE") if is_csv else ("p", "q")
    expected = independent_sums([(row[names[0]], row[names[1]]) for row in good])
    body, places = mixed(lines, BROKEN_CSV if is_csv else BROKEN_JSON, begin=3)
    path = tmp_path / f"prints.{kind}"
    path.write_bytes(gzip.compress(body) if is_csv else body)
    summary = await run(path, mapping=EQUITY_MAPPING if is_csv else PERPETUAL_MAPPING)
    published = summary.count(RowFate.PUBLISHED)
    assert (published, summary.sum_quantity, summary.sum_notional) == expected
    rejects = rejects_of(summary)
    assert [entry["line"] for entry in rejects] == places
    assert len({entry["reason"] for entry in rejects}) >= 9
    assert summary.rows == len(good) + 50
    assert summary.is_success
