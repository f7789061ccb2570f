"""The short ways of the hot loop: whatever they take, it is what the long way comes to."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from unittest import mock

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import approved, money, services, timestamps, validation
from app.codec import NotPlainError, PlainEvent, decode_event, decode_plain
from app.errors import InvalidTradeError
from app.headers import Origin
from app.models import Position, TradeEvent
from app.money import ONE_E8
from app.pnl.holding import Holding
from app.ports import Headers, RecordBatch
from app.reference import BookTable, InstrumentTable, LimitsTable, Reference
from app.services import BatchResult, TradeProcessor
from app.validation import check_event

NOW_MS: Final = 1_767_323_045_000  # 2026-01-02T03:04:05Z
TABLES: Final = (approved.WHOLE_UNITS, approved.FRACTIONS, approved.NOTHING)


def forget() -> None:
    """Empty whatever is remembered of records that were judged before."""
    for table in TABLES:
        for of_side in table.quantities.values():
            of_side.clear()
        table.values.clear()
    timestamps.KNOWN_HEADS.clear()
    timestamps.KNOWN_TAILS.clear()
    money._text_cache.clear()
    validation._good_key_parts.clear()


@dataclass(frozen=True)
class Stored:
    """One record as it stands in a log."""

    offset: int
    value: bytes | None
    timestamp: int = NOW_MS
    key: bytes | None = b"k"
    headers: Headers = ()


# -- bodies, from the most common to the oddest

# Few of each, so that texts come again and what is remembered is used.
symbols = st.sampled_from(["A", "A", "B", "C"])
books = st.sampled_from(["DESK", "DESK", "EU", ""])
odd_texts = st.sampled_from(
    [
        *(
            "a,b",
            'a"b',
            "a\\b",
            "Zürich",
            "\x7f",
            "\x00",
            "\n",
            "",
            " A",
            "A|B",
            "A" * 65,
            "é" * 64,
        ),
        *("\u2028", "😀", "\ud800", "null", "BUY", "A"),
    ]
)
plain_numbers = st.sampled_from(["1", "2", "2.5", "10", "0.00000001", 1, 2, 3])
odd_numbers = st.sampled_from(
    [
        *(1.0, 2.5, 0.1, 1e2, 0.30000000000000004, 1e-9, -1, 0, True, False, None, 2**63, 10**19),
        *(10**25, "1e2", "01", "+1", "-1", "0", "", " 1", "1.", ".5", "NaN", "1.123456789"),
        *("999999999999.99999999", "1000000000000", "\u0661", "1,5", [1], {"a": 1}),
    ]
)
plain_times = st.sampled_from(
    [
        *("2026-01-02T03:04:05.001Z", "2026-01-02T03:04:05.001002Z", "2026-01-02T03:04:05.002Z"),
        *("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.001002003Z", "2026-01-02T03:04:05.002002Z"),
    ]
)
odd_times: st.SearchStrategy[Any] = st.sampled_from(
    [
        *("2026-01-02T03:04:05", "2026-01-02T03:04:05.001", "2026-01-02T03:04:05.001002"),
        *("2026-01-02T03:04:05.1Z", "2026-01-02T03:04:05.12Z", "2026-01-02T03:04:05.0010Z"),
        *("2026-01-02T03:04:05.001002+01:00", "2026-01-02T03:04:05.001-01:00"),
        *("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05.001z", "2026-01-02 03:04:05.001Z"),
        *("2026-01-02T03:04:60Z", "2026-01-02T03:04:60.001Z", "2026-01-02T03:04:60.001002Z"),
        *("2026-01-02T03:09:05.000Z", "2026-01-02T03:09:05.001Z", "2026-01-02T03:09:05.000001Z"),
        *("2026-01-02T03:09:05.000000001Z", "2099-12-31T23:59:59.999999999Z"),
        *("2099-12-31T23:59:60.999Z", "2100-01-01T00:00:00.000Z", "2000-01-01T00:00:00.000Z"),
        *(
            "1999-12-31T23:59:59.999Z",
            "2026-02-30T00:00:00.001Z",
            "2026-01-02T03:04:05.0010020031Z",
        ),
        *("2026-01-02T03:04:05.001ZZ", "2026-01-02T03:04:05.001 Z", "002Z", "", "now", None, True),
        *(1767323045, 1767323045001, 1767323045001002003, 1767323045.5, 10**20, -1, {}),
    ]
)
rare_fields: Final[dict[str, list[Any]]] = {
    "currency": ["USD", "EUR", "usd", None],
    "contract_multiplier": [1, "1", 50, "0.1", 0, None],
    "fees": [[], [{"amount": "0.25"}], [{"amount": 0.1, "currency": "EUR"}], None, [{}]],
    "asset_class": ["FUTURE", "EQUITY", "?"],
    "action": ["NEW", "CANCEL", "AMEND"],
    "version": [1, 2, None],
    "schema_version": [1, 2],
    "isin": ["US0378331005", "US0378331006"],
    "trade_date": ["2026-01-02", "x"],
    "settlement_date": ["2026-01-01", "2026-01-05"],
    "account": ["X", "", "\x7f"],
    "coupon": [1, "x,y", {"a": [1, 2]}, [[[[[[[[[]]]]]]]]], None],
}
rare = st.sampled_from(sorted(rare_fields)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(rare_fields[name]))
)


@st.composite
def good_fields(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Give the fields of a plain event."""
    some = {
        "trade_id": draw(st.sampled_from(["T1", "T2"])),
        "symbol": draw(symbols),
        "side": draw(st.sampled_from(["BUY", "BUY", "SELL"])),
        "price": draw(plain_numbers),
        "quantity": draw(plain_numbers),
        "timestamp": draw(plain_times),
    }
    if draw(st.booleans()):
        some["book"] = draw(books)
    if draw(st.booleans()):
        some["published_at"] = draw(st.sampled_from(["2026-01-02T03:04:05.001Z", "x", "a,b"]))
    return list(some.items())


def _with_odd_value(draw: st.DrawFn, pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    at = draw(st.integers(0, len(pairs) - 1))
    name = pairs[at][0]
    odd = {"price": odd_numbers, "quantity": odd_numbers, "timestamp": odd_times}
    value = draw(odd.get(name, odd_texts | st.sampled_from([None, 1, "HOLD", "buy"])))
    return [*pairs[:at], (name, value), *pairs[at + 1 :]]


def _with_rare_field(draw: st.DrawFn, pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    at = draw(st.integers(0, len(pairs)))
    return [*pairs[:at], draw(rare), *pairs[at:]]


def _with_key_twice(draw: st.DrawFn, pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [*pairs, draw(st.sampled_from([*pairs, ("symbol", "B"), ("price", "7")]))]


def _without_a_field(draw: st.DrawFn, pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    at = draw(st.integers(0, len(pairs) - 1))
    return pairs[:at] + pairs[at + 1 :]


def _reordered(draw: st.DrawFn, pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return draw(st.permutations(pairs))


CHANGES: Final = [_with_odd_value, _with_rare_field, _with_key_twice, _without_a_field, _reordered]


@st.composite
def bodies(draw: st.DrawFn) -> bytes | None:
    """Give a record value: a written event, or something else."""
    if draw(st.integers(0, 15)) == 0:
        return draw(
            st.none()
            | st.binary(max_size=20)
            | st.sampled_from([b"{}", b"[]", b"null", b"\xff", b"\xef\xbb\xbf{}", b"{" * 2000])
        )
    pairs = draw(good_fields())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        pairs = draw(st.sampled_from(CHANGES))(draw, pairs)
    return written(draw, pairs)


def written(draw: st.DrawFn, pairs: list[tuple[str, Any]]) -> bytes:
    """Write fields as JSON, in one of many styles."""
    comma, colon = draw(st.sampled_from([(",", ":")] * 3 + [(", ", ": "), (" ,\n", "\t:\r\n")]))
    is_ascii = draw(st.booleans())
    items = [
        f"{_name(draw, name)}{colon}{json.dumps(value, ensure_ascii=is_ascii)}"
        for name, value in pairs
    ]
    text = "{" + comma.join(items) + "}"
    # A lone surrogate has no UTF-8: it goes out as bytes that nobody may accept.
    body = text.encode("utf-8", "surrogatepass")
    tail = draw(st.sampled_from([b""] * 12 + [b" ", b"\n", b",", b"}", b"\x00", b" " * 66_000]))
    return body + tail


def _name(draw: st.DrawFn, name: str) -> str:
    written = json.dumps(name)
    if draw(st.integers(0, 40)) == 0:
        written = written.replace("i", "\\u0069")  # the same name, written with an escape
    return written


origins = st.builds(
    lambda partition, offset: (Origin("t", partition, offset).to_header(),),
    st.integers(0, 1),
    st.integers(0, 5),
)
headers = st.sampled_from(range(6)).flatmap(
    lambda n: origins if n == 0 else st.sampled_from([(), (), (), (("h", b"x"),), (("h", None),)])
)


@st.composite
def streams(draw: st.DrawFn) -> list[Stored]:
    """Give the records of a partition, whose offsets may have gaps, appended ever later.

    Most are made of one event and its variants, so that what is remembered is met again.
    """
    base = draw(good_fields())
    sold = [(name, "SELL" if name == "side" else value) for name, value in base]
    variants = [
        draw(st.sampled_from(CHANGES))(draw, draw(st.sampled_from([base, sold])))
        for _ in range(draw(st.integers(0, 2)))
    ]
    pool = [json.dumps(dict(base)).encode()] * 3
    pool += [written(draw, pairs) for pairs in [base, sold, *variants]]
    values = draw(st.lists(st.sampled_from(pool) | bodies(), min_size=1, max_size=14))
    offset, timestamp = draw(st.sampled_from([0, 5])) - 1, NOW_MS
    records = []
    for value in values:
        offset += draw(st.sampled_from([1, 1, 1, 2, 4]))
        timestamp += draw(st.sampled_from([0, 0, 1, 500]))
        records.append(Stored(offset, value, timestamp, headers=draw(headers)))
    return records


# -- one batch, many batches, and no memory


def a_processor(
    positions: Sequence[Position] = (), window: int = 0, reference: Reference | None = None
) -> TradeProcessor:
    """Give a processor to which every key but those of `C` belongs."""
    return TradeProcessor(
        positions,
        belongs=lambda key: not key.endswith("C"),
        dedupe_window=window,
        reference=reference,
    )


@dataclass
class Outcome:
    """What records came to, in words that do not depend on how they were batched."""

    fates: Counter[Any]
    refusals: list[tuple[int, str, str, str, str]]
    misplaced: list[tuple[int, str]]
    suspects: Counter[str]
    counts: tuple[int, int, int]
    changed: dict[str, Position]
    positions: dict[str, Position]


def run(
    processor: TradeProcessor,
    records: Sequence[Stored],
    *,
    size: int,
    effects_from: int = 0,
    is_cold: bool = False,
) -> Outcome:
    """Process records in batches of a size; give what they came to altogether."""
    done = Outcome(Counter(), [], [], Counter(), (0, 0, 0), {}, {})
    for at in range(0, len(records), size):
        some = records[at : at + size]
        if is_cold:
            forget()
        batch = RecordBatch.of(0, 1, some, some[-1].offset + 1)
        _add(done, some, processor.process_batch(batch, effects_from=effects_from))
    done.positions = dict(processor.positions)
    return done


def _add(done: Outcome, records: Sequence[Stored], result: BatchResult) -> None:
    done.fates += result.fates
    done.suspects += result.suspects
    done.refusals += [
        (records[r.index].offset, r.reason, r.message, r.kind, r.error_class)
        for r in result.refusals
    ]
    done.misplaced += [(records[index].offset, key) for index, key in result.misplaced]
    applied, repaired, unknown = done.counts
    done.counts = (
        applied + result.already_applied,
        repaired + result.repaired,
        unknown + result.unknown_fields,
    )
    assert len({id(holding) for holding in result.touched}) == len(result.touched)
    done.changed |= result.changed


def judge_all(_: RecordBatch, run: range, *__: object) -> Iterable[PlainEvent | None]:
    """Let every record have the closer look."""
    return [None] * len(run)


@contextmanager
def only_closer_looks() -> Iterator[None]:
    """Take the short way out of the program."""
    with mock.patch.object(services, "_common", judge_all):
        yield


def compare(
    records: Sequence[Stored],
    positions: Sequence[Position] = (),
    *,
    lived: Sequence[Stored] = (),
    start: int = 0,
    window: int = 0,
    reference: Reference | None = None,
) -> None:
    """Hold one batch in a program that remembers much to the long ways.

    Args:
        records: The batch.
        positions: State to start from.
        lived: Records of the partition that the same processor has seen before.
        start: Fates before this offset are settled.
        window: Offsets for which a trade that was sent twice is recognised.
        reference: Data by which trades are marked.
    """

    def outcome(size: int, *, is_cold: bool = False) -> Outcome:
        processor = a_processor(positions, window, reference)
        run(processor, lived, size=size, is_cold=is_cold)
        return run(processor, records, size=size, effects_from=start, is_cold=is_cold)

    forget()
    run(a_processor(), records, size=len(records))
    short = outcome(len(records))
    with only_closer_looks():
        long = outcome(len(records))
    assert short == long
    assert short == outcome(1, is_cold=True)


windows = st.sampled_from([0, 1, 3, 50])


@given(streams(), windows)
def test_one_batch_is_as_many_and_as_the_long_way(records: list[Stored], window: int) -> None:
    """Fates, refusals, suspicions and positions are those of records judged one by one, cold."""
    compare(records, window=window)


@given(streams(), st.data())
def test_records_read_again_are_recognised_by_either_way(
    records: list[Stored], data: st.DataObject
) -> None:
    """After a seek back the same processor books nothing twice, and settles no fate twice."""
    stop = data.draw(st.integers(1, len(records)))
    back = data.draw(st.integers(0, stop - 1))
    start = data.draw(st.sampled_from([0, records[back].offset, records[stop - 1].offset, 10**6]))
    compare(records[back:], lived=records[:stop], start=start)


@given(streams(), st.data())
def test_replay_in_one_batch_is_as_one_by_one(records: list[Stored], data: st.DataObject) -> None:
    """Restored positions of any age, and fates settled up to any offset, change none of it."""
    whole = a_processor()
    history: dict[str, list[Position]] = {}
    for record in records:
        batch = RecordBatch.of(0, 1, [record], record.offset + 1)
        for key, position in whole.process_batch(batch).changed.items():
            history.setdefault(key, []).append(position)
    drawn = [data.draw(st.sampled_from([None, *states])) for states in history.values()]
    kept = [position for position in drawn if position is not None]
    start = data.draw(st.sampled_from([0, *(record.offset for record in records), 10**6]))
    first = data.draw(st.integers(0, len(records) - 1))
    compare(records[first:], kept, start=start, window=data.draw(windows))


OF_AMOUNTS: Final = InstrumentTable(tick=Decimal("0.5"), lot=Decimal(1), collar=Decimal(2))
FOLLOWING: Final = LimitsTable(
    max_quantity=Decimal(3),
    max_notional={"USD": Decimal(20)},
    collar_percent=Decimal(50),
    collar_around="last-trade",
)
references = st.sampled_from(
    [
        Reference(),
        Reference(instruments={"A": OF_AMOUNTS, "B": InstrumentTable()}, max_age_ns=10**6),
        Reference(limits=FOLLOWING, books={"DESK": BookTable()}),
        Reference(instruments={"A": OF_AMOUNTS}, limits=FOLLOWING),
    ]
)


@given(streams(), windows, references, st.data())
def test_reference_data_mark_the_same_trades_on_either_way(
    records: list[Stored], window: int, reference: Reference, data: st.DataObject
) -> None:
    """Whatever bodies come, in whatever batches, after a restart as well; and book the same."""
    compare(records, window=window, reference=reference)
    start = data.draw(st.integers(0, len(records) - 1))
    lived = a_processor(window=window, reference=reference)
    run(lived, records[:start], size=3)
    compare(records[start:], list(lived.positions.values()), window=window, reference=reference)
    run(lived, records[start:], size=len(records))
    without = a_processor(window=window)
    run(without, records, size=len(records))
    assert lived.positions == without.positions


def event(**fields: Any) -> bytes:
    """Write a plain event with some fields changed."""
    body = {
        "trade_id": "T1",
        "symbol": "A",
        "side": "BUY",
        "price": "10",
        "quantity": "1",
        "timestamp": "2026-01-02T03:04:05.001Z",
    }
    return json.dumps(body | fields).encode()


def test_position_restored_inside_of_a_batch_is_written_again() -> None:
    """A state that covers the first records of a batch has changed when a later one is booked."""
    before = a_processor()
    log = [Stored(offset, event()) for offset in range(10)]
    before.process_batch(RecordBatch.of(0, 1, log[:6], 6))
    restored = a_processor(list(before.positions.values()))
    result = restored.process_batch(RecordBatch.of(0, 1, log[3:], 10), effects_from=3)
    assert restored.positions["A"].source_offset == 9
    assert result.already_applied == 3
    assert result.changed == restored.positions


def test_records_appended_earlier_than_the_first_are_judged_by_their_own_time() -> None:
    """Where senders set the times of records, a trade from the future is suspect all the same."""
    late = event(timestamp="2026-01-02T03:09:05.500Z")
    records = [
        Stored(0, event(), NOW_MS + 1_000),
        Stored(1, late, NOW_MS + 1_000),
        Stored(2, late, NOW_MS),
    ]
    compare(records)


def test_clock_beyond_all_trades_books_nothing_unread() -> None:
    """Where a sender dates records past the last year of a trade, a bad one is refused still."""
    late_ms = 2**42
    bad = [event(quantity="0"), event(price="-1"), event(timestamp="soon"), event(symbol="NEW")]
    compare([Stored(n, body, late_ms) for n, body in enumerate([event(), *bad, event()])])


def test_second_copy_is_recognised_among_common_trades() -> None:
    """A re-keyed trade is never booked as a common one, however common it looks."""
    origin = (Origin("t", 1, 5).to_header(),)
    copies = [Stored(n, event(), headers=origin) for n in (2, 3)]
    compare([Stored(0, event()), Stored(1, event()), *copies, Stored(4, event())])


@pytest.mark.parametrize("start", [0, 3, 9])
def test_trades_read_again_are_not_booked_again(start: int) -> None:
    """A processor that is given its last records once more knows them all."""
    records = [Stored(offset, event()) for offset in range(6)]
    compare(records[2:], lived=records[:4], start=start)


def test_settled_fates_of_common_trades_are_not_counted_again() -> None:
    """A trade of the margin that has to be booked anew mends its position, and nothing else."""
    records = [Stored(offset, event()) for offset in range(6)]
    compare(records, start=4)


@pytest.mark.parametrize(
    "rare",
    [
        {"contract_multiplier": 50},
        {"currency": "EUR"},
        {"quantity": "0.5"},
        {"asset_class": "FUTURE", "price": "-1"},
        {"fees": [{"amount": "0.25"}]},
        {"action": "CANCEL"},
    ],
    ids=str,
)
def test_rare_trade_among_common_ones_is_judged_by_all_rules(rare: dict[str, Any]) -> None:
    """What it leaves in its position decides about the common ones after it."""
    price = {"price": rare.get("price", "10")}
    for bodies_ in ([event(**rare), event(**price)], [event(), event(**rare), event(**price)]):
        compare([Stored(n, body) for n, body in enumerate([*bodies_, *bodies_])])


@given(streams())
def test_forgetting_in_the_middle_changes_nothing(records: list[Stored]) -> None:
    """Memory that is full starts anew, at any moment, and no result shows it."""
    with (
        mock.patch.object(approved, "_LIMIT", 2),
        mock.patch.object(timestamps, "_CACHE_LIMIT", 1),
        mock.patch.object(money, "_TEXT_CACHE_LIMIT", 1),
        mock.patch.object(validation, "_GOOD_KEY_PARTS_LIMIT", 1),
    ):
        compare(records)


# -- the readers


def reason_against(full: TradeEvent) -> str:
    """Name the first fault of an event, if it has any."""
    try:
        check_event(full)
    except InvalidTradeError as exc:
        return exc.reason
    return ""


def fields_of(values: Sequence[bytes | None]) -> list[dict[str, Any] | None]:
    """Read values as one batch; give the fields of the plain ones."""
    return [None if event is None else msgspec.structs.asdict(event) for event in plain(values)]


def plain(values: Sequence[bytes | None]) -> list[PlainEvent | None]:
    """Read values as one batch; `None` for each that is not plain."""
    events = decode_plain(values)
    read: list[PlainEvent | None] = []
    while len(read) < len(values):
        try:
            read.append(next(events))
        except NotPlainError:
            read.append(None)
    assert next(events, "the end") == "the end"
    return read


@given(st.lists(bodies(), max_size=6))
def test_plain_reader_agrees_with_the_full_one(values: list[bytes | None]) -> None:
    """What it accepts the full reader accepts, with the same fields and with no other."""
    for value, found_plain in zip(values, plain(values), strict=True):
        if found_plain is None:
            continue
        full, _, unknown_fields = decode_event(value)
        assert unknown_fields == 0
        rest = dict.fromkeys(full.__struct_fields__)
        found = {name: getattr(full, name) for name in rest}
        assert found == rest | msgspec.structs.asdict(found_plain)
        assert type(full.price) is type(found_plain.price)
        assert type(full.quantity) is type(found_plain.quantity)
        # What the short way does not look up in what was judged before has to be right already.
        assert not reason_against(full).startswith(("trade-id", "side", "published-at"))


@pytest.mark.parametrize("odd", [{0}, {2}, {4}, {1, 2}, {0, 1, 2, 3, 4}])
def test_what_only_looks_plain_is_judged_alone(odd: set[int]) -> None:
    """A batch that looks plain may hold records that are not: those next to them are booked."""
    bodies = [
        event(trade_id=f"T{n}", book="DESK", published_at="x", side="HOLD" if n in odd else "BUY")
        for n in range(5)
    ]
    assert fields_of(bodies).count(None) == len(odd)
    records = [Stored(2 * n, body) for n, body in enumerate(bodies)]  # with gaps, as compacted
    done = run(a_processor(), records, size=len(records))
    assert [offset for offset, *_ in done.refusals] == [2 * n for n in sorted(odd)]
    assert sum(done.fates.values()) == len(records) - len(odd)
    compare(records)


@given(st.lists(bodies(), max_size=6))
def test_batch_is_read_as_its_bodies_are(values: list[bytes | None]) -> None:
    """Judged as one piece or alone, a body is plain or not."""
    assert fields_of(values) == [fields_of([value])[0] for value in values]


FULL: Final = event(book="DESK", published_at="2026-01-02T03:04:05.001Z")


def test_one_body_does_not_lend_its_commas_to_another() -> None:
    """A key too many in one and a field too few in the next are not two plain events."""
    values = [FULL[:-1] + b', "symbol": "B"}', event(book="DESK"), FULL]
    assert [fields is None for fields in fields_of(values)] == [True, False, False]
    compare([Stored(offset, value) for offset, value in enumerate(values)])


@pytest.mark.parametrize(
    "value",
    [
        FULL[:-1] + b', "symbol": "B"}',
        FULL[:-1] + b', "coupon": 1}',
        FULL.replace(b"T1", b"T\x7f1"),
        FULL.replace(b"T1", b"T\\n1"),
        FULL.replace(b"T1", b"T\xc2\xa01"),
        FULL.replace(b"T1", b""),
        FULL.replace(b"T1", b"T" * 65),
        FULL.replace(b'"DESK"', b"null"),
        FULL.replace(b'"10"', b"10.0"),
        FULL.replace(b"BUY", b"buy"),
        FULL + b" " * 70_000,
        FULL + b"{}",
        None,
        b"",
    ],
)
def test_body_with_anything_rare_gets_a_closer_look(value: bytes | None) -> None:
    """Alone or among common ones, it is not taken for plain, and its neighbours are."""
    assert fields_of([value]) == [None]
    plain = fields_of([FULL])
    assert plain != [None]
    assert fields_of([FULL, value, FULL]) == [*plain, None, *plain]


# -- what is remembered of timestamps


@given(st.lists(odd_times | plain_times, max_size=12))
def test_remembered_parts_read_as_the_whole_text_does(texts: list[Any]) -> None:
    """Any known head with any known tail is a text that reads to the sum of both."""
    forget()
    for text in texts:
        try:
            timestamps.parse_timestamp(text)
        except timestamps.TimestampError:
            continue
    heads, tails = dict(timestamps.KNOWN_HEADS), dict(timestamps.KNOWN_TAILS)
    for head, head_ns in heads.items():
        for tail, tail_ns in tails.items():
            forget()
            assert timestamps.parse_timestamp(head + tail) == (head_ns + tail_ns, True)


# -- holdings


@dataclass
class Model:
    """Average cost in exact fractions, by its definition alone."""

    quantity: Fraction = Fraction(0)
    cost: Fraction = Fraction(0)
    realized: Fraction = Fraction(0)

    def fill(self, quantity: Fraction, price: Fraction) -> None:
        """Close what is opposite at the average cost, open the rest at the price."""
        closed = Fraction(0)
        if self.quantity * quantity < 0:
            closed = -quantity if abs(quantity) < abs(self.quantity) else self.quantity
            released = self.cost * closed / self.quantity
            self.realized += closed * price - released
            self.cost -= released
            self.quantity -= closed
        self.quantity += quantity + closed
        self.cost += (quantity + closed) * price


whole_e8 = st.integers(1, 9).map(lambda n: n * ONE_E8)
parts_e8 = st.sampled_from([1, 3, 50_000_000, 33_333_333, 150_000_000])
signs = st.sampled_from([1, -1])
fills = st.lists(
    st.tuples(
        st.builds(lambda sign, size: sign * size, signs, whole_e8 | whole_e8 | parts_e8),
        st.integers(1, 10**12) | st.sampled_from([1, ONE_E8, 10**20 - 1]),
        st.integers(-(10**8), 10**8),
    ),
    max_size=20,
)


@given(fills, st.sampled_from([ONE_E8, ONE_E8, 50 * ONE_E8, 1]), st.data())
@example([(ONE_E8, 3, 0), (2 * ONE_E8, 4, 0), (-1, 5, 0), (-ONE_E8, 5, 0)], ONE_E8, None)
def test_holding_follows_average_cost_in_whole_and_broken_units(
    rows: list[tuple[int, int, int]], multiplier_e8: int, data: st.DataObject | None
) -> None:
    """Both ways of a fill come to quantity, cost, realised PnL and fees of the exact model.

    A partial close rounds its share of the cost to 10^-24, which is all that they may differ by; no
    digit of cash + inventory is ever lost.
    """
    holding, model = Holding(Position(None, "A", "USD")), Model()
    cash_e24, fees_e8, closes = 0, 0, 0
    for offset, (quantity_e8, price_e8, fee_e8) in enumerate(rows):
        closes += model.quantity * quantity_e8 < 0
        units, rest = divmod(quantity_e8, holding.unit_e8)
        is_short_way = (data is None or data.draw(st.booleans())) and not rest and offset
        if is_short_way:
            fee_e8 = 0  # noqa: PLW2901 - fees go the long way
            holding.fill(units, price_e8 * multiplier_e8 * holding.unit_e8, offset + 7, offset)
        else:
            holding.fill_exactly(
                signed_quantity_e8=quantity_e8,
                price_e8=price_e8,
                multiplier_e8=multiplier_e8,
                fee_e8=fee_e8,
                time_ns=offset + 7,
                offset=offset,
            )
        model.fill(Fraction(quantity_e8), Fraction(price_e8 * multiplier_e8))
        cash_e24 -= quantity_e8 * price_e8 * multiplier_e8
        fees_e8 += fee_e8
        found = holding.position()
        assert found.quantity_e8 == model.quantity
        assert found.open_cost_e24 - found.realized_e24 == -cash_e24
        assert abs(found.open_cost_e24 - model.cost) <= closes
        assert abs(found.realized_e24 - model.realized) <= closes
        assert found.open_cost_e24 == 0 or found.quantity_e8
        assert (found.mark_e8, found.mark_ns, found.fees_e8) == (price_e8, offset + 7, fees_e8)
        assert (found.trade_count, found.source_offset) == (offset + 1, offset)
        assert Holding(found).position() == found
        if data is not None and data.draw(st.booleans()):
            holding = Holding(found)  # what is stored and restored goes on alike
