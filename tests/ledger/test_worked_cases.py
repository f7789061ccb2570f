"""The worked cases of average cost, and a change of the past, through a real database."""

from fractions import Fraction
from typing import Any

from app.models import Fate, Position
from app.ports import Ledger
from tests.contract.postgres import Database
from tests.test_ledger_processor import AMEND, CANCEL, Desk, event
from tests.test_pnl import Case, each_case, parts

_HALF_A_UNIT = Fraction(1, 10**24)


async def stored(ledger: Ledger) -> Position:
    """Give the one position that the database holds."""
    (position,) = await ledger.positions(0)
    return position


@each_case
async def test_worked_cases_come_out_of_the_database(database: Database, case: Case) -> None:
    """After every fill, each booked by a batch of its own, by another process."""
    fees = Fraction(0)
    steps = zip(case.fills, case.realized, case.quantity, case.cost, strict=True)
    for number, (fill, realized, quantity, cost) in enumerate(steps):
        side, amount, price, fee = parts(fill)
        fees += Fraction(fee)
        desk = Desk(database.ledger(), next_offset=number)
        await desk.restart()
        signed = int(amount) if side == "BUY" else -int(amount)
        more: dict[str, Any] = {"fees": [{"amount": fee}]} if fee != "0" else {}
        result = await desk.process(event(f"T{number}", signed, price, **more))
        assert result.fates[Fate.BOOKED] == 1
        position = await stored(desk.ledger)
        assert abs(Fraction(position.realized_e24, 10**24) - realized) <= _HALF_A_UNIT
        assert abs(Fraction(position.open_cost_e24, 10**24) - cost) <= _HALF_A_UNIT
        assert position.quantity_e8 == quantity * 10**8
        assert position.fees_e8 == fees * 10**8
    ((realized_pnl, paid),) = await database.pool.fetch(
        "SELECT realized_pnl, fees FROM position_list"
    )
    if case.net is not None:
        net = Fraction(realized_pnl) - Fraction(paid)
        assert abs(net - Fraction(case.net)) <= _HALF_A_UNIT


async def test_amend_and_cancel_through_the_database(database: Database) -> None:
    """Each by a process that knows nothing but the ledger; every version and change is kept."""
    steps = [
        ([event("B", 100, "10"), event("S", -60, "11")], (40, 400, 60)),
        ([event("B", 100, "10.50", **AMEND)], (40, 420, 30)),
        ([event("B", 100, "10.50", **AMEND), event("B", 100)], (40, 420, 30)),
        ([event("B", 100, "10.50", **CANCEL)], (-60, -660, 0)),
        ([event("B", 100, "10.50", **CANCEL)], (-60, -660, 0)),
    ]
    next_offset = 0
    for values, expected in steps:
        desk = Desk(database.ledger(), next_offset=next_offset)
        await desk.restart()
        await desk.process(*values)
        next_offset = desk.next_offset
        position = await stored(desk.ledger)
        numbers = (position.quantity_e8, position.open_cost_e24, position.realized_e24)
        assert numbers == (expected[0] * 10**8, expected[1] * 10**24, expected[2] * 10**24)
    rows = await database.pool.fetch(
        "SELECT trade_id, version, action FROM trades ORDER BY source_offset"
    )
    assert [tuple(row) for row in rows] == [
        *(("B", 1, "NEW"), ("S", 1, "NEW"), ("B", 2, "AMEND"), ("B", 3, "CANCEL")),
    ]
    changes = await database.pool.fetch(
        "SELECT realized_before, realized_after FROM corrections ORDER BY source_offset"
    )
    assert [tuple(row) for row in changes] == [(60, 30), (30, 0)]
    assert await database.pool.fetchval("SELECT string_agg(trade_id, ',') FROM fills") == "S"
