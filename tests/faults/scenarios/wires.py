"""Connections that are cut, dead, slow, or turn bits over."""

from statistics import linear_regression

from tests.faults.proxy import FETCH, OFFSET_COMMIT, PRODUCE, Fault
from tests.faults.run import ENDLESS, Run
from tests.faults.scenarios.registry import scenario


@scenario()
def cut_before_answer(run: Run) -> None:
    """Cut connections after the broker has served a request and before its client knows."""
    goal = run.pick(60, 100)
    run.worker()
    # The slower the machine, the fewer requests a trade: it goes on until there were enough.
    run.load(count=ENDLESS, rate=run.pick(400, 500), foreign=0.05)
    run.await_progress(200)
    share = Fault(apis=frozenset({PRODUCE, OFFSET_COMMIT}), cut_share=run.pick(0.2, 0.1))
    with run.network.fault(share):
        run.wait(lambda: run.seen("answers_withheld") >= goal, f"{goal} cuts", timeout_s=300)
    run.stop_loads()
    run.bite("answers withheld", run.seen("answers_withheld"))


@scenario()
def half_open(run: Run) -> None:
    """Swallow everything in both directions while connections stay open."""
    run.world.extra["KAFKA_REQUEST_TIMEOUT_MS"] = "5000"
    run.worker()
    run.load(count=ENDLESS, rate=run.pick(400, 300))
    for seconds in run.pick((10,), (5, run.draw.choice((15, 30, 60)))):
        run.await_progress(200)
        run.note(f"swallow everything for {seconds} s")
        with run.network.fault(Fault(is_black_hole=True)):
            run.pause(seconds)
        healed_ns = run.note("let it pass")
        run.recovered(healed_ns)
    run.stop_loads()
    run.bite("bytes swallowed", run.seen("swallowed"))


@scenario()
def drip(run: Run) -> None:
    """Let everything trickle at a few kilobytes a second."""
    run.worker()
    run.load(count=ENDLESS, rate=run.pick(400, 200))
    run.await_progress(200)
    run.note("trickle")
    with run.network.fault(Fault(bytes_per_s=run.pick(4_000, 1_000))):
        run.pause(run.pick(10, 30))
    run.bite("pieces that trickled", run.seen("dripped"))
    run.recovered(run.note("at full speed"))
    run.stop_loads()


@scenario()
def unsteady(run: Run) -> None:
    """Jitter of half a second, connections that are reset, new ones that are refused."""
    run.worker()
    run.load(count=ENDLESS, rate=run.pick(300, 400))
    run.await_progress(200)
    with run.network.fault(Fault(latency_s=0.05, jitter_s=0.45)):
        for _ in range(run.pick(3, 8)):
            run.pause(run.draw.uniform(1, 3))
            run.network.cut()
    with run.network.fault(Fault(refuses=True)):
        run.network.cut()
        run.pause(run.pick(4, 10))
    run.bite("answers delayed", run.seen("delayed"))
    run.bite("connections cut", run.seen("cut"))
    run.bite("connections refused", run.seen("refused"))
    run.recovered(run.note("steady"))
    run.stop_loads()


@scenario()
def flipped_fetches(run: Run) -> None:
    """Turn single bits over in records on their way from the broker."""
    _flip(run, Fault(apis=frozenset({FETCH}), flip_answers=0.1))


@scenario()
def flipped_writes(run: Run) -> None:
    """Turn single bits over in records on their way to the broker."""
    _flip(run, Fault(apis=frozenset({PRODUCE}), flip_requests=0.1))


def _flip(run: Run, fault: Fault) -> None:
    goal = run.pick(15, 40)
    run.worker()
    run.load(count=ENDLESS, rate=run.pick(400, 500))
    run.await_progress(200)
    run.note("flip bits")
    with run.network.fault(fault):
        run.wait(lambda: run.seen("flipped") >= goal, f"{goal} flips", timeout_s=200)
    run.stop_loads()
    run.bite("flipped bits", run.seen("flipped"))


@scenario()
def slow_downstream(run: Run) -> None:
    """Answer each write of the consumer late: it waits, holds little, and stays in its group."""
    most_in_flight, seconds = 1_000, run.pick(15, run.draw.choice((30, 60, 300)))
    run.world.extra["COMMIT_EVERY"] = str(most_in_flight)
    worker = run.worker()
    run.load(count=1_200 * seconds, rate=1_200, is_direct=True)
    run.await_progress(500)
    run.note("answer writes 1.5 s late")
    with run.network.fault(Fault(apis=frozenset({PRODUCE}), latency_s=1.5)):
        run.pause(seconds)
        lags = [
            sum(sample.source_ends.values()) - sum(sample.committed.values())
            for sample in run.sampler.samples
        ]
        usage = [used for used in run.sampler.usage if used.pid == worker.pid]
    run.bite("answers delayed", run.seen("delayed"))
    run.bite("records that had to wait", max(lags) > 3 * most_in_flight)
    settled = usage[len(usage) // 3 :]
    slope = linear_regression([u.at_s / 60 for u in settled], [u.rss_mb for u in settled]).slope
    run.measure("rss_mb", max(u.rss_mb for u in usage), most=200.0)
    # Tables of what was read before fill up for minutes at this rate: only the sum is bounded here.
    run.measure("rss_mb_per_min", slope)
    rebalances = worker.logged("partitions_assigned")
    run.require(f"it was assigned {rebalances} times", holds=rebalances == 1)
    run.drain(timeout_s=300)  # a backlog of minutes, a thousand records at a time
