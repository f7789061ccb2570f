"""The commands over the ledger as users run them: processes, their output and their exit codes."""

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.contract.postgres import Database, MakeDatabase
from tests.ledger.filling import book, trade

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EVENTS: list[dict[str, Any] | bytes] = [
    trade("T1", "BUY", "100", "10", book="EQ", timestamp="2026-03-01T09:00:00Z"),
    trade("T2", "SELL", "40", "12.5", book="EQ", timestamp="2026-03-02T09:00:00.000000001Z"),
    trade("=cmd|' /C calc'!A0", "BUY", "0.00000001", "3", symbol="-[bold]@SUM",
          timestamp="2026-03-02T10:00:00Z", isin="US0378331006"),
    trade("T4", "BUY", "3", "7", book="FX", symbol="AAPL", currency="EUR",
          fees=[{"amount": "0.25"}]),
    trade("T5", "SELL", "999999999999", "999999999999.99999999", symbol="HUGE"),
    b"not a trade",
]  # fmt: skip


@contextmanager
def made(new_ledger: MakeDatabase) -> Iterator[tuple[Database, asyncio.Runner]]:
    """Give a ledger, and what runs coroutines on it."""
    with asyncio.Runner() as runner:
        making = new_ledger()
        yield runner.run(_enter(making)), runner
        runner.run(_leave(making))


async def _enter(making: AbstractAsyncContextManager[Database]) -> Database:
    return await making.__aenter__()


async def _leave(making: AbstractAsyncContextManager[Database]) -> None:
    await making.__aexit__(None, None, None)


@pytest.fixture(scope="module")
def filled(new_ledger: MakeDatabase) -> Iterator[str]:
    """Give the URL of a ledger that tests of this module read."""

    async def fill(database: Database) -> None:
        await book(database.ledger(), EVENTS)
        await database.pool.execute("INSERT INTO ledger (topic, consumer_group) VALUES ('t', 'g')")

    with made(new_ledger) as (database, runner):
        runner.run(fill(database))
        yield database.url


def environment(url: str | None, **more: str) -> dict[str, str]:
    """Give the environment of a command; there is no Kafka for it."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KAFKA_", "DATABASE_"))
    }
    named = {} if url is None else {"DATABASE_URL": url}
    return inherited | named | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "COLUMNS": "200"} | more


def run(url: str | None, *command: str, exit_code: int = 0, cwd: Path = ROOT) -> tuple[str, str]:
    """Run a command to its end; give what it printed, for programs and for people."""
    done = subprocess.run(
        [sys.executable, "-m", "app", *command],
        cwd=cwd,
        env=environment(url, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == exit_code, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def test_trades_in_every_form(filled: str) -> None:
    """As a table, JSON and CSV, with filters; amounts are exact text, and names no markup."""
    table, _ = run(filled, "trades")
    assert "-[bold]@SUM" in table
    assert [line.split()[1] for line in table.splitlines()[-2:]] == ["T2", "T1"]
    rows = json.loads(run(filled, "trades", "--json", "--book", "EQ")[0])
    assert [row["trade_id"] for row in rows] == ["T2", "T1"]
    assert rows[0] == {
        "trade_id": "T2", "version": 1, "action": "NEW", "book": "EQ", "symbol": "AAPL",
        "side": "SELL", "price": "12.5", "quantity": "40", "multiplier": "1", "currency": "USD",
        "notional": "500", "signed_notional": "-500", "fee": "0",
        "executed_at": "2026-03-02T09:00:00.000000001Z", "suspects": None, "details": None,
        "source_partition": 0, "source_offset": 1,
    }  # fmt: skip
    output, _ = run(filled, "trades", "--csv", "--code", "off-tick")
    assert not list(csv.DictReader(io.StringIO(output)))
    output, _ = run(filled, "trades", "--csv", "--suspect", "--code", "isin-check-digit")
    (row,) = csv.DictReader(io.StringIO(output))
    assert (row["trade_id"], row["symbol"]) == ("'=cmd|' /C calc'!A0", "'-[bold]@SUM")
    assert (row["quantity"], row["notional"]) == ("0.00000001", "0.00000003")
    huge = json.loads(run(filled, "trades", "--json", "--trade-id", "T5")[0])
    assert huge[0]["signed_notional"] == "-999999999998999999990000.00000001"


def test_a_table_says_that_there_is_more(filled: str) -> None:
    """With a limit of one's own; JSON has all."""
    table, _ = run(filled, "trades", "--limit", "2")
    assert len(table.splitlines()) == 4
    assert "there are more" in table
    assert len(json.loads(run(filled, "trades", "--json")[0])) == 5
    none = ("trades", "--symbol", "x' OR 'a'='a")
    assert run(filled, *none)[0] == "no trades\n"
    assert json.loads(run(filled, *none, "--json")[0]) == []


def test_positions_come_from_the_ledger(filled: str) -> None:
    """Without any broker; the same fields as from the topic, and a few more."""
    rows = json.loads(run(filled, "positions", "--json", "--symbol", "AAPL")[0])
    assert [row["book"] for row in rows] == ["EQ", "FX"]
    assert rows[0] == {
        "book": "EQ", "symbol": "AAPL", "quantity": "60", "average_price": "10",
        "realized_pnl": "100", "unrealized_pnl": "150", "mark": "12.5", "fees": "0",
        "currency": "USD", "mark_at": "2026-03-02T09:00:00.000000001Z", "trade_count": 2,
        "method": "average",
        "source": {"topic": "t", "partition": 0, "offset": 1},
    }  # fmt: skip
    output, _ = run(filled, "positions", "--csv", "--since", "2026-03-02", "--book", "")
    found = list(csv.DictReader(io.StringIO(output)))
    assert [row["symbol"] for row in found] == ["'-[bold]@SUM", "HUGE"]
    assert found[1]["quantity"] == "-999999999999"  # a number, and no formula


def test_pnl_and_a_day_of_it(filled: str) -> None:
    """Gross, fees and net apart; why a day's total changed, with both marks and their times."""
    rows = json.loads(run(filled, "pnl", "--json", "--book", "EQ")[0])
    assert rows == [
        {
            "book": "EQ", "symbol": "AAPL", "currency": "USD", "positions": 1,
            "gross_realized": "100", "fees": "0", "net_realized": "100", "unrealized": "150",
            "total": "250", "mark_source": "last-trade",
            "oldest_mark_at": "2026-03-02T09:00:00.000000001Z",
        }
    ]  # fmt: skip
    rows = json.loads(run(filled, "pnl", "--day", "2026-03-02", "--json", "--book", "EQ")[0])
    assert rows == [
        {
            "book": "EQ", "symbol": "AAPL", "currency": "USD", "trades": 1, "before": "0",
            "new_trades": "0", "price": "250", "fees": "0", "change": "250", "after": "250",
            "first_mark": "10", "first_mark_at": "2026-03-01T09:00:00Z",
            "mark": "12.5", "mark_at": "2026-03-02T09:00:00.000000001Z",
        }
    ]  # fmt: skip
    by = ("pnl", "--day", "2026-03-02", "--previous", "2026-02-01", "--by", "currency", "--json")
    euro, dollar = json.loads(run(filled, *by)[0])
    assert (euro["currency"], euro["change"], euro["fees"]) == ("EUR", "-0.25", "-0.25")
    assert (dollar["currency"], dollar["trades"], dollar["before"]) == ("USD", 4, "0")


RATES = """date,currency,rate,source
2026-03-01,USD,1,
2026-03-02,USD,1,
2026-03-02,EUR,1.10,ECB
2026-03-05,EUR,1.25,ECB
"""


def test_pnl_in_one_currency_for_all(filled: str, tmp_path: Path) -> None:
    """Every trade at the rate of its day, what is open at the newest one; sums mix currencies."""
    (tmp_path / "rates.csv").write_text(RATES)
    into = ("--in", "USD", "--rates", "rates.csv", "--json")
    rows = json.loads(run(filled, "pnl", *into, "--symbol", "AAPL", cwd=tmp_path)[0])
    assert rows == [
        {
            "book": "EQ", "symbol": "AAPL", "currency": "USD", "reported_in": "USD",
            "positions": 1, "gross_realized": "100", "fees": "0", "net_realized": "100",
            "unrealized": "150", "fx": "0", "total": "250", "mark_source": "last-trade",
            "oldest_mark_at": "2026-03-02T09:00:00.000000001Z", "oldest_rate_on": None,
        },
        {
            "book": "FX", "symbol": "AAPL", "currency": "EUR", "reported_in": "USD",
            "positions": 1, "gross_realized": "0", "fees": "0.275", "net_realized": "-0.275",
            "unrealized": "0", "fx": "3.15", "total": "2.875", "mark_source": "last-trade",
            "oldest_mark_at": "2026-03-02T10:00:00Z", "oldest_rate_on": "2026-03-05",
        },
    ]  # fmt: skip
    (both,) = json.loads(
        run(filled, "pnl", *into, "--by", "symbol", "--symbol", "AAPL", cwd=tmp_path)[0]
    )
    assert (both["positions"], both["total"], both["fx"]) == (2, "252.875", "3.15")
    assert "currency" not in both
    by = ("--day", "2026-03-02", "--previous", "2026-02-01", "--book", "FX")
    (day,) = json.loads(run(filled, "pnl", *into, *by, cwd=tmp_path)[0])
    assert day == {
        "book": "FX", "symbol": "AAPL", "currency": "EUR", "reported_in": "USD", "trades": 1,
        "before": "0", "new_trades": "0", "price": "0", "fx": "0", "fees": "-0.275",
        "change": "-0.275", "after": "-0.275", "first_mark": None, "first_mark_at": None,
        "mark": "7", "mark_at": "2026-03-02T10:00:00Z",
        "first_rate": None, "first_rate_on": None, "first_rate_source": None,
        "rate": "1.1", "rate_on": "2026-03-02", "rate_source": "ECB",
    }  # fmt: skip
    (tmp_path / "rates.csv").write_text("date,currency,rate\n2026-03-03,EUR,1.10\n")
    into_csv = (*into[:-1], "--csv")
    assert run(filled, "pnl", *into_csv, "--book", "none", cwd=tmp_path)[0] == ""
    *_, foreign = json.loads(run(filled, "pnl", *into, "--by", "book", cwd=tmp_path)[0])
    assert (foreign["book"], foreign["total"], foreign["positions"]) == ("FX", None, 1)


def test_rates_that_are_wrong_are_told(filled: str, tmp_path: Path) -> None:
    """With their lines, before anything is asked of the database; and exit code 2."""
    (tmp_path / "rates.csv").write_text(f"{RATES}2026-03-06,EUR,cheap,\n")
    for more, said in (
        (("--in", "USD"), "--in and --rates go together"),
        (("--rates", "rates.csv"), "--in and --rates go together"),
        (("--in", "USD", "--rates", "none.csv"), "none.csv: cannot be read"),
        (("--in", "USD", "--rates", "rates.csv"), "rates.csv: line 6: rate: bad character"),
    ):
        _, errors = run(filled, "pnl", *more, exit_code=2, cwd=tmp_path)
        assert said in errors, errors


@pytest.mark.parametrize(
    "command",
    [
        ("trades",),
        ("pnl",),
        ("export", "x.csv"),
        ("db", "prune", "--before", "2026-01-01", "--yes"),
        ("db", "backfill"),
    ],
    ids=lambda command: command[0] if len(command) == 1 else command[-1],
)
def test_without_a_ledger_the_setting_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    """With exit code 2, and before anything is connected."""
    _, errors = run(None, *command, exit_code=2, cwd=tmp_path)
    assert errors.startswith("error: DATABASE_URL: must be set for")


def test_with_a_ledger_positions_are_not_made_anew_from_trades(filled: str) -> None:
    """They would be without AMEND and CANCEL; exit code 2, the way out, and nobody is asked."""
    _, errors = run(filled, "positions", "rebuild", exit_code=2)
    assert errors.startswith("error: DATABASE_URL: the positions topic follows the ledger")
    assert "set a new POSITIONS_TOPIC" in errors


def test_wrong_options_are_refused(filled: str, tmp_path: Path) -> None:
    """With exit code 2, and the option's name."""
    for command, said in (
        (("trades", "--since", "yesterday"), "--since"),
        (("trades", "--csv", "--json"), "either --json or --csv"),
        (("pnl", "--previous", "2026-03-01"), "--previous needs --day"),
        (("pnl", "--day", "2026-03-01", "--previous", "2026-03-01"), "before --day"),
        (("export", "x.xlsx"), "must end with .parquet or .csv"),
        (("export", "x.csv", "--what", "dead-letters", "--book", "B"), "dead-letters"),
        (("db", "prune", "--before", "2099-01-01", "--yes"), "future"),
    ):
        _, errors = run(filled, *command, exit_code=2, cwd=tmp_path)
        assert said in errors, errors
    assert not list(tmp_path.iterdir())


def test_exports_are_exact(filled: str, tmp_path: Path) -> None:
    """Parquet with decimals and nanoseconds, CSV with the same digits."""
    output, _ = run(filled, "export", "t.parquet", cwd=tmp_path)
    assert output == "5 trades in t.parquet\n"
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.field("price").type == pa.decimal128(20, 8)
    assert table.schema.field("executed_at").type == pa.timestamp("ns", tz="UTC")
    rows: list[dict[str, Any]] = table.select(
        ["trade_id", "price", "quantity", "suspects"]
    ).to_pylist()
    assert [row["trade_id"] for row in rows] == ["T1", "T2", "=cmd|' /C calc'!A0", "T4", "T5"]
    assert rows[4]["price"] == Decimal("999999999999.99999999")
    assert rows[2]["suspects"] == ["isin-check-digit"]
    nanos = table.column("executed_at").cast(pa.int64()).to_pylist()
    assert nanos[1] % 10**9 == 1
    run(filled, "export", "p.parquet", "--what", "positions", "--symbol", "AAPL", cwd=tmp_path)
    (first, second) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert (first["open_cost"], second["unrealized_pnl"]) == (600, 0)
    assert first["method"] == "average"
    run(filled, "export", "d.csv", "--what", "dead-letters", cwd=tmp_path)
    assert (tmp_path / "d.csv").read_text().splitlines()[1].startswith("0,5,body-not-json,decode,")
    run(filled, "export", "t.csv", "--book", "EQ", "--limit", "1", cwd=tmp_path)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text()))
    assert (row["price"], row["executed_at"]) == ("10", "2026-03-01T09:00:00Z")


def test_amounts_beyond_a_decimal128_are_told_and_leave_no_file(
    filled: str, tmp_path: Path
) -> None:
    """An older file stays; CSV takes any number of digits."""
    (tmp_path / "p.parquet").write_text("older")
    _, errors = run(filled, "export", "p.parquet", "--what", "positions", exit_code=1, cwd=tmp_path)
    assert "open_cost: an amount has more digits" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]
    assert (tmp_path / "p.parquet").read_text() == "older"
    run(filled, "export", "p.csv", "--what", "positions", "--symbol", "HUGE", cwd=tmp_path)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text()))
    assert row["open_cost"] == "-999999999998999999990000.00000001"
    _, errors = run(filled, "export", "no/x.csv", exit_code=1, cwd=tmp_path)
    assert "No such file or directory" in errors


def test_prune_asks_and_deletes(new_ledger: MakeDatabase) -> None:
    """A no leaves everything; positions never change."""
    with made(new_ledger) as (database, runner):
        runner.run(book(database.ledger(), EVENTS))
        before = run(database.url, "positions", "--json")[0]
        prune = ("db", "prune", "--before", "2026-03-02")
        run(database.url, *prune, exit_code=1)  # nobody to ask
        assert len(runner.run(database.trades())) == 5
        assert json.loads(run(database.url, *prune, "--yes", "--json")[0]) == {"deleted": 1}
        assert len(runner.run(database.trades())) == 4
        assert run(database.url, "positions", "--json")[0] == before


@pytest.fixture(scope="module")
def many(new_ledger: MakeDatabase) -> Iterator[str]:
    """Give the URL of a ledger of many trades."""
    with made(new_ledger) as (database, runner):
        runner.run(_fill(database))
        yield database.url


async def _fill(database: Database) -> None:
    await database.pool.execute(
        """
        INSERT INTO trades (source_partition, source_offset, executed_ns, trade_id, symbol,
            side, price, quantity, currency)
        SELECT 0, n, 1767225600000000000 + n, 'T' || n, 'S' || n % 100, 'BUY', 10, 1, 'USD'
        FROM generate_series(0, 299999) AS n
        """
    )


async def _readers(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'trade-stream-reader'"
        )
        return count
    finally:
        await connection.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail when it does not hold in time."""
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_ctrl_c_leaves_no_file(many: str, tmp_path: Path) -> None:
    """Exit code 130, and the server is not left working."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "export", str(tmp_path / "x.csv")],
        cwd=ROOT,
        env=environment(many),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: any(path.stat().st_size > 100_000 for path in tmp_path.iterdir()))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
    until(lambda: not asyncio.run(_readers(many)))


def test_memory_does_not_grow_with_the_answer(many: str, tmp_path: Path) -> None:
    """All rows through a pipe and into Parquet take hardly more than a thousand."""
    code = (
        "import resource, sys; from app.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )

    def peak_mib(*command: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=ROOT,
            env=environment(many, LOG_LEVEL="ERROR"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        return int(done.stderr.split()[-1]) / 1024

    for command in (("trades", "--json"), ("export", str(tmp_path / "x.parquet"))):
        few, all_ = peak_mib(*command, "--limit", "1000"), peak_mib(*command)
        assert all_ < few + 120, command  # of 300,000 rows, which as objects take some 400 MiB
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups == 5


def test_a_reader_that_goes_ends_it(many: str) -> None:
    """As with `| head`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "trades", "--csv"],
        cwd=ROOT,
        env=environment(many),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("trade_id,")
    process.stdout.close()
    process.wait(60)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
