"""What is written and read leaves nothing behind that the garbage collector would have to find."""

import gc
from collections import Counter

import pytest

from app.ports import LedgerWrite
from tests.contract.postgres import Database
from tests.ledger.filling import book, trade

pytestmark = pytest.mark.integration

_TRADES = 20_000  # more than one piece of text


async def test_writes_and_questions_make_no_cycles(database: Database) -> None:
    """A consumer lets the collector run seldom: cycles with the text of a COPY would pile up."""
    ledger = database.ledger()
    await book(ledger, [trade("T", "BUY", "1", "1")])
    held = await ledger.claim(0)
    lines = [f"0\t{n}\tT{n}\t\tAAPL\tBUY\t1\t1\tUSD\t0" for n in range(1, _TRADES)]
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        write = LedgerWrite(expected=held, next_offset=_TRADES, plain_trades=lines)
        assert await ledger.write({0: write}) == {}
        assert len(await ledger.history(0, "AAPL") or ()) == _TRADES
        assert len(await ledger.positions(0)) == 1
        gc.collect()
        found = Counter(type(one).__name__ for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found
