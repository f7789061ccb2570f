"""What the loops may rely on, whatever is behind the ports."""

import os
import time

import pytest

from app.errors import OffsetGapError, TopicError, TransportError
from app.kafka_io.partitioner import KeyPartitioner
from app.memory_io import MemoryPublisher, MemorySource, murmur2, nth, partition_for
from app.ports import OutgoingRecord, SendState
from tests.contract.backend import Backend, opened, settle, take

KEYS = [b"AAPL", b"desk-1|MSFT", b"", b"\x00\xff", "Zürich|ÖBB".encode(), b"1234567"]


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_published_vectors(key: bytes, signed: int) -> None:
    """The hash is the Java client's, by the vectors of its own tests."""
    assert murmur2(key) == signed & 0xFFFFFFFF


def test_both_partitioners_place_alike() -> None:
    """Every length of key, with all its remainders, goes where the real adapter puts it."""
    partitioner = KeyPartitioner()
    keys = [bytes(range(200, 200 + n)) for n in range(24)] + KEYS
    for key in keys:
        assert partition_for(key, 7) == partitioner.partition(key, 7)


async def test_a_keyed_record_stands_where_its_key_belongs(backend: Backend) -> None:
    """Publisher and source agree about placement, and it is murmur2 of the key."""
    source = await backend.join()
    outcomes = await backend.publisher.publish(
        [OutgoingRecord(backend.topic, key, b"v") for key in KEYS]
    )
    expected = [partition_for(key, 2) for key in KEYS]
    assert [outcome.partition for outcome in outcomes] == expected
    assert [source.partition_of(key) for key in KEYS] == expected


async def test_a_partition_keeps_the_order_of_one_call(backend: Backend) -> None:
    """Records of one call to one partition get rising offsets, and come back in that order."""
    values = [str(n).encode() for n in range(300)]
    offsets = await backend.write(values)
    assert offsets == list(range(300))
    source = await backend.join()
    await opened(source, {0: 0, 1: 0})
    assert [record.value for record in await take(source, 300)] == values


async def test_what_was_written_comes_back_untouched(backend: Backend) -> None:
    """Any bytes, a null key, a null value, repeated headers and a timestamp survive."""
    now_ms = time.time_ns() // 1_000_000  # older records fall to retention
    headers = [("origin", b"\x00\xff"), ("origin", b""), ("zürich", b"1")]
    sent = [
        OutgoingRecord(backend.topic, b"\x00k\xff", b"\xfe\x00", headers, 1, now_ms),
        OutgoingRecord(backend.topic, None, b"", (), 1, now_ms + 1),
        OutgoingRecord(backend.topic, b"tombstone", None, (), 1, now_ms + 2),
    ]
    outcomes = await backend.publisher.publish(sent)
    assert [(o.state, o.partition, o.offset) for o in outcomes] == [
        (SendState.OK, 1, offset) for offset in range(3)
    ]
    source = await backend.join()
    await opened(source, {1: 0})
    for record, original in zip(await take(source, 3), sent, strict=True):
        assert (record.key, record.value, record.timestamp) == (
            original.key,
            original.value,
            original.timestamp_ms,
        )
        assert list(record.headers) == list(original.headers)


async def test_a_record_that_is_too_large_is_not_sent(backend: Backend) -> None:
    """It surely is not in the log, it will never be, and its neighbours are."""
    records = [
        OutgoingRecord(backend.topic, b"k", value, partition=0)
        for value in (b"before", bytes(3 * 1024 * 1024), b"after")
    ]
    before, large, after = await backend.publisher.publish(records)
    assert (before.state, after.state) == (SendState.OK, SendState.OK)
    assert large.state is SendState.NOT_SENT
    assert not large.retryable
    assert large.error
    assert (await backend.reader.offset_ranges(backend.topic))[0] == (0, 2)


@pytest.mark.parametrize(
    ("value", "ahead_ms"),
    [(os.urandom(1_500_000), 0), (b"of tomorrow", 24 * 3_600_000)],
    ids=["larger-than-the-topic-takes", "time-in-the-future"],
)
async def test_a_record_that_the_broker_refuses_costs_its_successors_nothing(
    backend: Backend, value: bytes, ahead_ms: int
) -> None:
    """What the broker would refuse again is given up, and what comes after it is stored."""
    if isinstance(backend.publisher, MemoryPublisher):
        pytest.skip("a topic in memory has no settings by which it could refuse")
    await backend.write([b"before"])
    now_ms = time.time_ns() // 1_000_000
    (refused,) = await backend.publisher.publish(
        [OutgoingRecord(backend.topic, b"k", value, (), 0, now_ms + ahead_ms)]
    )
    assert refused.state is not SendState.OK
    assert not refused.retryable
    await backend.write([b"after"])
    assert [r.value for r in await backend.read(backend.topic, 0, 0, 2)] == [b"before", b"after"]


async def test_commits_are_kept_by_name(backend: Backend) -> None:
    """A commit covers the partitions it names; the next member of the group finds it."""
    await backend.write([b"a", b"b", b"c"])
    first = await backend.join()
    await opened(first, {0: 0, 1: 0})
    await take(first, 3)
    assert await first.committed([0, 1]) == {0: None, 1: None}
    assert await first.commit({0: 2})
    assert await first.committed([0, 1]) == {0: 2, 1: None}
    await backend.leave(first)
    second = await backend.join()
    await settle(second, condition=lambda: second.assignment.partitions == {0, 1})
    start = (await second.committed([0]))[0]
    assert start == 2
    second.seek(0, start)
    assert [record.value for record in await take(second, 1)] == [b"c"]


async def test_a_gate_stays_shut_until_the_seek(backend: Backend) -> None:
    """After an assignment a partition gives nothing before it is sought."""
    await backend.write([b"a"], partition=0)
    await backend.write([b"b"], partition=1)
    source = await backend.join()
    await opened(source, {1: 0})
    seen = [record.value for record in await take(source, 1)]
    seen += [r.value for b in await source.poll(timeout_s=0.2) for r in b.records]
    assert seen == [b"b"]
    source.seek(0, 0)
    assert [record.value for record in await take(source, 1)] == [b"a"]


async def test_a_seek_goes_back_and_forth(backend: Backend) -> None:
    """Reading goes on at whatever offset was sought last."""
    await backend.write([b"a", b"b", b"c"])
    source = await backend.join()
    await opened(source, {0: 2})
    assert [record.offset for record in await take(source, 1)] == [2]
    source.seek(0, 0)
    assert [record.offset for record in await take(source, 3)] == [0, 1, 2]


async def test_paused_partitions_wait(backend: Backend) -> None:
    """A paused partition gives nothing, the others go on, and a resume loses nothing."""
    source = await backend.join()
    await opened(source, {0: 0, 1: 0})
    source.pause([0])
    await backend.write([b"a"], partition=0)
    await backend.write([b"b"], partition=1)
    seen = [record.value for record in await take(source, 1)]
    seen += [r.value for b in await source.poll(timeout_s=0.2) for r in b.records]
    assert seen == [b"b"]
    source.resume([0])
    assert [record.value for record in await take(source, 1)] == [b"a"]


async def test_a_position_outside_of_the_log_is_a_gap(backend: Backend) -> None:
    """A sought offset that the partition does not hold raises, and another seek mends it."""
    await backend.write([b"a"])
    source = await backend.join()
    await opened(source, {0: 5})
    with pytest.raises(OffsetGapError, match=backend.topic):
        await take(source, 1)
    source.seek(0, 0)
    assert [record.value for record in await take(source, 1)] == [b"a"]


async def test_members_share_and_the_last_one_gets_all(backend: Backend) -> None:
    """Two members have one partition each; when one leaves, the other has both, in a new epoch."""
    first = await backend.join()
    await settle(first, condition=lambda: first.assignment.partitions == {0, 1})
    second = await backend.join()
    await settle(
        first,
        second,
        condition=lambda: (
            len(first.assignment.partitions) == len(second.assignment.partitions) == 1
        ),
    )
    assert first.assignment.partitions | second.assignment.partitions == {0, 1}
    foreign = next(iter(second.assignment.partitions))
    assert not await first.commit({foreign: 0})
    assert await first.committed([foreign]) == {foreign: None}
    epoch = first.assignment.epoch
    await backend.leave(second)
    await settle(first, condition=lambda: first.assignment.partitions == {0, 1})
    assert first.assignment.epoch > epoch


async def test_a_rebalance_waits_for_the_work_in_hand(backend: Backend) -> None:
    """While a member has not confirmed it still owns and commits, and nobody else gets anything."""
    first = await backend.join()
    await opened(first, {0: 0, 1: 0})
    await backend.write([b"a"])
    await take(first, 1)
    held = first.assignment
    second = await backend.join()
    seen = 0
    while not first.is_revoking:
        seen += len(await first.poll(timeout_s=0.05))
    assert await second.poll(timeout_s=0.3) == []
    assert first.assignment == held
    assert second.assignment.partitions == frozenset()
    assert await first.commit({0: 1})
    first.confirm_revocation()
    await settle(first, second, condition=lambda: bool(second.assignment.partitions))
    assert await second.committed([0]) == {0: 1}
    assert seen == 0


async def test_offset_ranges_are_first_and_end(backend: Backend) -> None:
    """Both sides tell the first offset held and the one after the last."""
    await backend.write([b"a", b"b"], partition=1)
    source = await backend.join()
    expected = {0: (0, 0), 1: (0, 2)}
    assert await source.offset_ranges([0, 1]) == expected
    assert await source.offset_ranges([]) == {}
    assert await backend.reader.offset_ranges(backend.topic) == expected


async def test_a_reader_gives_a_half_open_range(backend: Backend) -> None:
    """The start is in it, the end is not, and an empty range gives nothing."""
    await backend.write([b"a", b"b", b"c", b"d"])
    values = [r.value for r in await backend.read(backend.topic, 0, 1, 3)]
    assert values == [b"b", b"c"]
    assert await backend.read(backend.topic, 0, 2, 2) == []


async def test_a_missing_topic_is_named(backend: Backend) -> None:
    """Asking for the partitions of a topic that is not there raises with its name."""
    assert await backend.reader.partition_count(backend.topic) == 2
    assert await backend.publisher.partition_count(backend.topic) == 2
    with pytest.raises(TopicError, match="no-such-topic"):
        await backend.reader.partition_count("no-such-topic")


async def test_a_failed_poll_loses_what_is_not_sought_again(backend: Backend) -> None:
    """A1: in memory a failed poll moves the positions; a seek brings the records back."""
    source = await backend.join()
    if not isinstance(source, MemorySource):
        pytest.skip("a failed fetch cannot be ordered from a real broker")
    await backend.write([b"a", b"b"])
    await opened(source, {0: 0})
    source.faults = nth("poll", 1)
    with pytest.raises(TransportError):
        await source.poll(timeout_s=0)
    assert await source.poll(timeout_s=0) == []
    source.seek(0, 0)
    assert [record.value for record in await take(source, 2)] == [b"a", b"b"]
