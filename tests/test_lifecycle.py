"""The life of a process: what its signals ask for, and how it ends."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WAIT_S = 60.0

PROGRAM = """
import asyncio, sys
from app.lifecycle import run_with_stop

async def main(stop):
    print("started", flush=True)
    await stop.wait()
    await asyncio.to_thread(sys.stdin.readline)  # what it has in hand takes as long as we like
    print("finished")

asyncio.run(run_with_stop(main, grace_s=60))
"""


@pytest.fixture
def program() -> Iterator["subprocess.Popen[str]"]:
    """A program that has started and is not told to stop yet."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        until_said(process, "started")
        yield process
        process.kill()


def until_said(process: "subprocess.Popen[str]", word: str) -> None:
    """Read what a process says up to a line with a word in it."""
    assert process.stdout is not None
    assert any(word in line for line in process.stdout), f"it has ended without {word}"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
def test_a_stop_that_is_asked_for_again_is_the_same_stop(
    program: "subprocess.Popen[str]", first: signal.Signals, then: signal.Signals
) -> None:
    """A service manager tells every process of a service, and a supervisor its workers as well."""
    program.send_signal(first)
    until_said(program, "stopping")
    program.send_signal(then)
    output, _ = program.communicate("\n", timeout=WAIT_S)
    assert output == "finished\n"
    assert program.returncode == 0


def test_a_second_ctrl_c_ends_it_at_once(program: "subprocess.Popen[str]") -> None:
    """A person who asks twice does not want to wait; exit code 130."""
    program.send_signal(signal.SIGINT)
    until_said(program, "stopping")
    program.send_signal(signal.SIGINT)
    assert program.wait(WAIT_S) == 130
