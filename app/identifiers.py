"""Codes of published lists: currencies of ISO 4217 and their minor units, venues of ISO 10383.

What is not on a list is doubtful and not wrong: lists have no currencies that are gone and none
that markets have made (CNH), and a list is as old as the library that brings it.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache

from app.models import TradeEvent
from app.money import SCALE, parse_amount


@cache
def minor_units() -> Mapping[str, int | None]:
    """Give the decimals of every currency; `None` for those that have no minor unit, as gold."""
    from iso4217 import Currency  # noqa: PLC0415 - slow, and needed with reference data alone

    return {currency.code: currency.exponent for currency in Currency}


@cache
def venues() -> Mapping[str, date]:
    """Give the last day of every market identifier code; `date.max` for those in use."""
    from iso10383 import MIC  # noqa: PLC0415 - as above

    return {entry.value.mic: entry.value.expiry_date or date.max for entry in MIC}


def doubtful_currencies(event: TradeEvent, *, default_currency: str) -> Iterator[str]:
    """Hold currencies, and the decimals of fees, against the list.

    Args:
        event: It has passed the field rules.
        default_currency: Of a trade that names none, and of its fees.

    Yields:
        Suspicion codes; that of a fee for each fee that has it.
    """
    units = minor_units()
    if event.currency is not None and event.currency not in units:
        yield "currency-unknown"
    for fee in event.fees or ():
        if fee.currency is not None and fee.currency not in units:
            yield "fee-currency-unknown"
        decimals = units.get(fee.currency or event.currency or default_currency)
        if decimals is not None and parse_amount(fee.amount)[0] % 10 ** (SCALE - decimals):
            yield "fee-scale"


def doubtful_venue(mic: str, traded_on: date) -> Iterator[str]:
    """Hold the venue of a trade against the list, as it was on the day of the trade."""
    last_day = venues().get(mic)
    if last_day is None:
        yield "mic-unknown"
    elif last_day < traded_on:
        yield "mic-inactive"
