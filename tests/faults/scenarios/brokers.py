"""Brokers that are killed, frozen, all gone, or out of disk."""

import math
import shutil

from app.config import Settings
from tests.faults.journal import first_ack_after, stalls
from tests.faults.run import ENDLESS, Run
from tests.faults.scenarios.registry import scenario

_MB = 1024**2


@scenario(nodes=3)
def leader_kills(run: Run) -> None:
    """Kill a leader, the coordinator or the controller, and start it again, in a loop."""
    run.worker()
    run.worker()
    run.load(count=ENDLESS, rate=run.pick(700, 2_000))
    run.await_progress(500)
    for bounce in range(run.pick(2, 5)):
        role = "leader" if not bounce else run.draw.choice(("leader", "coordinator", "controller"))
        node = _node(run, role)
        run.note(f"kill node {node}, the {role}")
        run.cluster.kill(node)
        _await_other(run, role, node)
        run.bite("roles that moved", 1)
        run.pause(run.draw.uniform(0, 3))
        run.note(f"start node {node}")
        run.cluster.start()
    run.stop_loads()
    run.measure("stall_s", stalls(run.attempts()).longest_s, most=30.0)


def _await_other(run: Run, role: str, node: int) -> None:
    run.wait(lambda: _node(run, role) not in (node, -1), f"another {role} than {node}")


def _node(run: Run, role: str) -> int:
    """Name the node that has a role now; the leader is that of partition 0."""
    if role == "leader":
        return run.cluster.leader(run.world.events, 0)
    if role == "coordinator":
        return run.cluster.coordinator(run.world.name)
    return run.cluster.controller()


@scenario(nodes=3)
def leader_frozen(run: Run) -> None:
    """Freeze a leader: its connections stay open, and nobody answers."""
    run.worker()
    run.load(count=ENDLESS, rate=run.pick(500, 1_000))
    for seconds in run.pick((8,), (5, run.draw.choice((15, 30, 60)))):
        run.await_progress(300)
        node = _node(run, "leader")
        run.note(f"freeze node {node} for {seconds} s")
        run.cluster.freeze(node)
        run.pause(seconds)
        _await_other(run, "leader", node)
        run.bite("leaders that moved", 1)
        run.cluster.thaw(node)
    run.stop_loads()
    run.measure("stall_s", stalls(run.attempts()).longest_s, most=30.0)


@scenario(nodes=3)
def outage(run: Run) -> None:
    """Kill every broker at once, and start them again after a while."""
    down_s = run.pick(20, run.draw.choice((20, 40, 120)))
    run.worker()
    run.load(count=ENDLESS, rate=400)
    run.await_progress(500)
    run.note(f"kill every node for {down_s} s")
    run.cluster.kill(*run.cluster.nodes)
    run.pause(down_s)
    run.cluster.start()
    healed_ns = run.note("every node is back")
    run.recovered(healed_ns)
    run.stop_loads()
    # What is sent while they are down waits for its deadline, and no longer.
    waits_s = min(down_s, Settings().send_deadline_s)
    run.bite("stall of acknowledgements", stalls(run.attempts()).longest_s > waits_s)


@scenario(nodes=3, replicas=1)
def no_leader(run: Run) -> None:
    """Leave partitions without any replica for twice the request timeout."""
    timeout_s = run.pick(4, 10)
    run.world.extra["KAFKA_REQUEST_TIMEOUT_MS"] = str(timeout_s * 1_000)
    run.worker()
    run.load(count=ENDLESS, rate=run.pick(500, 800))
    run.await_progress(500)
    node = run.cluster.leader(run.world.events, 0)
    killed_ns = run.note(f"kill node {node}, the only one with partition 0, for {2 * timeout_s} s")
    run.cluster.kill(node)
    run.wait(lambda: _node(run, "leader") == -1, "a partition without a leader")
    run.bite("partitions without a leader", 1)
    run.pause(2 * timeout_s)
    run.cluster.start()
    healed_ns = run.note(f"node {node} is back")

    def first_ack_s() -> float:
        of_partition = [attempt for attempt in run.attempts() if attempt.partition == 0]
        return first_ack_after(of_partition, healed_ns)

    run.wait(lambda: first_ack_s() < math.inf, "an acknowledgement of the partition")
    run.stop_loads()
    run.measure("recovery_s", first_ack_s(), most=15.0)
    # A batch that runs out takes its client along (A4): one for each request timeout, beside the
    # first one and one whose batch runs out as the node returns.
    run_out = (healed_ns - killed_ns) / 1e9 / timeout_s
    run.measure("producers", run.loads[0].result()["producers"], most=2.0 + run_out)


@scenario()
def sigterm_in_outage(run: Run) -> None:
    """Stop consumer and producer by SIGTERM while every broker is down."""
    for _ in range(run.pick(1, 2)):
        worker = run.worker()
        load = run.load(count=100_000, rate=500)
        # A member that went while the broker was down is missed only when its session is over.
        run.await_progress(200, timeout_s=120)
        run.note("kill the broker")
        run.cluster.kill(1)
        run.pause(run.draw.uniform(0, 3))
        run.bite("a broker that is down", not run.cluster.running)
        for child in (worker, load):
            child.terminate()
        run.measure("exit_s", worker.stop(), most=21.0)
        run.measure("producer_exit_s", load.stop(), most=21.0)
        run.cluster.start()
    run.load(count=500, rate=500)


@scenario(tmpfs_mb=96)
def broker_disk_full(run: Run) -> None:
    """Fill the disk of the broker; then free it and start the broker again."""
    ballast = run.cluster.folder / "ballast"
    run.worker()
    run.load(count=ENDLESS, rate=400)
    run.await_progress(300)
    run.note("fill the disk")
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(_MB))
        except OSError:
            run.note(f"the ballast has {file.tell() // _MB} MB")
    run.wait(lambda: not run.cluster.running, "the end of a broker that cannot write")
    # Its own log stands on the same disk, so that what it said of the end may be missing.
    run.bite("brokers that ended on a full disk", shutil.disk_usage(ballast).free < _MB)
    run.pause(2)
    ballast.unlink()
    run.cluster.start()
    healed_ns = run.note("there is room, and the broker is back")
    run.recovered(healed_ns)
    run.stop_loads()
