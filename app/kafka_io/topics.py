"""The three topics: created with the settings that delivery needs, or checked against them."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from app.config import Settings
from app.errors import TopicError
from app.kafka_io.diagnosis import no_broker
from app.kafka_io.options import (
    CLIENT_ERRORS,
    MAX_REQUEST_BYTES,
    connection_options,
    transport_error,
)

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_NO_BOUND: Final = 2**63 - 1
_MAX_REPLICATION: Final = 3
_VISIBLE_TIMEOUT_S: Final = 30.0
_VISIBLE_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it has to be.

    Attributes:
        configs: Settings it is created with.
        required: The part of them that a topic which exists must have as well.
    """

    name: str
    setting: str
    configs: dict[str, str]
    required: dict[str, str]


def topic_plans(settings: Settings) -> list[TopicPlan]:
    """Give the three topics of the platform."""
    return [
        TopicPlan(
            settings.kafka_topic,
            "KAFKA_TOPIC",
            # A producer with a wrong clock must not decide about retention.
            {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime",
             "retention.ms": str(7 * _DAY_MS)},
            {"cleanup.policy": "delete"},
        ),
        TopicPlan(
            settings.dlq_topic,
            "DLQ_TOPIC",
            # A dead letter keeps the time of its original, however wrong the clock of that was.
            {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS),
             "message.timestamp.after.max.ms": str(_NO_BOUND),
             "max.message.bytes": str(MAX_REQUEST_BYTES)},
            {"cleanup.policy": "delete"},
        ),
        TopicPlan(
            settings.positions_topic,
            "POSITIONS_TOPIC",
            # The newest state outlives a late write of an older one until that is repaired. By the
            # broker's clock: it would refuse records of a worker whose own is an hour ahead.
            {"cleanup.policy": "compact", "min.compaction.lag.ms": str(_HOUR_MS),
             "message.timestamp.type": "LogAppendTime"},
            {"cleanup.policy": "compact"},
        ),
    ]  # fmt: skip


class TopicAdmin:
    """Creates, checks and deletes topics; connects for each call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def ensure(self) -> list[str]:
        """Create what is missing, if we may, and check what is there.

        Returns:
            The names of the topics that were created.

        Raises:
            TopicError: Something is missing and `KAFKA_CREATE_TOPICS` is false, or differs.
            TransportError: No broker answered, or it refused us.
        """
        async with _Admin(self._settings) as admin:
            existing = set(await admin.list_topics())
            missing = [p for p in topic_plans(self._settings) if p.name not in existing]
            if missing and not self._settings.kafka_create_topics:
                names = ", ".join(plan.name for plan in missing)
                raise TopicError(
                    f"missing topics: {names}. Create them with `trade-stream topics init`,"
                    " or allow it with KAFKA_CREATE_TOPICS=true"
                )
            await self._create(admin, missing)
        problems = await self.check()
        if problems:
            raise TopicError("\n".join(problems))
        return [plan.name for plan in missing]

    async def check(self) -> list[str]:
        """Compare the topics with what delivery needs.

        Returns:
            One line for each difference, with the way to mend it; empty when all is well.
        """
        async with _Admin(self._settings) as admin:
            plans = topic_plans(self._settings)
            described = {
                topic["topic"]: topic
                for topic in await admin.describe_topics([plan.name for plan in plans])
                if topic["error_code"] == 0
            }
            problems = [
                f"{plan.name} is missing: create it with `trade-stream topics init`"
                for plan in plans
                if plan.name not in described
            ]
            present = [plan for plan in plans if plan.name in described]
            counts = {plan.name: len(described[plan.name]["partitions"]) for plan in present}
            problems += _partition_problems(self._settings.kafka_topic, present, counts)
            for plan in present:
                problems += _config_problems(plan, await _configs(admin, plan.name))
        return problems

    async def delete(self, names: list[str]) -> None:
        """Delete topics, such as those of a demo run."""
        async with _Admin(self._settings) as admin:
            await admin.delete_topics(names)

    async def _create(self, admin: Any, plans: list[TopicPlan]) -> None:
        if not plans:
            return
        brokers = len((await admin.describe_cluster())["brokers"])
        replication = min(_MAX_REPLICATION, brokers)
        partitions = await self._wanted_partitions(admin)
        min_isr = {"min.insync.replicas": str(max(1, replication - 1))}
        response = await admin.create_topics(
            [
                NewTopic(plan.name, partitions, replication, topic_configs=plan.configs | min_isr)
                for plan in plans
            ]
        )
        for name, code, *rest in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:  # another process was faster: fine
                raise TopicError(
                    f"cannot create topic {name}: {rest[0] if rest else error.__name__}"
                )
        # Created is not yet known to every broker; whoever asks next would be told it is missing.
        names = [plan.name for plan in plans]
        async with asyncio.timeout(_VISIBLE_TIMEOUT_S):
            while not all(map(_is_led, await admin.describe_topics(names))):  # noqa: ASYNC110
                await asyncio.sleep(_VISIBLE_POLL_S)

    async def _wanted_partitions(self, admin: Any) -> int:
        # The three must agree: what is there already decides.
        source = (await admin.describe_topics([self._settings.kafka_topic]))[0]
        if source["error_code"] == 0:
            return len(source["partitions"])
        return self._settings.kafka_partitions


def _is_led(topic: dict[str, Any]) -> bool:
    return topic["error_code"] == 0 and all(p["leader"] >= 0 for p in topic["partitions"])


def _partition_problems(source: str, plans: list[TopicPlan], counts: dict[str, int]) -> list[str]:
    if source not in counts:
        return []
    return [
        f"{plan.name} has {counts[plan.name]} partitions and {source} has {counts[source]}: they"
        f" must agree. Set {plan.setting} to a new name, or delete {plan.name} and create it with"
        " `trade-stream topics init`"
        for plan in plans
        if counts[plan.name] != counts[source]
    ]


def _config_problems(plan: TopicPlan, configs: dict[str, str]) -> list[str]:
    return [
        f"{plan.name} has {name}={configs.get(name)}, and needs {wanted}: kafka-configs.sh --alter"
        f" --entity-type topics --entity-name {plan.name} --add-config {name}={wanted}"
        for name, wanted in plan.required.items()
        if configs.get(name) != wanted
    ]


async def _configs(admin: Any, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    (response,) = await admin.describe_configs([resource])
    entries = response.resources[0][4]
    return {entry[0]: entry[1] for entry in entries}


class _Admin:
    """An admin client for the time of one block; client errors leave it translated."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None

    async def __aenter__(self) -> Any:
        self._client = AIOKafkaAdminClient(**connection_options(self._settings))
        try:
            await self._client.start()
        except CLIENT_ERRORS as exc:
            await self._client.close()
            raise await no_broker(self._settings, exc) from exc
        return self._client

    async def __aexit__(self, _: object, exc: BaseException | None, __: object) -> None:
        await self._client.close()
        if isinstance(exc, KafkaError | TimeoutError):
            raise transport_error("a topic request failed", self._settings, exc) from exc
