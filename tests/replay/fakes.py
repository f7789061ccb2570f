"""What the tests of the replay share: rows, a publisher, a clock."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.codec import decode_event
from app.errors import RecordError
from app.models import TradeEvent
from app.ports import OutgoingRecord, SendOutcome, SendState
from app.replay import Clock, FieldMapping, ReplaySummary, RowMapper, check_files, replay
from app.replay.rows import Row
from app.timestamps import NS_PER_S

OK = SendOutcome(SendState.OK, 0, 0)
NOT_SENT = SendOutcome(SendState.NOT_SENT, error="away")
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


class FakeClock:
    """Time that moves only while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []

    @property
    def clock(self) -> Clock:
        """The clock to hand over."""
        return Clock(lambda: self.now_s, lambda: BEGIN_NS + round(self.now_s * NS_PER_S), self.wait)

    async def wait(self, _stop: asyncio.Event, seconds: float) -> None:
        """Let the time pass at once."""
        self.waits.append(seconds)
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
    *files: Path,
    mapping: FieldMapping | None = None,
    publisher: Any = None,
    rejects_path: Path | None = None,
    **options: Any,
) -> ReplaySummary:
    """Replay files beside their rejects file, as the command does."""
    mapping = mapping or FieldMapping()
    rejects_path = rejects_path or files[0].parent / "rejects.jsonl"
    check_files(files, mapping, rejects_path)
    return await replay(
        files,
        mapping,
        publisher=publisher or FakePublisher(),
        topic="trades",
        rejects_path=rejects_path,
        **{"clock": FakeClock().clock, "stop": asyncio.Event(), **options},
    )


def rejects_of(summary: ReplaySummary) -> list[dict[str, Any]]:
    """Read the rejects file of a replay."""
    if summary.rejects_path is None:
        return []
    return [json.loads(line) for line in Path(summary.rejects_path).read_text().splitlines()]
