"""Waiting for a broker: one clear line, then patience with backoff, up to a bound."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay
from tenacity.wait import wait_random_exponential

from app.config import Settings
from app.errors import TransportError
from app.kafka_io.batch_consumer import KafkaSource
from app.kafka_io.publisher import KafkaPublisher
from app.kafka_io.topics import TopicAdmin
from app.lifecycle import or_stopped

log = structlog.get_logger(__name__)
T = TypeVar("T")


_HINT: Final = (
    "Start a broker with `trade-stream broker start`, or set KAFKA_BOOTSTRAP_SERVERS to one that"
    " runs"
)


async def until_connected(
    connect: Callable[[], Awaitable[T]], *, timeout_s: float, to: str = "broker", hint: str = _HINT
) -> T:
    """Call `connect` until it succeeds; every attempt is to build new client objects (A8).

    Args:
        connect: Makes the connection, raising `TransportError` while nobody answers.
        timeout_s: Give up after so many seconds.
        to: What is connected to, for the log.
        hint: What a person can do.

    Raises:
        TransportError: The last one, with what to do about it; at once when it is not retryable.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda exc: isinstance(exc, TransportError) and exc.retryable),
        stop=stop_after_delay(timeout_s),
        wait=wait_random_exponential(multiplier=0.25, max=5),
        before_sleep=_tell_once(timeout_s, to, hint),
        reraise=True,
    )

    async def attempt() -> T:
        return await connect()

    try:
        return await retrying(attempt)
    except TransportError as exc:
        if not exc.retryable:
            raise
        raise TransportError(f"{exc}. {hint}") from exc


def _tell_once(timeout_s: float, to: str, hint: str) -> Callable[[RetryCallState], None]:
    def tell(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            log.warning(
                "waiting_to_connect",
                to=to,
                error=str(state.outcome.exception()),
                hint=hint,
                timeout_s=timeout_s,
            )

    return tell


@asynccontextmanager
async def open_publisher(
    settings: Settings,
    stop: asyncio.Event,
    *,
    connect_timeout_s: float,
    on_retry: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[KafkaPublisher]:
    """Wait for a broker, see to the topics, and give a started publisher for the block.

    Args:
        settings: How to connect.
        stop: Breaks off the waiting.
        connect_timeout_s: Longest wait for a broker.
        on_retry: As for `KafkaPublisher`.

    Raises:
        KeyboardInterrupt: `stop` was set before a broker answered.
        TransportError: No broker answered in time, or it refused us.
        TopicError: A topic is missing and may not be created, or differs.
    """

    async def connect() -> KafkaPublisher:
        await TopicAdmin(settings).ensure()
        publisher = KafkaPublisher(settings, on_retry=on_retry)
        await publisher.start()
        return publisher

    publisher = await or_stopped(until_connected(connect, timeout_s=connect_timeout_s), stop)
    try:
        yield publisher
    finally:
        await publisher.stop()


@asynccontextmanager
async def open_source(
    settings: Settings, stop: asyncio.Event, *, connect_timeout_s: float
) -> AsyncIterator[KafkaSource]:
    """Wait for a broker and give a started member of the consumer group for the block."""

    async def connect() -> KafkaSource:
        source = KafkaSource(settings)
        await source.start()
        return source

    source = await or_stopped(until_connected(connect, timeout_s=connect_timeout_s), stop)
    try:
        yield source
    finally:
        await source.stop()
