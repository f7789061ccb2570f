"""Long runs in small: they count, they cost, they find what is planted, and it can be repeated."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.models import Refusal
from app.pnl.holding import Holding
from app.ports import RecordBatch
from app.services import BatchResult, TradeProcessor
from tests.fuzz import campaign as campaigns
from tests.fuzz import money, one_fate
from tests.fuzz.campaign import Campaign, random_changes
from tests.fuzz.corpus import body
from tests.fuzz.one_fate import check, values_of


def test_random_changes_break_nothing(tmp_path: Path) -> None:
    """A short run of the long one."""
    campaign = Campaign("test", runs=1000, seed=7, kept_in=tmp_path)
    random_changes(campaign)
    assert not campaign.failures
    assert campaign.done == 1000
    report = campaign.report()
    assert report.startswith("1,000 inputs in ")
    assert report.endswith("0 failures")
    assert 0 < campaign.percentile_us(0.5) <= campaign.percentile_us(0.999)


def test_run_ends_with_its_time(tmp_path: Path) -> None:
    """Whichever bound is reached first."""
    campaign = Campaign("test", runs=10**9, seconds=0.2, seed=7, kept_in=tmp_path)
    random_changes(campaign)
    assert campaign.done < 10**6


def planted(change: Callable[[BatchResult, RecordBatch], None]) -> type[TradeProcessor]:
    """Give a processor with a bug in what it makes of a batch that has bad records."""

    class Planted(TradeProcessor):
        def process_batch(self, batch: RecordBatch, **how: Any) -> BatchResult:
            result = super().process_batch(batch, **how)
            if result.refusals:
                change(result, batch)
            return result

    return Planted


def tells(result: BatchResult, batch: RecordBatch) -> None:
    """Put a value into a message."""
    last = result.refusals.pop()
    message = f"{last.message}: {batch.values[last.index]!r}"
    result.refusals.append(Refusal(last.index, last.reason, message, last.kind, last.error_class))


def renames(result: BatchResult, _: RecordBatch) -> None:
    """Refuse under a code that nobody knows."""
    last = result.refusals.pop()
    result.refusals.append(Refusal(last.index, "strange", "", last.kind, last.error_class))


def books_wrongly(result: BatchResult, batch: RecordBatch) -> None:
    """Let a bad record do something to the trade before it."""
    if len(batch.values) > 1:
        result.touched[0].trade_count += 1


def loses(result: BatchResult, _: RecordBatch) -> None:
    """Forget a refusal."""
    result.refusals.pop()


def refuses_twice(result: BatchResult, _: RecordBatch) -> None:
    """Write two dead letters of one record."""
    result.refusals.append(result.refusals[0])


def raises(_: BatchResult, __: RecordBatch) -> None:
    """Stop everything for one bad record."""
    raise OverflowError("too bad")


BUGS: list[tuple[Callable[[BatchResult, RecordBatch], None], str]] = [
    (loses, "not one fate each"),
    (refuses_twice, "two fates"),
    (tells, "no known message"),
    (renames, "no documented reason"),
    (books_wrongly, "something else"),
    (raises, "too bad"),
]


@pytest.mark.parametrize(("bug", "problem"), BUGS, ids=[problem for _, problem in BUGS])
def test_planted_bug_is_found_and_its_input_kept(
    bug: Callable[[BatchResult, RecordBatch], None],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A check that cannot fail proves nothing; what it says can be run again."""
    one_fate.said()
    monkeypatch.setattr(one_fate, "TradeProcessor", planted(bug))
    campaign = Campaign("test", runs=500, seed=7, kept_in=tmp_path)
    random_changes(campaign)
    kept = campaign.failures[0]
    said = capsys.readouterr().out
    assert problem in said
    assert f"--repeat {kept}" in said
    with pytest.raises((AssertionError, OverflowError)):
        check(values_of(kept.read_bytes()))


def test_slow_input_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU time has a limit, and what is over it is kept."""
    monkeypatch.setattr(campaigns, "CPU_LIMIT_US", 0)
    campaign = Campaign("test", runs=3, seed=7, kept_in=tmp_path)
    random_changes(campaign)
    assert len(campaign.failures) == 3


def test_hanging_input_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not end is ended by its CPU time, kept, and the next one is tried."""

    def hang(_: object) -> None:
        while True:
            pass

    monkeypatch.setattr(campaigns, "check", hang)
    monkeypatch.setattr(campaigns, "_HANG_CPU_S", 0.05)
    campaign = Campaign("test", runs=2, kept_in=tmp_path)
    random_changes(campaign)
    assert len(campaign.failures) == 2
    assert "s of CPU" in capsys.readouterr().out


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_command_runs_with_or_without_the_engine() -> None:
    """Where the engine is not installed it says so, and goes on without."""
    done = fuzz("--runs", "800", "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    has_engine = importlib.util.find_spec("atheris") is not None
    assert ("atheris is not installed" in done.stdout) == (not has_engine)
    assert "800 inputs in " in done.stdout
    assert "0 failures" in done.stdout


def test_command_repeats_one_input(tmp_path: Path) -> None:
    """The file of an input is all that it takes."""
    (tmp_path / "one.bin").write_bytes(body())
    done = fuzz("--repeat", str(tmp_path / "one.bin"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 inputs in " in done.stdout


# -- money


def test_random_fills_differ_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    """A short run of the long one."""
    assert money.run_fills(3000, seed=5) == 0
    assert "3,000 fills in " in capsys.readouterr().out


def test_planted_rounding_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One unit of the 24th decimal, once in a while, does not pass."""
    fill = Holding.fill

    def drifting(self: Holding, quantity: int, value_e24: int, time_ns: int, offset: int) -> None:
        fill(self, quantity, value_e24, time_ns, offset)
        self.realized_e24 += offset == 1000

    monkeypatch.setattr(Holding, "fill", drifting)
    assert money.run_fills(1500, seed=5) == 1
    assert "DIFFERENT: " in capsys.readouterr().out
