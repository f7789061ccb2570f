"""The worked cases of average cost, and a change of the past, through a real database."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from app.models import Fate, Position
from app.ports import Ledger
from tests import worked_cases as fifo_cases
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


@pytest.mark.parametrize("case", fifo_cases.CASES.values(), ids=fifo_cases.CASES.keys())
async def test_worked_cases_by_fifo_come_out_of_the_database(
    database: Database, case: fifo_cases.Case
) -> None:
    """After every fill, each booked by another process, which has nothing but position and lots."""
    steps = zip(case.fills, case.fifo.realized, case.quantity, case.fifo.cost, strict=True)
    for number, (fill, realized, quantity, cost) in enumerate(steps):
        side, amount, price, fee = parts(fill)
        desk = Desk(database.ledger(), next_offset=number, fifo_books="*")
        await desk.restart()
        signed = int(amount) if side == "BUY" else -int(amount)
        more: dict[str, Any] = {"fees": [{"amount": fee}]} if fee != "0" else {}
        result = await desk.process(event(f"T{number}", signed, price, **more))
        assert result.fates[Fate.BOOKED] == 1
        position = await stored(desk.ledger)
        assert Fraction(position.realized_e24, 10**24) == realized
        assert Fraction(position.open_cost_e24, 10**24) == cost
        assert position.quantity_e8 == quantity * 10**8
    rows = await database.pool.fetch(
        "SELECT quantity, price, open_cost, unrealized_pnl, trade_id FROM lot_list ORDER BY number"
    )
    assert [f"{row['quantity']:f}@{row['price']:f}" for row in rows] == [
        f"{Decimal(amount):.8f}@{Decimal(price):.8f}"
        for amount, _, price in (lot.partition("@") for lot in case.fifo.lots)
    ] or not case.fifo.lots
    assert sum(row["open_cost"] for row in rows) == case.fifo.cost[-1]
    assert all(row["trade_id"] for row in rows)
    ((method, unrealized),) = await database.pool.fetch(
        "SELECT method, unrealized_pnl FROM position_list"
    )
    assert (method, unrealized) == ("fifo", sum(row["unrealized_pnl"] for row in rows))


async def test_a_change_of_the_past_by_fifo_through_the_database(database: Database) -> None:
    """The lots are those of the final fills, with their fees, and what comes next closes them."""
    steps = [
        ([event("A", 100, "10", fees=[{"amount": "1"}]), event("B", 50, "12")], "100@10 50@12"),
        ([event("C", -120, "13")], "30@12"),
        ([event("A", 40, "10", fees=[{"amount": "1"}], **AMEND)], "-30@13"),
        ([event("C", -120, "13", action="CANCEL", version=2)], "40@10 50@12"),
        ([event("D", -60, "9")], "30@12"),
    ]
    next_offset = 0
    for values, expected in steps:
        desk = Desk(database.ledger(), next_offset=next_offset, fifo_books="*")
        await desk.restart()
        await desk.process(*values)
        next_offset = desk.next_offset
        rows = await database.pool.fetch("SELECT quantity, price FROM lots ORDER BY number")
        assert " ".join(f"{int(q)}@{int(p)}" for q, p in rows) == expected
    position = await stored(database.ledger())
    # 40 of A at 10 and 20 of B at 12, both sold at 9.
    assert position.realized_e24 == -(40 + 60) * 10**24


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
