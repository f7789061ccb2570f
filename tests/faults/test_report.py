"""The report of fault runs: what is written is read back, and runs of several files are one row."""

from pathlib import Path

from tests.faults.report import read_outcomes, table, write_outcomes
from tests.faults.run import Outcome
from tests.faults.scenarios import SCENARIOS


def test_runs_of_two_files_are_summed_in_one_row(tmp_path: Path) -> None:
    """Sums over the runs, and the worst of them."""
    first = Outcome("storm", 1, figures={"records": 100, "stall_s": 1.5, "bite: rebalances": 2})
    second = Outcome("storm", 2, "failed", figures={"records": 50, "lost": 3, "stall_s": 0.5})
    for name, outcome in (("a", first), ("b", second)):
        write_outcomes(tmp_path / name, [outcome])
    read = [outcome for name in "ab" for outcome in read_outcomes(tmp_path / name)]
    assert read == [first, second]
    row = table(read, SCENARIOS).splitlines()[2]
    assert row.startswith("| storm | 2 | 1 | 150 | 3 |")
    assert "| 1.5 |" in row
    assert row.endswith("| 2 rebalances |")


def test_a_file_of_outcomes_is_replaced_whole(tmp_path: Path) -> None:
    """The second write leaves nothing of the first, and no file beside it."""
    """Sums over the runs, and the worst of them."""
    file = tmp_path / "outcomes.json"
    write_outcomes(file, [Outcome("storm", 1)])
    write_outcomes(file, [Outcome("storm", 1), Outcome("zombie", 1)])
    assert [outcome.name for outcome in read_outcomes(file)] == ["storm", "zombie"]
    assert list(tmp_path.iterdir()) == [file]
