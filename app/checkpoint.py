"""A checkpoint: the effects of what was processed, acknowledged before their offsets are committed.

Order within one: dead letters and re-keyed trades are acknowledged first, then positions, then the
next offsets are committed by name. A crash anywhere before the commit makes the records come again,
and what is applied already is recognised by its offset. Positions come after dead letters because
some refusals follow from a position: once a later state is stored, they could not be judged again.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from app.errors import OwnershipError, TransportError
from app.models import Fate, Position
from app.ports import OutgoingRecord, Publisher, RecordSource, SendOutcome, SendState
from app.stores.changelog import Changelog

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 5.0
_COMMIT_ATTEMPTS: Final = 3


@dataclass(slots=True)
class PartitionEffects:
    """What the records of one partition up to `next_offset` have to leave behind.

    Attributes:
        next_offset: Where the group goes on once all of this is acknowledged.
        sends: Dead letters and re-keyed trades, in the order of their records.
        positions: Positions that changed, by key.
        heartbeat: Record that shows an idle owner, if one is due.
        changelog_offset: Offset that our next write of a position should get.
        fates: Fates that the records get with this checkpoint.
        reasons: Dead letters by reason code.
        published_at: Publish times of a sample of the trades.
    """

    next_offset: int
    sends: list[OutgoingRecord] = field(default_factory=list)
    positions: dict[str, Position] = field(default_factory=dict)
    heartbeat: OutgoingRecord | None = None
    changelog_offset: int = 0
    fates: Counter[Fate] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    published_at: list[str] = field(default_factory=list)

    def absorb_counts(self, earlier: "PartitionEffects") -> None:
        """Take over the counts of effects that are acknowledged and not known to be committed."""
        self.fates.update(earlier.fates)
        self.reasons.update(earlier.reasons)
        self.published_at[:0] = earlier.published_at


@dataclass(slots=True)
class CheckpointResult:
    """What became of a checkpoint.

    Attributes:
        is_committed: False when the partitions were no longer ours; nothing is lost by it.
        changelog_offsets: Offset expected of the next position write, by partition.
        stale_keys: Keys to be written again, by partition.
        refused: Partitions with an effect that the broker will never take, and why.
        lost: Partitions where another owner has written newer state: to be restored again.
    """

    is_committed: bool = False
    changelog_offsets: dict[int, int] = field(default_factory=dict)
    stale_keys: dict[int, set[str]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)


async def run_checkpoint(
    effects: Mapping[int, PartitionEffects],
    *,
    source: RecordSource,
    publisher: Publisher,
    changelog: Changelog,
    positions: Mapping[int, Mapping[str, Position]],
) -> CheckpointResult:
    """Publish the effects, await every one of them, then commit.

    Args:
        effects: By partition.
        source: Member of the group that commits.
        publisher: Sends dead letters, re-keyed trades and positions.
        changelog: Builds position records and judges foreign ones.
        positions: All positions held, by partition, to compare foreign writes with.

    Delivery:
        While a broker is away this waits, for as long as it lasts; nothing is given up. A send with
        an unknown outcome is repeated: every effect is recognised by its origin or offset.

    Cancellation:
        Nothing is committed; what was sent is recognised when the records come again.
    """
    result = CheckpointResult()
    sends = {p: effect.sends for p, effect in effects.items() if effect.sends}
    await _publish_all(sends, publisher, result)
    written = {
        partition: _position_records(changelog, partition, effect)
        for partition, effect in effects.items()
        if partition not in result.refused
    }
    for partition, acks in (await _publish_all(written, publisher, result)).items():
        try:
            expected, stale = await _judged(
                changelog,
                partition,
                effects[partition].changelog_offset,
                acks,
                positions.get(partition, {}),
            )
        except OwnershipError as exc:
            result.lost[partition] = str(exc)
            continue
        result.changelog_offsets[partition] = expected
        if stale:
            result.stale_keys[partition] = stale
    next_offsets = {
        partition: effect.next_offset
        for partition, effect in effects.items()
        if partition not in result.refused and partition not in result.lost
    }
    result.is_committed = await _commit(source, next_offsets)
    return result


async def _judged(
    changelog: Changelog,
    partition: int,
    expected: int,
    acks: list[SendOutcome],
    ours: Mapping[str, Position],
) -> tuple[int, set[str]]:
    backoff_s = _FIRST_BACKOFF_S
    while True:
        try:
            return await changelog.foreign_writes(partition, expected, acks, ours)
        except TransportError as exc:
            log.warning("foreign_writes_wait_for_broker", partition=partition, error=str(exc))
            await asyncio.sleep(random.uniform(0, backoff_s))  # noqa: S311 - full jitter
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)


def _position_records(
    changelog: Changelog, partition: int, effect: PartitionEffects
) -> list[OutgoingRecord]:
    records = changelog.records(partition, effect.positions)
    return records if effect.heartbeat is None else [*records, effect.heartbeat]


async def _publish_all(
    records: Mapping[int, list[OutgoingRecord]], publisher: Publisher, result: CheckpointResult
) -> dict[int, list[SendOutcome]]:
    """Publish until everything is acknowledged or refused; give the acks in log order.

    Args:
        records: What to send, by the partition whose trades it comes from.
        publisher: Sends it.
        result: Takes the partitions with a record that is refused for good.
    """
    pending = [(partition, record) for partition, of in records.items() for record in of]
    acks: dict[int, list[SendOutcome]] = defaultdict(list)
    backoff_s = _FIRST_BACKOFF_S
    while pending:
        left = []
        error = ""
        outcomes = await publisher.publish([record for _, record in pending])
        for (partition, record), outcome in zip(pending, outcomes, strict=True):
            if outcome.state is SendState.OK:
                acks[partition].append(outcome)
            elif outcome.retryable:
                left.append((partition, record))
                error = outcome.error
            else:
                result.refused[partition] = f"{record.topic} refused: {outcome.error}"
        pending = left
        if pending:
            log.warning("effects_wait_for_broker", records=len(pending), error=error)
            await asyncio.sleep(random.uniform(0, backoff_s))  # noqa: S311 - full jitter
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
    for of_partition in acks.values():
        of_partition.sort(key=lambda outcome: outcome.offset)
    return acks


async def _commit(source: RecordSource, next_offsets: Mapping[int, int]) -> bool:
    if not next_offsets:
        return True
    for attempt in range(1, _COMMIT_ATTEMPTS + 1):
        try:
            return await source.commit(next_offsets)
        except TransportError as exc:
            # Unknown is harmless: the next checkpoint commits past it.
            log.warning("commit_unknown", attempt=attempt, error=str(exc))
    return False
