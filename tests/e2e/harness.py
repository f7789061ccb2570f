"""One world for an end-to-end test: own topics, real processes, and an independent oracle."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.kafka_io.partitioner import KeyPartitioner

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
REKEYED_FROM = "x-rekeyed-from"


def wait_for(condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
    """Wait until a condition holds; fail with its name when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        pause.wait(0.05)


@dataclass
class Model:
    """A position by average cost in exact fractions: nothing of it comes from the product."""

    quantity: Fraction = Fraction(0)
    cost: Fraction = Fraction(0)
    realized: Fraction = Fraction(0)
    mark: Fraction = Fraction(0)
    trades: int = 0

    def apply(self, signed: Fraction, price: Fraction) -> None:
        """Fold one fill."""
        self.trades += 1
        self.mark = price
        if self.quantity * signed >= 0:
            self.cost += signed * price
        else:
            closed = min(abs(signed), abs(self.quantity)) * (1 if signed > 0 else -1)
            share = self.cost * abs(closed) / abs(self.quantity)
            self.realized += -closed * price - share
            self.cost = self.cost - share + (signed - closed) * price
        self.quantity += signed


@dataclass
class World:
    """Topics and a group of one test on a running broker."""

    bootstrap: str
    name: str = field(default_factory=lambda: f"e2e-{uuid.uuid4().hex[:10]}")
    partitions: int = PARTITIONS
    extra: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def events(self) -> str:
        """Topic of the trades."""
        return f"{self.name}-events"

    @property
    def dead_letters(self) -> str:
        """Topic of the dead letters."""
        return f"{self.name}-dlq"

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
            "POSITIONS_TOPIC": f"{self.name}-positions",
            "KAFKA_GROUP_ID": self.name,
            "KAFKA_PARTITIONS": str(self.partitions),
            "KAFKA_SESSION_TIMEOUT_MS": "6000",
            "COMMIT_INTERVAL_MS": "50",
            **self.extra,
        }

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

    def create_topics(self) -> None:
        """Create the topics as the product would, by an independent client."""
        plain = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
        admin_create(self.bootstrap, self.events, self.partitions, **plain)
        admin_create(self.bootstrap, self.dead_letters, self.partitions)
        compacted = {"cleanup.policy": "compact", "min.compaction.lag.ms": "3600000"}
        admin_create(self.bootstrap, f"{self.name}-positions", self.partitions, **compacted)

    def publish(self, records: Iterable[tuple[bytes | None, bytes | None]], **options: Any) -> None:
        """Publish with librdkafka: records without a key go anywhere, others by its own hash."""
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "acks": "all", "linger.ms": 5, **options}
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

    def read(self, topic: str) -> list[Message]:
        """Read a whole topic, in partition and offset order."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"{self.name}-reader-{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        found: list[Message] = []
        try:
            for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
                _, end = consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=10
                )
                consumer.assign([TopicPartition(topic, partition, 0)])
                position = 0
                while position < end:
                    message = consumer.poll(10)
                    assert message is not None, f"{topic} {partition} stalls at {position} of {end}"
                    assert message.error() is None
                    found.append(message)
                    position = int(message.offset() or 0) + 1
        finally:
            consumer.close()
        return found

    def progress(self) -> tuple[int, int]:
        """Give how many records the group has committed past, and how many are left."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.name})
        try:
            partitions = [TopicPartition(self.events, p) for p in range(self.partitions)]
            done = left = 0
            for stored in consumer.committed(partitions, timeout=10):
                first, end = consumer.get_watermark_offsets(stored, timeout=10)
                next_offset = max(first, stored.offset)
                done += next_offset - first
                left += end - next_offset
        finally:
            consumer.close()
        return done, left

    def lag(self) -> int:
        """Give the total lag of the group."""
        return self.progress()[1]

    def positions(self) -> list[dict[str, Any]]:
        """Give the positions as the command line prints them."""
        rows: list[dict[str, Any]] = json.loads(self.run("positions", "--json"))
        return rows

    # -- the check

    def check(self) -> None:
        """Compare what stands in the topics with an independent model of the trades.

        Every record of the source has exactly one fate; positions are exact; nothing lags.
        """
        partition_of = KeyPartitioner().partition
        models: dict[str, Model] = defaultdict(Model)
        moved: set[tuple[int, int]] = set()
        misplaced: set[tuple[int, int]] = set()
        refused: set[tuple[int, int]] = set()
        for message in self.read(self.events):
            place = (int(message.partition() or 0), int(message.offset() or 0))
            event = _valid(message.value())
            if event is None:
                refused.add(place)
                continue
            key = f"{event['book']}|{event['symbol']}" if event.get("book") else event["symbol"]
            if partition_of(key.encode(), self.partitions) != place[0]:
                misplaced.add(place)
                continue
            origin: Any = dict(message.headers() or []).get(REKEYED_FROM)
            if origin is not None:
                _, partition, offset = str(origin, "ascii").split("/")
                if (int(partition), int(offset)) in moved:
                    continue  # its second copy
                moved.add((int(partition), int(offset)))
            sign = 1 if event["side"] == "BUY" else -1
            models[key].apply(sign * Fraction(event["quantity"]), Fraction(event["price"]))
        assert moved == misplaced, "each misplaced trade is re-keyed, and nothing else"
        self._check_dead_letters(refused)
        self._check_positions(models)
        assert self.lag() == 0

    def _check_dead_letters(self, refused: set[tuple[int, int]]) -> None:
        origins: Counter[tuple[int, int]] = Counter()
        originals = {(m.partition(), m.offset()): m for m in self.read(self.events) if refused}
        for letter in self.read(self.dead_letters):
            headers = dict(letter.headers() or [])
            origin = (
                int(headers["__dlq.errors.partition"] or -1),
                int(headers["__dlq.errors.offset"] or -1),
            )
            origins[origin] += 1
            original = originals[origin]
            assert letter.key() == original.key()
            assert letter.value() == (original.value() or b"")
            assert letter.partition() == origin[0]
        assert set(origins) == refused

    def _check_positions(self, models: dict[str, Model]) -> None:
        rows = {
            f"{row['book']}|{row['symbol']}" if row["book"] else row["symbol"]: row
            for row in self.positions()
        }
        assert rows.keys() == models.keys()
        for key, model in models.items():
            row = {name: Fraction(row) for name, row in rows[key].items() if _is_amount(name)}
            assert row["quantity"] == model.quantity, key
            assert row["mark"] == model.mark, key
            # Exact in sum; the split between the two may differ in the 24th decimal a close.
            total = row["realized_pnl"] + row["unrealized_pnl"]
            value = model.quantity * model.mark
            assert total == model.realized + value - model.cost, key
            assert abs(row["realized_pnl"] - model.realized) <= model.trades * Fraction(
                1, 10**24
            ), key


def _is_amount(name: str) -> bool:
    return name in ("quantity", "mark", "realized_pnl", "unrealized_pnl")


def _valid(value: bytes | None) -> dict[str, Any] | None:
    """Give the event of a record that the tests meant to be good: they mark the others."""
    if value is None or b"GOOD" not in value:
        return None
    event: dict[str, Any] = json.loads(value)
    return event


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


def admin_create(bootstrap: str, topic: str, partitions: int, **config: str) -> None:
    """Create a topic with an independent client."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    made = admin.create_topics([NewTopic(topic, partitions, 1, config=config)])
    made[topic].result(20)
