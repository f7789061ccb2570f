"""What the ledger answers: filters, exact sums, days; all in SQL, on a real PostgreSQL."""

from collections.abc import AsyncGenerator
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.config import IdentityScope
from app.errors import LedgerError
from app.models import CostMethod
from app.money import ONE_E8
from app.pnl.daily import Day, explain_day
from app.pnl.explain import Close, explain
from app.pnl.fills import Fill
from app.pnl.valuation import Mark
from app.stores.ledger_queries import Filters, open_reader
from app.timestamps import parse_timestamp
from tests.contract.postgres import Database
from tests.ledger.filling import book, trade

pytestmark = pytest.mark.integration
T = TypeVar("T")

DAY = Day(date(2026, 3, 1), date(2026, 3, 2))
EVENTS: list[dict[str, Any] | bytes] = [
    trade("T1", "BUY", "100", "10", book="EQ", timestamp="2026-03-01T09:00:00Z"),
    trade("T2", "SELL", "40", "12", book="EQ", timestamp="2026-03-02T09:00:00.000000001Z"),
    trade("T3", "BUY", "0.00000001", "0.00000003", symbol="X'; --",
          timestamp="2026-03-02T10:00:00Z"),
    trade("T4", "BUY", "3", "7", book="FX", symbol="AAPL", currency="EUR",
          fees=[{"amount": "0.25"}]),
    trade("T5", "SELL", "1", "9", book="FX", currency="EUR", isin="US0378331006",
          timestamp="2026-03-03T00:00:00Z"),
    b"not a trade",
]  # fmt: skip


async def rows_of(generator: AsyncGenerator[list[T], None]) -> list[T]:
    """Give all rows of all pieces."""
    return [row async for piece in generator for row in piece]


async def ids(database: Database, **filters: Any) -> list[str]:
    """Give the ids of the trades that pass filters, in the order of the answer."""
    async with open_reader(database.url) as reader:
        return [row["trade_id"] for row in await rows_of(reader.trades(Filters(**filters)))]


def ns(text: str) -> int:
    """Read a time."""
    return parse_timestamp(text)[0]


@pytest.fixture
async def filled(database: Database) -> Database:
    """Give a ledger with a few trades."""
    await book(database.ledger(), EVENTS)
    return database


async def test_filters_take_what_they_say_and_the_newest_is_first(filled: Database) -> None:
    """Alone and together; bounds of time are from, and up to but not including."""
    assert await ids(filled) == ["T5", "T4", "T3", "T2", "T1"]
    assert await ids(filled, book="EQ") == ["T2", "T1"]
    assert await ids(filled, book="") == ["T3"]
    assert await ids(filled, symbol="X'; --") == ["T3"]
    assert await ids(filled, symbol="AAPL", book="FX", limit=1) == ["T5"]
    assert await ids(filled, since_ns=ns("2026-03-02T09:00:00.000000001Z")) == [
        "T5", "T4", "T3", "T2",
    ]  # fmt: skip
    assert await ids(filled, until_ns=ns("2026-03-02T09:00:00.000000001Z")) == ["T1"]
    assert await ids(filled, is_suspect=True) == ["T5"]
    assert await ids(filled, code="isin-check-digit") == ["T5"]
    assert await ids(filled, code="off-tick") == []
    assert await ids(filled, trade_id="T3") == ["T3"]
    assert await ids(filled, trade_id="T3", symbol="AAPL") == []
    assert await ids(filled, trade_id="'") == []


async def test_a_trade_is_found_without_its_id_noted(database: Database) -> None:
    """Where ids are not kept, and where a trade was booked twice."""
    await database.keep(IdentityScope.WINDOW)
    ledger = database.ledger(IdentityScope.WINDOW)
    await book(ledger, [EVENTS[0], EVENTS[1]])
    await book(ledger, [EVENTS[0]], first=2)
    assert await ids(database, trade_id="T1") == ["T1", "T1"]


async def test_rows_have_every_digit_and_nanosecond(filled: Database) -> None:
    """As they were sent; computed amounts are exact."""
    async with open_reader(filled.url) as reader:
        rows = {row["trade_id"]: row for row in await rows_of(reader.trades(Filters()))}
    assert rows["T3"]["notional"] == Decimal("3E-16")
    assert rows["T2"]["signed_notional"] == -480
    assert rows["T2"]["executed_ns"] == ns("2026-03-02T09:00:00.000000001Z")
    assert rows["T5"]["suspects"] == ["isin-check-digit"]
    assert rows["T4"]["fee"] == Decimal("0.25")


async def test_an_export_is_in_order_of_the_log(filled: Database) -> None:
    """So that no sort stands before its first row."""
    async with open_reader(filled.url) as reader:
        rows = await rows_of(reader.trades(Filters(), newest_first=False))
        letters = await rows_of(reader.dead_letters(Filters()))
    assert [row["source_offset"] for row in rows] == [0, 1, 2, 3, 4]
    assert [(row["source_offset"], row["reason"]) for row in letters] == [(5, "body-not-json")]


async def test_positions_are_those_that_were_written(filled: Database) -> None:
    """Each as the ledger restores it, with its partition and method."""
    async with open_reader(filled.url) as reader:
        found = await rows_of(reader.positions(Filters()))
        of_day = await rows_of(reader.positions(Filters(since_ns=ns("2026-03-03T00:00:00Z"))))
    ledger = filled.ledger()
    assert sorted(p.key for _, p, _ in found) == ["EQ|AAPL", "FX|AAPL", "X'; --"]
    assert {p.key: p for _, p, _ in found} == {p.key: p for p in await ledger.positions(0)}
    assert [(p.key, method) for _, p, method in of_day] == [("FX|AAPL", "average")]


async def test_pnl_never_mixes_currencies(filled: Database) -> None:
    """However it is summed, and every amount is exact."""
    async with open_reader(filled.url) as reader:
        by_symbol = await rows_of(reader.pnl(Filters(), "symbol"))
        by_currency = await rows_of(reader.pnl(Filters(), "currency"))
        by_position = await rows_of(reader.pnl(Filters(book="EQ"), "position"))
    assert [(row["symbol"], row["currency"]) for row in by_symbol] == [
        ("AAPL", "EUR"), ("AAPL", "USD"), ("X'; --", "USD"),
    ]  # fmt: skip
    euro, dollar = by_currency
    assert (euro["gross_realized"], euro["fees"], euro["net_realized"]) == (
        2, Decimal("0.25"), Decimal("1.75"),
    )  # fmt: skip
    assert (euro["unrealized"], euro["total"]) == (4, Decimal("5.75"))
    assert (dollar["gross_realized"], dollar["unrealized"], dollar["positions"]) == (80, 120, 2)
    (equity,) = by_position
    assert equity["book"] == "EQ"
    assert equity["oldest_mark_ns"] == ns("2026-03-02T09:00:00.000000001Z")


async def test_without_a_mark_unrealised_is_unknown(database: Database) -> None:
    """Not zero; and so is every sum that it is part of. What is flat has no need of one."""
    await book(database.ledger(), [EVENTS[0], EVENTS[3]])
    await database.pool.execute("UPDATE positions SET trade_count = 0 WHERE book = 'EQ'")
    async with open_reader(database.url) as reader:
        rows = {r["currency"]: r for r in await rows_of(reader.pnl(Filters(), "currency"))}
        assert (rows["USD"]["unrealized"], rows["USD"]["total"]) == (None, None)
        assert rows["USD"]["gross_realized"] == 0
        assert rows["EUR"]["unrealized"] == 0


async def test_a_reader_cannot_write(filled: Database) -> None:
    """Whatever its user may do, the session is read-only."""
    async with open_reader(filled.url) as reader:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await reader._connection.execute("DELETE FROM trades")


async def test_a_database_without_tables_is_told(new_ledger: Any, database: Database) -> None:
    """With what to do."""
    await database.pool.execute("DROP VIEW trade_list; DROP TABLE trades CASCADE")
    with pytest.raises(LedgerError, match="db migrate"):
        await ids(database)


async def test_all_answers_of_a_reader_are_of_one_moment(filled: Database) -> None:
    """What is booked meanwhile does not show half."""
    async with open_reader(filled.url) as reader:
        before = await rows_of(reader.trades(Filters()))
        await book(filled.ledger(), [trade("T9", "BUY", "1", "1")], first=6)
        assert len(await rows_of(reader.trades(Filters()))) == len(before)
    assert len(await ids(filled)) == len(before) + 1


# -- days


def fill_of(event: dict[str, Any], offset: int) -> Fill:
    """Give the fill of an event, by other code than the ledger's."""

    def e8(text: str) -> int:
        return int(Fraction(text) * ONE_E8)

    sign = 1 if event["side"] == "BUY" else -1
    fee = sum(Fraction(fee["amount"]) for fee in event.get("fees", ()))
    return Fill(
        event["trade_id"],
        ns(event["timestamp"]),
        0,
        offset,
        sign * e8(event["quantity"]),
        e8(event["price"]),
        e8(event.get("contract_multiplier", "1")),
        int(fee * ONE_E8),
    )


def close_of(fills: list[Fill], time_ns: int) -> Close:
    """Give the close of a day as its definition says."""
    known = tuple(fill for fill in fills if fill.time_ns <= time_ns)
    last = max(known, key=lambda f: (f.time_ns, f.offset), default=None)
    mark = None if last is None else Mark(last.price_e8, last.time_ns, "last-trade")
    return Close(time_ns=time_ns, fills=known, mark=mark, rate=Mark(ONE_E8, 0, "one"))


amounts = st.decimals("0.00000001", "99999", places=8).map("{:f}".format)
events = st.builds(
    lambda number, side, quantity, price, hour, fee: trade(
        f"T{number}", side, quantity, price,
        timestamp=f"2026-03-{1 + hour // 24:02}T{hour % 24:02}:00:00Z",
        fees=[{"amount": str(fee)}],
    ),
    st.integers(0, 10**9),
    st.sampled_from(["BUY", "SELL"]),
    amounts,
    amounts,
    st.integers(0, 71),
    st.decimals("-1", "1", places=2),
)  # fmt: skip


@given(history=st.lists(events, min_size=1, max_size=12, unique_by=lambda e: e["trade_id"]))
@hypothesis_settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
async def test_a_day_is_explained_as_from_every_single_fill(
    database: Database, history: list[dict[str, Any]]
) -> None:
    """The database's sums give what `explain` makes of the fills themselves."""
    async with database.pool.acquire() as connection:
        await connection.execute(
            "TRUNCATE trades, trade_versions, positions, source_partitions, dead_letters"
        )
    await book(database.ledger(), history)
    fills = [fill_of(event, offset) for offset, event in enumerate(history)]
    expected = explain(close_of(fills, DAY.first_close_ns), close_of(fills, DAY.close_ns))
    async with open_reader(database.url) as reader:
        found = await rows_of(reader.day(Filters(), DAY))
    if all(fill.time_ns > DAY.close_ns for fill in fills):
        assert not found
        return
    (activity,) = found
    assert explain_day(activity, DAY) == expected
    assert activity.new_trades == sum(
        DAY.first_close_ns < fill.time_ns <= DAY.close_ns for fill in fills
    )


async def test_fills_are_those_that_count_in_the_order_of_execution(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By position, with every digit; over pieces of an answer too."""
    monkeypatch.setattr("app.stores.ledger_queries.PIECE_ROWS", 2)
    late = trade("T0", "SELL", "1.5", "9.00000001", timestamp="2026-02-28T00:00:00Z",
                 fees=[{"amount": "-0.125"}], book="EQ")  # fmt: skip
    future = trade("T4", "BUY", "3", "7", book="FX", currency="EUR", contract_multiplier="50")
    history = [EVENTS[0], future, EVENTS[1], late]
    await book(database.ledger(), history)
    await database.pool.execute("UPDATE positions SET method = 'fifo' WHERE book = 'EQ'")
    async with open_reader(database.url) as reader:
        found = [one async for one in reader.fills(Filters())]
        some = [one async for one in reader.fills(Filters(book="EQ"), until_ns=DAY.first_close_ns)]
    offsets = {"EQ": (3, 0, 2), "FX": (1,)}
    assert [(one.book, one.currency, one.method) for one in found] == [
        ("EQ", "USD", CostMethod.FIFO), ("FX", "EUR", CostMethod.AVERAGE),
    ]  # fmt: skip
    for one in found:
        expected = []
        for offset in offsets[one.book or ""]:
            event = history[offset]
            assert isinstance(event, dict)
            expected.append(fill_of(event, offset))
        assert one.fills == expected
    assert [[fill.trade_id for fill in one.fills] for one in some] == [["T0", "T1"]]


async def test_an_amended_trade_keeps_its_place_in_an_instant(database: Database) -> None:
    """Its AMEND stands behind another trade of the same moment, and it is folded before that."""
    at = "2026-03-02T09:00:00Z"
    history = [
        trade("A", "BUY", "100", "10", timestamp=at),
        trade("B", "SELL", "50", "12", timestamp=at),
    ]
    await book(database.ledger(), history)
    await database.pool.execute(
        """
        INSERT INTO trades SELECT (jsonb_populate_record(t, '{"source_offset": 2, "version": 2,
            "action": "AMEND", "price": "10.5"}')).* FROM trades t WHERE trade_id = 'A';
        INSERT INTO trade_versions VALUES ('A', 2, 0, 2)
        """
    )
    async with open_reader(database.url) as reader:
        (one,) = [one async for one in reader.fills(Filters())]
        (activity,) = await rows_of(reader.day(Filters(), DAY))
    assert [(fill.trade_id, fill.offset, fill.price_e8) for fill in one.fills] == [
        ("A", 0, 1_050_000_000), ("B", 1, 1_200_000_000),
    ]  # fmt: skip
    assert activity.mark == one.mark() == Mark(1_200_000_000, ns(at), "last-trade")


async def test_a_day_takes_filters(filled: Database) -> None:
    """Of book and symbol; what was executed after its end is not part of it."""
    async with open_reader(filled.url) as reader:
        every = await rows_of(reader.day(Filters(), DAY))
        some = await rows_of(reader.day(Filters(book="FX"), DAY))
    assert [(a.book, a.symbol) for a in every] == [
        (None, "X'; --"), ("EQ", "AAPL"), ("FX", "AAPL"),
    ]  # fmt: skip
    (foreign,) = some
    assert (foreign.currency, foreign.new_trades, foreign.first_mark) == ("EUR", 1, None)
