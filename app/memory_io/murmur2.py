"""The hash that places keyed records, as the Java client computes it."""

from typing import Final

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_R: Final = 24
_WORD: Final = 4
_MASK: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Hash bytes to an unsigned 32-bit number.

    Source:
        Kafka's `org.apache.kafka.common.utils.Utils.murmur2`, which gives it signed.
    """
    h = _SEED ^ len(data)
    whole = len(data) - len(data) % _WORD
    for start in range(0, whole, _WORD):
        k = int.from_bytes(data[start : start + _WORD], "little") * _M & _MASK
        k = (k ^ k >> _R) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_for(key: bytes, count: int) -> int:
    """Give the partition, 0 to `count` - 1, of a record with this key.

    Source:
        Kafka's `BuiltInPartitioner.partitionForKey`: toPositive(murmur2(key)) % partitions.
    """
    return (murmur2(key) & 0x7FFFFFFF) % count
