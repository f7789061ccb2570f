"""What a data directory remembers about its cluster between starts.

    DATA/cluster.json        the plan below, replaced as a whole
    DATA/lock                held while a start, stop or purge is under way
    DATA/node-N/             pid.json, server.properties, kafka.log, kafka.log.1, tmp/
    DATA/node-N/data/        Kafka's own: meta.properties, one folder a partition

`formatted` turns true only after every node has been formatted. Until then the nodes hold nothing
but leftovers of a start that did not get that far, and are formatted afresh.
"""

import base64
import shutil
import uuid
from pathlib import Path

import msgspec

from app.embedded.loopback import addresses
from app.errors import EmbeddedBrokerError


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The plan of one cluster; every tuple holds one port a node, in node order."""

    kafka_version: str
    cluster_id: str
    nodes: int
    broker_ports: tuple[int, ...]
    controller_ports: tuple[int, ...]
    secure_ports: tuple[int, ...] = ()
    internal_ports: tuple[int, ...] = ()
    advertised_ports: tuple[int, ...] = ()
    scram_user: str | None = None
    formatted: bool = False

    @property
    def bootstrap(self) -> str:
        """Addresses of the plain listeners, separated by commas."""
        return addresses(self.broker_ports)

    @property
    def direct(self) -> str:
        """The same of the listeners whose traffic meets no relay, whatever is advertised."""
        return addresses(self.internal_ports or self.broker_ports)

    @property
    def node_ids(self) -> range:
        """Node ids, from 1 on."""
        return range(1, self.nodes + 1)


class DataDir:
    """Names and contents of one data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.lock = self.path / "lock"
        self._plan = self.path / "cluster.json"

    def make(self) -> None:
        """Make the directory, unless it is there.

        Raises:
            EmbeddedBrokerError: It cannot be made or written, or Kafka could not take its name.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.touch()
        except OSError as exc:
            raise EmbeddedBrokerError(
                f"cannot write to {self.path}: {exc}; choose another data directory (--data-dir)"
            ) from exc
        if "," in str(self.path):  # Kafka takes a list of data directories, parted by commas
            raise EmbeddedBrokerError(
                f"{self.path} has a comma in its name; choose another data directory (--data-dir)"
            )

    def node(self, node_id: int) -> Path:
        """Folder of one node."""
        return self.path / f"node-{node_id}"

    def data(self, node_id: int) -> Path:
        """Kafka's own folder of one node."""
        return self.node(node_id) / "data"

    def log(self, node_id: int) -> Path:
        """What one node has written to its standard output since its last start."""
        return self.node(node_id) / "kafka.log"

    def pid_file(self, node_id: int) -> Path:
        """Pid file of one node."""
        return self.node(node_id) / "pid.json"

    def read(self) -> Cluster | None:
        """Read the plan; None when there is none yet.

        Raises:
            EmbeddedBrokerError: It is unreadable, or there is Kafka data that is not ours.
        """
        try:
            return msgspec.json.decode(self._plan.read_bytes(), type=Cluster)
        except FileNotFoundError:
            self._refuse_foreign_data()
            return None
        except (OSError, msgspec.DecodeError) as exc:
            raise EmbeddedBrokerError(
                f"cannot read {self._plan}: {exc}; choose another data directory (--data-dir)"
            ) from exc

    def write(self, cluster: Cluster) -> None:
        """Replace the plan, as a whole."""
        partial = self._plan.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(cluster)))
        partial.replace(self._plan)

    def delete(self, cluster: Cluster) -> None:
        """Delete everything of ours but the lock; what else is in the directory stays."""
        for node_id in cluster.node_ids:
            shutil.rmtree(self.node(node_id), ignore_errors=True)
        # Last, so that a purge that was killed can be repeated.
        self._plan.unlink(missing_ok=True)

    def clear_data(self, node_id: int) -> None:
        """Delete Kafka's own folder of a node."""
        shutil.rmtree(self.data(node_id), ignore_errors=True)

    def check_meta(self, cluster: Cluster) -> None:
        """Compare what Kafka wrote at formatting with the plan.

        Raises:
            EmbeddedBrokerError: A node's data belongs to another cluster or another node.
        """
        for node_id in cluster.node_ids:
            path = self.data(node_id) / "meta.properties"
            expected = {"cluster.id": cluster.cluster_id, "node.id": str(node_id)}
            found = _read_properties(path)
            for name, value in expected.items():
                if found.get(name) != value:
                    raise EmbeddedBrokerError(
                        f"{path} has {name}={found.get(name)}, but this cluster has {value}: "
                        "the data is not of this cluster. Choose another data directory "
                        "(--data-dir), or delete this one with `trade-stream broker purge`"
                    )

    def _refuse_foreign_data(self) -> None:
        for path in (self.path, *sorted(self.path.glob("node-*/data"))):
            if (meta := path / "meta.properties").exists():
                cluster_id = _read_properties(meta).get("cluster.id")
                raise EmbeddedBrokerError(
                    f"{path} holds the data of another Kafka cluster ({cluster_id}), which the "
                    "embedded broker did not make; choose another data directory (--data-dir)"
                )


def _read_properties(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def random_cluster_id() -> str:
    """Make a cluster id of the form Kafka uses: 16 bytes in URL-safe Base64, no leading dash."""
    text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
    return "k" + text[1:] if text.startswith("-") else text
