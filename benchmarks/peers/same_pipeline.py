"""Our own pipeline behind a peer's client, so that the clients alone are compared."""

from collections.abc import Iterator, Sequence

from app.models import Fate
from app.money import format_scaled
from app.ports import RecordBatch
from app.services import TradeProcessor
from benchmarks.peers.contestant import position_lines, positions_digest


class SamePipeline:
    """A `TradeProcessor` for each partition, and the counts of what they did.

    Args:
        dedupe_window: Offsets for which a trade that was sent twice is recognised, as for ours.
    """

    def __init__(self, dedupe_window: int) -> None:
        self._window = dedupe_window
        self._processors: dict[int, TradeProcessor] = {}
        self.booked = 0
        self.refused = 0

    def process(self, batch: RecordBatch) -> None:
        """Process consecutive records of one partition."""
        processor = self._processors.get(batch.partition)
        if processor is None:
            processor = TradeProcessor(dedupe_window=self._window)
            self._processors[batch.partition] = processor
        result = processor.process_batch(batch)
        self.booked += result.fates[Fate.BOOKED]
        self.refused += len(result.refusals)

    def outcome(self) -> dict[str, object]:
        """Give the part of the result that only a pipeline has."""
        return {
            "booked": self.booked,
            "refused": self.refused,
            "positions": positions_digest(self._rows()),
        }

    def lines(self) -> list[str]:
        """Give the positions as the digest has them."""
        return position_lines(self._rows())

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for processor in self._processors.values():
            for position in processor.positions.values():
                yield (
                    position.key,
                    format_scaled(position.quantity_e8),
                    format_scaled(position.open_cost_e24, 24),
                    format_scaled(position.realized_e24, 24),
                )


def touch(values: Sequence[bytes | None]) -> int:
    """Look at the bytes of each value, as a consumer without a pipeline does."""
    return sum(value[-1] for value in values if value)
