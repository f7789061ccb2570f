"""The processor where there is a ledger: trades live on after they were booked.

A cost method depends on the path, so what one trade did to a position cannot be taken out of it: an
AMEND or a CANCEL folds all fills of the position again, in the order of their execution. The fills
are loaded for a position when the first such event of it comes, and then kept up to date as long as
there is room, so that the next ones need not be asked for.

An event that comes before the one that it follows is parked, and judged again when that is applied.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from msgspec import structs

from app.approved import NOTHING
from app.codec import PlainEvent, decode_event
from app.dedupe import LedgerIdentity
from app.errors import InvalidTradeError, RecordError
from app.models import Action, CostMethod, Fate, NumberedLots, Position, TradeEvent, position_key
from app.parking import Parking, Waiting
from app.pnl.fifo import NO_LOTS, FifoHolding
from app.pnl.fills import Correction, Fill, method_of, removed, replaced, replay
from app.pnl.holding import Holding
from app.ports import ParkedRecord, RecordBatch, StoredTrade
from app.reference import Reference
from app.services import BatchResult, Incoming, Settled, TradeProcessor, refusal_of
from app.timestamps import NS_PER_S
from app.validation import DEFAULT_CURRENCY
from app.verdicts import (
    EXECUTION_TIME_CHANGED,
    PARK_OVERFLOW,
    Judgement,
    KnownTrade,
    LifeEvent,
    Verdict,
    applied,
    judge,
    judge_waiting,
    release,
)

PARK_MAX: Final = 10_000
PARK_DEADLINE_NS: Final = 3600 * NS_PER_S
NOTHING_OPEN: Final[Mapping[str, NumberedLots]] = MappingProxyType({})
MOST_FILLS: Final = 200_000
"""Kept of the positions of a partition; those that are needed now are kept in any case."""

_MESSAGES: Final = {
    "version-conflict": "another event with this trade_id and version is booked",
    "after-cancel": "the trade is cancelled, which is final",
    "version-invalid": "a NEW trade has version 1, and what changes it a higher one",
    "key-changed": "book and symbol of a trade never change: send a CANCEL and a NEW",
    "history-pruned": "trades of the position are pruned, so that it cannot be folded again",
    "orphan-lifecycle": "what it follows did not come in time",
    "park-overflow": "it comes before what it follows, and there is no space to wait",
}


class LedgerProcessor(TradeProcessor):
    """Keeps the positions of one partition, whose trades may be amended and cancelled.

    Args:
        positions: State to start from.
        default_currency: Currency of a trade that names none.
        belongs: As of `TradeProcessor`; likewise `rekeys`.
        rekeys: See `belongs`; likewise `reference` and `is_strict`.
        reference: See `rekeys`.
        is_strict: See `rekeys`.
        recent: As of `LedgerIdentity`.
        park_max: Events that may wait for another one of their trade.
        park_deadline_ns: How long each of them may.
        fifo_books: Books that are kept first in, first out, as of `method_of`.
        lots: Their lots, by position key, where there are any.

    Raises:
        ValueError: The lots of a position do not add up to it; says which.

    Attributes:
        identity: The trades that are known.
    """

    def __init__(
        self,
        positions: Iterable[Position] = (),
        *,
        default_currency: str = DEFAULT_CURRENCY,
        belongs: Callable[[str], bool] | None = None,
        rekeys: bool = True,
        reference: Reference | None = None,
        is_strict: bool = False,
        recent: int = 0,
        park_max: int = PARK_MAX,
        park_deadline_ns: int = PARK_DEADLINE_NS,
        fifo_books: Collection[str] = (),
        lots: Mapping[str, NumberedLots] = NOTHING_OPEN,
    ) -> None:
        self._fifo_books = fifo_books
        self._stored_lots = dict(lots)
        super().__init__(
            positions,
            default_currency=default_currency,
            belongs=belongs,
            rekeys=rekeys,
            reference=reference,
            is_strict=is_strict,
        )
        self._parking = Parking(most=park_max, deadline_ns=park_deadline_ns)
        self._late: list[ParkedRecord] = []
        self.window = self.identity = LedgerIdentity(
            recent, default_currency, self._parking.trade_ids
        )
        self._histories: dict[str, dict[str, Fill]] = {}
        self._pruned: set[str] = set()

    def _holding(self, position: Position) -> Holding:
        if method_of(position.book, self._fifo_books) is CostMethod.AVERAGE:
            return Holding(position)
        try:
            return FifoHolding(position, self._stored_lots.pop(position.key, NO_LOTS))
        except ValueError as exc:
            raise ValueError(f"{position.key}: {exc}") from exc

    # -- what it has to be told before a batch

    def missing_histories(
        self, batch: RecordBatch, events: Sequence[PlainEvent | None], trade_ids: Sequence[str]
    ) -> list[str]:
        """Give the keys of the positions whose past the next events may change.

        Args:
            batch: What comes next.
            events: What `read_plain` made of it.
            trade_ids: The trades that it names.
        """
        plain = zip(batch.values, events, strict=True)
        changed = (_key_of_change(value) for value, event in plain if event is None)
        keys = {key for key in changed if key is not None}
        keys.update(self._parking.position_keys(trade_ids))
        if not keys and not self._histories:
            return []
        self._make_room(keys)
        for key in keys - self._holdings.keys():
            self._histories[key] = {}  # what is not there yet has no past
        return sorted(keys - self._histories.keys() - self._pruned)

    def load_history(self, key: str, fills: Iterable[Fill] | None) -> None:
        """Remember the fills that were booked of a position, up to the last record processed.

        Args:
            key: Of the position.
            fills: They; `None` where some of them are gone.
        """
        if fills is None:
            self._pruned.add(key)
            return
        self._histories[key] = {fill.trade_id: fill for fill in fills}
        self._approve(self._holdings[key])

    def recall(
        self, found: Mapping[str, StoredTrade], events: list[PlainEvent | None]
    ) -> list[PlainEvent | None]:
        """Remember what the ledger has of the trades that come next.

        Args:
            found: That, by trade id.
            events: What `read_plain` made of the next batch.

        Returns:
            What to process of them: an event of a trade that is known needs a closer look.
        """
        self.identity.found = found
        if not found:
            return events
        return [None if event and event.trade_id in found else event for event in events]

    def restore(self, records: Iterable[ParkedRecord]) -> None:
        """Go on with the records that the ledger has parked, by offset; before the first batch."""
        for record in records:
            if record.refusal is not None:
                self._late.append(record)
                continue
            try:
                came = self._read_record(record, record.headers)
            except RecordError as exc:  # by a rule that was not there when it was parked
                self._late.append(replace(record, refusal=refusal_of(exc)))
            else:
                self._let_wait(record, came, self._life_event(came))

    # -- what waits

    @property
    def parked(self) -> frozenset[int]:
        """Offsets of the records that were passed and have no fate yet."""
        return frozenset([*self._parking.offsets, *(record.offset for record in self._late)])

    def awaited(self, trade_ids: Collection[str]) -> list[str]:
        """Give those of some trades that something waits for."""
        waiting = self._parking.trade_ids
        return [trade_id for trade_id in trade_ids if trade_id in waiting] if waiting else []

    @property
    def has_parked(self) -> bool:
        """Whether there are any."""
        return bool(self._parking.offsets or self._late)

    def overdue(self, now_ns: int, *, at_most: int) -> list[ParkedRecord]:
        """Give up what has waited for too long.

        Args:
            now_ns: Time up to which everything is processed, UTC nanoseconds, by the clock of
                `process_batch`.
            at_most: Give up so many; the others are for the next call.

        Returns:
            What is to be dead-lettered, each with its refusal.
        """
        late, self._late = self._late[:at_most], self._late[at_most:]
        while len(late) < at_most and (one := self._parking.first_due()) is not None:
            judgement = judge_waiting(one.parked, now_ns=now_ns)
            if judgement is None:
                break
            self._parking.remove(one)
            late.append(replace(one.record, refusal=refusal_of(_refused(judgement.reason))))
        return late

    def _let_wait(self, record: ParkedRecord, came: Incoming, event: LifeEvent) -> None:
        self._parking.add(record, replace(came, record=record), event)
        self.identity.expect(str(came.event.trade_id))

    def _take(self, result: BatchResult, came: Incoming, *, is_open: bool) -> Settled:
        trade_id = str(came.event.trade_id)
        try:
            settled = super()._take(result, came, is_open=is_open)
        except InvalidTradeError:
            # It may be a repeat of long ago, which its position would not take today.
            if result.rows is not None and self.identity.get(trade_id) is None:
                result.rows.refused_new.append(trade_id)
            raise
        if settled.waits is not None:
            self._park(result, came, settled.waits)
        elif settled.fate is None and trade_id in self._parking.trade_ids:
            self._release(result, trade_id)
        return settled

    def _park(self, result: BatchResult, came: Incoming, event: LifeEvent) -> None:
        assert result.rows is not None, "the ledger takes what waits"
        sent = came.record
        record = ParkedRecord(
            sent.offset, sent.timestamp, sent.key, came.value, tuple(sent.headers), result.now_ns
        )
        result.rows.park(record, came.event)
        if self._parking.is_full:
            # Whether there is space depends on the clock: it is refused only once the ledger says
            # so, as what waits in vain is, or another life might find space and book it.
            refusal = refusal_of(_refused(PARK_OVERFLOW.reason))
            result.late_refusals.append(replace(record, refusal=refusal))
        else:
            self._let_wait(record, came, event)

    def _release(self, result: BatchResult, trade_id: str) -> None:
        """Judge what waits for a trade that has changed, as if it came now."""
        parking = self._parking
        while judged := release(
            self.identity.get(trade_id), parking.of_trade(trade_id), keeps_history=True
        ).judged:
            for parked, _ in judged:
                self._take_again(result, parking[parked.arrival])

    def _take_again(self, result: BatchResult, one: Waiting) -> None:
        assert result.rows is not None, "the ledger has what waits"
        try:
            settled = super()._take(result, one.came, is_open=True)
        except InvalidTradeError as exc:
            self._parking.remove(one)
            result.late_refusals.append(replace(one.record, refusal=refusal_of(exc)))
            return
        if settled.waits is None:  # otherwise what it would have followed was refused
            self._parking.remove(one)
            result.rows.release(one.record.offset)

    # -- histories

    def _make_room(self, wanted: Collection[str]) -> None:
        count = sum(map(len, self._histories.values()))
        for key in list(self._histories):
            holding = self._holdings.get(key)
            if holding is None or (count > MOST_FILLS and key not in wanted):
                count -= len(self._histories.pop(key))
                if holding is not None:
                    self._approve(holding)

    def _approve(self, holding: Holding) -> None:
        if holding.key in self._histories:
            holding.approved = NOTHING  # each of its fills has to be noted
        else:
            super()._approve(holding)

    # -- what becomes of an event

    def _check_action(self, event: TradeEvent) -> None:
        """Let every action pass: it is judged by what is known of its trade."""

    def _settle(self, holding: Holding, came: Incoming) -> Settled:
        event, trade = came.event, came.trade
        trade_id = str(event.trade_id)
        known = self.identity.get(trade_id)
        if known is None and event.action in (None, Action.NEW) and event.version in (None, 1):
            self._book(holding, event, trade, came.offset)
            self.identity.note(event, came.value)
            if (history := self._histories.get(holding.key)) is not None:
                history[trade_id] = _fill(came)
            return Settled(None, holding, event, trade)
        sent = self._life_event(came)
        judgement = judge(known, sent)
        if judgement.verdict is Verdict.PARK:
            return Settled(None, holding, event, trade, waits=sent)
        if judgement.verdict in _FATES:
            return Settled(_FATES[judgement.verdict], holding, event, trade)
        if judgement.verdict is not Verdict.APPLY or known is None:
            raise _refused(judgement.reason)
        settled = self._change(holding, came, known, judgement)
        self.identity.put(trade_id, applied(known, sent, judgement, keeps_history=True))
        return replace(settled, content=sent.content)

    def _life_event(self, came: Incoming) -> LifeEvent:
        event = came.event
        return LifeEvent(
            action=Action(event.action or Action.NEW),
            content=self.identity.content_of(event),
            position_key=position_key(event.book, str(event.symbol)),
            version=event.version,
            time_ns=came.trade.time_ns,
            event_id=event.event_id,
            prev_event_id=event.prev_event_id,
        )

    def _change(
        self, holding: Holding, came: Incoming, known: KnownTrade, judgement: Judgement
    ) -> Settled:
        """Apply an AMEND or a CANCEL: fold the position again."""
        event, trade = came.event, came.trade
        trade_id, history = str(event.trade_id), self._histories.get(holding.key, {})
        if holding.key in self._pruned:
            raise _refused("history-pruned")
        if known.position_key != holding.key or trade_id not in history:
            raise _refused("key-changed")
        if event.action == Action.CANCEL:
            fills = removed(history.values(), trade_id)
        else:
            self._check_currency(holding, event)
            fills = replaced(history.values(), _fill(came))
        before = holding.position()
        after = replay(fills, holding.method, of=before)
        # What has waited stands before the event that let it go on, which is the newest.
        after.source_offset = max(before.source_offset, came.offset)
        self._histories[holding.key] = {fill.trade_id: fill for fill in fills}
        self._hold(after)
        self._approve(after)
        if EXECUTION_TIME_CHANGED in judgement.flags and event.event_time is None:
            event = structs.replace(event, event_time=event.timestamp)
        return Settled(
            None,
            after,
            structs.replace(event, version=judgement.version),
            trade if known.time_ns is None else structs.replace(trade, time_ns=known.time_ns),
            suspects=judgement.flags,
            correction=Correction(before, after.position()),
        )


_FATES: Final = {Verdict.DUPLICATE: Fate.DUPLICATE, Verdict.STALE: Fate.STALE}


def _refused(reason: str | None) -> InvalidTradeError:
    return InvalidTradeError(str(reason), _MESSAGES[str(reason)])


def _fill(came: Incoming) -> Fill:
    trade = came.trade
    return Fill(
        str(came.event.trade_id),
        trade.time_ns,
        0,  # a position lives in one partition
        came.offset,
        trade.sign * trade.quantity_e8,
        trade.price_e8,
        trade.multiplier_e8,
        trade.fee_e8,
    )


def _key_of_change(value: bytes | None) -> str | None:
    """Give the key of the position whose past a record may change; `None` for most."""
    try:
        event, _, _ = decode_event(value)
    except RecordError:
        return None
    if event.action in (None, Action.NEW) or not event.symbol:
        return None
    return position_key(event.book, event.symbol)
