"""Positions and PnL in a program of your own: no Kafka, no event loop.

python examples/own_processor.py
"""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # as in a checkout; not needed where it is installed

from app.errors import InvalidTradeError
from app.models import Fee, TradeEvent
from app.money import to_decimal
from app.services import TradeProcessor

FILLS = [("BUY", "100", "10", "1.00"), ("SELL", "150", "12", "1.50"), ("BUY", "80", "11", "0.80")]


def main() -> None:
    """Book three fills that go through zero twice, and one that is refused."""
    processor = TradeProcessor()
    for number, (side, quantity, price, fee) in enumerate(FILLS, 1):
        result = processor.process(
            TradeEvent(
                trade_id=f"T-{number}",
                symbol="AAPL",
                side=side,
                price=price,
                quantity=quantity,
                timestamp="2026-03-02T14:30:00Z",
                fees=[Fee(amount=fee)],
            )
        )
        print(
            f"{side:4} {quantity:>3} @ {price}: position {result['position_quantity']},"
            f" average {result['average_price']}, realised {result['realized_pnl']}"
        )
    (position,) = processor.positions.values()
    print(f"net realised {to_decimal(position.realized_e24, 24) - to_decimal(position.fees_e8)}")
    try:
        processor.process(
            TradeEvent(trade_id="T-4", symbol="AAPL", side="BUY", price=0, quantity=1)
        )
    except InvalidTradeError as refused:
        print(f"refused: {refused.reason}: {refused}")


if __name__ == "__main__":
    main()
