"""`trade-stream pnl`: what positions of the ledger brought, as they stand or in a day."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypeVar

import typer

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption
from app.cli.ledger_output import (
    BookOption,
    CsvOption,
    LimitOption,
    SymbolOption,
    day_of,
    form_of,
    ledger_settings,
    print_from_ledger,
    rows_asked,
)
from app.errors import ConfigError
from app.money import to_decimal
from app.pnl.daily import Day, Explained, explain_activity, summed
from app.pnl.rates import Rates, parse_rates
from app.pnl.reported import Reported, convert_position, explain_position
from app.pnl.valuation import LAST_TRADE, Mark, combined
from app.stores.ledger_queries import PNL_GROUPS, Filters, LedgerReader
from app.tabular import Row
from app.timestamps import format_timestamp

_E32: Final = 32
_CONVERTED: Final = ("gross_realized", "fees", "net_realized", "unrealized", "fx", "total")
_EXPLAINED: Final = ("before", "new_trades", "price", "fx", "fees", "change", "after")


class By(StrEnum):
    """What PnL is summed by."""

    POSITION = "position"
    BOOK = "book"
    SYMBOL = "symbol"
    CURRENCY = "currency"


def pnl(
    by: Annotated[
        By, typer.Option("--by", help="What to sum by; within a currency, without --in.")
    ] = By.POSITION,
    book: BookOption = None,
    symbol: SymbolOption = None,
    day: Annotated[
        str | None,
        typer.Option("--day", metavar="DAY", help="Explain this day's PnL (UTC)."),
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(
            "--previous", metavar="DAY", help="Since the end of that day; the one before."
        ),
    ] = None,
    reported: Annotated[
        str | None,
        typer.Option("--in", metavar="CURRENCY", help="Convert all into this currency."),
    ] = None,
    rates_file: Annotated[
        Path | None,
        typer.Option(
            "--rates", metavar="FILE", help="Its rates: CSV with date, currency and rate."
        ),
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Sum realised and unrealised PnL and fees up; needs a ledger (DATABASE_URL).

    Open quantities are worth the price of the last trade of their book and symbol. With --day: why
    the total changed from one close to the next, by new trades, price, FX and fees, by the trades
    that are known now; the close is the last trade of the day. With --in and --rates: every trade
    at the rate of its day, what is open at the newest rate, or at that of the close; what the
    currencies themselves brought is FX. What a rate is missing for is unknown, and so is its sum.
    """
    form = form_of(as_json=as_json, as_csv=as_csv)
    if previous is not None and day is None:
        raise typer.BadParameter("--previous needs --day")
    if (reported is None) != (rates_file is None):
        raise typer.BadParameter("--in and --rates go together")
    asked = None if day is None else _day(day, previous)
    rates = None if reported is None or rates_file is None else _read_rates(rates_file, reported)
    settings = ledger_settings("PnL")
    filters = Filters(book=book, symbol=symbol, limit=rows_asked(form, limit))

    async def rows(reader: LedgerReader) -> AsyncGenerator[Sequence[Row], None]:
        if asked is not None:
            found = _day_rows(await _explained(reader, filters, asked, rates), by, rates)
        elif rates is not None:
            positions = [convert_position(one, rates) async for one in reader.fills(filters)]
            found = _converted_rows(positions, by, rates)
        else:
            async for piece in reader.pnl(filters, by.value):
                yield [_pnl_row(row) for row in piece]
            return
        if shown := list(islice(found, filters.limit)):
            yield shown

    print_from_ledger(
        settings,
        rows,
        form=form,
        limit=limit,
        empty="no positions",
        connect_timeout_s=connect_timeout,
    )


def _day(day: str, previous: str | None) -> Day:
    end = day_of(day, "--day")
    start = end - timedelta(days=1) if previous is None else day_of(previous, "--previous")
    if start >= end:
        raise typer.BadParameter("must be before --day", param_hint="--previous")
    return Day(start, end)


def _read_rates(path: Path, currency: str) -> Rates:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return parse_rates(file, currency)
    except OSError as exc:
        raise ConfigError([f"{path}: cannot be read: {exc.strerror or exc}"]) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError([f"{path}: is not UTF-8"]) from exc
    except ConfigError as exc:
        raise ConfigError([f"{path}: {problem}" for problem in exc.problems]) from exc


async def _explained(
    reader: LedgerReader, filters: Filters, day: Day, rates: Rates | None
) -> list[Explained]:
    wanted = replace(filters, limit=None)  # of rows, and here are the positions in them
    if rates is None:
        pieces = reader.day(wanted, day)
        return [explain_activity(one, day) async for piece in pieces for one in piece]
    fills = reader.fills(wanted, until_ns=day.close_ns)
    return [explain_position(one, day, rates) async for one in fills]


def _pnl_row(row: dict[str, Any]) -> dict[str, Any]:
    oldest_ns = row.pop("oldest_mark_ns")
    oldest = None if oldest_ns is None else format_timestamp(oldest_ns)
    return row | {"mark_source": None if oldest is None else LAST_TRADE, "oldest_mark_at": oldest}


# -- rows of positions, alone or summed up


class _OfPosition(Protocol):
    @property
    def book(self) -> str | None: ...
    @property
    def symbol(self) -> str: ...
    @property
    def currency(self) -> str: ...


T = TypeVar("T", bound=_OfPosition)


def _grouped(
    items: Iterable[T], by: By, rates: Rates | None
) -> Iterator[tuple[dict[str, str | None], list[T]]]:
    """Give what is summed up together, with the columns that tell it from the rest.

    Without a reporting currency sums never mix currencies.
    """
    names = PNL_GROUPS[by.value]
    if rates is None or by in (By.POSITION, By.CURRENCY):
        names = (*names, "currency")

    def values(item: T) -> tuple[str, ...]:
        return tuple(getattr(item, name) or "" for name in names)

    for key, group in groupby(sorted(items, key=values), values):
        columns = {name: text or None for name, text in zip(names, key, strict=True)}
        yield columns | ({} if rates is None else {"reported_in": rates.currency}), list(group)


def _converted_rows(
    positions: Iterable[Reported], by: By, rates: Rates
) -> Iterator[dict[str, Any]]:
    for columns, group in _grouped(positions, by, rates):
        total = combined(one.converted for one in group)
        parts: tuple[int | None, ...] = (None,) * len(_CONVERTED)
        if total is not None:
            parts = (
                total.realized_e32,
                total.fees_e32,
                total.realized_e32 - total.fees_e32,
                total.unrealized_e32,
                total.fx_e32,
                total.net_e32,
            )
        marked_ns = [one.mark.time_ns for one in group if one.mark]
        rated_ns = [
            one.rate.time_ns for one in group if one.rate and one.currency != rates.currency
        ]
        yield {
            **columns,
            "positions": len(group),
            **_amounts(_CONVERTED, parts),
            "mark_source": LAST_TRADE if marked_ns else None,
            "oldest_mark_at": format_timestamp(min(marked_ns)) if marked_ns else None,
            "oldest_rate_on": _day_text(min(rated_ns)) if rated_ns else None,
        }


def _day_rows(
    explained: Iterable[Explained], by: By, rates: Rates | None
) -> Iterator[dict[str, Any]]:
    names = tuple(name for name in _EXPLAINED if name != "fx" or rates is not None)
    for columns, group in _grouped(explained, by, rates):
        total = summed(one.explanation for one in group)
        parts: dict[str, int] = {}
        if total is not None:
            parts = {
                "before": total.before_e32,
                "new_trades": total.new_trades_e32,
                "price": total.price_e32,
                "fx": total.fx_e32,
                "fees": -total.fees_e32,  # as they act: a cost is negative
                "change": total.change_e32,
                "after": total.after_e32,
            }
        row = {
            **columns,
            "trades": sum(one.new_trades for one in group),
            **_amounts(names, [parts.get(name) for name in names]),
        }
        if by is By.POSITION:
            (one,) = group
            row |= _mark("first_mark", one.first_mark) | _mark("mark", one.mark)
            if rates is not None:
                row |= _rate("first_rate", one.first_rate) | _rate("rate", one.rate)
        yield row


def _amounts(names: Sequence[str], parts_e32: Sequence[int | None]) -> dict[str, Decimal | None]:
    return {
        name: None if part_e32 is None else to_decimal(part_e32, _E32)
        for name, part_e32 in zip(names, parts_e32, strict=True)
    }


def _mark(name: str, mark: Mark | None) -> dict[str, Any]:
    if mark is None:
        return {name: None, f"{name}_at": None}
    return {name: to_decimal(mark.amount_e8), f"{name}_at": format_timestamp(mark.time_ns)}


def _rate(name: str, rate: Mark | None) -> dict[str, Any]:
    if rate is None:
        return {name: None, f"{name}_on": None, f"{name}_source": None}
    return {
        name: to_decimal(rate.amount_e8),
        f"{name}_on": _day_text(rate.time_ns),
        f"{name}_source": rate.source,
    }


def _day_text(time_ns: int) -> str:
    return format_timestamp(time_ns)[: len("2026-03-02")]
