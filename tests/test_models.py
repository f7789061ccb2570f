"""Events and positions: what they hold."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import Action, Fate, Fee, Position, Side, TradeEvent, position_key

signed = st.integers(-(10**20) + 1, 10**20 - 1)


@pytest.mark.parametrize(("book", "key"), [(None, "ABC"), ("", "ABC"), ("DESK-1", "DESK-1|ABC")])
def test_position_key_has_the_book_only_where_there_is_one(book: str | None, key: str) -> None:
    """The key is `book|symbol`, or the bare symbol without a book."""
    assert position_key(book, "ABC") == key
    assert Position(book, "ABC").key == key


def test_invalid_event_can_be_held() -> None:
    """Constructing an event checks nothing, so that whatever was sent can be looked at."""
    event = TradeEvent(trade_id="", side="HOLD", price=-1, quantity=float("nan"))
    assert (event.trade_id, event.side, event.price, event.symbol) == ("", "HOLD", -1, None)


def test_event_and_fee_are_frozen() -> None:
    """A fact that was sent is never changed in place."""
    with pytest.raises(AttributeError):
        TradeEvent(trade_id="T").trade_id = "U"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Fee(amount="1").amount = "2"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Position(None, "X").quantity_e8 = 1  # type: ignore[misc]


def test_words_are_their_own_text() -> None:
    """Sides, actions and fates are plain text to whoever prints or compares them."""
    assert [f"{side}" for side in Side] == ["BUY", "SELL"]
    assert [f"{action}" for action in Action] == ["NEW", "AMEND", "CANCEL"]
    assert {fate.value for fate in Fate} == {
        *("booked", "duplicate", "stale", "rekeyed", "dead_lettered", "quarantined", "skipped")
    }


@given(signed.filter(bool), st.integers(-(10**40), 10**40), st.integers(1, 10**20 - 1))
def test_average_price_is_cost_by_unit_rounded_half_even(
    quantity: int, cost: int, multiplier: int
) -> None:
    """The average is a quotient for display: cost over quantity and multiplier, 8 decimals."""
    position = Position(
        None, "X", quantity_e8=quantity, open_cost_e24=cost, multiplier_e8=multiplier
    )
    assert position.average_price_e8 == round(Fraction(cost, quantity * multiplier))


@given(signed, signed, st.integers(-(10**60), 10**60), st.integers(1, 10**20 - 1))
def test_unrealised_is_value_at_the_mark_less_cost(
    quantity: int, mark: int, cost: int, multiplier: int
) -> None:
    """Nothing is rounded between the mark and the unrealised PnL."""
    position = Position(
        None,
        "X",
        quantity_e8=quantity,
        mark_e8=mark,
        open_cost_e24=cost,
        multiplier_e8=multiplier,
    )
    assert position.unrealized_e24 == quantity * mark * multiplier - cost


def test_flat_position_has_no_average_price() -> None:
    """Without a quantity there is no average, and 0 is shown for it."""
    assert Position(None, "X").average_price_e8 == 0
