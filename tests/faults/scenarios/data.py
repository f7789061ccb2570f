"""Records and topics that are not as they should be."""

import asyncio
import json
from collections import Counter

from aiokafka import AIOKafkaProducer
from confluent_kafka.cimpl import NewPartitions

from tests.e2e.harness import trade
from tests.faults.proxy import covered_ranges
from tests.faults.run import Run
from tests.faults.scenarios.registry import scenario
from tests.faults.spoilt import spoilt_batch

_NEEDS_PERSON = 4
_SPOILT = 1


@scenario(is_calm=True)
def poison(run: Run) -> None:
    """A fifth of the records, then all of them, cannot be used, and become dead letters."""
    run.world.extra["DLQ_BREAKER_SHARE"] = "1"
    run.worker()
    run.load(count=run.pick(3_000, 20_000), rate=run.pick(600, 1_000), poison=0.2, foreign=0.05)
    run.finish_loads()
    run.load(count=run.pick(1_000, 8_000), rate=run.pick(400, 500), poison=1.0)
    run.drain()
    run.stop_workers()
    run.bite("dead letters", run.check().counts["dead_lettered"])


@scenario(is_calm=True)
def bad_deploy(run: Run) -> None:
    """All records become useless at once: every partition stops before they are dead-lettered."""
    worker = run.worker()
    run.expected_exits = {_NEEDS_PERSON}
    run.load(count=run.pick(3_000, 6_000), rate=600, poison=0.02)
    run.finish_loads()
    run.note("nothing but poison")
    run.load(count=run.pick(5_000, 12_000), rate=run.pick(600, 200), poison=1.0)
    partitions = run.world.partitions
    run.wait(lambda: worker.logged("partition_stopped") == partitions, "every partition stops")
    run.finish_loads()
    run.stop_workers()
    letters = Counter(letter.partition for letter in run.world.read(run.world.dead_letters))
    run.measure("dead_letters_of_a_partition", max(letters.values()), most=1_000.0)
    run.bite("records held back", run.world.lag())
    run.note("let them pass")
    run.world.extra["DLQ_BREAKER_SHARE"] = "1"
    run.expected_exits = {0}


@scenario(is_calm=True)
def strangers(run: Run) -> None:
    """Another client publishes, whose partitioner is not ours; a worker is killed amid it."""
    run.load(count=run.pick(3_000, 10_000), rate=600, stranger=True, foreign=0.2)
    worker = run.worker()
    run.await_progress(500)
    worker.kill()
    run.drain()
    run.stop_workers()
    run.bite("re-keyed trades", run.check().counts["rekeyed"])


@scenario(is_calm=True)
def sent_twice(run: Run) -> None:
    """Each trade is sent twice within the window, and counts once, over restarts too."""
    run.world.extra["DEDUPE_WINDOW"] = "400"
    run.load(count=run.pick(6_000, 15_000), rate=600, twice_after=200, foreign=0.05)
    for _ in range(run.pick(1, 3)):
        worker = run.worker()
        run.await_progress(run.draw.randint(300, 1_500))
        worker.kill()
    run.drain()
    run.stop_workers()
    run.bite("duplicates", run.check().counts["duplicate"])


@scenario(is_calm=True)
def sent_twice_beyond(run: Run) -> None:
    """Each trade is sent twice beyond the window: it is booked again, as the documents say."""
    run.world.extra["DEDUPE_WINDOW"] = "50"
    run.load(count=run.pick(5_000, 10_000), rate=800, twice_after=1_500)
    run.worker()
    run.drain()
    run.stop_workers()
    counts = run.check().counts
    run.bite("trades sent twice", sum(attempt.is_repeat for attempt in run.attempts()))
    run.require("nothing is a duplicate beyond the window", holds=not counts["duplicate"])


@scenario(is_calm=True)
def bad_header(run: Run) -> None:
    """A record whose header name is no text stops its partition until it is skipped."""
    run.load(count=run.pick(2_000, 5_000), rate=1_000)
    run.finish_loads()
    asyncio.run(_publish_spoilt(run))
    run.load(count=run.pick(2_000, 5_000), rate=1_000)
    _consume_but_spoilt(run)


async def _publish_spoilt(run: Run) -> None:
    value = trade(0, symbol="S", side="BUY", price="1", quantity="1")
    async with AIOKafkaProducer(bootstrap_servers=run.world.direct, acks="all") as producer:
        batch = spoilt_batch(producer, value)
        await (await producer.send_batch(batch, run.world.events, partition=_SPOILT))


@scenario()
def corrupt_batch(run: Run) -> None:
    """A bit of one stored batch turns over on the broker's disk; it is skipped by command."""
    run.load(count=run.pick(4_000, 10_000), rate=1_000)
    run.finish_loads()
    run.cluster.stop(1)
    path = next(run.cluster.data_folders[1].glob(f"{run.world.events}-{_SPOILT}/*.log"))
    content = bytearray(path.read_bytes())
    batches = list(covered_ranges(content))
    content[run.draw.choice(batches[len(batches) // 2])] ^= 1
    path.write_bytes(content)
    run.note(f"one bit of {path} is wrong")
    run.cluster.start()
    _consume_but_spoilt(run)


def _consume_but_spoilt(run: Run) -> None:
    """Consume until only the partition that cannot be read is left; then skip the bad batch."""
    worker = run.worker()
    run.expected_exits = {_NEEDS_PERSON}

    def others_are_through() -> bool:
        sample = run.sampler.samples[-1]
        ends = {partition: end for partition, end in sample.source_ends.items() if end}
        return all(sample.committed.get(p) == end for p, end in ends.items() if p != _SPOILT)

    run.finish_loads()
    run.wait(lambda: worker.logged("partition_stopped") > 0, "the partition stops")
    run.measure("drain_s", run.wait(others_are_through, "the others are through"))
    run.stop_workers()
    stopped = worker.result()["stopped_partitions"]
    run.bite("partitions stopped", list(stopped) == [str(_SPOILT)])
    (bad,) = json.loads(run.world.run("quarantine", "list", "--json"))
    run.note(f"skip the batch at offset {bad['offset']} of partition {bad['partition']}")
    run.world.run("quarantine", "skip", "--partition", str(_SPOILT))
    run.holes[bad["partition"]] = range(bad["offset"], bad["next_offset"])
    run.expected_exits = {0}


@scenario(is_calm=True)
def topic_made_anew(run: Run) -> None:
    """The topic is deleted and made anew: every partition stops, and no trade is skipped."""
    run.load(count=4_000, rate=2_000)
    run.drain()
    run.stop_workers()
    run.check()
    before = run.world.sample(run.world.outside()).position_ends
    run.note("delete the topic and make it anew")
    run.cluster.remake_topic(run.world.events, run.world.partitions)
    run.world.publish((None, trade(n, symbol="S", side="BUY", price="1", quantity="1"))
                      for n in range(100))  # fmt: skip
    worker = run.worker("--until-caught-up")
    run.bite("refused", worker.wait(60) == _NEEDS_PERSON)
    stopped = worker.result()["stopped_partitions"]
    run.require(f"all partitions stop: {stopped}", holds=len(stopped) == run.world.partitions)
    after = run.world.sample(run.world.outside()).position_ends
    run.require(f"no position has changed: {before}, {after}", holds=before == after)


@scenario(is_calm=True)
def partitions_raised(run: Run) -> None:
    """Partitions are added before a start and while it runs: a clear error, no wrong position."""
    run.load(count=2_000, rate=1_000)
    worker = run.worker()
    run.finish_loads()
    run.wait(lambda: run.world.lag() == 0, "lag 0")
    run.note("raise the number of partitions while it runs")
    count = run.world.partitions * 2
    run.cluster.admin.create_partitions([NewPartitions(run.world.events, count)])[
        run.world.events
    ].result(10)
    run.load(count=1_000, rate=500)
    run.finish_loads()
    worker.is_done = True
    run.wait(lambda: not worker.is_running, "the consumer refuses to go on", timeout_s=90)
    run.bite("refused while running", worker.code not in (0, None))
    late = run.worker("--until-caught-up")
    run.bite("refused at the start", late.wait(60) != 0)
    run.require(
        f"the error says so: {late.tail()}",
        holds=f"{run.world.events} has {count}" in late.errors.read_text(),
    )
    run.check()
