"""What the ledger's tables hold, read with PostgreSQL's own `psql`, which the product does not use.

Nothing here shares code with the product. Everything of one look comes from one snapshot.
"""

import subprocess
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final

from tests.faults.oracle import Place

_TIMEOUT_S: Final = 60.0
_LOOK_TIMEOUT_S: Final = 5.0
_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
_OFFSETS: Final = "SELECT 'offset', source_partition, next_offset FROM source_partitions;"
_POSITIONS: Final = """
SELECT 'position', source_partition, source_offset, key, quantity, open_cost, realized, mark,
    trade_count FROM positions;
"""
_SUMS: Final = """
SELECT 'sums', source_partition, count(*), sum(source_offset),
    sum(source_offset::numeric * source_offset), sum(price * quantity) FROM trades GROUP BY 2;
SELECT 'ids', count(*) FROM trade_versions;
SELECT 'corrected', source_partition, count(*) FROM corrections GROUP BY 2;
"""
_PARKED: Final = """
SELECT 'parked', source_partition, source_offset, coalesce(reason, '') FROM parked_events;
"""
_ROWS: Final = """
SELECT 'trade', source_partition, source_offset, trade_id, coalesce(book, ''), symbol, side, price,
    quantity, action, version, executed_ns FROM trades;
SELECT 'id', source_partition, source_offset, trade_id, version FROM trade_versions;
SELECT 'fill', source_partition, source_offset FROM fills;
SELECT 'correction', source_partition, source_offset, key, quantity_before, open_cost_before,
    realized_before, fees_before, quantity_after, open_cost_after, realized_after, fees_after
    FROM corrections;
SELECT 'letter', source_partition, source_offset, reason FROM dead_letters;
"""


class DatabaseAwayError(Exception):
    """The database gave no answer; says why."""


@dataclass(frozen=True, slots=True)
class TradeRow:
    """A row of `trades`."""

    place: Place
    trade_id: str
    book: str
    symbol: str
    side: str
    price: Fraction
    quantity: Fraction
    action: str
    version: int
    executed_ns: int


Amounts = tuple[Fraction, ...]
"""Of a position: quantity, cost, realised and fees."""


@dataclass(frozen=True, slots=True)
class CorrectionRow:
    """A row of `corrections`."""

    place: Place
    key: str
    before: Amounts
    after: Amounts


@dataclass(frozen=True, slots=True)
class PositionRow:
    """A row of `positions`."""

    place: Place
    key: str
    quantity: Fraction
    cost: Fraction
    realized: Fraction
    mark: Fraction
    trades: int


@dataclass(frozen=True, slots=True)
class Sums:
    """What tells the rows of `trades` of one partition from others: they are not read again."""

    count: int = 0
    offsets: int = 0
    squares: int = 0
    notional: Fraction = Fraction(0)

    def and_one(self, offset: int, notional: Fraction) -> "Sums":
        """Give the sums with one row more."""
        return Sums(
            self.count + 1,
            self.offsets + offset,
            self.squares + offset * offset,
            self.notional + notional,
        )


@dataclass(frozen=True, slots=True)
class LedgerSample:
    """The ledger at one moment.

    Attributes:
        committed: Kafka's commits of the group, a moment earlier.
        next_offsets: By partition; 0 for none.
        sums: Of the trades, by partition.
        ids: Number of trade ids and versions.
        corrections: Number of corrections, by partition.
        waiting: Places of the events that are parked, and not refused.
    """

    at_ns: int
    committed: Mapping[int, int]
    next_offsets: Mapping[int, int]
    positions: Sequence[PositionRow]
    sums: Mapping[int, Sums]
    ids: int
    corrections: Mapping[int, int]
    waiting: Collection[Place] = ()


@dataclass(kw_only=True)
class Tables:
    """Everything in the ledger at the end.

    Attributes:
        ids: Trade id, version and place of the rows of `trade_versions`.
        fills: Places of the rows of the view.
        letters: Reasons by place.
        parked: Why each event that is parked is to be refused, by place; nothing while it waits.
    """

    next_offsets: dict[int, int] = field(default_factory=dict)
    positions: list[PositionRow] = field(default_factory=list)
    trades: list[TradeRow] = field(default_factory=list)
    ids: list[tuple[str, int, Place]] = field(default_factory=list)
    fills: list[Place] = field(default_factory=list)
    corrections: list[CorrectionRow] = field(default_factory=list)
    letters: dict[Place, str] = field(default_factory=dict)
    parked: dict[Place, str] = field(default_factory=dict)

    @property
    def first_versions(self) -> dict[str, Place]:
        """Where the first version of each trade is."""
        return {trade_id: place for trade_id, version, place in self.ids if version == 1}


class Psql:
    """Asks one database.

    Args:
        program: Where `psql` is.
        url: Of the database.
    """

    def __init__(self, program: Path, url: str) -> None:
        self._command = [str(program), "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
        self._command += ["-d", url]

    def ask(self, statements: str, *, timeout_s: float = _TIMEOUT_S) -> list[list[str]]:
        """Run statements; give the cells of every row.

        Raises:
            DatabaseAwayError: There was an error, or no answer in time.
        """
        try:
            done = subprocess.run(
                self._command, input=statements, capture_output=True, text=True,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise DatabaseAwayError(str(exc)) from exc
        if done.returncode:
            raise DatabaseAwayError(done.stderr.strip())
        return [line.split("\t") for line in done.stdout.splitlines()]

    def sample(self, committed: Mapping[int, int]) -> LedgerSample:
        """Look at offsets and positions, and at the sums of the trades, all of one moment.

        Args:
            committed: Kafka's commits, asked for before.

        Raises:
            DatabaseAwayError: See `ask`.
        """
        rows = _by_kind(
            self.ask(
                f"{_SNAPSHOT}{_OFFSETS}{_POSITIONS}{_SUMS}{_PARKED}COMMIT;",
                timeout_s=_LOOK_TIMEOUT_S,
            )
        )
        return LedgerSample(
            time.monotonic_ns(),
            committed,
            {int(number): int(offset or 0) for number, offset in rows["offset"]},
            [_position(row) for row in rows["position"]],
            {
                int(number): Sums(int(count), int(offsets), int(squares), Fraction(notional))
                for number, count, offsets, squares, notional in rows["sums"]
            },
            int(rows["ids"][0][0]),
            {int(number): int(count) for number, count in rows["corrected"]},
            {_place(row) for row in rows["parked"] if not row[2]},
        )

    def read(self) -> Tables:
        """Read the tables whole.

        Raises:
            DatabaseAwayError: See `ask`.
        """
        rows = _by_kind(self.ask(f"{_SNAPSHOT}{_OFFSETS}{_POSITIONS}{_ROWS}{_PARKED}COMMIT;"))
        return Tables(
            next_offsets={int(number): int(offset or 0) for number, offset in rows["offset"]},
            positions=[_position(row) for row in rows["position"]],
            trades=[_trade(row) for row in rows["trade"]],
            ids=[(row[2], int(row[3]), _place(row)) for row in rows["id"]],
            fills=[_place(row) for row in rows["fill"]],
            corrections=[_correction(row) for row in rows["correction"]],
            letters={_place(row): row[2] for row in rows["letter"]},
            parked={_place(row): row[2] for row in rows["parked"]},
        )


def _by_kind(rows: Iterable[list[str]]) -> dict[str, list[list[str]]]:
    kinds: dict[str, list[list[str]]] = defaultdict(list)
    for kind, *cells in rows:
        kinds[kind].append(cells)
    return kinds


def _place(row: Sequence[str]) -> Place:
    return int(row[0]), int(row[1])


def _trade(row: Sequence[str]) -> TradeRow:
    trade_id, book, symbol, side, price, quantity, action, version, executed_ns = row[2:]
    return TradeRow(
        _place(row), trade_id, book, symbol, side, Fraction(price), Fraction(quantity),
        action, int(version), int(executed_ns),
    )  # fmt: skip


def _correction(row: Sequence[str]) -> CorrectionRow:
    amounts = tuple(map(Fraction, row[3:]))
    return CorrectionRow(_place(row), row[2], amounts[:4], amounts[4:])


def _position(row: Sequence[str]) -> PositionRow:
    quantity, cost, realized, mark = map(Fraction, row[3:7])
    return PositionRow(_place(row), row[2], quantity, cost, realized, mark, int(row[7]))
