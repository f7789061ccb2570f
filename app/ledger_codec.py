"""What goes into the ledger, and comes out of it, as lines of PostgreSQL's COPY text.

Cells are the texts that were sent, or plain decimals: a number is parsed once, by the database, to
an exact numeric. An empty cell is NULL: no text that is stored is ever empty. What has a meaning in
this format are tab, newline and backslash; the first two are not printable, so no checked text has
them, and the third is doubled when lines are joined.

Source:
    PostgreSQL manual, COPY, "Text Format".
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from app.codec import PlainEvent
from app.errors import InvalidTradeError, OffsetGapError
from app.models import (
    Action,
    CostMethod,
    Lot,
    LotChange,
    NumberedLots,
    Position,
    Refusal,
    Side,
    TradeEvent,
)
from app.money import AmountError, format_scaled, parse_amount, parse_scaled
from app.pnl.fills import Correction, Fill
from app.ports import Headers, LedgerWrite, ParkedRecord
from app.timestamps import KNOWN_HEADS, KNOWN_TAILS, parse_timestamp
from app.validation import CheckedTrade

PLAIN_TRADE_COLUMNS: Final = (
    *("source_partition", "source_offset", "trade_id", "book", "symbol", "side", "price"),
    *("quantity", "currency", "executed_ns"),
)
"""Of a trade of the common fields alone; the others have their defaults."""
TRADE_COLUMNS: Final = (
    *PLAIN_TRADE_COLUMNS,
    *("version", "action", "multiplier", "fee", "suspects", "details", "content"),
)
CORRECTION_COLUMNS: Final = (
    *("source_partition", "source_offset", "key", "quantity_before", "quantity_after"),
    *("open_cost_before", "open_cost_after", "realized_before", "realized_after"),
    *("fees_before", "fees_after"),
)
HISTORY_COLUMNS: Final = (
    *("trade_id", "version", "action", "executed_ns", "source_offset", "side", "quantity"),
    *("price", "multiplier", "fee"),
)
PARKED_COLUMNS: Final = (
    *("source_partition", "source_offset", "trade_id", "action", "version", "book", "symbol"),
    *("parked_ns", "appended_ms", "record_key", "value", "headers"),
)
PARKED_RECORD_COLUMNS: Final = (
    *("source_offset", "appended_ms", "record_key", "value", "headers", "parked_ns"),
    *("reason", "kind", "message"),
)
DEAD_LETTER_COLUMNS: Final = ("source_partition", "source_offset", "reason", "kind", "message")
POSITION_COLUMNS: Final = (
    *("source_partition", "key", "book", "symbol", "currency", "quantity", "open_cost"),
    *("multiplier", "realized", "fees", "mark", "mark_ns", "trade_count", "source_offset"),
    *("origins", "generation", "method"),
)
LOT_COLUMNS: Final = (
    *("source_partition", "key", "number", "quantity", "price", "fee", "executed_ns"),
    "source_offset",
)
STORED_LOT_COLUMNS: Final = LOT_COLUMNS[1:]

_ID_CELL: Final = PLAIN_TRADE_COLUMNS.index("trade_id")
_ACTION_CELL: Final = TRADE_COLUMNS.index("action")

_OWN_COLUMNS: Final = frozenset(
    {
        *("trade_id", "book", "symbol", "side", "price", "quantity", "timestamp", "version"),
        *("action", "currency", "contract_multiplier"),
        *("published_at", "processed_at", "schema_version"),  # of the transport, not of the trade
    }
)
_MORE_FIELDS: Final = tuple(f for f in TradeEvent.__struct_fields__ if f not in _OWN_COLUMNS)


@dataclass(slots=True)
class LedgerRows:
    """Lines that the records of one partition leave in the ledger.

    Attributes:
        partition: The partition of the source topic.
        currency: Of a trade that names none.
        plain_trades: Lines of `PLAIN_TRADE_COLUMNS`.
        trades: Lines of `TRADE_COLUMNS`.
        corrections: Lines of `CORRECTION_COLUMNS`.
        dead_letters: Lines of `DEAD_LETTER_COLUMNS`.
        changed: Ids of trades that an AMEND or a CANCEL changes.
        refused_new: Ids of trades of which nothing was known when they were refused.
        parked: Lines of `PARKED_COLUMNS`, by offset.
        refused: Why parked records are to be dead-lettered, by offset.
        released: Offsets of records that were parked before and have their fate.
    """

    partition: int
    currency: str
    plain_trades: list[str] = field(default_factory=list)
    trades: list[str] = field(default_factory=list)
    corrections: list[str] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    refused_new: list[str] = field(default_factory=list)
    parked: dict[int, str] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)

    def add_plain(
        self,
        offsets: Sequence[int],
        events: Sequence[PlainEvent | None],
        *,
        apart: Iterable[int] = (),
    ) -> None:
        """Add trades that were booked without a closer look.

        Args:
            offsets: Of the records of a batch.
            events: Of the same records.
            apart: Indexes of those that are no such trades.
        """
        booked: list[PlainEvent | None] = list(events)
        for index in apart:
            booked[index] = None
        partition, currency = self.partition, self.currency
        self.plain_trades += [
            f"{partition}\t{offset}\t{e.trade_id}\t{e.book or ''}\t{e.symbol}\t{e.side}"
            f"\t{e.price}\t{e.quantity}\t{currency}\t{_executed_ns(e.timestamp)}"
            for offset, e in zip(offsets, booked, strict=True)
            if e is not None
        ]

    def add(
        self,
        offset: int,
        event: TradeEvent,
        trade: CheckedTrade,
        suspects: Sequence[str],
        *,
        content: bytes | None = None,
    ) -> None:
        """Add an event that was judged by all the rules, with what is doubtful about it.

        Args:
            offset: Where it stands.
            event: What is stored of it.
            trade: Its numbers.
            suspects: Codes.
            content: Hash of what was sent, where that is not what is stored.
        """
        cells = (
            str(self.partition),
            str(offset),
            str(event.trade_id),
            event.book or "",
            str(event.symbol),
            str(event.side),
            format_scaled(trade.price_e8),
            format_scaled(trade.quantity_e8),
            event.currency or self.currency,
            str(trade.time_ns),
            str(event.version or 1),
            event.action or "NEW",
            format_scaled(trade.multiplier_e8),
            format_scaled(trade.fee_e8),
            f"{{{','.join(suspects)}}}" if suspects else "",
            _details(event),
            _bytes_cell(content) if content else "",
        )
        self.trades.append("\t".join(cells))
        if event.action not in (None, Action.NEW):
            self.changed.append(str(event.trade_id))

    def add_correction(self, offset: int, correction: Correction) -> None:
        """Add what an event changed of the past."""
        before, after = correction.before, correction.after
        cells = (
            str(self.partition),
            str(offset),
            after.key,
            *(format_scaled(position.quantity_e8) for position in (before, after)),
            *(format_scaled(position.open_cost_e24, 24) for position in (before, after)),
            *(format_scaled(position.realized_e24, 24) for position in (before, after)),
            *(format_scaled(position.fees_e8) for position in (before, after)),
        )
        self.corrections.append("\t".join(cells))

    def add_refusal(self, offset: int, refusal: Refusal) -> None:
        """Add a record that is dead-lettered; of its bytes nothing is kept here."""
        cells = (str(self.partition), str(offset), refusal.reason, refusal.kind, refusal.message)
        self.dead_letters.append("\t".join(cells))

    def park(self, record: ParkedRecord, event: TradeEvent) -> None:
        """Add a record that has to wait."""
        cells = (
            str(self.partition),
            str(record.offset),
            str(event.trade_id),
            str(event.action),
            "" if event.version is None else str(event.version),
            event.book or "",
            str(event.symbol),
            str(record.parked_ns),
            str(record.timestamp),
            "" if record.key is None else _bytes_cell(record.key),
            _bytes_cell(record.value),
            _headers_cell(record.headers),
        )
        self.parked[record.offset] = "\t".join(cells)

    def release(self, offset: int) -> None:
        """Add that a parked record has its fate."""
        if self.parked.pop(offset, None) is None:
            self.released.append(offset)

    def absorb(self, other: "LedgerRows") -> None:
        """Take over the lines of later records."""
        self.plain_trades += other.plain_trades
        self.trades += other.trades
        self.corrections += other.corrections
        self.dead_letters += other.dead_letters
        self.changed += other.changed
        self.refused_new += other.refused_new
        for offset in other.released:
            self.release(offset)
        self.parked |= other.parked
        self.refused |= other.refused


def changed_trades(write: LedgerWrite) -> set[str]:
    """Give the ids of the trades that a write changes and does not begin."""
    if not write.changed:
        return set()
    begun = {line.split("\t", _ID_CELL + 1)[_ID_CELL] for line in write.plain_trades}
    for line in write.trades:
        cells = line.split("\t")
        if cells[_ACTION_CELL] == Action.NEW:
            begun.add(cells[_ID_CELL])
    return set(write.changed) - begun


def copy_text(lines: Iterable[str]) -> bytes:
    """Join lines to the bytes that COPY reads."""
    text = "\n".join(lines)
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    return f"{text}\n".encode() if text else b""


def copied_lines(text: bytes) -> list[str]:
    """Give the lines that COPY wrote: the way back of `copy_text`."""
    # By newlines alone: `splitlines` knows more ends of lines than COPY does.
    lines = text.decode().split("\n")[:-1]
    return [line.replace("\\\\", "\\") for line in lines] if b"\\" in text else lines


def _executed_ns(timestamp: str) -> int:
    try:
        return KNOWN_HEADS[timestamp[:23]] + KNOWN_TAILS[timestamp[23:]]
    except KeyError:
        return parse_timestamp(timestamp)[0]


def _details(event: TradeEvent) -> str:
    """Give the fields that have no column of their own as JSON; of most trades there are none."""
    details = {name: value for name in _MORE_FIELDS if (value := getattr(event, name)) is not None}
    if event.fees:
        details["fees"] = [
            msgspec.structs.replace(fee, amount=_amount_text(fee.amount)) for fee in event.fees
        ]
    if event.fx_rate is not None:
        details["fx_rate"] = _amount_text(event.fx_rate)
    return msgspec.json.encode(details).decode() if details else ""


def _amount_text(value: object) -> str:
    """Write an amount as text that is read as the same amount; what is none, as it was sent.

    A number is rounded when it is read, but text that has as many digits is none of ours.
    """
    try:
        return format_scaled(parse_amount(value)[0])
    except AmountError:
        return str(value)


def event_of(row: Mapping[str, Any]) -> TradeEvent:
    """Give back the event that a row of trades was made of, but for what the transport needed.

    Args:
        row: Its cells by `TRADE_COLUMNS`; numbers as text or as numbers.
    """
    return msgspec.structs.replace(
        msgspec.json.decode(row["details"] or "{}", type=TradeEvent),
        trade_id=row["trade_id"],
        version=int(row["version"]),
        action=row["action"],
        book=row["book"],
        symbol=row["symbol"],
        side=row["side"],
        price=row["price"],
        quantity=row["quantity"],
        timestamp=int(row["executed_ns"]),
        currency=row["currency"],
        contract_multiplier=row["multiplier"],
    )


def read_fills(lines: Iterable[str]) -> list[Fill]:
    """Fold the events that were booked of one position to the fills that count.

    Args:
        lines: Of `HISTORY_COLUMNS`, by offset; an event that has waited stands before its NEW.

    Raises:
        OffsetGapError: A cancelled trade is not among them.
    """
    fills: dict[str, Fill] = {}
    for cells in sorted((line.split("\t") for line in lines), key=lambda cells: int(cells[1])):
        trade_id, _, action, time_ns, offset, side, quantity, price, multiplier, fee = cells
        if action == Action.CANCEL:
            if fills.pop(trade_id, None) is None:
                raise OffsetGapError(
                    f"{trade_id} is cancelled in the ledger and was never booked there: somebody"
                    " has changed the tables. Restore a backup of the ledger"
                )
            continue
        quantity_e8 = parse_amount(quantity)[0]
        first = fills.get(trade_id)  # an amended fill keeps its place
        if first is not None and action == Action.NEW:
            # Booked twice before there was a ledger; what changes the trade is meant for the first.
            trade_id, first = f"{trade_id}\t{offset}", None
        fills[trade_id] = Fill(
            trade_id,
            int(time_ns),
            0,  # a position lives in one partition
            int(offset) if first is None else first.offset,
            quantity_e8 if side == Side.BUY else -quantity_e8,
            parse_amount(price)[0],
            parse_amount(multiplier)[0],
            parse_amount(fee)[0],
        )
    return list(fills.values())


def read_parked(line: str) -> ParkedRecord:
    """Read back a parked record from a line of `PARKED_RECORD_COLUMNS`."""
    offset, appended_ms, key, value, headers, parked_ns, reason, kind, message = line.split("\t")
    refusal = Refusal(-1, reason, message, kind, InvalidTradeError.__name__) if reason else None
    return ParkedRecord(
        int(offset),
        int(appended_ms),
        _bytes_of(key) if key else None,
        _bytes_of(value),
        [(name, cell if cell is None else bytes.fromhex(cell)) for name, cell in _named(headers)],
        int(parked_ns),
        refusal,
    )


def _bytes_cell(value: bytes) -> str:
    return f"\\x{value.hex()}"


def _bytes_of(cell: str) -> bytes:
    return bytes.fromhex(cell.removeprefix("\\x"))


def _headers_cell(headers: Headers) -> str:
    # Pairs, since a name may stand twice, and escapes, since it may have any character.
    pairs = [(name, None if value is None else value.hex()) for name, value in headers]
    return json.dumps(pairs) if pairs else ""


def _named(cell: str) -> list[tuple[str, str | None]]:
    return json.loads(cell) if cell else []


def position_line(partition: int, position: Position, method: CostMethod) -> str:
    """Write a position, and how its costs are kept, as a line of `POSITION_COLUMNS`."""
    origins = position.origins
    cells = (
        str(partition),
        position.key,
        position.book or "",
        position.symbol,
        position.currency or "",
        format_scaled(position.quantity_e8),
        format_scaled(position.open_cost_e24, 24),
        format_scaled(position.multiplier_e8),
        format_scaled(position.realized_e24, 24),
        format_scaled(position.fees_e8),
        format_scaled(position.mark_e8),
        str(position.mark_ns),
        str(position.trade_count),
        str(position.source_offset),
        json.dumps({str(p): offset for p, offset in sorted(origins.items())}) if origins else "",
        str(position.generation),
        method,
    )
    return "\t".join(cells)


def read_position(line: str) -> Position:
    """Read back what `position_line` wrote.

    Raises:
        ValueError: The line is none of ours.
    """
    _, _, book, symbol, currency, quantity, cost, multiplier, realized, fees, mark, *rest = (
        line.split("\t")
    )
    mark_ns, trade_count, source_offset, origins, generation, _ = rest
    return Position(
        book or None,
        symbol,
        currency or None,
        parse_scaled(quantity, 8),
        parse_scaled(cost, 24),
        parse_scaled(multiplier, 8),
        parse_scaled(realized, 24),
        parse_scaled(fees, 8),
        parse_scaled(mark, 8),
        int(mark_ns),
        int(trade_count),
        int(source_offset),
        {int(p): offset for p, offset in json.loads(origins).items()} if origins else None,
        int(generation),
    )


def gone_lots(change: LotChange | None) -> list[tuple[int, int | None]]:
    """Give what is to be deleted of the lots of a position, before `lot_lines` are added.

    Returns:
        First number of each stretch, and the number behind it; `None`: all that are higher.
    """
    if change is None:
        return [(0, None)]
    # Above what is kept nothing is stored, unless all is written anew, or the write is repeated.
    stretches = [(change.first_stored, change.kept.start), (change.kept.stop, None)]
    return [(start, stop) for start, stop in stretches if start != stop]


def lot_lines(partition: int, key: str, change: LotChange | None) -> list[str]:
    """Write the lots of a position that are new or less than they were, as `LOT_COLUMNS`."""
    if change is None:
        return []
    return [
        f"{partition}\t{key}\t{number}\t{format_scaled(lot.quantity_e8)}"
        f"\t{format_scaled(lot.price_e8)}\t{format_scaled(lot.fee_e24, 24)}"
        f"\t{lot.time_ns}\t{lot.offset}"
        for number, lot in change.lots
    ]


def read_lots(lines: Iterable[str]) -> dict[str, NumberedLots]:
    """Read back the lots of positions, by key.

    Args:
        lines: Of `STORED_LOT_COLUMNS`, by key and number; of a position without lots there is one
            line, with the key alone. Behind a missing number none is read: what is left does not
            add up to the position, which is found out when it is used.
    """
    found: dict[str, tuple[int, list[Lot]]] = {}
    for line in lines:
        key, number, quantity, price, fee, time_ns, offset = line.split("\t")
        if not number:
            found[key] = (0, [])
            continue
        first, lots = found.setdefault(key, (int(number), []))
        if int(number) != first + len(lots):
            continue
        amounts = parse_scaled(quantity, 8), parse_scaled(price, 8), parse_scaled(fee, 24)
        lots.append(Lot(*amounts, int(time_ns), int(offset)))
    return {key: NumberedLots(*stored) for key, stored in found.items()}
