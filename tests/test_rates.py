"""Rates of a file: of which day they are, how long they hold, and what is wrong with a line."""

import pytest

from app.errors import ConfigError
from app.money import ONE_E8
from app.pnl.fills import Fill
from app.pnl.rates import Rates, parse_rates
from app.timestamps import parse_timestamp

LINES = """date,currency,rate,source
2026-03-06,EUR,1.20,ECB
2026-03-02,EUR,1.10,ECB
2026-03-02,JPY,0.00667,
"""


def rates(text: str = LINES, currency: str = "USD") -> Rates:
    """Read rates of a file's text."""
    return parse_rates(text.splitlines(keepends=True), currency)


def ns(text: str) -> int:
    """Read a time."""
    return parse_timestamp(text)[0]


@pytest.mark.parametrize(
    ("time", "rate_e8"),
    [
        ("2026-03-01T23:59:59.999999999Z", None),  # before the first
        ("2026-03-02T00:00:00Z", 110_000_000),
        ("2026-03-02T23:59:59.999999999Z", 110_000_000),
        ("2026-03-05T12:00:00Z", 110_000_000),  # of the last day that had one
        ("2026-03-06T00:00:00Z", 120_000_000),
        ("2026-03-13T23:59:59.999999999Z", 120_000_000),  # seven days on
        ("2026-03-14T00:00:00Z", None),  # and no longer
    ],
)
def test_a_rate_is_of_its_day_and_holds_for_a_week(time: str, rate_e8: int | None) -> None:
    """Lines may come in any order; what is older than a week is not known."""
    found = rates().at("EUR", ns(time))
    assert (found and found.amount_e8) == rate_e8


def test_the_newest_rate_is_of_whatever_day() -> None:
    """With the day and the source, so that whoever sees it can judge it."""
    newest = rates().last("EUR")
    assert newest is not None
    assert (newest.amount_e8, newest.time_ns, newest.source) == (
        120_000_000, ns("2026-03-06T00:00:00Z"), "ECB",
    )  # fmt: skip
    yen = rates().last("JPY")
    assert yen is not None
    assert (yen.amount_e8, yen.source) == (667_000, "stated")
    assert rates().last("GBP") is None
    assert rates().at("GBP", ns("2026-03-02T00:00:00Z")) is None


def test_one_of_the_reporting_currency_is_one() -> None:
    """At any time, and without a line."""
    for rate in (rates().at("USD", ns("2026-01-01T00:00:00Z")), rates().last("USD")):
        assert rate is not None
        assert rate.amount_e8 == ONE_E8


def test_fills_have_the_rates_of_their_days_or_none_at_all() -> None:
    """One that is missing leaves all of them without."""
    fills = [
        Fill("T1", ns("2026-03-02T09:00:00Z"), 0, 0, 1, 1),
        Fill("T2", ns("2026-03-06T09:00:00Z"), 0, 1, 1, 1),
    ]
    found = rates().stated(fills, "EUR")
    assert found is not None
    assert [fill.rate_e8 for fill in found] == [110_000_000, 120_000_000]
    assert (
        rates().stated([*fills, Fill("T0", ns("2026-02-01T09:00:00Z"), 0, 2, 1, 1)], "EUR") is None
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2026-3-2,EUR,1.1,", "date: must be a day such as 2026-03-02"),
        (",EUR,1.1,", "date: must be a day such as 2026-03-02"),
        ("2026-03-02,,1.1,", "currency: must be three capital letters"),
        ("2026-03-02,gbp,1.1,", "currency: must be three capital letters"),
        (
            "2026-03-02,GBP,1,10,",
            "has more cells than there are columns; a rate is written with a point",
        ),
        ("2026-03-02,GBP,,", "rate: bad character"),
        ("2026-03-02,GBP", "rate: bad character"),
        ("2026-03-02,GBP,1.1e0,", "rate: bad character"),
        ("2026-03-02,GBP,nan,", "rate: not finite"),
        ("2026-03-02,GBP,1.123456789,", "rate: too many decimals"),
        ("2026-03-02,GBP,0,", "rate: must be > 0"),
        ("2026-03-02,GBP,-1,", "rate: must be > 0"),
        ("2026-03-02,USD,1.1,", "rate: must be 1, rates are into USD"),
        ("2026-03-02,EUR,1.1,", "EUR has another rate of 2026-03-02 above"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(line: str, problem: str) -> None:
    """All of it at once; and a file with a wrong line is not used at all."""
    with pytest.raises(ConfigError) as told:
        rates(f"{LINES}{line}\n2026-03-02,CHF,x,\n")
    assert told.value.problems == [f"line 5: {problem}", "line 6: rate: bad character"]


@pytest.mark.parametrize(
    "text",
    ["", "day,currency,rate\n", "2026-03-02,EUR,1.1\n", "date,currency,rate,rate\n"],
)
def test_columns_that_are_missing_are_told(text: str) -> None:
    """A file without a header too."""
    with pytest.raises(ConfigError, match="line 1: must name the columns date, currency, rate"):
        rates(text)


def test_a_file_of_another_kind_does_not_flood_the_screen() -> None:
    """Twenty problems are enough."""
    with pytest.raises(ConfigError) as told:
        rates("date,currency,rate\n" + "x,y,z\n" * 1_000)
    assert len(told.value.problems) == 20


def test_a_rate_of_one_for_itself_may_be_listed() -> None:
    """As lists of central banks do for their own currency."""
    assert rates(f"{LINES}2026-03-02,USD,1,\n").last("USD") is not None


@pytest.mark.parametrize("currency", ["usd", "US", "", "DOLLAR"])
def test_a_currency_is_three_capital_letters(currency: str) -> None:
    """As that of a trade: with any other one every amount would be unknown."""
    with pytest.raises(ConfigError, match="must be three capital letters"):
        rates(currency=currency)


def test_a_file_that_is_no_csv_is_told() -> None:
    """Rather than shown as a traceback."""
    with pytest.raises(ConfigError, match="field larger than field limit"):
        rates(f"date,currency,rate\n{'x' * 200_000},EUR,1\n")
