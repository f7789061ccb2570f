"""The whole path over SASL_SSL with SCRAM, and with no more rights than are documented."""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import trustme
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, and not in __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from app.embedded.kafka import EmbeddedKafka
from app.embedded.server_config import SaslConfig
from tests.e2e.harness import World, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PASSWORD = "correct horse"
AUTHORIZED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # Whoever comes by the plain listener, such as this test, and the user of the first start.
    "super.users": "User:ANONYMOUS;User:trader",
}


@pytest.fixture
def secure_world(tmp_path: Path) -> Iterator[World]:
    """A world whose processes reach their broker by its secure listener only."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    key_path, chain_path, ca_path = (tmp_path / name for name in ("key.pem", "chain.pem", "ca.pem"))
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    chain_path.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(str(ca_path))
    sasl = SaslConfig(
        username="trader",
        password=PASSWORD,
        certificate_key=key_path,
        certificate_chain=chain_path,
    )
    with EmbeddedKafka(
        data_dir=tmp_path / "kafka", port=0, sasl=sasl, properties=AUTHORIZED
    ) as kafka:
        assert kafka.secure_bootstrap is not None
        world = World(
            kafka.secure_bootstrap,
            direct=kafka.bootstrap,
            extra={
                "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
                "KAFKA_SASL_USERNAME": "trader",
                "KAFKA_SASL_PASSWORD": PASSWORD,
                "KAFKA_SSL_CAFILE": str(ca_path),
            },
        )
        yield world
        world.close()


@pytest.mark.timeout(180)
def test_trades_flow_over_sasl_ssl_and_a_wrong_password_is_refused(secure_world: World) -> None:
    """Produce, consume and read positions over TLS with SCRAM; a wrong password ends at once."""
    produced = json.loads(secure_world.run("produce", "--count", "500", "--rate", "0", "--json"))
    assert produced["produced"] == 500
    assert secure_world.consume_all()["fates"] == {"booked": 500}
    assert sum(int(row["lag"]) for row in json.loads(secure_world.run("lag", "--json"))) == 0
    assert secure_world.positions()

    started = secure_world.start(
        "-m",
        "app",
        "consume",
        "--connect-timeout",
        "60",
        KAFKA_SASL_PASSWORD="guessed",
    )
    _, errors = started.communicate(timeout=30)
    assert started.returncode == 1
    assert "guessed" not in errors
    assert "SaslAuthenticationFailed" in errors
    assert "KAFKA_SASL_" in errors

    stranger = secure_world.start(
        "-m", "app", "consume", "--connect-timeout", "2", KAFKA_SSL_CAFILE=""
    )
    _, errors = stranger.communicate(timeout=60)
    assert stranger.returncode != 0
    assert "CERTIFICATE" in errors.upper()


def _become_clerk(world: World) -> None:
    """Let the processes of a world run as a user without any right."""
    admin = AdminClient({"bootstrap.servers": world.direct})
    scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 8192)
    password = UserScramCredentialUpsertion("clerk", scram, PASSWORD.encode())
    for made in admin.alter_user_scram_credentials([password]).values():
        made.result(20)
    wait_for(lambda: _knows(admin, "clerk"), "the broker knows the user")
    world.extra["KAFKA_SASL_USERNAME"] = "clerk"


def _knows(admin: AdminClient, user: str) -> bool:
    everybody = admin.describe_user_scram_credentials()
    assert isinstance(everybody, Future)
    return user in everybody.result(20)


def _allow(world: World, rights: dict[str, list[AclOperation]]) -> None:
    """Give the clerk rights on topics; the name of the group stands for the group."""
    wanted = [
        (
            ResourceType.GROUP if name == world.name else ResourceType.TOPIC,
            name,
            ResourcePatternType.LITERAL,
            "User:clerk",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for name, operations in rights.items()
        for operation in operations
    ]
    admin = AdminClient({"bootstrap.servers": world.direct})
    for made in admin.create_acls([AclBinding(*right) for right in wanted]).values():
        made.result(20)
    filters = [AclBindingFilter(*right) for right in wanted]
    wait_for(
        lambda: all(admin.describe_acls(some).result(20) for some in filters),
        "the broker knows the rights",
    )


@pytest.mark.timeout(240)
def test_each_program_does_with_the_rights_that_are_documented(secure_world: World) -> None:
    """Producer, consumer, operator; what may not be described is not checked, and is named."""
    world = secure_world
    world.run("topics", "init")
    _become_clerk(world)
    found = world.run("topics", "check", "--json", exit_code=1)
    assert "a user who may Describe it" in found

    operation = AclOperation
    everywhere = [world.events, world.dead_letters, world.positions_topic]
    _allow(
        world,
        {
            world.events: [operation.WRITE],
            world.dead_letters: [operation.DESCRIBE],
            world.positions_topic: [operation.DESCRIBE],
        },
    )
    producer = world.start("app/producer.py", "--count", "300", "--rate", "0", "--poison", "0.05")
    output, errors = producer.communicate(timeout=90)
    assert producer.returncode == 0, output + errors
    assert errors.count("DescribeConfigs") == len(everywhere)

    _allow(world, {world.positions_topic: [operation.READ], world.name: [operation.DESCRIBE]})
    assert sum(int(row["lag"]) for row in json.loads(world.run("lag", "--json"))) == 300
    assert world.run("positions") == "no positions\n"
    assert "DescribeConfigs" in world.run("doctor")

    _allow(
        world,
        {
            world.events: [operation.READ],
            world.dead_letters: [operation.WRITE],
            world.positions_topic: [operation.WRITE],
            world.name: [operation.READ],
        },
    )
    fates = world.consume_all()["fates"]
    assert sum(fates.values()) == 300
    assert fates["dead_lettered"] > 0
    rows = json.loads(world.run("topics", "check", "--json"))
    assert {row["severity"] for row in rows} == {"warning"}
    assert all("DescribeConfigs" in row["problem"] for row in rows)
    world.run("positions", "rebuild", "--yes")

    _allow(world, {name: [operation.DESCRIBE_CONFIGS] for name in everywhere})
    assert json.loads(world.run("topics", "check", "--json")) == []
    _allow(world, {world.dead_letters: [operation.READ]})
    assert json.loads(world.run("dlq", "list", "--json"))
