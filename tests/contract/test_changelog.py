"""The changelog of positions on every back end."""

import pytest

from app.errors import OwnershipError, TopicError
from app.models import Position
from app.ports import OutgoingRecord, SendOutcome
from app.stores.changelog import Changelog
from tests.contract.backend import Backend


def changelog(backend: Backend, group: str = "risk") -> Changelog:
    """Make the changelog of a group."""
    return Changelog(
        reader=backend.reader,
        topic=backend.positions_topic,
        source_topic=backend.topic,
        group=group,
    )


def position(offset: int, symbol: str = "AAPL") -> Position:
    """Give a state that covers the source up to an offset."""
    return Position(
        None,
        symbol,
        "USD",
        quantity_e8=offset * 10**8,
        open_cost_e24=offset * 10**24 + 1,
        mark_e8=10**8,
        mark_ns=1_700_000_000_000_000_000,
        trade_count=offset + 1,
        source_offset=offset,
        origins={1: offset},
    )


async def write(backend: Backend, *states: Position, group: str = "risk") -> list[SendOutcome]:
    """Store states one after the other, as their owner does."""
    owner = changelog(backend, group)
    return await backend.publisher.publish(owner.records(0, states))


async def test_a_restore_gives_back_what_was_written(backend: Backend) -> None:
    """State, coverage and the next offset come back, to the last digit; other partitions do not."""
    await write(backend, position(3), position(5, "MSFT"), position(7))
    restored = await changelog(backend).restore(0)
    assert restored.positions == {"AAPL": position(7), "MSFT": position(5, "MSFT")}
    assert (restored.next_offset, restored.newest) == (3, (0, 7))
    assert restored.is_known
    assert not restored.stale_keys
    empty = await changelog(backend).restore(1)
    assert not empty.is_known
    assert empty.newest == (0, -1)


async def test_a_restore_takes_the_highest_offset_and_not_the_last_record(
    backend: Backend,
) -> None:
    """A late write of an older state is seen through, and its key is to be written again."""
    await write(backend, position(9), position(4))
    restored = await changelog(backend).restore(0)
    assert restored.positions == {"AAPL": position(9)}
    assert restored.stale_keys == {"AAPL"}


async def test_a_deleted_key_is_restored_and_written_again(backend: Backend) -> None:
    """A tombstone makes no owner forget what it has booked."""
    await write(backend, position(9))
    await backend.publisher.publish(
        [OutgoingRecord(backend.positions_topic, b"AAPL", None, partition=0)]
    )
    restored = await changelog(backend).restore(0)
    assert restored.positions == {"AAPL": position(9)}
    assert restored.stale_keys == {"AAPL"}


async def test_a_heartbeat_makes_a_partition_known(backend: Backend) -> None:
    """An idle owner's record tells how far the source is covered, and is no position."""
    await backend.publisher.publish([changelog(backend).heartbeat(0, 41)])
    restored = await changelog(backend).restore(0)
    assert restored.is_known
    assert restored.newest == (0, 41)
    assert restored.positions == {}


async def test_positions_of_another_group_are_refused(backend: Backend) -> None:
    """The error says what to set."""
    await write(backend, position(1), group="back-office")
    with pytest.raises(TopicError, match="set POSITIONS_TOPIC"):
        await changelog(backend).restore(0)


async def test_an_unreadable_record_is_refused(backend: Backend) -> None:
    """A topic with something else in it is not taken for ours."""
    await backend.publisher.publish(
        [OutgoingRecord(backend.positions_topic, b"AAPL", b"{}", partition=0)]
    )
    with pytest.raises(TopicError, match="set POSITIONS_TOPIC"):
        await changelog(backend).restore(0)


async def test_contiguous_writes_are_ours_alone(backend: Backend) -> None:
    """Without a gap nothing is read and nothing has to be written again."""
    outcomes = await write(backend, position(1), position(2))
    judged = await changelog(backend).foreign_writes(0, 0, outcomes, {"AAPL": position(2)})
    assert judged == (2, set())


async def test_a_late_foreign_write_is_seen_and_written_again(backend: Backend) -> None:
    """A gap before our write shows an older state, whose key we have to restore."""
    await write(backend, position(1))
    outcomes = await write(backend, position(2))
    judged = await changelog(backend).foreign_writes(0, 0, outcomes, {"AAPL": position(2)})
    assert judged == (2, {"AAPL"})


async def test_a_newer_foreign_write_means_that_we_are_late(backend: Backend) -> None:
    """Whoever has applied more of the source owns it."""
    await write(backend, position(8))
    outcomes = await write(backend, position(2))
    with pytest.raises(OwnershipError, match="offset 8 of AAPL"):
        await changelog(backend).foreign_writes(0, 0, outcomes, {"AAPL": position(2)})
