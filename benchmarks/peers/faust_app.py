"""Faust (faust-streaming): agents over aiokafka.

The application of its documentation: a topic with the JSON serializer and an agent that books each
event, run by a `Worker`. Offsets are committed at its defaults and once more at the end. What this
job has no use for is off: the web server and the leader topic.

A body that is no JSON is skipped before the agent sees it; so there is no poison here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import asyncio
import tempfile
from importlib.metadata import version
from typing import Any

import faust

from benchmarks.naive import NaivePipeline
from benchmarks.peers.contestant import CannotRunError, Job, Stopwatch, main

_VERSIONS = {name: version(name) for name in ("faust-streaming", "mode-streaming", "aiokafka")}
_START_TIMEOUT_S = 120.0


async def _drain(job: Job, data_dir: str) -> dict[str, Any]:
    pipeline = NaivePipeline()
    done = asyncio.Event()
    watch = Stopwatch()
    app = faust.App(
        job.group,
        broker=f"kafka://{job.bootstrap}",
        consumer_auto_offset_reset="earliest",
        datadir=data_dir,
        web_enabled=False,
        topic_disable_leader=True,
    )
    topic = app.topic(job.topic, value_serializer="json")

    @app.agent(topic)  # type: ignore[untyped-decorator,unused-ignore]
    async def book(trades: Any) -> None:  # noqa: ANN401 - a stream of dicts
        async for trade in trades:
            if not pipeline.booked:
                watch.first_record()
            pipeline.handle_trade(trade)
            if pipeline.booked + pipeline.refused == job.count:
                done.set()

    # Not a daemon: `start()` returns when it has started.
    worker = faust.Worker(
        app,
        loop=asyncio.get_running_loop(),
        loglevel="warning",
        daemon=False,
    )
    try:
        await asyncio.wait_for(worker.start(), _START_TIMEOUT_S)
        await done.wait()
        await asyncio.sleep(0)  # an event is acknowledged when its agent asks for the next one
        await app.consumer.commit()
        watch.stop()
    finally:
        await worker.stop()
    return watch.result(pipeline.booked + pipeline.refused, _VERSIONS, **pipeline.outcome())


def _run(job: Job) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as data_dir:
        try:
            return asyncio.run(_drain(job, data_dir))
        except Exception as exc:
            raise CannotRunError(f"{type(exc).__name__}: {exc}") from exc


if __name__ == "__main__":
    main({("drain", "agent"): _run})
