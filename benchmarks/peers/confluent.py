"""confluent-kafka: librdkafka, a client in C with threads of its own.

Drain `poll` is the loop of its documentation: `poll()`, one record at a time, and a synchronous
commit every 500 records. Drain and consume `consume` take 1,000 records a call (500 and 5,000 were
no faster) and commit without waiting, every 50 ms or 5,000 records; only the last commit waits.

`fetch.queue.backoff.ms` is 5: after its local queue was full librdkafka waits so long before it
fetches again, by default a second, in which a fast consumer stands still. The local queue of
100,000 records and 64 MiB is the default. `check.crcs` is off, as it is by default: unlike ours.

Produce: acks=all, idempotence, zstd, 5 ms linger, batches of 256 KiB, and the partitioner of the
Java client. The queue holds 500,000 records, above its default of 100,000, so that it is rarely
full. Only failures are reported per record (`delivery.report.only.error`): a call into Python for
every acknowledged record would cost more than the rest. `produce` calls `produce()` for each
record, `produce_batch` the call of that name for 1,000.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, cast, overload

import confluent_kafka
import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from app.ports import Headers, Record, RecordBatch
from benchmarks.naive import NaivePipeline
from benchmarks.peers.contestant import Job, Stopwatch, load_input, main
from benchmarks.peers.same_pipeline import SamePipeline, touch

_COMMIT_EVERY = 500
_ASYNC_COMMIT_EVERY = 5_000
_ASYNC_COMMIT_S = 0.05
_CONSUME_AT_ONCE = 1_000
_PRODUCE_AT_ONCE = 1_000
_QUEUE_RECORDS = 500_000
_FLUSH_TIMEOUT_S = 60.0
_VERSIONS = {
    "confluent-kafka": version("confluent-kafka"),
    "librdkafka": str(confluent_kafka.libversion()[0]),
}


def _consumer(job: Job) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": job.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 5,
        }
    )
    if not job.go:
        consumer.subscribe([job.topic])
        return consumer
    share = job.partitions // job.members

    def hold(_: Consumer, assigned: list[TopicPartition]) -> None:
        consumer.assign(assigned)
        consumer.pause(assigned)
        if len(assigned) == share:
            Path(job.ready).write_text(str(os.getpid()), encoding="ascii")

    consumer.subscribe([job.topic], on_assign=hold)
    while not Path(job.go).exists():
        consumer.consume(1, 0.01)  # serves the group; what is paused gives nothing
    consumer.resume(consumer.assignment())
    return consumer


def _is_group_done(consumer: Consumer, job: Job) -> bool:
    everything = [TopicPartition(job.topic, number) for number in range(job.partitions)]
    committed = consumer.committed(everything, timeout=10.0)
    return sum(max(0, place.offset) for place in committed) >= job.count


def _drain_poll(job: Job) -> dict[str, Any]:
    pipeline = NaivePipeline()
    watch = Stopwatch()
    consumer = _consumer(job)
    records = 0
    while records < job.count:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        if not records:
            watch.first_record()
        pipeline.handle(message.value())
        records += 1
        if records % _COMMIT_EVERY == 0:
            consumer.commit(asynchronous=False)
    if records % _COMMIT_EVERY:
        consumer.commit(asynchronous=False)
    watch.stop()
    consumer.close()
    return watch.result(records, _VERSIONS, **pipeline.outcome())


class Fetched(Protocol):
    """A message that holds a record; the stubs have every value optional, for those that do not."""

    def partition(self) -> int:
        """Partition it stands in."""

    def offset(self) -> int:
        """Offset in it."""

    def timestamp(self) -> tuple[int, int]:
        """Kind of its time, and the time in ms."""

    def key(self) -> bytes | None:
        """Key bytes."""

    def value(self) -> bytes | None:
        """Value bytes; `None` is a tombstone."""

    def headers(self) -> Headers | None:
        """Headers in their order."""

    def error(self) -> KafkaError | None:
        """What went wrong in its place; it is no record then."""


class LazyRecord:
    """A message as a record of ours; made only for what is looked at more closely."""

    def __init__(self, message: Fetched) -> None:
        self._message = message

    @property
    def offset(self) -> int:
        """Offset in its partition."""
        return self._message.offset()

    @property
    def timestamp(self) -> int:
        """Append or create time in ms."""
        return self._message.timestamp()[1]

    @property
    def key(self) -> bytes | None:
        """Key bytes."""
        return self._message.key()

    @property
    def value(self) -> bytes | None:
        """Value bytes."""
        return self._message.value()

    @property
    def headers(self) -> Headers:
        """Headers in their order."""
        return self._message.headers() or ()


class LazyRecords(Sequence[Record]):
    """Messages as records of ours."""

    def __init__(self, messages: list[Fetched]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return LazyRecords(self._messages[index])
        return LazyRecord(self._messages[index])


def _consume(  # noqa: C901 - one loop, as it is written with this client
    job: Job, pipeline: SamePipeline | None
) -> dict[str, Any]:
    watch = Stopwatch()
    consumer = _consumer(job)
    due: dict[int, int] = {}
    records = committed = 0
    committed_s = monotonic()
    while records < job.count:
        most = min(_CONSUME_AT_ONCE, job.count - records)
        messages = cast("list[Fetched]", consumer.consume(most, 0.01 if job.until_end else 0.1))
        if not messages:
            if due:
                consumer.commit(offsets=_offsets(job.topic, due), asynchronous=False)
                due, committed = {}, records
                watch.stop()
            if job.until_end and _is_group_done(consumer, job):
                break
            continue
        if not records:
            watch.first_record()
        by_partition: dict[int, list[Fetched]] = defaultdict(list)
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            by_partition[message.partition()].append(message)
        for partition, ours in by_partition.items():
            values = [message.value() for message in ours]
            if pipeline is None:
                touch(values)
                due[partition] = ours[-1].offset() + 1
                continue
            offsets = [message.offset() for message in ours]
            due[partition] = offsets[-1] + 1
            pipeline.process(
                RecordBatch(partition, 1, LazyRecords(ours), values, offsets, {}, due[partition])
            )
        records += len(messages)
        if (
            records - committed >= _ASYNC_COMMIT_EVERY
            or monotonic() - committed_s > _ASYNC_COMMIT_S
        ) and records < job.count:
            consumer.commit(offsets=_offsets(job.topic, due), asynchronous=True)
            due, committed, committed_s = {}, records, monotonic()
    if due:
        consumer.commit(offsets=_offsets(job.topic, due), asynchronous=False)
        watch.stop()
    consumer.close()
    if pipeline and job.positions_file:
        Path(job.positions_file).write_text("".join(pipeline.lines()), encoding="utf-8")
    return watch.result(records, _VERSIONS, **(pipeline.outcome() if pipeline else {}))


def _offsets(topic: str, due: dict[int, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition, offset) for partition, offset in due.items()]


def _produce_each(producer: Producer, topic: str, pairs: list[tuple[bytes, bytes]]) -> None:
    for start in range(0, len(pairs), _PRODUCE_AT_ONCE):
        for key, value in pairs[start : start + _PRODUCE_AT_ONCE]:
            while True:
                try:
                    producer.produce(topic, value, key)
                    break
                except BufferError:  # its queue is full: wait until some of it is acknowledged
                    producer.poll(0.002)
        producer.poll(0)


def _produce_batches(producer: Producer, topic: str, pairs: list[tuple[bytes, bytes]]) -> None:
    for start in range(0, len(pairs), _PRODUCE_AT_ONCE):
        batch: list[dict[str, Any]] = [
            {"key": key, "value": value} for key, value in pairs[start : start + _PRODUCE_AT_ONCE]
        ]
        # A batch that fits only in part would have to be taken up again: wait for room instead.
        while len(producer) + len(batch) > _QUEUE_RECORDS:
            producer.poll(0.002)
        if producer.produce_batch(topic, batch) != len(batch):
            raise BufferError("the queue of the producer was full")
        producer.poll(0)


_Produce = Callable[[Producer, str, list[tuple[bytes, bytes]]], None]


def _produce(job: Job, produce: _Produce) -> dict[str, Any]:
    pairs = load_input(job.input, job.count, msgspec.msgpack.decode)
    failures: list[str] = []
    watch = Stopwatch()
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "zstd",
            "linger.ms": 5,
            "batch.size": 256 * 1024,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": _QUEUE_RECORDS,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failures.append(str(error)),
        }
    )
    producer.list_topics(job.topic)  # connected first, as other clients are by their `start()`
    watch.first_record()
    produce(producer, job.topic, pairs)
    left = producer.flush(_FLUSH_TIMEOUT_S)
    watch.stop()
    return watch.result(job.count - left - len(failures), _VERSIONS)


if __name__ == "__main__":
    main(
        {
            ("drain", "poll"): _drain_poll,
            ("drain", "consume"): lambda job: _consume(job, SamePipeline(job.dedupe_window)),
            ("consume", "consume"): lambda job: _consume(job, None),
            ("produce", "produce"): lambda job: _produce(job, _produce_each),
            ("produce", "produce_batch"): lambda job: _produce(job, _produce_batches),
        }
    )
