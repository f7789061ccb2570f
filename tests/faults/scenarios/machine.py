"""Clocks that jump, and disks of our own that are full."""

import os
from pathlib import Path

from tests.faults.cluster import tmpfs
from tests.faults.run import ENDLESS, Run, SkippedError
from tests.faults.scenarios.registry import scenario

_LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
_SHIFTS = ("+3600", "-3600", "+86400", "-86400")


@scenario(is_calm=True)
def clock_jumps(run: Run) -> None:
    """The wall clock of a consumer jumps by an hour and by a day, forth and back."""
    if not _LIBRARIES:
        raise SkippedError("libfaketime is missing (Debian: apt-get install faketime)")
    clock = run.folder / "clock"
    clock.write_text("+0")
    worker = run.worker(
        LD_PRELOAD=str(_LIBRARIES[0]),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    run.load(count=ENDLESS, rate=run.pick(300, 200), poison=0.1)
    run.await_progress(100)
    for shift in run.pick(_SHIFTS, _SHIFTS * 2):
        run.note(f"the clock is {shift} s off")
        clock.write_text(shift)
        run.await_progress(200)
        run.pause(run.pick(0.5, 2))
    run.stop_loads()
    run.drain()
    rebalances = worker.logged("partitions_assigned")
    run.require(f"it was assigned {rebalances} times", holds=rebalances == 1)
    days = {
        (letter.headers["x-dlq-failed-at"] or b"")[:10]
        for letter in run.world.read(run.world.dead_letters)
    }
    run.bite("days that the consumer has seen", len(days) > 2)


@scenario(is_calm=True)
def own_logs_full(run: Run) -> None:
    """The disk that takes the consumer's own log is full."""
    with tmpfs(run.folder / "small", 1) as small:
        ballast = small / "ballast"
        worker = run.worker(errors=small / "worker.log", LOG_LEVEL="DEBUG")
        run.load(count=ENDLESS, rate=300)
        run.await_progress(100)
        with ballast.open("wb", buffering=0) as file:
            while os.statvfs(small).f_bavail:
                file.write(bytes(1024))
        run.bite("a full disk", not os.statvfs(small).f_bavail)
        run.await_progress(500)
        run.require("it goes on", holds=worker.is_running)
        run.stop_loads()
        run.drain()
        run.stop_workers()
        run.check()
