"""Batches that no honest client makes."""

import struct
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c

_CRC_FIELD: Final = slice(17, 21)  # of a record batch of magic 2; it covers everything after it


def spoilt_batch(producer: AIOKafkaProducer, value: bytes) -> BatchBuilder:
    """Build a batch whose one header key is no UTF-8, with a checksum that is right."""
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=value, headers=[("header", b"")])
    raw = bytearray(batch._build())
    raw[raw.index(b"header")] = 0xFF
    raw[_CRC_FIELD] = struct.pack(">I", calc_crc32c(bytes(raw[_CRC_FIELD.stop :])))
    batch._buffer = raw
    return batch
