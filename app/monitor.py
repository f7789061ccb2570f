"""What a process answers about itself over HTTP: `/metrics`, `/livez`, `/readyz`, `/startupz`.

The server runs in threads, because it has to answer when the event loop is what hangs. It reads
what the process says of itself and changes nothing.
"""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from http import HTTPStatus
from io import StringIO
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Final, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from app.config import Settings
from app.errors import TradeStreamError
from app.health import BEAT_S, Health, StallDetector
from app.lifecycle import end_at_once
from app.metrics import ProcessMetrics

log = structlog.get_logger(__name__)

Request = socket.socket | tuple[bytes, socket.socket]  # the second is a datagram's
OptExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

REQUEST_TIMEOUT_S: Final = 5.0
MAX_CONNECTIONS: Final = 16
_POLL_S: Final = 0.1


@asynccontextmanager
async def monitored(
    settings: Settings, health: Health, metrics: ProcessMetrics
) -> AsyncIterator[None]:
    """Watch the event loop for the block, and answer for the process where `HEALTH_PORT` is set.

    It belongs around everything that a process does, so that it answers while it still connects.
    A process whose event loop hangs for good is ended with an error.

    Args:
        settings: Where to listen.
        health: Gets the beat of the event loop.
        metrics: What is scraped; gets the stalls.

    Raises:
        TradeStreamError: The port cannot be had.
    """
    server: AbstractContextManager[object] = nullcontext()
    if settings.health_port is not None:
        server = MonitorServer(
            health, metrics.registry, host=settings.health_host, port=settings.health_port
        )
    detector = StallDetector(
        health,
        loop=asyncio.get_running_loop(),
        on_stall=metrics.loop_stalled,
        on_recovery=metrics.loop_recovered,
        on_hang=partial(end_at_once, "event_loop_hangs"),
    )
    with server, detector:
        beating = asyncio.create_task(_beat(health), name="beat")
        try:
            yield
        finally:
            beating.cancel()


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(BEAT_S)


class MonitorServer:
    """Serves metrics and health from the moment it is made until the end of its block.

    Args:
        health: Answers the three questions.
        registry: Gives the metrics.
        host: Address to listen at, or a name of one.
        port: Port to listen at; 0 takes a free one, which is logged.

    Raises:
        TradeStreamError: The port cannot be had; says what to do.
    """

    def __init__(
        self, health: Health, registry: CollectorRegistry, *, host: str, port: int
    ) -> None:
        try:
            self._server = _bound(host, port)
        except OSError as exc:
            raise TradeStreamError(
                f"HEALTH_PORT: cannot listen at {host}:{port}: {exc.strerror or exc}."
                " Set it to a free port, or to 0 for any; HEALTH_HOST is the address"
            ) from exc
        self._server.set_app(_application(health, registry))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": _POLL_S},
            name="monitor",
            daemon=True,
        )
        log.info("monitor_listens", host=host, port=self.port)

    def __enter__(self) -> Self:
        """Start to answer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop to answer, and free the port; answers on their way may be cut off."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _application(health: Health, registry: CollectorRegistry) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)
    questions: dict[str, Callable[[], dict[str, str]]] = {
        "/livez": health.live,
        "/readyz": health.ready,
        "/startupz": health.startup,
    }

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            path = environ["PATH_INFO"]
            if environ["REQUEST_METHOD"] != "GET":
                return _say(start_response, HTTPStatus.METHOD_NOT_ALLOWED, {"method": "only GET"})
            if path == "/metrics":
                # All of them, always: what is counted at a scrape cannot be asked for by name.
                return metrics(environ | {"QUERY_STRING": ""}, start_response)
            if path not in questions:
                known = ", ".join(["/metrics", *questions])
                return _say(start_response, HTTPStatus.NOT_FOUND, {"path": f"known are {known}"})
            reasons = questions[path]()
            status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
            return _say(start_response, status, reasons)
        except Exception:  # outermost of a request: our log gets the trace, the client nothing
            log.exception("monitor_request_failed")
            status, hint = HTTPStatus.INTERNAL_SERVER_ERROR, {"monitor": "see the process's log"}
            return _say(start_response, status, hint, sys.exc_info())

    return answer


def _say(
    start_response: StartResponse,
    status: HTTPStatus,
    reasons: dict[str, str],
    failed: OptExcInfo | None = None,
) -> list[bytes]:
    word = "ok" if status is HTTPStatus.OK else "failing"
    body = json.dumps({"status": word, "reasons": reasons}).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    start_response(f"{status.value} {status.phrase}", headers, failed)
    return [body]


def _bound(host: str, port: int) -> "_Server":
    """Open the listening socket, whatever family of address the host has."""
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return _Server(family, (str(address[0]), port))


class _Handler(WSGIRequestHandler):
    """One request of a connection, without patience and without noise."""

    timeout = REQUEST_TIMEOUT_S

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come every few seconds."""

    def get_stderr(self) -> StringIO:
        """Give a place for traces of connections that break off, which nobody reads."""
        return StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    """A server with so many connections and no more: the oldest one makes room for the next.

    A probe is short. What lasts until so many others have come is stuck or hostile, and must not
    keep the probes of others out.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        self._lock = threading.Lock()
        self._open: dict[Request, None] = {}  # the oldest first
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Request, client_address: object) -> None:
        """Answer in a thread; end the oldest connection if there are too many."""
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                _cut(oldest)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        """End a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Say little of a connection that broke off or came to nothing in time."""
        log.debug("monitor_connection_failed", error=repr(sys.exc_info()[1]))


def _cut(connection: Request) -> None:
    assert isinstance(connection, socket.socket), "a stream has a socket"
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended by itself
        return
