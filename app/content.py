"""What a trade event says, as 16 bytes: equal for equal content, whatever its body looks like.

The hash is stored beside a trade for as long as the trade is, so what goes into it never changes:
a field joins it only where it is set to something else than its default. One that is added to the
table later leaves the hash of every event without it as it was.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import msgspec

from app.models import Action, Fee, TradeEvent
from app.money import ONE_E8, AmountError, parse_amount
from app.timestamps import parse_timestamp

SIZE_BYTES: Final = 16
_PURPOSE: Final = b"trade content 1"

_encode = msgspec.json.Encoder().encode  # tells every list of texts from every other


def content_hash(event: TradeEvent, *, default_currency: str) -> bytes:
    """Hash the action and the economic fields of an event that passed the checks.

    Economic is what decides who owes what to whom, for what and when: book, symbol, side, price,
    quantity and execution time; price type, contract multiplier, currency and fees; the identity of
    the instrument (asset class, ISIN, FIGI) and of the parties (account, the three LEIs, netting
    set, cleared); settlement currency, rate and the two dates.

    Not economic are the names of the trade and of the message (trade id, version, event ids, order
    and execution id, source and its sequence, schema version), the reason and moment of a change,
    and what only describes how it was done (venue, short sale, capacity, liquidity, trader,
    strategy). Publish and processing times are ours and never count.

    Amounts are compared as amounts (`10`, `10.0` and `"10.00"` are one), times as instants, a field
    that is not sent as its default. The order of fees says nothing, and a fee of 0 is none.

    Args:
        event: As `check_event` has passed it.
        default_currency: Currency of a trade that names none.

    Returns:
        16 bytes.

    Raises:
        AmountError: (a `ValueError`) an amount is none; not after the checks.
        TimestampError: (a `ValueError`) the execution time is none; not after the checks.
    """
    currency = event.currency or default_currency
    said: list[Any] = [
        event.action or Action.NEW,
        event.book or "",
        event.symbol,
        event.side,
        str(parse_amount(event.price)[0]),  # as text: more digits than a JSON reader's integers
        str(parse_amount(event.quantity)[0]),
        str(parse_timestamp(event.timestamp)[0]),
        currency,
    ]
    if event.fees:
        fees = _fees(event.fees, currency)
        if fees:
            said.append(("fees", fees))
    for name, default, normal in _RARE:
        value = getattr(event, name)
        if value is not None:
            value = normal(value)
            if value != default:
                said.append((name, value))
    return blake2b(_encode(said), digest_size=SIZE_BYTES, person=_PURPOSE).digest()


def _fees(fees: list[Fee], currency: str) -> list[tuple[str, str, str]]:
    amounts = [
        (fee.type or "", fee.currency or currency, parse_amount(fee.amount)[0]) for fee in fees
    ]
    return [(kind, paid_in, str(amount)) for kind, paid_in, amount in sorted(amounts) if amount]


def _amount(value: object) -> str:
    """Give an amount as text; one that is none is told apart by what was sent."""
    try:
        return str(parse_amount(value)[0])
    except AmountError:  # a rate that cannot be read makes a trade suspect, and does not refuse it
        return f"not an amount: {value}"


def _same(value: object) -> object:
    return value


_RARE: Final[tuple[tuple[str, object, Callable[[Any], object]], ...]] = (
    ("account", "", _same),
    ("asset_class", "EQUITY", _same),
    ("ccp_lei", "", _same),
    ("cleared", False, _same),
    ("contract_multiplier", str(ONE_E8), _amount),
    ("counterparty_lei", "", _same),
    ("figi", "", _same),
    ("fx_rate", "", _amount),
    ("isin", "", _same),
    ("netting_set", "", _same),
    ("our_lei", "", _same),
    ("price_type", "PER_UNIT", _same),
    ("settlement_currency", "", _same),
    ("settlement_date", "", _same),
    ("trade_date", "", _same),
)
