"""The processor where there is a ledger: trades live on after they were booked.

A cost method depends on the path, so what one trade did to a position cannot be taken out of it: an
AMEND or a CANCEL folds all fills of the position again, in the order of their execution. The fills
are loaded for a position when the first such event of it comes, and then kept up to date as long as
there is room, so that the next ones need not be asked for.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from msgspec import structs

from app.approved import NOTHING
from app.codec import PlainEvent, decode_event
from app.dedupe import LedgerIdentity
from app.errors import InvalidTradeError, RecordError
from app.fills import Correction, Fill, removed, replaced, replay
from app.models import Action, Fate, Position, TradeEvent, position_key
from app.pnl import Holding
from app.ports import RecordBatch, StoredTrade
from app.reference import Reference
from app.services import Incoming, Settled, TradeProcessor
from app.validation import DEFAULT_CURRENCY
from app.verdicts import (
    EXECUTION_TIME_CHANGED,
    Judgement,
    KnownTrade,
    LifeEvent,
    Verdict,
    applied,
    judge,
)

MOST_FILLS: Final = 200_000
"""Kept of the positions of a partition; those that are needed now are kept in any case."""

_MESSAGES: Final = {
    "version-conflict": "another event with this trade_id and version is booked",
    "after-cancel": "the trade is cancelled, which is final",
    "version-invalid": "a NEW trade has version 1, and what changes it a higher one",
    "key-changed": "book and symbol of a trade never change: send a CANCEL and a NEW",
    "history-pruned": "trades of the position are pruned, so that it cannot be folded again",
    "awaiting-new": "there is no trade that it could change",
    "version-gap": "a version before it is missing",
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
    ) -> None:
        super().__init__(
            positions,
            default_currency=default_currency,
            belongs=belongs,
            rekeys=rekeys,
            reference=reference,
            is_strict=is_strict,
        )
        self.window = self.identity = LedgerIdentity(recent, default_currency)
        self._histories: dict[str, dict[str, Fill]] = {}
        self._pruned: set[str] = set()

    # -- what it has to be told before a batch

    def missing_histories(
        self, batch: RecordBatch, events: Sequence[PlainEvent | None]
    ) -> list[str]:
        """Give the keys of the positions whose past the next events may change.

        Args:
            batch: What comes next.
            events: What `read_plain` made of it.
        """
        plain = zip(batch.values, events, strict=True)
        changed = (_key_of_change(value) for value, event in plain if event is None)
        keys = {key for key in changed if key is not None}
        if not keys:
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
        sent = LifeEvent(
            action=Action(event.action or Action.NEW),
            content=self.identity.content_of(event),
            position_key=holding.key,
            version=event.version,
            time_ns=trade.time_ns,
            event_id=event.event_id,
            prev_event_id=event.prev_event_id,
        )
        judgement = judge(known, sent)
        if judgement.verdict in _FATES:
            return Settled(_FATES[judgement.verdict], holding, event, trade)
        if judgement.verdict is not Verdict.APPLY or known is None:
            raise _refused(judgement.reason)
        settled = self._change(holding, came, known, judgement)
        self.identity.put(trade_id, applied(known, sent, judgement, keeps_history=True))
        return replace(settled, content=sent.content)

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
        after = replay(fills, of=before)
        after.source_offset = came.offset
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
    """Give the error of an event that cannot be applied; one that comes too early counts as late.

    It does not wait for what is missing.
    """
    code = "orphan-lifecycle" if reason in ("awaiting-new", "version-gap") else str(reason)
    return InvalidTradeError(code, _MESSAGES[str(reason)])


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
