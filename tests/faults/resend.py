"""A careless sender: trades that stand in the topic come again, here and there, and changed."""

import json
import time
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, Producer

from tests.faults.journal import JournalWriter, State, digest
from tests.faults.oracle import partition_of
from tests.faults.reading import QUIET, LogRecord
from tests.faults.run import Run


def send_again(run: Run, count: int) -> None:
    """Send booked trades again: under keys of other partitions, and with another quantity."""
    good = [r for r in run.world.read(run.world.events) if b"GOOD" in (r.value or b"")]
    chosen = run.draw.sample(good, count)
    records = [
        (_other_key(record, run.world.partitions), record.value or b"")
        if index % 2
        else (record.key or b"", _other_content(record))
        for index, record in enumerate(chosen)
    ]
    run.note(f"send {len(records)} trades again, half of them with another content")
    producer = Producer({"bootstrap.servers": run.world.direct, "acks": "all", **QUIET})
    with JournalWriter(run.folder, "again") as journal:
        entries = [
            (key.decode(), number, "again", digest(value))
            for number, (key, value) in enumerate(records, 1)
        ]
        numbers = journal.sending(entries, time.monotonic_ns())

        def delivered(number: int, error: KafkaError | None, message: Any) -> None:
            state = State.UNKNOWN if error else State.OK
            outcome = (number, state, message.partition(), message.offset())
            journal.known([outcome], time.monotonic_ns())

        for number, (key, value) in zip(numbers, records, strict=True):
            home = partition_of(key, run.world.partitions)
            noted = partial(delivered, number)
            producer.produce(run.world.events, value, key, partition=home, on_delivery=noted)
        assert producer.flush(30) == 0, "not everything was sent"


def _other_key(record: LogRecord, partitions: int) -> bytes:
    """Give a key that belongs to another partition."""
    return next(
        key
        for key in (f"other-{number}".encode() for number in range(1_000))
        if partition_of(key, partitions) != record.partition
    )


def _other_content(record: LogRecord) -> bytes:
    event = json.loads(record.value or b"")
    return json.dumps(event | {"quantity": f"1{event['quantity']}"}).encode()
