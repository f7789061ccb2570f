"""TradeConsumer on a broker in memory: effects before commits, gaps, rebalances, backpressure."""

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app import checkpointer, consumer
from app.checkpoint import FlushResult, PartitionEffects, flush
from app.errors import TopicError
from app.health import Unready
from app.ledger_codec import read_position
from app.memory_io import (
    Fault,
    MemoryDatabase,
    MemoryLogReader,
    MemoryPublisher,
    nth,
    partition_for,
)
from app.memory_io.broker import PartitionLog
from app.models import Fate
from app.money import ONE_E8
from app.ports import OutgoingRecord, SendOutcome
from app.position_codec import encode_heartbeat
from app.rebuild import rebuild_partition
from app.views import PositionsView
from tests.memory_world import (
    DEAD_LETTERS,
    GROUP,
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
from tests.virtual_time import virtual_time

(HERE, OTHER), (THERE,) = symbols_of(0, 2), symbols_of(1, 1)
POISON = b'{"trade_id": '


def put(world: World, *values: bytes | None, partition: int = 0, key: bytes | None = None) -> None:
    """Append records to one partition of the trades."""
    for value in values:
        world.broker.append(TRADES, value, key=key, partition=partition)


async def started(world: World) -> Worker:
    """Start a worker and wait until it reads both partitions."""
    worker = world.worker()
    await worker.start()
    await until(lambda: len(worker.consumer._open) == 2)
    return worker


@virtual_time
async def test_every_record_gets_one_fate() -> None:
    """Fates add up to the records, commits stand at the ends, positions are stored."""
    world = World()
    put(world, trade(HERE), trade(HERE, "SELL", "12"), POISON, trade(OTHER), trade(THERE))
    stats = await world.consume()
    assert +stats.fates == {Fate.BOOKED: 4, Fate.DEAD_LETTERED: 1, Fate.REKEYED: 1}
    assert stats.total == sum(world.ends.values()) == 6
    assert world.committed == world.ends
    stored = world.newest_positions()
    assert stored.keys() == {HERE, OTHER, THERE}
    assert stored[HERE]["realized_pnl"] == "2"


@virtual_time
async def test_a_dead_letter_is_the_original_with_reasons_in_headers() -> None:
    """Bytes, key, headers and partition number stay; an empty value stands for a null one."""
    world = World()
    headers = [("trace", b"\x01"), ("trace", b"\x02")]
    world.broker.append(TRADES, POISON, key=b"\xff", headers=headers, partition=1)
    put(world, None, partition=1)
    await world.consume()
    assert world.broker.records(DEAD_LETTERS, 0) == []
    poison, tombstone = world.broker.records(DEAD_LETTERS, 1)
    assert (poison.key, poison.value) == (b"\xff", POISON)
    assert list(poison.headers)[:2] == headers
    said = headers_of(poison)
    assert said["__dlq.errors.topic"] == TRADES
    assert (said["__dlq.errors.partition"], said["__dlq.errors.offset"]) == ("1", "0")
    assert said["x-dlq-reason"] == "body-not-json"
    assert tombstone.value == b""
    assert headers_of(tombstone)["x-dlq-value-was-null"] == "true"


@virtual_time
async def test_dead_letters_get_through_a_slow_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than one transaction waits for: the next one goes on with what is left."""
    world = World(MemoryDatabase(), consumer_chunk_records=500, dlq_breaker_share=1)
    worker = world.worker()
    publish = worker.publisher.publish

    async def slowly(records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        outcomes = await publish(records)
        await asyncio.sleep(0.03 * len(records))
        return outcomes

    monkeypatch.setattr(worker.publisher, "publish", slowly)
    put(world, *[POISON] * 400)
    await worker.start()
    await until(lambda: world.committed == {0: 400, 1: 0})
    stats = await worker.finish()
    assert +stats.fates == {Fate.DEAD_LETTERED: 400}
    letters = [headers_of(r)["__dlq.errors.offset"] for r in world.broker.records(DEAD_LETTERS)]
    assert {int(offset) for offset in letters} == set(range(400))
    assert len(letters) < 2 * 400


@virtual_time
async def test_a_refused_dead_letter_does_not_send_those_of_others_again() -> None:
    """The transaction is made anew without its partition; what has left has left."""
    world = World(MemoryDatabase())
    worker = world.worker()
    worker.publisher.faults = lambda record: (
        Fault.REFUSED if record.topic == DEAD_LETTERS and record.partition == 0 else Fault.NONE
    )
    put(world, POISON)
    put(world, POISON, partition=1)
    await worker.start()
    await until(lambda: world.committed.get(1) == 1)
    stats = await worker.finish()
    assert stats.stopped.keys() == {0}
    assert len(world.broker.records(DEAD_LETTERS)) == 1


@pytest.mark.parametrize("fault", [Fault.NOT_SENT, Fault.UNKNOWN_LOST, Fault.UNKNOWN_STORED])
@pytest.mark.parametrize("topic", [DEAD_LETTERS, POSITIONS, TRADES])
@virtual_time
async def test_no_commit_passes_an_effect_that_is_not_acknowledged(
    topic: str, fault: Fault
) -> None:
    """While dead letters, positions or re-keyed trades are not acked, the commit waits for them."""
    world = World()
    put(world, trade(HERE), POISON, trade(THERE))
    worker = world.worker()
    attempts = 0
    is_down = True

    def faults(record: OutgoingRecord) -> Fault:
        nonlocal attempts
        attempts += record.topic == topic
        return fault if record.topic == topic and is_down else Fault.NONE

    worker.publisher.faults = faults
    await worker.start()
    await until(lambda: attempts > 5)
    assert world.committed.get(0, 0) == 0
    is_down = False
    await until(lambda: world.committed == world.ends)
    await worker.finish()
    assert {headers_of(r)["__dlq.errors.offset"] for r in world.broker.records(DEAD_LETTERS)} == {
        "1"
    }
    assert world.newest_positions().keys() == {HERE, THERE}


@virtual_time
async def test_a_refused_effect_stops_its_partition_alone() -> None:
    """What the broker will never take waits for a person; the other partition goes on."""
    world = World()
    put(world, POISON, partition=0)
    put(world, trade(THERE), partition=1)
    worker = world.worker()
    worker.publisher.faults = lambda r: Fault.REFUSED if r.topic == DEAD_LETTERS else Fault.NONE
    await worker.start()
    await until(lambda: 0 in worker.consumer.stats.stopped)
    put(world, trade(THERE), partition=1)
    await until(lambda: world.committed == {0: 0, 1: 2})
    stats = await worker.finish()
    assert "refused" in stats.stopped[0]


@pytest.mark.parametrize("key", [None, b"elsewhere", THERE.encode()])
@virtual_time
async def test_a_misplaced_trade_moves_to_its_own_partition(key: bytes | None) -> None:
    """It is republished with its key and origin, and booked there; its bytes are the same."""
    world = World()
    put(world, trade(THERE), partition=0, key=key)
    stats = await world.consume()
    assert +stats.fates == {Fate.REKEYED: 1, Fate.BOOKED: 1}
    (copy,) = world.broker.records(TRADES, 1)
    assert (copy.key, copy.value) == (THERE.encode(), trade(THERE))
    assert headers_of(copy) == {"x-rekeyed-from": f"{TRADES}/0/0"}


@virtual_time
async def test_a_well_placed_trade_is_booked_whatever_its_key() -> None:
    """What counts is the partition."""
    world = World()
    put(world, trade(HERE), partition=0, key=b"any")
    put(world, trade(HERE), partition=0, key=None)
    stats = await world.consume()
    assert +stats.fates == {Fate.BOOKED: 2}


@pytest.mark.parametrize(
    ("mode", "fate"), [("dead-letter", Fate.DEAD_LETTERED), ("accept", Fate.BOOKED)]
)
@virtual_time
async def test_other_modes_do_not_move_a_misplaced_trade(mode: str, fate: Fate) -> None:
    """KEY_MISMATCH=dead-letter refuses it, KEY_MISMATCH=accept books it where it stands."""
    world = World(key_mismatch=mode)
    put(world, trade(THERE), partition=0)
    stats = await world.consume()
    assert +stats.fates == {fate: 1}
    assert world.ends == {0: 1, 1: 0}


@virtual_time
async def test_a_second_copy_after_a_crash_is_booked_once() -> None:
    """A move that was stored and not committed is repeated; its second copy is a duplicate."""
    world = World()
    worker = await started(world)
    worker.source.faults = lambda name: Fault.UNKNOWN_LOST if name == "commit" else Fault.NONE
    put(world, trade(THERE), trade(THERE, "SELL"), partition=0)
    await until(lambda: world.ends[1] == 2)
    await worker.crash()
    stats = await world.consume()
    assert world.ends[1] == 4
    assert stats.fates[Fate.DUPLICATE] == 2
    assert world.newest_positions()[THERE]["trade_count"] == 2


@virtual_time
async def test_what_was_stored_and_not_committed_is_not_booked_twice() -> None:
    """A crash between the position's ack and the commit repeats the trade without effect."""
    world = World()
    worker = await started(world)
    worker.source.faults = lambda name: Fault.UNKNOWN_LOST if name == "commit" else Fault.NONE
    put(world, trade(HERE), trade(HERE))
    await until(lambda: HERE in world.newest_positions())
    await worker.crash()
    stats = await world.consume()
    assert +stats.fates == {Fate.BOOKED: 2}
    assert stats.already_applied == 2
    assert world.newest_positions()[HERE]["trade_count"] == 2


@virtual_time
async def test_a_first_start_commits_where_it_begins() -> None:
    """On an empty topic the start is committed at once, so that a later gap is seen."""
    world = World()
    await world.consume()
    assert world.committed == {0: 0, 1: 0}


@virtual_time
async def test_a_gap_at_start_stops_that_partition_only() -> None:
    """Records deleted before they were processed are named; the other partition goes on."""
    world = World()
    await world.consume()
    put(world, *[trade(HERE)] * 4, partition=0)
    put(world, trade(THERE), partition=1)
    world.broker.delete_records_before(TRADES, 0, 3)
    stats = await world.consume()
    assert world.committed == {0: 0, 1: 1}
    assert "offsets 0 to 2 (3 records)" in stats.stopped[0]


@virtual_time
async def test_a_gap_while_running_stops_that_partition_only() -> None:
    """A position that falls out of the log stops its partition; the other one still commits."""
    world = World()
    put(world, *[trade(HERE)] * 3, partition=0)
    worker = world.worker()
    await worker.start()
    await until(lambda: world.committed == {0: 3, 1: 0})
    world.broker.truncate(TRADES, 0, 1)
    await until(lambda: 0 in worker.consumer.stats.stopped)
    put(world, trade(THERE), partition=1)
    await until(lambda: world.committed[1] == 1)
    stats = await worker.finish()
    assert "truncated" in stats.stopped[0]


@virtual_time
async def test_on_gap_continue_goes_on_with_what_is_there() -> None:
    """With ON_GAP=continue the partition starts at the first record that is left."""
    world = World(on_gap="continue")
    await world.consume()
    put(world, *[trade(HERE)] * 4, partition=0)
    world.broker.delete_records_before(TRADES, 0, 3)
    stats = await world.consume()
    assert +stats.fates == {Fate.BOOKED: 1}
    assert world.committed == world.ends
    assert stats.stopped == {}


@virtual_time
async def test_lost_commits_beside_known_positions_are_a_gap() -> None:
    """A group whose offsets have expired does not start from the beginning in silence."""
    world = World()
    put(world, trade(HERE))
    await world.consume()
    world.broker.set_committed(GROUP, TRADES, 0, None)
    stats = await world.consume()
    assert "no committed offset" in stats.stopped[0]


@virtual_time
async def test_positions_of_another_group_end_the_run() -> None:
    """The error says which setting keeps the groups apart."""
    world = World()
    value = encode_heartbeat(group="somebody", topic=TRADES, partition=0, offset=1, partitions=2)
    world.broker.append(POSITIONS, value, key=b"\x00owner", partition=0)
    with pytest.raises(TopicError, match="set POSITIONS_TOPIC"):
        await world.consume()


@virtual_time
async def test_a_rebalance_finishes_the_work_in_hand_first() -> None:
    """When a second member joins, everything processed is committed before partitions move."""
    world = World()
    first, second = world.worker(), world.worker()
    await first.start()
    await until(lambda: world.committed == world.ends)
    put(world, *[trade(HERE)] * 5, partition=0)
    put(world, *[trade(THERE)] * 5, partition=1)
    await until(lambda: [p.next_offset for p in first.consumer._open.values()] == [5, 5])
    await second.start()
    await until(lambda: len(second.source.assignment.partitions) == 1)
    assert world.committed == world.ends
    stats = [await first.finish(), await second.finish()]
    assert sum(s.total for s in stats) == 10
    assert sum(s.already_applied for s in stats) == 0


@virtual_time
async def test_a_partition_that_returns_unchanged_keeps_its_state() -> None:
    """After a rebalance nothing is read again that nobody else has written meanwhile."""
    world = World()
    put(world, trade(HERE), partition=0)
    put(world, trade(THERE), partition=1)
    first, second = world.worker(), world.worker()
    await first.start()
    await until(lambda: world.committed == world.ends)
    reads: list[str] = []

    def note(operation: str) -> Fault:
        reads.append(operation)
        return Fault.NONE

    first.reader.faults = note
    await second.start()
    await until(lambda: len(first.source.assignment.partitions) == 1)
    await until(lambda: len(first.consumer._open) == 1)
    assert "read" not in reads
    put(world, trade(HERE), partition=0)
    put(world, trade(THERE), partition=1)
    await until(lambda: world.committed == world.ends)
    await first.finish()
    await second.finish()
    assert {p["trade_count"] for p in world.newest_positions().values()} == {2}


@pytest.mark.parametrize("has_ledger", [False, True])
@virtual_time
async def test_a_repair_that_a_rebalance_breaks_off_is_made_again(*, has_ledger: bool) -> None:
    """An older state that a former owner put back does not stay the last one of its key."""
    world = World(MemoryDatabase() if has_ledger else None, consumer_takeover_margin=0)
    put(world, trade(HERE))
    await world.consume()
    old = world.broker.records(POSITIONS, 0)[-1]
    put(world, trade(HERE, "SELL"))
    await world.consume()
    world.broker.append(POSITIONS, old.value, key=old.key, partition=0)
    first, second = world.worker(), world.worker()
    first.publisher.faults = lambda _: Fault.NOT_SENT
    await first.start()
    await until(lambda: Unready.EFFECTS in first.health.ready())
    await second.start()
    await until(lambda: first.consumer._open.keys() == {0} and first.consumer._epoch == 2)
    first.publisher.faults = lambda _: Fault.NONE
    await until(lambda: body_of(world.broker.records(POSITIONS, 0)[-1]).get("trade_count") == 2)
    await first.finish()
    await second.finish()


async def left_without_partitions(world: World, worker: Worker) -> list[Worker]:
    """Let a worker be taken for dead, come back, and get nothing; give those that have it all."""
    worker.source.crash()
    others = [world.worker(), world.worker()]
    for other in others:
        await other.start()
    await until(lambda: all(len(other.consumer._open) == 1 for other in others))
    await worker.source.start()
    await until(lambda: worker.consumer._epoch == 2)
    assert not worker.source.assignment.partitions
    return others


@pytest.mark.parametrize("reason", [Unready.EFFECTS, Unready.COMMIT])
@virtual_time
async def test_what_a_rebalance_breaks_off_keeps_nobody_unready(reason: Unready) -> None:
    """A worker that is left without partitions waits for nothing."""
    world = World()
    worker = await started(world)
    if reason is Unready.EFFECTS:
        worker.publisher.faults = lambda _: Fault.NOT_SENT
    else:
        worker.source.faults = lambda o: Fault.UNKNOWN_LOST if o == "commit" else Fault.NONE
    put(world, trade(HERE))
    await until(lambda: reason in worker.health.ready())
    others = await left_without_partitions(world, worker)
    await until(lambda: worker.health.ready() == {})
    for each in (worker, *others):
        await each.finish()


@virtual_time
async def test_a_partition_that_stops_waits_for_no_commit() -> None:
    """What was not answered for it says nothing about the others."""
    world = World()
    worker = await started(world)
    worker.source.faults = lambda o: Fault.UNKNOWN_LOST if o == "commit" else Fault.NONE
    put(world, trade(HERE))
    await until(lambda: Unready.COMMIT in worker.health.ready())
    world.broker.truncate(TRADES, 0, 0)
    await until(lambda: 0 in worker.consumer.stats.stopped)
    await until(lambda: worker.health.ready().keys() == {Unready.STOPPED_PARTITIONS})
    await worker.finish()


@virtual_time
async def test_a_member_without_an_assignment_is_not_ready() -> None:
    """Between two of them nothing is open, for as long as another member takes to let go."""
    world = World()
    first, slow, third = world.worker(), world.worker(), world.worker()
    await slow.source.start()  # nobody runs it, so that it confirms when the test says so
    await first.start()
    slow.source.confirm_revocation()
    await until(lambda: first.health.ready() == {})
    await third.start()
    await until(lambda: first.consumer._open == {})
    await until(lambda: Unready.ASSIGNMENT in first.health.ready())
    assert not first.consumer.is_behind({0: 10, 1: 10})  # no reason to end it
    slow.source.confirm_revocation()
    await until(lambda: first.health.ready() == {})
    await first.finish()
    await third.finish()


@virtual_time
async def test_the_time_of_a_pause_counts_when_a_rebalance_ends_it() -> None:
    """Partitions that are revoked were paused until then."""
    world = World(commit_every=5)
    worker = await started(world)
    worker.publisher.hold()
    put(world, *[trade(HERE)] * 20)
    await until(lambda: worker.consumer._is_paused)
    await asyncio.sleep(10)
    other = world.worker()
    await other.start()
    await until(lambda: worker.consumer._epoch == 2 and not worker.consumer._is_paused)
    assert worker.consumer.stats.backpressure_s >= 10
    worker.publisher.release()
    await worker.finish()
    await other.finish()


@virtual_time
async def test_a_batch_of_an_older_assignment_is_thrown_away() -> None:
    """Records read before a rebalance are not processed after it: they come again."""
    world = World()
    worker = await started(world)
    put(world, trade(HERE), partition=0)
    (old,) = worker.source._fetch()
    worker.source.crash()
    await worker.source.start()
    await until(lambda: worker.consumer._epoch == 2 and len(worker.consumer._open) == 2)
    await worker.consumer._process(old)
    await until(lambda: world.committed == world.ends)
    stats = await worker.finish()
    assert +stats.fates == {Fate.BOOKED: 1}
    assert stats.already_applied == 0


@virtual_time
async def test_a_hanging_publisher_bounds_what_is_in_flight() -> None:
    """With no acks the partitions are paused near the bound, and go on when acks return."""
    world = World(commit_every=20)
    worker = await started(world)
    worker.source.max_records = 5
    worker.publisher.hold()
    put(world, *[trade(HERE)] * 200, partition=0)
    put(world, *[trade(THERE)] * 200, partition=1)
    await asyncio.sleep(30)
    in_flight = sum(p.next_offset - p.committed for p in worker.consumer._open.values())
    assert 20 <= in_flight <= 20 + 2 * worker.source.max_records
    worker.publisher.release()
    await until(lambda: world.committed == world.ends)
    assert +(await worker.finish()).fates == {Fate.BOOKED: 400}


@virtual_time
async def test_large_dead_letters_in_flight_are_bounded_by_their_bytes() -> None:
    """Few records may be much memory: with no acks the partition is paused near that bound."""
    size = 1024 * 1024
    world = World(dlq_breaker_share=1)
    worker = await started(world)
    worker.source.max_records = 2
    worker.publisher.hold()
    put(world, *[b"\0" * size] * 100)
    await asyncio.sleep(30)
    read = worker.consumer._open[0].next_offset
    assert (
        consumer._SEND_BYTES_IN_FLIGHT <= read * size <= consumer._SEND_BYTES_IN_FLIGHT + 2 * size
    )
    worker.publisher.release()
    await until(lambda: world.committed[0] == 100)
    assert +(await worker.finish()).fates == {Fate.DEAD_LETTERED: 100}


@virtual_time
async def test_a_flood_of_dead_letters_is_held_back() -> None:
    """Where too much is refused nothing of it leaves, good trades beside it wait, others flow."""
    world = World(consumer_chunk_records=500)
    put(world, *[trade(HERE)] * 150)
    worker = await started(world)
    await until(lambda: world.committed[0] == 150)
    worker.source.max_records = 150
    put(world, *[trade(HERE), POISON] * 150)
    put(world, *[trade(THERE)] * 300, partition=1)
    await until(lambda: worker.consumer.stats.stopped.keys() == {0})
    await until(lambda: world.committed.get(1) == 300)
    stats = await worker.finish()
    assert (
        "75 of the last 300 records were refused, at last mostly as body-not-json"
        in (stats.stopped[0])
    )
    assert not world.broker.records(DEAD_LETTERS)
    assert world.committed[0] == 150
    assert world.newest_positions()[HERE]["trade_count"] == 150


@virtual_time
async def test_no_position_leaves_ahead_of_a_flood_that_is_held_back() -> None:
    """A position that was to be written holds trades of the flood by then: it waits as well."""
    world = World(consumer_chunk_records=100)
    put(world, *[trade(HERE)] * 100, *[trade(HERE), POISON] * 50)
    worker = world.worker()
    await worker.start()
    await until(lambda: worker.consumer.stats.stopped.keys() == {0})
    await worker.finish()
    assert world.newest_positions() == {}
    assert world.committed[0] == 0


@virtual_time
async def test_a_flood_that_is_accepted_becomes_dead_letters() -> None:
    """What was held back is judged anew: each record gets its one fate."""
    world = World()
    put(world, *[trade(HERE), POISON] * 200)
    assert (await world.consume()).stopped.keys() == {0}
    world.settings = world.settings.model_copy(update={"dlq_breaker_share": 1.0})
    await world.consume()
    assert world.committed == world.ends
    offsets = [headers_of(r)["__dlq.errors.offset"] for r in world.broker.records(DEAD_LETTERS)]
    assert sorted(map(int, offsets)) == list(range(1, 400, 2))
    assert world.newest_positions()[HERE]["trade_count"] == 200


@virtual_time
async def test_refused_commits_do_not_spin() -> None:
    """A worker that is full and cannot commit waits between its attempts."""
    world = World(commit_every=5)
    worker = await started(world)
    worker.source.faults = lambda name: Fault.UNKNOWN_LOST if name == "commit" else Fault.NONE
    put(world, *[trade(HERE)] * 50, partition=0)
    await asyncio.sleep(10)
    worker.source.faults = nth("commit", 0)
    await until(lambda: world.committed == world.ends)
    assert +(await worker.finish()).fates == {Fate.BOOKED: 50}


@virtual_time
async def test_a_partition_opened_while_others_wait_is_held_too() -> None:
    """Backpressure covers a partition whose restore ends after the pause."""
    world = World(commit_every=5)
    await world.consume()
    put(world, *[trade(HERE)] * 50, partition=0)
    put(world, *[trade(THERE)] * 50, partition=1)
    worker = world.worker()
    worker.source.max_records = 5
    worker.source.faults = nth("committed", 2)
    worker.publisher.hold()
    await worker.start()
    await until(lambda: len(worker.consumer._open) == 2)
    await asyncio.sleep(10)
    in_flight = sum(p.next_offset - p.committed for p in worker.consumer._open.values())
    assert in_flight <= 15
    worker.publisher.release()
    await until(lambda: world.committed == world.ends)
    await worker.finish()


@virtual_time
async def test_a_partition_that_was_held_when_it_was_lost_goes_on() -> None:
    """It is restored while the others are let go on, and is not forgotten in its pause."""
    world = World(commit_every=5)
    put(world, trade(HERE))
    worker = await started(world)
    await until(lambda: world.committed == world.ends)
    worker.source.max_records = 5
    worker.publisher.hold()
    put(world, *[trade(HERE)] * 20)
    await until(lambda: worker.consumer._is_paused)
    record = world.broker.records(POSITIONS, 0)[-1]
    newer = body_of(record)
    newer["source"]["offset"] += 19
    world.broker.append(POSITIONS, json.dumps(newer).encode(), key=record.key, partition=0)
    worker.publisher.release()
    await until(lambda: world.committed == world.ends)
    assert +(await worker.finish()).fates == {Fate.BOOKED: 21}
    assert world.newest_positions()[HERE]["trade_count"] == 2  # the others are in what was found


@virtual_time
async def test_an_idle_owner_writes_heartbeats() -> None:
    """Each partition shows that its owner is alive, as often as the setting says."""
    world = World(positions_heartbeat_s=2.0)
    worker = world.worker()
    await worker.start()
    await asyncio.sleep(7)
    await worker.finish()
    for partition in (0, 1):
        beats = world.broker.records(POSITIONS, partition)
        assert {body_of(beat)["type"] for beat in beats} == {"heartbeat"}
        assert 3 <= len(beats) <= 4  # one more where a first start is noted
        assert {beat.key for beat in beats} == {b"\x00owner"}


@virtual_time
async def test_a_stop_is_bounded_when_publishes_hang() -> None:
    """The run ends within its bound, and what was not acked is not committed."""
    world = World()
    worker = await started(world)
    worker.publisher.hold()
    put(world, trade(HERE))
    await until(lambda: worker.consumer._open[0].next_offset == 1)
    began_s = asyncio.get_running_loop().time()
    await worker.finish()
    assert asyncio.get_running_loop().time() - began_s < world.settings.shutdown_graceful_timeout_s
    assert world.committed[0] == 0


@virtual_time
async def test_a_stop_commits_what_is_in_hand() -> None:
    """An orderly end leaves nothing to be read again."""
    world = World(commit_interval_ms=10_000)
    worker = await started(world)
    put(world, *[trade(HERE)] * 7)
    await until(lambda: worker.consumer._open[0].next_offset == 7)
    stats = await worker.finish()
    assert +stats.fates == {Fate.BOOKED: 7}
    assert world.committed[0] == 7


@virtual_time
async def test_short_flushes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one flush cannot take everything, those that have waited longest go first."""
    monkeypatch.setattr(consumer, "EFFECTS_A_FLUSH", 1)
    flushed: list[list[int]] = []

    async def noted(effects: dict[int, PartitionEffects], **options: Any) -> FlushResult:
        flushed.append(sorted(effects))
        return await flush(effects, **options)

    monkeypatch.setattr(checkpointer, "flush", noted)
    world = World(commit_interval_ms=10_000)
    worker = await started(world)
    worker.publisher.hold()
    put(world, trade(HERE))
    await until(lambda: flushed == [[0]])
    put(world, trade(HERE), trade(OTHER))
    put(world, trade(THERE), partition=1)
    await until(lambda: [p.next_offset for p in worker.consumer._open.values()] == [3, 1])
    worker.publisher.release()
    await until(lambda: len(flushed) == 3)
    assert flushed == [[0], [1], [0]]
    stats = await worker.finish()
    assert +stats.fates == {Fate.BOOKED: 4}
    assert world.committed == world.ends


@virtual_time
async def test_a_stop_flushes_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last flush knows no limit: every partition is committed to where it was read."""
    monkeypatch.setattr(consumer, "EFFECTS_A_FLUSH", 1)
    world = World(commit_interval_ms=10_000)
    worker = await started(world)
    worker.publisher.hold()
    put(world, trade(HERE))
    await until(lambda: bool(worker.consumer._checkpointer.working))
    put(world, trade(HERE), trade(OTHER))
    put(world, trade(THERE), partition=1)
    await until(lambda: [p.next_offset for p in worker.consumer._open.values()] == [3, 1])
    worker.publisher.release()
    worker.stop.set()
    stats = await worker.finish()
    assert +stats.fates == {Fate.BOOKED: 4}
    assert world.committed == world.ends


@pytest.mark.parametrize("number", range(1, 8))
@virtual_time
async def test_after_a_failed_poll_every_partition_is_sought_again(number: int) -> None:
    """A1: a poll that raises has moved positions; no record is lost by it, whenever it comes."""
    world = World()
    put(world, *[trade(HERE)] * 3, partition=0)
    put(world, *[trade(THERE)] * 3, partition=1)
    worker = world.worker()
    worker.source.max_records = 1
    worker.source.faults = nth("poll", number)
    await worker.start()
    await until(lambda: world.committed == world.ends)
    assert +(await worker.finish()).fates == {Fate.BOOKED: 6}


@pytest.mark.parametrize("operation", ["offset_ranges", "committed"])
@virtual_time
async def test_an_outage_while_restoring_is_waited_out(operation: str) -> None:
    """A broker that is away delays the opening of a partition, and nothing else."""
    world = World()
    put(world, trade(HERE))
    worker = world.worker()
    worker.source.faults = nth(operation, 1)
    worker.reader.faults = nth("read", 1)
    await worker.start()
    await until(lambda: world.committed == world.ends)
    assert +(await worker.finish()).fates == {Fate.BOOKED: 1}


@virtual_time
async def test_an_outage_while_a_gap_is_looked_at_is_waited_out() -> None:
    """The offsets that tell which partition has the gap may be late."""
    world = World()
    put(world, *[trade(HERE)] * 3)
    worker = world.worker()
    await worker.start()
    await until(lambda: world.committed == world.ends)
    worker.source.faults = nth("offset_ranges", 1)
    world.broker.truncate(TRADES, 0, 1)
    await until(lambda: 0 in worker.consumer.stats.stopped)
    await worker.finish()


@virtual_time
async def test_an_outage_while_a_foreign_write_is_judged_is_waited_out() -> None:
    """A late write of an older state is read when the broker is back, and mended."""
    world = World()
    put(world, trade(HERE))
    worker = world.worker()
    await worker.start()
    await until(lambda: world.committed == world.ends)
    old = world.broker.records(POSITIONS, 0)[-1]
    put(world, trade(HERE))
    await until(lambda: world.committed == world.ends)
    world.broker.append(POSITIONS, old.value, key=old.key, partition=0)
    worker.reader.faults = nth("read", 1)
    put(world, trade(OTHER))
    await until(lambda: world.committed == world.ends)
    await until(lambda: world.broker.records(POSITIONS, 0)[-1].key == HERE.encode())
    await worker.finish()
    assert body_of(world.broker.records(POSITIONS, 0)[-1])["trade_count"] == 2


@virtual_time
async def test_a_newer_state_of_a_late_owner_is_taken_over() -> None:
    """Where somebody has applied more of the source than we have, the partition is restored."""
    world = World()
    put(world, trade(HERE))
    worker = world.worker()
    await worker.start()
    await until(lambda: world.committed == world.ends)
    record = world.broker.records(POSITIONS, 0)[-1]
    newer = body_of(record)
    newer["source"]["offset"] += 1
    newer["trade_count"] = 2
    world.broker.append(POSITIONS, json.dumps(newer).encode(), key=record.key, partition=0)
    put(world, trade(OTHER))
    await until(lambda: world.committed == world.ends)
    put(world, trade(HERE))
    await until(lambda: world.committed == world.ends)
    await worker.finish()
    assert world.newest_positions()[HERE]["trade_count"] == 3
    assert world.newest_positions()[OTHER]["trade_count"] == 1


@virtual_time
async def test_positions_of_keys_that_moved_stop_their_partition() -> None:
    """After a raised partition count a key would start a second position: a person decides."""
    world = World()
    put(world, trade(HERE))
    await world.consume()
    record = world.broker.records(POSITIONS, 0)[-1]
    moved = json.dumps(body_of(record) | {"symbol": THERE}).encode()
    world.broker.append(POSITIONS, moved, key=THERE.encode(), partition=0)
    stats = await world.consume()
    assert stats.stopped.keys() == {0}
    assert "number of partitions was changed" in stats.stopped[0]


@virtual_time
async def test_rebuild_leaves_positions_of_another_group_alone() -> None:
    """Without its own POSITIONS_TOPIC a group cannot overwrite what another one owns."""
    world = World()
    put(world, trade(HERE))
    await world.consume()
    before = world.broker.records(POSITIONS)
    fenced: list[int] = []

    async def fence(next_offset: int) -> None:
        fenced.append(next_offset)

    with pytest.raises(TopicError, match="set POSITIONS_TOPIC"):
        await rebuild_partition(
            world.settings.model_copy(update={"kafka_group_id": "stranger"}),
            partition=0,
            committed=None,
            reader=MemoryLogReader(world.broker),
            publisher=MemoryPublisher(world.broker),
            partition_of=partition_for,
            fence=fence,
        )
    assert world.broker.records(POSITIONS) == before
    assert fenced == []


async def rebuild(world: World) -> None:
    """Make the positions anew from the trades, as where no DATABASE_URL is set."""

    async def fence(_: int) -> None:
        """Nobody runs."""

    for number in range(PARTITIONS):
        await rebuild_partition(
            world.settings,
            partition=number,
            committed=world.committed.get(number),
            reader=MemoryLogReader(world.broker),
            publisher=MemoryPublisher(world.broker),
            partition_of=partition_for,
            fence=fence,
        )


async def shown(world: World) -> dict[str, tuple[str, int]]:
    """Give quantity and generation of every position as readers of the topic see it."""
    view = PositionsView(MemoryLogReader(world.broker), POSITIONS)
    await view.refresh()
    return {record.key: (record.quantity, record.generation) for record in view.positions}


@virtual_time
async def test_positions_that_a_rebuild_spoilt_are_those_of_the_ledger_again() -> None:
    """By a takeover, also those that it never had; they stay so, and are written no more."""
    world = World(MemoryDatabase())
    put(world, trade(HERE, trade_id="T1", quantity="5"))
    put(world, trade(HERE, trade_id="T1", quantity="4", action="AMEND", version=2))
    await world.consume()
    assert await shown(world) == {HERE: ("4", 0)}
    # Without a window it books twice what the ledger knows, and knows no AMEND.
    put(world, *[trade(OTHER, trade_id="T1", quantity="9")] * 2)
    put(world, trade(THERE, trade_id="T2", quantity="7"), partition=1)
    await world.consume()
    await rebuild(world)
    assert await shown(world) == {HERE: ("5", 1), OTHER: ("18", 1), THERE: ("7", 1)}
    await world.consume()
    assert await shown(world) == {HERE: ("4", 2), OTHER: ("0", 2), THERE: ("7", 1)}
    put(world, trade(HERE, trade_id="T3"), trade(OTHER, trade_id="T4"))
    await world.consume()
    assert await shown(world) == {HERE: ("5", 2), OTHER: ("1", 2), THERE: ("7", 1)}
    written = len(world.broker.records(POSITIONS))
    await world.consume()
    assert len(world.broker.records(POSITIONS)) == written


@virtual_time
async def test_a_new_positions_topic_is_filled_from_the_ledger() -> None:
    """With all that is booked, and what comes next."""
    world = World(MemoryDatabase())
    put(world, trade(HERE, quantity="5"), trade(OTHER, quantity="2"))
    await world.consume()
    world.broker.create_topic(POSITIONS, PARTITIONS)
    put(world, trade(HERE, "SELL"))
    await world.consume()
    assert await shown(world) == {HERE: ("4", 0), OTHER: ("2", 0)}


@virtual_time
async def test_trades_made_anew_take_a_new_ledger() -> None:
    """The old one stays where it is, and says the way out, which is tried here."""
    world = World(MemoryDatabase())
    put(world, trade(HERE), trade(HERE, "SELL"))
    await world.consume()
    world.broker.create_topic(TRADES, PARTITIONS)
    put(world, trade(HERE, quantity="3"))
    stats = await world.consume()
    assert re.search(
        "was truncated or made anew. Set a new KAFKA_GROUP_ID and POSITIONS_TOPIC, and with a"
        " ledger an empty DATABASE_URL",
        stats.stopped[0],
    )
    more = {"kafka_group_id": "new", "positions_topic": "new-positions"}
    world.settings = world.settings.model_copy(update=more)
    world.broker.create_topic("new-positions", PARTITIONS)
    world.database = MemoryDatabase()
    assert (await world.consume()).fates[Fate.BOOKED] == 1
    (line,) = world.database.positions.values()
    assert read_position(line).quantity_e8 == 3 * ONE_E8


def files(directory: Path) -> list[Path]:
    """List a directory."""
    return list(directory.iterdir())


def drop(world: World, partition: int, start: int, stop: int) -> None:
    """Lose records in the midst of the log, as no broker should."""
    log = world.broker.log(TRADES, partition)
    log.records = [r for r in log.records if not start <= r.offset < stop]


@virtual_time
async def test_hole_in_the_log_stops_its_partition_with_the_exact_gap() -> None:
    """What is before the hole is committed; nothing behind it is touched; others go on."""
    world = World()
    put(world, *[trade(HERE)] * 9)
    put(world, *[trade(THERE)] * 2, partition=1)
    drop(world, 0, 4, 6)
    stats = await world.consume()
    assert stats.stopped.keys() == {0}
    assert "offsets 4 to 5 are missing" in stats.stopped[0]
    assert "gap accept --partition 0 --to 6" in stats.stopped[0]
    assert world.committed == {0: 4, 1: 2}
    world.broker.group(GROUP, TRADES).commits[0] = 6  # what `gap accept` does
    stats = await world.consume()
    assert stats.stopped == {}
    assert world.committed == world.ends
    assert world.newest_positions()[HERE]["trade_count"] == 7


@virtual_time
async def test_hole_is_passed_where_that_is_wanted() -> None:
    """`ON_GAP=continue` books what is there, and leaves a warning."""
    world = World(on_gap="continue")
    put(world, *[trade(HERE)] * 9)
    drop(world, 0, 4, 6)
    stats = await world.consume()
    assert stats.stopped == {}
    assert +stats.fates == {Fate.BOOKED: 7}
    assert world.committed == world.ends


@virtual_time
async def test_unreadable_batch_is_put_aside_and_others_flow(tmp_path: Path) -> None:
    """The third time its bytes go to a file and a dead letter says where; the partition waits."""
    world = World(quarantine_dir=str(tmp_path))
    put(world, trade(HERE), b"unreadable bytes", trade(HERE))
    worker = world.worker()
    worker.source.unreadable = {(0, 1)}
    await worker.start()
    put(world, *[trade(THERE)] * 3, partition=1)
    await until(lambda: world.committed == {0: 1, 1: 3} and bool(worker.consumer.stats.stopped))
    put(world, trade(THERE), partition=1)
    await until(lambda: world.committed[1] == 4)
    assert "partitions 0 wait for a person" in worker.health.ready().values()
    stats = await worker.finish()
    assert stats.quarantined_batches == 1
    assert "`trade-stream quarantine skip --partition 0`" in stats.stopped[0]
    (kept,) = files(tmp_path)
    assert kept.name == f"{TRADES}-0-1.batch"
    assert kept.read_bytes().endswith(b"unreadable bytes")
    (letter,) = world.broker.records(DEAD_LETTERS, 0)
    said = headers_of(letter)
    assert said["x-dlq-reason"] == "batch-unreadable"
    assert said["__dlq.errors.offset"] == "1"
    assert said["x-dlq-quarantine-next-offset"] == "2"
    assert said["x-dlq-quarantine-file"].endswith(str(kept))
    assert said["x-dlq-quarantine-sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
    world.broker.group(GROUP, TRADES).commits[0] = 2  # what `quarantine skip` does
    again = world.worker()  # it reads from a margin before that, with the batch in it
    again.source.unreadable = {(0, 1)}
    await again.start(until_caught_up=True)
    stats = await again.finish_by_itself()
    assert stats.stopped == {}
    assert world.committed == world.ends


@virtual_time
async def test_batch_that_broke_on_its_way_is_read_again(tmp_path: Path) -> None:
    """A second fetch that reads well leaves no trace but a warning."""
    world = World(quarantine_dir=str(tmp_path))
    put(world, trade(HERE))
    worker = world.worker()
    worker.source.unreadable = {(0, 0)}

    def mend(operation: str) -> Fault:
        if (
            operation == "poll"
            and worker.consumer._open
            and worker.consumer._open[0].unreadable_tries
        ):
            worker.source.unreadable = set()
        return Fault.NONE

    worker.source.faults = mend
    await worker.start(until_caught_up=True)
    stats = await worker.finish_by_itself()
    assert stats.stopped == {}
    assert +stats.fates == {Fate.BOOKED: 1}
    assert files(tmp_path) == []


@virtual_time
async def test_bytes_that_cannot_be_kept_are_said_to_be_lost(tmp_path: Path) -> None:
    """A full disk does not hide that the partition waits, nor the command that goes on."""
    (tmp_path / "file").touch()
    world = World(quarantine_dir=str(tmp_path / "file"))
    put(world, trade(HERE), trade(HERE), trade(HERE))
    worker = world.worker()
    worker.source.unreadable = {(0, 1)}
    await worker.start(until_caught_up=True)
    stats = await worker.finish_by_itself()
    assert "could not be kept" in stats.stopped[0]
    assert "`trade-stream gap accept --partition 0 --to 2`" in stats.stopped[0]
    assert stats.quarantined_batches == 1  # which pages somebody
    assert world.broker.records(DEAD_LETTERS) == []
    world.broker.group(GROUP, TRADES).commits[0] = 2  # what that command does
    again = world.worker()
    again.source.unreadable = {(0, 1)}
    await again.start(until_caught_up=True)
    assert (await again.finish_by_itself()).stopped == {}
    assert world.committed == world.ends


@virtual_time
async def test_a_batch_without_an_end_is_gone_past_by_an_offset_that_a_person_finds(
    tmp_path: Path,
) -> None:
    """No command is suggested that would refuse."""
    world = World(quarantine_dir=str(tmp_path))
    put(world, trade(HERE))
    worker = world.worker()
    worker.source.unreadable = {(0, 0)}

    async def no_header(partition: int, offset: int) -> bytes:
        return b"\xff" * 100

    worker.source.stored_bytes = no_header  # type: ignore[method-assign]
    await worker.start(until_caught_up=True)
    stats = await worker.finish_by_itself()
    assert "`trade-stream gap accept --partition 0 --to OFFSET`" in stats.stopped[0]
    assert len(files(tmp_path)) == 1


@virtual_time
async def test_raised_number_of_partitions_is_refused_before_the_start() -> None:
    """Keys are at home elsewhere then: all partitions stop, and no position changes."""
    world = World()
    put(world, trade(HERE))
    await world.consume()
    before = world.newest_positions()
    for topic in (TRADES, POSITIONS, DEAD_LETTERS):
        world.broker._topics[topic].append(PartitionLog())
    world.broker.append(TRADES, trade(HERE), partition=2)
    grown = World()
    grown.broker = world.broker
    grown.broker._groups.clear()
    stats = await grown.consume()
    assert stats.stopped.keys() == {0, 1, 2}
    assert all("number of partitions was changed" in why for why in stats.stopped.values())
    assert world.newest_positions() == before


@virtual_time
async def test_readiness_says_what_a_worker_waits_for() -> None:
    """Not before the assignment, not while effects wait, and not for ever after."""
    world = World()
    worker = world.worker()
    assert Unready.ASSIGNMENT in worker.health.ready()
    await worker.start()
    await until(lambda: worker.health.ready() == {})
    assert worker.consumer.is_behind({0: 0, 1: 0}) is False
    faults = iter([Fault.NOT_SENT] * 3)
    worker.publisher.faults = lambda _: next(faults, Fault.NONE)
    put(world, trade(HERE))
    await until(lambda: Unready.EFFECTS in worker.health.ready())
    assert worker.consumer.is_behind(world.ends) is True
    await until(lambda: world.committed == world.ends)
    assert worker.health.ready() == {}
    assert worker.consumer.is_behind(world.ends) is False
    assert worker.consumer._counts().conservation == 0
    await worker.finish()


@virtual_time
async def test_commits_that_are_not_answered_show() -> None:
    """Unknown is harmless, and still nobody should be told that all is well."""
    world = World()
    worker = await started(world)
    unanswered = iter([Fault.UNKNOWN_LOST] * 3)
    worker.source.faults = lambda o: next(unanswered, Fault.NONE) if o == "commit" else Fault.NONE
    put(world, trade(HERE))
    await until(lambda: Unready.COMMIT in worker.health.ready())
    await until(lambda: world.committed == world.ends)
    assert worker.health.ready() == {}
    stats = await worker.finish()
    assert stats.failed_commits == 1


@virtual_time
async def test_ids_that_come_in_two_partitions_at_once_hold_nobody_up() -> None:
    """Both are read before the ledger has either: one is booked, the other is a conflict."""
    world = World(MemoryDatabase(), dlq_breaker_share=1.0)
    for number, symbol in enumerate((HERE, THERE)):
        put(world, *(trade(symbol, trade_id=f"T{n}") for n in range(5)), partition=number)
    async with asyncio.timeout(60):
        stats = await world.consume()
    assert +stats.fates == {Fate.BOOKED: 5, Fate.DEAD_LETTERED: 5}
    assert stats.reasons == {"version-conflict": 5}
    assert world.database is not None
    assert len({row["trade_id"] for row in world.database.trades.values()}) == 5
    assert len(world.database.trades) == 5
