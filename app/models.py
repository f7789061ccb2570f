"""The facts that travel through the platform: events, positions, results, refusals."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

import msgspec

from app.money import ONE_E8, divide_half_even

if TYPE_CHECKING:
    Amount = str | int | float | Decimal
    Instant = str | int | float | Decimal
else:
    # What JSON can hold. The decoder refuses a union of two text-like types, of which `Decimal` is
    # in a program every field may hold any of the four.
    Amount = Instant = str | int | float


MAX_ID_LENGTH: Final = 64
"""Longest trade id, book and symbol, in characters."""


class Side(StrEnum):
    """FIX tag 54, the two values that a position needs."""

    BUY = "BUY"
    SELL = "SELL"


class Action(StrEnum):
    """What an event does to its trade (FIX ExecType F, G and H; CDM New, Correct, Cancel)."""

    NEW = "NEW"
    AMEND = "AMEND"
    CANCEL = "CANCEL"


class CostMethod(StrEnum):
    """What a closing fill is held against; docs/pnl.md says why there is no last in, first out."""

    AVERAGE = "average"
    FIFO = "fifo"


class Fate(StrEnum):
    """What finally became of one consumed record: exactly one of these."""

    BOOKED = "booked"
    DUPLICATE = "duplicate"
    STALE = "stale"
    REKEYED = "rekeyed"
    DEAD_LETTERED = "dead_lettered"
    QUARANTINED = "quarantined"
    SKIPPED = "skipped"


class Fee(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One fee of a trade (FIX 12, 136); a negative amount is a rebate."""

    amount: Amount | None = None
    type: str | None = None
    currency: str | None = None


class TradeEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One message about a trade, as somebody sent it.

    Six fields are enough: `trade_id, symbol, side, price, quantity, timestamp`. Nothing is checked
    here, so that whatever was sent can be held; `TradeProcessor` decides whether it can be booked.

    Attributes:
        price: Per unit, > 0; text keeps its digits, a float enters by its shortest decimal text.
        quantity: Units, always > 0: the sign lives in `side`.
        timestamp: Execution time, RFC 3339 or an epoch number in s, ms, us or ns.
        published_at: When it was due to be published; set by producers of this platform.
    """

    trade_id: str | None = None
    symbol: str | None = None
    side: str | None = None
    price: Amount | None = None
    quantity: Amount | None = None
    timestamp: Instant | None = None
    book: str | None = None
    published_at: str | None = None
    version: int | None = None
    action: str | None = None
    event_reason: str | None = None
    event_id: str | None = None
    prev_event_id: str | None = None
    order_id: str | None = None
    exec_id: str | None = None
    account: str | None = None
    currency: str | None = None
    contract_multiplier: Amount | None = None
    price_type: str | None = None
    fees: list[Fee] | None = None
    asset_class: str | None = None
    isin: str | None = None
    figi: str | None = None
    mic: str | None = None
    settlement_currency: str | None = None
    fx_rate: Amount | None = None
    trade_date: str | None = None
    settlement_date: str | None = None
    event_time: Instant | None = None
    source: str | None = None
    source_sequence: int | None = None
    short_sale: bool | None = None
    trading_capacity: str | None = None
    liquidity: str | None = None
    trader_id: str | None = None
    strategy_id: str | None = None
    counterparty_lei: str | None = None
    our_lei: str | None = None
    ccp_lei: str | None = None
    netting_set: str | None = None
    cleared: bool | None = None
    schema_version: int | None = None
    processed_at: str | None = None


def position_key(book: str | None, symbol: str) -> str:
    """Give the record key and position key: `book|symbol`, or the symbol when there is no book."""
    return f"{book}|{symbol}" if book else symbol


class Lot(NamedTuple):
    """What is still open of one fill, where a position is kept first in, first out.

    Attributes:
        quantity_e8: Signed: > 0 long, < 0 short, never 0, at 10^-8.
        price_e8: Price per unit at 10^-8, without the multiplier: that is the position's.
        fee_e24: Share of the fill's fee that belongs to what is open.
        time_ns: Execution time of the fill in UTC nanoseconds.
        offset: Source offset of the fill.
    """

    quantity_e8: int
    price_e8: int
    fee_e24: int
    time_ns: int
    offset: int


class NumberedLots(NamedTuple):
    """The lots of a position, oldest first, numbered one after the other in the order of folding.

    Attributes:
        first: Number of the oldest, >= 0.
        lots: They; none of a position that is flat.
    """

    first: int
    lots: Sequence[Lot]


class LotChange(NamedTuple):
    """What became of the lots of a position since they were last stored.

    Attributes:
        first_stored: No lower number is stored.
        kept: Numbers of the lots that are as they were; all others that are stored are gone.
        lots: Those that are new, or less than they were, by number, oldest first.
    """

    first_stored: int
    kept: range
    lots: Sequence[tuple[int, Lot]]


class Position(msgspec.Struct, frozen=True, gc=False):
    """Quantity, open cost and PnL of one book and symbol after a trade, by any cost method.

    The total open cost is carried, not an average price, so that nothing is rounded until a partial
    close releases a share of it: realised + unrealised is then always cash + inventory.

    Attributes:
        quantity_e8: Signed: > 0 long, < 0 short, at 10^-8.
        open_cost_e24: Signed cost of what is open (long > 0), multiplier included, at 10^-24.
        multiplier_e8: Contract multiplier of what is open.
        realized_e24: Gross realised PnL; fees are apart.
        fees_e8: Fees so far, in the position's currency; rebates are negative.
        mark_e8: Price of the last trade of the key, and `mark_ns` its execution time.
        trade_count: Fills booked so far.
        source_offset: Highest offset of a trade applied, in the source partition.
        origins: Highest origin offset applied of trades that were re-keyed, by origin partition.
        generation: Raised by a rebuild, whose records win over every older one.
    """

    book: str | None
    symbol: str
    currency: str | None = None
    quantity_e8: int = 0
    open_cost_e24: int = 0
    multiplier_e8: int = ONE_E8
    realized_e24: int = 0
    fees_e8: int = 0
    mark_e8: int = 0
    mark_ns: int = 0
    trade_count: int = 0
    source_offset: int = -1
    origins: Mapping[int, int] | None = None
    generation: int = 0

    @property
    def key(self) -> str:
        """Record key of this position."""
        return position_key(self.book, self.symbol)

    @property
    def unrealized_e24(self) -> int:
        """Value of what is open at the mark, less its cost."""
        return self.quantity_e8 * self.mark_e8 * self.multiplier_e8 - self.open_cost_e24

    @property
    def average_price_e8(self) -> int:
        """Open cost per unit, rounded half-even to 8 decimals; 0 when flat."""
        if not self.quantity_e8:
            return 0
        quantity = self.quantity_e8 * self.multiplier_e8
        return divide_half_even(
            self.open_cost_e24 if quantity > 0 else -self.open_cost_e24, abs(quantity)
        )


class ProcessedTrade(TypedDict):
    """What one trade came to, and its position afterwards; every amount is an exact `Decimal`."""

    trade_id: str
    symbol: str
    book: str | None
    side: str
    notional: Decimal
    signed_notional: Decimal
    position_quantity: Decimal
    average_price: Decimal
    realized_pnl: Decimal
    realized_pnl_change: Decimal
    unrealized_pnl: Decimal
    fees: Decimal
    mark: Decimal
    suspects: list[str]


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why the record at `index` of a batch is dead-lettered.

    Attributes:
        reason: Stable code, such as `price-not-positive`.
        message: One sentence that names the field and never its value.
        kind: Where it went wrong: `decode`, `validation` or `business`.
        error_class: Name of the exception class, for grouping.
    """

    index: int
    reason: str
    message: str
    kind: str
    error_class: str
