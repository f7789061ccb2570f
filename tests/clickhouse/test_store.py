"""The copy's tables and views: exact, idempotent, and of one topic."""

import asyncio
import subprocess
import sys
from decimal import Decimal, localcontext
from pathlib import Path

import pytest

from app.copy_codec import CopyBlock
from app.errors import CopyError
from app.memory_io import MemoryBroker
from app.stores.clickhouse import ClickHouseCopy
from tests.clickhouse.conftest import OpenCopy
from tests.clickhouse.trades import block_of, event, model, some_events
from tests.copy_world import TOPIC

pytestmark = pytest.mark.slow


def filled(values: list[bytes | None], *, partition: int = 0) -> MemoryBroker:
    """Give a broker with these values in one partition."""
    broker = MemoryBroker({TOPIC: 2}, now_ms=lambda: 1_790_000_000_000)
    for value in values:
        broker.append(TOPIC, value, partition=partition)
    return broker


async def test_every_amount_is_exact(copy: ClickHouseCopy) -> None:
    """Prices, quantities and notionals are those of decimal arithmetic, to the last digit."""
    values = list(some_events(600, seed=1))
    broker = filled(values)
    await copy.write([block_of(broker, 0, 0, 600)], {0: 0})
    expected = model(values)
    rows = await copy.query(
        "SELECT source_offset, trade_id, book, symbol, side, price, quantity, notional,"
        " signed_notional FROM trade_list ORDER BY source_offset"
    )
    assert [row[0] for row in rows] == sorted(expected)
    with localcontext(prec=80):
        for offset, trade_id, book, symbol, side, price, quantity, notional, signed in rows:
            sent = expected[offset]
            assert (trade_id, book or None, symbol, side) == (
                sent["trade_id"], sent.get("book"), sent["symbol"], sent["side"],
            )  # fmt: skip
            assert (price, quantity) == (sent["price"], sent["quantity"])
            assert notional == sent["price"] * sent["quantity"]
            assert signed == (notional if side == "BUY" else -notional)
    refused = await copy.query("SELECT count(), uniqExact(source_offset) FROM refused FINAL")
    assert refused == [(600 - len(expected), 600 - len(expected))]


async def test_the_largest_amounts_fit(copy: ClickHouseCopy) -> None:
    """The product of the three largest amounts is exact, and so is the smallest."""
    largest, smallest = "999999999999.99999999", "0.00000001"
    values: list[bytes | None] = [
        event("L", price=largest, quantity=largest, contract_multiplier=largest),
        event("S", price=smallest, quantity=smallest, contract_multiplier=smallest),
        event("N", price="-" + largest, quantity=largest, asset_class="FUTURE"),
    ]
    await copy.write([block_of(filled(values), 0, 0, 3)], {0: 0})
    rows = dict(await copy.query("SELECT trade_id, notional FROM trade_list"))
    with localcontext(prec=80):
        assert rows["L"] == Decimal(largest) ** 3
        assert rows["S"] == Decimal(smallest) ** 3
        assert rows["N"] == -(Decimal(largest) ** 2)


async def test_times_keep_their_nanoseconds(copy: ClickHouseCopy) -> None:
    """From 2000 to 2099, with whatever offset it was written."""
    stamps = {
        "2026-03-02T14:30:00.123456789+01:00": "2026-03-02 13:30:00.123456789",
        "2000-01-01T00:00:00Z": "2000-01-01 00:00:00.000000000",
        "2099-12-31T23:59:59.999999999Z": "2099-12-31 23:59:59.999999999",
    }
    values: list[bytes | None] = [event(stamp, timestamp=stamp) for stamp in stamps]
    await copy.write([block_of(filled(values), 0, 0, 3)], {0: 0})
    rows = await copy.query("SELECT trade_id, toString(executed_at) FROM trade_list")
    assert dict(rows) == stamps


VIEWS = ("trade_list", "last_trades", "volume_by_minute", "volume_by_symbol", "volume_by_book")


async def everything(copy: ClickHouseCopy) -> dict[str, list[tuple[object, ...]]]:
    """Give what every view shows."""
    shown = {
        view: await copy.query(f"SELECT * FROM {view} ORDER BY ALL")  # noqa: S608 - names of ours
        for view in VIEWS
    }
    return shown | {
        "refused": await copy.query("SELECT source_offset, reason FROM refused FINAL ORDER BY ALL")
    }


async def test_views_survive_replays_in_other_pieces(copy: ClickHouseCopy) -> None:
    """Everything twice, in blocks of another size, backwards: every view shows the same."""
    broker = filled(list(some_events(400, seed=2)))
    await copy.write([block_of(broker, 0, 0, 400)], {0: 0})
    before = await everything(copy)
    await copy.query("SYSTEM STOP MERGES trades")  # what is there twice stays so for a look
    for start in range(390, -1, -30):
        await copy.write([block_of(broker, 0, start, min(start + 47, 400))], {0: 0})
    assert await everything(copy) == before
    assert (await copy.query("SELECT count() FROM trades"))[0][0] > len(before["trade_list"])
    await copy.query("SYSTEM START MERGES trades")
    await copy.query("OPTIMIZE TABLE trades FINAL")
    assert await everything(copy) == before
    assert await copy.progress() == {0: (0, 400)}


async def test_a_trade_that_was_sent_twice_counts_once_among_distinct_trades(
    copy: ClickHouseCopy,
) -> None:
    """It is there twice in the list of what was sent."""
    values: list[bytes | None] = [event("A"), event("B", price="1"), event("A"), event("A")]
    await copy.write([block_of(filled(values), 0, 0, 4)], {0: 0})
    assert await copy.query("SELECT count() FROM trade_list") == [(4,)]
    assert await copy.query(
        "SELECT trade_id, events, source_offset FROM last_trades ORDER BY 1"
    ) == [("A", 3, 0), ("B", 1, 1)]
    ((trades, volume, notional, vwap),) = await copy.query(
        "SELECT trades, volume, notional, vwap FROM volume_by_symbol"
    )
    assert (trades, volume, notional) == (2, 200, Decimal(19042))
    assert vwap == Decimal("95.21")


async def test_amended_and_cancelled_trades_show_their_last_version(copy: ClickHouseCopy) -> None:
    """With versions in any order; without them in the order of the log; a cancel is final."""
    values: list[bytes | None] = [
        event("A", version=3, action="AMEND", price="3"),
        event("A", version=1),
        event("A", version=2, action="AMEND", price="2"),
        event("B"),
        event("B", action="AMEND", price="5"),
        event("B", action="AMEND", price="6"),
        event("C"),
        event("C", action="CANCEL"),
        event("D", version=1, price="7"),
        event("D", version=1, price="8"),
    ]
    await copy.write([block_of(filled(values), 0, 0, len(values))], {0: 0})
    rows = await copy.query("SELECT trade_id, action, price FROM last_trades ORDER BY 1")
    assert [(i, action, str(price.normalize())) for i, action, price in rows] == [
        ("A", "AMEND", "3"), ("B", "AMEND", "6"), ("C", "CANCEL", "189.42"), ("D", "NEW", "7"),
    ]  # fmt: skip
    assert await copy.query("SELECT trades FROM volume_by_book") == [(3,)]


async def test_progress_never_steps_back_and_belongs_to_one_copy(
    copy: ClickHouseCopy, open_it: OpenCopy
) -> None:
    """A late write of an earlier block changes nothing; after a rebuild neither does any."""
    broker = filled(list(some_events(50, seed=3)))
    await copy.write([block_of(broker, 0, 0, 50)], {0: 0})
    await copy.write([block_of(broker, 0, 0, 20)], {0: 0})
    assert await copy.progress() == {0: (0, 50)}
    old_id = copy._copy_id
    copy._copy_id = "00000000-0000-0000-0000-000000000001"
    await copy.write([block_of(broker, 0, 0, 50)], {0: 0})
    copy._copy_id = old_id
    assert await copy.progress() == {0: (0, 50)}
    assert open_it is not None


async def test_a_rebuild_begins_with_nothing(open_it: OpenCopy) -> None:
    """Rows, refusals and progress are gone; a plain opening keeps them."""
    broker = filled(list(some_events(50, seed=4)))
    async with open_it(rebuild=True) as copy:
        await copy.write([block_of(broker, 0, 0, 50)], {0: 0})
    async with open_it() as copy:
        assert await copy.progress() == {0: (0, 50)}
    async with open_it(rebuild=True) as copy:
        assert await copy.progress() == {}
        assert await copy.query("SELECT count() FROM trades") == [(0,)]
        assert await copy.query("SELECT count() FROM refused") == [(0,)]


@pytest.mark.parametrize("other", [{"kafka_topic": "others"}, {"defaults_currency": "EUR"}])
async def test_a_copy_of_something_else_is_refused(
    open_it: OpenCopy, other: dict[str, str]
) -> None:
    """Another topic, or rows that would be made in another way, need a copy of their own."""
    async with open_it(rebuild=True):
        pass
    with pytest.raises(CopyError, match="--rebuild"):
        async with open_it(**other):
            pass
    async with open_it():
        pass


async def test_tables_of_somebody_else_are_not_touched(open_it: OpenCopy) -> None:
    """A database with a table of such a name is not taken over, and never dropped."""
    async with open_it(rebuild=True) as copy:
        await copy._worker.run(lambda: copy._client.command("DROP TABLE copy_of SYNC"))
    try:
        for rebuild in (False, True):
            with pytest.raises(CopyError, match="not ours"):
                async with open_it(rebuild=rebuild):
                    pass
    finally:
        await _drop_database(open_it)


async def _drop_database(open_it: OpenCopy) -> None:
    def drop(client: object) -> None:
        client.command("DROP DATABASE trade_stream SYNC")  # type: ignore[attr-defined]

    from app.stores import clickhouse  # noqa: PLC0415 - its inside is what is changed

    prepare = clickhouse._prepare
    clickhouse._prepare = lambda client, *_, **__: drop(client)  # type: ignore[assignment]
    try:
        async with open_it():
            pass
    finally:
        clickhouse._prepare = prepare


async def test_a_second_process_is_told_who_is_in_the_way(
    copy: ClickHouseCopy, engine_dir: Path
) -> None:
    """One process at a time has the engine's data, and the line says what to do."""
    program = (
        "import asyncio, sys; from pathlib import Path; from app.config import Settings\n"
        "from app.stores.clickhouse import open_copy\n"
        "async def main():\n"
        "    settings = Settings.model_validate({'clickhouse_url': 'embedded'})\n"
        "    async with open_copy(settings, data_dir=Path(sys.argv[1])): pass\n"
        "try: asyncio.run(main())\n"
        "except Exception as exc: print(type(exc).__name__, exc)\n"
    )
    assert await copy.progress() == {}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(engine_dir)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.startswith("CopyError another process has the embedded ClickHouse")


async def test_what_the_engine_refuses_is_said(copy: ClickHouseCopy) -> None:
    """A table that is gone is nothing that waiting mends."""
    await copy.query("DROP TABLE trades SYNC")
    block = CopyBlock(0, 0)
    records = filled([event("A")]).log(TOPIC, 0).records
    assert len(records) == 1
    block = block_of(filled([event("A")]), 0, 0, 1)
    with pytest.raises(CopyError, match="ClickHouse refuses"):
        await copy.write([block], {0: 0})
