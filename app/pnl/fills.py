"""The fills of one position, and the position that they make: what a correction is worked out by.

A cost method depends on the path, so the effect of one fill cannot be taken out of a position. A
changed fill takes the place of the old one, a cancelled one is removed, and all of them are folded
again in the order of their execution. What results depends on the final fills alone.
"""

from collections.abc import Collection, Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from app.errors import InvalidTradeError
from app.models import CostMethod, Position
from app.money import ONE_E8
from app.pnl.fifo import FifoHolding
from app.pnl.holding import Holding

ALL_BOOKS: Final = "*"
HOLDINGS: Final[dict[CostMethod, type[Holding]]] = {
    CostMethod.AVERAGE: Holding,
    CostMethod.FIFO: FifoHolding,
}


class Fill(msgspec.Struct, frozen=True, gc=False):
    """The effect of one trade on its position.

    Attributes:
        trade_id: The trade, of which a position has one fill.
        time_ns: Execution time in UTC nanoseconds; it never changes.
        partition: Source partition of its NEW, and `offset` in it; neither do these.
        offset: See `partition`.
        signed_quantity_e8: Bought > 0, sold < 0, never 0, at 10^-8.
        price_e8: Price per unit at 10^-8.
        multiplier_e8: Contract multiplier at 10^-8.
        fee_e8: Fee at 10^-8 in the position's currency; a rebate is negative.
        rate_e8: Units of the reporting currency for one of the position's, at 10^-8, by the stated
            rate of the trade date; 1 where both are one.
    """

    trade_id: str
    time_ns: int
    partition: int
    offset: int
    signed_quantity_e8: int
    price_e8: int
    multiplier_e8: int = ONE_E8
    fee_e8: int = 0
    rate_e8: int = ONE_E8


class Correction(msgspec.Struct, frozen=True, gc=False):
    """What a change of the past did to numbers that were published: never made silently.

    Attributes:
        before: The position as it was published.
        after: The position of the final fills.
    """

    before: Position
    after: Position

    @property
    def quantity_e8(self) -> int:
        """Change of the quantity."""
        return self.after.quantity_e8 - self.before.quantity_e8

    @property
    def realized_e24(self) -> int:
        """Change of what is realised, before fees."""
        return self.after.realized_e24 - self.before.realized_e24

    @property
    def open_cost_e24(self) -> int:
        """Change of the cost of what is open."""
        return self.after.open_cost_e24 - self.before.open_cost_e24

    @property
    def fees_e8(self) -> int:
        """Change of the fees."""
        return self.after.fees_e8 - self.before.fees_e8


def in_order(fills: Iterable[Fill]) -> list[Fill]:
    """Order fills by execution time; those of one instant as they stand in the log."""
    return sorted(fills, key=lambda fill: (fill.time_ns, fill.partition, fill.offset))


def replaced(fills: Iterable[Fill], fill: Fill) -> tuple[Fill, ...]:
    """Put changed economics in the place of the fill of the same trade, in time and in the log.

    Raises:
        KeyError: There is no fill of this trade.
    """
    others, old = _without(fills, fill.trade_id)
    changed = replace(fill, time_ns=old.time_ns, partition=old.partition, offset=old.offset)
    return (*others, changed)


def removed(fills: Iterable[Fill], trade_id: str) -> tuple[Fill, ...]:
    """Give the fills without that of a cancelled trade.

    Raises:
        KeyError: There is no fill of this trade.
    """
    return _without(fills, trade_id)[0]


def _without(fills: Iterable[Fill], trade_id: str) -> tuple[tuple[Fill, ...], Fill]:
    fills = tuple(fills)
    for index, fill in enumerate(fills):
        if fill.trade_id == trade_id:
            return fills[:index] + fills[index + 1 :], fill
    raise KeyError(trade_id)


def method_of(book: str | None, fifo_books: Collection[str]) -> CostMethod:
    """Give the method by which the costs of a book are kept.

    Args:
        book: Its name; `None` for trades without a book.
        fifo_books: Books that are kept first in, first out; with `*` among them all are, also what
            has no book.
    """
    is_fifo = ALL_BOOKS in fifo_books or book in fifo_books
    return CostMethod.FIFO if is_fifo else CostMethod.AVERAGE


def empty_holding(method: CostMethod, position: Position) -> Holding:
    """Give the holding of a position before its first fill.

    Args:
        method: How its costs are kept.
        position: Gives the key, the currency, the origins and the generation; no amount of it is
            used, and its source offset is kept.
    """
    return HOLDINGS[method](
        Position(
            position.book,
            position.symbol,
            position.currency,
            source_offset=position.source_offset,
            origins=position.origins,
            generation=position.generation,
        )
    )


def check_multiplier(holding: Holding, fill: Fill) -> None:
    """See that a fill can be added to what is open.

    Raises:
        InvalidTradeError: `multiplier-differs-from-position`: something is open by another one.
    """
    if holding.quantity and fill.multiplier_e8 != holding.multiplier_e8:
        raise InvalidTradeError(
            "multiplier-differs-from-position",
            "contract_multiplier differs from that of the open position",
        )


def add(holding: Holding, fill: Fill) -> None:
    """Fold one fill into a holding.

    Raises:
        InvalidTradeError: As `check_multiplier` does; then nothing has changed.
    """
    check_multiplier(holding, fill)
    holding.fill_exactly(
        signed_quantity_e8=fill.signed_quantity_e8,
        price_e8=fill.price_e8,
        multiplier_e8=fill.multiplier_e8,
        fee_e8=fill.fee_e8,
        time_ns=fill.time_ns,
        offset=fill.offset,
    )


def replay(
    fills: Iterable[Fill], method: CostMethod = CostMethod.AVERAGE, *, of: Position
) -> Holding:
    """Fold all fills of one position, in the order of their execution.

    The mark is then the price of the fill that was executed last. The source offset stays that of
    `of`: what it says is which records of the log were applied, and a replay applies none.

    Args:
        fills: In any order.
        method: How costs are kept.
        of: Whose fills they are; see `empty_holding`.

    Raises:
        InvalidTradeError: See `add`; a change of the past may bring two multipliers together.
    """
    holding = empty_holding(method, of)
    for fill in in_order(fills):
        add(holding, fill)
    holding.source_offset = of.source_offset
    return holding
