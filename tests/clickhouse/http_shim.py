"""ClickHouse's HTTP interface over the engine in this process; it can lose requests and answers."""

import random
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

PASSWORD: Final = "s3cret"
_SETTINGS: Final = frozenset(
    {
        "output_format_decimal_trailing_zeros", "max_query_size", "mutations_sync",
        "lightweight_deletes_sync", "async_insert", "insert_deduplicate",
    }
)  # fmt: skip
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_INSERT = re.compile(rb"\s*INSERT INTO [^\n]*? FORMAT \w+\n", re.IGNORECASE)


class HttpShim:
    """A server on the loopback.

    Attributes:
        loss: Chance that a request is not carried out, and that an answer is not sent.
        is_down: Whether every connection is broken off.
        requests: How many came.
        lost: How many were lost in either way.
        settings: Settings that came with requests, by name.
    """

    def __init__(self, data_dir: Path, seed: int) -> None:
        self.loss = 0.0
        self.is_down = False
        self.requests = 0
        self.lost = 0
        self.settings: dict[str, str] = {}
        self._draw = random.Random(seed)
        import chdb  # noqa: PLC0415 - where it is missing, tests are collected all the same

        untyped: Any = chdb
        self._engine = untyped.connect(str(data_dir.resolve()))
        self._lock = threading.Lock()

    def answer(self, parameters: dict[str, str], body: bytes) -> tuple[int, bytes, str] | None:
        """Carry a request out; `None` where it, or its answer, is lost."""
        with self._lock:
            self.requests += 1
            if self.is_down or self._is_lost():
                return None
            try:
                answer = self._run(parameters, body)
            except RuntimeError as exc:
                answer = (500, str(exc).encode(), "")
            return None if self._is_lost() else answer

    def _is_lost(self) -> bool:
        is_lost = self._draw.random() < self.loss
        self.lost += is_lost
        return is_lost

    def _run(self, parameters: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        self._engine.query(f"USE {parameters.get('database', 'default')}")
        for name in parameters.keys() & _SETTINGS:
            self.settings[name] = parameters[name]
            self._engine.query(f"SET {name} = {parameters[name]}")
        statement = parameters.get("query", "")
        if not statement:
            # What is inserted may follow its statement in the body.
            insert = _INSERT.match(body)
            end = insert.end() if insert else len(body)
            statement, body = body[:end].decode(), body[end:]
        found = _FORMAT.search(statement)
        form_name = found.group(1) if found else "TabSeparated"
        if body:
            assert found is not None
            with tempfile.NamedTemporaryFile() as file:
                file.write(body)
                file.flush()
                head = statement[: found.start()]
                self._engine.query(f"{head} FROM INFILE '{file.name}' FORMAT {form_name}")
            return 200, b"", ""
        result = self._engine.query(statement[: found.start()] if found else statement, form_name)
        return 200, bytes(result.bytes()), form_name

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


@contextmanager
def http_shim(data_dir: Path, *, seed: int = 1) -> Iterator[tuple[HttpShim, str]]:
    """Serve the engine; give the shim and its address."""
    shim = HttpShim(data_dir, seed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parameters = dict(parse_qsl(urlsplit(self.path).query))
            size = int(self.headers.get("Content-Length") or 0)
            chunked = self.headers.get("Transfer-Encoding") == "chunked"
            body = self._chunks() if chunked else self.rfile.read(size)
            answer = shim.answer(parameters, body)
            if answer is None:
                self.close_connection = True
                self.connection.close()
                return
            status, content, form = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if form:
                self.send_header("X-ClickHouse-Format", form)
            self.send_header("X-ClickHouse-Timezone", "UTC")
            if status != 200:
                code = re.search(rb"Code: (\d+)", content)
                self.send_header(
                    "X-ClickHouse-Exception-Code", (code[1] if code else b"1").decode()
                )
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = _handle  # noqa: N815 - the server's names

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield (
            shim,
            f"clickhouse://desk:{PASSWORD}@127.0.0.1:{server.server_address[1]}/trade_stream",
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        shim.close()
