"""Which partition a key belongs to: the Java client's default for keyed records, remembered."""

from typing import Final

from aiokafka.partitioner import murmur2

_CACHE_LIMIT: Final = 65_536


class KeyPartitioner:
    """Murmur2 of the key modulo the number of partitions; a key is hashed once, not per record.

    Source:
        Kafka's `BuiltInPartitioner.partitionForKey`: toPositive(murmur2(key)) % partitions.
    """

    def __init__(self) -> None:
        self.hashes: dict[bytes, int] = _Hashes()
        """Hash of any key that is asked for; what is counted per record looks here itself."""

    def partition(self, key: bytes, count: int) -> int:
        """Give the partition, 0 to `count` - 1, of a key."""
        return self.hashes[key] % count


class _Hashes(dict[bytes, int]):
    """Computes what it does not hold, and is emptied when it is full."""

    def __missing__(self, key: bytes) -> int:
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        hashed: int = murmur2(key) & 0x7FFFFFFF
        self[key] = hashed
        return hashed
