"""TradeCopier: blocks cut alike whoever reads, outages waited out, gaps told, no growth."""

import asyncio
from itertools import pairwise

import pytest

from app import copier
from app.config import OnGap
from app.copier import BLOCK_OFFSETS
from app.errors import CopyError
from app.memory_io import Fault, nth
from tests.copy_world import TOPIC, CopyWorld, RecordingStore
from tests.memory_world import trade, until
from tests.virtual_time import virtual_time

GOOD = trade("AAPL")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of ten offsets, so that a few records are many blocks."""
    monkeypatch.setattr(copier, "BLOCK_OFFSETS", 10)
    monkeypatch.setattr(copier, "_BUFFERED", 60)
    monkeypatch.setattr(copier, "_A_WRITE", 40)


def put(world: CopyWorld, count: int, *, partition: int = 0) -> None:
    """Append good trades."""
    for _ in range(count):
        world.broker.append(TOPIC, GOOD, partition=partition)


def recording(world: CopyWorld) -> RecordingStore:
    """Give the store of a world that remembers."""
    assert isinstance(world.store, RecordingStore)
    return world.store


def assert_whole(world: CopyWorld, partition: int = 0) -> None:
    """Every offset is in the blocks once or more, none crosses a multiple of ten."""
    blocks = [(a, b) for number, a, b in recording(world).blocks if number == partition]
    assert all(a // 10 == (b - 1) // 10 for a, b in blocks)
    covered = {offset for a, b in blocks for offset in range(a, b)}
    assert covered == set(range(world.broker.offset_range(TOPIC, partition)[1]))


def test_blocks_are_of_the_size_that_is_documented() -> None:
    """What the tests make small is large outside of them."""
    assert BLOCK_OFFSETS == 50_000


@virtual_time
async def test_full_blocks_end_at_multiples_and_the_last_one_where_the_topic_does() -> None:
    """Two partitions, three blocks and a half."""
    world = CopyWorld()
    put(world, 35)
    put(world, 4, partition=1)
    stats = await world.copy()
    assert (stats.rows, stats.refused, stats.next_offsets) == (39, 0, {0: 35, 1: 4})
    assert_whole(world)
    assert_whole(world, 1)
    assert set(recording(world).blocks) == {
        (0, 0, 10), (0, 10, 20), (0, 20, 30), (0, 30, 35), (1, 0, 4),
    }  # fmt: skip


@virtual_time
async def test_a_partial_block_goes_on_where_it_ended_and_ends_at_the_same_multiple() -> None:
    """What comes later extends a block; it never moves where blocks end."""
    world = CopyWorld()
    put(world, 4)
    await world.copy()
    put(world, 20)
    await world.copy()
    assert recording(world).blocks == [(0, 0, 4), (0, 4, 10), (0, 10, 20), (0, 20, 24)]


@virtual_time
async def test_a_trickle_is_written_about_once_a_second() -> None:
    """Records that come one by one are gathered, and none waits for long."""
    world = CopyWorld()
    running = world.copier()
    await running.start()
    for _ in range(30):
        put(world, 1)
        await asyncio.sleep(0.25)
    await until(lambda: recording(world).ends.get(0) == (0, 30))
    assert len(recording(world).writes) <= 12
    await running.finish()
    assert_whole(world)


@virtual_time
async def test_what_is_in_hand_is_written_at_a_stop() -> None:
    """A stop does not wait for a block to be old."""
    world = CopyWorld()
    running = world.copier()
    await running.start()
    await until(lambda: bool(running.copier._open))
    put(world, 3)
    await until(lambda: running.copier._open[0].next_offset == 3)
    stats = await running.finish()
    assert stats.next_offsets == {0: 3, 1: 0}


@virtual_time
async def test_a_stop_while_the_store_hangs_ends_in_time() -> None:
    """What is not written comes again; the process does not wait for it."""
    world = CopyWorld()
    recording(world).answers.clear()
    running = world.copier()
    await running.start()
    put(world, 12)
    await until(lambda: running.copier._writing is not None)
    asked_s = asyncio.get_running_loop().time()
    stats = await running.finish()
    assert asyncio.get_running_loop().time() - asked_s <= copier.FINISH_TIMEOUT_S + 1
    assert stats.rows == 0
    recording(world).answers.set()
    await world.copy()
    assert_whole(world)


@pytest.mark.parametrize("fault", [Fault.UNKNOWN_STORED, Fault.UNKNOWN_LOST])
@pytest.mark.parametrize("number", [1, 2, 3])
@virtual_time
async def test_an_unknown_outcome_repeats_the_same_blocks(fault: Fault, number: int) -> None:
    """Whether it was stored or not, the very same blocks are written again."""
    world = CopyWorld()
    recording(world).faults = nth("write", number, fault)
    put(world, 95)
    stats = await world.copy()
    assert stats.retries == 1
    assert stats.rows == 95
    writes = recording(world).writes
    repeats = [write for write, again in pairwise(writes) if write == again]
    assert len(repeats) == (fault is Fault.UNKNOWN_STORED)
    assert_whole(world)


@virtual_time
async def test_an_outage_pauses_and_nothing_grows() -> None:
    """While the store is away no more is read than the bound, and then all of it is copied."""
    world = CopyWorld()
    store = recording(world)
    store.faults = lambda _: Fault.UNKNOWN_LOST
    put(world, 2_000)
    running = world.copier()
    running.source.max_records = 7
    await running.start()
    await asyncio.sleep(5)
    assert not running.copier._open  # not even the progress could be read
    store.faults = lambda called: Fault.UNKNOWN_LOST if called == "write" else Fault.NONE
    await asyncio.sleep(60)
    assert running.copier._is_paused
    assert 60 <= running.copier._buffered <= 60 + 2 * 7
    assert running.copier.stats.retries > 10
    store.faults = lambda _: Fault.NONE
    await until(lambda: store.ends.get(0) == (0, 2_000))
    await running.finish()
    assert_whole(world)


@virtual_time
async def test_the_copy_says_where_it_goes_on_not_the_commit() -> None:
    """A commit that is ahead of the copy, or lost, changes nothing."""
    world = CopyWorld()
    put(world, 12)
    world.broker.set_committed("copy", TOPIC, 0, 12)
    await world.copy()
    assert_whole(world)
    assert world.broker.committed("copy", TOPIC) == {0: 12}


@virtual_time
async def test_a_failed_commit_harms_nothing() -> None:
    """It is a hint."""
    world = CopyWorld()
    put(world, 12)
    running = world.copier()
    running.source.faults = nth("commit", 1)
    await running.start(until_caught_up=True)
    assert (await running.end()).rows == 12


@virtual_time
async def test_two_copiers_share_partitions_and_hand_them_over() -> None:
    """A rebalance writes what is in hand, and the next owner goes on from the copy."""
    world = CopyWorld()
    first, second = world.copier(), world.copier()
    await first.start()
    put(world, 25)
    put(world, 25, partition=1)
    await until(lambda: recording(world).ends.get(1) == (0, 25))
    await second.start()
    put(world, 25)
    put(world, 25, partition=1)
    await until(lambda: {n: end for n, (_, end) in recording(world).ends.items()} == {0: 50, 1: 50})
    assert len(first.copier._open) == len(second.copier._open) == 1
    await first.finish()
    put(world, 5)
    put(world, 5, partition=1)
    await until(lambda: {n: end for n, (_, end) in recording(world).ends.items()} == {0: 55, 1: 55})
    await second.finish()
    assert_whole(world)
    assert_whole(world, 1)


@pytest.mark.parametrize("turns", range(0, 60, 7))
@virtual_time
async def test_a_crash_anywhere_leaves_nothing_out(turns: int) -> None:
    """Whatever the crash interrupts is written again at the same places."""
    world = CopyWorld()
    put(world, 95)
    running = world.copier()
    await running.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    await running.crash()
    await world.copy()
    assert_whole(world)


@virtual_time
async def test_records_that_are_gone_stop_their_partition_alone() -> None:
    """The exact gap is told, and what to do; the other partition goes on."""
    world = CopyWorld()
    put(world, 5)
    await world.copy()
    put(world, 10)
    put(world, 3, partition=1)
    world.broker.delete_records_before(TOPIC, 0, 8)
    running = world.copier()
    await running.start()
    await until(lambda: recording(world).ends.get(1) == (0, 3))
    stats = await running.finish()
    assert "offsets 5 to 7 are gone" in stats.stopped[0]
    assert recording(world).ends[0] == (0, 5)


@virtual_time
async def test_on_gap_continue_goes_on_behind_the_gap() -> None:
    """Who has said so gets the rest, and the copy knows that it is past the gap."""
    world = CopyWorld(on_gap="continue")
    put(world, 5)
    await world.copy()
    put(world, 10)
    world.broker.delete_records_before(TOPIC, 0, 8)
    stats = await world.copy()
    assert stats.rows == 7
    assert recording(world).blocks == [(0, 0, 5), (0, 5, 8), (0, 8, 10), (0, 10, 15)]


@virtual_time
async def test_a_gap_up_to_the_end_is_passed() -> None:
    """Where nothing comes after the gap, the copy has caught up with it."""
    world = CopyWorld(on_gap="continue")
    put(world, 5)
    await world.copy()
    put(world, 10)
    world.broker.delete_records_before(TOPIC, 0, 15)
    stats = await world.copy()
    assert stats.next_offsets == {0: 15, 1: 0}
    assert recording(world).ends[0] == (0, 15)


@virtual_time
async def test_a_gap_that_is_larger_than_the_buffer_is_passed_during_a_write() -> None:
    """What retention deletes while the store is slow takes no room, and holds up nobody."""
    world = CopyWorld(on_gap="continue")
    store = recording(world)
    store.answers.clear()
    running = world.copier()
    running.source.max_records = 7
    await running.start()
    put(world, 10)
    await until(lambda: running.copier._writing is not None)
    running.source.pause([0])
    put(world, 990)
    world.broker.delete_records_before(TOPIC, 0, 900)
    running.source.resume([0])
    await until(lambda: running.copier._open[0].next_offset >= 900)
    store.answers.set()
    put(world, 5, partition=1)
    await until(lambda: (store.ends.get(0), store.ends.get(1)) == ((0, 1000), (0, 5)))
    stats = await running.finish()
    assert stats.rows == 115


@pytest.mark.parametrize("max_records", [1, 500])
@virtual_time
async def test_control_records_are_passed(max_records: int) -> None:
    """Batches without a record, and ones whose records end before a block does."""
    world = CopyWorld(partitions=1)
    put(world, 25)
    running = world.copier()
    running.source.max_records = max_records
    running.source.control = {(0, offset) for offset in (0, 8, 9, 10, 11, *range(18, 25))}
    await running.start(until_caught_up=True)
    stats = await running.end()
    assert (stats.rows, stats.next_offsets) == (13, {0: 25})
    assert_whole(world)


@virtual_time
async def test_records_that_go_while_it_reads_are_noticed() -> None:
    """A position that falls out of the log, and a hole in the middle of it."""
    world = CopyWorld(partitions=1)
    put(world, 30)
    log = world.broker.log(TOPIC, 0)
    del log.records[12:14]
    stats = await world.copy_until_stopped()
    assert "offsets 12 to 13 are missing" in stats.stopped[0]


@virtual_time
async def test_another_topic_of_the_same_name_is_noticed() -> None:
    """A topic that ends before what was copied of it is another one."""
    world = CopyWorld(partitions=1)
    put(world, 30)
    await world.copy()
    world.broker.create_topic(TOPIC, 1)
    put(world, 5)
    stats = await world.copy_until_stopped()
    assert "it is another one" in stats.stopped[0]
    assert "--rebuild" in stats.to_text()


@virtual_time
async def test_a_batch_that_nobody_can_read_stops_its_partition_alone() -> None:
    """What was read before it is copied, and the other partition is."""
    world = CopyWorld()
    put(world, 5)
    put(world, 5, partition=1)
    running = world.copier()
    running.source.unreadable.add((0, 3))
    await running.start()
    await until(lambda: 0 in running.copier.stats.stopped)
    await running.finish()
    assert {n: end for n, (_, end) in recording(world).ends.items()}[1] == 5


@virtual_time
async def test_on_gap_continue_goes_on_after_a_batch_that_nobody_can_read() -> None:
    """The partition stops until somebody says so, and then everything else of it is copied."""
    world = CopyWorld(partitions=1)
    put(world, 25)
    running = world.copier()
    running.source.unreadable.add((0, 13))
    await running.start()
    await until(lambda: 0 in running.copier.stats.stopped)
    stats = await running.finish()
    assert "offset 13 cannot be read" in stats.stopped[0]
    assert "ON_GAP=continue goes on" in stats.stopped[0]
    world.settings = world.settings.model_copy(update={"on_gap": OnGap.CONTINUE})
    running = world.copier()
    running.source.unreadable.add((0, 13))
    running.source.faults = nth("stored_bytes", 1)
    await running.start(until_caught_up=True)
    stats = await running.end()
    assert (stats.stopped, stats.next_offsets) == ({}, {0: 25})
    assert_whole(world)


@pytest.mark.parametrize(
    ("is_raw", "told"), [(True, "where it ends"), (False, "KAFKA_RAW_BATCHES=true")]
)
@virtual_time
async def test_a_batch_whose_end_is_unknown_is_not_passed(*, is_raw: bool, told: str) -> None:
    """Neither where its header makes no sense nor where another one may be meant."""
    world = CopyWorld(partitions=1, on_gap="continue")
    put(world, 5)
    running = world.copier()
    running.source.unreadable.add((0, 3))
    running.source.is_raw = is_raw
    running.source.has_headers = False
    await running.start()
    await until(lambda: 0 in running.copier.stats.stopped)
    stats = await running.finish()
    assert told in stats.stopped[0]


@virtual_time
async def test_a_fetch_that_fails_loses_nothing() -> None:
    """Positions that moved past records nobody was given are sought again."""
    world = CopyWorld()
    put(world, 45)
    for number in (1, 2, 3, 4):
        running = world.copier()
        running.source.max_records = 7
        running.source.faults = nth("poll", number)
        await running.start(until_caught_up=True)
        await running.end()
    assert_whole(world)


@virtual_time
async def test_a_refusal_ends_the_run() -> None:
    """What ClickHouse will refuse again is a person's business, and says so."""
    world = CopyWorld()
    put(world, 5)

    class Refusing(RecordingStore):
        async def write(self, *_: object) -> None:
            raise CopyError("ClickHouse refuses: no such table")

    with pytest.raises(CopyError, match="no such table"):
        await world.copy(Refusing())
