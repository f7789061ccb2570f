"""Topics and groups seen from outside, on a real broker with the defaults of Apache Kafka."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from app.config import Settings
from app.embedded.kafka import EmbeddedKafka
from app.embedded.loopback import pick_ports
from app.errors import TopicError, TransportError
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.groups import commit_offsets, committed_offsets
from app.kafka_io.topics import TopicAdmin, _Admin, _configs, _in_sync
from tests.contract.backend import settle
from tests.e2e.harness import admin_create

pytestmark = pytest.mark.integration

_names = itertools.count()


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker that creates whatever topic it is asked for, as Kafka does by default."""
    properties = {"auto.create.topics.enable": "true"}
    data_dir = tmp_path_factory.mktemp("defaults") / "kafka"
    with EmbeddedKafka(data_dir=data_dir, port=0, properties=properties) as kafka:
        yield kafka.bootstrap


@pytest.fixture
def settings(bootstrap: str) -> Settings:
    """Three topics that nobody has, and a group."""
    name = f"t{next(_names)}"
    return Settings.model_validate(
        {
            "kafka_bootstrap_servers": bootstrap,
            "kafka_topic": f"{name}-trades",
            "dlq_topic": f"{name}-dlq",
            "positions_topic": f"{name}-positions",
            "kafka_group_id": name,
            "kafka_partitions": 2,
        }
    )


def _create(settings: Settings, topic: str, **config: str) -> None:
    admin_create(settings.kafka_bootstrap_servers, topic, 2, replicas=1, **config)


async def test_missing_topics_are_created_as_planned_and_not_by_asking(settings: Settings) -> None:
    """A check finds them missing however often it is asked; created by us they are fit."""
    admin = TopicAdmin(settings)
    for _ in range(2):
        assert len((await admin.check()).problems) == 3
    assert len(await admin.ensure()) == 3
    found = await admin.check()
    assert (found.problems, found.warnings) == ([], [])
    assert await admin.ensure() == []


async def test_topics_with_the_defaults_of_kafka_are_used_with_warnings(settings: Settings) -> None:
    """What costs something is told with its mending; how long records are kept is not judged."""
    _create(settings, settings.kafka_topic)
    _create(settings, settings.dlq_topic, **{"retention.ms": "3600000"})
    _create(settings, settings.positions_topic, **{"cleanup.policy": "compact"})
    with capture_logs() as logged:
        assert await TopicAdmin(settings).ensure() == []
    found = await TopicAdmin(settings).check()
    assert found.problems == []
    assert [entry["warning"] for entry in logged] == found.warnings
    differing = {tuple(warning.split("=")[0].split(" has ")) for warning in found.warnings}
    assert differing == {
        (settings.kafka_topic, "message.timestamp.type"),
        (settings.dlq_topic, "max.message.bytes"),
        (settings.positions_topic, "message.timestamp.type"),
        (settings.positions_topic, "min.compaction.lag.ms"),
    }
    assert all("kafka-configs.sh --alter" in warning for warning in found.warnings)


async def test_more_than_enough_is_no_difference(settings: Settings) -> None:
    """Sizes and times are lower bounds."""
    by_broker = {"message.timestamp.type": "LogAppendTime"}
    _create(settings, settings.kafka_topic, **by_broker)
    _create(settings, settings.dlq_topic, **by_broker, **{"max.message.bytes": "9000000"})
    compacted = {"cleanup.policy": "compact", "min.compaction.lag.ms": "86400000"}
    _create(settings, settings.positions_topic, **by_broker, **compacted)
    found = await TopicAdmin(settings).check()
    assert (found.problems, found.warnings) == ([], [])


async def test_a_topic_that_loses_what_is_stored_is_refused(settings: Settings) -> None:
    """Positions that are deleted by age are no memory; the error has the line that mends it."""
    for topic in (settings.kafka_topic, settings.dlq_topic, settings.positions_topic):
        _create(settings, topic)
    with pytest.raises(TopicError, match=r"cleanup.policy=delete.*--add-config cleanup.policy=com"):
        await TopicAdmin(settings).ensure()


async def test_an_error_of_the_broker_is_told_by_its_name(settings: Settings) -> None:
    """Settings that cannot be described for another reason than a right are no settings."""
    with pytest.raises(TransportError, match="UnknownTopicOrPartitionError"):
        async with _Admin(settings) as admin:
            await _configs(admin, settings.kafka_topic)


@pytest.mark.parametrize(("replicas", "wanted"), [(1, 1), (2, 1), (3, 2), (5, 2)])
def test_one_replica_may_be_away_and_one_alone_is_not_enough(replicas: int, wanted: int) -> None:
    """With three copies two have to be in sync; more are not asked for."""
    assert _in_sync(replicas) == {"min.insync.replicas": str(wanted)}


@asynccontextmanager
async def _member(settings: Settings) -> AsyncIterator[None]:
    source = KafkaSource(settings)
    await source.start()
    try:
        await settle(source, condition=lambda: source.assignment.partitions == {0, 1})
        yield
    finally:
        await source.stop()


async def test_offsets_are_set_while_the_group_has_no_members(settings: Settings) -> None:
    """A running consumer is named as what is in the way, and only that."""
    await TopicAdmin(settings).ensure()
    await commit_offsets(settings, {0: 0})
    async with _member(settings):
        with pytest.raises(TransportError, match="Stop its consumers first") as caught:
            await commit_offsets(settings, {0: 0, 1: 0})
        assert not caught.value.retryable
    await commit_offsets(settings, {1: 0})
    assert await committed_offsets(settings) == {0: 0, 1: 0}


async def test_a_broker_that_is_away_is_no_member_of_the_group(settings: Settings) -> None:
    """The caller waits for it, as for any other call."""
    (port,) = pick_ports(1)
    away = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{port}"})
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}") as caught:
        await commit_offsets(away, {0: 0})
    assert caught.value.retryable
    assert "consumers" not in str(caught.value)
