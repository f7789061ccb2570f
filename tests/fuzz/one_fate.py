"""What must hold for any batch of any values: one fate each, and nothing told of its content."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from app.codec import reason_name
from app.dead_letters import dead_letter
from app.headers import REKEYED_FROM
from app.memory_io import MemoryRecord
from app.models import Fate, Fee, Position, TradeEvent
from app.ports import Headers, RecordBatch
from app.services import TradeProcessor
from tests.fuzz.corpus import CORPUS, body
from tests.test_fast_path import forget

NOW_MS: Final = 1_790_000_000_000
SEPARATOR: Final = b"\x1e"
"""Stands between the values of one fuzz input; no JSON holds it (RFC 7464 uses it so)."""
ORIGIN_MARK: Final = b"\x1d"
"""Stands between a value and what its record says of where it was re-keyed from."""
MAX_VALUES: Final = 16
DEDUPE_WINDOW: Final = 8

_GOOD_KEY: Final = "GOOD|GOOD"
_PAGE: Final = Path(__file__).parents[2] / "docs" / "dead-letters.md"
_FIELDS: Final = sorted(
    [*TradeEvent.__struct_fields__, *(f"fee_{name}" for name in Fee.__struct_fields__)],
    key=len,
    reverse=True,
)


@dataclass(frozen=True, slots=True)
class Value:
    """What is hostile of a record: its value, and where it says that it was re-keyed from."""

    value: bytes | None
    origin: bytes | None = None

    def at(self, offset: int) -> MemoryRecord:
        """Give the record of it."""
        headers: Headers = () if self.origin is None else ((REKEYED_FROM, self.origin),)
        return MemoryRecord(offset, NOW_MS, b"k", self.value, headers)


def values_of(data: bytes) -> list[Value]:
    """Read a fuzz input as the records of a batch."""
    values = []
    for part in data.split(SEPARATOR)[:MAX_VALUES]:
        value, mark, origin = part.partition(ORIGIN_MARK)
        values.append(Value(value, origin if mark else None))
    return values


@dataclass(slots=True)
class Outcome:
    """What records came to, in words that do not depend on how they were batched."""

    fates: Counter[Fate] = field(default_factory=Counter)
    refusals: dict[int, tuple[str, str]] = field(default_factory=dict)
    misplaced: dict[int, str] = field(default_factory=dict)
    suspects: Counter[str] = field(default_factory=Counter)
    unknown_fields: int = 0
    positions: dict[str, Position] = field(default_factory=dict)


def judge(records: Sequence[MemoryRecord], *, size: int, window: int = DEDUPE_WINDOW) -> Outcome:
    """Process records in batches of a size; each must get exactly one fate."""
    processor = TradeProcessor(belongs=lambda key: not key.endswith("Z"), dedupe_window=window)
    done = Outcome()
    for at in range(0, len(records), size):
        some = records[at : at + size]
        result = processor.process_batch(RecordBatch.of(0, 1, some, some[-1].offset + 1))
        elsewhere = [r.index for r in result.refusals] + [index for index, _ in result.misplaced]
        assert len(set(elsewhere)) == len(elsewhere), "a record has two fates"
        assert set(elsewhere) <= set(range(len(some))), "a fate of no record"
        assert sum(result.fates.values()) + len(elsewhere) == len(some), "not one fate each"
        for refusal in result.refusals:
            record = some[refusal.index]
            done.refusals[record.offset] = (refusal.reason, refusal.message)
            letter = dead_letter(
                record, refusal, topic="d", source_topic="t", source_partition=0, group="g",
                failed_at_ns=NOW_MS * 10**6,
            )  # fmt: skip
            assert letter.value == (record.value or b""), "a dead letter of other bytes"
        done.misplaced |= {some[index].offset: key for index, key in result.misplaced}
        done.fates += result.fates
        done.suspects += result.suspects
        done.unknown_fields += result.unknown_fields
    done.positions = dict(processor.positions)
    return done


def check(values: Sequence[Value]) -> tuple[int, Outcome]:
    """Hold a batch of hostile records, with good ones around each, to all that is promised.

    Returns:
        CPU nanoseconds that the batch took in a program that remembers nothing, and what became of
        it.

    Raises:
        AssertionError: One of the promises is broken; any other exception breaks the first one.
    """
    count = len(values)
    records = [_good(2 * number) for number in range(count + 1)]
    for number, value in enumerate(values):
        records.insert(2 * number + 1, value.at(2 * number + 1))
    window = DEDUPE_WINDOW * (sum(len(value.value or b"") for value in values) % 2)
    forget()
    before_ns = time.thread_time_ns()
    whole = judge(records, size=len(records), window=window)
    cpu_ns = time.thread_time_ns() - before_ns
    alone, again = (judge(records, size=size, window=window) for size in (1, len(records)))
    assert alone == whole, "one by one comes to something else"
    assert again == whole, "once more comes to something else"
    assert not any(offset % 2 == 0 for offset in [*whole.refusals, *whole.misplaced])
    good = whole.positions[_GOOD_KEY]
    if good.trade_count == count + 1:  # no hostile one was booked there as well
        assert good == _good_alone(count), "good trades come to something else among bad ones"
    assert good.trade_count > count, "a good trade is lost"
    for suspect in whole.suspects:
        assert f"`{suspect}`" in documented()[2], f"no documented suspect: {suspect}"
    for reason, message in whole.refusals.values():
        assert is_documented(reason), f"no documented reason: {reason}"
        assert _shape(reason, message) in said(), f"no known message: {reason}: {message}"
    return cpu_ns, whole


def _good(offset: int) -> MemoryRecord:
    number = offset // 2
    value = body(
        trade_id=f'"good-{number}"', symbol='"GOOD"', book='"GOOD"', price=f'"{number % 3 + 1}"',
        side='"SELL"' if number % 5 == 1 else '"BUY"', timestamp='"2026-01-02T03:04:05.001Z"',
        published_at='"2026-01-02T03:04:05.001Z"' if number % 4 else None,
    )  # fmt: skip
    return MemoryRecord(offset, NOW_MS, b"k", value)


@cache
def _good_alone(count: int) -> Position:
    records = [_good(2 * number) for number in range(count + 1)]
    return judge(records, size=len(records)).positions[_GOOD_KEY]


@cache
def documented() -> tuple[frozenset[str], frozenset[str], str]:
    """Give the listed reason codes, those of them that any field may have, and what of suspects."""
    reasons, _, suspects = (
        _PAGE.read_text().partition("## Reason codes")[2].partition("## Suspects")
    )
    cells = [line.split(" | ")[0] for line in reasons.splitlines() if line.startswith("| `")]
    codes = re.findall(r"`([^`]+)`", " ".join(cells))
    of_any_field = {code.removeprefix("<field>-") for code in codes if code.startswith("<")}
    return frozenset(codes), frozenset(of_any_field), suspects


def is_documented(reason: str) -> bool:
    """Tell whether a reason code stands in the list for those who read dead letters."""
    codes, of_any_field, _ = documented()
    return reason in codes or any(
        reason.removeprefix(f"{reason_name(name)}-") in of_any_field for name in _FIELDS
    )


def _shape(reason: str, message: str) -> tuple[str, str]:
    """Put a blank in the place of the field that reason and message name."""
    for name in _FIELDS:
        if reason.startswith(f"{reason_name(name)}-") and message.startswith(f"{name} "):
            return reason.replace(reason_name(name), "_", 1), message.replace(name, "_", 1)
    return reason, message


@cache
def said() -> frozenset[tuple[str, str]]:
    """Give what is said of the corpus: whatever is said of other values must be the same.

    So no message depends on what is in a value, and the corpus has an example of each.
    """
    need_a_position = [
        Value(body(trade_id='"P1"', symbol='"XYZ"'), b"t/0/0"),
        Value(body(trade_id='"P2"', symbol='"E"', currency='"EUR"')),
        Value(body(trade_id='"P3"', symbol='"E"')),
        Value(body(trade_id='"P4"', symbol='"M"', contract_multiplier="2")),
        Value(body(trade_id='"P5"', symbol='"M"')),
        Value(body(trade_id='"P5"', symbol='"N"')),
        Value(body(trade_id='"P5"', symbol='"O"')),
    ]
    values = [*(Value(hostile.value) for hostile in CORPUS), *need_a_position]
    records = [value.at(offset) for offset, value in enumerate(values)]
    return frozenset(_shape(*said) for said in judge(records, size=1).refusals.values())
