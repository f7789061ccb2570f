"""Events that wait for another one of their trade, in the loop: over restarts, to the deadline."""

from typing import Any, Final

import pytest

from app.config import IdentityScope
from app.memory_io import Fault, MemoryDatabase, MemoryLedger
from app.ports import LedgerWrite
from app.timestamps import parse_timestamp
from tests.memory_world import (
    DEAD_LETTERS,
    NOW_MS,
    TRADES,
    Worker,
    World,
    headers_of,
    symbols_of,
    trade,
    until,
)
from tests.virtual_time import virtual_time

(SYMBOL,) = symbols_of(0, 1)
DEADLINE_S: Final = 60
NEW: Final = trade(SYMBOL, quantity="100", trade_id="T")
AMEND: Final = trade(SYMBOL, quantity="90", trade_id="T", action="AMEND", version=2)
CANCEL: Final = trade(SYMBOL, quantity="90", trade_id="T", action="CANCEL", version=3)


class Desk(World):
    """A world with a ledger; what is published stands in the first partition."""

    def __init__(self, **settings: Any) -> None:
        self.tables = MemoryDatabase()
        super().__init__(self.tables, **({"park_deadline_s": DEADLINE_S} | settings))

    def publish(self, *values: bytes) -> None:
        """Put trades into the topic."""
        for value in values:
            self.broker.append(
                TRADES, value, key=b"some key", headers=[("sender", b"desk\x00")], partition=0
            )

    def let_time_pass(self, seconds: int) -> None:
        """Move the clock of every worker."""
        self.now_ns += seconds * 1_000_000_000

    @property
    def booked(self) -> list[tuple[int, str, str]]:
        """Offset, version and action of what is booked."""
        rows = sorted(self.tables.trades.items())
        return [(place[1], row["version"], row["action"]) for place, row in rows]

    @property
    def waiting(self) -> list[int]:
        """Offsets of what is parked."""
        return sorted(offset for _, offset in self.tables.parked)

    @property
    def letters(self) -> list[tuple[int, str]]:
        """Offset and reason of each dead letter, as often as it was sent."""
        said = [headers_of(record) for record in self.broker.records(DEAD_LETTERS)]
        return sorted((int(s["__dlq.errors.offset"]), s["x-dlq-reason"]) for s in said)

    @property
    def is_committed(self) -> bool:
        """Whether the group has passed everything."""
        return self.committed == self.ends


def conservation(worker: Worker) -> tuple[int, int]:
    """Give what is out of balance, and what is parked."""
    counts = worker.consumer._counts()
    return counts.conservation, counts.parked_records


@pytest.mark.parametrize(
    "order", [(NEW, AMEND, CANCEL), (CANCEL, AMEND, NEW), (AMEND, NEW, CANCEL)]
)
@virtual_time
async def test_events_of_a_trade_may_come_in_any_order(order: tuple[bytes, ...]) -> None:
    """Each by another worker; whatever was parked is booked at its own place."""
    desk = Desk()
    for value in order[:-1]:
        desk.publish(value)
        await desk.consume()
        assert desk.is_committed
        assert not desk.letters
    desk.publish(order[-1])
    stats = await desk.consume()
    assert {(version, action) for _, version, action in desk.booked} == {
        ("1", "NEW"),
        ("2", "AMEND"),
        ("3", "CANCEL"),
    }
    assert desk.waiting == []
    assert stats.fates.total() == (3 if order[-1] == NEW else 1)
    (position,) = desk.newest_positions().values()
    assert (position.get("quantity"), position.get("trade_count")) == (None, None)
    booking = {CANCEL: 2, NEW: 2}[order[-1]]
    assert position["source"]["offset"] == booking


@virtual_time
async def test_what_waits_in_vain_is_dead_lettered_although_nothing_else_comes() -> None:
    """At its deadline, with all that it was, and when its waiting began; it counts once."""
    desk = Desk()
    desk.publish(AMEND)
    await desk.consume()
    desk.let_time_pass(1)
    worker = desk.worker()
    await worker.start()
    await until(lambda: desk.is_committed and worker.consumer._open.keys() == {0, 1})
    assert conservation(worker) == (0, 1)
    desk.let_time_pass(DEADLINE_S - 2)
    desk.publish(trade(SYMBOL, trade_id="U"))
    await until(lambda: worker.consumer.stats.fates.total() == 1)
    assert (desk.waiting, desk.letters) == ([0], [])
    desk.let_time_pass(1)
    await until(lambda: worker.consumer.stats.fates.total() == 2)
    assert conservation(worker) == (0, 0)
    stats = await worker.finish()
    assert stats.fates == {"booked": 1, "dead_lettered": 1}
    assert stats.reasons == {"orphan-lifecycle": 1}
    assert desk.tables.parked == {}
    assert desk.tables.dead_letters[0, 0]["reason"] == "orphan-lifecycle"
    (letter,) = desk.broker.records(DEAD_LETTERS)
    assert (letter.key, letter.value, letter.timestamp) == (b"some key", AMEND, NOW_MS)
    assert letter.headers[0] == ("sender", b"desk\x00")
    said = headers_of(letter)
    assert said["__dlq.errors.partition"] == said["__dlq.errors.offset"] == "0"
    assert parse_timestamp(said["x-dlq-parked-at"])[0] == NOW_MS * 1_000_000
    assert parse_timestamp(said["x-dlq-failed-at"])[0] == desk.now_ns


@virtual_time
async def test_what_was_parked_by_a_fast_clock_holds_up_nothing_else() -> None:
    """The clock is set back: what is parked after that has its own deadline."""
    desk = Desk()
    worker = desk.worker()
    await worker.start()
    desk.let_time_pass(100 * DEADLINE_S)
    desk.publish(AMEND)
    await until(lambda: desk.is_committed)
    desk.let_time_pass(-100 * DEADLINE_S)
    desk.publish(trade(SYMBOL, trade_id="U", action="CANCEL"))
    await until(lambda: desk.is_committed and desk.waiting == [0, 1])
    desk.let_time_pass(DEADLINE_S)
    await until(lambda: desk.letters == [(1, "orphan-lifecycle")])
    desk.let_time_pass(100 * DEADLINE_S)
    await until(lambda: desk.waiting == [])
    stats = await worker.finish()
    assert stats.reasons == {"orphan-lifecycle": 2}


@virtual_time
async def test_an_outage_makes_no_orphans() -> None:
    """What is not read yet is read before anything is given up, however late it has become."""
    desk = Desk()
    desk.publish(AMEND)
    await desk.consume()
    desk.publish(NEW)
    desk.let_time_pass(100 * DEADLINE_S)
    stats = await desk.consume()
    assert stats.fates == {"booked": 2}
    assert desk.booked == [(0, "2", "AMEND"), (1, "1", "NEW")]
    assert desk.letters == []


@virtual_time
async def test_who_hears_nothing_of_a_partition_gives_up_nothing_of_it() -> None:
    """What is awaited may stand in the log by now, in time, where a running worker is cut off."""
    desk = Desk()
    desk.publish(AMEND)
    worker = desk.worker()
    await worker.start()
    await until(lambda: desk.is_committed and len(worker.consumer._open) == 2)
    worker.source.pause([0])
    desk.let_time_pass(DEADLINE_S // 2)
    desk.publish(NEW)
    desk.let_time_pass(DEADLINE_S)
    desk.broker.append(TRADES, trade(*symbols_of(1, 1), trade_id="U"), partition=1)
    await until(lambda: desk.committed.get(1) == 1)
    worker.source.resume([0])
    await until(lambda: desk.is_committed)
    stats = await worker.finish()
    assert stats.fates == {"booked": 3}
    assert desk.letters == []


@virtual_time
async def test_a_partition_that_is_behind_counts_by_the_times_of_the_log() -> None:
    """What came in time is in time; what stands behind the deadline in the log is not."""
    desk = Desk(consumer_chunk_records=1)
    desk.publish(AMEND)
    await desk.consume()
    desk.let_time_pass(2 * DEADLINE_S)
    desk.publish(*(trade(SYMBOL, trade_id=f"X{n}") for n in range(200)), NEW)
    worker = desk.worker()
    worker.source.max_records = 2
    await worker.start(until_caught_up=True)
    stats = await worker.finish_by_itself()
    assert stats.fates == {"booked": 201, "dead_lettered": 1}
    assert desk.letters == [(0, "orphan-lifecycle")]


@virtual_time
async def test_a_dead_letter_whose_end_is_not_stored_is_sent_again() -> None:
    """The worker dies between the dead letter and the row: the next one knows what was decided."""
    desk = Desk()
    desk.publish(AMEND)
    await desk.consume()
    desk.let_time_pass(DEADLINE_S)
    worker = desk.worker()
    assert worker.ledger is not None
    calls: list[str] = []

    def only_one_write(operation: str) -> Fault:
        calls.append(operation)
        return (
            Fault.UNKNOWN_LOST if calls.count("write") > 1 and operation == "write" else Fault.NONE
        )

    worker.ledger.faults = only_one_write
    await worker.start()
    await until(lambda: desk.letters == [(0, "orphan-lifecycle")])
    await worker.crash()
    assert desk.tables.parked[0, 0]["reason"] == "orphan-lifecycle"
    desk.publish(NEW)
    stats = await desk.consume()
    assert stats.fates == {"dead_lettered": 1, "booked": 1}
    assert set(desk.letters) == {(0, "orphan-lifecycle")}
    assert desk.booked == [(1, "1", "NEW")]
    assert (desk.waiting, desk.is_committed) == ([], True)


@pytest.mark.parametrize("fault", [Fault.UNKNOWN_STORED, Fault.UNKNOWN_LOST])
@virtual_time
async def test_every_write_of_what_waits_may_be_repeated(fault: Fault) -> None:
    """An answer that was lost changes nothing, whichever transaction it was of."""
    desk = Desk()
    worker = desk.worker()
    assert worker.ledger is not None
    script = [False]

    def every_other_write(operation: str) -> Fault:
        if operation != "write":
            return Fault.NONE
        script.append(not script[-1])
        return fault if script[-1] else Fault.NONE

    desk.publish(AMEND)
    await desk.consume()
    worker.ledger.faults = every_other_write
    await worker.start()
    desk.publish(trade(SYMBOL, trade_id="U", action="CANCEL"), NEW)
    await until(lambda: desk.is_committed and desk.waiting == [1])
    assert desk.booked == [(0, "2", "AMEND"), (2, "1", "NEW")]
    desk.let_time_pass(DEADLINE_S)
    await until(lambda: desk.waiting == [])
    assert desk.letters == [(1, "orphan-lifecycle")]
    assert desk.tables.dead_letters.keys() == {(0, 1)}
    await until(lambda: conservation(worker) == (0, 0))
    stats = await worker.finish()
    assert stats.fates == {"booked": 2, "dead_lettered": 1}


@virtual_time
async def test_what_finds_no_space_is_dead_lettered_at_once() -> None:
    """The intake goes on, and nothing is dropped."""
    desk = Desk(park_max=1, dlq_breaker_share=1)
    others = [trade(SYMBOL, trade_id=f"U{n}", action="CANCEL") for n in range(3)]
    desk.publish(AMEND, *others, NEW)
    stats = await desk.consume()
    assert stats.fates == {"booked": 2, "dead_lettered": 3}
    assert desk.letters == [(n, "park-overflow") for n in (1, 2, 3)]
    assert desk.waiting == []
    assert {place[1] for place in desk.tables.dead_letters} == {1, 2, 3}


@virtual_time
async def test_a_flood_that_finds_no_space_stops_the_partition() -> None:
    """As any other flood of dead letters; what was parked before stays, and nothing is sent."""
    desk = Desk(park_max=10)
    cancels = [trade(SYMBOL, trade_id=f"U{n}", action="CANCEL") for n in range(400)]
    desk.publish(*cancels[:10])
    await desk.consume()
    desk.publish(*cancels[10:])
    worker = desk.worker()
    await worker.start()
    await until(lambda: 0 in worker.consumer.stats.stopped)
    assert "park-overflow" in worker.consumer.stats.stopped[0]
    assert conservation(worker)[0] == 0
    await worker.finish()
    assert len(desk.letters) < 210
    assert desk.waiting == list(range(10))


@virtual_time
async def test_parked_records_change_their_owner() -> None:
    """Back and forth: each owner balances, and what another one has released is not kept."""
    desk = Desk()
    desk.publish(CANCEL)
    first = desk.worker()
    await first.start()
    await until(lambda: desk.is_committed and conservation(first) == (0, 1))
    second = desk.worker()
    await second.start()
    await until(lambda: len(first.consumer._open) == len(second.consumer._open) == 1)
    assert sorted([conservation(first), conservation(second)]) == [(0, 0), (0, 1)]
    await (first if conservation(first) == (0, 0) else second).finish()
    (left,) = [worker for worker in (first, second) if worker.task and not worker.task.done()]
    await until(lambda: len(left.consumer._open) == 2)
    assert conservation(left) == (0, 1)
    desk.publish(AMEND, NEW)
    await until(lambda: desk.is_committed and conservation(left) == (0, 0))
    stats = await left.finish()
    assert stats.fates == {"booked": 3}
    assert len(desk.booked) == 3


@virtual_time
async def test_without_a_ledger_nothing_waits() -> None:
    """A change needs one, as ever."""
    world = World()
    world.broker.append(TRADES, AMEND, partition=0)
    stats = await world.consume()
    assert stats.reasons == {"lifecycle-unavailable": 1}


@virtual_time
async def test_a_window_leaves_alone_what_is_parked() -> None:
    """It waits until all trades are known again."""
    desk = Desk()
    desk.publish(AMEND)
    await desk.consume()
    desk.settings = desk.settings.model_copy(update={"identity": IdentityScope.WINDOW})
    desk.publish(trade(SYMBOL, trade_id="U"))
    await desk.consume()
    assert desk.waiting == [0]
    desk.settings = desk.settings.model_copy(update={"identity": IdentityScope.FULL})
    desk.publish(NEW)
    await desk.consume()
    assert (desk.waiting, len(desk.booked)) == ([], 3)


@virtual_time
async def test_state_is_kept_only_while_the_same_records_are_parked() -> None:
    """No offset moves when another owner gives a record up: what is parked tells of it."""
    desk = Desk()
    desk.publish(AMEND)
    await desk.consume()
    worker = desk.worker()
    takeover = worker.consumer._takeover
    await worker.source.start()
    partition = await takeover.take_over(0, None)
    assert await takeover.take_over(0, partition) is partition
    worker.source.crash()
    desk.let_time_pass(DEADLINE_S)
    other = desk.worker()
    await other.start()
    await until(lambda: desk.letters == [(0, "orphan-lifecycle")])
    await other.finish()
    await worker.source.start()
    again = await takeover.take_over(0, partition)
    assert again is not partition
    assert partition.processor.parked == {0}
    assert not again.processor.parked


@virtual_time
async def test_a_former_owner_sends_no_dead_letter_of_what_waits() -> None:
    """The ledger refuses its refusal first: the record has its fate by another owner."""
    desk = Desk()
    desk.publish(AMEND)
    worker = desk.worker()
    await worker.start()
    await until(lambda: desk.is_committed and len(worker.consumer._open) == 2)
    owner = MemoryLedger(desk.tables)
    assert await owner.claim(0) == 1
    assert await owner.write({0: LedgerWrite(1, 1, released=[0])}) == {}
    desk.let_time_pass(DEADLINE_S)
    await until(lambda: desk.tables.owners[0] is worker.ledger)
    desk.publish(NEW)
    await until(lambda: desk.is_committed)
    await worker.finish()
    assert desk.letters == []
    assert desk.booked == [(1, "1", "NEW")]
