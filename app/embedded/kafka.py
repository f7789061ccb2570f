"""Supervise a real Apache Kafka on the loopback interface: one node, or three.

A start leaves the brokers running on their own; whoever has the data directory can see and stop
them later, from any process. Every state that a killed start, stop or broker can leave behind is
one that the next start takes up:

    no plan ──▶ plan written ──▶ nodes formatted ──▶ processes launched ──▶ ready
                (formatted=no)    (formatted=yes)      (pid files)
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from app.embedded import planning
from app.embedded.cluster import Cluster, DataDir
from app.embedded.jars import default_cache_dir, ensure_jars, read_lock
from app.embedded.java import find_java
from app.embedded.loopback import addresses
from app.embedded.process import (
    Process,
    exclusive,
    is_locked_by_java,
    read_pid_file,
    terminate,
)
from app.embedded.runtime import Runtime
from app.embedded.server_config import SaslConfig
from app.errors import EmbeddedBrokerError, TransportError
from app.kafka_io.probe import wait_until_ready

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_STATUS_TIMEOUT_S = 2.0
_LIVENESS_POLL_S = 0.1
_DEFAULT_HEAP_MB = {1: 512, 3: 256}  # the possible numbers of nodes, and the heap of each node
_LOG_TAIL_LINES = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    """What is known about an embedded cluster at one moment.

    Args:
        running: At least one of its nodes runs.
        ready: Every node runs and serves clients.
        pids: Process id of each running node, by node id from 1 on.
        bootstrap: Addresses of the plain listeners, separated by commas; None before the first
            start.
        nodes: How many the cluster has, running or not; 0 before the first start.
        cluster_id: Kafka's; kept for as long as the data is. None before the first start.
        data_dir: Where everything of the cluster is.
        version: Of Apache Kafka.
    """

    running: bool
    ready: bool
    pids: dict[int, int]
    bootstrap: str | None
    nodes: int
    cluster_id: str | None
    data_dir: Path
    version: str


class EmbeddedKafka:
    """A Kafka cluster on 127.0.0.1 that lives in one data directory.

    All methods block; from a coroutine call them by `asyncio.to_thread`. As a context manager it
    starts the cluster and stops it at the end.

    Args:
        data_dir: Made when missing; holds data, logs and pid files, and nothing is elsewhere.
        port: Of the first broker, the others follow; 0 takes free ones and keeps to them.
        nodes: 1 or 3; fixed at the first start.
        heap_mb: Java heap of each node in MiB; by default 512 for one node, 256 for three.
        sasl: Adds a listener with password and encryption; fixed at the first start.
        advertised_ports: Where clients are told to find the brokers, in node order: ports of relays
            in front of them. The brokers then talk to each other on listeners of their own.
        properties: Added to the configuration of every node, or put in the place of ours.
        cache_dir: Where the jars are kept; by default the user's cache folder.
        notify: Told what happens in single lines; by default they are logged.

    Raises:
        EmbeddedBrokerError: The number of nodes, or of advertised ports, is not possible.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        port: int = 9092,
        nodes: int = 1,
        heap_mb: int | None = None,
        sasl: SaslConfig | None = None,
        advertised_ports: Sequence[int] = (),
        properties: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        notify: Callable[[str], None] = _log.info,
    ) -> None:
        if nodes not in _DEFAULT_HEAP_MB:
            raise EmbeddedBrokerError(f"{nodes} nodes are not possible; choose 1 or 3 (--nodes)")
        if advertised_ports and len(advertised_ports) != nodes:
            raise EmbeddedBrokerError(f"{nodes} nodes need {nodes} advertised ports")
        self._dir = DataDir(data_dir)
        self._request = planning.Request(
            nodes=nodes,
            port=port,
            scram_user=sasl.username if sasl else None,
            advertised_ports=tuple(advertised_ports),
        )
        self._properties = dict(properties or {})
        self._heap_mb = heap_mb or _DEFAULT_HEAP_MB[nodes]
        self._sasl = sasl
        self._cache_dir = cache_dir or default_cache_dir()
        self._notify = notify
        self._jars = read_lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:PORT`, several separated by commas; known from the first start on."""
        return self._require_plan().bootstrap

    @property
    def direct_bootstrap(self) -> str:
        """The same, past any relay: what these listeners advertise is themselves."""
        return self._require_plan().direct

    @property
    def secure_bootstrap(self) -> str:
        """The same for the listener with password and encryption; empty without one."""
        return addresses(self._require_plan().secure_ports)

    @property
    def log_paths(self) -> dict[int, Path]:
        """The log of each node, by node id; a node that never ran has none yet."""
        plan = self._dir.read()
        return {node: self._dir.log(node) for node in plan.node_ids} if plan else {}

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start what does not run yet, and return when all of it serves clients.

        Args:
            timeout_s: Bound on the wait for another start or stop, and on the wait until ready;
                a download of the jars comes on top.

        Raises:
            EmbeddedBrokerError: What is in the way and what to do; nothing that this call has
                launched is left running.
        """
        self._dir.make()
        with self._locked(timeout_s) as lock:
            plan = self._dir.read() or planning.new_plan(self._request, self._jars.kafka_version)
            planning.require_same_cluster(plan, self._request)
            running = self._running(plan, clean=True)
            if len(running) == plan.nodes:
                planning.require_same_ports(plan, self._request)
                self._wait_ready(plan, running, timeout_s)
                self._notify(f"already running at {plan.bootstrap}")
                return
            plan = planning.with_ports(plan, self._request, frozenset(running))
            self._launch(plan, running, timeout_s, lock)
            self._notify(f"running at {plan.bootstrap}")

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End all nodes in an orderly way; a node that takes longer than `timeout_s` is killed.

        Raises:
            EmbeddedBrokerError: Another start or stop is under way for all that time.
        """
        if not self._dir.path.is_dir():
            self._notify("not running")
            return
        with self._locked(timeout_s):
            plan = self._dir.read()
            running = self._running(plan, clean=True) if plan else {}
            if not running:
                self._notify("not running")
                return
            for process in terminate(running.values(), timeout_s=timeout_s):
                self._notify(f"process {process.pid} did not stop in time and was killed")
            for node in running:
                self._dir.pid_file(node).unlink(missing_ok=True)
            self._notify("stopped")

    def status(self, *, probe: bool = True) -> BrokerStatus:
        """Say what runs now.

        Args:
            probe: Ask the brokers whether they are ready, for 2 s at most; without it `ready` is
                False.
        """
        plan = self._dir.read()
        running = self._running(plan) if plan else {}
        return BrokerStatus(
            running=bool(running),
            ready=probe and plan is not None and self._is_ready(plan, running),
            pids={node: process.pid for node, process in running.items()},
            bootstrap=plan.bootstrap if plan else None,
            nodes=plan.nodes if plan else 0,
            cluster_id=plan.cluster_id if plan else None,
            data_dir=self._dir.path,
            version=plan.kafka_version if plan else self._jars.kafka_version,
        )

    def purge(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Delete the cluster with all its data; foreign files in the directory stay.

        Raises:
            EmbeddedBrokerError: A node is running.
        """
        if not self._dir.path.is_dir():
            return
        with self._locked(timeout_s):
            plan = self._dir.read()
            if plan is not None:
                if self._running(plan, clean=True):
                    raise EmbeddedBrokerError(f"running at {plan.bootstrap}; stop it first")
                self._refuse_foreign_brokers(plan, running={})
                self._dir.delete(plan)
            self._dir.lock.unlink()
        if not any(self._dir.path.iterdir()):
            self._dir.path.rmdir()

    def _locked(self, timeout_s: float) -> AbstractContextManager[int]:
        return exclusive(
            self._dir.lock,
            timeout_s=timeout_s,
            on_wait=lambda: self._notify("waiting for another start or stop to end"),
        )

    def _require_plan(self) -> Cluster:
        plan = self._dir.read()
        if plan is None:
            raise EmbeddedBrokerError(f"no broker has been started in {self._dir.path} yet")
        return plan

    def _running(self, plan: Cluster, *, clean: bool = False) -> dict[int, Process]:
        """Find the nodes that run; stale pid files may be cleaned only under the lock."""
        running = {}
        for node in plan.node_ids:
            path = self._dir.pid_file(node)
            process = read_pid_file(path)
            if process is not None and process.is_alive():
                running[node] = process
            elif clean and path.exists():
                path.unlink()
                self._notify(f"removed a stale pid file: node {node} had ended without a stop")
        return running

    def _launch(
        self, plan: Cluster, running: Mapping[int, Process], timeout_s: float, lock: int
    ) -> None:
        self._refuse_foreign_brokers(plan, running)
        if plan.formatted:
            self._dir.check_meta(plan)
        runtime = Runtime(
            java=find_java(),
            class_path=ensure_jars(self._jars, cache_dir=self._cache_dir, notify=self._notify),
            heap_mb=self._heap_mb,
            properties=self._properties,
        )
        self._dir.write(plan)
        if not plan.formatted:
            plan = self._format(plan, runtime, lock)
        launched: dict[int, Process] = {}
        try:
            for node in plan.node_ids:
                if node not in running:
                    launched[node] = runtime.launch(self._dir, plan, node, sasl=self._sasl)
            self._wait_ready(plan, {**running, **launched}, timeout_s)
        except BaseException:  # an interrupt too must not leave half a cluster running
            terminate(launched.values(), timeout_s=STOP_TIMEOUT_S)
            for node in launched:
                self._dir.pid_file(node).unlink(missing_ok=True)
            raise

    def _refuse_foreign_brokers(self, plan: Cluster, running: Mapping[int, Process]) -> None:
        """Refuse data that a broker without a pid file of ours works on."""
        for node in plan.node_ids:
            if node not in running and is_locked_by_java(self._dir.data(node) / ".lock"):
                raise EmbeddedBrokerError(
                    f"{self._dir.data(node)} is in use by a broker that has no pid file here; "
                    "find it by `ps ax | grep kafka.Kafka` and end it, or choose another data "
                    "directory (--data-dir)"
                )

    def _format(self, plan: Cluster, runtime: Runtime, lock: int) -> Cluster:
        with ThreadPoolExecutor(plan.nodes) as pool:
            jobs = [
                pool.submit(runtime.format, self._dir, plan, node, sasl=self._sasl, lock=lock)
                for node in plan.node_ids
            ]
        for job in jobs:
            job.result()
        plan = msgspec.structs.replace(plan, formatted=True)
        self._dir.write(plan)
        return plan

    def _is_ready(self, plan: Cluster, running: Mapping[int, Process]) -> bool:
        if len(running) < plan.nodes:
            return False
        try:
            self._wait_ready(plan, running, _STATUS_TIMEOUT_S)
        except EmbeddedBrokerError:
            return False
        return True

    def _wait_ready(
        self, plan: Cluster, processes: Mapping[int, Process], timeout_s: float
    ) -> None:
        try:
            asyncio.run(self._ready_or_dead(plan, processes, timeout_s))
        except TransportError as exc:
            raise EmbeddedBrokerError(f"{exc}; {self._log_tail(1)}") from exc

    async def _ready_or_dead(
        self, plan: Cluster, processes: Mapping[int, Process], timeout_s: float
    ) -> None:
        probe = asyncio.create_task(
            wait_until_ready(plan.direct, brokers=plan.nodes, timeout_s=timeout_s)
        )
        try:
            while True:
                done, _ = await asyncio.wait({probe}, timeout=_LIVENESS_POLL_S)
                for node, process in processes.items():
                    if not process.is_alive():
                        raise EmbeddedBrokerError(f"node {node} has died; {self._log_tail(node)}")
                if done:
                    return probe.result()
        finally:
            probe.cancel()
            await asyncio.wait({probe})  # it closes its connections

    def _log_tail(self, node: int) -> str:
        path = self._dir.log(node)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        tail = "\n".join(lines[-_LOG_TAIL_LINES:]) or "(empty)"
        return f"the end of {path}:\n{tail}"
