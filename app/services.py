"""TradeProcessor: from events to positions and PnL; pure, synchronous, without any I/O."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from app.codec import decode_event
from app.errors import DecodeError, InvalidTradeError, RecordError
from app.headers import Origin, origin_of
from app.models import (
    Action,
    Fate,
    Position,
    ProcessedTrade,
    Refusal,
    TradeEvent,
    position_key,
)
from app.money import to_decimal
from app.pnl import apply_fill
from app.ports import RecordBatch
from app.timestamps import NS_PER_MS
from app.validation import DEFAULT_CURRENCY, CheckedTrade, check_event

FUTURE_TOLERANCE_NS: Final = 5 * 60 * 1_000_000_000
LATENCY_STRIDE: Final = 16
"""One event in so many gives its publish time for the latency figures."""


@dataclass(slots=True)
class BatchResult:
    """What one batch came to; its side effects are the caller's.

    Attributes:
        fates: Records by final fate; refused and misplaced ones count once their send is acked.
        refusals: Records to be dead-lettered.
        misplaced: Index and position key of records that belong to another partition.
        changed: Positions that changed, by key; the newest state of each.
        suspects: Booked trades by suspicion code.
        unknown_fields: Fields seen that this version does not know.
        already_applied: Records booked by an earlier life of this partition, skipped here.
        repaired: Records before the committed offset that had to be applied again.
        published_at: Publish times of a sample of the events.
    """

    fates: Counter[Fate] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    misplaced: list[tuple[int, str]] = field(default_factory=list)
    changed: dict[str, Position] = field(default_factory=dict)
    suspects: Counter[str] = field(default_factory=Counter)
    unknown_fields: int = 0
    already_applied: int = 0
    repaired: int = 0
    published_at: list[str] = field(default_factory=list)


class TradeProcessor:
    """Validates trades and keeps the positions of one partition (or of one program).

    Args:
        positions: State to start from.
        default_currency: Currency of a trade that names none.
        belongs: Whether a position key belongs to this partition; asked once for each key that is
            first seen. Without it every key is at home.
        rekeys: Whether misplaced records are to be re-keyed; otherwise they are refused.
    """

    def __init__(
        self,
        positions: Iterable[Position] = (),
        *,
        default_currency: str = DEFAULT_CURRENCY,
        belongs: Callable[[str], bool] | None = None,
        rekeys: bool = True,
    ) -> None:
        self.positions: dict[str, Position] = {p.key: p for p in positions}
        self._default_currency = default_currency
        self._belongs = belongs
        self._rekeys = rekeys

    def process(self, event: TradeEvent) -> ProcessedTrade:
        """Book one trade and show what it came to.

        Args:
            event: Plain Python numbers, text and `Decimal` are all fine; a float enters by its
                `repr`.

        Returns:
            Amounts as exact `Decimal`; `signed_notional` is > 0 for a BUY; `realized_pnl` is the
            position's so far and `realized_pnl_change` what this trade realised of it, before fees.

        Raises:
            InvalidTradeError: (a `ValueError`) the event cannot be booked; nothing has changed.
        """
        trade = check_event(event, default_currency=self._default_currency)
        _check_life_cycle(event)
        key = position_key(event.book, str(event.symbol))
        before = self._position(key, event)
        after = self._book(before, event, trade, before.source_offset + 1)
        self.positions[key] = after
        notional_e24 = trade.quantity_e8 * trade.price_e8 * trade.multiplier_e8
        return ProcessedTrade(
            trade_id=str(event.trade_id),
            symbol=after.symbol,
            book=after.book,
            side=str(event.side),
            notional=to_decimal(notional_e24, 24),
            signed_notional=to_decimal(trade.sign * notional_e24, 24),
            position_quantity=to_decimal(after.quantity_e8),
            average_price=to_decimal(after.average_price_e8),
            realized_pnl=to_decimal(after.realized_e24, 24),
            realized_pnl_change=to_decimal(after.realized_e24 - before.realized_e24, 24),
            unrealized_pnl=to_decimal(after.unrealized_e24, 24),
            fees=to_decimal(after.fees_e8),
            mark=to_decimal(after.mark_e8),
            suspects=list(trade.suspects),
        )

    def process_batch(  # noqa: C901, PLR0912 - the hot loop: each call in it costs throughput
        self, batch: RecordBatch, *, effects_from: int = 0
    ) -> BatchResult:
        """Process consecutive records of one partition; a bad one never stops the others.

        Args:
            batch: Records in offset order.
            effects_from: First offset whose fate is still open. Earlier records are replayed for
                their positions only: their dead letters were acknowledged before that offset was
                committed.

        Returns:
            The batch's fates, and what is left to send. The positions have changed already.
        """
        result = BatchResult()
        if not batch.values:
            return result
        horizon_ns = batch.records[0].timestamp * NS_PER_MS + FUTURE_TOLERANCE_NS
        booked = 0
        for index, value in enumerate(batch.values):
            offset = batch.offsets[index]
            is_open = offset >= effects_from
            try:
                event, is_plain, unknown_fields = decode_event(value)
                trade = check_event(
                    event, is_plain=is_plain, default_currency=self._default_currency
                )
                if not is_plain:
                    _check_life_cycle(event)
                origin = origin_of(batch.headers[index]) if index in batch.headers else None
                key = position_key(event.book, event.symbol)  # type: ignore[arg-type]  # checked
                position = self.positions.get(key)
                if position is None and self._is_misplaced(key, origin):
                    if is_open:
                        result.misplaced.append((index, key))
                    continue
                if position is None:
                    position = self._position(key, event)
                if offset <= position.source_offset:
                    # Booked by an earlier life, unless it was refused: that says it again.
                    self._check_currency(position, event)
                    result.already_applied += is_open
                    booked += is_open
                    continue
                if origin is not None and _is_second_copy(position, origin):
                    result.fates[Fate.DUPLICATE] += is_open
                    continue
                position = self._book(position, event, trade, offset)
            except RecordError as exc:
                if is_open:
                    result.refusals.append(_refusal(index, exc))
                continue
            if origin is not None:
                position = _with_origin(position, origin)
            self.positions[key] = position
            result.changed[key] = position
            if is_open:
                booked += 1
            else:
                result.repaired += 1
            if trade.suspects:
                result.suspects.update(trade.suspects)
            if trade.time_ns > horizon_ns and _is_in_future(trade, batch.records[index].timestamp):
                result.suspects["timestamp-in-future"] += 1
            result.unknown_fields += unknown_fields
            if not offset % LATENCY_STRIDE and event.published_at is not None:
                result.published_at.append(event.published_at)
        result.fates[Fate.BOOKED] += booked
        return result

    def _is_misplaced(self, key: str, origin: Origin | None) -> bool:
        if self._belongs is None or self._belongs(key):
            return False
        if origin is not None:  # moved once already: moving it again could go round for ever
            raise InvalidTradeError("key-mismatch", "re-keyed, and still in the wrong partition")
        if not self._rekeys:
            raise InvalidTradeError("key-mismatch", "the position key belongs to another partition")
        return True

    def _position(self, key: str, event: TradeEvent) -> Position:
        position = self.positions.get(key)
        if position is None:
            currency = event.currency or self._default_currency
            return Position(event.book or None, str(event.symbol), currency)
        return position

    def _check_currency(self, position: Position, event: TradeEvent) -> None:
        if (event.currency or self._default_currency) != position.currency:
            raise InvalidTradeError(
                "currency-differs-from-position", "currency differs from that of the position"
            )

    def _book(
        self, position: Position, event: TradeEvent, trade: CheckedTrade, offset: int
    ) -> Position:
        self._check_currency(position, event)
        if position.quantity_e8 and trade.multiplier_e8 != position.multiplier_e8:
            raise InvalidTradeError(
                "multiplier-differs-from-position",
                "contract_multiplier differs from that of the open position",
            )
        return apply_fill(
            position,
            signed_quantity_e8=trade.sign * trade.quantity_e8,
            price_e8=trade.price_e8,
            multiplier_e8=trade.multiplier_e8,
            fee_e8=trade.fee_e8,
            time_ns=trade.time_ns,
            offset=offset,
        )


def _check_life_cycle(event: TradeEvent) -> None:
    if event.action is not None and event.action != Action.NEW:
        raise InvalidTradeError(
            "lifecycle-unavailable", "AMEND and CANCEL need the ledger, which is not there"
        )
    if event.version is not None and event.version != 1:
        raise InvalidTradeError("version-invalid", "the version of a NEW trade must be 1")


_BUSINESS: Final = frozenset(
    {
        "lifecycle-unavailable",
        "version-invalid",
        "currency-differs-from-position",
        "multiplier-differs-from-position",
        "key-mismatch",
    }
)


def _refusal(index: int, exc: RecordError) -> Refusal:
    if isinstance(exc, DecodeError) and exc.reason.startswith(("body-", "schema-")):
        kind = "decode"
    else:
        kind = "business" if exc.reason in _BUSINESS else "validation"
    return Refusal(index, exc.reason, str(exc), kind, type(exc).__name__)


def _is_second_copy(position: Position, origin: Origin) -> bool:
    return position.origins is not None and origin.offset <= position.origins.get(
        origin.partition, -1
    )


def _with_origin(position: Position, origin: Origin) -> Position:
    # The highest origin offset is enough: records of one origin partition are re-keyed in order.
    origins = {**(position.origins or {}), origin.partition: origin.offset}
    return replace(position, origins=origins)


def _is_in_future(trade: CheckedTrade, appended_ms: int) -> bool:
    return trade.time_ns > appended_ms * NS_PER_MS + FUTURE_TOLERANCE_NS
