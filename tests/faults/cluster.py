"""Real brokers behind relays, each of which can be killed, frozen and started again by itself."""

import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource

from app.embedded.kafka import EmbeddedKafka
from app.embedded.loopback import addresses, pick_ports
from tests.e2e.harness import admin_create, wait_for
from tests.faults.proxy import NO_FAULT, Network
from tests.faults.reading import QUIET

_TIMEOUT_S: Final = 10.0
_START_TIMEOUT_S: Final = 120.0  # recovery after a kill, with other brokers starting on two cores
_DESCRIBE_QUORUM: Final = 55
_PROPERTIES: Final = {
    "log.cleaner.backoff.ms": "500",  # a forced compaction need not be waited for
    "group.min.session.timeout.ms": "1000",
}


class FaultCluster:
    """One broker or three; clients find them behind relays, they find each other directly.

    Args:
        folder: For everything of the cluster; empty.
        nodes: 1 or 3.
        seed: Of what the relays leave to chance.
        properties: Of the brokers, in addition.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        seed: int = 0,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes = range(1, nodes + 1)
        self.folder = folder
        self._ports = pick_ports(nodes)
        self._seed = seed
        self._frozen: set[int] = set()
        self._kafka = EmbeddedKafka(
            data_dir=folder,
            port=0,
            nodes=nodes,
            advertised_ports=self._ports,
            properties=_PROPERTIES | dict(properties or {}),
        )

    def __enter__(self) -> Self:
        self._kafka.start(timeout_s=_START_TIMEOUT_S)
        brokers = [int(address.rpartition(":")[2]) for address in self._listening]
        relays = zip(self._ports, brokers, strict=True)
        self.network = Network(dict(zip(self.nodes, relays, strict=True)), self._seed)
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self._frozen):
            self.thaw(node)
        self._kafka.stop()
        self.network.stop()

    @property
    def _listening(self) -> list[str]:
        return self._kafka.bootstrap.split(",")

    @property
    def bootstrap(self) -> str:
        """Addresses of the relays."""
        return addresses(self._ports)

    @property
    def direct(self) -> str:
        """Addresses past the relays."""
        return self._kafka.direct_bootstrap

    @property
    def data_folders(self) -> dict[int, Path]:
        """Kafka's own folder of each node."""
        return {node: self.folder / f"node-{node}" / "data" for node in self.nodes}

    # -- the life of a node

    @property
    def running(self) -> dict[int, int]:
        """Process ids, by node."""
        return self._kafka.status(probe=False).pids

    def kill(self, *nodes: int) -> None:
        """End nodes at once."""
        self._end(signal.SIGKILL, nodes)

    def stop(self, *nodes: int) -> None:
        """End nodes in an orderly way."""
        self._end(signal.SIGTERM, nodes)

    def _end(self, number: signal.Signals, nodes: tuple[int, ...]) -> None:
        for node in nodes:
            os.kill(self.running[node], number)
        self._frozen -= set(nodes)
        wait_for(lambda: not self.running.keys() & set(nodes), f"the end of nodes {nodes}")

    def freeze(self, node: int) -> None:
        """Stop a node where it is; the system keeps its connections open."""
        os.kill(self.running[node], signal.SIGSTOP)
        self._frozen.add(node)

    def thaw(self, node: int) -> None:
        """Let a frozen node go on."""
        if node in self._frozen:
            os.kill(self.running[node], signal.SIGCONT)
            self._frozen.discard(node)

    def start(self) -> None:
        """Start the nodes that do not run, and return when the whole cluster serves clients."""
        self._kafka.start(timeout_s=_START_TIMEOUT_S)

    def heal(self) -> None:
        """Undo every fault."""
        self.network.set(NO_FAULT)
        for node in list(self._frozen):
            self.thaw(node)
        self.start()

    # -- who does what

    @property
    def _live_address(self) -> str:
        return self.direct.split(",")[min(self.running.keys() - self._frozen) - 1]

    def _fresh_client(self) -> AdminClient:
        """Make a client that asks one that lives; an older one may go on asking another."""
        return AdminClient({"bootstrap.servers": self._live_address, **QUIET})

    def leader(self, topic: str, partition: int) -> int:
        """Name the node that leads a partition; -1 where there is none."""
        metadata = self._fresh_client().list_topics(topic, timeout=_TIMEOUT_S)
        return int(metadata.topics[topic].partitions[partition].leader)

    def coordinator(self, group: str) -> int:
        """Name the node that coordinates a consumer group."""
        client = self._fresh_client()  # what it is asked for ends with it
        described = client.describe_consumer_groups([group])[group].result(_TIMEOUT_S)
        return int(described.coordinator.id)

    def controller(self) -> int:
        """Name the active controller: the leader of the metadata quorum.

        Source:
            KIP-595, DescribeQuorum version 0, which any broker passes on to it.
        """
        topic = b"__cluster_metadata"
        head = struct.pack(">hhih", _DESCRIBE_QUORUM, 0, 1, -1) + b"\0"
        body = b"\2" + bytes([len(topic) + 1]) + topic + b"\2" + struct.pack(">i", 0) + b"\0\0\0"
        host, port = self._live_address.split(":")
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(head + body)) + head + body)
            answer = connection.makefile("rb")
            (length,) = struct.unpack(">i", answer.read(4))
            read = answer.read(length)
        # Correlation id, no tags, error; one topic of that name with one partition and its error.
        at = 4 + 1 + 2 + 1 + 1 + len(topic) + 1 + 4 + 2
        return int(struct.unpack_from(">i", read, at)[0])

    @cached_property
    def admin(self) -> AdminClient:
        """An independent admin client; what it is asked for ends with it."""
        return AdminClient({"bootstrap.servers": self.direct, **QUIET})

    def alter_topic(self, topic: str, **config: str) -> None:
        """Set configuration entries of a topic."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        for name, value in config.items():
            entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            resource.add_incremental_config(entry)
        self.admin.incremental_alter_configs([resource])[resource].result(_TIMEOUT_S)

    def delete_topics(self, prefix: str) -> None:
        """Delete every topic of a run: with thousands of partitions brokers are slow."""
        names = [
            name
            for name in self.admin.list_topics(timeout=_TIMEOUT_S).topics
            if name.startswith(prefix)
        ]
        for deleted in self.admin.delete_topics(names).values():
            deleted.result(_TIMEOUT_S)

    def remake_topic(self, topic: str, partitions: int) -> None:
        """Delete a topic and make it anew, empty."""
        self.admin.delete_topics([topic])[topic].result(_TIMEOUT_S)
        wait_for(
            lambda: topic not in self.admin.list_topics(timeout=_TIMEOUT_S).topics, "the deletion"
        )
        admin_create(self.direct, topic, partitions, replicas=len(self.nodes))

    def keep_logs(self, folder: Path) -> None:
        """Copy what the nodes have said to where somebody will look for it."""
        for node, log in self._kafka.log_paths.items():
            for path in (log, log.with_suffix(".log.1")):  # of this life of it and the one before
                if path.exists():
                    shutil.copyfile(path, folder / f"node-{node}-{path.name}")


@contextmanager
def tmpfs(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small file system of its own for the time of a block; needs root."""
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
