"""Effects of what was processed: acknowledged first, committed after.

Order: dead letters and re-keyed trades are acknowledged, with a ledger as the last step before the
COMMIT of its transaction, then positions, then the next offsets are committed by name. A crash
anywhere in between makes the records come again, and what is applied is recognised by its offset.
Positions come after dead letters because some refusals follow from a position: once a later state
is stored, they could not be judged again.

The refusal of a parked record follows from the time as well, so that another life might judge it
otherwise: it is stored first, in the ledger, then its dead letter is sent, and with the next flush
the record is parked no more.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Final

import structlog

from app.errors import OwnershipError, TransportError
from app.health import Health, Unready
from app.ledger_codec import LedgerRows
from app.models import Fate, LotChange, Position, Refusal
from app.pnl.fifo import FifoHolding
from app.pnl.holding import Holding
from app.ports import (
    Ledger,
    LedgerWrite,
    OutgoingRecord,
    Publisher,
    RecordSource,
    SendOutcome,
    SendState,
)
from app.stores.changelog import Changelog

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 5.0
_COMMIT_ATTEMPTS: Final = 3
_RECORDS_AT_ONCE: Final = 250
_SENDS_TIMEOUT_S: Final = 10.0
"""Of dead letters within a transaction; those that are acknowledged too late are sent once more."""


@dataclass(slots=True)
class PartitionEffects:
    """What the records of one partition up to `next_offset` have to leave behind.

    Attributes:
        next_offset: Where the group goes on once all of this is acknowledged.
        sends: Dead letters and re-keyed trades, in the order of their records.
        send_bytes: Their size in memory, about.
        touched: Holdings that have changed, each once; they go on changing.
        positions: Positions to write, by key.
        booked: Those of them that have changed since the ledger got them.
        lots: What became of the lots of those that are kept first in, first out.
        heartbeat: Record that shows an idle owner, if one is due.
        changelog_offset: Offset that our next write of a position should get.
        rows: Lines for the ledger, where there is one.
        ledger_offset: Next source offset that the ledger holds before them.
        late_sends: Dead letters of parked records, by offset: sent once the ledger has the refusal.
        sent_late: Offsets of those that were acknowledged before.
        fates: Fates that the records get with this checkpoint.
        reasons: Dead letters by reason code.
        kinds: Dead letters by kind of error.
        published_at: Publish times of a sample of the trades.
    """

    next_offset: int
    sends: list[OutgoingRecord] = field(default_factory=list)
    send_bytes: int = 0
    touched: dict[Holding, None] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    booked: dict[str, Position] = field(default_factory=dict)
    lots: dict[str, LotChange] = field(default_factory=dict)
    heartbeat: OutgoingRecord | None = None
    changelog_offset: int = 0
    rows: LedgerRows | None = None
    ledger_offset: int | None = None
    late_sends: dict[int, OutgoingRecord] = field(default_factory=dict)
    sent_late: list[int] = field(default_factory=list)
    fates: Counter[Fate] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    published_at: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many records it takes to send all of it, about."""
        sends = len(self.sends) + len(self.late_sends)
        return sends + len(self.touched) + len(self.positions)

    @property
    def has_parked(self) -> bool:
        """Whether parked records change, which may be without a next offset."""
        return bool(self.late_sends or self.sent_late)

    def add_sends(self, records: Sequence[OutgoingRecord]) -> None:
        """Add dead letters and re-keyed trades of the next records."""
        self.sends += records
        self.send_bytes += sum(record.size for record in records)

    def note_refusals(self, refusals: Collection[Refusal]) -> None:
        """Count records that are dead-lettered."""
        self.fates[Fate.DEAD_LETTERED] += len(refusals)
        self.reasons.update(refusal.reason for refusal in refusals)
        self.kinds.update(refusal.kind for refusal in refusals)

    def add_late_sends(self, records: Mapping[int, OutgoingRecord]) -> None:
        """Add dead letters of parked records."""
        self.late_sends |= records
        self.send_bytes += sum(record.size for record in records.values())

    def add_rows(self, rows: LedgerRows) -> None:
        """Add what the next records leave in the ledger."""
        if self.rows is None:
            self.rows = rows
        else:
            self.rows.absorb(rows)

    def freeze(self, next_offset: int) -> None:
        """Settle what is to be written: the state of every touched holding as it is now."""
        self.next_offset = next_offset
        # Of a position that was folded again it is the last holding that counts.
        self.booked = {holding.key: holding.position() for holding in self.touched}
        self.positions |= self.booked
        self.lots = {
            holding.key: holding.lot_change()
            for holding in self.touched
            if isinstance(holding, FifoHolding)
        }
        self.touched = {}

    def for_ledger(self) -> LedgerWrite:
        """Give what the ledger is to store of it."""
        rows = self.rows
        return LedgerWrite(
            expected=self.ledger_offset,
            next_offset=self.next_offset,
            plain_trades=rows.plain_trades if rows else (),
            trades=rows.trades if rows else (),
            corrections=rows.corrections if rows else (),
            dead_letters=rows.dead_letters if rows else (),
            changed=rows.changed if rows else (),
            refused_new=rows.refused_new if rows else (),
            positions=self.booked.values(),
            lots=self.lots,
            parked=list(rows.parked.values()) if rows else (),
            refused=rows.refused if rows else {},
            released=[*(rows.released if rows else ()), *self.sent_late],
        )

    def absorb(self, other: "PartitionEffects") -> None:
        """Take over what of acknowledged effects still waits for its commit."""
        self.next_offset = max(self.next_offset, other.next_offset)
        self.fates.update(other.fates)
        self.reasons.update(other.reasons)


@dataclass(slots=True)
class FlushResult:
    """What became of the effects that were sent.

    Attributes:
        acked_ns: Wall clock when the last of them was acknowledged, in UTC nanoseconds.
        changelog_offsets: Offset expected of the next position write, by partition.
        stale_keys: Keys to be written again, by partition.
        refused: Partitions with an effect that the broker will never take, and why.
        sends_s: How long dead letters and re-keyed trades took, in seconds.
        send_retries: How many of them were sent again or refused.
        lost: Partitions where another owner has written newer state: to be restored again.
    """

    acked_ns: int = 0
    changelog_offsets: dict[int, int] = field(default_factory=dict)
    stale_keys: dict[int, set[str]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    sends_s: float = 0.0
    send_retries: int = 0


async def flush(
    effects: Mapping[int, PartitionEffects],
    *,
    publisher: Publisher,
    ledger: Ledger | None,
    changelog: Changelog,
    positions: Mapping[int, Mapping[str, Position]],
    health: Health,
    on_retry: Callable[[], None],
    now_ns: Callable[[], int],
) -> FlushResult:
    """Publish the effects and await every one of them.

    Args:
        effects: By partition, frozen.
        publisher: Sends dead letters, re-keyed trades and positions.
        ledger: Stores trades, positions and offsets, if there is one.
        changelog: Builds position records and judges foreign ones.
        positions: All positions held, by partition, to compare foreign writes with.
        health: Told what is waited for.
        on_retry: Called before each attempt that repeats one.
        now_ns: Wall clock.

    Delivery:
        While a broker or the database is away this waits, for as long as it lasts; nothing is given
        up. A send or a transaction with an unknown outcome is repeated: every effect is recognised
        by its origin or offset.

    Cancellation:
        What was sent is recognised when the records come again.
    """
    result = FlushResult()
    patience = _Patience(health, on_retry)
    if ledger is None:
        sends = {p: list(effect.sends) for p, effect in effects.items() if effect.sends}
        await _send(sends, publisher, result, patience)
    else:
        await _book(ledger, effects, publisher, result, patience)
        late = {
            partition: list(effect.late_sends.values())
            for partition, effect in effects.items()
            if effect.late_sends
            and partition not in result.refused
            and partition not in result.lost
        }
        # The ledger has their refusals by now.
        await _send(late, publisher, result, patience)
    written = {}
    for partition, effect in effects.items():
        if partition not in result.refused and partition not in result.lost:
            written[partition] = await _position_records(changelog, partition, effect)
    for partition, acks in (await _publish_all(written, publisher, result, patience)).items():
        try:
            expected, stale = await _judged(
                changelog,
                effects[partition].changelog_offset,
                acks,
                positions.get(partition, {}),
                patience,
            )
        except OwnershipError as exc:
            result.lost[partition] = str(exc)
            continue
        result.changelog_offsets[partition] = expected
        if stale:
            result.stale_keys[partition] = stale
    result.acked_ns = now_ns()
    return result


class _RefusedError(Exception):
    """The broker will never take something that has to leave before a COMMIT."""


async def _book(
    ledger: Ledger,
    effects: Mapping[int, PartitionEffects],
    publisher: Publisher,
    result: FlushResult,
    patience: "_Patience",
) -> None:
    """Store in the ledger what goes beyond it, and send before the COMMIT what has to leave first.

    Not earlier: until the transaction has found the partitions to be ours, and every trade to be
    new that was believed to be, what was judged may be wrong.
    """
    writes = {
        partition: effect.for_ledger()
        for partition, effect in effects.items()
        if effect.has_parked or effect.next_offset > (effect.ledger_offset or 0)
    }
    sends = {p: list(effect.sends) for p, effect in effects.items() if effect.sends}
    assert sends.keys() <= writes.keys(), "what has to leave moves the offset"

    async def send(partitions: Collection[int]) -> None:
        left = {p: sends[p] for p in partitions if p in sends}
        try:
            # The database does not wait for ever in the midst of a transaction.
            async with asyncio.timeout(_SENDS_TIMEOUT_S):
                await _send(left, publisher, result, patience)
        except TimeoutError as exc:
            raise TransportError("dead letters are not acknowledged") from exc
        if result.refused.keys() & left.keys():
            raise _RefusedError

    while writes:
        try:
            result.lost |= await ledger.write(writes, send)
        except TransportError as exc:
            await patience.wait(len(writes), str(exc))
        except _RefusedError:
            writes = {p: write for p, write in writes.items() if p not in result.refused}
        else:
            patience.end()
            return


async def _send(
    sends: Mapping[int, list[OutgoingRecord]],
    publisher: Publisher,
    result: FlushResult,
    patience: "_Patience",
) -> None:
    """Send dead letters and re-keyed trades, and note how that went.

    Args:
        sends: They, by partition; what is acknowledged is taken out, so that whoever is interrupted
            goes on from there.
        publisher: Sends them.
        result: Takes what was refused, and how long it took.
        patience: Waits between attempts.
    """
    if not any(sends.values()):
        return
    started_s = asyncio.get_running_loop().time()
    before = patience.retried_records + len(result.refused)
    while some := {
        partition: of[:_RECORDS_AT_ONCE]
        for partition, of in sends.items()
        if of and partition not in result.refused
    }:
        await _publish_all(some, publisher, result, patience)
        for partition, of in some.items():
            del sends[partition][: len(of)]
    result.sends_s += asyncio.get_running_loop().time() - started_s
    result.send_retries += patience.retried_records + len(result.refused) - before


class _Patience:
    """Waits for a broker or the database, ever longer, and lets everybody know."""

    def __init__(self, health: Health, on_retry: Callable[[], None]) -> None:
        self._health = health
        self._on_retry = on_retry
        self._backoff_s = _FIRST_BACKOFF_S
        self.retried_records = 0

    async def wait(self, records: int, error: str) -> None:
        self.retried_records += records
        self._health.fail(Unready.EFFECTS, f"{records} effects wait: {error}")
        log.warning("effects_wait", records=records, error=error)
        await asyncio.sleep(random.uniform(0, self._backoff_s))  # noqa: S311 - full jitter
        self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        self._on_retry()

    def end(self) -> None:
        self._health.clear(Unready.EFFECTS)
        self._backoff_s = _FIRST_BACKOFF_S


async def _judged(
    changelog: Changelog,
    expected: int,
    acks: list[SendOutcome],
    ours: Mapping[str, Position],
    patience: _Patience,
) -> tuple[int, set[str]]:
    while True:
        try:
            found = await changelog.foreign_writes(acks[0].partition, expected, acks, ours)
        except TransportError as exc:
            await patience.wait(len(acks), str(exc))
        else:
            patience.end()
            return found


async def _position_records(
    changelog: Changelog, partition: int, effect: PartitionEffects
) -> list[OutgoingRecord]:
    records: list[OutgoingRecord] = []
    positions = iter(effect.positions.values())
    while some := list(islice(positions, _RECORDS_AT_ONCE)):
        records += changelog.records(partition, some)
        await asyncio.sleep(0)  # a restored partition may write all of its positions
    return records if effect.heartbeat is None else [*records, effect.heartbeat]


async def _publish_all(
    records: Mapping[int, list[OutgoingRecord]],
    publisher: Publisher,
    result: FlushResult,
    patience: _Patience,
) -> dict[int, list[SendOutcome]]:
    """Publish until everything is acknowledged or refused; give the acks in log order.

    Args:
        records: What to send, by the partition whose trades it comes from.
        publisher: Sends it.
        result: Takes the partitions with a record that is refused for good.
        patience: Waits between attempts.
    """
    pending = [(partition, record) for partition, of in records.items() for record in of]
    acks: dict[int, list[SendOutcome]] = defaultdict(list)
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
            await patience.wait(len(pending), error)
    patience.end()
    for of_partition in acks.values():
        of_partition.sort(key=attrgetter("offset"))
    return acks


async def commit(
    source: RecordSource, next_offsets: Mapping[int, int], *, on_retry: Callable[[], None]
) -> bool:
    """Commit by name; False when the partitions are not ours any more, or it is not known."""
    for attempt in range(1, _COMMIT_ATTEMPTS + 1):
        try:
            return await source.commit(next_offsets)
        except TransportError as exc:
            # Unknown is harmless: the next checkpoint commits past it.
            log.warning("commit_unknown", attempt=attempt, error=str(exc))
            on_retry()
    return False
