"""Health: what a process says of itself, who says it when the loop hangs, and who answers."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from app import health as health_module
from app import monitor as monitor_module
from app.config import Settings, child_environment
from app.embedded.kafka import EmbeddedKafka
from app.errors import TradeStreamError
from app.health import DEAD_AFTER_S, STALL_S, Health, StallDetector, Unready
from app.memory_io import MemoryBroker, MemoryPublisher
from app.memory_io.faults import Fault
from app.metrics import ProcessMetrics
from app.monitor import MAX_CONNECTIONS, REQUEST_TIMEOUT_S, MonitorServer, monitored
from app.ports import OutgoingRecord, SendOutcome
from app.producer import TradeProducer
from app.simulator import TradeSimulator
from app.supervisor import Supervisor
from tests.e2e.harness import World, wait_for
from tests.virtual_time import virtual_time

ROOT = Path(__file__).parents[1]
WAIT_S = 20.0


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Time of one test."""
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    """Health of a process that has just been started."""
    return Health(monotonic=clock, now_s=lambda: clock.now_s + 1_700_000_000)


# -- what a process says of itself


def test_a_process_starts_alive_and_not_ready(health: Health) -> None:
    """Until it has started it is neither ready nor dead, however long that takes."""
    assert health.live() == {}
    assert health.startup() == health.ready() == {"startup": "still starting"}
    health.started()
    assert health.startup() == health.ready() == {}


def test_every_reason_is_explained() -> None:
    """The page has a row for each reason that a process can give."""
    page = (ROOT / "docs/metrics.md").read_text().partition("## Metrics")[0]
    rows = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", page, re.MULTILINE))
    assert rows == {"startup", *(reason.value for reason in Unready)}


def test_it_is_ready_again_when_every_reason_is_cleared(health: Health) -> None:
    """Reasons are kept by name; the last word on each counts, and long ones are cut."""
    health.started()
    health.fail(Unready.BROKER, "first")
    health.fail(Unready.BROKER, "second")
    health.fail(Unready.STOPPED_PARTITIONS, "x" * 10_000)
    assert health.ready() == {"broker": "second", "stopped_partitions": "x" * 256}
    health.clear(Unready.BROKER)
    health.clear(Unready.BROKER)
    assert health.ready().keys() == {"stopped_partitions"}
    health.clear(Unready.STOPPED_PARTITIONS)
    assert health.ready() == {}
    assert health.live() == {}


@pytest.mark.parametrize("holds_lag", [True, False])
def test_an_event_loop_that_hangs_is_dead(health: Health, clock: Clock, *, holds_lag: bool) -> None:
    """Without a beat for long enough only a restart helps, whether records are left or not."""
    health.holds_lag = holds_lag
    clock.now_s += DEAD_AFTER_S
    health.tick()
    assert health.live() == {}
    clock.now_s += 1
    health.tick()
    assert health.live() == {"event_loop": "the event loop has not turned for 121 s"}
    health.beat()
    assert health.live() == {}


def test_a_loop_that_waits_for_ever_is_dead_if_records_are_left(
    health: Health, clock: Clock
) -> None:
    """The event loop turns, the program's own does not: that matters once there is work."""
    clock.now_s += DEAD_AFTER_S + 1
    health.beat()
    assert health.live() == {}
    health.holds_lag = True
    assert health.live() == {"progress": "no turn and no commit for 121 s, with records left"}


@pytest.mark.parametrize("sign_of_life", [Health.tick, Health.progress])
def test_a_turn_or_a_commit_is_a_sign_of_life(
    health: Health, clock: Clock, sign_of_life: Callable[[Health], None]
) -> None:
    """Either is enough."""
    health.holds_lag = True
    clock.now_s += DEAD_AFTER_S + 1
    health.beat()
    sign_of_life(health)
    assert health.live() == {}


def test_a_broker_that_is_away_makes_unready_and_not_dead(health: Health, clock: Clock) -> None:
    """A loop that comes round without any progress, with records left, for a day: alive."""
    health.started()
    health.holds_lag = True
    health.fail(Unready.BROKER, "no broker answers at localhost:9092")
    for _ in range(24 * 60):
        clock.now_s += 60
        health.beat()
        health.tick()
        assert health.live() == {}
    assert health.ready() == {"broker": "no broker answers at localhost:9092"}


def test_progress_has_a_time_of_day(health: Health, clock: Clock) -> None:
    """Before the first progress it is the time of the start."""
    assert health.last_progress_s == 1_700_000_100
    clock.now_s += 5
    health.tick()
    assert health.last_progress_s == 1_700_000_100
    health.progress()
    assert health.last_progress_s == 1_700_000_105


# -- the stall detector


class Stalls:
    """What a detector has told."""

    def __init__(self) -> None:
        self.seen = 0
        self.lengths_s: list[float] = []
        self.hangs = 0

    def on_hang(self) -> None:
        """Count it."""
        self.hangs += 1

    def on_stall(self) -> None:
        """Count it."""
        self.seen += 1


def detector_of(
    health: Health, loop: asyncio.AbstractEventLoop, stalls: Stalls, clock: Callable[[], float]
) -> StallDetector:
    """Make a detector that watches this thread."""
    return StallDetector(
        health,
        loop=loop,
        on_stall=stalls.on_stall,
        on_recovery=stalls.lengths_s.append,
        on_hang=stalls.on_hang,
        monotonic=clock,
    )


async def test_each_stall_is_told_once_with_its_length(health: Health, clock: Clock) -> None:
    """Silence of five seconds is a stall; it is told again only after the loop has turned."""
    stalls = Stalls()
    detector = detector_of(health, asyncio.get_running_loop(), stalls, clock)
    with capture_logs() as logs:
        clock.now_s += STALL_S - 0.1
        detector.check()
        assert not logs
        clock.now_s += 0.1
        for _ in range(3):
            detector.check()
            clock.now_s += 1
        assert stalls.seen == 1
        health.beat()
        detector.check()
        detector.check()
        assert stalls.lengths_s == [STALL_S + 3]
        clock.now_s += STALL_S
        detector.check()
    assert stalls.seen == 2
    assert [entry["event"] for entry in logs] == ["loop_stalled", "loop_recovered", "loop_stalled"]
    assert logs[0]["silent_s"] == STALL_S
    assert logs[1]["stalled_s"] == STALL_S + 3


async def test_a_loop_hangs_once_it_was_looked_at_in_vain_for_long(
    health: Health, clock: Clock
) -> None:
    """Looks count, and not the clock: to a frozen process much time is gone at once."""
    stalls = Stalls()
    detector = detector_of(health, asyncio.get_running_loop(), stalls, clock)
    hung = []
    with capture_logs():
        clock.now_s += 10 * DEAD_AFTER_S
        detector.check()
        health.beat()
        for _ in range(round(DEAD_AFTER_S) + 2):  # the first of them sees the beat
            clock.now_s += 1
            detector.check()
            hung.append(stalls.hangs)
    assert hung[-2:] == [0, 1]


_HANGS = """
import asyncio, time
from app.config import Settings
from app.health import Health
from app.metrics import ProcessMetrics
from app.monitor import monitored
from app.utils import configure_logging

async def main():
    async with monitored(Settings.from_env({}), Health(dead_after_s=2), ProcessMetrics()):
        time.sleep(60)

configure_logging()
asyncio.run(main())
"""


def test_a_process_ends_whose_event_loop_hangs() -> None:
    """Nothing within the loop could end it; whoever supervises it starts another."""
    done = subprocess.run(
        [sys.executable, "-c", _HANGS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "event_loop_hangs" in done.stderr


def block_the_loop(look: Callable[[], None]) -> None:
    """Hold the event loop's thread until another one has looked at it."""
    looking = threading.Thread(target=look)
    looking.start()
    looking.join()


async def wait_deep_inside(never: asyncio.Event, ready: asyncio.Event) -> None:
    """Wait for something that does not come."""
    ready.set()
    await never.wait()


async def outer(never: asyncio.Event, ready: asyncio.Event) -> None:
    """Wait for what waits."""
    await wait_deep_inside(never, ready)


async def test_a_stall_shows_where_the_loop_hangs_and_what_tasks_wait_for(
    health: Health, clock: Clock
) -> None:
    """The stack names the function that blocks, innermost first; each task its chain of awaits."""
    never, ready = asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(outer(never, ready), name="waits-for-never")
    await ready.wait()
    detector = detector_of(health, asyncio.get_running_loop(), Stalls(), clock)
    clock.now_s += STALL_S
    with capture_logs() as logs:
        block_the_loop(detector.check)
    waiting.cancel()
    (told,) = logs
    functions = [place.rsplit(" ", 1)[1] for place in told["stack"]]
    here = functions.index("test_a_stall_shows_where_the_loop_hangs_and_what_tasks_wait_for")
    assert functions.index("block_the_loop") < here
    assert re.search(r"test_health\.py:\d+ block_the_loop$", "\n".join(told["stack"]), re.MULTILINE)
    chain = [place.rsplit(" ", 1)[1] for place in told["tasks"]["waits-for-never"]]
    assert chain == ["outer", "wait_deep_inside", "Event.wait"]


async def test_what_a_stall_tells_is_bounded(health: Health, clock: Clock) -> None:
    """A deep stack, a long chain and a thousand tasks do not make an endless line."""
    never = asyncio.Event()

    async def deep(levels: int) -> None:
        await (deep(levels - 1) if levels else never.wait())

    tasks = [asyncio.create_task(deep(50), name=f"{i:04}" + "n" * 5000) for i in range(1000)]
    await asyncio.sleep(0)
    detector = detector_of(health, asyncio.get_running_loop(), Stalls(), clock)
    clock.now_s += STALL_S

    def recurse(levels: int) -> None:
        if levels:
            recurse(levels - 1)
        else:
            block_the_loop(detector.check)

    with capture_logs() as logs:
        recurse(100)
    for task in tasks:
        task.cancel()
    (told,) = logs
    assert len(told["stack"]) == 30
    assert len(told["tasks"]) == 20
    assert all(len(name) <= 256 for name in told["tasks"])
    assert all(len(places) <= 8 for places in told["tasks"].values())
    assert len(json.dumps(told)) < 60_000


async def test_a_detector_that_fails_looks_on(
    health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in a look is logged, the next one is made, and the process lives."""
    monkeypatch.setattr(health_module, "_CHECK_S", 0.001)
    looks = 0
    has_looked_twice = threading.Event()

    def fail() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            has_looked_twice.set()
        health.beat()
        clock.now_s += STALL_S
        raise RuntimeError("of a callback")

    clock.now_s += STALL_S
    stalls = Stalls()
    detector = StallDetector(
        health,
        loop=asyncio.get_running_loop(),
        on_stall=fail,
        on_recovery=stalls.lengths_s.append,
        on_hang=stalls.on_hang,
        monotonic=clock,
    )
    with capture_logs() as logs, detector:
        assert has_looked_twice.wait(WAIT_S)
    assert "stall_check_failed" in {entry["event"] for entry in logs}
    assert not detector._thread.is_alive()


# -- the server


class Broken(Collector):
    """A collector with a fault and a secret."""

    def collect(self) -> Iterator[Any]:
        """Fail."""
        raise RuntimeError("secret of the inside")


class Endless(Collector):
    """A collector with more to say than any buffer between us and a client holds."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give one metric with a long text."""
        yield GaugeMetricFamily("long", "x" * 30_000_000)


def get(port: int, path: str, *, method: str = "GET") -> tuple[int, str]:
    """Ask a server; give status and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:  # noqa: S310 - http
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


@pytest.fixture
def server(health: Health) -> Iterator[MonitorServer]:
    """A server on a free port."""
    metrics = ProcessMetrics()
    with MonitorServer(health, metrics.registry, host="127.0.0.1", port=0) as made:
        yield made


def test_each_question_gets_its_answer(server: MonitorServer, health: Health, clock: Clock) -> None:
    """200 or 503, and a body that says why."""
    ok = {"status": "ok", "reasons": {}}
    starting = {"status": "failing", "reasons": {"startup": "still starting"}}

    def answers() -> list[tuple[int, Any]]:
        asked = (get(server.port, path) for path in ("/livez", "/readyz", "/startupz"))
        return [(status, json.loads(body)) for status, body in asked]

    assert answers() == [(200, ok), (503, starting), (503, starting)]
    health.started()
    assert answers() == [(200, ok)] * 3
    health.fail(Unready.BROKER, "away")
    away = {"status": "failing", "reasons": {"broker": "away"}}
    assert answers() == [(200, ok), (503, away), (200, ok)]
    health.clear(Unready.BROKER)
    clock.now_s += DEAD_AFTER_S + 1
    (status, body), ready, startup = answers()
    assert (status, body["status"], list(body["reasons"])) == (503, "failing", ["event_loop"])
    assert ready == startup == (200, ok)


def test_metrics_are_served_as_prometheus_text(server: MonitorServer) -> None:
    """All of them, whatever part of them is asked for."""
    status, body = get(server.port, "/metrics")
    assert status == 200
    assert "# TYPE trade_stream_loop_stalls_total counter" in body
    assert "process_resident_memory_bytes" in body
    assert "trade_stream_loop" in get(server.port, "/metrics?name[]=python_info")[1]


def test_other_questions_are_refused_with_what_is_known(server: MonitorServer) -> None:
    """A wrong path and a wrong method get a clear answer, not a page of a framework."""
    status, body = get(server.port, "/healthz")
    assert status == 404
    assert json.loads(body)["reasons"] == {"path": "known are /metrics, /livez, /readyz, /startupz"}
    assert get(server.port, "/livez", method="POST")[0] == 405


def test_a_fault_inside_is_logged_and_not_told(health: Health) -> None:
    """The client gets 500 without a trace; the log gets all of it."""
    registry = CollectorRegistry()
    registry.register(Broken())
    with capture_logs() as logs, MonitorServer(health, registry, host="127.0.0.1", port=0) as made:
        status, body = get(made.port, "/metrics")
    assert status == 500
    assert json.loads(body)["reasons"] == {"monitor": "see the process's log"}
    assert "secret" not in body
    assert "monitor_request_failed" in {entry["event"] for entry in logs}


def test_requests_are_served_in_silence(
    server: MonitorServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a probe, nor a wrong request, nor a client that goes away writes a line."""
    get(server.port, "/livez")
    get(server.port, "/nowhere")
    with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as client:
        client.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        while client.recv(4096):
            pass
    get(server.port, "/livez")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_silent_clients_do_not_keep_a_probe_out(
    server: MonitorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every connection taken by clients that say nothing, the oldest one makes room."""
    monkeypatch.setattr(monitor_module._Handler, "timeout", 10 * WAIT_S)
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), WAIT_S))
            for _ in range(MAX_CONNECTIONS)
        ]
        for client in silent:
            client.sendall(b"GET /livez HT")
        assert get(server.port, "/livez")[0] == 200
        assert silent[0].recv(1) == b""
        assert get(server.port, "/livez")[0] == 200


def test_a_client_that_says_nothing_is_cut_off_in_time(
    server: MonitorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody holds a connection without a request."""
    assert monitor_module._Handler.timeout == REQUEST_TIMEOUT_S
    monkeypatch.setattr(monitor_module._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as client:
        client.sendall(b"GET ")
        assert client.recv(1) == b""


def test_a_client_that_does_not_read_is_dropped_in_silence(
    health: Health, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An answer that nobody takes ends in time, without a trace on standard error."""
    registry = CollectorRegistry()
    registry.register(Endless())
    with MonitorServer(health, registry, host="127.0.0.1", port=0) as made:
        monkeypatch.setattr(monitor_module._Handler, "timeout", 0.05)
        with socket.create_connection(("127.0.0.1", made.port), WAIT_S) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(1) == b"H"
            wait_for(lambda: not made._server._open, "the connection is dropped")
    assert capfd.readouterr().err == ""


def test_a_stopped_server_leaves_port_and_threads_behind_free(health: Health) -> None:
    """The port can be had again at once, and no thread of it lives on."""
    before = set(threading.enumerate())
    with MonitorServer(health, CollectorRegistry(), host="127.0.0.1", port=0) as made:
        assert get(made.port, "/livez")[0] == 200
    with MonitorServer(health, CollectorRegistry(), host="127.0.0.1", port=made.port):
        pass
    left = [t for t in threading.enumerate() if t not in before and t.name == "monitor"]
    assert not left


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_it_listens_at_the_address_that_is_set(health: Health, host: str) -> None:
    """An IPv6 address and a name work as well."""
    with (
        MonitorServer(health, CollectorRegistry(), host=host, port=0) as made,
        socket.create_connection((host, made.port), WAIT_S) as client,
    ):
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.0 200 OK")


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_cannot_be_had_is_a_clear_error(
    server: MonitorServer, health: Health, host: str
) -> None:
    """A taken port, another machine's address and an unknown name: what, and what to do."""
    with pytest.raises(TradeStreamError, match=r"HEALTH_PORT: cannot listen at .* free port"):
        MonitorServer(health, CollectorRegistry(), host=host, port=server.port)


# -- a process


async def test_a_process_answers_while_its_event_loop_hangs() -> None:
    """The answer comes although the loop's thread does nothing but wait for it."""
    health = Health()
    health.started()
    settings = Settings.from_env({"HEALTH_PORT": "0"})
    with capture_logs() as logs:
        async with monitored(settings, health, ProcessMetrics()):
            (listens,) = [entry for entry in logs if entry["event"] == "monitor_listens"]
            assert get(listens["port"], "/readyz")[0] == 200  # called by the loop itself
            assert get(listens["port"], "/metrics")[0] == 200
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", listens["port"]), WAIT_S)


async def test_nothing_is_served_unless_it_is_set() -> None:
    """Without a port there is no server, and the loop is watched all the same."""
    health = Health()
    before = health.beat_s
    async with monitored(Settings.from_env({}), health, ProcessMetrics()):
        await asyncio.sleep(0)
        assert health.beat_s > before
        names = {thread.name for thread in threading.enumerate()}
    assert "stall-detector" in names
    assert "monitor" not in names


def test_a_taken_port_ends_a_program_with_what_to_do() -> None:
    """Exit code 1 and one line, before any broker is looked for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "app/producer.py", "--count", "1"],
            cwd=ROOT,
            env=child_environment({"HEALTH_PORT": port, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"error: HEALTH_PORT: cannot listen at 127.0.0.1:{port}: Address already in use."
        " Set it to a free port, or to 0 for any; HEALTH_HOST is the address"
    )


@pytest.mark.parametrize(
    ("health_port", "ports"),
    [(None, [None, None, None]), (0, [None, None, None]), (9464, ["9464", "9465", "9466"])],
)
def test_each_worker_gets_a_port_of_its_own(
    health_port: int | None, ports: list[str | None]
) -> None:
    """One above the other; where any port will do, each takes what our own environment says."""
    supervisor = Supervisor(3, [], health_port=health_port)
    assert [supervisor._environment(number).get("HEALTH_PORT") for number in range(3)] == ports


@pytest.mark.parametrize("value", ["-1", "65536", "x"])
def test_a_port_that_is_none_is_refused(value: str) -> None:
    """By its name, like any other setting."""
    with pytest.raises(TradeStreamError, match=r"^HEALTH_PORT: "):
        Settings.from_env({"HEALTH_PORT": value})


# -- the producer


@virtual_time
async def test_a_producer_is_ready_unless_acknowledgements_stay_away() -> None:
    """Started with its first turn; after five seconds without an answer not ready, then again."""
    is_stored, may_go_on = asyncio.Event(), asyncio.Event()

    class SlowPublisher(MemoryPublisher):
        async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
            await may_go_on.wait()
            return await super().publish(records)

    health, stop = Health(), asyncio.Event()
    producer = TradeProducer(
        SlowPublisher(MemoryBroker({"t": 1})),
        topic="t",
        simulator=TradeSimulator(run_id="R", seed=1),
        health=health,
        progress=lambda _: is_stored.set(),
    )
    assert health.ready() == {"startup": "still starting"}
    running = asyncio.create_task(producer.run(stop))
    await asyncio.sleep(4)
    assert health.ready() == {}
    await asyncio.sleep(2)
    assert health.ready() == {"broker": "no acknowledgement for 5 s"}
    may_go_on.set()
    await is_stored.wait()
    assert health.ready() == {}
    stop.set()
    await running
    assert health.ready().keys() == {"stopping"}


@virtual_time
async def test_a_producer_that_cannot_store_is_not_ready() -> None:
    """An outcome that is not `ok` says so at once."""
    publisher = MemoryPublisher(MemoryBroker({"t": 1}))
    publisher.faults = lambda _: Fault.NOT_SENT
    told: list[dict[str, str]] = []
    health = Health()
    producer = TradeProducer(
        publisher,
        topic="t",
        simulator=TradeSimulator(run_id="R", seed=1),
        health=health,
        progress=lambda _: told.append(health.ready()),
    )
    await producer.run(asyncio.Event(), count=1)
    assert told == [{"stopping": ANY, "broker": "records are not stored"}]


# -- against a real broker


def answers(port: int, path: str) -> bool:
    """Tell whether a port answers yes."""
    try:
        return get(port, path)[0] == 200
    except OSError:
        return False


def two_free_ports() -> int:
    """Find a port that is free, and the one above it as well."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
        return port


@pytest.mark.integration
@pytest.mark.slow
def test_each_worker_answers_at_its_own_port(kafka_bootstrap: str) -> None:
    """Two workers of one command are two targets, one port above the other."""
    port = two_free_ports()
    world = World(kafka_bootstrap, extra={"HEALTH_PORT": str(port)})
    try:
        workers = world.start("-m", "app", "consume", "--workers", "2")
        wait_for(lambda: answers(port, "/readyz"), "the first is ready")
        wait_for(lambda: answers(port + 1, "/readyz"), "the second is ready")
        workers.terminate()
        assert workers.wait(30) == 0
        assert not answers(port, "/livez")
        assert not answers(port + 1, "/livez")
    finally:
        world.close()


@pytest.mark.integration
@pytest.mark.slow
def test_a_broker_that_is_away_is_waited_for_alive(tmp_path: Path) -> None:
    """Both programs live all the time, and a producer says meanwhile that it is not ready."""
    of_producer, of_consumer = two_free_ports(), two_free_ports()

    def are_alive() -> bool:
        return answers(of_producer, "/livez") and answers(of_consumer, "/livez")

    with EmbeddedKafka(data_dir=tmp_path / "kafka", port=0) as kafka:
        world = World(kafka.bootstrap)
        try:
            world.start("app/producer.py", HEALTH_PORT=str(of_producer))
            world.start("app/consumer.py", HEALTH_PORT=str(of_consumer))
            wait_for(lambda: answers(of_consumer, "/readyz"), "the consumer is ready")
            wait_for(lambda: answers(of_producer, "/readyz"), "the producer is ready")
            kafka.stop()
            wait_for(lambda: not answers(of_producer, "/readyz"), "the producer is not ready")
            assert are_alive()
            kafka.start()
            wait_for(lambda: answers(of_producer, "/readyz"), "the producer is ready again")
            assert are_alive()
        finally:
            world.close()


# -- containers


def image_check() -> list[str]:
    """Give the command that the image is checked with."""
    (command,) = re.findall(
        r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$",
        (ROOT / "Dockerfile").read_text(),
        re.MULTILINE,
    )
    words: list[str] = json.loads(command)
    return words


def run_image_check(**environment: str) -> int:
    """Run it as a container with these variables would; give its exit code."""
    words = image_check()
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:]],
        env=child_environment(environment),
        capture_output=True,
        check=False,
        timeout=60,
    ).returncode


def test_check_of_the_image_tells_life_from_death(server: MonitorServer, clock: Clock) -> None:
    """0 while the process lives or serves nothing, 1 when it hangs or is gone."""
    assert run_image_check() == 0
    assert run_image_check(HEALTH_PORT="0") == 0  # nobody but the log knows which one it is
    assert run_image_check(HEALTH_PORT=str(server.port)) == 0
    clock.now_s += DEAD_AFTER_S + 1
    assert run_image_check(HEALTH_PORT=str(server.port)) == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    assert run_image_check(HEALTH_PORT=str(nobody)) == 1


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "::"])
def test_check_of_the_image_asks_where_the_process_listens(health: Health, host: str) -> None:
    """At a single address, whatever its family, and at any."""
    try:
        server = MonitorServer(health, CollectorRegistry(), host=host, port=0)
    except TradeStreamError:
        pytest.skip("no such address on this machine")
    with server:
        assert run_image_check(HEALTH_HOST=host, HEALTH_PORT=str(server.port)) == 0


def test_compose_publishes_the_ports_on_this_machine_only() -> None:
    """Producer and consumer serve inside their network, and at loopback outside of it."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    published = []
    for name in ("consumer", "producer"):
        environment = services[name]["environment"]
        assert environment["HEALTH_HOST"] == "0.0.0.0"  # noqa: S104 - in a container
        (port,) = services[name]["ports"]
        host, outside, inside = port.split(":")
        assert (host, inside) == ("127.0.0.1", environment["HEALTH_PORT"])
        published.append(outside)
    assert len(set(published)) == len(published)
