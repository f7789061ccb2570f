"""TradeConsumer embedded in a program of your own, which looks at the positions as they change.

Needs a broker (`trade-stream broker start`) and some trades (`trade-stream produce --count 100`):

python examples/own_consumer.py
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # as in a checkout; not needed where it is installed

from app.config import Settings
from app.consumer import TradeConsumer
from app.kafka_io.connect import open_publisher, open_source
from app.kafka_io.log_reader import KafkaLogReader
from app.lifecycle import run_with_stop
from app.stores.changelog import Changelog
from app.views import PositionsView


async def run(stop: asyncio.Event) -> None:
    """Consume to the end of the topic, then show the largest positions."""
    settings = Settings.from_env()
    reader = KafkaLogReader(settings)
    async with (
        open_publisher(settings, stop, connect_timeout_s=10) as publisher,
        open_source(settings, stop, connect_timeout_s=10) as source,
    ):
        consumer = TradeConsumer(
            source=source,
            publisher=publisher,
            changelog=Changelog.of(reader, settings),
            partition_of=source.partition_of,
            settings=settings,
        )
        stats = await consumer.run(stop, until_caught_up=True)
    print(stats.to_text())
    view = PositionsView(reader, settings.positions_topic)
    await view.refresh()
    for record in sorted(view.positions, key=lambda r: -r.trade_count)[:5]:
        print(
            f"{record.book or '-':10} {record.symbol:8} {record.quantity:>10} {record.realized_pnl}"
        )


if __name__ == "__main__":
    asyncio.run(run_with_stop(run, grace_s=20))
