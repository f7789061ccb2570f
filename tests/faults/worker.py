"""The real consumer, with a point of its work at which it dies or freezes, or a planted bug.

Run as `python -m tests.faults.worker [--at POINT] [--nth N] [--signal KILL|STOP] [--bug NAME]` with
the options of `app/consumer.py`. It wraps the client classes of `app.kafka_io` and the ledger: the
product itself has no test switches.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

from app import consumer, ledger
from app.config import Settings
from app.kafka_io import connect
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.publisher import KafkaPublisher
from app.lifecycle import run_program
from app.ports import (
    BeforeCommit,
    LedgerWrite,
    OutgoingRecord,
    RecordBatch,
    SendOutcome,
    nothing_before,
)
from app.stores.migrate import Connection
from app.stores.postgres import PostgresLedger, open_ledger
from tests.faults.bugs import BUGS, plant
from tests.faults.points import LEDGER_POINTS, POINTS


class _Failpoint:
    """A signal to ourselves, the nth time that a point is reached."""

    def __init__(self) -> None:
        self.point = ""
        self.left = 0
        self.signal = signal.SIGKILL

    def reached(self, point: str) -> None:
        """Die or freeze here, without any clean-up, when the time has come."""
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.signal)


_failpoint = _Failpoint()


def _tell(event: str, **fields: object) -> None:
    """Add a line to the log, for what the product does not say itself."""
    print(json.dumps({"event": event} | fields), file=sys.stderr, flush=True)


class FailingSource(KafkaSource):
    """A group member that fails around fetches, commits and rebalances."""

    async def poll(self, *, timeout_s: float) -> list[RecordBatch]:
        batches = await super().poll(timeout_s=timeout_s)
        if batches:
            _failpoint.reached("after-fetch")
        return batches

    def pause(self, partitions: Collection[int]) -> None:
        _tell("partitions_paused", partitions=sorted(partitions))
        super().pause(partitions)

    async def commit(self, next_offsets: Mapping[int, int]) -> bool:
        _failpoint.reached("before-commit")
        is_stored = await super().commit(next_offsets)
        _failpoint.reached("after-commit")
        return is_stored

    async def on_partitions_revoked(self, revoked: Any) -> None:
        if revoked:
            _failpoint.reached("in-revoke")
        await super().on_partitions_revoked(revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        super().on_partitions_assigned(assigned)
        if assigned:
            _failpoint.reached("in-assign")


class FailingPublisher(KafkaPublisher):
    """A publisher that fails around the effects of a checkpoint."""

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        _failpoint.reached("before-effects")
        settings = Settings.from_env()
        is_letters = any(record.topic == settings.dlq_topic for record in records)
        is_positions = any(record.topic == settings.positions_topic for record in records)
        if is_letters:
            _failpoint.reached("before-letters")
        if _failpoint.point == "half-of-effects" and len(records) > 1:
            await super().publish(records[: len(records) // 2])
            _failpoint.reached("half-of-effects")
        if _failpoint.point == "dead-letters-only":
            letters = [record for record in records if record.topic == settings.dlq_topic]
            if letters:
                await super().publish(letters)
                _failpoint.reached("dead-letters-only")
        outcomes = await super().publish(records)
        _failpoint.reached("after-effects")
        if is_letters:
            _failpoint.reached("after-letters")
        if is_positions:
            _failpoint.reached("after-positions")
        return outcomes


class FailingLedger(PostgresLedger):
    """A ledger that fails around its transaction, and tells which writes were refused."""

    async def claim(self, partition: int) -> int | None:
        offset = await super().claim(partition)
        _failpoint.reached("after-claim")
        return offset

    async def write(
        self, writes: Mapping[int, LedgerWrite], before_commit: BeforeCommit = nothing_before
    ) -> dict[int, str]:
        _failpoint.reached("before-transaction")
        refused = await super().write(writes, before_commit)
        _failpoint.reached("after-transaction")
        for partition, why in refused.items():
            if len(writes) > 1 and why.startswith("booked elsewhere"):
                continue  # told already: then it has written each partition by itself
            _tell("write_refused", partition=partition, why=why)
        return refused

    async def _store(self, connection: Connection, writes: Mapping[int, LedgerWrite]) -> None:
        await super()._store(connection, writes)
        _failpoint.reached("in-transaction")


def main() -> None:
    """Put the failing classes in the place of the real ones, and run the real consumer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", choices={*POINTS, *LEDGER_POINTS}, default="")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--signal", choices=("KILL", "STOP"), default="KILL")
    parser.add_argument("--bug", choices=BUGS)
    chosen, sys.argv[1:] = parser.parse_known_args()
    _failpoint.point, _failpoint.left = chosen.at, chosen.nth
    _failpoint.signal = signal.Signals[f"SIG{chosen.signal}"]
    if chosen.bug:
        plant(chosen.bug)
    # `patch` refuses a name that is no longer there: then no fault would bite.
    patch.object(connect, "KafkaSource", FailingSource).start()
    patch.object(connect, "KafkaPublisher", FailingPublisher).start()
    patch.object(ledger, "open_ledger", partial(open_ledger, kind=FailingLedger)).start()
    run_program(consumer.main)


if __name__ == "__main__":
    main()
