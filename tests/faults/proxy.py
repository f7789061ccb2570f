"""A relay in front of a broker that reads the frames which pass, to hurt exactly some of them.

It knows the first bytes of a frame alone: a request begins with length, API key, API version and
correlation id, its answer with length and correlation id. So a fault can be bound to an API, and
an answer can be kept back of which it is known that the broker has given it.

What stands behind a socket file is taken for PostgreSQL. Of its protocol the relay knows where a
message begins and ends, a COMMIT with its answer, and the message that ends an exchange.
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from aiokafka.record.util import calc_crc32c

HOST: Final = "127.0.0.1"
PRODUCE: Final = 0
FETCH: Final = 1
OFFSET_COMMIT: Final = 8

_REQUEST: Final = struct.Struct(">ihhi")
_ANSWER: Final = struct.Struct(">ii")
_MESSAGE: Final = struct.Struct(">ci")
_STARTUP: Final = struct.Struct(">ii")
_WANTS_ENCRYPTION: Final = frozenset({80877103, 80877104})  # by TLS, by GSS
_SHORT_QUERY: Final = 1024
_LENGTH_BYTES: Final = 4
_MAX_FRAME: Final = 128 * 1024**2
_CHUNK: Final = 64 * 1024
_FLIPPABLE: Final = 4 * 1024**2  # a frame is held as a whole only to spoil it
_DRIPS_PER_S: Final = 20
_CALL_TIMEOUT_S: Final = 10.0
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a relay does to the traffic; the default does nothing.

    Attributes:
        apis: API keys of the requests, and of their answers, that it concerns; empty is all.
        latency_s: Each answer waits so long before it goes on, in turn with those before it.
        jitter_s: Up to so much longer, at random.
        bytes_per_s: Frames trickle at this pace; 0 is unbounded.
        cut_share: Share of requests that reach the broker, and whose connection is cut when the
            broker has answered: the client cannot know the outcome. Of PostgreSQL: of its commits.
        flip_requests: Share of requests with one wrong bit in their records; likewise
            `flip_answers`. The bit is one that the checksum of a batch covers.
        refuses: New connections are reset.
        is_black_hole: Whatever arrives is swallowed, and connections stay open. When this ends they
            are reset, as by a peer that has forgotten them.
    """

    apis: frozenset[int] = frozenset()
    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: int = 0
    cut_share: float = 0.0
    flip_requests: float = 0.0
    flip_answers: float = 0.0
    refuses: bool = False
    is_black_hole: bool = False

    def concerns(self, api: int) -> bool:
        """Tell whether requests of an API, and their answers, are hurt."""
        return not self.apis or api in self.apis


NO_FAULT: Final = Fault()


class _CutError(Exception):
    """This connection ends now."""


class Proxy:
    """The relay of one broker or database; lives in one event loop.

    Args:
        target: Port where the broker listens, or socket file of a PostgreSQL.
        seed: Of every choice that is left to chance.

    Attributes:
        counts: What it has done, by name.
    """

    def __init__(self, target: int | Path, seed: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self.random = random.Random(seed)
        self.fault = NO_FAULT
        self.counts: Counter[str] = Counter()

    async def start(self, port: int) -> None:
        """Listen on a port."""
        self._server = await asyncio.start_server(self._serve, HOST, port, limit=_CHUNK)

    async def stop(self) -> None:
        """Stop listening and reset what is connected."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def set(self, fault: Fault) -> None:
        """Do this from now on, and nothing else."""
        self.fault = fault
        if not fault.is_black_hole:
            for connection in list(self._connections):
                if connection.has_swallowed:
                    connection.reset()

    def cut(self) -> None:
        """Reset every connection."""
        for connection in list(self._connections):
            self.counts["cut"] += 1
            connection.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        if self.fault.refuses:
            self.counts["refused"] += 1
            _reset(writer)
            return
        try:
            if isinstance(self._target, Path):
                upstream = await asyncio.open_unix_connection(self._target, limit=_CHUNK)
            else:
                upstream = await asyncio.open_connection(HOST, self._target, limit=_CHUNK)
        except OSError:  # the broker is down
            self.counts["unreachable"] += 1
            _reset(writer)
            return
        kind = _DatabaseConnection if isinstance(self._target, Path) else _Connection
        connection = kind(self, (reader, writer), upstream)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


class _Connection:
    """One client's connection and ours to the broker."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        broker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._broker = broker
        self._apis: dict[int, int] = {}  # of the requests whose answer is due, by correlation id
        self._doomed: set[int] = set()
        self.has_swallowed = False

    async def run(self) -> None:
        pumps = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._answers())]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        self.reset()
        for pump in pumps:
            pump.cancel()
        for result in await asyncio.gather(*pumps, return_exceptions=True):
            if not isinstance(result, _CutError | EOFError | OSError | asyncio.CancelledError):
                self._proxy.counts["broken"] += 1

    def reset(self) -> None:
        for _, writer in (self._client, self._broker):
            _reset(writer)

    async def _requests(self) -> None:
        proxy = self._proxy
        while True:
            head = await self._client[0].readexactly(_REQUEST.size)
            size, api, _, correlation = _REQUEST.unpack(head)
            fault = proxy.fault
            is_concerned = fault.concerns(api)
            proxy.counts["requests"] += 1
            self._apis[correlation] = api
            if is_concerned and proxy.random.random() < fault.cut_share:
                self._doomed.add(correlation)
            flips = is_concerned and proxy.random.random() < fault.flip_requests
            rest = size + _LENGTH_BYTES - len(head)
            await self._relay(head, rest, self._client[0], self._broker[1], api, flips=flips)

    async def _answers(self) -> None:
        proxy = self._proxy
        while True:
            head = await self._broker[0].readexactly(_ANSWER.size)
            size, correlation = _ANSWER.unpack(head)
            api = self._apis.pop(correlation, -1)
            if correlation in self._doomed:
                proxy.counts["answers_withheld"] += 1
                raise _CutError
            fault = proxy.fault
            is_concerned = fault.concerns(api)
            if is_concerned and (fault.latency_s or fault.jitter_s):
                proxy.counts["delayed"] += 1
                await asyncio.sleep(fault.latency_s + fault.jitter_s * proxy.random.random())
            flips = is_concerned and proxy.random.random() < fault.flip_answers
            rest = size + _LENGTH_BYTES - len(head)
            await self._relay(head, rest, self._broker[0], self._client[1], api, flips=flips)

    async def _relay(
        self,
        head: bytes,
        rest: int,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        api: int,
        *,
        flips: bool,
    ) -> None:
        """Pass the rest of a frame on, in pieces: what is held of it is bounded."""
        if not 0 <= rest <= _MAX_FRAME:
            raise _CutError
        self.has_swallowed = self.has_swallowed or self._proxy.fault.is_black_hole
        if flips and rest <= _FLIPPABLE:
            frame = bytearray(await source.readexactly(rest))
            self._proxy.counts["flipped"] += flip_one_bit(frame, self._proxy.random)
            rest, head = 0, head + frame
        await self._pass(sink, head, api)
        while rest:
            piece = await source.read(min(rest, _CHUNK))
            if not piece:
                raise EOFError
            rest -= len(piece)
            await self._pass(sink, piece, api)

    async def _pass(self, sink: asyncio.StreamWriter, piece: bytes, api: int) -> None:
        if self.has_swallowed:
            self._proxy.counts["swallowed"] += len(piece)
            return
        start = 0
        while start < len(piece):
            fault = self._proxy.fault  # it may end in the middle of a frame
            pace = fault.bytes_per_s if fault.concerns(api) else 0
            step = max(1, pace // _DRIPS_PER_S) if pace else len(piece)
            sink.write(piece[start : start + step])
            await sink.drain()
            start += step
            if pace:
                self._proxy.counts["dripped"] += 1
                await asyncio.sleep(step / pace)


class _DatabaseConnection(_Connection):
    """One client's connection and ours to a PostgreSQL.

    Source:
        PostgreSQL manual, "Message Formats": a type (1 byte) and a length (4, itself included) but
        for the first message, which has no type.
    """

    _is_doomed = False
    """Whether a COMMIT is on its way whose answer nobody is to get."""

    async def _requests(self) -> None:
        client, server = self._client, self._broker[1]
        proxy = self._proxy
        await self._start_up()
        while True:
            head = await client[0].readexactly(_MESSAGE.size)
            kind, size = _MESSAGE.unpack(head)
            rest = size - _LENGTH_BYTES
            proxy.counts["requests"] += 1
            if kind == b"Q" and 0 < rest <= _SHORT_QUERY:
                query = await client[0].readexactly(rest)
                head, rest = head + query, 0
                if query.upper().startswith(b"COMMIT"):
                    proxy.counts["commits"] += 1
                    self._is_doomed = proxy.random.random() < proxy.fault.cut_share
            await self._relay(head, rest, client[0], server, 0, flips=False)

    async def _start_up(self) -> None:
        client, server = self._client, self._broker[1]
        while True:
            head = await client[0].readexactly(_STARTUP.size)
            size, code = _STARTUP.unpack(head)
            if code not in _WANTS_ENCRYPTION:
                break
            client[1].write(b"N")
        await self._relay(head, size - len(head), client[0], server, 0, flips=False)

    async def _answers(self) -> None:
        server, client = self._broker[0], self._client[1]
        proxy = self._proxy
        while True:
            head = await server.readexactly(_MESSAGE.size)
            kind, size = _MESSAGE.unpack(head)
            rest = size - _LENGTH_BYTES
            if self._is_doomed and kind == b"C":  # done
                tag = await server.readexactly(rest)
                head, rest, self._is_doomed = head + tag, 0, False
                if tag.startswith(b"COMMIT"):  # or else what failed before was rolled back
                    proxy.counts["answers_withheld"] += 1
                    raise _CutError
            fault = proxy.fault
            if kind == b"Z" and (fault.latency_s or fault.jitter_s):  # the last one of an exchange
                proxy.counts["delayed"] += 1
                await asyncio.sleep(fault.latency_s + fault.jitter_s * proxy.random.random())
            await self._relay(head, rest, server, client, 0, flips=False)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with suppress(OSError):  # closed already
        # Lingering for no time makes the system send RST instead of FIN.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def covered_ranges(frame: bytes | bytearray) -> Iterator[range]:
    """Find the record batches in some bytes: what of each its checksum covers.

    Source:
        Kafka's record batch, magic 2: base offset (8 bytes), length (4), leader epoch (4), magic
        (1), CRC-32C (4) of everything that follows.
    """
    start = 0
    while (magic := frame.find(b"\x02", start + 16)) >= 0:
        start = magic - 16
        (length,) = struct.unpack_from(">i", frame, start + 8)
        end = start + 12 + length
        if length >= 49 and end <= len(frame):  # the fields of an empty batch
            (checksum,) = struct.unpack_from(">I", frame, start + 17)
            if calc_crc32c(bytes(frame[start + 21 : end])) == checksum:
                yield range(start + 21, end)
                start = end
                continue
        start += 1


def flip_one_bit(frame: bytearray, draw: random.Random) -> bool:
    """Turn one bit over in one of the record batches of a frame; False where there is none."""
    ranges = list(covered_ranges(frame))
    if not ranges:
        return False
    index = draw.choice(draw.choice(ranges))
    frame[index] ^= 1 << draw.randrange(8)
    return True


class Network:
    """The relays of all nodes of a cluster, in a thread of their own.

    Args:
        ports: Port of the relay, and what is behind it, by node id; see `Proxy`.
        seed: Of every choice that is left to chance.
    """

    def __init__(self, ports: Mapping[int, tuple[int, int | Path]], seed: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="network")
        self._thread.start()
        self._proxies: dict[int, Proxy] = {}
        for node, (port, target) in ports.items():
            self._proxies[node] = Proxy(target, seed * 31 + node)
            self._call(self._proxies[node].start(port))

    def stop(self) -> None:
        """End the relays and their thread."""
        for proxy in self._proxies.values():
            self._call(proxy.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)
        self._loop.close()

    def set(self, fault: Fault, node: int | None = None) -> None:
        """Do this to the traffic of one node, or of all, from now on."""
        for proxy in self._chosen(node):
            self._call(_called(lambda proxy=proxy: proxy.set(fault)))

    def cut(self, node: int | None = None) -> None:
        """Reset the connections to one node, or to all."""
        for proxy in self._chosen(node):
            self._call(_called(proxy.cut))

    def counts(self) -> Counter[str]:
        """Give how often each thing was done, over all relays."""
        return sum((proxy.counts for proxy in self._proxies.values()), Counter[str]())

    @contextmanager
    def fault(self, fault: Fault, node: int | None = None) -> Iterator[None]:
        """Do something for the time of a block."""
        self.set(fault, node)
        try:
            yield
        finally:
            self.set(NO_FAULT, node)

    def _chosen(self, node: int | None) -> list[Proxy]:
        return list(self._proxies.values()) if node is None else [self._proxies[node]]

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT_S)


async def _called(function: Any) -> None:
    function()
