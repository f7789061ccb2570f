"""Reference data and limits: what is known of instruments, books and venues, and what is doubtful.

Whatever they say, a trade that was done is booked: they only mark it. So the data may change at any
time, and no position depends on them. Bounds are integers at the scale of the amounts they bound.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from stdnum import lei

from app.approved import NOTHING, Approved, Bounds, Shelf
from app.errors import ConfigError
from app.identifiers import doubtful_currencies, doubtful_venue, minor_units, venues
from app.models import Action, TradeEvent
from app.money import LIMIT_E8, ONE_E8, AmountError, parse_amount
from app.timestamps import NS_PER_S
from app.validation import CheckedTrade, day_of

_NS_PER_DAY: Final = 86_400 * NS_PER_S
_HUNDRED_PERCENT_E8: Final = 100 * ONE_E8
_MOST_RULES: Final = 65_536
_MOST_PROBLEMS: Final = 20

T = TypeVar("T")
_Currency = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")]
_Mic = Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9]{4}$")]
_Table = dict[str, Any]


# -- the form of the file


class InstrumentTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[instruments.SYMBOL]`; docs/reference-data.md says what each key means."""

    currency: _Currency | None = None
    venues: list[_Mic] | None = None
    tradable: bool = True
    tick: Decimal | None = None
    lot: Decimal | None = None
    multiplier: Decimal | None = None
    reference_price: Decimal | None = None
    collar: Decimal | None = None
    collar_percent: Decimal | None = None


class LimitsTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`, or `[books.NAME.limits]`, whose keys go before those of the former."""

    max_quantity: Decimal | None = None
    max_notional: dict[_Currency, Decimal] | None = None
    collar_percent: Decimal | None = None
    collar_around: Literal["reference-price", "last-trade"] | None = None


class BookTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[books.NAME]`."""

    active: bool = True
    limits: LimitsTable = LimitsTable()


class VenueTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[venues.MIC]`."""

    calendar: str


class CounterpartyTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[counterparties.LEI]`."""

    active: bool


class DatesTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[dates]`."""

    max_age_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)]


# -- what it comes to


@dataclass(frozen=True, slots=True)
class Calendar:
    """The trading days of a venue.

    Attributes:
        zone: Where its days begin.
        days: Trading days.
        first: The first one that is known; and `last` the last one.
    """

    zone: ZoneInfo
    days: frozenset[date]
    first: date
    last: date

    def is_closed(self, day: date) -> bool:
        """Tell whether a day is known not to be one of trading."""
        return self.first < day < self.last and day not in self.days


@dataclass(frozen=True, slots=True)
class Collar:
    """How far a price may be from another one, the reference price.

    Attributes:
        distance_e8: So far, if it is a distance; otherwise it is a share of the reference price.
        percent_e8: That share in percent at 10^-8.
        price_e8: The reference price; without one there may be the price of the last trade.
        follows_trades: Whether that one is taken.
    """

    distance_e8: int | None
    percent_e8: int
    price_e8: int | None
    follows_trades: bool

    def around(self, last_e8: int | None) -> int | None:
        """Give the reference price, given the price of the last trade; `None` if there is none."""
        if self.price_e8 is not None or not self.follows_trades:
            return self.price_e8
        return last_e8

    def width_e8(self, price_e8: int) -> int:
        """Give how far a price may be from a reference price."""
        if self.distance_e8 is not None:
            return self.distance_e8
        return abs(price_e8) * self.percent_e8 // _HUNDRED_PERCENT_E8

    def band(self, last_e8: int | None) -> tuple[int, int] | None:
        """Give prices that are within the collar whichever of them was traded before.

        Args:
            last_e8: Price of the last trade, which is among them where the collar follows trades.
        """
        around_e8 = self.around(last_e8)
        if around_e8 is None:
            return None
        if self.price_e8 is not None:
            width_e8 = self.width_e8(around_e8)
            return around_e8 - width_e8, around_e8 + width_e8
        if around_e8 <= 0:
            return None
        # Two prices are furthest apart, for the lower one, at the ends. The lower end is a rounded
        # one, so that prices next to each other share their band.
        room_e8 = min(self.width_e8(around_e8), around_e8) // 4
        grid = max(0, room_e8.bit_length() - 1)
        least_e8 = max(1, ((around_e8 - room_e8) >> grid) << grid)
        most_e8 = least_e8 + self.width_e8(least_e8)
        return (least_e8, most_e8) if most_e8 >= around_e8 else (around_e8, around_e8)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the trades of one position; `None` where nothing is said.

    Attributes:
        codes: What is doubtful about each of them.
        currency: Of the instrument.
        venues: Where it is traded.
        multiplier_e8: Contract multiplier.
        tick_e8: Prices are multiples of it.
        lot_e8: Quantities are multiples of it.
        most_quantity_e8: Of one trade.
        most_notional_e24: Of one trade, by currency.
        collar: Of its prices.
    """

    codes: tuple[str, ...]
    currency: str | None
    venues: frozenset[str] | None
    multiplier_e8: int | None
    tick_e8: int
    lot_e8: int
    most_quantity_e8: int
    most_notional_e24: Mapping[str, int]
    collar: Collar | None

    def of_instrument(
        self, currency: str, multiplier_e8: int, mic: str | None = None
    ) -> Iterator[str]:
        """Give what is doubtful whatever price and quantity are."""
        yield from self.codes
        if self.currency not in (None, currency):
            yield "currency-differs-from-instrument"
        if self.multiplier_e8 not in (None, multiplier_e8):
            yield "multiplier-differs-from-instrument"
        if self.venues is not None and mic is not None and mic not in self.venues:
            yield "mic-differs-from-instrument"

    def of_amounts(
        self, trade: CheckedTrade, currency: str, last_price_e8: int | None
    ) -> Iterator[str]:
        """Give what is doubtful about price and quantity."""
        if trade.price_e8 % self.tick_e8:
            yield "off-tick"
        if trade.quantity_e8 % self.lot_e8:
            yield "off-lot"
        if self.collar is not None:
            around_e8 = self.collar.around(last_price_e8)
            if around_e8 is None:
                yield "price-unchecked"
            elif abs(trade.price_e8 - around_e8) > self.collar.width_e8(around_e8):
                yield "price-outside-collar"
        if trade.quantity_e8 > self.most_quantity_e8:
            yield "quantity-over-cap"
        most_e24 = self.most_notional_e24.get(currency)
        notional_e24 = abs(trade.price_e8) * trade.quantity_e8 * trade.multiplier_e8
        if most_e24 is not None and notional_e24 > most_e24:
            yield "notional-over-cap"


class Reference:
    """Reference data and limits, which are read once and never change.

    Args:
        instruments: By symbol; `None` where none are listed, so that none is unknown.
        books: By name, likewise.
        limits: Of every book that has none of its own.
        calendars: Of venues, by market identifier code.
        inactive: Counterparties that are not traded with any more.
        max_age_ns: Age of a trade, when it was appended, from which on it is doubtful.
    """

    def __init__(
        self,
        *,
        instruments: Mapping[str, InstrumentTable] | None = None,
        books: Mapping[str, BookTable] | None = None,
        limits: LimitsTable | None = None,
        calendars: Mapping[str, Calendar] | None = None,
        inactive: frozenset[str] = frozenset(),
        max_age_ns: int | None = None,
    ) -> None:
        self.instruments = instruments
        self.books = books
        self.calendars = calendars or {}
        self.inactive = inactive
        self.max_age_ns = max_age_ns
        self.limits = limits or LimitsTable()
        self._rules: dict[tuple[str | None, str], Rules] = {}
        self._shelf = Shelf()
        minor_units(), venues()  # slow, and the loop is not to wait for it later

    def rules(self, book: str | None, symbol: str) -> Rules:
        """Give the rules of a position."""
        rules = self._rules.get((book, symbol))
        if rules is None:
            if len(self._rules) >= _MOST_RULES:
                self._rules.clear()
            rules = self._rules[book, symbol] = self._rules_of(book, symbol)
        return rules

    def _rules_of(self, book: str | None, symbol: str) -> Rules:
        codes = []
        instrument, of_book = (
            (self.instruments or {}).get(symbol),
            (self.books or {}).get(book or ""),
        )
        if self.instruments is not None and instrument is None:
            codes.append("instrument-unknown")
        if instrument is not None and not instrument.tradable:
            codes.append("instrument-not-tradable")
        if self.books is not None and book and of_book is None:
            codes.append("book-unknown")
        if of_book is not None and not of_book.active:
            codes.append("book-inactive")
        known = instrument or InstrumentTable()
        limits = _joined(of_book.limits if of_book else LimitsTable(), self.limits)
        caps = limits.max_notional or {}
        return Rules(
            codes=tuple(codes),
            currency=known.currency,
            venues=None if known.venues is None else frozenset(known.venues),
            multiplier_e8=None if known.multiplier is None else _e8(known.multiplier),
            tick_e8=_e8(known.tick or Decimal("1e-8")),
            lot_e8=_e8(known.lot or Decimal("1e-8")),
            most_quantity_e8=LIMIT_E8 if limits.max_quantity is None else _e8(limits.max_quantity),
            most_notional_e24={name: _e8(cap) * ONE_E8**2 for name, cap in caps.items()},
            collar=_collar(known, limits),
        )

    def approved(
        self, book: str | None, symbol: str, *, currency: str, unit_e8: int, last_price_e8: int
    ) -> Approved:
        """Give the table of amounts of which no trade of a position is doubtful.

        Args:
            book: Of the position.
            symbol: Of the position.
            currency: Of its trades, whose contract multiplier is 1.
            unit_e8: In which it counts.
            last_price_e8: Price of its last trade. What is in the table holds as long as all trades
                are of prices that are in it.
        """
        rules = self.rules(book, symbol)
        if any(rules.of_instrument(currency, ONE_E8)):
            return NOTHING
        least_e8, most_e8, most_quantity_e8 = 1, LIMIT_E8, rules.most_quantity_e8
        if rules.collar is not None:
            band = rules.collar.band(last_price_e8)
            if band is None:
                return NOTHING
            least_e8, most_e8 = max(least_e8, band[0]), min(most_e8, band[1])
        cap_e24 = rules.most_notional_e24.get(currency)
        if cap_e24 is not None:
            # Each amount is looked up alone, so that the highest price has to go with all of them.
            # It is an eighth above the last one or a little more, so that tables are shared.
            grid = max(0, last_price_e8.bit_length() - 4)
            most_e8 = min(most_e8, max(1, ((last_price_e8 * 9 // 8 >> grid) + 1) << grid))
            most_quantity_e8 = min(most_quantity_e8, cap_e24 // (most_e8 * ONE_E8))
        step_e8 = math.lcm(unit_e8, rules.lot_e8)
        bounds = Bounds(step_e8, most_quantity_e8, rules.tick_e8, least_e8, most_e8)
        return self._shelf.table(unit_e8, bounds)

    def doubtful_codes(
        self, event: TradeEvent, trade: CheckedTrade, *, default_currency: str
    ) -> tuple[str, ...]:
        """Hold the codes of an event against the published lists, of which the file knows nothing.

        Args:
            event: It has passed the field rules.
            trade: Its numbers.
            default_currency: Of a trade that names none.
        """
        found = dict.fromkeys(doubtful_currencies(event, default_currency=default_currency))
        if event.mic is not None:
            day = _traded_on(event, trade, self.calendars.get(event.mic))
            found |= dict.fromkeys(doubtful_venue(event.mic, day))
        return tuple(found)

    def doubts(
        self,
        event: TradeEvent,
        trade: CheckedTrade,
        *,
        currency: str,
        last_price_e8: int | None,
        appended_ns: int | None = None,
    ) -> tuple[str, ...]:
        """Tell what is doubtful about a trade, by the data and limits.

        Args:
            event: What it says, which has passed the field rules.
            trade: Its numbers.
            currency: Of it.
            last_price_e8: Price of the last trade of its position; `None` before the first.
            appended_ns: When the broker took it; `None` where that is not known.

        Returns:
            Suspicion codes, each once; none for a CANCEL, of which nothing is counted.
        """
        if event.action == Action.CANCEL:
            return ()
        rules = self.rules(event.book or None, str(event.symbol))
        return (
            *rules.of_instrument(currency, trade.multiplier_e8, event.mic),
            *self._of_parties_and_dates(event, trade, appended_ns),
            *rules.of_amounts(trade, currency, last_price_e8),
        )

    def _of_parties_and_dates(
        self, event: TradeEvent, trade: CheckedTrade, appended_ns: int | None
    ) -> Iterator[str]:
        if event.counterparty_lei in self.inactive:
            yield "counterparty-inactive"
        if (
            self.max_age_ns is not None
            and appended_ns is not None
            and trade.time_ns < appended_ns - self.max_age_ns
        ):
            yield "timestamp-too-old"
        calendar = self.calendars.get(event.mic or "")
        if calendar is not None and calendar.is_closed(_traded_on(event, trade, calendar)):
            yield "not-a-trading-day"


def _traded_on(event: TradeEvent, trade: CheckedTrade, calendar: Calendar | None) -> date:
    """Give the day of a trade, where it was done; in UTC where that is not known."""
    zone = UTC if calendar is None else calendar.zone
    return (
        day_of(event.trade_date) or datetime.fromtimestamp(trade.time_ns // NS_PER_S, zone).date()
    )


def _joined(own: LimitsTable, common: LimitsTable) -> LimitsTable:
    given = {name: getattr(own, name) for name in own.__struct_fields__}
    changes = {name: value for name, value in given.items() if value is not None}
    # Currency by currency: a cap that a book does not name is not taken away by one that it does.
    caps = {**(common.max_notional or {}), **(own.max_notional or {})}
    return msgspec.structs.replace(common, **changes | {"max_notional": caps})


def _collar(instrument: InstrumentTable, limits: LimitsTable) -> Collar | None:
    percent = instrument.collar_percent
    if instrument.collar is None and percent is None:
        percent = limits.collar_percent
    if instrument.collar is None and percent is None:
        return None
    price = instrument.reference_price
    return Collar(
        distance_e8=None if instrument.collar is None else _e8(instrument.collar),
        percent_e8=_e8(percent or Decimal(0)),
        price_e8=None if price is None else _e8(price),
        follows_trades=limits.collar_around == "last-trade",
    )


def _e8(amount: Decimal) -> int:
    """Read an amount of the file, which is exact: see `_check_amounts`."""
    return parse_amount(amount)[0]


# -- reading it


def parse_reference(
    document: Mapping[str, Any], *, calendar_of: Callable[[str], Calendar]
) -> Reference:
    """Make reference data of a file's tables; all of it is right, or none is taken.

    Args:
        document: What TOML gives, with its numbers as `Decimal`.
        calendar_of: Gives the calendar of a name, or raises `ValueError` with a text for a person.

    Raises:
        ConfigError: With a line for each problem: where it is, and what is allowed.
    """
    reader = _Reader(calendar_of)
    instruments = reader.entries(document, "instruments", InstrumentTable)
    books = reader.entries(document, "books", BookTable)
    limits = reader.section(document, "limits", LimitsTable)
    dates = reader.section(document, "dates", DatesTable)
    of_venues = reader.entries(document, "venues", VenueTable) or {}
    parties = reader.entries(document, "counterparties", CounterpartyTable) or {}
    calendars = reader.calendars(of_venues)
    for code in parties:
        if not lei.is_valid(code):
            reader.problems.append(f"counterparties.{code}: must be an LEI, with its check digits")
    known = ("instruments", "books", "limits", "dates", "venues", "counterparties")
    reader.problems += [
        f"{name}: unknown, must be one of {', '.join(known)}" for name in document.keys() - {*known}
    ]
    if reader.problems:
        left = len(reader.problems) - _MOST_PROBLEMS
        more = [f"and {left} more problems"] if left > 0 else []
        raise ConfigError(reader.problems[:_MOST_PROBLEMS] + more)
    return Reference(
        instruments=instruments,
        books=books,
        limits=limits,
        calendars=calendars,
        inactive=frozenset(code for code, party in parties.items() if not party.active),
        max_age_ns=None if dates is None else dates.max_age_days * _NS_PER_DAY,
    )


def _told(exc: msgspec.ValidationError, path: str) -> str:
    """Say what is wrong in the form of the other problems: the place first."""
    message, _, where = str(exc).replace(" | null", "").partition(" - at ")  # TOML has no null
    place, name = where.removeprefix("`key` in ").strip("`$"), where.startswith("`key`")
    return f"{path}{place}: {'a name in it: ' if name else ''}{message}"


class _Reader:
    """Reads tables, and collects what is wrong with them."""

    def __init__(self, calendar_of: Callable[[str], Calendar]) -> None:
        self._calendar_of = calendar_of
        self.problems: list[str] = []

    def entries(self, document: Mapping[str, Any], name: str, kind: type[T]) -> dict[str, T] | None:
        """Read a section of tables by name; `None` where it is not there."""
        tables = document.get(name)
        if tables is None:
            return None
        if not isinstance(tables, dict):
            self.problems.append(f"{name}: must be a table of tables")
            return None
        read = {key: self._read(table, f"{name}.{key}", kind) for key, table in tables.items()}
        return {key: table for key, table in read.items() if table is not None}

    def section(self, document: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
        """Read a section that is one table; `None` where it is not there."""
        return self._read(document[name], name, kind) if name in document else None

    def calendars(self, of_venues: Mapping[str, VenueTable]) -> dict[str, Calendar]:
        """Find the calendars of venues."""
        found = {}
        for mic, venue in of_venues.items():
            try:
                found[mic] = self._calendar_of(venue.calendar)
            except ValueError as exc:
                self.problems.append(f"venues.{mic}.calendar: {exc}")
        return found

    def _read(self, table: object, path: str, kind: type[T]) -> T | None:
        try:
            read = msgspec.convert(table, kind)
        except msgspec.ValidationError as exc:
            self.problems.append(_told(exc, path))
            return None
        self._check_amounts(read, path)
        return read

    def _check_amounts(self, table: object, path: str) -> None:
        """Check every number of a table, and of those in it."""
        for name in getattr(table, "__struct_fields__", ()):
            value, here = getattr(table, name), f"{path}.{name}"
            if isinstance(value, msgspec.Struct):
                self._check_amounts(value, here)
            amounts = value if isinstance(value, dict) else {"": value}
            for key, amount in amounts.items():
                if isinstance(amount, Decimal):
                    self._check_amount(amount, f"{here}.{key}" if key else here)
        if isinstance(table, InstrumentTable) and table.collar and table.collar_percent:
            self.problems.append(f"{path}: either collar or collar_percent, not both")

    def _check_amount(self, amount: Decimal, path: str) -> None:
        try:
            amount_e8, was_rounded = parse_amount(amount)
        except AmountError as exc:
            self.problems.append(f"{path}: {exc.problem.replace('-', ' ')}")
            return
        if was_rounded:
            self.problems.append(f"{path}: must have at most 8 decimals")
        elif amount_e8 <= 0 and not path.endswith(".reference_price"):
            self.problems.append(f"{path}: must be > 0")
