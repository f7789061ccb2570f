"""Processes of ours that are killed, stopped, frozen, or come and go."""

import time
from dataclasses import replace

from tests.faults.checker import newest_positions, stored_positions
from tests.faults.journal import Attempt
from tests.faults.points import POINTS
from tests.faults.run import ENDLESS, Run
from tests.faults.scenarios.registry import scenario

_MOST_KILLS = 20
_FIRST_WRITES = 30  # calls of the publisher until every partition is claimed and work has begun


@scenario(is_calm=True)
def kill_at_points(run: Run) -> None:
    """Kill a consumer by SIGKILL at named points of its work, one after the other."""
    points = list(POINTS)
    run.draw.shuffle(points)
    points = points[: run.pick(3, len(points))]
    run.load(count=ENDLESS, rate=run.pick(300, 200), foreign=0.1)
    for point in points:
        nth = 1 if point.startswith("in-") else run.draw.randint(2, 12)
        dying = run.worker("--at", point, "--nth", str(nth))
        dying.is_done = True  # its end is expected
        if point == "in-revoke":
            run.await_progress()
            run.worker().is_done = True  # its joining revokes the partitions of the first
        run.await_end(dying)
        run.bite("deaths", dying.code == -9)
        for other in run.running:
            other.kill()
    run.stop_loads()


@scenario(is_calm=True)
def kill_at_random(run: Run) -> None:
    """Kill one of two consumers by SIGKILL at random times."""
    run.load(count=ENDLESS, rate=run.pick(400, 500), foreign=0.1)
    run.worker()
    run.worker()
    for _ in range(run.pick(2, 5)):
        run.await_progress(run.draw.randint(1, 600))
        run.pause(run.draw.uniform(0, 1))
        victim = run.draw.choice(run.running)
        run.note(f"kill {victim.name}")
        victim.kill()
        run.bite("kills with work in hand", run.world.lag() > 0)
        run.worker()
    run.await_joined(run.workers[-1])  # a process that is still starting knows no clean stop
    run.stop_loads()


@scenario(is_calm=True)
def sigterm(run: Run) -> None:
    """Stop the consumer by SIGTERM under load, again and again; each stop is in time and clean."""
    run.load(count=ENDLESS, rate=run.pick(500, 400))
    for _ in range(run.pick(3, 6)):
        worker = run.worker()
        run.await_progress(100)
        run.note(f"SIGTERM to {worker.name}")
        run.measure("exit_s", worker.stop(), most=20.0)
        run.require(f"a stop is clean: {worker.tail()}", holds=worker.code == 0)
        run.bite("stops with work left", run.world.lag() > 0)
        run.measure("already_applied", worker.result()["already_applied"], most=500.0)
    run.stop_loads()


@scenario(is_calm=True)
def kill_producer(run: Run) -> None:
    """Kill the producer by SIGKILL in the midst of its sends, and let another one follow."""
    run.worker()
    unknown: list[Attempt] = []
    for kills in range(_MOST_KILLS):
        if kills >= run.pick(3, 6) and unknown:
            break  # a send takes milliseconds: not every kill falls into one
        load = run.load(count=100_000, rate=2_000)
        run.await_progress(run.draw.randint(100, 3_000))
        run.note(f"kill {load.name}")
        load.kill()
        unknown = [attempt for attempt in run.attempts() if not attempt.known_ns]
    run.load(count=1_000, rate=500)
    run.finish_loads()
    run.bite("sends without an outcome", len(unknown))


@scenario(is_calm=True)
def zombie(run: Run) -> None:
    """Freeze an owner with a write on its way beyond its session; it wakes; then compact."""
    run.load(count=ENDLESS, rate=300, keys=12)
    for _ in range(run.pick(1, 2)):
        nth = _FIRST_WRITES + run.draw.randrange(40)
        sleeper = run.worker("--at", "before-effects", "--nth", str(nth), "--signal", "STOP")
        run.await_frozen(sleeper)
        run.note(f"{sleeper.name} is frozen")
        heir = run.worker()
        run.await_progress(500)
        run.note(f"{sleeper.name} wakes")
        sleeper.thaw()
        run.await_progress(500)
        heir.stop()
        sleeper.stop()  # the next owner has to have every partition
    run.stop_loads()
    run.drain()
    run.stop_workers()
    verdict = run.check()
    run.bite("late writes", verdict.counts["late_writes"])
    _compact(run)
    run.load(count=1_000, rate=500, keys=12)
    run.drain()
    run.stop_workers()
    run.check(with_samples=False)


@scenario(is_calm=True)
def late_write(run: Run) -> None:
    """A frozen owner writes when nobody is there to see it; the next one restores the newest."""
    run.world.extra["CONSUMER_TAKEOVER_MARGIN"] = "0"  # to read again would mend it as well
    run.load(count=ENDLESS, rate=800, keys=12)
    nth = _FIRST_WRITES + run.draw.randrange(40)
    sleeper = run.worker("--at", "before-effects", "--nth", str(nth), "--signal", "STOP")
    run.await_frozen(sleeper)
    run.note(f"{sleeper.name} is frozen")
    heir = run.worker()
    run.await_progress(500)
    run.stop_loads()
    run.drain()
    heir.stop()
    before = run.position_records()
    run.note(f"{sleeper.name} wakes")
    sleeper.thaw()
    run.wait(lambda: run.position_records() > before, "the late write")
    sleeper.kill()
    run.bite("late writes", run.position_records() - before)
    run.load(count=1_000, rate=800, keys=12)


def _compact(run: Run) -> None:
    """Let the broker forget every position record but the last one of each key."""
    topic = run.world.positions_topic
    run.note(f"compact {topic}")
    run.cluster.alter_topic(
        topic,
        **{
            "min.compaction.lag.ms": "0",
            "max.compaction.lag.ms": "1000",
            "min.cleanable.dirty.ratio": "0.01",
            "segment.ms": "500",
        },
    )
    before = len(run.world.read(topic))
    run.load(count=400, rate=200, keys=12)  # only a write makes the broker begin a segment
    run.drain()
    run.wait(lambda: len(run.world.read(topic)) < before / 2, "the compaction")
    run.bite("compacted records", before - len(run.world.read(topic)))
    run.stop_workers()


@scenario(is_calm=True)
def storm(run: Run) -> None:
    """Members join and leave every three seconds, or as fast as a slow machine lets them join."""
    run.expected_exits = {0, 130}  # the latter before it was connected
    run.load(count=ENDLESS, rate=run.pick(300, 330), foreign=0.1)
    run.worker()
    first = run.workers[0]
    for _ in range(run.pick(4, 10)):
        guest, began_s = run.worker(), time.monotonic()
        run.await_joined(guest)
        run.pause(began_s + 3 - time.monotonic())
        run.measure("exit_s", guest.stop(), most=20.0)
    run.bite("rebalances", first.logged("partitions_assigned") - 1)
    run.stop_loads()
    run.drain(timeout_s=60)


@scenario(is_calm=True)
def restore_equals_replay(run: Run) -> None:
    """State restored after kills is, byte for byte, that of a group that replays from zero."""
    run.load(count=ENDLESS, rate=500, keys=20, poison=0.1)
    for _ in range(run.pick(1, 3)):
        worker = run.worker()
        run.await_progress(run.draw.randint(1, 500))
        worker.kill()
        run.bite("kills with work in hand", run.world.lag() > 0)
    run.stop_loads()
    run.drain()
    run.stop_workers()
    run.check()
    other = f"{run.world.name}-replay"
    names = {"KAFKA_GROUP_ID": other, "POSITIONS_TOPIC": other, "DLQ_TOPIC": f"{other}-dlq"}
    replace(run.world, extra=run.world.extra | names).consume_all()
    states = [
        {key: stored.state | {"group": None} for key, stored in newest_positions(found).items()}
        for found in (
            stored_positions(run.world.read(topic)) for topic in (run.world.positions_topic, other)
        )
    ]
    differing = [key for key in states[0] | states[1] if states[0].get(key) != states[1].get(key)]
    run.require(f"restored and replayed state differ: {differing[:20]}", holds=not differing)
