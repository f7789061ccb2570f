"""The whole path over SASL_SSL with SCRAM, with certificates made for the test."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from app.embedded.kafka import EmbeddedKafka
from app.embedded.server_config import SaslConfig
from tests.e2e.harness import World

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PASSWORD = "correct horse"


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
    with EmbeddedKafka(data_dir=tmp_path / "kafka", port=0, sasl=sasl) as kafka:
        assert kafka.secure_bootstrap is not None
        world = World(
            kafka.secure_bootstrap,
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
