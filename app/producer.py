"""TradeProducer: publishes simulated trades at a rate or flat out, and counts outcomes."""

import os.path
import sys

if not __package__:  # `python app/producer.py`: put the root, not app/, on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer

from app.config import HIGH_VOLUME_COUNT
from app.health import Health, Unready
from app.kafka_io.connect import open_publisher
from app.lifecycle import EXIT_FAILED, run_program, run_with_stop, start_up
from app.metrics import ProducerCounts, ProducerMetrics
from app.monitor import monitored
from app.ports import OutgoingRecord, Publisher, SendOutcome, SendState
from app.progress import Progress
from app.simulator import SimulatedTrade, TradeSimulator
from app.timestamps import NS_PER_S, format_timestamp

DEFAULT_RATE: Final = 20.0
CONNECT_TIMEOUT_S: Final = 30.0
_CHUNK: Final = 2_000
_CHUNKS_IN_FLIGHT: Final = 4
_TICK_S: Final = 0.005
_REPEATS: Final = 3
FINISH_TIMEOUT_S: Final = 10.0
"""Longest wait for acknowledgements after a stop."""
_PATIENCE_S: Final = 5.0
"""Longest wait for an acknowledgement before the process says that it is not ready."""


@dataclass(slots=True)
class ProduceSummary:
    """What a run published, by outcome; `produced` is what the log surely holds.

    Attributes:
        outcomes: Records by what is known of their send, in the end.
        repeated: Sends of what may have been stored already, under the same trade ids.
        poison: Poisoned records among the produced ones, by the reason they must be refused with.
        errors: What went wrong, by how often.
    """

    outcomes: Counter[SendState] = field(default_factory=Counter)
    repeated: int = 0
    poison: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def produced(self) -> int:
        """Records that are stored."""
        return self.outcomes[SendState.OK]

    @property
    def per_second(self) -> float:
        """Stored records per second of the run."""
        return self.produced / self.seconds if self.seconds else 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every record is known to be stored."""
        return self.produced == self.outcomes.total()

    def to_json(self) -> dict[str, Any]:
        """Give the counts as a JSON object."""
        return {
            "produced": self.produced,
            "not_sent": self.outcomes[SendState.NOT_SENT],
            "unknown": self.outcomes[SendState.UNKNOWN],
            "repeated": self.repeated,
            "poison": dict(sorted(self.poison.items())),
            "errors": dict(self.errors),
            "seconds": round(self.seconds, 3),
            "produce_per_s": round(self.per_second),
        }

    def to_text(self) -> str:
        """Say the counts to a person."""
        counts = self.outcomes
        text = (
            f"published {self.produced:,} trades in {self.seconds:.1f} s"
            f" ({self.per_second:,.0f}/s); not sent {counts[SendState.NOT_SENT]:,},"
            f" unknown {counts[SendState.UNKNOWN]:,}"
        )
        if self.repeated:
            text += f"; {self.repeated:,} sent again after an unknown outcome"
        if self.poison:
            text += f"; {self.poison.total():,} of them poison"
        return "\n".join(
            [text, *(f"  {count:,} x {error}" for error, count in self.errors.items())]
        )


class TradeProducer:
    """Publishes what a simulator makes.

    What may or may not be stored is sent again, under the same trade ids: whoever consumes knows a
    trade by its id. It may then stand behind later trades of its position, and twice.

    Args:
        publisher: Where records go; it repeats what surely was not sent, within its bounds.
        topic: Topic of the trades.
        simulator: Makes the trades.
        on_outcome: Called for every record with what became of it.
        progress: Called with the number of records of each chunk that has ended.
        metrics: Gets counts and durations.
        health: Learns whether records are stored.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        topic: str,
        simulator: TradeSimulator,
        on_outcome: Callable[[SimulatedTrade, SendOutcome], None] | None = None,
        progress: Callable[[int], None] | None = None,
        metrics: ProducerMetrics | None = None,
        health: Health | None = None,
    ) -> None:
        self._publisher = publisher
        self._topic = topic
        self._simulator = simulator
        self._on_outcome = on_outcome
        self._progress = progress
        self._metrics = metrics or ProducerMetrics()
        self._health = health or Health()
        self._in_flight: deque[tuple[list[SimulatedTrade], asyncio.Task[list[SendOutcome]]]] = (
            deque()
        )
        self.summary = ProduceSummary()

    async def run(
        self, stop: asyncio.Event, *, count: int | None = None, rate: float | None = None
    ) -> ProduceSummary:
        """Publish until told to stop, or until `count` trades are out.

        Args:
            stop: Set it to stop; what was accepted is flushed and counted, within a bound: what is
                not answered by then is unknown.
            count: Number of trades; without it there is no end.
            rate: Trades per second, each stamped with the time it was due; without it as fast as
                the broker takes them.
        """
        started_s = time.monotonic()
        producing = asyncio.ensure_future(self._produce(stop, count, rate))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([producing, stopping], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([producing], timeout=FINISH_TIMEOUT_S)
            if producing.done():
                producing.result()
        finally:
            producing.cancel()
            stopping.cancel()
            await asyncio.wait([producing, stopping])
            self._give_up()
        self.summary.seconds = time.monotonic() - started_s
        return self.summary

    async def _produce(self, stop: asyncio.Event, count: int | None, rate: float | None) -> None:
        started_s = time.monotonic()
        started_ns = time.time_ns()
        made = 0
        self._health.started()
        while not stop.is_set() and (count is None or made < count):
            self._health.tick()
            self._metrics.offer(self._counts)
            elapsed_s = time.monotonic() - started_s
            due = made + _CHUNK if rate is None else int(elapsed_s * rate) + 1
            chunk = min(_CHUNK, due - made, (count or due) - made)
            if chunk <= 0:
                await _pause(stop, (made / (rate or 1)) - elapsed_s)
                continue
            interval_ns = int(NS_PER_S / rate) if rate else 0
            stamps_ns = (
                [started_ns + (made + i) * interval_ns for i in range(chunk)]
                if rate
                else [time.time_ns()] * chunk
            )
            await self._submit(stamps_ns)
            made += chunk
        self._health.fail(Unready.STOPPING, "waits for the last acknowledgements")
        while self._in_flight:
            await self._settle_oldest()

    def _give_up(self) -> None:
        """Count what is not answered in time."""
        for trades, sending in self._in_flight:
            sending.cancel()
            self.summary.outcomes[SendState.UNKNOWN] += len(trades)
            self.summary.errors["no answer before the stop"] += len(trades)
        self._in_flight.clear()

    async def _submit(self, stamps_ns: list[int]) -> None:
        stamps = {ns: format_timestamp(ns // 1000 * 1000) for ns in set(stamps_ns)}
        trades = [self._simulator.next_trade(stamps[ns]) for ns in stamps_ns]
        sending = asyncio.ensure_future(self._publish(trades))
        self._in_flight.append((trades, sending))
        await asyncio.sleep(0)
        while len(self._in_flight) >= _CHUNKS_IN_FLIGHT or (
            self._in_flight and self._in_flight[0][1].done()
        ):
            await self._settle_oldest()

    async def _publish(self, trades: list[SimulatedTrade]) -> list[SendOutcome]:
        records = [OutgoingRecord(self._topic, trade.key, trade.value) for trade in trades]
        started_s = time.monotonic()
        outcomes = await self._publisher.publish(records)
        for _ in range(_REPEATS):
            doubtful = [o for o in outcomes if o.state is SendState.UNKNOWN and o.retryable]
            if not doubtful:
                break
            self.summary.repeated += len(doubtful)
            # What was held back behind them goes with them, so that they keep their order.
            left = [
                i for i, o in enumerate(outcomes) if o.state is not SendState.OK and o.retryable
            ]
            again = await self._publisher.publish([records[i] for i in left])
            for index, outcome in zip(left, again, strict=True):
                was_sent = outcomes[index].state is SendState.UNKNOWN
                if outcome.state is not SendState.NOT_SENT or not was_sent:
                    outcomes[index] = outcome
        self._metrics.observe_send(time.monotonic() - started_s)
        return outcomes

    async def _settle_oldest(self) -> None:
        trades, sending = self._in_flight[0]
        acknowledged, _ = await asyncio.wait([sending], timeout=_PATIENCE_S)
        if not acknowledged:
            self._health.fail(Unready.BROKER, f"no acknowledgement for {_PATIENCE_S:.0f} s")
            await asyncio.wait([sending])  # which a cancel of ours does not reach
        self._in_flight.popleft()
        stored = 0
        for trade, outcome in zip(trades, sending.result(), strict=True):
            if outcome.state is SendState.OK:
                stored += 1
                if trade.poison_reason is not None:
                    self.summary.poison[trade.poison_reason] += 1
            else:
                self.summary.outcomes[outcome.state] += 1
                self.summary.errors[outcome.error] += 1
            if self._on_outcome is not None:
                self._on_outcome(trade, outcome)
        self.summary.outcomes[SendState.OK] += stored
        if stored == len(trades):
            self._health.clear(Unready.BROKER)
        else:
            self._health.fail(Unready.BROKER, "records are not stored")
        if self._progress is not None:
            self._progress(len(trades))

    def _counts(self) -> ProducerCounts:
        buffered = sum(len(trades) for trades, _ in self._in_flight)
        return ProducerCounts(outcomes=self.summary.outcomes.copy(), buffered=buffered)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait until the next trade is due, or a stop; short waits are rounded up to one tick."""
    try:
        await asyncio.wait_for(stop.wait(), max(_TICK_S, seconds))
    except TimeoutError:
        return


def new_run_id() -> str:
    """Give a prefix for trade ids that no other run has."""
    return f"T{time.time_ns() // 1_000_000:x}-{secrets.token_hex(3)}"


def main(
    *,
    count: Annotated[
        int | None, typer.Option(help="Trades to publish; endless without.", min=1)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Trades per second; 0 is as fast as possible. [20]", min=0)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the simulation; random without.")
    ] = None,
    books: Annotated[int, typer.Option(help="Number of books.", min=1)] = 5,
    symbols: Annotated[int, typer.Option(help="Number of symbols.", min=1)] = 200,
    poison: Annotated[float, typer.Option(help="Share of poisoned records.", min=0, max=1)] = 0.0,
    connect_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for a broker.", min=0)
    ] = CONNECT_TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Publish simulated trades: 20 a second, or 100,000 at once with HIGH_VOLUME=true."""
    settings = start_up()
    if settings.high_volume:
        count = count or HIGH_VOLUME_COUNT
    if rate is None:
        rate = 0 if settings.high_volume else DEFAULT_RATE
    simulator = TradeSimulator(
        run_id=new_run_id(),
        seed=secrets.randbits(32) if seed is None else seed,
        books=books,
        symbols=symbols,
        poison=poison,
    )

    async def run(stop: asyncio.Event) -> ProduceSummary:
        health, metrics = Health(), ProducerMetrics()
        async with (
            monitored(settings, health, metrics.process),
            open_publisher(
                settings,
                stop,
                connect_timeout_s=connect_timeout,
                on_retry=metrics.count_retries,
            ) as publisher,
        ):
            with Progress("publishing", total=count) as progress:
                producer = TradeProducer(
                    publisher,
                    topic=settings.kafka_topic,
                    simulator=simulator,
                    progress=progress.advance,
                    metrics=metrics,
                    health=health,
                )
                return await producer.run(stop, count=count, rate=rate or None)

    grace_s = settings.shutdown_graceful_timeout_s
    summary = asyncio.run(run_with_stop(run, grace_s=grace_s))
    typer.echo(json.dumps(summary.to_json()) if as_json else summary.to_text())
    if not summary.is_complete:
        raise typer.Exit(EXIT_FAILED)


if __name__ == "__main__":
    run_program(main)
