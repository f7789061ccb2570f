"""Which partition a key belongs to: the Java client's default for keyed records, remembered."""

import random
from typing import Final

from aiokafka.partitioner import murmur2

_CACHE_LIMIT: Final = 65_536


class KeyPartitioner:
    """Murmur2 of the key modulo the number of partitions; a key is hashed once, not per record.

    Source:
        Kafka's `BuiltInPartitioner.partitionForKey`: toPositive(murmur2(key)) % partitions.
    """

    def __init__(self) -> None:
        self._hashes: dict[bytes, int] = {}

    def partition(self, key: bytes, count: int) -> int:
        """Give the partition, 0 to `count` - 1, of a key."""
        hashed = self._hashes.get(key)
        if hashed is None:
            if len(self._hashes) >= _CACHE_LIMIT:
                self._hashes.clear()
            hashed = self._hashes[key] = murmur2(key) & 0x7FFFFFFF
        return hashed % count

    def any_partition(self, key: bytes | None, count: int) -> int:
        """Give the partition of a key, or any one where there is no key."""
        if key is None:
            return random.randrange(count)  # noqa: S311 - no secret
        return self.partition(key, count)
