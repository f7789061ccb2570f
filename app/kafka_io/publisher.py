"""Publishing with acks=all, in order, with one of three outcomes for every record."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count, repeat
from typing import Any, Final, NamedTuple, Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_random_exponential

from app.config import Settings
from app.errors import TopicError, TransportError
from app.kafka_io.diagnosis import no_broker
from app.kafka_io.options import (
    CLIENT_ERRORS,
    MAX_REQUEST_BYTES,
    STOP_TIMEOUT_S,
    producer_options,
)
from app.kafka_io.partitioner import KeyPartitioner
from app.ports import OutgoingRecord, SendOutcome, SendState
from app.timestamps import NS_PER_MS

log = structlog.get_logger(__name__)

# C4: the broker says no, and would again.
_PERMANENT: Final = (
    InvalidTimestampError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)
_UNSENT: Final = SendOutcome(SendState.NOT_SENT)
_MAX_RECORD_BYTES: Final = MAX_REQUEST_BYTES - 64 * 1024  # room for headers and the batch's own
_TOO_LARGE: Final = SendOutcome(
    SendState.NOT_SENT, error=f"larger than {_MAX_RECORD_BYTES} bytes", retryable=False
)
_EXPIRED: Final = SendOutcome(SendState.UNKNOWN, error="no answer before the deadline")


_NO_HEADERS: Final[list[tuple[str, bytes | None]]] = []


class _Batch:
    """Records of one partition that travel together, and where they stand in the call."""

    __slots__ = ("append", "builder", "indexes", "partition", "topic")

    def __init__(self, topic: str, partition: int, builder: Any) -> None:
        self.topic = topic
        self.partition = partition
        self.builder = builder
        self.append = builder.append  # asked for every record; gives None when the batch is full
        self.indexes: list[int] = []


class _Sent(NamedTuple):
    """A batch that a client has taken."""

    producer: Any
    batch: _Batch
    future: asyncio.Future[Any]
    deadline_s: float


class KafkaPublisher:
    """An idempotent producer that is rebuilt when it dies.

    Args:
        settings: Deadlines, attempts and how to connect.
        make_producer: Builds an unstarted client; a test gives another one.
        on_retry: Told how many records are sent again, since they surely were not sent.
    """

    def __init__(
        self,
        settings: Settings,
        make_producer: Callable[..., Any] = AIOKafkaProducer,
        *,
        on_retry: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._make_producer = make_producer
        self._on_retry = on_retry
        self._producer: Any = None
        self._is_dead = True
        self._order = asyncio.Lock()
        self._partitioner = KeyPartitioner()

    async def start(self) -> None:
        """Connect once; retrying is the caller's.

        Raises:
            TransportError: No broker answered, or it refused us.
        """
        async with self._order:
            await self._ensure_producer()

    async def stop(self) -> None:
        """Flush what was accepted and close, within a bound; what is late has outcome unknown."""
        producer, self._producer, self._is_dead = self._producer, None, True
        if producer is not None:
            await _stop_within_bound(producer)

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def partition_count(self, topic: str) -> int:
        """Give the number of partitions of a topic.

        Raises:
            TopicError: There is no such topic.
            TransportError: No broker answered.
        """
        async with self._order:
            await self._ensure_producer()
        try:
            return await self._count(topic)
        except TransportError as exc:
            raise TopicError(f"topic {topic} is not there") from exc

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[SendOutcome]:
        """Send records and give the outcome of each; see `ports.Publisher`.

        What surely was not sent, and can be, is tried again with exponential backoff and full
        jitter, up to `SEND_MAX_ATTEMPTS` and `SEND_DEADLINE_S`. An unknown outcome is never
        repeated here: the record may be stored already.
        """
        outcomes = [_UNSENT] * len(records)
        # Submissions do not interleave: records keep their order over concurrent calls too.
        async with self._order:
            sent, is_complete = await self._submit_all(records, range(len(records)), outcomes)
            if not is_complete:  # others wait until that is mended
                await self._insist(records, sent, outcomes)
                return outcomes
        await self._settle_all(sent, outcomes)
        return outcomes

    async def _insist(
        self, records: Sequence[OutgoingRecord], sent: list[_Sent], outcomes: list[SendOutcome]
    ) -> None:
        """Settle what was submitted, and submit again what was not, within bounds."""
        left: list[int] = []

        async def attempt() -> bool:
            nonlocal left, sent
            if left:
                sent, _ = await self._submit_all(records, left, outcomes)
            await self._settle_all(sent, outcomes)
            left = [index for index, some in enumerate(outcomes) if _may_send_again(some)]
            # Nothing overtakes an unknown record: the caller repeats both, in order.
            is_unknown = any(some.state is SendState.UNKNOWN for some in outcomes)
            return bool(left) and not is_unknown

        retrying = AsyncRetrying(
            retry=retry_if_result(bool),
            stop=stop_after_attempt(self._settings.send_max_attempts)
            | stop_after_delay(self._settings.send_deadline_s),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            before_sleep=lambda _: self._on_retry(len(left)),
            retry_error_callback=lambda _: None,  # what is left unsent says so in its outcome
        )
        await retrying(attempt)

    async def _submit_all(
        self,
        records: Sequence[OutgoingRecord],
        indexes: Sequence[int],
        outcomes: list[SendOutcome],
    ) -> tuple[list[_Sent], bool]:
        """Hand the records at some indexes to the client.

        Returns:
            The batches that it took, and whether none is left that could be handed over again.
        """
        deadline_s = asyncio.get_running_loop().time() + self._settings.send_deadline_s
        try:
            await self._ensure_producer()
            counts = {topic: await self._count(topic) for topic in {r.topic for r in records}}
        except TransportError as exc:
            failed = _not_sent(exc, retryable=exc.retryable)
            for index in indexes:
                outcomes[index] = failed
            return [], not exc.retryable
        producer = self._producer
        sent: list[_Sent] = []
        for batch in self._batches(producer, records, indexes, outcomes, counts):
            submitted = await self._submit(producer, batch, deadline_s)
            if not isinstance(submitted, SendOutcome):
                sent.append(_Sent(producer, batch, submitted, deadline_s))
                continue
            for index in batch.indexes:
                outcomes[index] = submitted
            if _may_send_again(submitted):
                return sent, False  # nothing overtakes a record that will be sent again
        return sent, True

    async def _settle_all(self, sent: list[_Sent], outcomes: list[SendOutcome]) -> None:
        for some in sent:
            await self._settle(some, outcomes)

    def _batches(
        self,
        producer: Any,
        records: Sequence[OutgoingRecord],
        indexes: Sequence[int],
        outcomes: list[SendOutcome],
        counts: Mapping[str, int],
    ) -> list[_Batch]:
        """Build the batches of a call, in order for each partition; too large records stay out."""
        now_ms = time.time_ns() // NS_PER_MS
        hashes = self._partitioner.hashes
        batches: list[_Batch] = []
        open_: dict[str, dict[int, _Batch]] = {topic: {} for topic in counts}
        for index in indexes:
            record = records[index]
            key, value, headers = record.key, record.value, record.headers
            partition = record.partition
            if partition is None:
                hashed = random.getrandbits(31) if key is None else hashes[key]
                partition = hashed % counts[record.topic]
            timestamp_ms = now_ms if record.timestamp_ms is None else record.timestamp_ms
            of_topic = open_[record.topic]
            batch = of_topic.get(partition)
            headers = list(headers) if headers else _NO_HEADERS
            if (
                batch is None
                or batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers)
                is None
            ):
                # An empty batch takes any record, however large.
                if record.size > _MAX_RECORD_BYTES:
                    outcomes[index] = _TOO_LARGE
                    continue
                batch = _Batch(record.topic, partition, producer.create_batch())
                of_topic[partition] = batch
                batches.append(batch)
                batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers)
            batch.indexes.append(index)
        return batches

    async def _count(self, topic: str) -> int:
        try:
            return len(await self._producer.partitions_for(topic))
        except CLIENT_ERRORS as exc:
            raise TransportError(f"no partitions of topic {topic} are known: {exc}") from exc

    async def _submit(
        self, producer: Any, batch: "_Batch", deadline_s: float
    ) -> asyncio.Future[Any] | SendOutcome:
        if deadline_s <= asyncio.get_running_loop().time():
            return SendOutcome(SendState.NOT_SENT, error="not accepted before the deadline")
        batch.builder.close()
        try:
            future: asyncio.Future[Any] = await producer.send_batch(
                batch.builder, batch.topic, partition=batch.partition
            )
        except KafkaTimeoutError as exc:  # C2: refused by the call itself, so never queued
            return _not_sent(exc, retryable=True)
        except (KafkaError, AssertionError) as exc:
            self._discard(producer, exc)
            return _not_sent(exc, retryable=not isinstance(exc, _PERMANENT))
        return future

    async def _settle(self, sent: _Sent, outcomes: list[SendOutcome]) -> None:
        """Wait for one batch, up to the deadline, and note the outcome of its records."""
        batch, future = sent.batch, sent.future
        if not future.done():
            # asyncio.wait leaves the future alone: to cancel it would not take the batch back.
            timeout_s = max(0.0, sent.deadline_s - asyncio.get_running_loop().time())
            await asyncio.wait([future], timeout=timeout_s)
        if not future.done():
            self._discard(sent.producer, None)
            future.add_done_callback(_retrieve)
            failed = _EXPIRED
        elif future.cancelled() or future.exception() is not None:
            exc = None if future.cancelled() else future.exception()
            if exc is not None and not isinstance(exc, KafkaError):
                raise exc
            self._discard(sent.producer, exc)
            retryable = not isinstance(exc, _PERMANENT)
            error = f"{type(exc).__name__}: {exc}"
            failed = SendOutcome(SendState.UNKNOWN, error=error, retryable=retryable)
        else:
            offsets = count(future.result().offset)
            stored = map(SendOutcome, repeat(SendState.OK), repeat(batch.partition), offsets)
            for index, outcome in zip(batch.indexes, stored, strict=False):
                outcomes[index] = outcome
            return
        for index in batch.indexes:
            outcomes[index] = failed

    def _discard(self, producer: Any, exc: BaseException | None) -> None:
        # A4: the client numbers a batch when it first sends it, and fails it only when it will not
        # send it again. So with any error numbers are used up that the broker has not seen, and it
        # would refuse what comes next in the partition; only a new client helps.
        if producer is self._producer and not self._is_dead:
            log.warning("producer_died", error="no answer" if exc is None else type(exc).__name__)
            self._is_dead = True

    async def _ensure_producer(self) -> None:
        if not self._is_dead:
            return
        if self._producer is not None:
            old, self._producer = self._producer, None
            await _stop_within_bound(old)
        # A8: start() does not retry, and an object whose start failed is not started again.
        producer = self._make_producer(**producer_options(self._settings))
        try:
            await producer.start()
        except CLIENT_ERRORS as exc:
            await _stop_within_bound(producer)
            raise await no_broker(self._settings, exc) from exc
        except asyncio.CancelledError:
            await _stop_within_bound(producer)
            raise
        self._producer, self._is_dead = producer, False


def _may_send_again(outcome: SendOutcome) -> bool:
    return outcome.state is SendState.NOT_SENT and outcome.retryable


def _not_sent(exc: Exception, *, retryable: bool) -> SendOutcome:
    error = str(exc) or type(exc).__name__
    return SendOutcome(SendState.NOT_SENT, error=error, retryable=retryable)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def _cut_off(producer: Any) -> None:
    if producer._sender is not None:  # noqa: SLF001 - stop() offers no way without a flush
        await producer._sender.close()  # noqa: SLF001
    await producer.client.close()


async def _stop_within_bound(producer: Any) -> None:
    """Stop a client that may hang for ever when brokers are gone (A5, B11)."""
    stopping = asyncio.ensure_future(producer.stop())
    done, _ = await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    if not done:
        stopping.cancel()
        log.warning("producer_stop_timed_out", timeout_s=STOP_TIMEOUT_S)
    await asyncio.wait([stopping], timeout=1)
    if not done:  # its flush was cut off: without this the sender goes on, and writes later
        await asyncio.wait([asyncio.ensure_future(_cut_off(producer))], timeout=1)
    if stopping.done() and not stopping.cancelled() and stopping.exception():
        log.warning("producer_stop_failed", error=repr(stopping.exception()))
