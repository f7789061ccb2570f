"""aiokafka, the client that we are built on, without anything of ours around it.

Drain `async-for` is the consumer of its documentation: `async for`, one record at a time, and a
commit every 500 records (its examples commit after each one, which no one does at a rate).
Drain and consume `getmany` take whole batches, as its documentation advises for throughput; a
commit is under way while the next batches are processed, at most one at a time, every 50 ms or
5,000 records. Fetches are of the default size: larger ones were no faster. `check_crcs` is left on,
as it is by default.

Produce `send` keeps the futures of `send()`, as documented, with acks=all, idempotence, 5 ms
linger, batches of 256 KiB and zstd; it waits for the oldest of them while later ones are sent.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import asyncio
from importlib.metadata import version
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from app.ports import RecordBatch
from benchmarks.naive import NaivePipeline
from benchmarks.peers.aiokafka_commits import OverlappedCommits
from benchmarks.peers.contestant import Job, Stopwatch, load_input, main
from benchmarks.peers.same_pipeline import SamePipeline, touch

_COMMIT_EVERY = 500
_SEND_CHUNK = 2_000
_CHUNKS_IN_FLIGHT = 4
_VERSIONS = {name: version(name) for name in ("aiokafka", "cramjam")}


def _consumer(job: Job) -> Any:  # noqa: ANN401 - aiokafka is untyped
    return AIOKafkaConsumer(
        job.topic,
        bootstrap_servers=job.bootstrap,
        group_id=job.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )


async def _drain_async_for(job: Job) -> dict[str, Any]:
    pipeline = NaivePipeline()
    watch = Stopwatch()
    records = 0
    async with _consumer(job) as consumer:
        async for message in consumer:
            if not records:
                watch.first_record()
            pipeline.handle(message.value)
            records += 1
            if records % _COMMIT_EVERY == 0:
                await consumer.commit()
            if records == job.count:
                break
        await consumer.commit()
        watch.stop()
    return watch.result(records, _VERSIONS, **pipeline.outcome())


async def _getmany(job: Job, pipeline: SamePipeline | None) -> dict[str, Any]:
    watch = Stopwatch()
    records = 0
    async with _consumer(job) as consumer:
        commits = OverlappedCommits(consumer, job.topic)
        while records < job.count:
            polled = await consumer.getmany(timeout_ms=100)
            if polled:
                watch.first_record()
            for partition, messages in polled.items():
                if pipeline is None:
                    touch([message.value for message in messages])
                else:
                    pipeline.process(
                        RecordBatch.of(partition.partition, 1, messages, messages[-1].offset + 1)
                    )
                records += len(messages)
                commits.processed(partition.partition, messages[-1].offset + 1, len(messages))
            commits.start_if_due()
        await commits.finish()
        watch.stop()
    return watch.result(records, _VERSIONS, **(pipeline.outcome() if pipeline else {}))


async def _produce_send(job: Job) -> dict[str, Any]:
    pairs = load_input(job.input, job.count, msgspec.msgpack.decode)
    watch = Stopwatch()
    acknowledged = 0
    in_flight: list[list[asyncio.Future[Any]]] = []
    async with AIOKafkaProducer(
        bootstrap_servers=job.bootstrap,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=256 * 1024,
        compression_type="zstd",
    ) as producer:
        watch.first_record()
        for start in range(0, len(pairs), _SEND_CHUNK):
            if len(in_flight) == _CHUNKS_IN_FLIGHT:
                acknowledged += await _acknowledged(in_flight.pop(0))
            chunk = pairs[start : start + _SEND_CHUNK]
            in_flight.append([await producer.send(job.topic, v, key=k) for k, v in chunk])
        for futures in in_flight:
            acknowledged += await _acknowledged(futures)
        watch.stop()
    return watch.result(acknowledged, _VERSIONS)


async def _acknowledged(futures: list[asyncio.Future[Any]]) -> int:
    for future in futures:  # most are done: cheaper than gathering them
        await future
    return len(futures)


if __name__ == "__main__":
    main(
        {
            ("drain", "async-for"): lambda job: asyncio.run(_drain_async_for(job)),
            ("drain", "getmany"): lambda job: asyncio.run(
                _getmany(job, SamePipeline(job.dedupe_window))
            ),
            ("consume", "getmany"): lambda job: asyncio.run(_getmany(job, None)),
            ("produce", "send"): lambda job: asyncio.run(_produce_send(job)),
        }
    )
