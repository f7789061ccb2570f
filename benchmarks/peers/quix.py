"""Quix Streams: dataframes over librdkafka.

The application of its documentation: a topic with the JSON deserializer, a `StreamingDataFrame`,
and `update()` with a function that books the trade. Everything else has its default; offsets are
committed every 5 s and at the end. The run ends by `count`, with outputs not collected. The clock
stops when `run()` returns: its last commit and the end of its consumer are one call.

Drain `postgresql` does the same and ends in its sink for PostgreSQL, with the trade id as the
primary key and upserts, as its documentation advises; price and quantity are decimals, or they
would be text, and the event's time has another name than the column that the sink adds.

A body that is no JSON ends the application, as its documentation says; so there is no poison here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import tempfile
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs, urlsplit

from quixstreams import Application

from benchmarks.naive import NaivePipeline
from benchmarks.peers.contestant import Job, Stopwatch, main

_VERSIONS = {name: version(name) for name in ("quixstreams", "confluent-kafka")}


def _drain(job: Job, sink: Any = None) -> dict[str, Any]:  # noqa: ANN401 - installed for one variant
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
        trades = app.dataframe(topic).update(book)
        if sink is not None:
            trades.apply(_row).sink(sink)
        app.run(count=job.count, collect=False)
        watch.stop()
    return watch.result(pipeline.booked + pipeline.refused, _VERSIONS, **pipeline.outcome())


def _row(trade: dict[str, Any]) -> dict[str, Any]:
    row = {name: trade[name] for name in ("trade_id", "book", "symbol", "side")}
    row |= {name: Decimal(trade[name]) for name in ("price", "quantity")}
    return row | {"executed_at": datetime.fromisoformat(trade["timestamp"])}


def _drain_to_postgresql(job: Job) -> dict[str, Any]:
    from quixstreams.sinks.community.postgresql import PostgreSQLSink  # noqa: PLC0415 - its extra

    url = urlsplit(job.database_url)
    where = parse_qs(url.query)
    sink = PostgreSQLSink(
        host=where["host"][0],
        port=int(where["port"][0]),
        dbname=url.path.lstrip("/"),
        user=url.username or "",
        password="",
        table_name="trades",
        primary_key_columns="trade_id",
        upsert_on_primary_key=True,
    )
    return _drain(job, sink)


if __name__ == "__main__":
    main({("drain", "dataframe"): _drain, ("drain", "postgresql"): _drain_to_postgresql})
