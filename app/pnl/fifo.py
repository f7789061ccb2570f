"""First in, first out: a position as the lots that were opened, the oldest closed first.

Nothing is divided, so what is realised is exact. Only the fee of a lot that is closed in parts is
shared out, at 10^-24; the last part takes what is left, so that the parts add up to the fee.
"""

from collections import deque
from itertools import islice
from typing import ClassVar, Final, NamedTuple

from app.models import CostMethod, Lot, LotChange, NumberedLots, Position
from app.money import ONE_E8, divide_half_even
from app.pnl.holding import Holding

E8_TO_E24: Final = 10**16

_Lot = tuple[int, int, int, int, int]
"""Signed units, price of one at 10^-24, fee left at 10^-24, execution time, offset."""

NO_LOTS: Final = NumberedLots(0, ())


class ClosedLot(NamedTuple):
    """What a fill closed of one lot.

    Attributes:
        quantity_e8: How much, signed as it was held, at 10^-8.
        gross_e24: Realised, before fees.
        entry_fee_e24: Share of the fee that was paid when it was opened.
        exit_fee_e24: Share of the fee of the fill that closed it.
    """

    quantity_e8: int
    gross_e24: int
    entry_fee_e24: int
    exit_fee_e24: int


class FifoHolding(Holding):
    """A position whose lots are kept, for the FIFO method; used wherever a `Holding` is.

    It holds one lot for each fill that is open, so its memory grows with them. The open cost is
    kept beside the lots, of which it is the exact sum.

    Lots are numbered in the order of folding, so that a fill takes the lowest numbers away, makes
    the lowest that is left smaller, or adds the next one: what a store has to change is known
    without a look at the others.

    Args:
        position: State to start from.
        stored: Its lots as they are stored, oldest first; none of a position that is flat.

    Raises:
        ValueError: The lots do not add up to the position, which may have been kept by another
            method: replay its fills.
    """

    __slots__ = ("_first", "_first_stored", "_kept_from", "_kept_to", "_lots")
    method: ClassVar = CostMethod.FIFO

    def __init__(self, position: Position, stored: NumberedLots = NO_LOTS) -> None:
        super().__init__(position)
        first, lots = stored
        self._first = self._first_stored = self._kept_from = first
        self._kept_to = first + len(lots)
        if any(lot.quantity_e8 % self.unit_e8 for lot in lots):
            self.quantity *= self.unit_e8
            self.value_e24 //= self.unit_e8
            self.unit_e8 = 1
        unit_value = self.multiplier_e8 * self.unit_e8
        self._lots = deque(
            (
                lot.quantity_e8 // self.unit_e8,
                lot.price_e8 * unit_value,
                lot.fee_e24,
                lot.time_ns,
                lot.offset,
            )
            for lot in lots
        )
        if (
            sum(lot[0] for lot in self._lots) != self.quantity
            or sum(lot[0] * lot[1] for lot in self._lots) != self.open_cost_e24
            or any(lot[0] * self.quantity <= 0 for lot in self._lots)
        ):
            raise ValueError("the lots do not add up to the position")

    @property
    def lots(self) -> tuple[Lot, ...]:
        """What is open, oldest first: all that there is beside the position."""
        return tuple(self._shown(lot) for lot in self._lots)

    def lot_change(self) -> LotChange:
        """Give what became of the lots since this was last asked, or since they were read.

        Cost:
            Of the order of the lots that it gives.
        """
        first, first_stored, lots = self._first, self._first_stored, self._lots
        end = first + len(lots)
        kept_from = max(first, self._kept_from)
        kept_to = max(kept_from, self._kept_to)
        changed = [*islice(lots, kept_from - first)]
        added = [*islice(reversed(lots), end - kept_to)][::-1]
        self._first_stored = self._kept_from = first
        self._kept_to = end
        numbers = (*range(first, kept_from), *range(kept_to, end))
        return LotChange(
            first_stored,
            range(kept_from, kept_to),
            [*zip(numbers, map(self._shown, changed + added), strict=True)],
        )

    def _shown(self, lot: _Lot) -> Lot:
        quantity, value_e24, fee_e24, time_ns, offset = lot
        unit_e8 = self.unit_e8
        price_e8 = value_e24 // (self.multiplier_e8 * unit_e8)
        return Lot(quantity * unit_e8, price_e8, fee_e24, time_ns, offset)

    def fill(self, quantity: int, value_e24: int, time_ns: int, offset: int) -> None:
        """Fold a fill without a fee into the position by the FIFO method.

        Args:
            quantity: Units bought > 0, sold < 0, never 0.
            value_e24: Price of one unit, multiplier included; it becomes the mark.
            time_ns: Execution time in UTC nanoseconds; it becomes the time of the mark.
            offset: Source offset of the fill; the position remembers it as applied.

        Cost:
            Of the order of the lots that it closes; one for a fill that opens.

        Source:
            docs/pnl.md, "First in, first out".
        """
        if self.quantity * quantity >= 0:
            self._open(quantity, value_e24, 0, time_ns, offset)
        else:
            self._close(quantity, value_e24, 0, time_ns, offset)
        self.value_e24 = value_e24
        self.mark_ns = time_ns
        self.trade_count += 1
        self.source_offset = offset

    def fill_exactly(
        self,
        *,
        signed_quantity_e8: int,
        price_e8: int,
        multiplier_e8: int,
        fee_e8: int,
        time_ns: int,
        offset: int,
    ) -> None:
        """Fold a fill of any quantity, with its fee, into the position; as in `Holding`."""
        self.fill_by_lot(
            signed_quantity_e8=signed_quantity_e8,
            price_e8=price_e8,
            multiplier_e8=multiplier_e8,
            fee_e8=fee_e8,
            time_ns=time_ns,
            offset=offset,
        )

    def fill_by_lot(
        self,
        *,
        signed_quantity_e8: int,
        price_e8: int,
        multiplier_e8: int,
        fee_e8: int,
        time_ns: int,
        offset: int,
    ) -> list[ClosedLot]:
        """Fold a fill in as `fill_exactly` does, and give what it closed, lot by lot.

        A fill through zero is two: its fee is split by quantity between what it closes and what it
        opens. The position's fees are nevertheless those that were charged, at once.
        """
        if signed_quantity_e8 % self.unit_e8:
            self._count_in_fractions()
        self.multiplier_e8 = multiplier_e8
        self.fees_e8 += fee_e8
        quantity = signed_quantity_e8 // self.unit_e8
        value_e24 = price_e8 * multiplier_e8 * self.unit_e8
        closed: list[ClosedLot] = []
        if self.quantity * quantity >= 0:
            self._open(quantity, value_e24, fee_e8 * E8_TO_E24, time_ns, offset)
        else:
            closed = self._close(quantity, value_e24, fee_e8 * E8_TO_E24, time_ns, offset)
        self.value_e24 = value_e24
        self.mark_ns = time_ns
        self.trade_count += 1
        self.source_offset = offset
        return closed

    def _count_in_fractions(self) -> None:
        self.quantity *= self.unit_e8
        self._lots = deque(
            (quantity * ONE_E8, value_e24 // ONE_E8, fee_e24, time_ns, offset)
            for quantity, value_e24, fee_e24, time_ns, offset in self._lots
        )
        self.unit_e8 = 1

    def _open(self, quantity: int, value_e24: int, fee_e24: int, time_ns: int, offset: int) -> None:
        self._lots.append((quantity, value_e24, fee_e24, time_ns, offset))
        self.quantity += quantity
        self.open_cost_e24 += quantity * value_e24

    def _close(
        self, quantity: int, value_e24: int, fee_e24: int, time_ns: int, offset: int
    ) -> list[ClosedLot]:
        lots, unit_e8 = self._lots, self.unit_e8
        held = self.quantity
        opens = held + quantity if abs(quantity) > abs(held) else 0
        closes = quantity - opens
        exit_fee_e24 = share(fee_e24, abs(closes), abs(quantity)) if fee_e24 else 0
        entry_fee_e24 = fee_e24 - exit_fee_e24
        closed = []
        cost_e24 = realized_e24 = 0
        while closes:
            lot_quantity, lot_value_e24, lot_fee_e24, lot_time_ns, lot_offset = lots[0]
            if abs(lot_quantity) <= abs(closes):
                part, part_fee_e24 = lot_quantity, lot_fee_e24
                lots.popleft()
                self._first += 1
            else:
                part = -closes
                part_fee_e24 = (
                    share(lot_fee_e24, abs(part), abs(lot_quantity)) if lot_fee_e24 else 0
                )
                lots[0] = (
                    lot_quantity - part,
                    lot_value_e24,
                    lot_fee_e24 - part_fee_e24,
                    lot_time_ns,
                    lot_offset,
                )
                self._kept_from = self._first + 1
            exit_share_e24 = share(exit_fee_e24, abs(part), abs(closes)) if exit_fee_e24 else 0
            exit_fee_e24 -= exit_share_e24
            closes += part
            gross_e24 = part * (value_e24 - lot_value_e24)
            cost_e24 += part * lot_value_e24
            realized_e24 += gross_e24
            closed.append(ClosedLot(part * unit_e8, gross_e24, part_fee_e24, exit_share_e24))
        self.quantity = held + quantity - opens
        self.open_cost_e24 -= cost_e24
        self.realized_e24 += realized_e24
        if opens:
            self._open(opens, value_e24, entry_fee_e24, time_ns, offset)
        return closed


def share(amount: int, part: int, whole: int) -> int:
    """Give the part of an amount that falls to a part of a quantity, rounded half to even.

    Args:
        amount: Any scaled int.
        part: 0 to `whole`; all of it gives the amount itself.
        whole: > 0.
    """
    return divide_half_even(amount * part, whole)
