"""The embedded broker without Java: locks, pid files, ports and what a data directory remembers."""

import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from app.cli.broker import app as broker_app
from app.embedded import launch
from app.embedded.cluster import Cluster, DataDir, random_cluster_id
from app.embedded.jars import Jar, ensure_jars, read_lock, verify_jars
from app.embedded.java import parse_java_major
from app.embedded.kafka import BrokerStatus, EmbeddedKafka
from app.embedded.loopback import is_port_free, pick_ports
from app.embedded.process import Process, exclusive, launch_detached, read_pid_file, terminate
from app.embedded.server_config import SaslConfig, server_properties
from app.errors import EmbeddedBrokerError, EmbeddedError

PLAN = Cluster(
    kafka_version="4.4.0",
    cluster_id="k-plan",
    nodes=1,
    broker_ports=(20001,),
    controller_ports=(20002,),
    formatted=True,
)


def _jar(folder: Path, content: bytes = b"class files") -> Jar:
    jar = Jar("org.example:thing:1.0", hashlib.sha256(content).hexdigest())
    (folder / jar.file_name).write_bytes(content)
    return jar


@pytest.fixture
def listening_port() -> Iterator[int]:
    """A port of the loopback interface that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_lock_pins_kafka_and_every_jar_once() -> None:
    """The lock file names the broker, has a full SHA-256 a jar, and no file name twice."""
    lock = read_lock()
    names = [jar.file_name for jar in lock.jars]
    assert f"kafka_2.13-{lock.kafka_version}.jar" in names
    assert len(set(names)) == len(names)
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in lock.jars)


def test_right_bytes_pass_and_are_read_once(tmp_path: Path) -> None:
    """A verified jar is remembered, and passes again without being read."""
    jar = _jar(tmp_path)
    verify_jars([jar], tmp_path)
    stat = (tmp_path / jar.file_name).stat()
    (tmp_path / jar.file_name).write_bytes(b"class filez")
    os.utime(tmp_path / jar.file_name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    verify_jars([jar], tmp_path)


@pytest.mark.parametrize("verified_before", [False, True])
def test_a_flipped_byte_is_refused_by_name(tmp_path: Path, *, verified_before: bool) -> None:
    """A jar that differs is named with both sums and the folder to delete."""
    jar = _jar(tmp_path)
    if verified_before:
        verify_jars([jar], tmp_path)
    (tmp_path / jar.file_name).write_bytes(b"class filez!")
    with pytest.raises(EmbeddedBrokerError) as refused:
        verify_jars([jar], tmp_path)
    message = str(refused.value)
    assert "thing-1.0.jar" in message
    assert jar.sha256 in message
    assert hashlib.sha256(b"class filez!").hexdigest() in message
    assert f"delete the folder {tmp_path}" in message


def test_a_failed_download_says_what_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the error names the jar, the proxy settings and the folder to copy."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody listens
    notices: list[str] = []
    with pytest.raises(EmbeddedBrokerError, match="cannot download") as failed:
        ensure_jars(read_lock(), cache_dir=tmp_path, notify=notices.append)
    assert "HTTPS_PROXY" in str(failed.value)
    assert str(tmp_path) in str(failed.value)
    assert len(notices) == 1
    assert not list(tmp_path.rglob("*.jar"))


@pytest.mark.parametrize(
    ("shown", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('openjdk version "25" 2025-09-16', 25),
        ('java version "1.8.0_392"', 8),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21-ea" 2023-09-19', 21),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
    ],
)
def test_the_java_version_is_read(shown: str, major: int | None) -> None:
    """The major version is found in each form that Java launchers print."""
    assert parse_java_major(shown) == major


def test_a_pid_of_another_process_is_not_ours() -> None:
    """A live process does not count when it started at another time than the pid file says."""
    ours = Process(os.getpid(), launch.start_token(os.getpid()))
    assert ours.is_alive()
    assert not Process(os.getpid(), "another start").is_alive()


def test_the_portable_start_token_tells_processes_apart() -> None:
    """Where there is no /proc, `ps` gives a token for the living and none for the dead."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    try:
        assert launch._start_token_from_ps(os.getpid())
        assert launch._start_token_from_ps(ended.pid) is None
    except FileNotFoundError:
        pytest.skip("no ps on this machine")


def test_a_process_that_has_ended_is_not_alive(tmp_path: Path) -> None:
    """A launched process is found by its pid file, and gone after it was terminated."""
    pid_file = tmp_path / "pid.json"
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    process = launch_detached(command, pid_file=pid_file, log_file=tmp_path / "log", cwd=tmp_path)
    assert read_pid_file(pid_file) == process
    assert process.is_alive()
    assert terminate([process], timeout_s=10) == []
    assert not process.is_alive()


def test_a_stale_pid_file_is_not_running(tmp_path: Path) -> None:
    """A pid file that names a live but different process is reported and cleaned by stop."""
    directory = DataDir(tmp_path)
    directory.node(1).mkdir()
    directory.write(PLAN)
    foreign = Process(os.getpid(), "another start")
    directory.pid_file(1).write_bytes(msgspec.json.encode(foreign))
    notices: list[str] = []
    kafka = EmbeddedKafka(data_dir=tmp_path, notify=notices.append)
    assert not kafka.status().running
    kafka.stop()
    assert "stale pid file" in notices[0]
    assert notices[1:] == ["not running"]
    assert not directory.pid_file(1).exists()


def test_a_taken_port_is_named(tmp_path: Path, listening_port: int) -> None:
    """A start on a port that is taken names it and how to choose another, before any Java runs."""
    with pytest.raises(EmbeddedBrokerError, match=rf"port {listening_port} is taken .*--port"):
        EmbeddedKafka(data_dir=tmp_path, port=listening_port).start()
    assert not (tmp_path / "cluster.json").exists()


def test_picked_ports_are_free_and_different() -> None:
    """Picked ports can be listened on and avoid those given away before."""
    first = pick_ports(3)
    second = pick_ports(3, taken=first)
    assert len({*first, *second}) == 6
    assert all(map(is_port_free, first + second))


@pytest.mark.parametrize(
    ("meta", "named"),
    [
        ("cluster.id=another\nnode.id=1\n", "cluster.id=another"),
        ("cluster.id=k-plan\nnode.id=7\n", "node.id=7"),
    ],
)
def test_data_of_another_cluster_is_refused(tmp_path: Path, meta: str, named: str) -> None:
    """Data whose cluster or node differs from the plan is refused with what was found."""
    directory = DataDir(tmp_path)
    directory.data(1).mkdir(parents=True)
    (directory.data(1) / "meta.properties").write_text(meta)
    directory.write(PLAN)
    with pytest.raises(EmbeddedBrokerError, match=named):
        EmbeddedKafka(data_dir=tmp_path, port=0).start()


def test_data_of_a_foreign_broker_is_refused(tmp_path: Path) -> None:
    """A directory with Kafka data and no plan was not made by us, and is left alone."""
    (tmp_path / "meta.properties").write_text("cluster.id=theirs\n")
    with pytest.raises(EmbeddedBrokerError, match=r"another Kafka cluster \(theirs\)"):
        EmbeddedKafka(data_dir=tmp_path, port=0).start()


def test_another_number_of_nodes_is_refused(tmp_path: Path) -> None:
    """Data formatted for one node does not start as three."""
    DataDir(tmp_path).write(PLAN)
    with pytest.raises(EmbeddedBrokerError, match="--nodes 1"):
        EmbeddedKafka(data_dir=tmp_path, port=0, nodes=3).start()


def test_a_lock_held_by_another_is_waited_for_in_bounded_time(tmp_path: Path) -> None:
    """The second holder is told that it waits, and gives up after its time."""
    waits: list[str] = []
    path = tmp_path / "lock"
    with (
        exclusive(path, timeout_s=1, on_wait=lambda: None),
        pytest.raises(EmbeddedError, match=str(path)),
        exclusive(path, timeout_s=0.05, on_wait=lambda: waits.append("wait")),
    ):
        pass
    assert waits == ["wait"]


def test_purge_leaves_foreign_files(tmp_path: Path) -> None:
    """Purging deletes what the broker made and nothing else."""
    directory = DataDir(tmp_path / "kafka")
    directory.data(1).mkdir(parents=True)
    directory.write(PLAN)
    (directory.path / "notes.txt").write_text("mine")
    EmbeddedKafka(data_dir=directory.path).purge()
    assert [path.name for path in directory.path.iterdir()] == ["notes.txt"]


def test_three_nodes_replicate_everything_three_times(tmp_path: Path) -> None:
    """With three nodes each topic survives the loss of one, and each node has its own ports."""
    plan = msgspec.structs.replace(
        PLAN, nodes=3, broker_ports=(1, 2, 3), controller_ports=(4, 5, 6)
    )
    lines = server_properties(plan, DataDir(tmp_path), 2).splitlines()
    assert "controller.quorum.voters=1@127.0.0.1:4,2@127.0.0.1:5,3@127.0.0.1:6" in lines
    assert "advertised.listeners=PLAINTEXT://127.0.0.1:2" in lines
    for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
        assert f"{topic}.replication.factor=3" in lines
    assert "min.insync.replicas=2" in lines
    assert "auto.create.topics.enable=false" in lines


def test_advertised_ports_leave_the_brokers_a_listener_of_their_own(tmp_path: Path) -> None:
    """Clients are sent to the relay, brokers are not, and properties of the caller win."""
    plan = msgspec.structs.replace(PLAN, internal_ports=(7,), advertised_ports=(8,))
    broker, controller = plan.broker_ports[0], plan.controller_ports[0]
    lines = server_properties(plan, DataDir(tmp_path), 1, {"num.io.threads": "1"}).splitlines()
    plain, internal = f"PLAINTEXT://127.0.0.1:{broker}", "INTERNAL://127.0.0.1:7"
    assert f"listeners={plain},{internal},CONTROLLER://127.0.0.1:{controller}" in lines
    assert f"advertised.listeners=PLAINTEXT://127.0.0.1:8,{internal}" in lines
    assert "inter.broker.listener.name=INTERNAL" in lines
    assert "num.io.threads=1" in lines
    assert plan.direct == "127.0.0.1:7"


def test_the_password_is_not_on_a_command_line(tmp_path: Path) -> None:
    """Kafka's tool is given the salted hash, and neither it nor a repr shows the password."""
    sasl = SaslConfig(
        username="desk",
        password="s3cret",
        certificate_key=tmp_path,
        certificate_chain=tmp_path,
    )
    assert "s3cret" not in sasl.scram_argument() + repr(sasl)


def test_cluster_ids_are_22_characters_without_a_leading_dash() -> None:
    """Every id has the form that Kafka accepts on a command line."""
    ids = {random_cluster_id() for _ in range(200)}
    assert {len(cluster_id) for cluster_id in ids} == {22}
    assert not any(cluster_id.startswith("-") for cluster_id in ids)


def test_the_status_command_says_by_its_exit_code_that_nothing_runs(tmp_path: Path) -> None:
    """Without a broker `status` ends with 3, and its JSON carries every fact of a status."""
    shown = CliRunner().invoke(broker_app, ["status", "--json", "--data-dir", str(tmp_path / "k")])
    assert shown.exit_code == 3
    facts = json.loads(shown.stdout)
    assert facts["running"] is False
    assert facts["nodes"] == 0
    assert set(facts) == {field.name for field in dataclasses.fields(BrokerStatus)}
    assert not (tmp_path / "k").exists()


def test_purge_asks_first(tmp_path: Path) -> None:
    """Without a yes `purge` deletes nothing."""
    DataDir(tmp_path).write(PLAN)
    arguments = ["purge", "--data-dir", str(tmp_path)]
    assert CliRunner().invoke(broker_app, arguments, input="n\n").exit_code == 1
    assert (tmp_path / "cluster.json").exists()
    assert CliRunner().invoke(broker_app, [*arguments, "--yes"]).exit_code == 0
    assert not tmp_path.exists()
