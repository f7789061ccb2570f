"""One world for a test: own topics, real processes, and the check of all that they did."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.faults.checker import (
    Evidence,
    Sample,
    Verdict,
    check,
    newest_positions,
    stored_positions,
)
from tests.faults.journal import Attempt
from tests.faults.reading import (
    QUIET,
    LogRecord,
    committed_offsets,
    end_offsets,
    outside_consumer,
    read_topic,
)

ROOT: Final = Path(__file__).parents[2]
PARTITIONS: Final = 4
_DEFAULT_WINDOW: Final = 5_000
_HOUR_MS: Final = 3_600_000


def wait_for(condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
    """Wait until a condition holds; fail with its name when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        pause.wait(0.05)


@dataclass
class World:
    """Topics and a group of one test.

    Attributes:
        bootstrap: Where its processes find the brokers.
        direct: Where the test itself finds them, if it is past relays; else the same.
        extra: Environment of its processes, in addition.
    """

    bootstrap: str
    name: str = field(default_factory=lambda: f"e2e-{uuid.uuid4().hex[:10]}")
    partitions: int = PARTITIONS
    extra: dict[str, str] = field(default_factory=dict)
    direct: str = ""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.direct = self.direct or self.bootstrap

    @property
    def events(self) -> str:
        """Topic of the trades."""
        return f"{self.name}-events"

    @property
    def dead_letters(self) -> str:
        """Topic of the dead letters."""
        return f"{self.name}-dlq"

    @property
    def positions_topic(self) -> str:
        """Compacted topic of the positions."""
        return f"{self.name}-positions"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the processes of this world."""
        return {
            # KAFKA_RAW_BATCHES=false runs the same tests on the client's public calls.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("KAFKA_") or name == "KAFKA_RAW_BATCHES"
            },
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "KAFKA_TOPIC": self.events,
            "DLQ_TOPIC": self.dead_letters,
            "POSITIONS_TOPIC": self.positions_topic,
            "KAFKA_GROUP_ID": self.name,
            "KAFKA_PARTITIONS": str(self.partitions),
            "KAFKA_SESSION_TIMEOUT_MS": "6000",
            "COMMIT_INTERVAL_MS": "50",
            **self.extra,
        }

    @property
    def window(self) -> int:
        """Offsets for which a trade sent twice is recognised."""
        return int(self.environment.get("DEDUPE_WINDOW", _DEFAULT_WINDOW))

    # -- processes

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a Python program of the project."""
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(
        self, *command: str, exit_code: int | None = 0, timeout_s: float = 90, **environment: str
    ) -> str:
        """Run a command of the command line to its end; give its standard output."""
        process = self.start("-m", "app", *command, **environment)
        output, errors = process.communicate(timeout=timeout_s)
        if exit_code is not None:
            assert process.returncode == exit_code, f"{command}: {output}\n{errors[-3000:]}"
        return output

    def consume_all(self) -> dict[str, Any]:
        """Run one consumer until it has caught up; give its summary."""
        summary: dict[str, Any] = json.loads(
            self.run("consume", "--until-caught-up", "--json", timeout_s=120)
        )
        return summary

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    # -- an independent client

    def create_topics(self, *, replicas: int = 1) -> None:
        """Create the topics as the product would, by an independent client."""
        plain = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
        roomy = plain | {"max.message.bytes": str(2 * 1024 * 1024)}
        compacted = {
            "cleanup.policy": "compact",
            "min.compaction.lag.ms": str(_HOUR_MS),
            "message.timestamp.type": "LogAppendTime",
        }
        in_sync = {"min.insync.replicas": str(max(1, replicas - 1))}
        for topic, config in (
            (self.events, plain),
            (self.dead_letters, roomy),
            (self.positions_topic, compacted),
        ):
            admin_create(
                self.direct, topic, self.partitions, replicas=replicas, **config, **in_sync
            )

    def publish(self, records: Iterable[tuple[bytes | None, bytes | None]], **options: Any) -> None:
        """Publish with librdkafka: records without a key go anywhere, others by its own hash."""
        producer = Producer(
            {"bootstrap.servers": self.direct, "acks": "all", "linger.ms": 5, **QUIET, **options}
        )
        failures: list[str] = []

        def delivered(error: Any, _: Message) -> None:
            if error is not None:
                failures.append(str(error))

        for key, value in records:
            producer.produce(self.events, value=value, key=key, on_delivery=delivered)
            producer.poll(0)
        assert producer.flush(30) == 0
        assert not failures

    def read(self, topic: str) -> list[LogRecord]:
        """Read a whole topic, in partition and offset order."""
        return read_topic(self.direct, topic, self.partitions)

    def outside(self) -> Consumer:
        """Make a consumer outside of the group, which sees the group's commits."""
        return outside_consumer(self.direct, self.name)

    def sample(self, consumer: Consumer) -> Sample:
        """Look at the group's commits, and after that at the ends of the logs."""
        numbers = range(self.partitions)
        return Sample(
            time.monotonic_ns(),
            committed_offsets(consumer, self.events, numbers),
            end_offsets(consumer, self.events, numbers),
            end_offsets(consumer, self.positions_topic, numbers),
            end_offsets(consumer, self.dead_letters, numbers),
        )

    def progress(self) -> tuple[int, int]:
        """Give how many records the group has committed past, and how many are left."""
        consumer = self.outside()
        try:
            committed = committed_offsets(consumer, self.events, range(self.partitions))
            ends = end_offsets(consumer, self.events, range(self.partitions))
        finally:
            consumer.close()
        done = sum(committed.values())
        return done, sum(ends.values()) - done

    def lag(self) -> int:
        """Give the total lag of the group."""
        return self.progress()[1]

    def positions(self) -> list[dict[str, Any]]:
        """Give the positions as the command line prints them."""
        rows: list[dict[str, Any]] = json.loads(self.run("positions", "--json"))
        return rows

    # -- the check

    def evidence(
        self,
        *,
        attempts: Sequence[Attempt] | None = None,
        samples: Sequence[Sample] = (),
        holes: Mapping[int, range] | None = None,
    ) -> Evidence:
        """Read everything that a check needs; see `Evidence`."""
        consumer = self.outside()
        try:
            committed = committed_offsets(consumer, self.events, range(self.partitions))
        finally:
            consumer.close()
        return Evidence(
            topic=self.events,
            partitions=self.partitions,
            source=read_topic(self.direct, self.events, self.partitions, holes=holes),
            letters=self.read(self.dead_letters),
            positions=self.read(self.positions_topic),
            committed=committed,
            attempts=attempts,
            samples=samples,
            window=self.window,
            holes=holes or {},
        )

    def check(self) -> Verdict:
        """Prove that every record has one fate and positions are exact, and nothing lags.

        What the command line prints is what the log holds.
        """
        evidence = self.evidence()
        verdict = check(evidence)
        assert not verdict.findings, verdict.report()
        newest = newest_positions(stored_positions(evidence.positions)).values()
        shown = {(row["book"] or None, row["symbol"]): row for row in self.positions()}
        assert shown.keys() == {(one.state.get("book"), one.state["symbol"]) for one in newest}
        for one in newest:
            row = shown[one.state.get("book"), one.state["symbol"]]
            assert {name: row[name] for name in row.keys() & one.state.keys()} == {
                name: one.state[name] for name in row.keys() & one.state.keys()
            }
        assert self.lag() == 0
        return verdict


def trade(
    number: int, *, symbol: str, side: str, price: str, quantity: str, book: str | None = None
) -> bytes:
    """Encode a good trade as a stranger would."""
    event = {
        "trade_id": f"GOOD-{number}",
        "symbol": symbol,
        "side": side,
        "price": price,
        "quantity": quantity,
        "timestamp": "2026-03-02T09:30:00.123456789+01:00",
    }
    return json.dumps(event | ({"book": book} if book else {})).encode()


def kill(process: "subprocess.Popen[str]") -> None:
    """End a process at once."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def admin_create(
    bootstrap: str, topic: str, partitions: int, *, replicas: int = 1, **config: str
) -> None:
    """Create a topic with an independent client."""
    admin = AdminClient({"bootstrap.servers": bootstrap, **QUIET})
    made = admin.create_topics([NewTopic(topic, partitions, replicas, config=config)])
    made[topic].result(20)
