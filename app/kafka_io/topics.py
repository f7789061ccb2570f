"""The three topics: created with the settings that delivery needs, or checked against them."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from app.config import Settings
from app.errors import TopicError
from app.kafka_io.diagnosis import no_broker
from app.kafka_io.options import (
    CLIENT_ERRORS,
    MAX_REQUEST_BYTES,
    connection_options,
    transport_error,
)

log = structlog.get_logger(__name__)

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_MAX_REPLICATION: Final = 3
_VISIBLE_TIMEOUT_S: Final = 30.0
_VISIBLE_POLL_S: Final = 0.05
_COSTS: Final = {
    "cleanup.policy": "what is needed of it would be compacted away, or deleted",
    "message.timestamp.type": "the clocks of its writers say when its records are from",
    "min.compaction.lag.ms": "an older position, written late, could outlive the newer one",
    "max.message.bytes": "a larger dead letter would be refused, and stop its partition",
    "min.insync.replicas": "what a single broker holds would count as stored",
}
"""What it costs when a topic of somebody else has another setting than ours would have. How long
records are kept is for its owner to say."""
_REQUIRED: Final = "cleanup.policy"
"""The one that loses stored records as a matter of course, so that a start is refused. The others
take a second mishap for that, and whoever has topics with Kafka's defaults can go on."""
_UNSEEN: Final = "the settings of {} are not checked: this user lacks DescribeConfigs on it"
_HIDDEN: Final = "one that exists is shown only to a user who may Describe it"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it has to be.

    Attributes:
        configs: Settings it is created with.
    """

    name: str
    setting: str
    configs: dict[str, str]


@dataclass(frozen=True, slots=True)
class TopicFindings:
    """How the topics differ from the plan, a line each, with the way to mend it.

    Attributes:
        problems: What delivery cannot do without.
        warnings: What it can, and what could not be looked at.
    """

    problems: list[str]
    warnings: list[str]


def topic_plans(settings: Settings) -> list[TopicPlan]:
    """Give the three topics of the platform."""
    return [
        TopicPlan(
            settings.kafka_topic,
            "KAFKA_TOPIC",
            # A producer with a wrong clock must not decide about retention.
            {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime",
             "retention.ms": str(7 * _DAY_MS)},
        ),
        TopicPlan(
            settings.dlq_topic,
            "DLQ_TOPIC",
            {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS),
             "max.message.bytes": str(MAX_REQUEST_BYTES)},
        ),
        TopicPlan(
            settings.positions_topic,
            "POSITIONS_TOPIC",
            # The newest state outlives a late write of an older one until that is repaired. By the
            # broker's clock: it would refuse records of a worker whose own is an hour ahead.
            {"cleanup.policy": "compact", "min.compaction.lag.ms": str(_HOUR_MS),
             "message.timestamp.type": "LogAppendTime"},
        ),
    ]  # fmt: skip


class TopicAdmin:
    """Creates, checks and deletes topics; connects for each call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def ensure(self) -> list[str]:
        """Create what is missing, if we may, and check what is there; warnings go to the log.

        Returns:
            The names of the topics that were created.

        Raises:
            TopicError: Something is missing and `KAFKA_CREATE_TOPICS` is false, or differs.
            TransportError: No broker answered, or it refused us.
        """
        async with _Admin(self._settings) as admin:
            existing = await self._existing(admin)
            missing = [p for p in topic_plans(self._settings) if p.name not in existing]
            if missing and not self._settings.kafka_create_topics:
                names = ", ".join(plan.name for plan in missing)
                raise TopicError(
                    f"missing topics: {names}. Create them with `trade-stream topics init`,"
                    f" or allow it with KAFKA_CREATE_TOPICS=true; {_HIDDEN}"
                )
            await self._create(admin, missing)
        found = await self.check()
        if found.problems:
            raise TopicError("\n".join(found.problems))
        for warning in found.warnings:
            log.warning("topic_differs", warning=warning)
        return [plan.name for plan in missing]

    async def check(self) -> TopicFindings:
        """Compare the topics with what delivery needs.

        Raises:
            TransportError: No broker answered, or it refused us, or a topic is not ready.
        """
        async with _Admin(self._settings) as admin:
            plans = topic_plans(self._settings)
            existing = await self._existing(admin)
            problems = [
                f"{plan.name} is missing: create it with `trade-stream topics init`; {_HIDDEN}"
                for plan in plans
                if plan.name not in existing
            ]
            warnings = []
            present = [plan for plan in plans if plan.name in existing]
            partitions = {plan.name: existing[plan.name]["partitions"] for plan in present}
            counts = {name: len(of_topic) for name, of_topic in partitions.items()}
            problems += _partition_problems(self._settings.kafka_topic, present, counts)
            for plan in present:
                configs = await _configs(admin, plan.name)
                if configs is None:
                    warnings.append(_UNSEEN.format(plan.name))
                    continue
                wanted = plan.configs | _in_sync(len(partitions[plan.name][0]["replicas"]))
                for name, line in _differences(plan.name, wanted, configs).items():
                    (problems if name == _REQUIRED else warnings).append(line)
        return TopicFindings(problems, warnings)

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
        in_sync = _in_sync(replication)
        response = await admin.create_topics(
            [
                NewTopic(plan.name, partitions, replication, topic_configs=plan.configs | in_sync)
                for plan in plans
            ]
        )
        for name, code, *rest in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:  # another process was faster: fine
                why = ": ".join([error.__name__, *filter(None, rest)])
                raise TopicError(f"cannot create topic {name}: {why}")
        # Created is not yet known to every broker; whoever asks next would be told it is missing.
        names = [plan.name for plan in plans]
        async with asyncio.timeout(_VISIBLE_TIMEOUT_S):
            while not all(map(_is_led, await admin.describe_topics(names))):  # noqa: ASYNC110
                await asyncio.sleep(_VISIBLE_POLL_S)

    async def _wanted_partitions(self, admin: Any) -> int:
        # The three must agree: what is there already decides.
        source = (await self._existing(admin)).get(self._settings.kafka_topic)
        return len(source["partitions"]) if source else self._settings.kafka_partitions

    async def _existing(self, admin: Any) -> dict[str, Any]:
        """Describe those of our topics that are there, by name, as far as we are shown them."""
        names = {plan.name for plan in topic_plans(self._settings)}
        # All are asked for: to ask for one by its name may create it, with the broker's settings.
        topics = {t["topic"]: t for t in await admin.describe_topics() if t["topic"] in names}
        for name, topic in topics.items():
            _raise_for(topic["error_code"], name)
        return topics


def _raise_for(code: int, topic: str) -> None:
    error = for_code(code)
    if error is not NoError:
        raise error(topic)


def _is_led(topic: dict[str, Any]) -> bool:
    error = for_code(topic["error_code"])
    if not (error is NoError or error.retriable):
        raise error(topic["topic"])
    return error is NoError and all(p["leader"] >= 0 for p in topic["partitions"])


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


def _in_sync(replicas: int) -> dict[str, str]:
    return {"min.insync.replicas": str(max(1, min(replicas, _MAX_REPLICATION) - 1))}


def _differences(topic: str, wanted: dict[str, str], configs: dict[str, str]) -> dict[str, str]:
    return {
        name: f"{topic} has {name}={configs.get(name)}: {cost}. kafka-configs.sh --alter"
        f" --entity-type topics --entity-name {topic} --add-config {name}={wanted[name]}"
        for name, cost in _COSTS.items()
        if name in wanted and not _suffices(configs.get(name), wanted[name])
    }


def _suffices(has: str | None, wanted: str) -> bool:
    if has is None or not wanted.isdigit():
        return has == wanted
    return int(has) >= int(wanted)


async def _configs(admin: Any, topic: str) -> dict[str, str] | None:
    """Give the settings of a topic; `None` where we may not see them."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    (response,) = await admin.describe_configs([resource])
    ((code, _, _, _, entries),) = response.resources
    if for_code(code) is TopicAuthorizationFailedError:
        return None
    _raise_for(code, topic)
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
