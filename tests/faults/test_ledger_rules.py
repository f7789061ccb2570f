"""The rules of the ledger are content with sound tables, and find each kind of damage in others."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest

from tests.faults.ledger_rules import check_tables, topic_differs
from tests.faults.oracle import Fate, Place, expect
from tests.faults.reading import LogRecord
from tests.faults.tables import LedgerSample, PositionRow, Sums, Tables, TradeRow

FIRST, SECOND, OTHER, POISON, CONFLICT = (0, 0), (0, 1), (0, 2), (0, 3), (0, 4)


def trade(trade_id: str, side: str, price: str, quantity: str, symbol: str = "S") -> LogRecord:
    """Give a good trade; its place is set later."""
    event = {"trade_id": trade_id, "symbol": symbol, "side": side, "price": price,
             "quantity": quantity}  # fmt: skip
    return LogRecord(0, 0, None, json.dumps(event | {"note": "GOOD"}).encode(), {})


RECORDS = [
    trade("T1", "BUY", "10", "3"),
    trade("T2", "SELL", "11", "1"),
    trade("T3", "BUY", "0.5", "2", symbol="R"),
    LogRecord(0, 0, None, b"{", {}),
    trade("T1", "BUY", "10", "4"),
    trade("T2", "SELL", "11", "1"),
]
RECORDS = [replace(record, offset=offset) for offset, record in enumerate(RECORDS)]


@dataclass
class History:
    """Tables, and what else the rules are told."""

    tables: Tables
    samples: list[LedgerSample]
    reasons: dict[Place, str]
    committed: dict[int, int]

    def findings(self) -> list[str]:
        """Apply the rules; give rule and kind of what they find."""
        expected = expect(RECORDS, 1, rows=dict(self.tables.ids))
        found = check_tables(
            self.tables,
            self.samples,
            expected=expected,
            reasons=self.reasons,
            ends={0: 6},
            committed=self.committed,
        )
        return [f"{rule} {kind}" for rule, kind, _ in found]


def sound() -> History:
    """Give what the records have to come to, and a snapshot of when two of them were booked."""

    def position(place: Place, key: str, *amounts: str, trades: int) -> PositionRow:
        quantity, cost, realized, mark = map(Fraction, amounts)
        return PositionRow(place, key, quantity, cost, realized, mark, trades)

    def row(place: Place, trade_id: str, symbol: str, side: str, *amounts: str) -> TradeRow:
        return TradeRow(place, trade_id, "", symbol, side, *map(Fraction, amounts))

    of_s = position(SECOND, "S", "2", "20", "1", "11", trades=2)
    return History(
        Tables(
            next_offsets={0: 6},
            positions=[of_s, position(OTHER, "R", "2", "1", "0", "0.5", trades=1)],
            trades=[
                row(FIRST, "T1", "S", "BUY", "10", "3"),
                row(SECOND, "T2", "S", "SELL", "11", "1"),
                row(OTHER, "T3", "R", "BUY", "0.5", "2"),
            ],
            ids=[("T1", FIRST), ("T2", SECOND), ("T3", OTHER)],
            letters={POISON: "body-not-json", CONFLICT: "version-conflict"},
        ),
        [
            LedgerSample(0, {}, {}, [], {}, 0),
            LedgerSample(1, {0: 1}, {0: 2}, [of_s], {0: Sums(2, 1, 1, Fraction(41))}, 2),
        ],
        {POISON: "body-not-json", CONFLICT: "version-conflict"},
        {0: 6},
    )


def test_sound_tables_have_no_findings() -> None:
    """The fates are those of a ledger that has no window."""
    assert sound().findings() == []
    fates = expect(RECORDS, 1, rows=dict(sound().tables.ids)).fates
    assert [fates[0, offset] for offset in range(6)] == [
        *(Fate.BOOKED, Fate.BOOKED, Fate.BOOKED),
        *(Fate.DEAD_LETTERED, Fate.DEAD_LETTERED, Fate.DUPLICATE),
    ]


def _changed(index: int, of: str, **changes: Any) -> Callable[[History], None]:
    def spoil(history: History) -> None:
        rows = getattr(history.tables, of)
        rows[index] = replace(rows[index], **changes)

    return spoil


def _sampled(**changes: Any) -> Callable[[History], None]:
    def spoil(history: History) -> None:
        history.samples[1] = replace(history.samples[1], **changes)

    return spoil


DAMAGES: dict[str, tuple[Callable[[History], Any], str]] = {
    "a row is missing": (lambda h: h.tables.trades.pop(), "5 lost"),
    "a row is there twice": (lambda h: h.tables.trades.append(h.tables.trades[0]), "5 doubled"),
    "a row of a duplicate": (
        lambda h: h.tables.trades.append(replace(h.tables.trades[1], place=(0, 5))),
        "5 doubled",
    ),
    "a row of nothing": (
        lambda h: h.tables.trades.append(replace(h.tables.trades[1], place=(0, 9), trade_id="X")),
        "5 invented",
    ),
    "another price": (_changed(0, "trades", price=Fraction(9)), "5 damaged"),
    "an id is missing": (lambda h: h.tables.ids.pop(), "5 lost"),
    "an id of nothing": (lambda h: h.tables.ids.append(("X", FIRST)), "5 invented"),
    "a dead letter is missing": (lambda h: h.tables.letters.pop(POISON), "5 lost"),
    "a dead letter of a trade": (lambda h: h.tables.letters.update({FIRST: "x"}), "5 invented"),
    "another reason": (lambda h: h.tables.letters.update({POISON: "x"}), "5 damaged"),
    "a position is missing": (lambda h: h.tables.positions.pop(), "6 lost"),
    "a position of nothing": (
        lambda h: h.tables.positions.append(replace(h.tables.positions[0], key="X")),
        "6 invented",
    ),
    "a trade is not in a position": (_changed(0, "positions", trades=1), "6 lost"),
    "a trade is twice in a position": (_changed(0, "positions", trades=3), "6 doubled"),
    "a cost is off by the last digit": (
        _changed(0, "positions", cost=20 + Fraction(1, 10**24)),
        "6 wrong",
    ),
    "a position of another offset": (_changed(0, "positions", place=FIRST), "6 wrong"),
    "the offset is behind": (lambda h: h.tables.next_offsets.update({0: 5}), "7 lost"),
    "the offset is beyond the end": (lambda h: h.tables.next_offsets.update({0: 7}), "7 invented"),
    "a commit is ahead": (lambda h: h.committed.update({0: 7}), "7 ahead"),
    "a commit was ahead": (_sampled(committed={0: 3}), "7 ahead"),
    "the offset went back": (lambda h: h.samples.reverse(), "7 wrong"),
    "a snapshot without its positions": (_sampled(positions=[]), "6 lost"),
    "a snapshot with other trades": (_sampled(sums={0: Sums(2, 2, 4, Fraction(41))}), "6 doubled"),
    "a snapshot with too few trades": (_sampled(sums={}), "6 lost"),
    "a snapshot with an id too many": (_sampled(ids=3), "6 wrong"),
    "a snapshot ahead of its trades": (_sampled(next_offsets={0: 3}), "6 lost"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(name: str) -> None:
    """Each one by the rule that it breaks."""
    history = copy.deepcopy(sound())
    spoil, kind = DAMAGES[name]
    spoil(history)
    assert kind in history.findings()


def test_of_several_partitions_the_ledger_says_which_trade_was_first() -> None:
    """The others are conflicts where they say something else; never is one booked in two."""
    symbols = {0: "A", 1: "E"}
    records = [
        replace(trade("T1", "BUY", "10", "3", symbol=symbol), partition=partition)
        for partition, symbol in symbols.items()
    ]
    homes = expect(records, 2).fates
    assert set(homes.values()) == {Fate.BOOKED}, "each symbol is at home in its partition"
    for winner, loser in (((0, 0), (1, 0)), ((1, 0), (0, 0))):
        expected = expect(records, 2, rows={"T1": winner})
        assert expected.fates == {winner: Fate.BOOKED, loser: Fate.DEAD_LETTERED}
        assert expected.conflicts == {loser}


def test_table_and_topic_are_compared_to_the_last_digit() -> None:
    """What the topic leaves out is zero."""
    row = sound().tables.positions[0]
    state = {
        "quantity": "2", "realized_pnl": "1", "unrealized_pnl": "2", "mark": "11",
        "trade_count": 2, "source": {"partition": 0, "offset": 1},
    }  # fmt: skip
    assert topic_differs(row, state) == ""
    assert topic_differs(row, state | {"realized_pnl": "1.000000000000000000000001"}) == "realized"
