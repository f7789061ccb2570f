"""Find out whether a Kafka cluster is ready to be used, which an open port does not say."""

import asyncio
import logging
import random
import time
from contextvars import ContextVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from app.errors import TransportError

_REQUEST_TIMEOUT_MS = 2_000
_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 0.5
_PROBE_NAME = "trade-stream-readiness"  # a group nobody joins and a topic nobody creates

_probing: ContextVar[bool] = ContextVar("_probing", default=False)


class _NotWhileProbing(logging.Filter):
    """Keeps the client from logging as errors what a probe expects to fail."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - the interface's
        return not _probing.get()


for _name in ("aiokafka.client", "aiokafka.conn", "aiokafka.cluster"):
    logging.getLogger(_name).addFilter(_NotWhileProbing())


async def wait_until_ready(bootstrap: str, *, brokers: int, timeout_s: float) -> None:
    """Return once every broker serves clients.

    Ready means: each address answers, its metadata shows all brokers, one of them coordinates
    groups, and a topic could be replicated to all of them.

    Args:
        bootstrap: `host:port`, several separated by commas; a listener without authentication.
        brokers: How many brokers the cluster has.
        timeout_s: Bound on the whole wait, > 0.

    Raises:
        TransportError: Not ready in that time; says what was still missing and where.

    Cancellation:
        Closes its connections and leaves nothing behind.
    """
    token = _probing.set(True)
    deadline = time.monotonic() + timeout_s
    backoff_s = _FIRST_BACKOFF_S
    try:
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await _check(bootstrap, brokers)
            except (TransportError, KafkaError, OSError) as exc:
                wait_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
                if time.monotonic() + wait_s >= deadline:
                    raise TransportError(
                        f"Kafka at {bootstrap} is not ready after {timeout_s:.0f} s: "
                        f"{exc or type(exc).__name__}"
                    ) from exc
                await asyncio.sleep(wait_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            else:
                return
    finally:
        _probing.reset(token)


async def _check(bootstrap: str, brokers: int) -> None:
    for address in bootstrap.split(","):
        # A client object that has failed once may keep what it learnt then, so each try has its
        # own; and the client would wait much longer for a port that nobody listens on.
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await writer.wait_closed()
        admin = AIOKafkaAdminClient(
            bootstrap_servers=address, request_timeout_ms=_REQUEST_TIMEOUT_MS
        )
        try:
            await admin.start()
            await _check_one(admin, address, brokers)
        finally:
            await admin.close()


async def _check_one(admin: AIOKafkaAdminClient, address: str, brokers: int) -> None:
    cluster = await admin.describe_cluster()
    known = len(cluster["brokers"])
    if known < brokers:
        raise TransportError(f"{address} knows {known} of {brokers} brokers")
    if cluster["controller_id"] < 0:
        raise TransportError(f"{address} knows no controller")
    await admin.find_coordinator(_PROBE_NAME)
    topic = NewTopic(_PROBE_NAME, num_partitions=1, replication_factor=brokers)
    created = await admin.create_topics([topic], validate_only=True)
    for _, code, *message in created.topic_errors:
        if code:
            raise for_code(code)(*message)
