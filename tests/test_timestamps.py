"""Points in time: RFC 3339 and epoch numbers to the nanosecond, and nothing else."""

import decimal
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import timestamps
from app.timestamps import (
    MAX_NS,
    MIN_NS,
    NS_PER_S,
    TimestampError,
    format_timestamp,
    parse_timestamp,
)

INSTANTS_NS = st.integers(min_value=MIN_NS, max_value=MAX_NS - 1)


def ns_of(*date: int) -> int:
    """Give UTC nanoseconds of a date and time."""
    year, month, day, hour, minute, second = (*date, 0, 0, 0)[:6]
    moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    return int(moment.timestamp()) * NS_PER_S


def problem_of(value: object) -> str:
    """Give the problem that a value is refused with."""
    with pytest.raises(TimestampError) as refused:
        parse_timestamp(value)
    assert str(refused.value) == refused.value.problem
    return refused.value.problem


@given(INSTANTS_NS)
def test_instant_survives_its_text(ns: int) -> None:
    """What is written reads back to the nanosecond, whether or not its second is known already."""
    text = format_timestamp(ns)
    assert parse_timestamp(text) == (ns, True)
    assert parse_timestamp(text) == (ns, True)


@given(INSTANTS_NS, st.integers(min_value=-23 * 60 - 59, max_value=23 * 60 + 59))
def test_offset_is_taken_off(ns: int, minutes: int) -> None:
    """Local time with an offset is the same instant, and the same digits with Z are another."""
    local = datetime.fromtimestamp(ns // NS_PER_S, timezone(timedelta(minutes=minutes)))
    text = local.isoformat()
    assert parse_timestamp(text) == (ns // NS_PER_S * NS_PER_S, True)
    assert parse_timestamp(text) == (ns // NS_PER_S * NS_PER_S, True)


@given(INSTANTS_NS)
def test_epoch_number_tells_its_unit_by_magnitude(ns: int) -> None:
    """Seconds, milliseconds, microseconds and nanoseconds of one instant are told apart."""
    for unit in (1, 1_000, 1_000_000, NS_PER_S):
        assert parse_timestamp(ns // unit) == (ns // unit * unit, True)
        assert parse_timestamp(Decimal(ns) / unit) == (ns, True)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-01-02T03:04:05Z", ns_of(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02t03:04:05z", ns_of(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02 03:04:05+00:00", ns_of(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05.1Z", ns_of(2026, 1, 2, 3, 4, 5) + 100_000_000),
        ("2026-01-02T03:04:05.123456789Z", ns_of(2026, 1, 2, 3, 4, 5) + 123_456_789),
        ("2026-01-02T03:04:05.000000001-05:30", ns_of(2026, 1, 2, 8, 34, 5) + 1),
        ("2024-02-29T12:00:00Z", ns_of(2024, 2, 29, 12)),
        ("2016-12-31T23:59:60Z", ns_of(2017, 1, 1)),  # a leap second
        ("2017-01-01T00:59:60.5+01:00", ns_of(2017, 1, 1)),
        ("2026-03-29T02:30:00+01:00", ns_of(2026, 3, 29, 1, 30)),  # in the gap of summer time
        ("2000-01-01T00:00:00Z", MIN_NS),
        ("1999-12-31T20:00:00-04:00", MIN_NS),  # another year, the first instant all the same
        ("2099-12-31T23:59:59.999999999Z", MAX_NS - 1),
        ("2100-01-01T01:59:59.999999999+02:00", MAX_NS - 1),
    ],
)
def test_text_names_one_instant(text: str, ns: int) -> None:
    """RFC 3339 in all its spellings gives UTC nanoseconds."""
    assert parse_timestamp(text) == (ns, True)
    assert parse_timestamp(text) == (ns, True)


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02T03:04:05.000000001"])
def test_text_without_an_offset_is_utc_and_says_so(text: str) -> None:
    """A missing offset is taken as UTC and reported, also once the second is known."""
    known, has_offset = parse_timestamp(text[:19] + "Z")
    assert has_offset
    assert parse_timestamp(text) == (known + (len(text) > 19), False)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "yesterday", "null", "2026-01-02", "2026-01-02T03:04Z", "20260102T030405Z"),
        *("2026-01-02T03:04:05.Z", "2026-01-02T03:04:05.1234567890Z", "2026-01-02T03:04:05,1Z"),
        *("2026-01-02T24:00:00Z", "2026-01-02T03:60:00Z", "2026-01-02T03:04:61Z"),
        *("2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-10T00:00:00Z"),
        *("0000-01-01T00:00:00Z", "2026-01-02T03:04:05+24:00", "2026-01-02T03:04:05+00:60"),
        *("2026-01-02T03:04:05+0000", "2026-01-02T03:04:05Z ", " 2026-01-02T03:04:05Z"),
        *("2026-01-02T03:04:05Z\n", "2026-01-02T03:04:05.\uff11Z", "2026-01-02T03:04:05.+1Z"),
        *("\uff12026-01-02T03:04:05Z", "2026-01-02T03:04:05 Europe/Berlin", "1767323045"),
        *("2026-01-02T03:04:05." + "1" * 60_000 + "Z", "-2026-01-02T03:04:05Z"),
    ],
)
def test_text_that_names_no_instant_is_refused(text: str) -> None:
    """What is not RFC 3339 is not guessed at, also where its second is known already."""
    parse_timestamp("2026-01-02T03:04:05.5Z")
    assert problem_of(text) == "unparseable"


@pytest.mark.parametrize(
    "value",
    [
        *("1999-12-31T23:59:59.999999999Z", "2100-01-01T00:00:00Z", "2000-01-01T01:00:00+02:00"),
        *("2099-12-31T23:59:59-00:01", "2099-12-31T23:59:60Z", "0001-01-01T00:00:00Z"),
        *("9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:60-23:59"),
        *(0, -1, 946_684_799, 4_102_444_800, 946_684_799_999, 10**11, 10**20, 10**4000),
        *(float("nan"), float("inf"), -1.5, 1e300, 5e-324, Decimal("sNaN"), Decimal("1e1000000")),
        *(Decimal("1e-1000000"), Decimal("-1e999999999"), Decimal("0e1000000")),
    ],
)
def test_instant_outside_of_2000_to_2099_is_refused(value: object) -> None:
    """The bounds hold for text and for numbers of every size and kind, after the offset."""
    assert problem_of(value) == "out-of-range"


def test_bounds_are_tested_on_both_sides() -> None:
    """The first instant of 2000 and the last nanosecond of 2099 are the outermost ones."""
    assert parse_timestamp(946_684_800) == (MIN_NS, True)
    assert parse_timestamp(MAX_NS - 1) == (MAX_NS - 1, True)
    assert problem_of(MIN_NS - 1) == "out-of-range"
    assert problem_of(MAX_NS) == "out-of-range"


@pytest.mark.parametrize("value", [None, True, False, b"2026", [], {}, datetime.now(UTC)])
def test_value_of_another_type_is_refused(value: object) -> None:
    """Only text and numbers name an instant; a bool is no number."""
    assert problem_of(value) == "wrong-type"


@pytest.mark.parametrize(
    ("number", "fraction_ns"),
    [
        (1767323045.5, 500_000_000),
        (Decimal("1767323045.123456789"), 123_456_789),
        (Decimal("1767323045.1234567899"), 123_456_789),
        (Decimal("1767323045." + "9" * 60), 999_999_999),  # cut, never carried to the next second
    ],
)
def test_fraction_of_an_epoch_number_is_cut_at_nanoseconds(
    number: float | Decimal, fraction_ns: int
) -> None:
    """Digits beyond the nanosecond are dropped, whatever the decimal context of the program is."""
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        assert parse_timestamp(number) == (1_767_323_045 * NS_PER_S + fraction_ns, True)


def test_memory_that_is_full_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is bounded, and what is read stays right when it overflows."""
    monkeypatch.setattr(timestamps, "_CACHE_LIMIT", 3)
    base = ns_of(2026, 1, 2)
    texts = [f"2026-01-02T00:00:{n:02d}.25{n:04d}Z" for n in range(20)] * 2
    instants = [parse_timestamp(text)[0] for text in texts]
    assert instants == [base + n * NS_PER_S + 250_000_000 + n * 1000 for n in range(20)] * 2
    assert len(timestamps.KNOWN_HEADS) <= 3
    assert len(timestamps.KNOWN_TAILS) <= 3


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T03:04:05.123",
        "2026-01-02T03:04:05.123Z",
        "2026-01-02T03:04:05.12Z",
        "2026-01-02T03:04:05.12ZZ",
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:60.123Z",
        "2026-01-02T03:04:05.123456+02:00",
        "2026-01-02T03:04:05.123456",
        "2026-01-02T03:04:05.123+02:00",
        "2026-01-02t03:04:05.123456789Z",
        "2026-01-02T03:04:05.1234567890Z",
        "2026-01-02T03:04:05.123 56Z",
    ],
)
def test_memory_changes_no_answer(text: str) -> None:
    """A text is read alike whether or not others with the same beginning or end were read."""

    def read() -> object:
        try:
            return parse_timestamp(text)
        except timestamps.TimestampError as exc:
            return exc.problem

    timestamps.KNOWN_HEADS.clear()
    timestamps.KNOWN_TAILS.clear()
    alone = read()
    for second in ("05", "59"):
        for fraction in ("12", "123", "123456", "123456789", "123000"):
            parse_timestamp(f"2026-01-02T03:04:{second}.{fraction}Z")
            parse_timestamp(f"2026-01-02t03:04:{second}.{fraction}Z")
    assert read() == alone


@pytest.mark.parametrize(
    ("fraction_ns", "end"),
    [(0, "05Z"), (120_000_000, "05.120Z"), (1_000, "05.000001Z"), (1, "05.000000001Z")],
)
def test_instant_is_written_with_as_few_digits_as_are_exact(fraction_ns: int, end: str) -> None:
    """Fractions have 3, 6 or 9 digits, or there is none."""
    text = format_timestamp(ns_of(2026, 1, 2, 3, 4, 5) + fraction_ns)
    assert text == "2026-01-02T03:04:" + end
