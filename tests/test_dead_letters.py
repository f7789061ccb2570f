"""Dead letters: the original untouched, and beside it what was wrong and where."""

import hashlib
from dataclasses import dataclass

import pytest

from app import headers as h
from app.dead_letters import (
    APP,
    APP_VERSION,
    HEADERS_CUT,
    KEY_CUT,
    KEY_SHA256,
    MAX_ORIGINAL_HEADER_BYTES,
    MAX_ORIGINAL_HEADERS,
    MAX_ORIGINAL_KEY_BYTES,
    _installed_version,
    dead_letter,
)
from app.models import Refusal
from app.ports import Headers, OutgoingRecord

REFUSAL = Refusal(0, "side-unknown", "side must be BUY or SELL", "validation", "InvalidTradeError")
NOW_NS = 1_767_323_045_123_456_789


@dataclass(frozen=True)
class StoredRecord:
    """One record as it stands in a log."""

    headers: Headers = ()
    value: bytes | None = b"\xff\x00 not ours to change"
    key: bytes | None = b"\xfe"
    offset: int = 41
    timestamp: int = 1_767_300_000_000


def letter(
    record: StoredRecord, refusal: Refusal = REFUSAL, now_ns: int = NOW_NS
) -> OutgoingRecord:
    """Build the dead letter of a record."""
    return dead_letter(
        record,
        refusal,
        topic="dlq",
        source_topic="trades",
        source_partition=3,
        group="g",
        failed_at_ns=now_ns,
    )


def named(record: OutgoingRecord) -> dict[str, bytes | None]:
    """Give headers by name; none may stand twice."""
    names = [name for name, _ in record.headers]
    assert len(names) == len(set(names))
    return dict(record.headers)


@pytest.mark.parametrize("original_ms", [-1, 946_684_800_000, 4_102_444_800_000])
def test_dead_letter_is_new_however_old_its_original(original_ms: int) -> None:
    """Its topic may delete by the record's own time; that of the original is in a header."""
    made = letter(StoredRecord(timestamp=original_ms))
    assert made.timestamp_ms is not None
    assert 0 <= NOW_NS // 1_000_000 - made.timestamp_ms <= 24 * 3_600_000
    assert named(made)["x-dlq-original-timestamp"] == str(original_ms).encode()


def test_dead_letter_keeps_the_original_and_says_what_was_wrong() -> None:
    """Key, value and timestamp are untouched, and every coordinate of the origin is there."""
    original = StoredRecord(headers=(("traceparent", b"00-1"), ("empty", b""), ("null", None)))
    made = letter(original)
    assert (made.topic, made.partition) == ("dlq", 3)
    assert (made.key, made.value, made.timestamp_ms) == (
        original.key,
        original.value,
        original.timestamp,
    )
    assert tuple(made.headers[:3]) == original.headers
    added = dict(made.headers[3:])
    fingerprint = added.pop(h.DLQ_FINGERPRINT)
    assert fingerprint is not None
    assert len(fingerprint) == 16
    assert added == {
        "__dlq.errors.topic": b"trades",
        "__dlq.errors.partition": b"3",
        "__dlq.errors.offset": b"41",
        "__dlq.errors.group": b"g",
        "__dlq.errors.delivery.count": b"1",
        "__dlq.errors.message": b"side must be BUY or SELL",
        "x-dlq-reason": b"side-unknown",
        "x-dlq-error-class": b"InvalidTradeError",
        "x-dlq-error-kind": b"validation",
        "x-dlq-stage": b"validation",
        "x-dlq-original-timestamp": b"1767300000000",
        "x-dlq-failed-at": b"2026-01-02T03:04:05.123Z",
        "x-dlq-first-failed-at": b"2026-01-02T03:04:05.123Z",
        "x-dlq-app": APP.encode(),
        "x-dlq-app-version": APP_VERSION.encode(),
        "x-original-topic": b"trades",
    }


@pytest.mark.parametrize(("value", "marker"), [(None, b"true"), (b"", None)])
def test_null_value_becomes_an_empty_one_with_a_marker(
    value: bytes | None, marker: bytes | None
) -> None:
    """A dead letter is never a tombstone, and an empty value is not taken for a null one."""
    made = letter(StoredRecord(value=value, key=None))
    assert made.value == b""
    assert made.key is None
    assert named(made).get(h.DLQ_VALUE_WAS_NULL) == marker


def test_fingerprint_groups_what_failed_alike() -> None:
    """The same fault has the same fingerprint wherever it was; another fault has another."""
    one = named(letter(StoredRecord(offset=1)))[h.DLQ_FINGERPRINT]
    two = named(letter(StoredRecord(offset=2, value=None)))[h.DLQ_FINGERPRINT]
    other = Refusal(0, "side-missing", REFUSAL.message, "validation", "InvalidTradeError")
    assert one == two
    assert one != named(letter(StoredRecord(), other))[h.DLQ_FINGERPRINT]


def test_second_dead_letter_replaces_what_the_first_one_said() -> None:
    """A redriven record that fails again keeps the first time it failed, and grows no headers."""
    first = letter(StoredRecord(headers=(("traceparent", b"00-1"),)))
    again = letter(StoredRecord(headers=first.headers), now_ns=NOW_NS + 60_000_000_000)
    assert [name for name, _ in again.headers] == [name for name, _ in first.headers]
    assert named(again)[h.DLQ_FAILED_AT] == b"2026-01-02T03:05:05.123Z"
    assert named(again)[h.DLQ_FIRST_FAILED_AT] == named(first)[h.DLQ_FAILED_AT]


def test_first_time_of_a_foreign_header_without_a_value_is_now() -> None:
    """A null header of somebody else's stops nothing."""
    made = letter(StoredRecord(headers=((h.DLQ_FIRST_FAILED_AT, None),)))
    assert named(made)[h.DLQ_FIRST_FAILED_AT] == named(made)[h.DLQ_FAILED_AT]


def test_number_of_kept_headers_is_bounded_on_both_sides() -> None:
    """32 original headers are kept; of 33 the last is cut, and the letter says so."""
    fitting = [(f"n{n}", b"") for n in range(MAX_ORIGINAL_HEADERS)]
    whole = letter(StoredRecord(headers=fitting))
    assert whole.headers[: len(fitting)] == fitting
    assert HEADERS_CUT not in named(whole)
    cut = letter(StoredRecord(headers=[*fitting, ("one-more", b"")]))
    assert cut.headers[: len(fitting)] == fitting
    assert "one-more" not in named(cut)
    assert named(cut)[HEADERS_CUT] == b"true"


def test_size_of_kept_headers_is_bounded_on_both_sides() -> None:
    """8 KiB of names and values are kept, one byte more is cut."""
    fitting = [("n", b"x" * (MAX_ORIGINAL_HEADER_BYTES - 1))]
    assert HEADERS_CUT not in named(letter(StoredRecord(headers=fitting)))
    larger = letter(StoredRecord(headers=[("n", b"x" * MAX_ORIGINAL_HEADER_BYTES)]))
    assert named(larger)[HEADERS_CUT] == b"true"
    assert "n" not in named(larger)


def test_names_of_headers_count_by_their_bytes() -> None:
    """A name is text, and takes more bytes than it has letters where they are rare ones."""
    name = "\N{EURO SIGN}" * (MAX_ORIGINAL_HEADER_BYTES // 3)
    assert HEADERS_CUT not in named(letter(StoredRecord(headers=[(name, b"xx")])))
    assert named(letter(StoredRecord(headers=[(name, b"xxx")])))[HEADERS_CUT] == b"true"


def test_key_that_no_record_could_carry_is_cut() -> None:
    """64 KiB of a key are kept; of a longer one its size and hash say what it was."""
    fitting = b"k" * MAX_ORIGINAL_KEY_BYTES
    whole = letter(StoredRecord(key=fitting))
    assert whole.key == fitting
    assert KEY_CUT not in named(whole)
    cut = letter(StoredRecord(key=fitting + b"!"))
    assert cut.key == fitting
    assert named(cut)[KEY_CUT] == str(len(fitting) + 1).encode()
    assert named(cut)[KEY_SHA256] == hashlib.sha256(fitting + b"!").hexdigest().encode()


def test_version_of_a_checkout_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an installed package the version says that it is a checkout."""
    monkeypatch.setattr("app.dead_letters.APP", "not-installed-anywhere")
    assert _installed_version() == "0+checkout"


def test_time_of_a_first_failure_is_taken_over_only_if_it_can_be_one() -> None:
    """A header of any length under that name must not make the dead letter too large to send."""
    earlier = letter(StoredRecord(headers=((h.DLQ_FIRST_FAILED_AT, b"2026-01-01T00:00:00Z"),)))
    assert named(earlier)[h.DLQ_FIRST_FAILED_AT] == b"2026-01-01T00:00:00Z"
    hostile = letter(StoredRecord(headers=((h.DLQ_FIRST_FAILED_AT, b"\xff" * 700_000),)))
    assert named(hostile)[h.DLQ_FIRST_FAILED_AT] == b"2026-01-02T03:04:05.123Z"
