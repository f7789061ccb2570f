"""Positions folded anew at a takeover, where the method by which their book is kept was changed."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from app.errors import InvalidTradeError, OffsetGapError, TransportError
from app.ledger_codec import read_fills
from app.models import CostMethod, NumberedLots, Position
from app.pnl.fifo import FifoHolding
from app.pnl.fills import HOLDINGS, method_of, replay
from app.pnl.holding import Holding
from app.ports import Ledger, LedgerWrite

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredPositions:
    """What the ledger has of the positions of a partition.

    Attributes:
        positions: Each once.
        lots: Of those that are kept first in, first out, by key.
    """

    positions: Collection[Position]
    lots: Mapping[str, NumberedLots]


async def stored_positions(
    ledger: Ledger,
    partition: int,
    next_offset: int | None,
    *,
    fifo_books: Collection[str],
    on_folded: Callable[[], None],
) -> StoredPositions:
    """Read the positions of a partition, each kept by the method of its book.

    One that the ledger keeps by another method is folded anew from its trades, in the order of
    their execution, and stored so, with a higher generation; each by itself, so that the next
    takeover goes on there if this one is broken off.

    Args:
        ledger: It; the partition is claimed.
        partition: Whose positions they are.
        next_offset: Up to where they are booked.
        fifo_books: Books that are kept first in, first out, as of `method_of`.
        on_folded: Called after each position that is folded anew; there may be many.

    Raises:
        OffsetGapError: The trades of a position do not make it, or some are pruned.
        TransportError: The database is away, or the partition is another worker's by now.
        LedgerError: The ledger is not fit.
    """
    found = StoredPositions(await ledger.positions(partition), await ledger.lots(partition))
    changed = [
        (position, method)
        for position in found.positions
        for method in [method_of(position.book, fifo_books)]
        if (position.key in found.lots) != (method is CostMethod.FIFO)
    ]
    if not changed or next_offset is None:
        return found
    for position, method in changed:
        folded = await _folded(ledger, partition, position, method)
        lots = folded.lot_change() if isinstance(folded, FifoHolding) else None
        write = LedgerWrite(
            next_offset, next_offset, positions=[folded.position()], lots={position.key: lots}
        )
        for why in (await ledger.write({partition: write})).values():
            raise TransportError(f"the ledger takes no position that is folded anew: {why}")
        on_folded()
    log.info("positions_folded_anew", partition=partition, positions=len(changed))
    return StoredPositions(await ledger.positions(partition), await ledger.lots(partition))


async def _folded(
    ledger: Ledger, partition: int, position: Position, method: CostMethod
) -> Holding:
    if not position.quantity_e8:  # what it came to is the cash flow, by every method
        return HOLDINGS[method](position)
    lines = await ledger.history(partition, position.key)
    if lines is None:
        raise OffsetGapError(
            f"{position.key} is open and kept by another method than {method}, and trades of it are"
            " pruned, so that it cannot be folded anew: set FIFO_BOOKS as it was"
        )
    try:
        folded = replay(read_fills(lines), method, of=position)
    except InvalidTradeError as exc:
        raise OffsetGapError(
            f"{position.key} cannot be folded anew in the order of execution: {exc}. Set FIFO_BOOKS"
            " as it was"
        ) from exc
    if _of_no_method(folded.position()) != _of_no_method(position):
        raise OffsetGapError(
            f"{position.key} is not what its trades come to: somebody has changed the tables."
            " Restore a backup of the ledger"
        )
    folded.generation += 1  # of two states of one offset it is the newer one
    return folded


def _of_no_method(position: Position) -> tuple[int, ...]:
    """Give what comes to the same by every method: among it the cash flow."""
    return (
        position.quantity_e8,
        position.realized_e24 - position.open_cost_e24,
        position.fees_e8,
        position.trade_count,
    )
