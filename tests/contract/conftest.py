"""The back ends that one suite holds to the same promises."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.config import Settings
from app.embedded.kafka import EmbeddedKafka
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.publisher import KafkaPublisher
from app.memory_io import MemoryBroker, MemoryLogReader, MemoryPublisher, MemorySource
from tests.contract.backend import Backend

_names = itertools.count()


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Apache Kafka with a throw-away directory; started when first asked for."""
    with EmbeddedKafka(data_dir=tmp_path_factory.mktemp("contract") / "kafka", port=0) as kafka:
        yield kafka.bootstrap


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.integration)])
def brokers(request: pytest.FixtureRequest) -> str | None:
    """Address of a real broker, or `None` for the one in memory."""
    if request.param == "memory":
        return None
    address: str = request.getfixturevalue("bootstrap")
    return address


@pytest.fixture
async def backend(brokers: str | None) -> AsyncIterator[Backend]:
    """One back end with a fresh topic of trades and one of positions, and a fresh group."""
    name = f"t{next(_names)}"
    made = _memory(name) if brokers is None else await _kafka(name, brokers)
    try:
        yield made
    finally:
        await made.close()


def _topics(name: str) -> tuple[str, str]:
    return f"{name}-trades", f"{name}-positions"


def _memory(name: str) -> Backend:
    trades, positions = _topics(name)
    broker = MemoryBroker({trades: 2, positions: 2})
    return Backend(
        topic=trades,
        positions_topic=positions,
        make_source=lambda: MemorySource(broker, trades, name),
        publisher=MemoryPublisher(broker),
        reader=MemoryLogReader(broker),
    )


async def _kafka(name: str, bootstrap: str) -> Backend:
    trades, positions = _topics(name)
    settings = Settings.model_validate(
        {
            "kafka_bootstrap_servers": bootstrap,
            "kafka_topic": trades,
            "positions_topic": positions,
            "kafka_group_id": name,
            "kafka_session_timeout_ms": 6_000,
        }
    )
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 2, 1) for topic in (trades, positions)])
    finally:
        await admin.close()
    publisher = KafkaPublisher(settings)
    await publisher.start()
    return Backend(
        topic=trades,
        positions_topic=positions,
        make_source=lambda: KafkaSource(settings),
        publisher=publisher,
        reader=KafkaLogReader(settings),
    )
