"""Batches that are compressed: what the client makes of them, and no more than a bound of it."""

import gzip
import json
import resource
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cramjam
import pytest
import zstandard
from aiokafka import codec
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatch, LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint
from hypothesis import given
from hypothesis import strategies as st

from app.config import Settings
from app.kafka_io import batch_consumer, decompression
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.raw_batches import RawBatch
from tests.test_raw_batches import fetched, row

HEAD_SIZE: Final = 61
ATTRIBUTES_AT: Final = 21
COUNT_AT: Final = 57
CODECS: Final = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
MIB: Final = 1 << 20


def zstd_as_a_stream(data: bytes) -> bytes:
    """Compress without saying how large it is, as other clients do."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def in_two(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Compress halves, one after the other."""
    return lambda data: compress(data[: len(data) // 2]) + compress(data[len(data) // 2 :])


WAYS: Final[dict[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "gzip": ("gzip", codec.gzip_encode),
    "gzip, two members": ("gzip", in_two(codec.gzip_encode)),
    "gzip, padded": ("gzip", lambda data: gzip.compress(data) + b"\0\0\0"),
    "snappy in blocks": ("snappy", codec.snappy_encode),
    "snappy in small blocks": (
        "snappy",
        lambda data: codec.snappy_encode(data, xerial_blocksize=7),
    ),
    "snappy at once": ("snappy", lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "lz4": ("lz4", codec.lz4_encode),
    "lz4, two frames": ("lz4", in_two(codec.lz4_encode)),
    "lz4, linked blocks": ("lz4", lambda data: bytes(cramjam.lz4.compress(data))),
    "zstd": ("zstd", codec.zstd_encode),
    "zstd as a stream": ("zstd", zstd_as_a_stream),
    "zstd, two frames": ("zstd", in_two(zstd_as_a_stream)),
    "zstd, a frame to skip": (
        "zstd",
        lambda data: b"\x50\x2a\x4d\x18\x01\0\0\0x" + codec.zstd_encode(data),
    ),
}
each_way = pytest.mark.parametrize("way", WAYS)


def batch_of(name: str, payload: bytes, *, count: int = 1) -> bytes:
    """Write a batch whose compressed records are given."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, MIB)
    builder.append(0, 1, None, None, [])
    raw = bytearray(builder.build())[:HEAD_SIZE] + payload
    struct.pack_into(">i", raw, 8, len(raw) - 12)
    struct.pack_into(">h", raw, ATTRIBUTES_AT, CODECS[name])
    struct.pack_into(">i", raw, 23, count - 1)
    struct.pack_into(">i", raw, COUNT_AT, count)
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[ATTRIBUTES_AT:])))
    return bytes(raw)


def records_of(values: list[bytes]) -> bytes:
    """Write records, not compressed, without a batch around them."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 30)
    for offset, value in enumerate(values):
        builder.append(offset, 1_700_000_000_000 + offset, b"k", value, [("h", b"x")])
    return bytes(builder.build())[HEAD_SIZE:]


def raw_batch(raw: bytes) -> RawBatch:
    """Give a batch as it was fetched."""
    native = DefaultRecordBatch(raw)
    return RawBatch(0, native, 0, native.next_offset)


def client_own(name: str) -> Callable[[bytes], bytes]:
    """Give the decoder that the client has, without a bound."""
    decode: Callable[[bytes], bytes] = getattr(codec, f"{name}_decode")
    return decode


def bounded(name: str) -> Callable[[bytes], bytes]:
    """Give the decoder that the client's batches call."""
    decode: Callable[[bytes], bytes] = getattr(
        sys.modules[DefaultRecordBatch.__module__], f"{name}_decode"
    )
    return decode


def client_encoder(name: str) -> Callable[[bytes], bytes]:
    """Give what the client compresses with."""
    encode: Callable[[bytes], bytes] = getattr(codec, f"{name}_encode")
    return encode


def outcome(decode: Callable[[bytes], bytes], payload: bytes) -> bytes | None:
    """Give what is decoded, or `None` where something is raised."""
    try:
        return decode(payload)
    except Exception:  # noqa: BLE001 - the client's codecs raise whatever they like
        return None


# -- what can be read is read as before


@pytest.mark.parametrize("name", CODECS)
@given(values=st.lists(st.binary(max_size=200), min_size=1, max_size=30))
def test_batch_of_the_client_comes_out_record_for_record(name: str, values: list[bytes]) -> None:
    """Whatever the client writes, with any codec, it gives back."""
    builders = [
        DefaultRecordBatchBuilder(2, number, 0, -1, -1, 0, MIB) for number in (CODECS[name], 0)
    ]
    for builder in builders:
        for offset, value in enumerate(values):
            builder.append(offset, 1_700_000_000_000 + offset, b"k", value, [("h", value)])
    compressed, plain = (DefaultRecordBatch(bytes(builder.build())) for builder in builders)
    assert compressed.compression_type == CODECS[name]
    assert [row(record) for record in compressed] == [row(record) for record in plain]


@each_way
@given(values=st.lists(st.binary(max_size=200), min_size=1, max_size=30))
def test_batch_of_others_comes_out_as_with_the_codec_of_the_client(
    way: str, values: list[bytes]
) -> None:
    """Frames without a size, several of them, other block sizes: all are read as before."""
    name, compress = WAYS[way]
    records = records_of(values)
    payload = compress(records)
    assert bounded(name)(payload) == records
    assert client_own(name)(payload) == records
    batch = raw_batch(batch_of(name, payload, count=len(values)))
    assert [record.value for record in batch.records()] == values


@each_way
@given(data=st.data())
def test_spoilt_payload_is_refused_where_the_client_refuses_it(
    way: str, data: st.DataObject
) -> None:
    """Cut, or with a byte changed, it raises as before, or comes out as before."""
    name, compress = WAYS[way]
    payload = bytearray(compress(b"some text, some text and some more text" * 3))
    at = data.draw(st.integers(0, len(payload) - 1))
    if data.draw(st.booleans()):
        del payload[at:]
    else:
        payload[at] ^= data.draw(st.integers(1, 255))
    assert outcome(bounded(name), bytes(payload)) == outcome(client_own(name), bytes(payload))


@pytest.mark.parametrize("name", CODECS)
@given(payload=st.binary(max_size=100))
def test_any_bytes_are_read_or_refused_as_before(name: str, payload: bytes) -> None:
    """Bytes of no codec raise, and nothing but what a corrupt batch raises."""
    try:
        found: bytes | None = bounded(name)(payload)
    except CorruptRecordException:
        found = None
    assert found == outcome(client_own(name), payload)


@pytest.mark.parametrize("name", CODECS)
def test_corrupt_payload_of_a_batch_raises_and_raises_again(name: str) -> None:
    """A batch whose checksum is right and whose payload is none is a corrupt batch."""
    batch = raw_batch(batch_of(name, b"\x01\x02\x03"))
    for _ in range(2):
        with pytest.raises(CorruptRecordException, match="cannot be decompressed"):
            batch.records()


# -- no more than a bound


@each_way
def test_size_is_bounded_on_both_sides(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes as allowed are read; with one more it raises."""
    name, compress = WAYS[way]
    allowed, larger = records_of([b"x" * 1000]), records_of([b"x" * 1001])
    monkeypatch.setattr(decompression, "MAX_BATCH_BYTES", len(allowed))
    monkeypatch.setattr(decompression, "_of_thread", threading_local())
    assert len(raw_batch(batch_of(name, compress(allowed))).records()) == 1
    with pytest.raises(CorruptRecordException, match="cannot be decompressed"):
        raw_batch(batch_of(name, compress(larger))).records()


def threading_local() -> Any:
    """Give a room of another size."""
    return type(decompression._of_thread)()


BOMB_BYTES: Final = 80 * MIB
LYING_SNAPPY: Final = b"\xff\xff\xff\xff\x0f" + b"\x00x" * 100  # says 4 GiB

DEFUSE: Final = """
import json, resource, sys
from pathlib import Path
from aiokafka.record.default_records import DefaultRecordBatch
from app.kafka_io import batch_consumer
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.raw_batches import RawBatch
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
bombs = [Path(name).read_bytes() for name in sys.argv[1:]]
before, said = peak(), []
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20),) * 2)
for bomb in bombs:
    try:
        RawBatch(0, DefaultRecordBatch(bomb), 0, 1).records()
    except Exception as exc:
        said.append(type(exc).__name__)
print(json.dumps({"grown": peak() - before, "said": said, "is": DefaultRecordBatch.__module__}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits memory")
@pytest.mark.parametrize("without_extensions", ["", "1"])
def test_bomb_of_every_codec_is_refused_in_bounded_memory(
    tmp_path: Path, without_extensions: str
) -> None:
    """A few KB that would be many MB raise like a corrupt batch, in a process with little room."""
    record = records_of([b"\0" * BOMB_BYTES])
    bombs = {
        name: batch_of(name, compress(record))
        for name, compress in {
            "gzip": lambda data: gzip.compress(data, 1),
            "snappy": codec.snappy_encode,
            "lz4": lambda data: bytes(cramjam.lz4.compress(data)),
            "zstd": codec.zstd_encode,
        }.items()
    }
    bombs["zstd as a stream"] = batch_of("zstd", zstd_as_a_stream(record))
    bombs["snappy that lies"] = batch_of("snappy", LYING_SNAPPY)
    for name, bomb in bombs.items():
        (tmp_path / name).write_bytes(bomb)
    del record
    done = subprocess.run(
        [sys.executable, "-c", DEFUSE, *(str(tmp_path / name) for name in bombs)],
        env={"PYTHONPATH": str(Path(__file__).parents[1])}
        | ({"AIOKAFKA_NO_EXTENSIONS": "1"} if without_extensions else {}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    assert ("_crecords" in found["is"]) == (not without_extensions)
    assert found["said"] == ["CorruptRecordException"] * len(bombs)
    assert found["grown"] < 3 * decompression.MAX_BATCH_BYTES // MIB


def test_bomb_is_refused_by_the_public_way_too() -> None:
    """Records that `getmany()` hands out come from the same batches."""
    bomb = batch_of("zstd", codec.zstd_encode(records_of([b"\0" * BOMB_BYTES])))
    with pytest.raises(CorruptRecordException, match="64 MiB"):
        list(fetched(bomb, 0, []))


def test_bomb_of_the_old_format_is_refused() -> None:
    """Batches of the formats before 0.11 are decompressed by the same codecs."""
    builder = LegacyRecordBatchBuilder(1, 1, 1 << 30)
    builder.append(0, 1, None, b"\0" * BOMB_BYTES)
    with pytest.raises(CorruptRecordException, match="64 MiB"):
        list(LegacyRecordBatch(bytes(builder.build()), 1))


def test_large_batch_of_the_old_format_is_read() -> None:
    """Its records are written in another way, which is not mistaken for the new one."""
    builder = LegacyRecordBatchBuilder(1, 1, 1 << 30)
    values = [bytes([number]) * MIB for number in range(6)]
    for offset, value in enumerate(values):
        builder.append(offset, 1, None, value)
    batch = LegacyRecordBatch(bytes(builder.build()), 1)
    assert [record.value for record in batch] == values


def bytes_of(number: int) -> bytes:
    """Write a number as a record holds it."""
    written = bytearray()
    encode_varint(number, written.append)
    return bytes(written)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"\0\0\0\x01\x01" + bytes_of(2_200_000) + b"\0\0" * 2_200_000, id="headers"),
        pytest.param(b"\0\0\0\x01\x01\0", id="records"),
    ],
)
def test_objects_of_a_batch_are_bounded(record: bytes) -> None:
    """Millions of records, or headers of one, are refused before an object is made of each."""
    records = bytes_of(len(record)) + record
    count = 1 + 5 * MIB // len(records)
    batch = raw_batch(batch_of("zstd", codec.zstd_encode(records * count), count=count))
    with pytest.raises(CorruptRecordException, match="500000 records and headers"):
        batch.records()


def test_large_batch_of_ordinary_records_is_read() -> None:
    """Some ten thousand trades in a batch are no bomb."""
    values = [b"%d" % number * 40 for number in range(30_000)]
    records = records_of(values)
    assert len(records) > decompression._FEW_BYTES
    batch = raw_batch(batch_of("zstd", codec.zstd_encode(records), count=len(values)))
    assert [record.value for record in batch.records()] == values


def resident_mib() -> int:
    """Give what this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["gzip", "lz4", "zstd"])
def test_what_a_bomb_has_filled_is_given_back(name: str) -> None:
    """An unreadable batch may be kept for long: neither it nor its error holds what was in it."""
    with pytest.raises(CorruptRecordException):
        bounded(name)(b"x")  # so that what is needed once is there
    bomb = batch_of(name, client_encoder(name)(records_of([b"\0" * BOMB_BYTES])))
    before = resident_mib()
    batches = [raw_batch(bomb) for _ in range(4)]
    for batch in batches:
        with pytest.raises(CorruptRecordException):
            batch.records()
    assert all(batch.error for batch in batches)
    assert resident_mib() - before < 40


# -- many of them


def fetched_batches(source: KafkaSource, partition: int, value: bytes, count: int) -> None:
    """Let batches of one record wait to be decoded."""
    payload = codec.zstd_encode(records_of([value]))
    backlog = source._backlog[partition] = deque()
    source._sought[partition] = 0
    for base_offset in range(count):
        raw = bytearray(batch_of("zstd", payload))
        struct.pack_into(">q", raw, 0, base_offset)
        native = DefaultRecordBatch(bytes(raw))
        backlog.append(RawBatch(partition, native, 0, base_offset + 1, base_offset))


async def test_poll_ends_with_what_is_large_and_goes_on_with_another_partition() -> None:
    """Small batches that become large ones are taken in turns, and few at a time."""
    source = KafkaSource(Settings())
    fetched_batches(source, 0, b"\0" * (20 * MIB), 3)
    fetched_batches(source, 1, b"\0" * (20 * MIB), 3)
    fetched_batches(source, 2, b"x", 1)
    taken = [
        [(batch.partition, list(batch.offsets)) for batch in await source.poll(timeout_s=0)]
        for _ in range(6)
    ]
    assert taken == [
        [(0, [0])],
        [(1, [0])],
        [(2, [0]), (0, [1])],
        [(1, [1])],
        [(0, [2])],
        [(1, [2])],
    ]
    assert not source._readable()


async def test_one_partition_is_read_as_long_as_there_is_something_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A poll that is not full takes the next one, too."""
    monkeypatch.setattr(batch_consumer, "_RECORDS_A_POLL", 2)
    source = KafkaSource(Settings())
    fetched_batches(source, 0, b"x", 3)
    fetched_batches(source, 1, b"x", 3)
    taken = [
        [(batch.partition, list(batch.offsets)) for batch in await source.poll(timeout_s=0)]
        for _ in range(3)
    ]
    assert taken == [[(0, [0, 1])], [(0, [2]), (1, [0, 1])], [(1, [2])]]
