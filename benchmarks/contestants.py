"""Who takes part: one line for each way to do a job."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.children import Child, ContestantError, python_module

SAME, IDIOMATIC, LIMIT = "same pipeline code", "idiomatic", "limit"


@dataclass(frozen=True)
class Contestant:
    """One way to do one job.

    Attributes:
        name: What its rows are called.
        script: Below `benchmarks/peers`, also the name of its environment; empty for ours.
        share: Of the suite's count: a slow one gets fewer records, from a backlog of its own.
        env: Variables of its environment.
    """

    name: str
    table: str
    script: str
    variant: str
    share: float = 1.0
    sink: str = "none"
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it is not ours."""
        return bool(self.script)

    @property
    def title(self) -> str:
        """Its name; of ours the sink is said as well, which is all they differ in."""
        if self.is_peer or self.sink in ("none", "topic"):
            return self.name
        return f"{self.name}, {self.sink}{' written' * (self.sink == 'positions')}"

    def start(self, job: dict[str, Any]) -> Child:
        """Start it.

        Raises:
            ContestantError: Its environment cannot be made.
        """
        job = {**job, "variant": self.variant}
        if not self.script:
            return Child(python_module("benchmarks.ours"), {**job, "env": dict(self.env)})
        command = [str(environment(self.script)), f"benchmarks/peers/{self.script}.py"]
        return Child(command, job)


def environment(name: str, requirements: Path | None = None) -> Path:
    """Give the Python of a pinned environment, a peer's unless a folder of requirements is named.

    Raises:
        ContestantError: It cannot be made, and why.
    """
    try:
        from benchmarks import environments  # noqa: PLC0415 - only who compares needs it
    except ImportError:
        raise ContestantError("unavailable: there are no environments for peers") from None
    if requirements is not None:
        environments.REQUIREMENTS = requirements
    try:
        return environments.environment(name)
    except environments.EnvironmentBuildError as exc:
        raise ContestantError(f"unavailable: {exc}") from exc


OURS_NONE: Final = Contestant("trade-stream", "ours", "", "none")
OURS_POSITIONS: Final = Contestant("trade-stream", "ours", "", "positions", sink="positions")
LEDGER: Final = tuple(
    Contestant(
        "trade-stream", "ours", "", "ledger", sink=f"ledger, IDENTITY={scope}",
        env={"IDENTITY": scope},
    )
    for scope in ("window", "full")
)  # fmt: skip

LEDGER_PEERS: Final = (
    Contestant(
        "asyncpg executemany, a batch", IDIOMATIC, "postgres_writers", "executemany", 0.1,
        sink="a table of trades",
    ),
    Contestant(
        "asyncpg INSERT, a trade", IDIOMATIC, "postgres_writers", "insert", 0.02,
        sink="a table of trades",
    ),
    Contestant(
        "Quix Streams' PostgreSQL sink", IDIOMATIC, "quix", "postgresql", 0.1,
        sink="a table of trades",
    ),
)  # fmt: skip

DRAIN: Final = (
    OURS_NONE,
    OURS_POSITIONS,
    Contestant(
        "trade-stream, public calls", "ours", "", "none", env={"KAFKA_RAW_BATCHES": "false"}
    ),
    Contestant("aiokafka getmany", SAME, "aiokafka_client", "getmany"),
    Contestant("confluent-kafka consume", SAME, "confluent", "consume"),
    Contestant("FastStream batch, raw", SAME, "faststream_app", "raw", 0.5),
    Contestant("aiokafka async for", IDIOMATIC, "aiokafka_client", "async-for", 0.1),
    Contestant("confluent-kafka poll", IDIOMATIC, "confluent", "poll", 0.1),
    Contestant("FastStream message", IDIOMATIC, "faststream_app", "message", 0.02),
    Contestant("FastStream batch", IDIOMATIC, "faststream_app", "batch", 0.1),
    Contestant("Quix Streams", IDIOMATIC, "quix", "dataframe", 0.1),
    Contestant("Faust", IDIOMATIC, "faust_app", "agent", 0.02),
)
CONSUME: Final = (
    Contestant("trade-stream", "ours", "", "consume"),
    Contestant("aiokafka getmany", SAME, "aiokafka_client", "getmany"),
    Contestant("confluent-kafka consume", SAME, "confluent", "consume"),
    Contestant("Kafka's consumer-perf-test (JVM)", LIMIT, "kafka_tools", "perf-test"),
)
PRODUCE: Final = (
    Contestant("trade-stream", "ours", "", "publish", sink="topic"),
    Contestant("aiokafka send", IDIOMATIC, "aiokafka_client", "send", 0.25, "topic"),
    Contestant("confluent-kafka produce", IDIOMATIC, "confluent", "produce", 1.0, "topic"),
    Contestant("confluent-kafka produce_batch", SAME, "confluent", "produce_batch", 1.0, "topic"),
    Contestant("Kafka's producer-perf-test (JVM)", LIMIT, "kafka_tools", "perf-test", sink="topic"),
)
