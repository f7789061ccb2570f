"""A ledger in PostgreSQL: its workers die, its database goes away, fills up and answers late."""

import os
import urllib.error
import urllib.request
from contextlib import suppress
from functools import partial
from statistics import linear_regression
from typing import Any, Final

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from app.embedded.loopback import pick_ports
from tests.faults.database import Database
from tests.faults.points import LEDGER_POINTS
from tests.faults.processes import Child
from tests.faults.proxy import HOST, Fault
from tests.faults.resend import send_again
from tests.faults.run import Run
from tests.faults.scenarios.registry import scenario

_ENDLESS: Final = 200_000
_CHANGES: Final = 0.1
"""Share of the events that change a trade; see `tests.faults.changes`."""
_CHANGING: Final[dict[str, Any]] = {"changes": _CHANGES, "early": 0.2, "orphans": 0.01}
_SOON_S: Final = 3
"""For how long events wait, where some wait in vain."""
_BOOKED: Final = "SELECT coalesce(sum(next_offset), 0) FROM source_partitions;"
_PARKED: Final = "SELECT count(*) FROM parked_events;"
_SLOW_DOWN: Final = """
CREATE FUNCTION sleep_first() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END';
CREATE TRIGGER slow BEFORE UPDATE ON source_partitions EXECUTE FUNCTION sleep_first();
"""
_SPEED_UP: Final = "DROP TRIGGER slow ON source_partitions;"
_RECOVERY_S: Final = 10.0
_TAKEOVER_S: Final = 40.0  # the session, the database's patience with a frozen one, and a start
_LONG_S: Final = 300
_KB: Final = 1024


def _booked(database: Database) -> int:
    """Give how far the ledger is, summed over the partitions."""
    return int(database.psql.ask(_BOOKED)[0][0])


def _await_booked(run: Run, database: Database, records: int = 1, timeout_s: float = 60.0) -> float:
    """Wait until the ledger has so many records more; give the seconds it took."""
    goal = _booked(database) + records
    return run.wait(lambda: _booked(database) >= goal, f"{records:,} booked more", timeout_s)


def _stop_load(run: Run, load: Child) -> None:
    load.stop()
    run.require(f"the producer stops cleanly: {load.tail()}", holds=load.code == 0)


def _failures(worker: Child) -> int:
    """Count what a worker has noticed of a database that failed it."""
    return worker.logged("effects_wait") + worker.logged("ledger_not_asked")


# -- workers


@scenario(is_calm=True)
def ledger_kill_at_points(run: Run) -> None:
    """Kill a consumer by SIGKILL between every two steps of a flush and a commit."""
    run.open_database()
    points = list(LEDGER_POINTS) * run.pick(1, 2)
    run.draw.shuffle(points)
    points = points[: run.pick(3, len(points))]
    load = run.load(count=_ENDLESS, rate=run.pick(300, 200), poison=0.05, foreign=0.1, **_CHANGING)
    for point in points:
        # A claim is made once for each partition.
        nth = run.draw.randint(1, 4 if point == "after-claim" else 12)
        dying = run.worker("--at", point, "--nth", str(nth))
        dying.is_done = True  # its end is expected
        run.await_end(dying)
        run.bite("deaths", dying.code == -9)
    _stop_load(run, load)


@scenario(is_calm=True)
def ledger_zombie(run: Run) -> None:
    """Freeze an owner before or in its transaction, beyond its session; it wakes and is refused."""
    run.open_database()
    load = run.load(count=_ENDLESS, rate=300, keys=12, **_CHANGING)
    points = ["before-transaction", "in-transaction"]
    for point in run.pick([run.draw.choice(points)], points):
        sleeper, heir = _sleeper_and_heir(run, point)
        _wake(run, sleeper)
        run.await_progress(500)
        heir.stop()
        sleeper.stop()
    sleeper, heir = _sleeper_and_heir(run, "before-transaction")
    _stop_load(run, load)
    run.drain()
    _wake(run, sleeper)  # nobody writes any more what it may have spoilt
    sleeper.stop()


def _sleeper_and_heir(run: Run, point: str) -> tuple[Child, Child]:
    """Freeze a worker at a point of a write, and let another one take its partitions over."""
    nth = run.draw.randint(10, 30)
    sleeper = run.worker("--at", point, "--nth", str(nth), "--signal", "STOP")
    # A machine that is busy makes a write a second.
    run.wait(lambda: sleeper.is_frozen, f"{sleeper.name} freezes", 120)
    run.note(f"{sleeper.name} is frozen, {point}")
    heir = run.worker()
    partitions = run.world.partitions
    has_all = run.wait(
        lambda: heir.logged("partition_opened") >= partitions,
        f"{heir.name} takes everything over",
        2 * _TAKEOVER_S,
    )
    run.measure("takeover_s", has_all, most=_TAKEOVER_S)
    run.await_progress(300)
    return sleeper, heir


def _wake(run: Run, sleeper: Child) -> None:
    run.note(f"{sleeper.name} wakes")
    sleeper.thaw()
    with suppress(AssertionError):  # where nothing was refused there is no bite
        run.wait(lambda: sleeper.logged("write_refused") > 0, "its write is refused", 30)
    run.bite("writes refused", sleeper.logged("write_refused"))


@scenario(is_calm=True)
def ledger_storm(run: Run) -> None:
    """Workers join, leave and die, three at a time, with a ledger."""
    run.open_database()
    load = run.load(count=_ENDLESS, rate=run.pick(300, 330), poison=0.05, foreign=0.1, **_CHANGING)
    first = run.worker()
    run.worker()
    run.await_progress()
    for _ in range(run.pick(4, 12)):
        guest = run.worker()
        run.wait(partial(_has_joined, guest), "it has joined")
        run.pause(run.draw.uniform(0, 2))
        if run.draw.random() < 0.5:
            run.measure("exit_s", guest.stop(), most=20.0)
            continue
        victim = run.draw.choice([worker for worker in run.running if worker is not first])
        run.note(f"kill {victim.name}")
        victim.kill()
        run.bite("kills with work in hand", run.world.lag() > 0)
    run.bite("rebalances", first.logged("partitions_assigned") - 1)
    _stop_load(run, load)
    run.drain(timeout_s=90)


def _has_joined(worker: Child) -> bool:
    return worker.logged("partitions_assigned") > 0


@scenario(is_calm=True)
def ledger_orphans(run: Run) -> None:
    """Changes of trades that never come wait, and are refused in time, while workers are killed."""
    database = run.open_database()
    run.world.extra["PARK_DEADLINE_S"] = str(_SOON_S)
    run.is_deadline_over = True
    points = ("before-letters", "after-letters", "in-transaction", "after-transaction")
    # Nothing may come after its deadline, since the log does not say when that is: none overtakes.
    load = run.load(count=_ENDLESS, rate=300, poison=0.02, changes=_CHANGES, orphans=0.05)
    for _ in range(run.pick(3, 12)):
        nth = run.draw.randint(5, 30)
        dying = run.worker("--at", run.draw.choice(points), "--nth", str(nth))
        dying.is_done = True  # its end is expected
        run.await_end(dying)
        run.bite("events that wait at a death", _parked(database))
    run.worker()
    run.await_progress(300)
    _stop_load(run, load)
    run.drain()
    run.wait(lambda: _parked(database) == 0, "nothing waits any more", _SOON_S + 30)
    run.stop_workers()
    run.bite("orphans", run.check().counts["orphan-lifecycle"])


def _parked(database: Database) -> int:
    """Give how many events wait, or are on their way to the dead letters."""
    return int(database.psql.ask(_PARKED)[0][0])


# -- offsets


@scenario(is_calm=True)
def ledger_replay(run: Run) -> None:
    """Kafka's offsets are set back to the beginning, then deleted: nothing is booked twice."""
    database = run.open_database()
    admin, group = run.cluster.admin, run.world.name
    for change in ("publish first", "set back", "delete"):
        run.load(count=run.pick(2_500, 8_000), rate=800, poison=0.05, foreign=0.05, **_CHANGING)
        run.finish_loads()
        run.note(f"{change}; the table is at {_booked(database):,}")
        if change == "set back":
            places = [TopicPartition(run.world.events, n, 0) for n in range(run.world.partitions)]
            asked = admin.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, places)]
            )
            asked[group].result(10)
        elif change == "delete":
            admin.delete_consumer_groups([group])[group].result(10)
        if change != "publish first":
            committed, _ = run.world.progress()
            run.bite("records whose commit is gone", _booked(database) - committed)
        worker = run.worker()
        run.drain()
        run.stop_workers()
        again = worker.result()["already_applied"]
        run.require(f"{again} records were read again", holds=again == 0)


@scenario(is_calm=True)
def ledger_duplicates(run: Run) -> None:
    """Trades come again beyond any window, in other partitions, and with another content."""
    database = run.open_database()
    run.world.extra |= {"DEDUPE_WINDOW": "50", "DLQ_BREAKER_SHARE": "1"}
    count = run.pick(4_000, 16_000)
    # Both before a worker runs: it has the same id in several partitions at once.
    run.load(count=count, rate=1_000, twice_after=count // 2 - 100, foreign=0.05)
    run.load(count=count // 8, rate=1_000, ids="load-0", poison=0.0)
    run.finish_loads()
    run.worker()
    run.wait(lambda: run.world.lag() == 0, "lag 0", 120)
    send_again(run, run.pick(500, 3_000))
    run.note("the same ids in two partitions while two workers run")
    run.worker()
    for _ in range(2):
        run.load(count=run.pick(1_000, 4_000), rate=run.pick(200, 400), ids="both", poison=0.0)
    run.drain()
    refused = sum(worker.logged("write_refused") for worker in run.workers)
    run.measure("booked_elsewhere", refused)
    run.stop_workers()
    counts = run.check().counts
    run.bite("duplicates", counts["duplicate"])
    conflicts = "SELECT count(*) FROM dead_letters WHERE reason = 'version-conflict';"
    run.bite("conflicts", int(database.psql.ask(conflicts)[0][0]))


# -- the database


@scenario()
def ledger_restarts(run: Run) -> None:
    """End the database at once in the midst of writes, and start it again, many times."""
    database = run.open_database()
    worker = run.worker()
    load = run.load(count=_ENDLESS, rate=300, poison=0.05, **_CHANGING)
    for _ in range(run.pick(4, 20)):
        _await_booked(run, database, run.draw.randint(50, 400))
        before = _failures(worker)
        run.note("end the database")
        database.kill()
        run.pause(run.draw.uniform(0, 3))
        database.start()
        run.note("it is back")
        run.measure("recovery_s", _await_booked(run, database), most=_RECOVERY_S)
        run.bite("restarts that a worker noticed", _failures(worker) > before)
    run.require("the worker lives through it", holds=worker.is_running)
    _stop_load(run, load)


@scenario()
def ledger_sigterm_in_outage(run: Run) -> None:
    """Stop the consumer by SIGTERM while its database is down."""
    database = run.open_database()
    for _ in range(run.pick(1, 3)):
        worker = run.worker()
        load = run.load(count=_ENDLESS, rate=300, poison=0.05, **_CHANGING)
        _await_booked(run, database, 200)
        run.note("end the database")
        database.kill()
        run.pause(run.draw.uniform(0, 3))
        run.bite("a database that is down", not database.is_running)
        run.measure("exit_s", worker.stop(), most=20.0)
        _stop_load(run, load)
        database.start()


@scenario()
def ledger_half_open(run: Run) -> None:
    """Connections to the database stay open and nothing passes; a stop is in time even then."""
    database = run.open_database(is_relayed=True)
    worker = run.worker()
    load = run.load(count=_ENDLESS, rate=300, poison=0.05, **_CHANGING)
    _await_booked(run, database, 200)
    run.note("swallow everything")
    with database.network.fault(Fault(is_black_hole=True)):
        run.pause(run.pick(8, 75))  # longer than any of the worker's timeouts
    run.note("let it pass")
    run.measure("recovery_s", _await_booked(run, database), most=_RECOVERY_S)
    rebalances = worker.logged("partitions_assigned")
    run.require(f"it was assigned {rebalances} times", holds=rebalances == 1)
    _await_booked(run, database, 200)
    run.note("swallow everything, and SIGTERM")
    with database.network.fault(Fault(is_black_hole=True)):
        run.pause(run.draw.uniform(0, 2))
        run.measure("exit_s", worker.stop(), most=20.0)
    run.bite("bytes swallowed", database.network.counts()["swallowed"])
    _stop_load(run, load)


@scenario()
def ledger_terminated(run: Run) -> None:
    """End the worker's connections by chance with pg_terminate_backend, many times."""
    database = run.open_database()
    worker = run.worker()
    load = run.load(count=_ENDLESS, rate=300, poison=0.05, **_CHANGING)
    _await_booked(run, database, 100)
    goal, ended = run.pick(40, 200), 0
    while ended < goal:
        ended += database.terminate_one()
        run.pause(run.draw.uniform(0, 0.3))
    run.measure("recovery_s", _await_booked(run, database), most=_RECOVERY_S)
    run.bite("connections ended", ended)
    run.bite("attempts that failed", _failures(worker))
    run.require("the worker lives through it", holds=worker.is_running)
    _stop_load(run, load)


@scenario()
def ledger_unknown_commit(run: Run) -> None:
    """Cut the connection after a COMMIT has its effect and before its answer."""
    database = run.open_database(is_relayed=True)
    worker = run.worker()
    load = run.load(count=_ENDLESS, rate=300, poison=0.05, **_CHANGING)
    _await_booked(run, database, 100)
    goal = run.pick(40, 200)
    with database.network.fault(Fault(cut_share=0.3)):
        run.wait(lambda: database.network.counts()["answers_withheld"] >= goal, f"{goal} cuts", 200)
    run.measure("recovery_s", _await_booked(run, database), most=_RECOVERY_S)
    run.bite("answers withheld", database.network.counts()["answers_withheld"])
    run.bite("attempts that failed", _failures(worker))
    _stop_load(run, load)


@scenario()
def ledger_disk_full(run: Run) -> None:
    """Fill the disk of the database: the worker says so and waits; then there is room again."""
    database = run.open_database(megabytes=256)
    (port,) = pick_ports(1)
    worker = run.worker(HEALTH_PORT=str(port))
    load = run.load(count=_ENDLESS, rate=run.pick(400, 300), poison=0.05, **_CHANGING)
    _await_booked(run, database, 300)
    ballast = database.folder / "ballast"
    run.note("fill the disk")
    with ballast.open("wb", buffering=0) as file:
        while os.statvfs(database.folder).f_bavail:
            file.write(bytes(4 * _KB))
    run.wait(lambda: worker.logged("effects_wait") > 0, "a write fails")
    run.pause(run.pick(5, 30))
    run.bite("words of a full disk", database.said("No space left on device"))
    run.require("the worker's error says so", holds=worker.said("No space left on device"))
    run.require("it says that it is not ready", holds="effects" in _unready(port))
    run.require("the worker lives", holds=worker.is_running)
    ballast.unlink()
    database.start()  # it may have ended, where there was no room for its log
    run.note("there is room, and the database is back")
    run.measure("recovery_s", _await_booked(run, database), most=_RECOVERY_S)
    run.wait(lambda: not _unready(port), "ready again")
    _stop_load(run, load)
    run.drain()
    run.stop_workers()
    run.check()


def _unready(port: int) -> str:
    """Give what a worker says to the question whether it is ready; nothing where it is."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=5):
            return ""
    except urllib.error.HTTPError as exc:
        return exc.read().decode()


@scenario()
def ledger_slow(run: Run) -> None:
    """The database answers late: partitions pause, little is held, nothing is lost."""
    most_in_flight, seconds = 1_000, run.pick(12, run.draw.choice((30, 60, 300)))
    database = run.open_database(is_relayed=True)
    run.world.extra["COMMIT_EVERY"] = str(most_in_flight)
    worker = run.worker()
    load = run.load(
        count=_ENDLESS,
        rate=run.pick(800, 1_200),
        is_direct=True,
        # Where trades are changed, all fills of their positions are held, as long as there is room:
        # that would be taken for a leak.
        changes=0.0 if seconds >= _LONG_S else _CHANGES / 5,
    )
    _await_booked(run, database, 500)
    run.note("each write sleeps for 1.5 s")
    database.psql.ask(_SLOW_DOWN)
    run.pause(seconds)
    database.psql.ask(_SPEED_UP)
    run.note("each answer comes 0.1 to 0.2 s late")
    with database.network.fault(Fault(latency_s=0.1, jitter_s=0.1)):
        run.pause(seconds / 2)
    _stop_load(run, load)
    usage = [used for used in run.sampler.usage if used.pid == worker.pid]
    lags = [
        sum(sample.source_ends.values()) - sum(sample.committed.values())
        for sample in run.sampler.samples
    ]
    run.bite("answers delayed", database.network.counts()["delayed"])
    run.bite("records that had to wait", max(lags) > 3 * most_in_flight)
    settled = usage[len(usage) // 3 :]
    slope = linear_regression([u.at_s / 60 for u in settled], [u.rss_mb for u in settled]).slope
    run.measure("rss_mb", max(u.rss_mb for u in usage), most=160.0)
    # Tables of what was read before fill up for minutes at this rate: only the sum is bounded here,
    # and that a write leaves nothing behind is a test of its own.
    run.measure("rss_mb_per_min", slope)
    rebalances = worker.logged("partitions_assigned")
    run.require(f"it was assigned {rebalances} times", holds=rebalances == 1)
    run.bite("pauses", worker.logged("partitions_paused"))
    run.drain(timeout_s=300)  # a backlog of minutes, a thousand records at a time
