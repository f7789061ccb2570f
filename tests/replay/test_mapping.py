"""Mapping of rows: values become those of the event contract, or the row is refused."""

import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.errors import ConfigError
from app.replay import FieldMapping, RowMapper
from app.replay.files import RowFile
from app.replay.rows import Row
from tests.replay.fakes import map_row, reason_of, trade


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"price": "1.123456789"}, "price-too-many-decimals"),
        ({"price": "1e3"}, "price-bad-character"),
        ({"price": float("nan")}, "price-not-finite"),
        ({"price": Decimal("1e1000000")}, "price-out-of-range"),
        ({"price": True}, "price-wrong-type"),
        ({"price": None}, "price-missing"),
        ({"price": 1e-9}, "price-not-positive"),
        ({"quantity": -1}, "quantity-not-positive"),
        ({"quantity": "1,250"}, "quantity-bad-character"),
        ({"trade_id": None}, "trade-id-missing"),
        ({"trade_id": "x" * 65}, "trade-id-too-long"),
        ({"trade_id": True}, "trade-id-wrong-type"),
        ({"trade_id": ["x"]}, "trade-id-wrong-type"),
        ({"trade_id": float("inf")}, "trade-id-not-finite"),
        ({"trade_id": Decimal("1e1000")}, "trade-id-out-of-range"),
        ({"symbol": "A|B"}, "symbol-bad-character"),
        ({"symbol": "A\ud800"}, "symbol-bad-character"),
        ({"side": "buy"}, "side-unknown"),
        ({"side": None}, "side-missing"),
        ({"timestamp": "2024-05-01T10:00:00.1234567891Z"}, "timestamp-unparseable"),
        ({"timestamp": "yesterday"}, "timestamp-unparseable"),
        ({"timestamp": Decimal("1714557600.1234567891")}, "timestamp-unparseable"),
        ({"timestamp": Decimal("1e1000000")}, "timestamp-out-of-range"),
        ({"timestamp": 20_240_501}, "timestamp-out-of-range"),
        ({"timestamp": {}}, "timestamp-wrong-type"),
        ({"timestamp": True}, "timestamp-wrong-type"),
        ({"timestamp": float("nan")}, "timestamp-out-of-range"),
        ({"source_sequence": 2**63}, "source-sequence-out-of-range"),
        ({"fees": [{"amount": 1}] * 5_000}, "body-too-large"),
        ({"fx_rate": True}, "fx-rate-wrong-type"),
        ({"version": "1"}, "version-wrong-type"),
        ({"cleared": "true"}, "cleared-wrong-type"),
        ({"fees": "1"}, "fees-wrong-type"),
        ({"fees": [1]}, "fees-wrong-type"),
        ({"fees": [{"amount": "x"}]}, "fee-amount-bad-character"),
        ({"schema_version": 2}, "schema-version-unsupported"),
        ({"action": "BUST"}, "action-unknown"),
    ],
)
def test_row_that_no_consumer_would_book_is_refused(changes: dict[str, Any], reason: str) -> None:
    """The reason codes are those of the event contract."""
    assert reason_of(**changes) == reason


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("190.98000000000002", "190.98"),
        ("0.000000025", "0.00000002"),
        ("0.000000035", "0.00000004"),
        ("1.5e3", "1500"),
        ("+7.", "7"),
        (".5", "0.5"),
        ("007", "7"),
    ],
)
def test_csv_cell_is_a_number(value: str, text: str) -> None:
    """Cells have no type: digits beyond the eighth are a double's noise."""
    assert map_row(is_typed=False, price=value).price == text


@pytest.mark.parametrize("value", [" 10 ", "1_000", "\u0661", "1e9999999", "0x10"])
def test_csv_cell_that_is_no_plain_number_is_refused(value: str) -> None:
    """Nothing is guessed of a cell."""
    assert reason_of(is_typed=False, price=value) == "price-bad-character"


def test_csv_cell_of_too_many_digits_is_out_of_range() -> None:
    """An endless row of digits is a number, and no price."""
    assert reason_of(is_typed=False, price="9" * 65) == "price-out-of-range"


def test_strict_decimals_refuse_instead_of_rounding() -> None:
    """The same number is rounded and noted, or refused."""
    row = Row("f", 1, trade(price=0.1 + 0.2, quantity=Decimal("1.000000001")), is_typed=True)
    mapped = RowMapper(FieldMapping()).map_row(row)
    assert sorted(mapped.rounded) == ["price-rounded", "quantity-rounded"]
    assert mapped.event.price == "0.3"
    assert reason_of(FieldMapping(is_strict=True), price=0.1 + 0.2) == "price-too-many-decimals"


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize(
    ("rate", "suspect"),
    [
        ("much", "fx-rate-bad-character"),
        ("1.123456789", "fx-rate-too-many-decimals"),
        (float("inf"), "fx-rate-not-finite"),
        (Decimal("1e1000000"), "fx-rate-bad-character"),
        ("-1", "fx-rate-not-positive"),
    ],
)
def test_rate_that_is_no_amount_makes_a_trade_suspect_only(
    rate: object, suspect: str, *, is_strict: bool
) -> None:
    """Nothing is computed with it, so that it keeps nothing from being booked."""
    row = Row("f", 1, trade(fx_rate=rate, settlement_currency="EUR"), is_typed=True)
    assert RowMapper(FieldMapping(is_strict=is_strict)).map_row(row).suspects == (suspect,)


def test_values_of_csv_cells_reach_fields_that_are_no_text() -> None:
    """Whole numbers and flags are read out of cells; anything else is refused."""
    event = map_row(is_typed=False, version="3", cleared="TRUE")
    assert (event.version, event.cleared) == (3, True)
    assert reason_of(is_typed=False, version="3.0") == "version-wrong-type"
    assert reason_of(is_typed=False, cleared="yes") == "cleared-wrong-type"


def test_numbers_become_plain_text_in_text_fields() -> None:
    """An id that the file holds as a number keeps its digits and gets no exponent."""
    assert map_row(trade_id=849_714_402).trade_id == "849714402"
    assert map_row(trade_id=Decimal("1.5e3")).trade_id == "1500"
    assert map_row(trade_id=1e16).trade_id == "10000000000000000"
    assert map_row(account="ä").account == "ä"


@pytest.mark.parametrize(
    ("value", "side"),
    [(True, "SELL"), (False, "BUY"), ("TRUE", "SELL"), ("false", "BUY"), ("S", "SELL")],
)
def test_side_is_told_by_a_column(value: object, side: str) -> None:
    """JSON and text booleans are alike; other values count exactly as they are listed."""
    mapping = FieldMapping.parse(side_from="m=True:SELL,false:BUY,S:SELL")
    assert map_row(mapping, m=value).side == side


@pytest.mark.parametrize("value", [1, 0, "one", "s", "", [1]])
def test_value_that_is_not_listed_tells_no_side(value: object) -> None:
    """0 and 1 are no booleans unless they are listed."""
    mapping = FieldMapping.parse(side_from="m=true:SELL,false:BUY,S:SELL")
    assert reason_of(mapping, m=value) in {"side-unknown", "side-wrong-type"}
    listed = FieldMapping.parse(side_from="m=1:SELL,0:BUY")
    assert map_row(listed, m=1).side == "SELL"


def test_default_fills_what_is_missing_and_nothing_else() -> None:
    """A value in the row wins over the default."""
    mapping = FieldMapping.parse(defaults=["book=B", "side=SELL", "price=7.50", "version=2"])
    event = map_row(mapping, side=..., price=None, book="OWN")
    assert (event.book, event.side, event.price, event.version) == ("OWN", "SELL", "7.5", 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2013-06-08 09:00:01.625473976", "2013-06-08T07:00:01.625473976Z"),
        ("2013-01-08 09:00:01", "2013-01-08T08:00:01Z"),
        ("2013-06-08T09:00:01.5+05:30", "2013-06-08T03:30:01.500Z"),
        ("2013-06-08 09:00:01+02", "2013-06-08T07:00:01Z"),
        ("2013-06-08 09:00:01.5+0200", "2013-06-08T07:00:01.500Z"),
        ("2013-10-27 02:30:00", "2013-10-27T00:30:00Z"),
        (1_370_674_801, "2013-06-08T07:00:01Z"),
        (1_370_674_801_625, "2013-06-08T07:00:01.625Z"),
        ("1370674801625473", "2013-06-08T07:00:01.625473Z"),
        (1_370_674_801_625_473_976, "2013-06-08T07:00:01.625473976Z"),
        (Decimal("1370674801.625473976"), "2013-06-08T07:00:01.625473976Z"),
        (1_370_674_801.5, "2013-06-08T07:00:01.500Z"),
    ],
)
def test_times_become_utc_to_the_precision_given(value: object, text: str) -> None:
    """Local times take the zone, an hour that comes twice is its first, numbers tell their unit."""
    mapping = FieldMapping(zone=ZoneInfo("Europe/Amsterdam"))
    assert map_row(mapping, timestamp=value).timestamp == text


def test_local_time_that_the_clocks_skip_is_refused() -> None:
    """In spring there is no half past two."""
    mapping = FieldMapping(zone=ZoneInfo("Europe/Amsterdam"))
    assert reason_of(mapping, timestamp="2013-03-31 02:30:00") == "timestamp-unparseable"
    assert map_row(mapping, timestamp="2013-03-31 03:00:00").timestamp == "2013-03-31T01:00:00Z"


def test_local_time_without_a_zone_is_passed_on_and_flagged() -> None:
    """Whoever reads it decides, and the summary says so."""
    text = "2013-06-08 09:00:01.50"
    row = Row("f", 1, trade(timestamp=text), is_typed=True)
    mapped = RowMapper(FieldMapping()).map_row(row)
    assert mapped.event.timestamp == text
    assert mapped.suspects == ("timestamp-no-offset",)


def test_generated_ids_are_stable_and_tell_equal_prints_apart(tmp_path: Path) -> None:
    """Folder and compression do not matter; the line and the trade do."""
    body = "symbol,side,price,quantity,timestamp\n" + "A,BUY,1,1,2024-05-01T10:00:00Z\n" * 3
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "a.csv").write_text(body)
    (other / "a.csv.gz").write_bytes(gzip.compress(body.encode()))
    (tmp_path / "b.csv").write_text(body)
    mapper = RowMapper(FieldMapping(generate_ids=True))

    def ids(path: Path) -> list[str]:
        with RowFile(path) as rows:
            return [str(mapper.map_row(row).event.trade_id) for row in rows]

    first = ids(tmp_path / "a.csv")
    assert first == ids(tmp_path / "a.csv") == ids(other / "a.csv.gz")
    assert len(set(first) | set(ids(tmp_path / "b.csv"))) == 6
    assert max(map(len, first)) <= 64


def test_wrong_options_are_named_all_at_once() -> None:
    """Nobody mends one option to be told of the next."""
    with pytest.raises(ConfigError) as caught:
        FieldMapping.parse(
            maps=["prize=P", "price", "price=P", "price=Q", "published_at=X", "trade_id=I"],
            defaults=["side=buy", "quantity=many", "=x", "side_=y"],
            side_from="m=true:SOLD",
            generate_ids=True,
            zone="Mars/Olympus",
        )
    assert len(caught.value.problems) == 11
    with pytest.raises(ConfigError, match="side is also mapped"):
        FieldMapping.parse(maps=["side=S"], side_from="m=1:SELL")
    for side_from in ["m", "=1:SELL", "m=1", "m=1:SELL,1:BUY", "m=true:SELL,TRUE:BUY"]:
        with pytest.raises(ConfigError, match="--side-from"):
            FieldMapping.parse(side_from=side_from)
