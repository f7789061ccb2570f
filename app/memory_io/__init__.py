"""Kafka and a ledger in memory, for tests: a broker and the parts that the loops need of one.

It fits `app.ports` as `kafka_io` does, and one contract suite holds both. Nothing in it sleeps,
starts a thread or draws an unseeded random number: the same calls give the same logs.

    broker = MemoryBroker({"trade-events": 8, "dead-letter-trade-events": 8, "trade-positions": 8})
    source = MemorySource(broker, "trade-events", group="risk-team-consumer")
    publisher, reader = MemoryPublisher(broker), MemoryLogReader(broker)
    await source.start()

Faults are scripts, plain callables: `publisher.faults` decides the fate of each record,
`source.faults` and `reader.faults` that of each operation; see `Fault`.
"""

from app.memory_io.broker import MemoryBroker, MemoryRecord
from app.memory_io.faults import Fault, nth, seeded
from app.memory_io.ledger import MemoryDatabase, MemoryLedger
from app.memory_io.log_reader import MemoryLogReader
from app.memory_io.murmur2 import murmur2, partition_for
from app.memory_io.publisher import MemoryPublisher
from app.memory_io.source import MemorySource

__all__ = [
    "Fault",
    "MemoryBroker",
    "MemoryDatabase",
    "MemoryLedger",
    "MemoryLogReader",
    "MemoryPublisher",
    "MemoryRecord",
    "MemorySource",
    "murmur2",
    "nth",
    "partition_for",
    "seeded",
]
