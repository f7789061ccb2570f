"""FastStream, the framework: decorators around aiokafka, pydantic models, dependency injection.

`message` and `batch` are the consumers of its documentation: a handler that takes a pydantic model,
or a list of them (`batch=True`). At-least-once needs another policy than the default one, which
commits what has not been processed yet. `batch` has `AckPolicy.ACK`, a commit after each batch;
`message` has `AckPolicy.MANUAL` and commits every 500 records: `ACK` would commit after each.

`raw` is the fastest that its documented hooks give: a batch with a parser and a decoder that hand
the records over as they are, `apply_types=False` (no dependency injection, no pydantic), no reply,
manual commits that overlap with processing; the handler runs our own pipeline code.

All of them run without a logger (it would write a line for each message) and with fetches of the
default size. `orjson` is installed: the framework decodes with it where it is there.

A record that is no trade is refused by `message`, save those that repeat a field or are too large:
pydantic sees neither. In `batch` it spoils its whole batch. Poison is for `raw` alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import asyncio
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from itertools import groupby
from typing import Annotated, Any, Literal

from aiokafka import ConsumerRecord
from faststream import AckPolicy, ExceptionMiddleware
from faststream.kafka import KafkaBroker, KafkaMessage
from pydantic import BaseModel, Field

from app.ports import RecordBatch
from benchmarks.naive import NaivePipeline
from benchmarks.peers.aiokafka_commits import OverlappedCommits
from benchmarks.peers.contestant import Job, Stopwatch, main
from benchmarks.peers.same_pipeline import SamePipeline

_COMMIT_EVERY = 500
_VERSIONS = {name: version(name) for name in ("faststream", "aiokafka", "pydantic", "orjson")}

Amount = Annotated[Decimal, Field(gt=0, max_digits=20, decimal_places=8)]
Name = Annotated[str, Field(min_length=1)]


class Trade(BaseModel):
    """One trade, as the documentation of the framework would have it declared."""

    trade_id: Name
    symbol: Name
    side: Literal["BUY", "SELL"]
    price: Amount
    quantity: Amount
    timestamp: datetime
    book: str | None = None
    published_at: datetime | None = None


def _book(pipeline: NaivePipeline, trade: Trade) -> None:
    pipeline.book(
        f"{trade.book}|{trade.symbol}" if trade.book else trade.symbol,
        trade.quantity if trade.side == "BUY" else -trade.quantity,
        trade.price,
    )


async def _drain_message(job: Job) -> dict[str, Any]:
    pipeline = NaivePipeline()
    watch = Stopwatch()
    done = asyncio.Event()

    async def taken() -> None:
        records = pipeline.booked + pipeline.refused
        if records % _COMMIT_EVERY == 0 or records == job.count:
            await subscriber.consumer.commit()
        if records == job.count:
            watch.stop()
            done.set()

    async def refuse(_: ValueError) -> None:
        watch.first_record()
        pipeline.refused += 1
        await taken()

    broker = KafkaBroker(
        job.bootstrap, logger=None, middlewares=[ExceptionMiddleware({ValueError: refuse})]
    )
    subscriber = broker.subscriber(
        job.topic,
        group_id=job.group,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
    )

    @subscriber  # type: ignore[untyped-decorator,unused-ignore]
    async def handle(trade: Trade) -> None:
        if not pipeline.booked:
            watch.first_record()
        _book(pipeline, trade)
        await taken()

    async with broker:
        await broker.start()
        await done.wait()
    return watch.result(job.count, _VERSIONS, **pipeline.outcome())


async def _drain_batch(job: Job) -> dict[str, Any]:
    pipeline = NaivePipeline()
    watch = Stopwatch()
    done = asyncio.Event()

    async def parse(messages: Any, framework_parse: Any) -> Any:  # noqa: ANN401 - handed through
        watch.first_record()  # the handler is called when a whole batch has been through pydantic
        return await framework_parse(messages)

    broker = KafkaBroker(job.bootstrap, logger=None)
    subscriber = broker.subscriber(
        job.topic,
        batch=True,
        group_id=job.group,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.ACK,
        parser=parse,
    )

    @subscriber  # type: ignore[untyped-decorator,unused-ignore]
    async def handle(trades: list[Trade]) -> None:
        for trade in trades:
            _book(pipeline, trade)
        if pipeline.booked == job.count:
            # The framework commits the last batch too, but nobody can see when.
            await subscriber.consumer.commit()
            watch.stop()
            done.set()

    async with broker:
        await broker.start()
        await done.wait()
    return watch.result(pipeline.booked, _VERSIONS, **pipeline.outcome())


async def _drain_raw(job: Job) -> dict[str, Any]:
    pipeline = SamePipeline(job.dedupe_window)
    watch = Stopwatch()
    done = asyncio.Event()
    records = 0
    commits: OverlappedCommits | None = None

    async def parse(message: Sequence[ConsumerRecord]) -> KafkaMessage:
        return KafkaMessage(body=b"", raw_message=message, consumer=subscriber.consumer)

    async def decode(message: Any) -> Any:  # noqa: ANN401 - handed through
        return message.raw_message

    broker = KafkaBroker(job.bootstrap, logger=None, apply_types=False)
    subscriber = broker.subscriber(
        job.topic,
        batch=True,
        group_id=job.group,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        no_reply=True,
        parser=parse,
        decoder=decode,
    )

    @subscriber  # type: ignore[untyped-decorator,unused-ignore]
    async def handle(messages: Sequence[ConsumerRecord]) -> None:
        nonlocal records, commits
        watch.first_record()
        commits = commits or OverlappedCommits(subscriber.consumer, job.topic)
        for partition, run in groupby(messages, key=lambda message: message.partition):
            ours = list(run)
            batch = RecordBatch.of(partition, 1, ours, ours[-1].offset + 1)
            pipeline.process(batch)
            commits.processed(partition, batch.next_offset, len(ours))
        records += len(messages)
        commits.start_if_due()
        if records == job.count:
            await commits.finish()
            watch.stop()
            done.set()

    async with broker:
        await broker.start()
        await done.wait()
    return watch.result(records, _VERSIONS, **pipeline.outcome())


if __name__ == "__main__":
    main(
        {
            ("drain", "message"): lambda job: asyncio.run(_drain_message(job)),
            ("drain", "batch"): lambda job: asyncio.run(_drain_batch(job)),
            ("drain", "raw"): lambda job: asyncio.run(_drain_raw(job)),
        }
    )
