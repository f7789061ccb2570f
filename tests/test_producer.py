"""TradeProducer on a broker in memory: three outcomes, and a doubtful send repeated."""

import asyncio
import itertools
import json
from collections import Counter

from app.memory_io import Fault, MemoryBroker, MemoryPublisher
from app.ports import OutgoingRecord, SendState
from app.producer import FINISH_TIMEOUT_S, ProduceSummary, TradeProducer
from app.simulator import TradeSimulator
from tests.virtual_time import virtual_time

TOPIC = "trades"


async def produce(
    faults: list[Fault], count: int = 1, *, then: Fault = Fault.NONE
) -> tuple[ProduceSummary, list[str]]:
    """Publish trades while sends meet faults one after the other; give the ids that are stored."""
    broker = MemoryBroker({TOPIC: 1})
    publisher = MemoryPublisher(broker)
    script = iter(faults)
    publisher.faults = lambda _: next(script, then)
    simulator = TradeSimulator(run_id="R", seed=1)
    summary = await TradeProducer(publisher, topic=TOPIC, simulator=simulator).run(
        asyncio.Event(), count=count
    )
    ids = [json.loads(record.value or b"")["trade_id"] for record in broker.records(TOPIC)]
    return summary, ids


@virtual_time
async def test_what_is_lost_without_a_word_is_sent_again() -> None:
    """Nobody can tell that it is not stored: the repeat stores it, once."""
    summary, ids = await produce([Fault.UNKNOWN_LOST])
    assert summary.outcomes == {SendState.OK: 1}
    assert summary.repeated == 1
    assert summary.is_complete
    assert len(ids) == 1


@virtual_time
async def test_repeat_of_what_was_stored_keeps_its_trade_id() -> None:
    """It stands twice under one id, for whoever reads it to recognise."""
    summary, ids = await produce([Fault.UNKNOWN_STORED], 3)
    assert summary.outcomes == {SendState.OK: 3}
    assert summary.repeated == 1
    assert sorted(Counter(ids).values()) == [1, 1, 2]


@virtual_time
async def test_doubt_that_stays_is_reported() -> None:
    """After some repeats it is unknown, whatever the last of them came to."""
    summary, ids = await produce([], then=Fault.UNKNOWN_STORED)
    assert summary.outcomes == {SendState.OK: 0, SendState.UNKNOWN: 1}
    assert summary.repeated == 3
    assert len(ids) == 4
    summary, _ = await produce([Fault.UNKNOWN_STORED], then=Fault.NOT_SENT)
    assert summary.outcomes[SendState.UNKNOWN] == 1


@virtual_time
async def test_what_surely_was_not_sent_is_not_repeated_here() -> None:
    """The publisher has tried it in its own bounds: it is reported as it is."""
    summary, ids = await produce([Fault.NOT_SENT])
    assert summary.outcomes == {SendState.OK: 0, SendState.NOT_SENT: 1}
    assert (summary.repeated, ids) == (0, [])


@virtual_time
async def test_every_outcome_is_told_once() -> None:
    """The hook gets each trade with what became of it in the end."""
    told: list[SendState] = []
    broker = MemoryBroker({TOPIC: 1})
    publisher = MemoryPublisher(broker)
    turns = itertools.count()

    def faults(_: OutgoingRecord) -> Fault:
        return Fault.UNKNOWN_LOST if next(turns) % 23 == 3 else Fault.NONE

    publisher.faults = faults
    producer = TradeProducer(
        publisher,
        topic=TOPIC,
        simulator=TradeSimulator(run_id="R", seed=1),
        on_outcome=lambda _, outcome: told.append(outcome.state),
    )
    summary = await producer.run(asyncio.Event(), count=50)
    assert told == [SendState.OK] * 50
    assert summary.produced == 50
    ids = [json.loads(record.value or b"")["trade_id"] for record in broker.records(TOPIC)]
    assert len(set(ids)) == 50


@virtual_time
async def test_stop_does_not_wait_for_a_broker_for_ever() -> None:
    """What is not answered in time is unknown, and counted as that."""
    broker = MemoryBroker({TOPIC: 1})
    publisher = MemoryPublisher(broker)
    publisher.hold()
    producer = TradeProducer(publisher, topic=TOPIC, simulator=TradeSimulator(run_id="R", seed=1))
    stop = asyncio.Event()
    running = asyncio.ensure_future(producer.run(stop))
    started_s = asyncio.get_running_loop().time()
    await asyncio.sleep(5)
    stop.set()
    summary = await running
    assert asyncio.get_running_loop().time() - started_s <= 5 + FINISH_TIMEOUT_S + 1
    assert summary.outcomes[SendState.UNKNOWN] == summary.outcomes.total() > 0
    assert not summary.is_complete
    assert "no answer before the stop" in summary.errors
