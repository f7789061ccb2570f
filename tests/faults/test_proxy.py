"""The relay does each of its faults, and nothing where it has none to do."""

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from app.embedded.loopback import pick_ports
from tests.faults.proxy import (
    FETCH,
    HOST,
    OFFSET_COMMIT,
    PRODUCE,
    Fault,
    Network,
    covered_ranges,
    flip_one_bit,
)

SILENCE_S = 0.3


class Wire:
    """A broker that answers each request with its own body, and one client beyond the relay."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.server: asyncio.Server | None = None
        self.served: list[bytes] = []
        self._clients: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the other side goes."""
        self._serving.append(asyncio.current_task())  # type: ignore[arg-type]  # there is one
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                request = await reader.readexactly(size)
                self.served.append(request[8:])
                writer.write(struct.pack(">i", size - 4) + request[4:])
                await writer.drain()
        except (EOFError, OSError):
            writer.transport.abort()

    async def close(self) -> None:
        """End the connections of both sides."""
        for writer in self._clients:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        await asyncio.gather(*self._serving)

    async def connect(self) -> Callable[[int, bytes], Awaitable[bytes]]:
        """Give a function that sends a request and waits for its answer."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        self._clients.append(writer)
        correlation = 0

        async def ask(api: int, body: bytes) -> bytes:
            nonlocal correlation
            correlation += 1
            writer.write(struct.pack(">ihhi", len(body) + 8, api, 0, correlation) + body)
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            answer = await reader.readexactly(size)
            assert struct.unpack(">i", answer[:4])[0] == correlation
            return answer[4:]

        return ask


@pytest.fixture
def ports() -> tuple[int, int]:
    """Port of the relay, and of the broker."""
    first, second = pick_ports(2)
    return first, second


@pytest.fixture
def network(ports: tuple[int, int]) -> Iterator[Network]:
    """A relay without faults."""
    made = Network({1: ports}, seed=7)
    yield made
    made.stop()


@pytest.fixture
async def net(network: Network, ports: tuple[int, int]) -> AsyncIterator[Wire]:
    """A broker behind the relay."""
    made = Wire(ports[0])
    made.server = await asyncio.start_server(made.serve, HOST, ports[1])
    yield made
    await made.close()
    made.server.close()


async def test_without_a_fault_frames_of_any_size_pass_unchanged(net: Wire) -> None:
    """Small and large requests come back as they went."""
    ask = await net.connect()
    for size in (0, 1, 100_000, 3_000_000):
        body = random.Random(size).randbytes(size)
        assert await ask(PRODUCE, body) == body


async def test_cut_answers_are_those_of_requests_that_were_served(
    net: Wire, network: Network
) -> None:
    """The broker has the request, its client only a cut; other APIs pass."""
    network.set(Fault(apis=frozenset({PRODUCE}), cut_share=1.0))
    ask = await net.connect()
    assert await ask(OFFSET_COMMIT, b"commit") == b"commit"
    with pytest.raises((EOFError, OSError)):
        await ask(PRODUCE, b"unknown")
    assert net.served == [b"commit", b"unknown"]
    assert network.counts()["answers_withheld"] == 1


async def test_latency_delays_and_a_drip_trickles(net: Wire, network: Network) -> None:
    """Both cost about the time they should, and end with the fault."""
    ask = await net.connect()
    began = time.monotonic()
    with network.fault(Fault(latency_s=0.2, jitter_s=0.1)):
        await ask(FETCH, b"")
    assert 0.2 <= time.monotonic() - began < 2
    with network.fault(Fault(bytes_per_s=10_000)):
        began = time.monotonic()
        assert await ask(FETCH, bytes(2_000)) == bytes(2_000)
        assert 0.3 <= time.monotonic() - began < 3  # there and back
        slow = asyncio.ensure_future(ask(FETCH, bytes(1_000_000)))
        await asyncio.wait([slow], timeout=SILENCE_S)
        assert not slow.done()
    assert len(await asyncio.wait_for(slow, 10)) == 1_000_000
    assert network.counts()["delayed"] == 1
    assert network.counts()["dripped"] > 10


async def test_black_hole_keeps_connections_open_and_resets_them_at_its_end(
    net: Wire, network: Network
) -> None:
    """Nothing arrives and nobody is told, until the peer comes back and knows nothing."""
    ask = await net.connect()
    assert await ask(FETCH, b"before") == b"before"
    with network.fault(Fault(is_black_hole=True)):
        waiting = asyncio.ensure_future(ask(PRODUCE, b"lost"))
        late = asyncio.ensure_future((await net.connect())(PRODUCE, b"lost"))
        await asyncio.wait([waiting, late], timeout=SILENCE_S)
        assert not waiting.done()
        assert not late.done()
    for swallowed in (waiting, late):
        with pytest.raises((EOFError, OSError)):
            await swallowed
    assert net.served == [b"before"]
    assert await (await net.connect())(FETCH, b"after") == b"after"


async def test_refused_and_cut_connections_are_reset(net: Wire, network: Network) -> None:
    """New connections, those at hand, and those to a broker that is down."""
    ask = await net.connect()
    await ask(FETCH, b"")
    with network.fault(Fault(refuses=True)), pytest.raises((EOFError, OSError)):
        await (await net.connect())(FETCH, b"")
    assert await ask(FETCH, b"still here") == b"still here"
    network.cut()
    with pytest.raises((EOFError, OSError)):
        await ask(FETCH, b"")
    assert net.server is not None
    net.server.close()
    with pytest.raises((EOFError, OSError)):
        await (await net.connect())(FETCH, b"")
    assert [network.counts()[what] for what in ("refused", "cut", "unreachable")] == [1, 1, 1]


def batch(*values: bytes) -> bytes:
    """Build one record batch."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=100_000,
    )  # fmt: skip
    for offset, value in enumerate(values):
        builder.append(offset, timestamp=0, key=b"k", value=value, headers=[])
    return bytes(builder.build())


def test_a_flipped_bit_is_one_that_the_checksum_covers() -> None:
    """Whatever stands around the batches, one bit of one of them changes, and its CRC sees it."""
    frame = b"\x02\x00head" * 9 + batch(b"a" * 100, b"b") + batch(b"c") + b"\x02tail"
    assert len(list(covered_ranges(frame))) == 2
    for seed in range(200):
        spoilt = bytearray(frame)
        assert flip_one_bit(spoilt, random.Random(seed))
        changed = [i for i, byte in enumerate(frame) if spoilt[i] != byte]
        assert len(changed) == 1
        assert len(list(covered_ranges(spoilt))) == 1
    assert not flip_one_bit(bytearray(b"\x02" * 100), random.Random(0))


async def test_flips_hit_the_share_and_the_direction_they_are_set_to(
    net: Wire, network: Network
) -> None:
    """Requests or answers with records are spoilt; those without are not."""
    ask = await net.connect()
    body = batch(b"value" * 50)
    with network.fault(Fault(apis=frozenset({FETCH}), flip_answers=1.0)):
        assert await ask(FETCH, body) != body
        assert await ask(FETCH, b"no records") == b"no records"
        assert await ask(PRODUCE, body) == body
    with network.fault(Fault(flip_requests=1.0)):
        assert await ask(PRODUCE, body) != body
    assert net.served[0] == body
    assert net.served[-1] != body
    assert network.counts()["flipped"] == 2


class Database:
    """Talks as PostgreSQL does, as far as the relay listens: each query is done as it says."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self._clients: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        """End the connections of both sides."""
        for writer in self._clients:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        await asyncio.gather(*self._serving)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the other side goes."""
        self._serving.append(asyncio.current_task())  # type: ignore[arg-type]  # there is one
        with suppress(EOFError, OSError):
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            await reader.readexactly(size - 4)
            writer.write(_message(b"R", struct.pack(">i", 0)) + _message(b"Z", b"I"))
            while True:
                _, size = struct.unpack(">ci", await reader.readexactly(5))
                query = (await reader.readexactly(size - 4)).rstrip(b"\0")
                self.queries.append(query.decode())
                answer = _message(b"N", b"notice") + _message(b"C", query + b"\0")
                writer.write(answer + _message(b"Z", b"I"))
                await writer.drain()
        writer.transport.abort()

    async def connect(self, port: int) -> Callable[[str], Awaitable[bytes]]:
        """Give a function that sends a query and waits for the word that its exchange is over."""
        reader, writer = await asyncio.open_connection(HOST, port)
        self._clients.append(writer)
        writer.write(struct.pack(">ii", 8, 80877103))
        assert await reader.readexactly(1) == b"N", "no encryption"
        writer.write(struct.pack(">ii", 8, 196608))
        await reader.readuntil(_message(b"Z", b"I"))

        async def ask(query: str) -> bytes:
            writer.write(_message(b"Q", query.encode() + b"\0"))
            return await reader.readuntil(_message(b"Z", b"I"))

        return ask


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">i", len(body) + 4) + body


async def test_of_a_database_only_the_answers_of_commits_are_cut(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    """The database has done each, its client gets a cut; other answers come, late if they shall."""
    port, _ = ports
    database, socket = Database(), tmp_path / "socket"
    server = await asyncio.start_unix_server(database.serve, socket)
    network = Network({1: (port, socket)}, seed=1)
    try:
        with network.fault(Fault(cut_share=1.0, latency_s=0.1)):
            ask = await database.connect(port)
            began = time.monotonic()
            answer = await ask("INSERT")
            assert 0.1 <= time.monotonic() - began < 2
            assert answer.startswith(_message(b"N", b"notice") + _message(b"C", b"INSERT\0"))
            with pytest.raises((EOFError, OSError)):
                await ask("COMMIT;")
        assert database.queries == ["INSERT", "COMMIT;"]
        assert b"COMMIT" in await (await database.connect(port))("COMMIT;")
        counts = network.counts()
        assert (counts["answers_withheld"], counts["commits"], counts["delayed"]) == (1, 2, 2)
    finally:
        network.stop()
        await database.close()
        server.close()
