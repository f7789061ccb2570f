"""The whole of it once: a broker, a producer, a consumer, and a check that everything adds up.

The check is independent of the consumer: it folds what the broker acknowledged to the producer with
plain sums, and compares them with what stands in the topics afterwards.
"""

import asyncio
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from asyncio.subprocess import Process as Child
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import SecretStr

from app.config import EMBEDDED_DATABASE, Settings, child_environment, data_home, is_set
from app.embedded.kafka import EmbeddedKafka
from app.embedded.launch import start_token
from app.embedded.process import Process, read_pid_file
from app.errors import ConfigError, TradeStreamError
from app.kafka_io.connect import open_publisher
from app.kafka_io.log_reader import KafkaLogReader
from app.kafka_io.topics import TopicAdmin
from app.ledger import new_database, read_sums
from app.models import Fate
from app.money import parse_amount, parse_scaled, to_decimal
from app.ports import SendOutcome, SendState
from app.position_codec import PositionRecord
from app.producer import ProduceSummary, TradeProducer, new_run_id
from app.progress import Progress
from app.simulator import SimulatedTrade, TradeSimulator
from app.stores.postgres import LedgerSums
from app.views import PositionsView, dead_letter_json, read_dead_letters, read_lag

CONSUMER_READY_S: Final = 60.0
DRAIN_STALL_S: Final = 60.0
_POLL_S: Final = 0.1
_CONNECT_S: Final = 30.0
_OWNER_FILE: Final = "owner.pid"
DEMO_DATABASE: Final = "demo"
"""Of the embedded PostgreSQL: made anew for each run, and kept until the next one."""
_NOT_THERE: Final = (
    "DATABASE_URL: the demo simulates trades, and keeps them out of a ledger that may be in use:"
    " set `embedded`, of which it takes a database of its own, or nothing"
)


@dataclass(slots=True)
class Oracle:
    """What must come out, folded from the acknowledged trades with nothing but sums."""

    cash_e16: int = 0
    quantity_e8: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    last_price_e8: dict[str, int] = field(default_factory=dict)
    trades: int = 0

    def add(self, trade: SimulatedTrade, outcome: SendOutcome) -> None:
        """Take one record with its outcome; poison and what is not stored do not count."""
        event = trade.event
        if outcome.state is not SendState.OK or event is None:
            return
        price_e8 = parse_amount(event.price)[0]
        quantity_e8 = parse_amount(event.quantity)[0] * (1 if event.side == "BUY" else -1)
        key = trade.key.decode()
        self.cash_e16 -= quantity_e8 * price_e8
        self.quantity_e8[key] += quantity_e8
        self.last_price_e8[key] = price_e8
        self.trades += 1

    @property
    def total_pnl(self) -> Decimal:
        """Cash plus the value of what is held at the last prices: the cash invariant."""
        held = sum(q * self.last_price_e8[key] for key, q in self.quantity_e8.items())
        return to_decimal(self.cash_e16 + held, 16)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the run came to.

    Attributes:
        problems: What does not add up, a line each; empty when all is well.
    """

    produced: ProduceSummary
    consumer: dict[str, Any]
    ledger: LedgerSums | None
    lag: int
    dead_letters: Counter[str]
    positions: list[PositionRecord]
    total_pnl: Decimal
    cash_invariant_ok: bool
    seed: int
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Give the result as one JSON object."""
        fates = self.consumer["fates"]
        dead_lettered = fates.get(Fate.DEAD_LETTERED.value, 0)
        return {
            "produced": self.produced.produced,
            "consumed": sum(fates.values()) - dead_lettered,
            "dead_lettered": dead_lettered,
            "reasons": self.consumer["reasons"],
            "lag": self.lag,
            "produce_per_s": round(self.produced.per_second),
            "consume_per_s": self.consumer["consume_per_s"],
            "latency_ms": self.consumer["latency_ms"],
            "positions": len(self.positions),
            "total_pnl": str(self.total_pnl),
            "ledger_trades": None if self.ledger is None else self.ledger.trades,
            "cash_invariant_ok": self.cash_invariant_ok,
            "seed": self.seed,
            "problems": self.problems,
        }


async def run_demo(
    settings: Settings,
    stop: asyncio.Event,
    *,
    count: int,
    poison: float,
    seed: int | None,
    say: Callable[[str], None],
) -> DemoResult:
    """Publish, consume and check, on a broker of our own or on topics of our own.

    Args:
        settings: Where `KAFKA_BOOTSTRAP_SERVERS` is set, topics with a run id are made there and
            deleted afterwards; otherwise a broker is started on free ports and removed.
        stop: Set it to break the run off.
        count: Trades to publish.
        poison: Share of them that is poisoned.
        seed: Of the simulation; random without.
        say: Told what happens, in single lines.

    Raises:
        ConfigError: `DATABASE_URL` names a ledger of somebody.
        TradeStreamError: A part does not start or stalls.
        KeyboardInterrupt: The run was broken off.
    """
    seed = secrets.randbits(32) if seed is None else seed
    run_id = new_run_id()
    settings = await _with_ledger(settings, say)
    async with _broker(settings, run_id, say) as ours:
        oracle = Oracle()
        async with (
            open_publisher(ours, stop, connect_timeout_s=_CONNECT_S) as publisher,
            _consumer(ours) as child,
        ):
            reader = KafkaLogReader(ours)
            await _until_joined(ours, reader, child, stop)
            say(f"publishing {count:,} trades and consuming them (seed {seed})")
            simulator = TradeSimulator(run_id=run_id, seed=seed, poison=poison)
            with Progress("publishing", total=count) as progress:
                producer = TradeProducer(
                    publisher,
                    topic=ours.kafka_topic,
                    simulator=simulator,
                    on_outcome=oracle.add,
                    progress=progress.advance,
                )
                produced = await producer.run(stop, count=count)
            lag = await _until_drained(ours, reader, child, stop)
            say("everything is consumed; checking")
            consumer = await _stop_and_read(child)
        return await _check(ours, reader, produced, consumer, oracle, lag=lag, seed=seed)


# -- the parts


async def _with_ledger(settings: Settings, say: Callable[[str], None]) -> Settings:
    """Give the demo a database of its own, made anew, where the embedded one is wanted.

    Raises:
        ConfigError: Another one is set. It would have simulated trades, and the offsets of a topic
            that is gone afterwards, from where its own group would go on.
    """
    if settings.database_url is None:
        return settings
    if settings.database_url.get_secret_value() != EMBEDDED_DATABASE:
        raise ConfigError([_NOT_THERE])
    url = await new_database(DEMO_DATABASE, settings.identity)
    say(f"PostgreSQL is ready, with a new database {DEMO_DATABASE}")
    return settings.model_copy(update={"database_url": SecretStr(url)})


@asynccontextmanager
async def _broker(
    settings: Settings, run_id: str, say: Callable[[str], None]
) -> AsyncIterator[Settings]:
    if is_set("KAFKA_BOOTSTRAP_SERVERS"):
        ours = settings.model_copy(update=_names(run_id))
        say(f"using {ours.kafka_bootstrap_servers}, topic {ours.kafka_topic}")
        try:
            yield ours
        finally:
            await TopicAdmin(ours).delete([ours.kafka_topic, ours.dlq_topic, ours.positions_topic])
        return
    await asyncio.to_thread(_sweep)
    data_home().mkdir(exist_ok=True)
    data_dir = Path(tempfile.mkdtemp(prefix="demo-", dir=data_home()))
    us = Process(os.getpid(), start_token(os.getpid()))
    (data_dir / _OWNER_FILE).write_bytes(msgspec.json.encode(us))
    kafka = EmbeddedKafka(data_dir=data_dir / "kafka", port=0, notify=say)
    started_s = time.monotonic()
    try:
        await asyncio.to_thread(kafka.start)
        say(f"Apache Kafka is ready after {time.monotonic() - started_s:.1f} s")
        yield settings.model_copy(update={"kafka_bootstrap_servers": kafka.bootstrap})
    finally:
        await asyncio.to_thread(kafka.stop)
        shutil.rmtree(data_dir, ignore_errors=True)


def _names(run_id: str) -> dict[str, Any]:
    name = f"trade-demo-{run_id}"
    return {
        "kafka_topic": f"{name}-events",
        "dlq_topic": f"{name}-dead-letters",
        "positions_topic": f"{name}-positions",
        "kafka_group_id": name,
        "kafka_create_topics": True,
    }


def _sweep() -> None:
    """Stop and remove brokers of runs that were killed."""
    for data_dir in data_home().glob("demo-*"):
        owner = read_pid_file(data_dir / _OWNER_FILE)
        if owner is None or not owner.is_alive():
            EmbeddedKafka(data_dir=data_dir / "kafka").stop()
            shutil.rmtree(data_dir, ignore_errors=True)


@asynccontextmanager
async def _consumer(settings: Settings) -> AsyncIterator[Child]:
    script = Path(__file__).with_name("consumer.py")
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        "--json",
        "--parent-pid",
        str(os.getpid()),
        stdout=PIPE,
        env=child_environment(
            {
                "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
                "KAFKA_TOPIC": settings.kafka_topic,
                "DLQ_TOPIC": settings.dlq_topic,
                "POSITIONS_TOPIC": settings.positions_topic,
                "KAFKA_GROUP_ID": settings.kafka_group_id,
                "LOG_LEVEL": "WARNING",
                **_database(settings),
            }
        ),
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def _database(settings: Settings) -> dict[str, str]:
    url = settings.database_url
    return {} if url is None else {"DATABASE_URL": url.get_secret_value()}


async def _until_joined(
    settings: Settings, reader: KafkaLogReader, child: Child, stop: asyncio.Event
) -> None:
    deadline_s = time.monotonic() + CONSUMER_READY_S
    while any(part.committed is None for part in await read_lag(settings, reader)):
        _must_go_on(child, stop)
        if time.monotonic() > deadline_s:
            raise TradeStreamError(f"the consumer has not joined within {CONSUMER_READY_S:.0f} s")
        await asyncio.sleep(_POLL_S)


async def _until_drained(
    settings: Settings, reader: KafkaLogReader, child: Child, stop: asyncio.Event
) -> int:
    """Wait until nothing is behind; gives what is left where the consumer stalls."""
    lowest, moved_s = -1, time.monotonic()
    while True:
        lag = sum(part.lag for part in await read_lag(settings, reader))
        _must_go_on(child, stop)
        if lowest < 0 or lag < lowest:
            lowest, moved_s = lag, time.monotonic()
        if not lag or time.monotonic() - moved_s > DRAIN_STALL_S:
            return lag
        await asyncio.sleep(_POLL_S)


def _must_go_on(child: Child, stop: asyncio.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt
    if child.returncode is not None:
        raise TradeStreamError(f"the consumer ended with exit code {child.returncode}")


async def _stop_and_read(child: Child) -> dict[str, Any]:
    child.terminate()
    output, _ = await child.communicate()
    try:
        summary: dict[str, Any] = json.loads(output)
    except ValueError as exc:
        raise TradeStreamError(
            f"the consumer ended with exit code {child.returncode} and no summary"
        ) from exc
    return summary


# -- the check


async def _check(
    settings: Settings,
    reader: KafkaLogReader,
    produced: ProduceSummary,
    consumer: dict[str, Any],
    oracle: Oracle,
    *,
    lag: int,
    seed: int,
) -> DemoResult:
    view = PositionsView(reader, settings.positions_topic)
    await view.refresh()
    dead_letters: Counter[str] = Counter()
    async for partition, record in read_dead_letters(reader, settings.dlq_topic):
        dead_letters[str(dead_letter_json(partition, record)["reason"])] += 1
    total_pnl = to_decimal(sum(map(_total_pnl_e24, view.positions)), 24)
    fates = consumer["fates"]
    quantities = {
        f"{p.book}|{p.symbol}" if p.book else p.symbol: parse_amount(p.quantity)[0]
        for p in view.positions
    }
    is_invariant = total_pnl == oracle.total_pnl
    fates_total, booked, refused = sum(fates.values()), fates.get("booked", 0), consumer["reasons"]
    unsure = produced.outcomes.total() - produced.produced
    checks = [
        (produced.is_complete, f"{unsure} records are not surely stored"),
        (lag == 0, f"lag is {lag}"),
        (produced.produced == fates_total, f"{produced.produced} sent, {fates_total} fates"),
        (booked == oracle.trades, f"{booked} booked of {oracle.trades} good trades"),
        (produced.poison == refused, f"poison {dict(produced.poison)}, refused {refused}"),
        (dead_letters == refused, f"the dead-letter topic holds {dict(dead_letters)}"),
        (quantities == oracle.quantity_e8, "quantities differ from the trades'"),
        (is_invariant, f"total PnL {total_pnl} is not cash plus holdings {oracle.total_pnl}"),
    ]
    ledger = None if settings.database_url is None else await read_sums(settings)
    if ledger is not None:
        counts = ledger.trades, ledger.dead_letters
        checks += [
            (counts == (booked, dead_letters.total()), f"the ledger has {ledger}"),
            (ledger.total_pnl == total_pnl, f"total PnL of the ledger is {ledger.total_pnl}"),
        ]
    return DemoResult(
        produced=produced,
        consumer=consumer,
        ledger=ledger,
        lag=lag,
        dead_letters=dead_letters,
        positions=view.positions,
        total_pnl=total_pnl,
        cash_invariant_ok=is_invariant,
        seed=seed,
        problems=[problem for is_well, problem in checks if not is_well],
    )


def _total_pnl_e24(position: PositionRecord) -> int:
    gross = parse_scaled(position.realized_pnl, 24) + parse_scaled(position.unrealized_pnl, 24)
    return gross - parse_scaled(position.fees, 24)
