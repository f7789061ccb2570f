"""Bugs that are planted into the consumer of a test: a harness that does not find them is no use.

Each one breaks a promise in a way that somebody has shipped somewhere. They are put into the
classes of the product in the process of `worker`, before it starts.
"""

import asyncio
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import asyncpg
from aiokafka.errors import KafkaError
from msgspec.structs import replace

from app import ledger_processor
from app.config import Settings
from app.consumer import TradeConsumer
from app.errors import UnreadableError
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.publisher import KafkaPublisher
from app.ledger_processor import LedgerProcessor
from app.pnl import fills
from app.pnl.fills import Fill
from app.pnl.holding import Holding
from app.ports import (
    Assignment,
    BeforeCommit,
    LedgerWrite,
    OutgoingRecord,
    ParkedRecord,
    RecordBatch,
    SendOutcome,
    SendState,
    nothing_before,
)
from app.services import TradeProcessor
from app.stores.changelog import Changelog, Restored
from app.stores.postgres import PostgresLedger
from app.verdicts import Judgement, KnownTrade, LifeEvent

_LATE_S: Final = 1.0
_APART_S: Final = 0.2
_late: set[asyncio.Task[Any]] = set()  # an event loop holds its tasks weakly


def _commits_first(poll: Any) -> Any:
    """Commit what was fetched before it is processed."""

    async def hasty(self: KafkaSource, *, timeout_s: float) -> list[RecordBatch]:
        batches: list[RecordBatch] = await poll(self, timeout_s=timeout_s)
        if batches:
            await self.commit({batch.partition: batch.next_offset for batch in batches})
        return batches

    return hasty


def _commits_unnamed(_: Any) -> Any:
    """Commit without naming offsets: whatever the client has handed out counts as done."""

    async def unnamed(self: KafkaSource, next_offsets: Mapping[int, int]) -> bool:
        try:
            await self._consumer.commit()
        except KafkaError:
            return False
        return bool(next_offsets)

    return unnamed


def _not_awaited(topic_of: Callable[[Settings], str]) -> Callable[[Any], Any]:
    """Send the records of one topic without waiting for what becomes of them."""

    def bug(publish: Any) -> Any:
        async def later(sender: KafkaPublisher, records: list[OutgoingRecord]) -> None:
            await asyncio.sleep(_LATE_S)
            await publish(sender, records)

        async def careless(
            self: KafkaPublisher, records: Sequence[OutgoingRecord]
        ) -> list[SendOutcome]:
            topic = topic_of(Settings.from_env())
            others = iter(await publish(self, [r for r in records if r.topic != topic]))
            task = asyncio.ensure_future(later(self, [r for r in records if r.topic == topic]))
            _late.add(task)
            task.add_done_callback(_late.discard)
            claimed = SendOutcome(SendState.OK, 0, 0)
            return [claimed if record.topic == topic else next(others) for record in records]

        return careless

    return bug


def _books_again(restore: Any) -> Any:
    """Forget up to where the restored positions cover the source."""

    async def forgetful(self: Changelog, partition: int) -> Restored:
        restored: Restored = await restore(self, partition)
        for key, position in restored.positions.items():
            restored.positions[key] = replace(position, source_offset=-1)
        return restored

    return forgetful


def _swallows_unreadable(poll: Any) -> Any:
    """Catch whatever a poll raises, and go on after it, whatever is missing then."""
    os.environ["ON_GAP"] = "continue"

    async def unmoved(self: KafkaSource, *, timeout_s: float) -> list[RecordBatch]:
        try:
            batches: list[RecordBatch] = await poll(self, timeout_s=timeout_s)
        except UnreadableError as exc:
            backlog = self._backlog.pop(exc.partition)
            self._sought[exc.partition] = backlog.popleft().next_offset
            if backlog:
                self._backlog[exc.partition] = backlog
            return []
        return batches

    return unmoved


def _float_money(fill: Any) -> Any:
    """Compute values in binary floating point."""

    def floating(self: Holding, quantity: int, value_e24: int, time_ns: int, offset: int) -> None:
        fill(self, quantity, int(float(value_e24)), time_ns, offset)

    return floating


def _last_record_wins(fold: Any) -> Any:
    """Restore the last record of each key instead of the newest."""

    def naive(
        self: Changelog, restored: Restored, newest: Any, record: Any, partition: int
    ) -> None:
        newest.pop((record.key or b"").decode(), None)
        fold(self, restored, newest, record, partition)

    return naive


def _no_window(init: Any) -> Any:
    """Recognise no trade that was sent twice."""

    def blind(self: TradeProcessor, *args: Any, **named: Any) -> None:
        init(self, *args, **named | {"dedupe_window": 0})

    return blind


def _no_seek(_: Any) -> Any:
    """Poll on after a failed fetch, from wherever the client's positions are by then."""
    os.environ["KAFKA_RAW_BATCHES"] = "false"  # there a failed fetch has moved those of others

    def unmoved(_: TradeConsumer) -> None:
        """Leave every position where it is."""

    return unmoved


def _no_epoch(assigned: Any) -> Any:
    """Let the loop think that the first assignment lasts for ever."""

    def unnoticed(self: KafkaSource, partitions: Any) -> None:
        assigned(self, partitions)
        self._assignment = Assignment(1, self._assignment.partitions)

    return unnoticed


def _no_new_producer(ensure: Any) -> Any:
    """Keep a producer after it has died."""

    async def faithful(self: KafkaPublisher) -> None:
        self._is_dead = self._producer is None
        await ensure(self)

    return faithful


def _no_origin(publish: Any) -> Any:
    """Re-key trades without a word of where they stood."""

    async def anonymous(
        self: KafkaPublisher, records: Sequence[OutgoingRecord]
    ) -> list[SendOutcome]:
        topic = Settings.from_env().kafka_topic
        bare = [replace(r, headers=()) if r.topic == topic else r for r in records]
        outcomes: list[SendOutcome] = await publish(self, bare)
        return outcomes

    return anonymous


def _without_rows(write: LedgerWrite) -> LedgerWrite:
    """Leave the positions, and what follows from them."""
    return LedgerWrite(
        write.expected, write.next_offset, positions=write.positions, lots=write.lots
    )


def _positions_apart(write: Any) -> Any:
    """Store positions in a transaction of their own, after that of trades and offset."""

    async def apart(
        self: PostgresLedger,
        writes: Mapping[int, LedgerWrite],
        before_commit: BeforeCommit = nothing_before,
    ) -> dict[int, str]:
        bare = {n: dataclasses.replace(one, positions=()) for n, one in writes.items()}
        refused: dict[int, str] = await write(self, bare, before_commit)
        await asyncio.sleep(_APART_S)
        positions = {n: _without_rows(one) for n, one in writes.items() if n not in refused}
        async with self._connection() as connection, connection.transaction():
            await self._store(connection, positions)
        return refused

    return apart


def _offset_first(store: Any) -> Any:
    """Move the offset in a transaction of its own, before that of what it stands for."""

    async def hasty(
        self: PostgresLedger, connection: Any, writes: Mapping[int, LedgerWrite]
    ) -> None:
        bare = {
            n: dataclasses.replace(_without_rows(one), positions=()) for n, one in writes.items()
        }
        await store(self, connection, bare)
        await connection.execute("COMMIT; BEGIN")
        await asyncio.sleep(_APART_S)
        await store(self, connection, writes)

    return hasty


def _unfenced(write: Any) -> Any:
    """Compare neither owner nor offset, and leave out the rows that are there already."""

    async def stubborn(
        self: PostgresLedger,
        writes: Mapping[int, LedgerWrite],
        before_commit: BeforeCommit = nothing_before,
    ) -> dict[int, str]:
        refused: dict[int, str] = await write(self, writes, before_commit)
        await before_commit(refused)
        for number in refused:
            try:
                async with self._connection() as connection, connection.transaction():
                    await self._store(connection, {number: writes[number]})
            except asyncpg.UniqueViolationError:
                async with self._connection() as connection, connection.transaction():
                    await self._store(connection, {number: _without_rows(writes[number])})
        return {}

    return stubborn


def _arrival_order(_: Any) -> Any:
    """Fold the fills of a position as they have come, when one of them is changed."""

    def as_they_came(unordered: Iterable[Fill]) -> list[Fill]:
        return sorted(unordered, key=lambda fill: fill.offset)

    return as_they_came


def _newest_wins(judge: Any) -> Any:
    """Believe whoever speaks last, whatever version it is that he changes."""

    def trusting(known: KnownTrade | None, event: LifeEvent) -> Judgement:
        judgement: Judgement = judge(known, replace(event, version=None))
        return judgement

    return trusting


def _hasty_history(_: Any) -> Any:
    """Read the past of a position while a part of it is still on its way to the ledger."""

    async def at_once(_loop: TradeConsumer, _partition: Any) -> None:
        """Wait for nothing."""

    return at_once


def _forgets_what_waits(_: Any) -> Any:
    """Leave what an earlier life has parked where it is."""

    def forgetful(_processor: LedgerProcessor, _records: Iterable[ParkedRecord]) -> None:
        """Take none of it."""

    return forgetful


BUGS: Final[dict[str, tuple[Any, str, Callable[[Any], Any]]]] = {
    "commits-first": (KafkaSource, "poll", _commits_first),
    "commits-unnamed": (KafkaSource, "commit", _commits_unnamed),
    "letters-not-awaited": (KafkaPublisher, "publish", _not_awaited(lambda s: s.dlq_topic)),
    "positions-not-awaited": (KafkaPublisher, "publish", _not_awaited(lambda s: s.positions_topic)),
    "books-again": (Changelog, "restore", _books_again),
    "swallows-unreadable": (KafkaSource, "poll", _swallows_unreadable),
    "float-money": (Holding, "fill", _float_money),
    "last-record-wins": (Changelog, "_fold", _last_record_wins),
    "no-seek": (TradeConsumer, "_seek_all", _no_seek),
    "no-epoch": (KafkaSource, "on_partitions_assigned", _no_epoch),
    "no-new-producer": (KafkaPublisher, "_ensure_producer", _no_new_producer),
    "no-origin": (KafkaPublisher, "publish", _no_origin),
    "no-window": (TradeProcessor, "__init__", _no_window),
    "ledger-commits-first": (KafkaSource, "poll", _commits_first),
    "ledger-letters-late": (KafkaPublisher, "publish", _not_awaited(lambda s: s.dlq_topic)),
    "ledger-offset-first": (PostgresLedger, "_store", _offset_first),
    "ledger-positions-apart": (PostgresLedger, "write", _positions_apart),
    "ledger-unfenced": (PostgresLedger, "write", _unfenced),
    "ledger-arrival-order": (fills, "in_order", _arrival_order),
    "ledger-hasty-history": (TradeConsumer, "_until_booked", _hasty_history),
    "ledger-forgets-parked": (LedgerProcessor, "restore", _forgets_what_waits),
    "ledger-newest-wins": (ledger_processor, "judge", _newest_wins),
}
"""Where each bug goes: the class or module, the attribute, and what takes its place."""


def plant(name: str) -> None:
    """Put a bug into this process."""
    owner, attribute, bug = BUGS[name]
    setattr(owner, attribute, bug(getattr(owner, attribute)))
