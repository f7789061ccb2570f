"""Delivery under every kind of fault, checked against a model that shares no code with the app.

Hypothesis plays producer, supervisor, broker and saboteur at once, in virtual time. After each step
nothing below a committed offset may lack its effect; at the end every record has exactly one fate,
and every position is what a plain decimal calculation makes of the log.
"""

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from enum import Enum, auto
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.errors import OwnershipError
from app.ledger_codec import read_position
from app.memory_io import Fault, MemoryDatabase, MemoryRecord
from app.money import to_decimal
from app.ports import OutgoingRecord
from app.timestamps import parse_timestamp
from tests.memory_world import (
    DEAD_LETTERS,
    PARTITIONS,
    POSITIONS,
    TRADES,
    Worker,
    World,
    body_of,
    headers_of,
    symbols_of,
    trade,
    until,
)
from tests.virtual_time import VirtualTimeLoop

SYMBOLS: Final = [symbol for p in range(PARTITIONS) for symbol in symbols_of(p, 2)]
HOME: Final = {s: p for p in range(PARTITIONS) for s in symbols_of(p, 2)}
MOST_WORKERS: Final = 3
PRICES: Final = ("10", "10.00000001", "7.3", "0.00000003")
QUANTITIES: Final = ("1", "2", "3", "0.7")
DEADLINE_NS: Final = 3600 * 1_000_000_000
PARK_MAX: Final = 4
GIVEN_UP: Final = ("orphan-lifecycle", "park-overflow")
WINDOW: Final = 5
"""Offsets of a block of the window for trades that were sent twice."""


class Kind(Enum):
    """What a produced record is."""

    VALID = auto()
    POISON = auto()  # its bytes are refused
    CANCEL = auto()  # refused by its life cycle, wherever it stands
    LATE_POISON = auto()  # refused only when its position is looked at


@dataclass(frozen=True)
class Produced:
    """One record that the test has put into the topic."""

    symbol: str
    kind: Kind
    is_misplaced: bool
    record: MemoryRecord

    @property
    def is_refused_at_sight(self) -> bool:
        """Whether it is dead-lettered where it stands."""
        return self.kind in (Kind.POISON, Kind.CANCEL)


Place = tuple[int, int]
_MORE_FIELDS: Final = {Kind.CANCEL: {"action": "CANCEL"}, Kind.LATE_POISON: {"currency": "EUR"}}
_EXACT: Final = Context(prec=100)
_QUANTUM: Final = Decimal(1).scaleb(-24)


@dataclass
class ModelPosition:
    """A position by average cost in `Decimal`, written down from its definition."""

    quantity: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    realized: Decimal = Decimal(0)
    count: int = 0

    def fill(self, side: str, price: Decimal, quantity: Decimal) -> None:
        """Book one fill, closing first and opening with what is left."""
        with localcontext(_EXACT):
            self._fill(side, price, quantity)

    def _fill(self, side: str, price: Decimal, quantity: Decimal) -> None:
        signed = quantity if side == "BUY" else -quantity
        closed = Decimal(0)
        if self.quantity * signed < 0:
            closed = min(abs(self.quantity), quantity)
            share = self.cost * closed / abs(self.quantity)
            released = share.quantize(_QUANTUM, ROUND_HALF_EVEN)
            proceeds = price * closed * (1 if self.quantity > 0 else -1)
            self.realized += proceeds - released
            self.cost -= released
        opened = (quantity - closed) * (1 if signed > 0 else -1)
        self.cost += opened * price
        self.quantity += signed
        self.count += 1


@dataclass
class FifoModelPosition(ModelPosition):
    """One whose lots are closed oldest first: what is left of each, signed, and its price."""

    lots: list[tuple[Decimal, Decimal]] = field(default_factory=list)

    def _fill(self, side: str, price: Decimal, quantity: Decimal) -> None:
        left = quantity if side == "BUY" else -quantity
        while left and self.lots and self.lots[0][0] * left < 0:
            held, cost = self.lots.pop(0)
            closed = min(abs(held), abs(left)).copy_sign(held)
            self.realized += closed * (price - cost)
            left += closed
            if held != closed:
                self.lots.insert(0, (held - closed, cost))
        if left:
            self.lots.append((left, price))
        self.quantity = sum((held for held, _ in self.lots), Decimal(0))
        self.cost = sum((held * cost for held, cost in self.lots), Decimal(0))
        self.count += 1


class DeliveryModel(RuleBasedStateMachine):
    """Workers that crash, join, leave and meet faults, beside what they have to come to."""

    def __init__(self, database: MemoryDatabase | None = None, **more: Any) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.world = World(
            database,
            consumer_takeover_margin=2,
            commit_every=8,
            positions_heartbeat_s=0.5,
            on_gap="stop",
            dedupe_window=WINDOW,
            park_max=PARK_MAX,
            park_deadline_s=DEADLINE_NS / 1e9,
            **more,
        )
        self.workers: list[Worker] = []
        self.produced: dict[Place, Produced] = {}
        self.late: list[OutgoingRecord] = []
        self.send_fault: Callable[[OutgoingRecord], Fault] = lambda _: Fault.NONE
        self.operation_fault: Callable[[str], Fault] = lambda _: Fault.NONE
        self.trade_numbers = itertools.count()
        for symbol in SYMBOLS:  # their first trades settle the currency
            number = f"T{next(self.trade_numbers)}"
            self._produce(trade(symbol, trade_id=number), HOME[symbol], symbol, Kind.VALID)
        self.runner.run(self._join())

    def teardown(self) -> None:
        """Come to rest, compare with the model, and leave no task behind."""
        try:
            self.runner.run(self._come_to_rest())
            self._check_fates()
            self._check_positions()
        finally:
            self.runner.run(self._end())
            self.runner.close()

    # -- what happens

    @rule(
        symbol=st.sampled_from(SYMBOLS),
        side=st.sampled_from(["BUY", "SELL"]),
        price=st.sampled_from(PRICES),
        quantity=st.sampled_from(QUANTITIES),
        kind=st.sampled_from([Kind.VALID] * 5 + [Kind.POISON, Kind.CANCEL, Kind.LATE_POISON]),
        is_misplaced=st.sampled_from([False] * 3 + [True]),
        has_key=st.booleans(),
        copies=st.integers(1, 6),
    )
    def produce(
        self,
        symbol: str,
        side: str,
        price: str,
        quantity: str,
        kind: Kind,
        *,
        is_misplaced: bool,
        has_key: bool,
        copies: int,
    ) -> None:
        """Somebody publishes trades, some of them bad, in the wrong partition or without a key."""
        for _ in range(copies):
            number = f"T{next(self.trade_numbers)}"
            more = _MORE_FIELDS.get(kind, {})
            value = trade(symbol, side, price, quantity, trade_id=number, **more)
            self._produce(
                value[:-1] if kind is Kind.POISON else value,
                (HOME[symbol] + is_misplaced) % PARTITIONS,
                symbol,
                kind,
                key=(b"elsewhere" if is_misplaced else symbol.encode()) if has_key else None,
            )

    @rule(back=st.integers(0, 3 * WINDOW), is_stamped=st.booleans())
    def send_again(self, back: int, *, is_stamped: bool) -> None:
        """A sender that does not know whether its trade has arrived repeats it.

        Args:
            back: Which of the last ones it is, counted from the end.
            is_stamped: It writes a new time of publication.
        """
        place, produced = list(self.produced.items())[-1 - back % len(self.produced)]
        if produced.kind is Kind.VALID:
            value = produced.record.value or b""
            if is_stamped and b"published_at" not in value:
                value = value[:-1] + b', "published_at": "2026-09-01T10:00:01Z"}'
            self._produce(value, place[0], produced.symbol, Kind.VALID, key=produced.record.key)

    @rule(turns=st.integers(1, 60))
    def run_some_turns(self, turns: int) -> None:
        """The workers run, up to any await."""
        self.runner.run(_turns(turns))

    @rule(seconds=st.sampled_from([0.011, 0.15, 0.6, 3.0]))
    def let_time_pass(self, seconds: float) -> None:
        """Intervals and backoffs run out."""
        self.runner.run(asyncio.sleep(seconds))

    @precondition(lambda self: len(self.workers) < MOST_WORKERS)
    @rule()
    def join(self) -> None:
        """One more worker joins the group."""
        self.runner.run(self._join())

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, MOST_WORKERS - 1))
    def crash(self, index: int) -> None:
        """A worker dies where it stands; its records in flight may still arrive, late."""
        self.runner.run(self._pick(index).crash())

    @precondition(lambda self: len(self.workers) > 1)
    @rule(index=st.integers(0, MOST_WORKERS - 1))
    def leave(self, index: int) -> None:
        """A worker stops in an orderly way."""
        self.runner.run(_finish(self._pick(index)))

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, MOST_WORKERS - 1))
    def forget_and_rejoin(self, index: int) -> None:
        """The group takes a live worker for dead: a zombie for some turns, then a member again."""
        source = self.workers[index % len(self.workers)].source
        source.crash()
        self.runner.run(_turns(25))
        self.runner.run(source.start())

    @rule(
        topic=st.sampled_from([TRADES, DEAD_LETTERS, POSITIONS]),
        faults=st.lists(st.sampled_from(list(Fault)), min_size=1, max_size=6),
    )
    def sends_fail(self, topic: str, faults: list[Fault]) -> None:
        """The next sends to a topic meet these faults, one after the other."""
        script = iter(faults)
        self.send_fault = lambda r: next(script, Fault.NONE) if r.topic == topic else Fault.NONE

    @rule(
        operation=st.sampled_from(["poll", "poll", "commit", "committed", "offset_ranges", "read"]),
        fault=st.sampled_from([Fault.UNKNOWN_STORED, Fault.UNKNOWN_LOST]),
        times=st.integers(1, 4),
    )
    def operations_fail(self, operation: str, fault: Fault, times: int) -> None:
        """The next calls of one operation fail."""
        left = iter(range(times))

        def decide(called: str) -> Fault:
            if called == operation and next(left, None) is not None:
                return fault
            return Fault.NONE

        self.operation_fault = decide

    @precondition(lambda self: self.late)
    @rule(index=st.integers(0, 1000), is_last=st.booleans())
    def write_late(self, index: int, *, is_last: bool) -> None:
        """A position that a worker had handed over arrives late, behind newer ones.

        Args:
            index: Which of those that were handed over.
            is_last: All workers die before any of them can mend it.
        """
        self._append(self.late.pop(index % len(self.late)))
        while is_last and self.workers:
            self.runner.run(self._pick(0).crash())

    # -- what always holds

    @invariant()
    def a_commit_passes_nothing_without_its_effect(self) -> None:
        """Every record below a committed offset has been booked, moved or dead-lettered."""
        committed = self.world.committed
        newest = self.world.newest_positions()
        dead = self._dead_lettered()
        moved = self._copies()
        repeats = self._repeats()
        for (partition, offset), produced in self.produced.items():
            if offset >= committed.get(partition, 0):
                continue
            place = (partition, offset)
            if produced.is_refused_at_sight:
                assert place in dead, f"{place} is committed and not dead-lettered"
            elif produced.is_misplaced:
                assert place in moved, f"{place} is committed and not re-keyed"
            elif produced.kind is Kind.LATE_POISON:
                assert place in dead, f"{place} is committed and not dead-lettered"
            elif place not in repeats:
                covered = newest.get(produced.symbol, {"source": {"offset": -1}})["source"]
                assert covered["offset"] >= offset, f"{place} is committed and not stored"

    # -- inside

    def _produce(
        self,
        value: bytes,
        partition: int,
        symbol: str,
        kind: Kind,
        *,
        key: bytes | None = None,
    ) -> None:
        self.world.broker.append(
            TRADES, value, key=key, headers=[("sender", b"desk")], partition=partition
        )
        record = self.world.broker.records(TRADES, partition)[-1]
        is_misplaced = partition != HOME[symbol]
        self.produced[partition, record.offset] = Produced(symbol, kind, is_misplaced, record)

    async def _join(self) -> None:
        worker = self.world.worker()
        worker.source.max_records = 2
        worker.publisher.faults = self._send_fault
        worker.source.faults = worker.reader.faults = self._operation_fault
        if worker.ledger is not None:
            worker.ledger.faults = self._operation_fault
        self.workers.append(worker)
        await worker.start()

    def _operation_fault(self, operation: str) -> Fault:
        return self.operation_fault(operation)

    def _pick(self, index: int) -> Worker:
        return self.workers.pop(index % len(self.workers))

    def _send_fault(self, record: OutgoingRecord) -> Fault:
        fault = self.send_fault(record)
        if fault is Fault.REFUSED and record.topic == TRADES:
            fault = Fault.NOT_SENT
        if record.topic == POSITIONS:
            self.late.append(record)
        return fault

    def _append(self, record: OutgoingRecord) -> None:
        self.world.broker.append(
            record.topic,
            record.value,
            key=record.key,
            headers=record.headers,
            partition=record.partition,
        )

    async def _come_to_rest(self) -> None:
        """End all faults, start afresh where a person would, and wait for the last commit."""
        self.send_fault = lambda _: Fault.NONE
        self.operation_fault = lambda _: Fault.NONE
        self._restart_the_ended()
        for worker in self.workers:
            await worker.crash()  # what was refused for good waits for a restart
        self.workers = []
        await self._join()
        await until(self._is_at_rest)

    def _is_at_rest(self) -> bool:
        (worker,) = self.workers
        assert worker.task is not None
        assert not worker.task.done(), worker.task.exception()
        owned = worker.consumer._open.values()
        is_idle = len(owned) == PARTITIONS and not any(p.has_work for p in owned)
        return is_idle and self.world.committed == self.world.ends

    async def _end(self) -> None:
        for worker in self.workers:
            await worker.crash()

    def _restart_the_ended(self) -> None:
        """Take note of workers that have ended by themselves, as a supervisor does."""
        for worker in list(self.workers):
            assert worker.task is not None
            if worker.task.done():
                error = worker.task.exception()
                if not isinstance(error, OwnershipError):
                    raise AssertionError("a worker has ended") from error
                worker.source.crash()
                self.workers.remove(worker)

    @invariant()
    def every_record_in_hand_has_one_fate(self) -> None:
        """What was taken in is committed or on its way: nothing dropped, nothing counted twice."""
        for worker in self.workers:
            assert worker.consumer._counts().conservation == 0

    @invariant()
    def workers_end_only_when_they_have_lost_ownership(self) -> None:
        """No fault ends a worker but the sight of somebody else's newer state."""
        self._restart_the_ended()

    # -- what there is at the end

    def _dead_lettered(self) -> dict[Place, list[MemoryRecord]]:
        found = defaultdict(list)
        for record in self.world.broker.records(DEAD_LETTERS):
            said = headers_of(record)
            place = int(said["__dlq.errors.partition"]), int(said["__dlq.errors.offset"])
            found[place].append(record)
        return found

    def _copies(self) -> dict[Place, list[tuple[Place, MemoryRecord]]]:
        """Find the re-keyed records by origin, in log order."""
        found = defaultdict(list)
        for partition in range(PARTITIONS):
            for record in self.world.broker.records(TRADES, partition):
                if (partition, record.offset) not in self.produced:
                    topic, origin, offset = headers_of(record)["x-rekeyed-from"].split("/")
                    assert topic == TRADES
                    found[int(origin), int(offset)].append(((partition, record.offset), record))
        return found

    def _repeats(self) -> set[Place]:
        """Find the trades whose id stands in the same or the previous block of their partition."""
        origins = {place: origin for origin, of in self._copies().items() for place, _ in of}
        found = set()
        for partition in range(PARTITIONS):
            last_block: dict[str, int] = {}
            for record in self.world.broker.records(TRADES, partition):
                place = partition, record.offset
                produced = self.produced[origins.get(place, place)]
                is_at_home = produced.is_misplaced == (place in origins)
                if produced.kind is Kind.VALID and is_at_home:
                    trade_id, block = body_of(record)["trade_id"], record.offset // WINDOW
                    if block - last_block.get(trade_id, -2) <= 1:
                        found.add(place)
                    last_block[trade_id] = block
        return found

    def _check_fates(self) -> None:
        """Every record has one fate, and nothing has a fate that was never produced."""
        dead = self._dead_lettered()
        moved = self._copies()
        to_move = {
            place
            for place, p in self.produced.items()
            if p.is_misplaced and not p.is_refused_at_sight
        }
        assert set(moved) == to_move
        refused = {place for place, p in self.produced.items() if p.is_refused_at_sight}
        for place, produced in self.produced.items():
            if produced.kind is Kind.LATE_POISON and not produced.is_misplaced:
                refused.add(place)
            for (partition, offset), copy in moved.get(place, ()):
                assert partition == HOME[produced.symbol]
                assert copy.key == produced.symbol.encode()
                assert copy.value == produced.record.value
                assert list(copy.headers)[:-1] == list(produced.record.headers)
                if produced.kind is Kind.LATE_POISON and not self._is_known(place, offset, moved):
                    refused.add((partition, offset))
        assert set(dead) == refused
        for place, letters in dead.items():
            original = self.world.broker.records(TRADES, place[0])[place[1]]
            for letter in letters:
                assert (letter.key, letter.value) == (original.key, original.value)
                kept = len(original.headers)
                assert list(letter.headers)[:kept] == list(original.headers)

    def _is_known(
        self, origin: Place, offset: int, moved: Mapping[Place, list[tuple[Place, MemoryRecord]]]
    ) -> bool:
        """Tell whether the position had a later record of that origin before a copy at `offset`."""
        symbol = self.produced[origin].symbol
        return any(
            produced.kind is Kind.VALID
            and produced.symbol == symbol
            and place[0] == origin[0]
            and place > origin
            and moved[place][0][0][1] < offset
            for place, produced in self.produced.items()
            if place in moved
        )

    def _check_positions(self) -> None:
        """The changelog holds what decimal arithmetic makes of the log, to the last digit."""
        expected = self._expected_positions()
        stored = self.world.newest_positions()
        assert stored.keys() == expected.keys()
        for symbol, body in stored.items():
            model = expected[symbol]
            assert Decimal(body.get("quantity", 0)) == model.quantity
            assert Decimal(body.get("open_cost", 0)) == model.cost
            assert Decimal(body.get("realized_pnl", 0)) == model.realized
            assert body.get("trade_count", 0) == model.count
        in_memory = {
            key: position
            for partition in self.workers[0].consumer._open.values()
            for key, position in partition.processor.positions.items()
        }
        restored = {
            key: position
            for p in range(PARTITIONS)
            for key, position in self.runner.run(
                self.world.changelog().restore(p)
            ).positions.items()
        }
        assert restored == in_memory

    def _expected_positions(self) -> dict[str, ModelPosition]:
        positions: dict[str, ModelPosition] = defaultdict(ModelPosition)
        repeats = self._repeats()
        first_copies = {copies[0][0]: origin for origin, copies in self._copies().items()}
        for partition in range(PARTITIONS):
            for record in self.world.broker.records(TRADES, partition):
                place = partition, record.offset
                produced = self.produced.get(first_copies.get(place, place))
                if produced is None or produced.kind is not Kind.VALID or place in repeats:
                    continue
                if produced.is_misplaced == (place in first_copies):
                    fields = _fields(record)
                    positions[produced.symbol].fill(*fields)
        return dict(positions)


def _fields(record: MemoryRecord) -> tuple[str, Decimal, Decimal]:
    body = body_of(record)
    return body["side"], Decimal(body["price"]), Decimal(body.get("quantity", 0))


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _finish(worker: Worker) -> None:
    try:
        await worker.finish()
    except OwnershipError:
        worker.source.crash()


@dataclass
class Books:
    """Positions of trades that may be changed: folded anew for each change."""

    new_position: Callable[[], ModelPosition] = ModelPosition
    fills: dict[str, dict[str, tuple[str, Decimal, Decimal]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    positions: dict[str, ModelPosition] = field(default_factory=dict)
    last_offset: dict[str, int] = field(default_factory=dict)

    def apply(self, row: Mapping[str, Any], offset: int) -> None:
        """Apply a NEW, an AMEND or a CANCEL that is known to be due."""
        symbol, fills = row["symbol"], self.fills[row["symbol"]]
        fill = row["side"], Decimal(row["price"]), Decimal(row["quantity"])
        self.last_offset[symbol] = max(offset, self.last_offset.get(symbol, -1))
        if row["action"] == "NEW":
            assert row["trade_id"] not in fills
            fills[row["trade_id"]] = fill
            self.positions.setdefault(symbol, self.new_position()).fill(*fill)
            return
        assert row["trade_id"] in fills
        if row["action"] == "CANCEL":
            del fills[row["trade_id"]]
        else:
            fills[row["trade_id"]] = fill  # at its old place
        self.positions[symbol] = self.new_position()
        for kept in fills.values():
            self.positions[symbol].fill(*kept)


class LedgerModel(DeliveryModel):
    """The same with a ledger: it agrees with itself at every moment, and in the end with the log.

    Trades that were sent twice are recognised however far apart they stand; they are amended and
    cancelled, and a change that comes before what it follows waits for it, up to a deadline.
    """

    new_position: ClassVar[type[ModelPosition]] = ModelPosition
    more_settings: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        self.announced: list[dict[str, Any]] = []
        super().__init__(self.database, **self.more_settings)

    @rule(
        operation=st.sampled_from(
            ["write", "write", "find", "history", "claim", "positions", "lots", "parked"]
        ),
        fault=st.sampled_from([Fault.UNKNOWN_STORED, Fault.UNKNOWN_LOST]),
        times=st.integers(1, 4),
    )
    def the_database_fails(self, operation: str, fault: Fault, times: int) -> None:
        """The next calls of one operation fail, or only their answers do."""
        self.operations_fail(operation, fault, times)

    @rule(
        back=st.integers(0, 12),
        action=st.sampled_from(["AMEND", "AMEND", "CANCEL", "NEW"]),
        version=st.sampled_from([None, None, 1, 2, 2, 2, 3, 3, 4]),
        price=st.sampled_from(PRICES),
        copies=st.integers(1, 2),
        is_misplaced=st.sampled_from([False] * 4 + [True]),
    )
    def change(
        self,
        back: int,
        action: str,
        version: int | None,
        price: str,
        *,
        copies: int,
        is_misplaced: bool,
    ) -> None:
        """Somebody changes a trade, with the version that is due or another one."""
        valid = [p for p in self.produced.values() if p.kind is Kind.VALID]
        produced = valid[-1 - back % len(valid)]
        body = body_of(produced.record) | {"action": action, "price": price, "version": version}
        value = json.dumps({name: cell for name, cell in body.items() if cell is not None})
        place = (HOME[produced.symbol] + is_misplaced) % PARTITIONS
        for _ in range(copies):
            self._produce(value.encode(), place, produced.symbol, Kind.VALID)

    @rule(
        symbol=st.sampled_from(SYMBOLS),
        price=st.sampled_from(PRICES),
        version=st.sampled_from([None, 2, 2, 3]),
        action=st.sampled_from(["AMEND", "AMEND", "CANCEL"]),
        copies=st.integers(1, 2),
    )
    def change_before_the_new(
        self, symbol: str, price: str, version: int | None, action: str, *, copies: int
    ) -> None:
        """A change overtakes the trade that it changes."""
        number = f"T{next(self.trade_numbers)}"
        body = json.loads(trade(symbol, "BUY", price, "2", trade_id=number))
        self.announced.append(body)
        more = {"action": action, "version": version}
        value = json.dumps({k: v for k, v in (body | more).items() if v is not None})
        for _ in range(copies):
            self._produce(value.encode(), HOME[symbol], symbol, Kind.VALID)

    @precondition(lambda self: self.announced)
    @rule(index=st.integers(0, 100), price=st.sampled_from(PRICES))
    def new_at_last(self, index: int, price: str) -> None:
        """A trade comes of which a change was there already."""
        body = self.announced.pop(index % len(self.announced)) | {"price": price}
        symbol = body["symbol"]
        self._produce(json.dumps(body).encode(), HOME[symbol], symbol, Kind.VALID)

    @rule(part=st.sampled_from([1, 2, 4]))
    def the_clock_moves(self, part: int) -> None:
        """What waits comes closer to its deadline."""
        self.world.now_ns += DEADLINE_NS // part

    @invariant()
    def the_ledger_agrees_with_itself(self) -> None:
        """Positions are what the trades beside them come to, and cover all of their offsets."""
        books = Books(self.new_position)
        rows = self.database.trades.items()
        # What has waited stands before what it followed.
        for place, row in sorted(rows, key=lambda item: (int(item[1]["version"]), item[0])):
            assert place[1] < (self.database.next_offsets[place[0]] or 0)
            assert place not in self.database.parked
            books.apply(row, place[1])
        held = {key: read_position(line) for (_, key), line in self.database.positions.items()}
        assert held.keys() == books.positions.keys()
        for key, position in held.items():
            expected = books.positions[key]
            assert to_decimal(position.quantity_e8) == expected.quantity
            assert to_decimal(position.open_cost_e24, 24) == expected.cost
            assert to_decimal(position.realized_e24, 24) == expected.realized
            assert position.trade_count == expected.count
            assert position.source_offset == books.last_offset[key]
            self._check_lots(key, expected)

    @invariant()
    def a_commit_passes_nothing_without_its_effect(self) -> None:
        """What Kafka has committed is a hint, and the ledger and the topics are ahead of it."""
        fates, _ = self._expected()
        dead, moved = self._dead_lettered(), self._copies()
        for place, fate in fates.items():
            if place in self.database.parked:
                continue  # on its way to the dead letters, or waiting for what is not read yet
            if place[1] < self.world.committed.get(place[0], 0):
                assert fate != "waits", f"{place} is committed and not parked"
                assert place[1] < (self.database.next_offsets[place[0]] or 0)
                assert fate != "dead" or place in dead
                assert fate != "moved" or place in moved
                assert fate != "booked" or place in self.database.trades

    def _check_lots(self, key: str, expected: ModelPosition) -> None:
        """There are none of a position that is kept by average cost."""
        assert not isinstance(expected, FifoModelPosition)
        assert (HOME[key], key) not in self.database.lots

    def _check_fates(self) -> None:
        """Every record has the one fate that the log gives it, and nothing else is there."""
        fates, _ = self._expected()
        by_fate = defaultdict(set)
        for place, fate in fates.items():
            by_fate[fate].add(place)
        assert self.database.trades.keys() == by_fate["booked"]
        assert self._dead_lettered().keys() == by_fate["dead"]
        assert self.database.dead_letters.keys() == by_fate["dead"]
        assert self._copies().keys() == by_fate["moved"]
        changes = {p for p, row in self.database.trades.items() if row["action"] != "NEW"}
        assert self.database.corrections.keys() == changes
        assert self.database.next_offsets == self.world.ends

    async def _come_to_rest(self) -> None:
        """Come to rest with what still waits, and then without it."""
        await super()._come_to_rest()
        # What was given up leaves once its dead letter is there, by the flush after it.
        await until(lambda: not self._given_up() and self._is_at_rest())
        fates, _ = self._expected()
        assert self.database.parked.keys() == {p for p, fate in fates.items() if fate == "waits"}
        (worker,) = self.workers
        assert worker.consumer._counts().parked_records == len(self.database.parked)
        self.world.now_ns += DEADLINE_NS
        await until(lambda: not self.database.parked and self._is_at_rest())
        for letters in self._dead_lettered().values():
            self._check_waiting([headers_of(letter) for letter in letters])

    def _check_waiting(self, letters: list[dict[str, str]]) -> None:
        """Dead letters of one record agree, and nothing was given up before its time."""
        assert len({letter["x-dlq-reason"] for letter in letters}) == 1
        for said in letters:
            assert (said["x-dlq-reason"] not in GIVEN_UP) or "x-dlq-parked-at" in said
            if said["x-dlq-reason"] == "orphan-lifecycle":
                failed_ns, _ = parse_timestamp(said["x-dlq-failed-at"])
                parked_ns, _ = parse_timestamp(said["x-dlq-parked-at"])
                assert failed_ns - parked_ns >= DEADLINE_NS

    def _expected_positions(self) -> dict[str, ModelPosition]:
        return self._expected()[1].positions

    def _expected(self) -> tuple[dict[Place, str], Books]:
        """Give every record its fate, by the table of the life cycle written down once more.

        When the deadline of one passes depends on how fast the workers are: what was given up is
        taken from the ledger.
        """
        fates: dict[Place, str] = {}
        books = Books(self.new_position)
        known: dict[str, list[tuple[Any, ...]]] = {}  # contents by version, from 1 on
        waiting: dict[str, dict[Place, dict[str, Any]]] = defaultdict(dict)
        letters = self.database.dead_letters.items()
        given_up = {place for place, row in letters if row["reason"] in GIVEN_UP}
        given_up |= self._given_up()
        for partition in range(PARTITIONS):
            for record in self.world.broker.records(TRADES, partition):
                place = partition, record.offset
                try:
                    row = {"action": "NEW", "version": None} | body_of(record)
                except ValueError:
                    fates[place] = "dead"
                    continue
                if HOME[row["symbol"]] != partition:
                    fates[place] = "moved"
                    continue
                versions, waits = known.setdefault(row["trade_id"], []), waiting[row["trade_id"]]
                waits[place] = row
                fates[place] = "waits"
                if place in given_up:
                    assert self._judged(versions, row) == "waits"
                    fates[place] = "dead"
                    del waits[place]
                while (due := self._due(versions, waits)) is not None:
                    row = waits.pop(due)
                    fates[due] = self._judged(versions, row)
                    if fates[due] == "booked":
                        versions.append(self._content(row))
                        books.apply(row, due[1])
        return fates, books

    def _given_up(self) -> set[Place]:
        return {p for p, row in self.database.parked.items() if row["reason"] in GIVEN_UP}

    def _due(
        self, versions: list[tuple[Any, ...]], waits: Mapping[Place, dict[str, Any]]
    ) -> Place | None:
        """Give what is judged next of the events of a trade: by version, then as they came."""
        order = sorted(waits, key=lambda place: (waits[place]["version"] or 99, place))
        return next((p for p in order if self._judged(versions, waits[p]) != "waits"), None)

    @staticmethod
    def _content(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(n) for n in ("action", "side", "price", "quantity", "currency"))

    def _judged(self, versions: list[tuple[Any, ...]], row: dict[str, Any]) -> str:
        content = self._content(row)
        version = row["version"] or (1 if row["action"] == "NEW" else None)
        if version is None and not versions:
            return "waits"
        if version is None and content in versions:
            return "duplicate"
        version = version or len(versions) + 1
        if version <= len(versions):
            if versions[version - 1] != content:
                return "dead"
            return "duplicate" if version == len(versions) else "stale"
        is_over = bool(versions) and versions[-1][0] == "CANCEL"
        is_dead = is_over or (row["action"] == "NEW") != (version == 1)
        if not is_dead and version > len(versions) + 1:
            return "waits"
        # The currency is not the one of the position.
        return "dead" if is_dead or row.get("currency") else "booked"


class FifoLedgerModel(LedgerModel):
    """The same with every book kept first in, first out."""

    new_position = FifoModelPosition
    more_settings: ClassVar[dict[str, Any]] = {"fifo_books": "*", "database_url": "embedded"}

    def _check_lots(self, key: str, expected: ModelPosition) -> None:
        """They are stored with the position, one for each fill that is open, oldest first."""
        assert isinstance(expected, FifoModelPosition)
        assert self.database.positions[HOME[key], key].endswith("\tfifo")
        lots = [line.split("\t") for _, line in sorted(self.database.lots[HOME[key], key].items())]
        assert [(Decimal(lot[3]), Decimal(lot[4])) for lot in lots] == expected.lots
        numbers = [int(lot[2]) for lot in lots]
        assert not numbers or numbers == [*range(numbers[0], numbers[-1] + 1)]


IS_LONG: Final = settings().max_examples >= 10_000  # HYPOTHESIS_PROFILE=long
pytestmark = [pytest.mark.timeout(0)] if IS_LONG else []  # it takes from 7 to 25 minutes
EXAMPLES: Final = settings(
    max_examples=max(150, settings().max_examples),
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestDeliveryModel = DeliveryModel.TestCase
TestDeliveryModel.settings = EXAMPLES
TestLedgerModel = LedgerModel.TestCase
TestLedgerModel.settings = EXAMPLES
TestFifoLedgerModel = FifoLedgerModel.TestCase
TestFifoLedgerModel.settings = settings(EXAMPLES, max_examples=EXAMPLES.max_examples // 3)
