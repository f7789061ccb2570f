"""The back ends that one suite holds to the same promises."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.config import Settings
from app.embedded.kafka import EmbeddedKafka
from app.embedded.postgres import EmbeddedPostgres
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.publisher import KafkaPublisher
from app.memory_io import MemoryBroker, MemoryLogReader, MemoryPublisher, MemorySource
from tests.contract.backend import Backend
from tests.contract.postgres import MakeDatabase, maker_of_databases

_names = itertools.count()


@pytest.fixture(scope="session")
def broker_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory in which the real broker keeps its logs."""
    return tmp_path_factory.mktemp("contract") / "kafka"


@pytest.fixture(scope="session")
def bootstrap(broker_dir: Path) -> Iterator[str]:
    """A real Apache Kafka with a throw-away directory; started when first asked for."""
    with EmbeddedKafka(data_dir=broker_dir, port=0) as kafka:
        yield kafka.bootstrap


_REAL = pytest.mark.integration


@pytest.fixture(
    params=[
        "memory",
        pytest.param("kafka-raw", marks=_REAL),
        pytest.param("kafka-getmany", marks=_REAL),
    ]
)
def back_end(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Name of one back end, and the address of its broker if it has a real one."""
    name: str = request.param
    return name, "" if name == "memory" else request.getfixturevalue("bootstrap")


@pytest.fixture
async def backend(back_end: tuple[str, str]) -> AsyncIterator[Backend]:
    """One back end with a fresh topic of trades and one of positions, and a fresh group."""
    kind, address = back_end
    name = f"t{next(_names)}"
    made = await _kafka(name, address, is_raw=kind == "kafka-raw") if address else _memory(name)
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


async def _kafka(name: str, bootstrap: str, *, is_raw: bool) -> Backend:
    trades, positions = _topics(name)
    settings = Settings.model_validate(
        {
            "kafka_bootstrap_servers": bootstrap,
            "kafka_topic": trades,
            "positions_topic": positions,
            "kafka_group_id": name,
            "kafka_session_timeout_ms": 6_000,
            "kafka_raw_batches": is_raw,
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


@pytest.fixture(scope="session")
def new_database(open_dir: Path) -> Iterator[MakeDatabase]:
    """Give what makes a database with the ledger's tables, on a real PostgreSQL."""
    with EmbeddedPostgres(open_dir / "contract") as postgres:
        yield maker_of_databases(postgres.url)
