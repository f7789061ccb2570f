"""A consumer group seen from outside: where it goes on, and how far behind it is."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import CommitFailedError

from app.config import Settings
from app.errors import TransportError
from app.kafka_io.options import CLIENT_ERRORS, connection_options, group_options, transport_error

_TIMEOUT_S: Final = 15.0


async def committed_offsets(settings: Settings) -> dict[int, int]:
    """Give the committed next offset of the group, for each partition of the topic that has one.

    Raises:
        TransportError: No broker answered.
    """
    admin: Any = AIOKafkaAdminClient(**connection_options(settings))
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(settings.kafka_group_id)
    except CLIENT_ERRORS as exc:
        raise transport_error("cannot read the group's offsets", settings, exc) from exc
    finally:
        await admin.close()
    return {
        tp.partition: stored.offset
        for tp, stored in offsets.items()
        if tp.topic == settings.kafka_topic and stored.offset >= 0
    }


async def commit_offsets(settings: Settings, next_offsets: Mapping[int, int]) -> None:
    """Set where the group goes on, while none of its members runs.

    Raises:
        TransportError: The group has members, or no broker answered.
    """
    if not next_offsets:
        return
    consumer: Any = AIOKafkaConsumer(**group_options(settings))
    offsets = {TopicPartition(settings.kafka_topic, p): o for p, o in next_offsets.items()}
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await consumer.start()
            consumer.assign(list(offsets))
            await consumer.commit(offsets)
    except CommitFailedError as exc:  # the coordinator knows members, and we are none of them
        raise TransportError(
            f"cannot set the offsets of group {settings.kafka_group_id}: it has members. Stop its"
            " consumers first",
            retryable=False,
        ) from exc
    except CLIENT_ERRORS as exc:
        raise transport_error("cannot set the group's offsets", settings, exc) from exc
    finally:
        await consumer.stop()
