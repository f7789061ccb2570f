"""Checks of one trade event that need nothing but the event: fields, identifiers, dates.

A fault in a field that feeds the key or the arithmetic refuses the event; a fault in a describing
field makes it suspect. Reason codes are an outside contract: added to, never renamed.
"""

from collections.abc import Iterable
from datetime import date
from typing import Final, get_type_hints

import msgspec
from stdnum import figi, isin, lei
from stdnum.exceptions import ValidationError

from app.codec import reason_name
from app.errors import DoubtfulTradeError, InvalidTradeError
from app.models import MAX_ID_LENGTH, Action, Fee, TradeEvent
from app.money import LIMIT_E8, ONE_E8, AmountError, parse_amount
from app.timestamps import NS_PER_S, TimestampError, parse_timestamp

MAX_TEXT_LENGTH: Final = 256
DEFAULT_CURRENCY: Final = "USD"

_SIGN: Final = {"BUY": 1, "SELL": -1}
_ACTIONS: Final = frozenset(Action)
_ASSET_CLASSES: Final = frozenset({"EQUITY", "FX", "FUTURE", "OPTION", "BOND", "CRYPTO"})
_MAY_TRADE_BELOW_ZERO: Final = ("FUTURE", "OPTION")
_PRICE_TYPES: Final = frozenset({"PER_UNIT", "PERCENT", "YIELD"})
_CHECK_DIGITS: Final = {
    "isin": isin,
    "figi": figi,
    "counterparty_lei": lei,
    "our_lei": lei,
    "ccp_lei": lei,
}
_CURRENCY_LENGTH: Final = 3
_REFUSED_IF_STRICT: Final = frozenset(
    {
        *("currency-unknown", "fee-currency-unknown", "fee-scale", "mic-unknown", "mic-inactive"),
        *("isin-check-digit", "figi-check-digit", "lei-check-digit"),
        *("trade-date-unparseable", "settlement-date-unparseable", "settlement-before-trade"),
        "timestamp-in-future",
    }
)
"""Doubts about identifiers and dates. What a file of reference data says is not among them: it may
change while a record is read twice, and each record has one fate."""
_GOOD_KEY_PARTS_LIMIT: Final = 65_536
_good_key_parts: set[str] = set()  # books and symbols repeat: each is looked at once
_TEXT_FIELDS: Final = tuple(
    # The publish time is a figure for statistics: a bad one keeps nothing from being booked.
    name
    for name, kind in get_type_hints(TradeEvent).items()
    if kind == str | None and name != "published_at"
)
_UNREAD_FIELDS: Final = ("event_time", "fx_rate")
"""What nobody computes with need be no instant and no amount, but where it is text it is kept."""


class CheckedTrade(msgspec.Struct, frozen=True, gc=False):
    """The numbers of an event that can be booked, and what is doubtful about it."""

    sign: int
    price_e8: int
    quantity_e8: int
    time_ns: int
    multiplier_e8: int
    fee_e8: int
    suspects: tuple[str, ...]


def check_event(
    event: TradeEvent, *, is_plain: bool = False, default_currency: str = DEFAULT_CURRENCY
) -> CheckedTrade:
    """Check one event against the field, identifier and date rules.

    Args:
        event: Any event, from bytes or built by hand.
        is_plain: True where the decoder knows that only the common fields are set, which spares
            the checks of the others.
        default_currency: Currency of a trade that names none.

    Raises:
        InvalidTradeError: With the reason code of the first fault that keeps it from being booked.
    """
    _check_name(event.trade_id, "trade_id")
    _check_key_part(event.symbol, "symbol")
    if event.book is not None and event.book != "":
        _check_key_part(event.book, "book")
    sign = _SIGN.get(event.side) if isinstance(event.side, str) else None
    if sign is None:
        raise _side_error(event.side)
    quantity_e8, quantity_rounded = _amount(event.quantity, "quantity")
    if quantity_e8 <= 0:
        raise InvalidTradeError("quantity-not-positive", "quantity must be > 0")
    price_e8, price_rounded = _amount(event.price, "price")
    if price_e8 <= 0 and event.asset_class not in _MAY_TRADE_BELOW_ZERO:
        raise InvalidTradeError("price-not-positive", "price must be > 0")
    time_ns, has_offset = _time(event.timestamp)
    if is_plain and has_offset and not price_rounded and not quantity_rounded:
        return CheckedTrade(sign, price_e8, quantity_e8, time_ns, ONE_E8, 0, ())
    suspects = []
    if price_rounded:
        suspects.append("price-rounded")
    if quantity_rounded:
        suspects.append("quantity-rounded")
    if not has_offset:
        suspects.append("timestamp-no-offset")
    multiplier_e8, fee_e8 = ONE_E8, 0
    if not is_plain:
        multiplier_e8 = _check_rare(event, time_ns, suspects)
        fee_e8 = _sum_fees(event, event.currency or default_currency, suspects)
    return CheckedTrade(
        sign, price_e8, quantity_e8, time_ns, multiplier_e8, fee_e8, tuple(suspects)
    )


def refuse_doubtful(suspects: Iterable[str]) -> None:
    """Refuse a trade for what is doubtful about its identifiers and dates.

    Raises:
        DoubtfulTradeError: With the first such code.
    """
    for code in suspects:
        if code in _REFUSED_IF_STRICT:
            raise DoubtfulTradeError(code, f"VALIDATION_STRICT refuses doubtful trades: {code}")


def _check_name(text: object, field: str) -> str:
    if text is None or text == "":
        raise InvalidTradeError(f"{reason_name(field)}-missing", f"{field} is required")
    if not isinstance(text, str):
        raise InvalidTradeError(f"{reason_name(field)}-wrong-type", f"{field} must be text")
    if len(text) > MAX_ID_LENGTH:
        raise InvalidTradeError(
            f"{reason_name(field)}-too-long",
            f"{field} must have at most {MAX_ID_LENGTH} characters",
        )
    if not text.isprintable():
        raise _bad_character(field)
    return text


def _check_key_part(part: object, field: str) -> None:
    if type(part) is str and part in _good_key_parts:
        return
    text = _check_name(part, field)
    # `|` joins the parts of the key; blanks at the ends would make a second key that looks alike.
    if "|" in text or text[0] == " " or text[-1] == " ":
        raise _bad_character(field)
    if len(_good_key_parts) >= _GOOD_KEY_PARTS_LIMIT:
        _good_key_parts.clear()
    _good_key_parts.add(text)


def _bad_character(field: str) -> InvalidTradeError:
    return InvalidTradeError(
        f"{reason_name(field)}-bad-character", f"{field} holds a character that is not allowed"
    )


def _side_error(side: object) -> InvalidTradeError:
    problem = "unknown" if isinstance(side, str) else "missing" if side is None else "wrong-type"
    return InvalidTradeError(f"side-{problem}", "side must be BUY or SELL")


def _amount(value: object, field: str) -> tuple[int, bool]:
    if value is None:
        raise InvalidTradeError(f"{reason_name(field)}-missing", f"{field} is required")
    try:
        return parse_amount(value)
    except AmountError as exc:
        raise InvalidTradeError(
            f"{reason_name(field)}-{exc.problem}",
            f"{field} is no amount: {exc.problem.replace('-', ' ')}",
        ) from exc


def _time(value: object) -> tuple[int, bool]:
    if value is None:
        raise InvalidTradeError("timestamp-missing", "timestamp is required")
    try:
        return parse_timestamp(value)
    except TimestampError as exc:
        raise InvalidTradeError(
            f"timestamp-{exc.problem}",
            "timestamp must be RFC 3339 or an epoch number, from 2000 to 2099",
        ) from exc


def _check_rare(event: TradeEvent, time_ns: int, suspects: list[str]) -> int:
    """Check the fields that most events do not have; give the contract multiplier at 10^-8."""
    _check_texts(event)
    _check_enums(event)
    if event.version is not None and type(event.version) is not int:
        raise InvalidTradeError("version-wrong-type", "version must be a whole number")
    if event.version is not None and event.version < 1:
        raise InvalidTradeError("version-out-of-range", "version must be >= 1")
    if event.currency is not None:
        _check_currency(event.currency, "currency")
    multiplier_e8: int = ONE_E8
    if event.contract_multiplier is not None:
        multiplier_e8, was_rounded = _amount(event.contract_multiplier, "contract_multiplier")
        if was_rounded:
            suspects.append("multiplier-rounded")
        if multiplier_e8 <= 0:
            raise InvalidTradeError("multiplier-not-positive", "contract_multiplier must be > 0")
    _suspect_fx(event, suspects)
    _suspect_identifiers(event, suspects)
    _suspect_dates(event, time_ns, suspects)
    return multiplier_e8


def _check_texts(event: TradeEvent) -> None:
    for field in _TEXT_FIELDS:
        text = getattr(event, field)
        if text is not None:
            _check_text(text, field)
    for field in _UNREAD_FIELDS:
        if isinstance(text := getattr(event, field), str):
            _check_text(text, field)


def _check_text(text: object, field: str) -> None:
    if not isinstance(text, str):
        raise InvalidTradeError(f"{reason_name(field)}-wrong-type", f"{field} must be text")
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidTradeError(
            f"{reason_name(field)}-too-long",
            f"{field} must have at most {MAX_TEXT_LENGTH} characters",
        )
    if not text.isprintable():
        raise _bad_character(field)


def _check_enums(event: TradeEvent) -> None:
    if event.action is not None and event.action not in _ACTIONS:
        raise InvalidTradeError("action-unknown", "action must be NEW, AMEND or CANCEL")
    if event.asset_class is not None and event.asset_class not in _ASSET_CLASSES:
        raise InvalidTradeError("asset-class-unknown", "asset_class is not a known one")
    if event.price_type is None or event.price_type == "PER_UNIT":
        return
    if event.price_type not in _PRICE_TYPES:
        raise InvalidTradeError("price-type-unknown", "price_type is not a known one")
    # A percentage or a yield taken for a price per unit would book a wrong value.
    raise InvalidTradeError("price-type-unsupported", "only price_type PER_UNIT can be valued")


def _check_currency(code: str, field: str) -> None:
    if not (len(code) == _CURRENCY_LENGTH and code.isascii() and code.isalpha() and code.isupper()):
        raise InvalidTradeError(
            f"{reason_name(field)}-unknown", f"{field} must be a 3-letter ISO 4217 code"
        )


def _sum_fees(event: TradeEvent, currency: str, suspects: list[str]) -> int:
    total_e8 = 0
    for fee in event.fees or ():
        _check_fee_texts(fee)
        amount_e8, was_rounded = _amount(fee.amount, "fee_amount")
        if was_rounded:
            _suspect_once("fee-amount-rounded", suspects)
        if fee.currency is not None and fee.currency != currency:
            # Not in the currency of the position, and there is no rate: kept out of its total.
            _suspect_once("fee-currency-differs", suspects)
        else:
            total_e8 += amount_e8
    if abs(total_e8) >= LIMIT_E8:
        raise InvalidTradeError("fee-amount-out-of-range", "the fees add up to too much")
    return total_e8


def _check_fee_texts(fee: Fee) -> None:
    if fee.currency is not None:
        _check_text(fee.currency, "fee_currency")
        _check_currency(fee.currency, "fee_currency")
    if fee.type is not None:
        _check_text(fee.type, "fee_type")


def _suspect_once(code: str, suspects: list[str]) -> None:
    if code not in suspects:
        suspects.append(code)


def _suspect_fx(event: TradeEvent, suspects: list[str]) -> None:
    if (event.fx_rate is None) != (event.settlement_currency is None):
        suspects.append(
            "fx-rate-missing" if event.fx_rate is None else "settlement-currency-missing"
        )
    if event.fx_rate is not None:
        try:
            if parse_amount(event.fx_rate)[0] <= 0:
                suspects.append("fx-rate-not-positive")
        except AmountError as exc:
            suspects.append(f"fx-rate-{exc.problem}")


def _suspect_identifiers(event: TradeEvent, suspects: list[str]) -> None:
    for field, rules in _CHECK_DIGITS.items():
        code = getattr(event, field)
        if code is None:
            continue
        try:
            rules.validate(code)
        except ValidationError:
            _suspect_once(f"{'lei' if rules is lei else field}-check-digit", suspects)


def _suspect_dates(event: TradeEvent, time_ns: int, suspects: list[str]) -> None:
    traded, settled = day_of(event.trade_date), day_of(event.settlement_date)
    if traded is None and event.trade_date is not None:
        suspects.append("trade-date-unparseable")
    if settled is None and event.settlement_date is not None:
        suspects.append("settlement-date-unparseable")
    if settled is not None:
        traded = traded or date.fromordinal(_EPOCH_ORDINAL + time_ns // (86_400 * NS_PER_S))
        if settled < traded:
            suspects.append("settlement-before-trade")


_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()


def day_of(text: str | None) -> date | None:
    """Read a day; `None` where there is none, or none that can be read."""
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        return None
