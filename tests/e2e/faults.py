"""The fault harness's own entry point: the real consumer, killed at a named point of its work.

Run as `python tests/e2e/faults.py POINT NTH [options of app/consumer.py]`. It wraps the client
classes of `app.kafka_io`; the product itself has no test switches.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from app import consumer
from app.config import Settings
from app.kafka_io import connect
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.publisher import KafkaPublisher
from app.lifecycle import run_program
from app.ports import OutgoingRecord, RecordBatch, SendOutcome

POINTS = (
    "after-fetch",
    "before-effects",
    "half-of-effects",
    "dead-letters-only",
    "after-effects",
    "after-commit",
    "in-revoke",
    "in-assign",
)

_point, _left = "", 0


def _reached(point: str) -> None:
    """Die here, at once and without any clean-up, when the time has come."""
    global _left  # noqa: PLW0603 - a counter of this process
    if point == _point:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingSource(KafkaSource):
    """A group member that dies around fetches, commits and rebalances."""

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        batches = await super().poll(timeout_s=timeout_s)
        if batches:
            _reached("after-fetch")
        return batches

    async def commit(self, next_offsets: Mapping[int, int]) -> bool:
        is_stored = await super().commit(next_offsets)
        _reached("after-commit")
        return is_stored

    async def on_partitions_revoked(self, revoked: Any) -> None:
        if revoked:
            _reached("in-revoke")
        await super().on_partitions_revoked(revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        super().on_partitions_assigned(assigned)
        if assigned:
            _reached("in-assign")


class DyingPublisher(KafkaPublisher):
    """A publisher that dies around the effects of a checkpoint."""

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        _reached("before-effects")
        if _point == "half-of-effects" and len(records) > 1:
            await super().publish(records[: len(records) // 2])
            _reached("half-of-effects")
        if _point == "dead-letters-only":
            topic = Settings.from_env().dlq_topic
            letters = [record for record in records if record.topic == topic]
            if letters:
                await super().publish(letters)
                _reached("dead-letters-only")
        outcomes = await super().publish(records)
        _reached("after-effects")
        return outcomes


def main() -> None:
    """Put the dying classes in the place of the real ones, and run the real consumer."""
    global _point, _left
    _point, _left = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    vars(connect).update(KafkaSource=DyingSource, KafkaPublisher=DyingPublisher)
    run_program(consumer.main)


if __name__ == "__main__":
    main()
