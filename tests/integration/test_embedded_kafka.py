"""The embedded broker as it is: a real Apache Kafka, started, killed, healed and stopped."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from app.embedded.kafka import EmbeddedKafka
from app.embedded.loopback import pick_ports
from app.embedded.server_config import SaslConfig
from app.errors import EmbeddedBrokerError, TransportError
from app.kafka_io.probe import wait_until_ready

pytestmark = pytest.mark.integration

WAIT_S = 30.0
PASSWORD = "pass word, with=all]sorts"


@pytest.fixture(scope="module")
def notices() -> list[str]:
    """Everything that the broker of this module has said."""
    return []


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, notices: list[str]) -> Iterator[EmbeddedKafka]:
    """One running node; every test leaves it running."""
    data_dir = tmp_path_factory.mktemp("single") / "kafka"
    broker = EmbeddedKafka(data_dir=data_dir, port=0, notify=notices.append)
    with broker:
        yield broker
    assert not broker.status().running
    broker.purge()
    assert not data_dir.exists()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


async def create_topic(bootstrap: str, topic: str, *, replicas: int = 1) -> None:
    """Create a topic of one partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        created = await admin.create_topics([NewTopic(topic, 1, replicas)])
        assert [error[1] for error in created.topic_errors] == [0]
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, value: bytes, **security: object) -> None:
    """Publish one record, acknowledged by all replicas in sync."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, **security
    )
    try:
        await producer.start()
        await producer.send_and_wait(topic, value)
    finally:  # a producer that was refused has to be closed too
        await producer.stop()


async def read_first(bootstrap: str, topic: str, **security: object) -> bytes:
    """Read the first record of a topic."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, **security) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        record = await asyncio.wait_for(consumer.getone(), WAIT_S)
        value: bytes = record.value
        return value


async def round_trip(bootstrap: str, topic: str, *, replicas: int = 1) -> None:
    """Create a topic, and publish its own name to it."""
    await create_topic(bootstrap, topic, replicas=replicas)
    await produce(bootstrap, topic, topic.encode())
    assert await read_first(bootstrap, topic) == topic.encode()


def test_a_started_broker_serves_clients_and_says_so(kafka: EmbeddedKafka) -> None:
    """After start the broker takes and gives records, and status tells where and what it is."""
    asyncio.run(round_trip(kafka.bootstrap, "first"))
    status = kafka.status()
    assert status.running
    assert status.ready
    assert status.bootstrap == kafka.bootstrap
    assert list(status.pids) == [1]
    assert kafka.log_paths[1].is_file()


def test_a_stop_keeps_the_data_and_the_next_start_the_address(kafka: EmbeddedKafka) -> None:
    """A record is still there after a restart, under the same cluster id and address."""
    asyncio.run(round_trip(kafka.bootstrap, "kept"))
    before = kafka.status()
    kafka.stop()
    assert not kafka.status().running
    kafka.stop()
    kafka.start()
    after = kafka.status()
    assert (after.cluster_id, after.bootstrap) == (before.cluster_id, before.bootstrap)
    assert asyncio.run(read_first(kafka.bootstrap, "kept")) == b"kept"


def test_starting_a_running_broker_changes_nothing(
    kafka: EmbeddedKafka, notices: list[str]
) -> None:
    """A second start keeps the process, and says that it is there."""
    pids = kafka.status().pids
    notices.clear()
    kafka.start()
    assert kafka.status().pids == pids
    assert notices == [f"already running at {kafka.bootstrap}"]


def test_a_killed_broker_is_healed_by_the_next_start(
    kafka: EmbeddedKafka, notices: list[str]
) -> None:
    """After SIGKILL the next of two starts at once finds the stale pid file and all records."""
    asyncio.run(round_trip(kafka.bootstrap, "survivor"))
    os.kill(kafka.status().pids[1], signal.SIGKILL)
    wait_for(lambda: not kafka.status(probe=False).running)
    notices.clear()
    with ThreadPoolExecutor(2) as pool:
        for start in [pool.submit(kafka.start) for _ in range(2)]:
            start.result()
    assert sum("stale pid file" in notice for notice in notices) == 1
    assert notices.count(f"running at {kafka.bootstrap}") == 1
    assert notices.count(f"already running at {kafka.bootstrap}") == 1
    assert asyncio.run(read_first(kafka.bootstrap, "survivor")) == b"survivor"


def test_a_running_broker_is_neither_moved_nor_purged(kafka: EmbeddedKafka) -> None:
    """Another port and a purge are refused while the broker runs."""
    data_dir = kafka.status().data_dir
    with pytest.raises(EmbeddedBrokerError, match="stop the broker first"):
        EmbeddedKafka(data_dir=data_dir, port=1024).start()
    with pytest.raises(EmbeddedBrokerError, match="stop it first"):
        kafka.purge()


def test_a_broker_without_its_pid_file_keeps_its_data(kafka: EmbeddedKafka) -> None:
    """Data that a live broker works on is not started a second time."""
    pid_file = kafka.log_paths[1].with_name("pid.json")
    content = pid_file.read_bytes()
    pid_file.unlink()
    try:
        with pytest.raises(EmbeddedBrokerError, match="in use by a broker"):
            EmbeddedKafka(data_dir=kafka.status().data_dir, port=0).start()
    finally:
        pid_file.write_bytes(content)
    assert kafka.status().ready


def test_an_unready_cluster_is_a_transport_error_in_bounded_time(kafka: EmbeddedKafka) -> None:
    """The probe says which address lacks what, and does not wait beyond its time."""
    began = time.monotonic()
    with pytest.raises(TransportError, match=rf"{kafka.bootstrap} knows 1 of 3 brokers"):
        asyncio.run(wait_until_ready(kafka.bootstrap, brokers=3, timeout_s=0.5))
    assert time.monotonic() - began < 5


def test_a_starter_killed_half_way_is_healed_by_the_next_start(tmp_path: Path) -> None:
    """A start that was killed while formatting leaves nothing that the next one trips over."""
    script = (
        "import sys; from pathlib import Path; from app.embedded.kafka import EmbeddedKafka; "
        "EmbeddedKafka(data_dir=Path(sys.argv[1]), port=0).start()"
    )
    data_dir = tmp_path / "kafka"
    command = [sys.executable, "-c", script, str(data_dir)]
    with subprocess.Popen(command) as starter:
        wait_for((data_dir / "node-1" / "server.properties").exists)
        starter.kill()
    with EmbeddedKafka(data_dir=data_dir, port=0) as broker:
        assert broker.status().ready


def test_a_broker_that_dies_while_starting_shows_its_log(tmp_path: Path) -> None:
    """When Java ends at once, the error quotes the end of the log, and nothing is left."""
    broker = EmbeddedKafka(data_dir=tmp_path / "kafka", port=0, heap_mb=1)
    with pytest.raises(EmbeddedBrokerError, match=r"(?s)node 1 has died.*heap"):
        broker.start()
    assert not broker.status().running


@pytest.mark.timeout(120)
def test_three_nodes_survive_the_loss_of_one(tmp_path: Path) -> None:
    """Three nodes hold a topic three times, go on without one of them, and take it back."""
    with EmbeddedKafka(data_dir=tmp_path / "kafka", port=0, nodes=3) as cluster:
        asyncio.run(round_trip(cluster.bootstrap, "before", replicas=3))
        killed = cluster.status().pids[3]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: 3 not in cluster.status(probe=False).pids)
        asyncio.run(produce(cluster.bootstrap, "before", b"without one"))
        assert not cluster.status().ready
        cluster.start()
        status = cluster.status()
        assert status.ready
        assert status.pids[3] != killed


async def ports_told(bootstrap: str) -> set[int]:
    """Ask a broker at this address, and no other, where clients are to go."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        return {node.port for node in client.cluster.brokers()}
    finally:
        await client.close()


def test_clients_are_sent_to_the_advertised_port(tmp_path: Path) -> None:
    """What a broker says of itself is the relay's port; its direct address needs no relay."""
    (relay,) = pick_ports(1)
    with EmbeddedKafka(data_dir=tmp_path / "kafka", port=0, advertised_ports=[relay]) as broker:
        asyncio.run(round_trip(broker.direct_bootstrap, "direct"))
        assert asyncio.run(ports_told(broker.bootstrap)) == {relay}
    with pytest.raises(EmbeddedBrokerError, match="3 advertised ports"):
        EmbeddedKafka(data_dir=tmp_path, nodes=3, advertised_ports=[relay])


@pytest.fixture
def authority() -> trustme.CA:
    """A certificate authority of our own."""
    return trustme.CA()


@pytest.fixture
def sasl(tmp_path: Path, authority: trustme.CA) -> SaslConfig:
    """One user, and a certificate for this machine with its key in the form Kafka reads."""
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    key_path, chain_path = tmp_path / "key.pem", tmp_path / "chain.pem"
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    chain_path.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    return SaslConfig(
        username="desk",
        password=PASSWORD,
        certificate_key=key_path,
        certificate_chain=chain_path,
    )


def test_the_secure_listener_admits_by_password_only(
    tmp_path: Path, sasl: SaslConfig, authority: trustme.CA
) -> None:
    """A client with verified TLS and the password is served; with another password it is not."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    assert context.check_hostname
    security: dict[str, object] = {
        "security_protocol": "SASL_SSL",
        "ssl_context": context,
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": sasl.username,
        "sasl_plain_password": PASSWORD,
    }
    with EmbeddedKafka(data_dir=tmp_path / "kafka", port=0, sasl=sasl) as broker:
        secure = broker.secure_bootstrap
        assert secure != broker.bootstrap
        asyncio.run(create_topic(broker.bootstrap, "secured"))
        asyncio.run(produce(secure, "secured", b"sealed", **security))
        assert asyncio.run(read_first(secure, "secured", **security)) == b"sealed"
        security["sasl_plain_password"] = "guessed"
        with pytest.raises(KafkaError):
            asyncio.run(produce(secure, "secured", b"forged", **security))
