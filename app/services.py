"""TradeProcessor: from events to positions and PnL; pure, synchronous, without any I/O."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Final

from app.approved import FRACTIONS, NOTHING, WHOLE_UNITS
from app.codec import (
    NotPlainError,
    PlainEvent,
    decode_alone,
    decode_event,
    decode_plain,
    published_at,
)
from app.dedupe import DedupeWindow, Identity
from app.errors import DecodeError, DoubtfulTradeError, InvalidTradeError, RecordError
from app.headers import Origin, origin_of, size_of
from app.ledger_codec import LedgerRows
from app.models import (
    Action,
    Fate,
    Position,
    ProcessedTrade,
    Refusal,
    TradeEvent,
    position_key,
)
from app.money import ONE_E8, to_decimal
from app.pnl.fills import Correction
from app.pnl.holding import Holding
from app.ports import Headers, ParkedRecord, Record, RecordBatch
from app.reference import Reference
from app.timestamps import KNOWN_HEADS, KNOWN_TAILS, MAX_NS, NS_PER_MS, utc_ns
from app.validation import DEFAULT_CURRENCY, CheckedTrade, check_event, refuse_doubtful
from app.verdicts import LifeEvent

FUTURE_TOLERANCE_NS: Final = 5 * 60 * 1_000_000_000
MAX_MOVED_HEADER_BYTES: Final = 512 * 1024
"""Of a record that goes to another partition; a broker would refuse to take much larger ones."""
LATENCY_STRIDE: Final = 64
"""One event in so many gives its publish time for the latency figures."""


_NO_HOLDING: Final = Holding(Position(None, ""))


@dataclass(slots=True)
class BatchResult:
    """What one batch came to; its side effects are the caller's.

    Attributes:
        now_ns: Wall clock when it was processed, UTC nanoseconds.
        fates: Records by final fate; refused and misplaced ones count once their send is acked.
        refusals: Records to be dead-lettered.
        late_refusals: Parked records to be dead-lettered, each with its refusal.
        misplaced: Index and position key of records that belong to another partition.
        touched: Holdings that changed, each once.
        suspects: Booked trades by suspicion code.
        unknown_fields: Fields seen that this version does not know.
        already_applied: Records booked by an earlier life of this partition, skipped here.
        repaired: Records before the committed offset that had to be applied again.
        published_at: Publish times of a sample of the events.
        judged: Indexes of the records that were judged by all the rules; the others are booked.
        rows: What the batch leaves in the ledger, where there is one.
    """

    now_ns: int = 0
    fates: Counter[Fate] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    late_refusals: list[ParkedRecord] = field(default_factory=list)
    misplaced: list[tuple[int, str]] = field(default_factory=list)
    touched: list[Holding] = field(default_factory=list)
    suspects: Counter[str] = field(default_factory=Counter)
    unknown_fields: int = 0
    already_applied: int = 0
    repaired: int = 0
    published_at: list[str] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    rows: LedgerRows | None = None

    @property
    def changed(self) -> dict[str, Position]:
        """Positions that changed, by key, as they are at the moment of asking."""
        return {holding.key: holding.position() for holding in self.touched}


@dataclass(frozen=True, slots=True)
class Incoming:
    """One record whose event can be booked as far as it alone is concerned.

    Attributes:
        record: As it stands in the log, or stood there before it was parked.
        event: What it says.
        trade: The numbers of it.
        origin: Where it stood before it was re-keyed, if it was.
        suspects: What is doubtful about it alone.
        unknown_fields: Fields that this version does not know.
    """

    record: Record
    event: TradeEvent
    trade: CheckedTrade
    origin: Origin | None
    suspects: tuple[str, ...]
    unknown_fields: int

    @property
    def offset(self) -> int:
        """Where it stands."""
        return self.record.offset

    @property
    def value(self) -> bytes:
        """Its body."""
        return self.record.value or b""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one trade that can be booked.

    Attributes:
        fate: `None` where it is booked now; `BOOKED` where an earlier life of the partition did.
        holding: Its position, afterwards.
        event: What there is to store of it.
        trade: Its numbers.
        suspects: What is doubtful about it besides its numbers.
        content: Hash of what was sent, where that is not what is stored.
        correction: What it changed of the past.
        waits: What is to be judged again, where it waits for another event and has no fate yet.
    """

    fate: Fate | None
    holding: Holding
    event: TradeEvent
    trade: CheckedTrade
    suspects: tuple[str, ...] = ()
    content: bytes | None = None
    correction: Correction | None = None
    waits: LifeEvent | None = None


class TradeProcessor:
    """Validates trades and keeps the positions of one partition (or of one program).

    Args:
        positions: State to start from.
        default_currency: Currency of a trade that names none.
        belongs: Whether a position key belongs to this partition; asked once for each key that is
            first seen. Without it every key is at home.
        rekeys: Whether misplaced records are to be re-keyed; otherwise they are refused.
        dedupe_window: Offsets for which a trade that was sent twice is recognised at least.
        applies_from: Records before this offset are read for the window alone. Whether one of them
            is a repeat is not known, since what was before them is not read again.
        reference: Data and limits by which trades are marked as suspect; nothing is without.
        is_strict: Whether doubtful identifiers and dates are refused.

    Attributes:
        window: The trades that are recognised when they come again.
    """

    def __init__(
        self,
        positions: Iterable[Position] = (),
        *,
        default_currency: str = DEFAULT_CURRENCY,
        belongs: Callable[[str], bool] | None = None,
        rekeys: bool = True,
        dedupe_window: int = 0,
        applies_from: int = 0,
        reference: Reference | None = None,
        is_strict: bool = False,
    ) -> None:
        self._repeats = DedupeWindow(dedupe_window, default_currency)
        self.window: Identity = self._repeats
        self._applies_from = applies_from
        self._holdings: dict[str, Holding] = {}
        self._books: dict[str | None, dict[str, Holding]] = {}
        self._batch = 0
        for position in positions:
            self._hold(self._holding(position))
        self._default_currency = default_currency
        self._belongs = belongs
        self._rekeys = rekeys
        self._reference = reference
        self._is_strict = is_strict

    def refer_to(self, reference: Reference | None) -> None:
        """Mark trades by other reference data from the next one on."""
        if reference is self._reference:
            return
        self._reference = reference
        for holding in self._holdings.values():
            holding.approved = NOTHING  # until a trade of it is judged by all the rules

    @property
    def positions(self) -> Mapping[str, Position]:
        """The positions by key, as they are at the moment of asking."""
        return _Positions(self._holdings)

    @property
    def parked(self) -> frozenset[int]:
        """Offsets of the records that were passed and have no fate yet."""
        return frozenset()

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
        self._check_action(event)
        suspects = self._suspects(event, trade)
        key = position_key(event.book, str(event.symbol))
        holding = self._holdings.get(key) or self._new_holding(event)
        suspects += self._doubts(holding, event, trade)
        realized_before_e24 = holding.realized_e24
        self._book(holding, event, trade, holding.source_offset + 1)
        after = holding.position()
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
            realized_pnl_change=to_decimal(after.realized_e24 - realized_before_e24, 24),
            unrealized_pnl=to_decimal(after.unrealized_e24, 24),
            fees=to_decimal(after.fees_e8),
            mark=to_decimal(after.mark_e8),
            suspects=list(suspects),
        )

    def process_batch(
        self,
        batch: RecordBatch,
        *,
        effects_from: int = 0,
        events: list[PlainEvent | None] | None = None,
        now_ns: int = 0,
    ) -> BatchResult:
        """Process consecutive records of one partition; a bad one never stops the others.

        Args:
            batch: Records in offset order.
            effects_from: First offset whose fate is still open. Earlier records are replayed for
                their positions only: their dead letters were acknowledged before that offset was
                committed.
            events: What `read_plain` made of the batch, for a ledger: the result then has its rows.
            now_ns: Wall clock, UTC nanoseconds: when the waiting of a record begins.

        Returns:
            The batch's fates, and what is left to send. The positions have changed already.
        """
        result = BatchResult(now_ns)
        if not batch.values:
            return result
        self._batch += 1
        appended_ms = min([record.timestamp for record in batch.records])
        # Below MAX_NS whatever a producer's clock says: that is the time of what was not read.
        horizon_ns = min(appended_ms * NS_PER_MS + FUTURE_TOLERANCE_NS, MAX_NS - 1)
        oldest_ns = self._oldest_ns(batch)
        if events is not None:
            result.rows = LedgerRows(batch.partition, self._default_currency)
        for run in self.window.runs(batch.offsets):
            common = _common(batch, run, effects_from, events)
            if oldest_ns is not None:
                common = map(partial(_if_recent, oldest_ns), common)
            self._process_run(
                result, batch, run, common, effects_from=effects_from, horizon_ns=horizon_ns
            )
        result.fates[Fate.BOOKED] += len(batch.values) - len(result.judged)
        if events is not None and result.rows is not None:
            result.rows.add_plain(batch.offsets, events, apart=result.judged)
        if batch.offsets[0] >= effects_from:
            sample = map(published_at, batch.values[::LATENCY_STRIDE])
            result.published_at += [text for text in sample if text is not None]
        return result

    def _process_run(
        self,
        result: BatchResult,
        batch: RecordBatch,
        run: range,
        common: Iterable[PlainEvent | None],
        *,
        effects_from: int,
        horizon_ns: int,
    ) -> None:
        """Process the records of a batch at some consecutive indexes, all of one block."""
        books, touched, number = self._books, result.touched, self._batch
        known, known_before = self.window.known, self.window.known_before
        offsets, values = batch.offsets[run.start : run.stop], batch.values[run.start : run.stop]
        records = zip(offsets, values, common, strict=False)
        offset, is_done = -1, False
        while not is_done:
            try:
                for offset, value, event in records:
                    # The common trade: what it is made of was read before, or is in passing.
                    if event is not None:
                        stamp, trade_id = event.timestamp, event.trade_id
                        try:
                            holding = books[event.book][event.symbol]
                            approved = holding.approved
                            quantity = approved.quantities[event.side][event.quantity]
                            value_e24 = approved.values[event.price]
                            time_ns = KNOWN_HEADS[stamp[:23]] + KNOWN_TAILS[stamp[23:]]
                        except KeyError:
                            holding, quantity, value_e24, time_ns = self._read(event)
                        if (
                            holding.source_offset < offset
                            and time_ns <= horizon_ns
                            and trade_id not in known
                            and trade_id not in known_before
                        ):
                            known[trade_id] = value
                            if holding.touched_in != number:
                                holding.touched_in = number
                                touched.append(holding)
                            holding.fill(quantity, value_e24, time_ns, offset)
                            continue
                    index = run[offsets.index(offset)]
                    self._judge(result, batch, index, is_open=offset >= effects_from)
                is_done = True
            except NotPlainError:  # of the record after the last one; the others go on
                index = 0 if offset < 0 else offsets.index(offset) + 1
                offset = offsets[index]
                self._judge(result, batch, run[index], is_open=offset >= effects_from)

    def _read(self, event: PlainEvent) -> tuple[Holding, int, int, int]:
        """Read what a common trade is made of; of any other the time is out of reach."""
        holding = self._books.get(event.book, {}).get(event.symbol)
        time_ns = utc_ns(event.timestamp)
        if holding is None or time_ns is None:
            return _NO_HOLDING, 0, 0, MAX_NS
        approved = holding.approved
        if not approved.read(event.quantity, event.price):
            return holding, 0, 0, MAX_NS
        quantity = approved.quantities[event.side][event.quantity]
        return holding, quantity, approved.values[event.price], time_ns

    def _judge(self, result: BatchResult, batch: RecordBatch, index: int, *, is_open: bool) -> None:
        """Process one record by all the rules."""
        result.judged.append(index)
        try:
            self._apply(result, batch, index, is_open=is_open)
        except RecordError as exc:
            if is_open:
                result.refusals.append(refusal_of(exc, index))

    def _apply(self, result: BatchResult, batch: RecordBatch, index: int, *, is_open: bool) -> None:
        headers = batch.headers.get(index, ())
        came = self._read_record(batch.records[index], headers)
        key = position_key(came.event.book, str(came.event.symbol))
        if key not in self._holdings and self._is_misplaced(key, came.origin, headers):
            if is_open:
                result.misplaced.append((index, key))
            return
        self._take(result, came, is_open=is_open)

    def _read_record(self, record: Record, headers: Headers) -> Incoming:
        """Read and check a record by all the rules that need no state.

        Raises:
            RecordError: It cannot be booked, whatever was there before.
        """
        event, is_plain, unknown_fields = decode_event(record.value)
        trade = check_event(event, is_plain=is_plain, default_currency=self._default_currency)
        if not is_plain:
            self._check_action(event)
        suspects = self._suspects(event, trade, record.timestamp * NS_PER_MS)
        return Incoming(record, event, trade, origin_of(headers), suspects, unknown_fields)

    def _take(self, result: BatchResult, came: Incoming, *, is_open: bool) -> Settled:
        """Settle a trade that can be booked, and note what that leaves.

        Raises:
            InvalidTradeError: It is refused; nothing has changed.
        """
        event, trade = came.event, came.trade
        holding = self._holdings.get(position_key(event.book, str(event.symbol)))
        holding = holding or self._new_holding(event)
        # Before it is booked: the price of the trade before it is what its own is held against.
        doubts = self._doubts(holding, event, trade, came.record.timestamp * NS_PER_MS)
        settled = self._settle(holding, came)
        if settled.waits is not None:
            return settled
        fate, holding = settled.fate, settled.holding
        result.fates[fate or Fate.BOOKED] += is_open
        if fate is Fate.BOOKED:
            result.already_applied += is_open
            return settled
        is_changed = self._note_origin(holding, came.origin) or fate is None
        if is_changed and holding.touched_in != self._batch:
            holding.touched_in = self._batch
            result.touched.append(holding)
        if fate is not None:
            return settled
        suspects = came.suspects + doubts + settled.suspects
        if result.rows is not None and is_open:
            rows, offset = result.rows, came.offset
            rows.add(offset, settled.event, settled.trade, suspects, content=settled.content)
            if settled.correction is not None:
                rows.add_correction(offset, settled.correction)
        result.repaired += not is_open
        result.unknown_fields += came.unknown_fields
        result.suspects.update(suspects)
        return settled

    def _suspects(
        self, event: TradeEvent, trade: CheckedTrade, appended_ns: int | None = None
    ) -> tuple[str, ...]:
        """Tell what is doubtful about an event alone.

        Raises:
            DoubtfulTradeError: For that it is refused.
        """
        suspects = trade.suspects
        if appended_ns is not None and trade.time_ns > appended_ns + FUTURE_TOLERANCE_NS:
            suspects += ("timestamp-in-future",)
        if self._reference is not None:
            suspects += self._reference.doubtful_codes(
                event, trade, default_currency=self._default_currency
            )
        if self._is_strict:
            refuse_doubtful(suspects)
        return suspects

    def _doubts(
        self,
        holding: Holding,
        event: TradeEvent,
        trade: CheckedTrade,
        appended_ns: int | None = None,
    ) -> tuple[str, ...]:
        """Tell what is doubtful about a trade of a position, as it is before the trade."""
        if self._reference is None:
            return ()
        return self._reference.doubts(
            event,
            trade,
            currency=event.currency or self._default_currency,
            last_price_e8=holding.mark_e8 if holding.trade_count else None,
            appended_ns=appended_ns,
        )

    def _oldest_ns(self, batch: RecordBatch) -> int | None:
        """Give the execution time from which on no trade of a batch is too old."""
        if self._reference is None or self._reference.max_age_ns is None:
            return None
        newest_ms = max([record.timestamp for record in batch.records])
        return newest_ms * NS_PER_MS - self._reference.max_age_ns

    def _settle(self, holding: Holding, came: Incoming) -> Settled:
        """Decide what becomes of a trade, and book it if it is to be booked.

        Raises:
            InvalidTradeError: It is refused; nothing has changed.
        """
        fate = self._recognised(holding, came)
        if fate is None:
            self._book(holding, came.event, came.trade, came.offset)
        self.window.note(came.event, came.value)
        return Settled(fate, holding, came.event, came.trade)

    def _recognised(self, holding: Holding, came: Incoming) -> Fate | None:
        """Give the fate of a trade that must not be booked: it was sent twice, or is booked."""
        if self._repeats.recognises(came.event, came.value):
            return Fate.DUPLICATE
        if came.offset <= holding.source_offset or came.offset < self._applies_from:
            # Booked by an earlier life, unless it was refused: that says it again.
            self._check_currency(holding, came.event)
            return Fate.BOOKED
        if came.origin is not None and _is_second_copy(holding, came.origin):
            return Fate.DUPLICATE
        return None

    def _note_origin(self, holding: Holding, origin: Origin | None) -> bool:
        """Remember where a re-keyed trade stood, booked or sent twice: its next copy is neither."""
        if origin is None or _is_second_copy(holding, origin) or holding.key not in self._holdings:
            return False
        # The highest origin offset is enough: those of one partition are re-keyed in order.
        holding.origins = {**(holding.origins or {}), origin.partition: origin.offset}
        return True

    def _is_misplaced(self, key: str, origin: Origin | None, headers: Headers) -> bool:
        if self._belongs is None or self._belongs(key):
            return False
        if origin is not None:  # moved once already: moving it again could go round for ever
            raise InvalidTradeError("key-mismatch", "re-keyed, and still in the wrong partition")
        if not self._rekeys:
            raise InvalidTradeError("key-mismatch", "the position key belongs to another partition")
        if size_of(headers) > MAX_MOVED_HEADER_BYTES:
            raise InvalidTradeError("key-mismatch", "the headers are too large to be moved")
        return True

    def _new_holding(self, event: TradeEvent) -> Holding:
        currency = event.currency or self._default_currency
        return self._holding(Position(event.book or None, str(event.symbol), currency))

    def _holding(self, position: Position) -> Holding:
        """Give what a position is traded in."""
        return Holding(position)

    def _hold(self, holding: Holding) -> None:
        self._holdings[holding.key] = holding
        self._books.setdefault(holding.book, {})[holding.symbol] = holding

    def _check_action(self, event: TradeEvent) -> None:
        """Refuse what changes another event: that takes a ledger."""
        if event.action is not None and event.action != Action.NEW:
            raise InvalidTradeError(
                "lifecycle-unavailable", "AMEND and CANCEL need a ledger with IDENTITY=full"
            )
        if event.version is not None and event.version != 1:
            raise InvalidTradeError("version-invalid", "the version of a NEW trade must be 1")

    def _check_currency(self, holding: Holding, event: TradeEvent) -> None:
        if (event.currency or self._default_currency) != holding.currency:
            raise InvalidTradeError(
                "currency-differs-from-position", "currency differs from that of the position"
            )

    def _book(self, holding: Holding, event: TradeEvent, trade: CheckedTrade, offset: int) -> None:
        self._check_currency(holding, event)
        if holding.quantity and trade.multiplier_e8 != holding.multiplier_e8:
            raise InvalidTradeError(
                "multiplier-differs-from-position",
                "contract_multiplier differs from that of the open position",
            )
        holding.fill_exactly(
            signed_quantity_e8=trade.sign * trade.quantity_e8,
            price_e8=trade.price_e8,
            multiplier_e8=trade.multiplier_e8,
            fee_e8=trade.fee_e8,
            time_ns=trade.time_ns,
            offset=offset,
        )
        self._hold(holding)
        self._approve(holding)

    def _approve(self, holding: Holding) -> None:
        """Let the next common trade be booked without a closer look, if that is the same."""
        if holding.multiplier_e8 != ONE_E8 or holding.currency != self._default_currency:
            holding.approved = NOTHING
        elif self._reference is not None:
            holding.approved = self._reference.approved(
                holding.book,
                holding.symbol,
                currency=holding.currency,
                unit_e8=holding.unit_e8,
                last_price_e8=holding.mark_e8,
            )
        else:
            holding.approved = WHOLE_UNITS if holding.unit_e8 == ONE_E8 else FRACTIONS


def _common(
    batch: RecordBatch, run: range, effects_from: int, events: list[PlainEvent | None] | None
) -> Iterable[PlainEvent | None]:
    """Give the events that may be booked without a closer look, `None` in the place of others."""
    if batch.offsets[run.start] < effects_from:
        return repeat(None)
    if events is not None:
        return events[run.start : run.stop]
    values = batch.values[run.start : run.stop]
    if batch.headers:
        return (
            None if index in batch.headers else decode_alone(value)
            for index, value in enumerate(values, run.start)
        )
    return decode_plain(values)


class _Positions(Mapping[str, Position]):
    """The positions of some holdings, as they are at the moment of asking."""

    def __init__(self, holdings: Mapping[str, Holding]) -> None:
        self._holdings = holdings

    def __getitem__(self, key: str) -> Position:
        return self._holdings[key].position()

    def __iter__(self) -> Iterator[str]:
        return iter(self._holdings)

    def __len__(self) -> int:
        return len(self._holdings)


_BUSINESS: Final = frozenset(
    {
        "lifecycle-unavailable",
        "version-invalid",
        "version-conflict",
        "currency-differs-from-position",
        "multiplier-differs-from-position",
        "key-mismatch",
        "after-cancel",
        "key-changed",
        "orphan-lifecycle",
        "park-overflow",
        "history-pruned",
    }
)


def refusal_of(exc: RecordError, index: int = -1) -> Refusal:
    """Give the refusal that an error stands for, of the record at an index of its batch."""
    if isinstance(exc, DecodeError) and exc.reason.startswith(("body-", "schema-")):
        kind = "decode"
    elif exc.reason in _BUSINESS or isinstance(exc, DoubtfulTradeError):
        kind = "business"  # not for what the record says alone
    else:
        kind = "validation"
    return Refusal(index, exc.reason, str(exc), kind, type(exc).__name__)


def _is_second_copy(holding: Holding, origin: Origin) -> bool:
    return holding.origins is not None and origin.offset <= holding.origins.get(
        origin.partition, -1
    )


def _if_recent(oldest_ns: int, event: PlainEvent | None) -> PlainEvent | None:
    """Give a common trade that is surely not too old; any other is judged by all the rules."""
    if event is None:
        return None
    time_ns = KNOWN_HEADS.get(event.timestamp[:23])  # cut down to a millisecond
    if time_ns is None or time_ns < oldest_ns:
        time_ns = utc_ns(event.timestamp)
    return event if time_ns is not None and time_ns >= oldest_ns else None
