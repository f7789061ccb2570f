"""Run Kafka's own Java programs: the one that formats a data directory, and the broker."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded.cluster import Cluster, DataDir
from app.embedded.java import Java
from app.embedded.process import Process, launch_detached
from app.embedded.server_config import SaslConfig, key_store, server_properties
from app.errors import EmbeddedBrokerError

_FORMAT_TIMEOUT_S = 60.0

# One collector thread and the first compiler only. A broker mostly moves bytes it does not look
# into; what a second compiler and G1 do beside it competes with the clients for few cores.
_QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOG_OPTIONS = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A Java, the jars of Kafka, the heap of one broker in MiB, and properties of the caller's."""

    java: Java
    class_path: Sequence[Path]
    heap_mb: int
    properties: Mapping[str, str] = field(default_factory=dict)

    def format(
        self,
        directory: DataDir,
        cluster: Cluster,
        node_id: int,
        *,
        sasl: SaslConfig | None,
        lock: int,
    ) -> None:
        """Make the empty data of one node; whatever was in its place is deleted.

        Args:
            directory: Of the cluster.
            cluster: The plan, with ports.
            node_id: From 1 on.
            sasl: The user to store.
            lock: Descriptor of the lock on the directory. Kafka's tool inherits it, so that when
                we are killed nobody formats again while it still writes.

        Raises:
            EmbeddedBrokerError: Kafka's tool refused; its last lines are quoted.
        """
        directory.clear_data(node_id)
        properties = self._prepare(directory, cluster, node_id, sasl)
        command = [
            *self._java(directory, node_id, *_QUICK_START),
            "kafka.tools.StorageTool",
            "format",
            *("--cluster-id", cluster.cluster_id),
            *("--config", str(properties)),
        ]
        if sasl is not None:
            command += ["--add-scram", sasl.scram_argument()]
        try:
            ran = subprocess.run(  # noqa: S603 - our own arguments, no shell
                command,
                cwd=directory.node(node_id),
                capture_output=True,
                text=True,
                timeout=_FORMAT_TIMEOUT_S,
                pass_fds=(lock,),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise EmbeddedBrokerError(f"cannot run {self.java.path}: {exc}") from exc
        if ran.returncode != 0:
            raise EmbeddedBrokerError(
                f"cannot format {directory.data(node_id)}:\n{(ran.stdout + ran.stderr).strip()}"
            )

    def launch(
        self, directory: DataDir, cluster: Cluster, node_id: int, *, sasl: SaslConfig | None
    ) -> Process:
        """Start one formatted node; its log begins anew and the one before is kept beside it.

        Raises:
            EmbeddedBrokerError: The system refused to start the process.
        """
        properties = self._prepare(directory, cluster, node_id, sasl)
        log = directory.log(node_id)
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        options = (f"-Xmx{self.heap_mb}m", "-XX:+ExitOnOutOfMemoryError", *_QUICK_START)
        return launch_detached(
            [*self._java(directory, node_id, *options), "kafka.Kafka", str(properties)],
            pid_file=directory.pid_file(node_id),
            log_file=log,
            cwd=directory.node(node_id),
        )

    def _java(self, directory: DataDir, node_id: int, *options: str) -> list[str]:
        node = directory.node(node_id)
        return self.java.command(
            *options,
            *_LOG_OPTIONS,
            # Compression libraries unpack native code there, a crash of Java leaves its report.
            f"-Djava.io.tmpdir={node / 'tmp'}",
            f"-XX:ErrorFile={node / 'java-error-%p.log'}",
            f"-Dkafka.logs.dir={node}",
            *("-cp", os.pathsep.join(str(jar) for jar in self.class_path)),
        )

    def _prepare(
        self, directory: DataDir, cluster: Cluster, node_id: int, sasl: SaslConfig | None
    ) -> Path:
        (directory.node(node_id) / "tmp").mkdir(parents=True, exist_ok=True)
        if sasl is not None:
            sasl.write_key_store(key_store(directory, node_id))
        path = directory.node(node_id) / "server.properties"
        text = server_properties(cluster, directory, node_id, self.properties)
        path.write_text(text, encoding="utf-8")
        return path
