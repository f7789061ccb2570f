"""Quix Streams: dataframes over librdkafka.

The application of its documentation: a topic with the JSON deserializer, a `StreamingDataFrame`,
and `update()` with a function that books the trade. Everything else has its default; offsets are
committed every 5 s and at the end. The run ends by `count`, with outputs not collected. The clock
stops when `run()` returns: its last commit and the end of its consumer are one call.

A body that is no JSON ends the application, as its documentation says; so there is no poison here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import tempfile
from importlib.metadata import version
from typing import Any

from quixstreams import Application

from benchmarks.naive import NaivePipeline
from benchmarks.peers.contestant import Job, Stopwatch, main

_VERSIONS = {name: version(name) for name in ("quixstreams", "confluent-kafka")}


def _drain(job: Job) -> dict[str, Any]:
    pipeline = NaivePipeline()
    with tempfile.TemporaryDirectory() as state_dir:
        watch = Stopwatch()
        app = Application(
            broker_address=job.bootstrap,
            consumer_group=job.group,
            auto_offset_reset="earliest",
            state_dir=state_dir,
            loglevel="WARNING",
        )

        def book(trade: dict[str, Any]) -> None:
            if not pipeline.booked:
                watch.first_record()
            pipeline.handle_trade(trade)

        topic = app.topic(job.topic, value_deserializer="json")
        app.dataframe(topic).update(book)
        app.run(count=job.count, collect=False)
        watch.stop()
    return watch.result(pipeline.booked + pipeline.refused, _VERSIONS, **pipeline.outcome())


if __name__ == "__main__":
    main({("drain", "dataframe"): _drain})
