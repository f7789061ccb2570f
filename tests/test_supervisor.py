"""Several workers: which of their ends are final, and what becomes of the others."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app import supervisor as supervisor_module
from app.errors import ConfigError
from app.supervisor import Supervisor

WAIT_S = 60.0
FIRST_PORT = 9464
SUMMARY = {
    "fates": {"booked": 1},
    "reasons": {},
    "consume_per_s": 10,
    "stopped_partitions": {},
}

WORKER = """
import json, os, pathlib, signal, sys, time

port, folder = os.environ["HEALTH_PORT"], pathlib.Path(__file__).parent
exit_codes, summary = json.loads(sys.argv[-2]), sys.argv[-1]
runs = folder / port


def stop(*_):
    print(summary)
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
with runs.open("a") as file:
    file.write("x")
run = len(runs.read_text())
if run <= len(exit_codes.get(port, [])):
    while len(list(folder.iterdir())) < 3:  # the other one has started
        time.sleep(0.01)
    sys.exit(exit_codes[port][run - 1])
signal.pause()
"""


def of_two(folder: Path, **exit_codes: list[int]) -> Supervisor:
    """Supervise two workers; the second one's first runs end with these exit codes.

    All other runs last until SIGTERM.
    """
    program = folder / "worker.py"
    program.write_text(WORKER)
    by_port = {str(FIRST_PORT + 1): exit_codes["second"]}
    arguments = [json.dumps(by_port), json.dumps(SUMMARY)]
    return Supervisor(2, arguments, health_port=FIRST_PORT, program=program)


async def test_settings_that_are_wrong_from_the_start_end_all_gently(tmp_path: Path) -> None:
    """To start it again would not help; the other one finishes what it has in hand."""
    supervisor = of_two(tmp_path, second=[2])
    with pytest.raises(ConfigError, match=r"^worker 1 refuses its settings$"):
        async with asyncio.timeout(WAIT_S):
            await supervisor.run(asyncio.Event())
    assert supervisor._summaries == [SUMMARY]
    assert supervisor.restarts == 0


async def test_settings_that_break_meanwhile_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone when a worker is restarted may come back; the others go on."""
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF_S", 0.01)
    supervisor, stop = of_two(tmp_path, second=[1, 2, 2]), asyncio.Event()
    with capture_logs() as logs:
        running = asyncio.create_task(supervisor.run(stop))
        second = tmp_path / str(FIRST_PORT + 1)
        async with asyncio.timeout(WAIT_S):
            while not (second.exists() and second.read_text() == "xxxx"):
                assert not running.done()
                await asyncio.sleep(0.01)
            stop.set()
            sums = await running
    assert (tmp_path / str(FIRST_PORT)).read_text() == "x"
    assert sums["restarts"] == 3
    assert sums["fates"] == {"booked": 2}
    told = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert told == ["worker_ended", "worker_refuses_settings", "worker_refuses_settings"]


async def test_a_worker_that_has_just_ended_keeps_no_other_from_being_told() -> None:
    """Between its end and our notice of it there is nobody to signal."""
    supervisor, stop = Supervisor(2, []), asyncio.Event()
    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await ended.wait()
    other = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    supervisor._running = {0: ended, 1: other}
    stop.set()
    await supervisor._forward(stop)
    async with asyncio.timeout(WAIT_S):
        assert await other.wait() == -signal.SIGTERM
