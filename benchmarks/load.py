"""Offers trades at a rate: `python -m benchmarks.load JOB`, a process of its own.

Every trade has a time at which it is due, whatever became of those before it. It carries that time
in its stamps, and what is measured later starts at it: a load generator that falls behind does not
make anybody look better.
"""

import asyncio
import gc
import json
import resource
import sys
import time
from array import array
from pathlib import Path
from typing import Any, Final

from app.kafka_io.publisher import KafkaPublisher
from app.ports import OutgoingRecord, SendState
from app.utils import configure_logging
from benchmarks.backlog import settings_of
from benchmarks.workload import Stamps, Workload

TICK_S: Final = 0.005
LEAD_NS: Final = 300_000_000
"""From connected to the first trade."""
_CHUNK: Final = 2_000
_CHUNKS_IN_FLIGHT: Final = 32
_SECOND_NS: Final = 1_000_000_000


class Load:
    """Makes the trades that are due, and notes where each was stored."""

    def __init__(self, job: dict[str, Any], publisher: KafkaPublisher) -> None:
        self._topic = job["topic"]
        self._rate: int = job["rate"]
        self._publisher = publisher
        self._pool = Workload().pool()
        self._stamps = Stamps()
        self._count: int = self._rate * job["seconds"]
        self._in_flight: set[asyncio.Task[None]] = set()
        self._is_noting = "output" in job
        noted = self._count if self._is_noting else 0
        self.partitions = array("h", bytes(2 * noted))
        self.offsets = array("q", bytes(8 * noted))
        self.start_ns = time.monotonic_ns() + LEAD_NS
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self.largest_delay_ns = 0

    def due_ns(self, number: int) -> int:
        """Give the time, on the monotonic clock, at which a trade is due."""
        return self.start_ns + number * _SECOND_NS // self._rate

    async def offer(self) -> None:
        """Publish every trade when it is due, or as soon after that as can be."""
        made = 0
        await asyncio.sleep((self.start_ns - time.monotonic_ns()) / _SECOND_NS)
        while made < self._count:
            now_ns = time.monotonic_ns()
            due = 1 + (now_ns - self.start_ns) * self._rate // _SECOND_NS
            until = min(due, made + _CHUNK, self._count)
            if until > made:
                self.largest_delay_ns = max(self.largest_delay_ns, now_ns - self.due_ns(made))
                sending = asyncio.ensure_future(self._send(made, until))
                self._in_flight.add(sending)
                sending.add_done_callback(self._in_flight.discard)
                made = until
            await asyncio.sleep(0 if due > made else TICK_S)
            if len(self._in_flight) >= _CHUNKS_IN_FLIGHT:
                await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*self._in_flight)

    async def _send(self, first: int, until: int) -> None:
        records = []
        for number in range(first, until):
            trade = self._pool[number % len(self._pool)]
            stamp = self._stamps.at(self._epoch_ns + self.due_ns(number))
            value = trade.template % (number, stamp, stamp)
            records.append(OutgoingRecord(self._topic, trade.key, value))
        for number, outcome in enumerate(await self._publisher.publish(records), first):
            if outcome.state is not SendState.OK:
                raise RuntimeError(f"a trade was not stored: {outcome.error}")
            if self._is_noting:
                self.partitions[number] = outcome.partition
                self.offsets[number] = outcome.offset


async def offer(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job; where each trade was stored goes to a file at the end, if there is to be one."""
    async with KafkaPublisher(settings_of(job["bootstrap"], job["topic"])) as publisher:
        await publisher.partition_count(job["topic"])
        load = Load(job, publisher)
        gc.freeze()  # the pool stays: to look through it again and again would cost milliseconds
        cpu_s = time.process_time()
        await load.offer()
        cpu_s = time.process_time() - cpu_s
    if "output" in job:
        Path(job["output"]).write_bytes(load.partitions.tobytes() + load.offsets.tobytes())  # noqa: ASYNC240
    return {
        "records": job["rate"] * job["seconds"],
        "start_ns": load.start_ns,
        "cpu_s": cpu_s,
        "largest_delay_ms": load.largest_delay_ns / 1e6,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    configure_logging("WARNING")
    print(json.dumps(asyncio.run(offer(json.loads(sys.argv[1])))))
