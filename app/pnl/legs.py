"""The legs of a position, each from flat to flat on one side of zero, with their own fees.

A fill through zero is two fills: one closes a leg, the other opens the next, and its fee is split
between them by quantity. The closing part is rounded half-even to 10^-24, the opening part is the
rest, so that the fees of all legs are the fees of all fills.
"""

from collections.abc import Iterable

import msgspec

from app.models import CostMethod, Position
from app.pnl.fifo import E8_TO_E24, ClosedLot, FifoHolding, share
from app.pnl.fills import Fill, add, check_multiplier, empty_holding, in_order
from app.pnl.holding import Holding


class Closing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one fill closed: of one lot by FIFO, of the whole position by average cost.

    Attributes:
        trade_id: Trade of the closing fill, and `time_ns` its execution time.
        time_ns: See `trade_id`.
        quantity_e8: How much was closed, signed as it was held.
        gross_e24: Realised before fees.
        entry_fee_e24: Share of the fees that were paid to open it.
        exit_fee_e24: Share of the fee of the fill that closed it.
    """

    trade_id: str
    time_ns: int
    quantity_e8: int
    gross_e24: int
    entry_fee_e24: int
    exit_fee_e24: int

    @property
    def net_e24(self) -> int:
        """Realised where fees are part of the cost: less both shares."""
        return self.gross_e24 - self.entry_fee_e24 - self.exit_fee_e24


class Leg(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A position from flat to flat, or to now.

    Attributes:
        is_long: Whether it was held long.
        opened_ns: Execution time of the fill that opened it, in UTC nanoseconds.
        closed_ns: That of the fill that flattened it; None while it is open.
        quantity_e8: What is open of it, signed; 0 once it is closed.
        fees_e24: Fees that were charged in it, of opening and closing fills alike.
        closings: What was closed of it, in order.
    """

    is_long: bool
    opened_ns: int
    closed_ns: int | None
    quantity_e8: int
    fees_e24: int
    closings: tuple[Closing, ...]

    @property
    def gross_e24(self) -> int:
        """Realised before fees."""
        return sum(closing.gross_e24 for closing in self.closings)

    @property
    def net_e24(self) -> int:
        """Realised less all its fees, those of what is still open too."""
        return self.gross_e24 - self.fees_e24

    @property
    def open_fees_e24(self) -> int:
        """Fees that belong to what is still open: part of its cost, where fees are."""
        return self.fees_e24 - sum(
            closing.entry_fee_e24 + closing.exit_fee_e24 for closing in self.closings
        )


def legs(fills: Iterable[Fill], method: CostMethod = CostMethod.AVERAGE) -> list[Leg]:
    """Cut the fills of one position into its legs, the oldest first.

    Args:
        fills: In any order.
        method: How costs are kept.

    Raises:
        InvalidTradeError: `multiplier-differs-from-position`, as in `app.pnl.fills.add`.
    """
    holding = empty_holding(method, Position(None, ""))
    done: list[Leg] = []
    leg: _OpenLeg | None = None
    for fill in in_order(fills):
        quantity_e8, fee_e24 = fill.signed_quantity_e8, fill.fee_e8 * E8_TO_E24
        held_e8 = 0 if leg is None else leg.quantity_e8
        opens_e8, exit_fee_e24 = quantity_e8, 0
        if leg is not None and held_e8 * quantity_e8 < 0:
            closes_e8 = min(abs(held_e8), abs(quantity_e8))
            exit_fee_e24 = share(fee_e24, closes_e8, abs(quantity_e8))
            closed_e8 = closes_e8 if held_e8 > 0 else -closes_e8
            leg.close(fill, closed_e8, exit_fee_e24, _parts(holding, fill, leg, exit_fee_e24))
            opens_e8 += closed_e8
            if not leg.quantity_e8:
                done.append(leg.as_leg(fill.time_ns))
                leg = None
        else:
            add(holding, fill)
        if opens_e8:
            leg = leg or _OpenLeg(fill.time_ns, is_long=opens_e8 > 0)
            leg.open(opens_e8, fee_e24 - exit_fee_e24)
    return [*done, leg.as_leg(None)] if leg is not None else done


class _OpenLeg:
    """A leg while fills are added to it.

    Attributes:
        quantity_e8: What is open of it, signed.
        open_fees_e24: Fees that belong to what is open.
    """

    def __init__(self, opened_ns: int, *, is_long: bool) -> None:
        self.quantity_e8 = self.open_fees_e24 = 0
        self._is_long = is_long
        self._opened_ns = opened_ns
        self._fees_e24 = 0
        self._closings: list[Closing] = []

    def open(self, quantity_e8: int, fee_e24: int) -> None:
        self.quantity_e8 += quantity_e8
        self._fees_e24 += fee_e24
        self.open_fees_e24 += fee_e24

    def close(
        self, fill: Fill, closed_e8: int, exit_fee_e24: int, parts: Iterable[ClosedLot]
    ) -> None:
        self.quantity_e8 -= closed_e8
        self._fees_e24 += exit_fee_e24
        for part in parts:
            self.open_fees_e24 -= part.entry_fee_e24
            self._closings.append(
                Closing(trade_id=fill.trade_id, time_ns=fill.time_ns, **part._asdict())
            )

    def as_leg(self, closed_ns: int | None) -> Leg:
        return Leg(
            is_long=self._is_long,
            opened_ns=self._opened_ns,
            closed_ns=closed_ns,
            quantity_e8=self.quantity_e8,
            fees_e24=self._fees_e24,
            closings=tuple(self._closings),
        )


def _parts(holding: Holding, fill: Fill, leg: _OpenLeg, exit_fee_e24: int) -> list[ClosedLot]:
    """Fold a closing fill in and give what it closes, in as many parts as the method has."""
    if isinstance(holding, FifoHolding):
        check_multiplier(holding, fill)
        return holding.fill_by_lot(
            signed_quantity_e8=fill.signed_quantity_e8,
            price_e8=fill.price_e8,
            multiplier_e8=fill.multiplier_e8,
            fee_e8=fill.fee_e8,
            time_ns=fill.time_ns,
            offset=fill.offset,
        )
    before_e24 = holding.realized_e24
    add(holding, fill)
    held_e8 = leg.quantity_e8
    closes_e8 = min(abs(held_e8), abs(fill.signed_quantity_e8))
    return [
        ClosedLot(
            closes_e8 if held_e8 > 0 else -closes_e8,
            holding.realized_e24 - before_e24,
            share(leg.open_fees_e24, closes_e8, abs(held_e8)),
            exit_fee_e24,
        )
    ]
