"""The journal outlives the process that writes it."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.harness import ROOT, wait_for
from tests.faults.journal import (
    JournalWriter,
    State,
    digest,
    first_ack_after,
    read_journals,
    stalls,
)

_WRITER = """
import sys
from pathlib import Path
from tests.faults.journal import JournalWriter
with JournalWriter(Path(sys.argv[1]), "killed") as journal:
    sequence = 0
    while True:
        sequence += 1
        (number,) = journal.sending([("key", sequence, f"T{sequence}", "sha")], sequence)
        journal.known([(number, "ok", 0, number)], sequence)
"""


def test_attempts_and_outcomes_are_read_in_the_order_of_sending(tmp_path: Path) -> None:
    """Runs follow each other; what has no outcome is unknown; a repeat is known as one."""
    with JournalWriter(tmp_path, "load-0") as journal:
        first = journal.sending([("A", 1, "T1", "x"), ("B", 1, "T2", "y"), ("", 1, "-", "z")], 10)
        journal.known([(first[0], "ok", 3, 7), (first[1], "unknown", -1, -1)], 30)
        again = journal.sending([("B", 1, "T2", "y")], 40)
        journal.known([(again[0], "not_sent", -1, -1)], 50)
    with JournalWriter(tmp_path, "load-1") as journal:
        journal.sending([("A", 1, "T1", "x")], 60)
    attempts = read_journals(tmp_path)
    assert [(a.run, a.key, a.state, a.is_repeat) for a in attempts] == [
        ("load-0", "A", State.OK, False),
        ("load-0", "B", State.UNKNOWN, False),
        ("load-0", "", State.UNKNOWN, False),
        ("load-0", "B", State.NOT_SENT, True),
        ("load-1", "A", State.UNKNOWN, False),
    ]
    assert (attempts[0].partition, attempts[0].offset) == (3, 7)
    assert digest(None) == digest(b"") != digest(b"x")


def test_lines_of_a_killed_process_are_all_there(tmp_path: Path) -> None:
    """SIGKILL takes at most the line in hand: numbers have no gaps, nothing is torn."""
    path = tmp_path / "killed.journal"
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], cwd=ROOT) as writer:
        wait_for(lambda: path.exists() and path.stat().st_size > 100_000, "some lines")
        writer.send_signal(signal.SIGKILL)
    with path.open("ab") as file:
        file.write(b"S\t99")  # as if the last line had been cut short
    attempts = read_journals(tmp_path)
    assert [a.sequence for a in attempts] == list(range(1, len(attempts) + 1))
    assert all(a.state is State.OK for a in attempts[:-1])


def test_stalls_are_waits_with_something_due(tmp_path: Path) -> None:
    """A pause of the sender is no stall, a silent broker is one."""
    second = 1_000_000_000
    with JournalWriter(tmp_path, "load-0") as journal:
        for sent_s, known_s in ((0, 1), (100, 101), (102, 110), (103, 111)):
            (number,) = journal.sending([("A", sent_s, "T", "x")], sent_s * second)
            journal.known([(number, "ok", 0, number)], known_s * second)
    attempts = read_journals(tmp_path)
    assert stalls(attempts).longest_s == 8
    assert stalls(attempts).slowest_s == 8
    assert first_ack_after(attempts, 50 * second) == 51
    assert first_ack_after(attempts, 200 * second) == 0
    attempts[-1].known_ns = 0
    attempts[-1].state = State.UNKNOWN
    assert first_ack_after(attempts, 120 * second) == float("inf")
