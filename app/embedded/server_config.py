"""The configuration of the embedded brokers, and the listener with passwords and encryption."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded.cluster import Cluster, DataDir
from app.embedded.loopback import HOST
from app.errors import EmbeddedBrokerError

_SCRAM_ITERATIONS = 8192
_JAAS = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_INTERNAL_PARTITIONS = 8  # of each internal topic: 50, the default, cost a second at the start
_LOG_CLEANER_BYTES = 32 * 1024**2  # 128 MiB, the default, is a quarter of the whole heap
_NETWORK_THREADS = 2
_IO_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SaslConfig:
    """A second listener, SASL_SSL with SCRAM-SHA-512, and its one user.

    The user is stored when the data directory is first formatted and stays as it is.

    Args:
        username: Letters, digits, dots, dashes and underscores.
        password: Any text; only its salted hash reaches a command line.
        certificate_key: PEM file with the unencrypted private key in PKCS#8.
        certificate_chain: PEM file with the server's certificate and those that signed it; the
            certificate must be valid for 127.0.0.1, which is the advertised host.
    """

    username: str
    password: str = field(repr=False)
    certificate_key: Path
    certificate_chain: Path

    def scram_argument(self) -> str:
        """Describe the user to Kafka's format tool."""
        salt = os.urandom(16)
        salted = hashlib.pbkdf2_hmac("sha512", self.password.encode(), salt, _SCRAM_ITERATIONS)
        return (
            f"SCRAM-SHA-512=[name={self.username},iterations={_SCRAM_ITERATIONS},"
            f'salt="{base64.b64encode(salt).decode()}",'
            f'saltedpassword="{base64.b64encode(salted).decode()}"]'
        )

    def write_key_store(self, path: Path) -> None:
        """Write key and certificates as the one PEM file that Kafka reads.

        Raises:
            EmbeddedBrokerError: A file is missing, or the key is not in PKCS#8.
        """
        try:
            key = self.certificate_key.read_text(encoding="ascii")
            chain = self.certificate_chain.read_text(encoding="ascii")
        except OSError as exc:
            raise EmbeddedBrokerError(f"cannot read the certificate: {exc}") from exc
        if "-----BEGIN PRIVATE KEY-----" not in key:
            raise EmbeddedBrokerError(
                f"{self.certificate_key} is not an unencrypted PKCS#8 key; "
                "convert it with: openssl pkcs8 -topk8 -nocrypt"
            )
        path.touch(mode=0o600)
        path.write_text(f"{key.rstrip()}\n{chain}", encoding="ascii")


def server_properties(
    cluster: Cluster,
    directory: DataDir,
    node_id: int,
    extra: Mapping[str, str] | None = None,
) -> str:
    """Write the properties of one node, which is broker and controller at once.

    The quorum is a static list of voters: it lives in the configuration alone, so controllers may
    move to other ports between two starts.

    Args:
        cluster: The plan, with ports.
        directory: Of the cluster.
        node_id: From 1 on.
        extra: Properties that are added to ours, or take their place.
    """
    index = node_id - 1
    replicas = cluster.nodes
    min_in_sync = max(1, replicas - 1)
    voters = ",".join(
        f"{voter}@{HOST}:{port}" for voter, port in enumerate(cluster.controller_ports, start=1)
    )
    listening = {"PLAINTEXT": cluster.broker_ports[index]}
    if cluster.secure_ports:
        listening["SECURE"] = cluster.secure_ports[index]
    if cluster.internal_ports:
        listening["INTERNAL"] = cluster.internal_ports[index]
    advertised = dict(listening)
    if cluster.advertised_ports:
        advertised["PLAINTEXT"] = cluster.advertised_ports[index]
    controller = {"CONTROLLER": cluster.controller_ports[index]}
    properties = {
        "process.roles": "broker,controller",
        "node.id": node_id,
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": _listeners(listening | controller),
        "advertised.listeners": _listeners(advertised),
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL"
        ),
        "inter.broker.listener.name": "INTERNAL" if cluster.internal_ports else "PLAINTEXT",
        "log.dirs": directory.data(node_id),
        "num.network.threads": _NETWORK_THREADS,
        "num.io.threads": _IO_THREADS,
        "log.cleaner.dedupe.buffer.size": _LOG_CLEANER_BYTES,
        # A misspelt topic has to be an error, not a new topic.
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": min_in_sync,
        "offsets.topic.num.partitions": _INTERNAL_PARTITIONS,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": _INTERNAL_PARTITIONS,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": min_in_sync,
        "share.coordinator.state.topic.num.partitions": _INTERNAL_PARTITIONS,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": min_in_sync,
        # A killed broker may register again only after its old session has ended, so this bounds
        # how long the next start takes; the default of 9 s would make up most of it.
        "broker.session.timeout.ms": 5_000,
        "broker.heartbeat.interval.ms": 1_000,
        # Nobody else is expected to join within the usual three seconds.
        "group.initial.rebalance.delay.ms": 0,
    }
    if cluster.secure_ports:
        secure = "listener.name.secure."
        properties |= {
            f"{secure}sasl.enabled.mechanisms": "SCRAM-SHA-512",
            f"{secure}scram-sha-512.sasl.jaas.config": _JAAS,
            f"{secure}ssl.keystore.type": "PEM",
            f"{secure}ssl.keystore.location": key_store(directory, node_id),
        }
    properties |= extra or {}
    return "".join(f"{name}={_escaped(value)}\n" for name, value in properties.items())


def _listeners(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())


def key_store(directory: DataDir, node_id: int) -> Path:
    """Name the PEM file of one node's private key and certificates."""
    return directory.node(node_id) / "key-store.pem"


def _escaped(value: object) -> str:
    # Java reads properties as Latin-1, with the same escapes as a JSON string.
    return json.dumps(str(value))[1:-1]
