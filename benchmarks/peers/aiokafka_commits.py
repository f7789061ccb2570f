"""Commits that overlap with processing, for the peers that stand on aiokafka."""

import asyncio
from time import monotonic
from typing import Any

from aiokafka import TopicPartition

_COMMIT_EVERY = 5_000
_COMMIT_S = 0.05


class OverlappedCommits:
    """Commits what is processed while the next records are; one commit at a time."""

    def __init__(self, consumer: Any, topic: str) -> None:  # noqa: ANN401 - aiokafka is untyped
        self._consumer = consumer
        self._topic = topic
        self._due: dict[int, int] = {}
        self._records = 0
        self._last_s = monotonic()
        self._task: asyncio.Task[None] | None = None

    def processed(self, partition: int, next_offset: int, records: int) -> None:
        """Note what may be committed."""
        self._due[partition] = next_offset
        self._records += records

    def start_if_due(self) -> None:
        """Begin a commit where it is time for one and none is under way."""
        if self._task is not None:
            if not self._task.done():
                return
            self._task.result()
        if self._records >= _COMMIT_EVERY or monotonic() - self._last_s >= _COMMIT_S:
            self._start()

    async def finish(self) -> None:
        """Wait for the commit under way, then commit what is left."""
        if self._task is not None:
            await self._task
        if self._due:
            await self._start()

    def _start(self) -> "asyncio.Task[None]":
        offsets = {TopicPartition(self._topic, p): offset for p, offset in self._due.items()}
        self._due, self._records, self._last_s = {}, 0, monotonic()
        self._task = asyncio.ensure_future(self._consumer.commit(offsets))
        return self._task
