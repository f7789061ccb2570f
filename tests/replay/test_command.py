"""The command: its options, its output and its exit codes."""

import gzip
import io
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app import cli, progress
from app.cli import replay as command
from app.lifecycle import run_command
from app.models import TradeEvent
from app.ports import SendOutcome
from app.replay.summary import FileCounts, ReplaySummary
from tests.replay.fakes import OK, UNKNOWN, FakePublisher, trade, write_jsonl


@pytest.fixture
def invoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run the command as the command line does; give its exit code and both outputs."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: cli.app(["replay", *map(str, arguments)]))
        output, errors = capsys.readouterr()
        return int(ended.value.code or 0), output, errors

    return run


def test_command_sums_without_publishing(tmp_path: Path, invoke: Any) -> None:
    """A dry run needs no broker and prints the summary, for people or as JSON."""
    write_jsonl(tmp_path / "a.jsonl", [trade(price=0.1 + 0.2), trade(price="0"), trade()])
    code, output, _ = invoke("a.jsonl", "--dry-run", "--json")
    summary = json.loads(output)
    assert code == 0
    assert (summary["rows"], summary["published"], summary["rejected"]) == (3, 2, 1)
    assert summary["rejected_by_reason"] == {"price-not-positive": 1}
    assert summary["sum_notional"] == "21.6"
    assert summary["rejects_path"] == "a.jsonl.rejects.jsonl"
    assert (tmp_path / "a.jsonl.rejects.jsonl").is_file()
    text = invoke("a.jsonl", "--dry-run")[1]
    assert "price-not-positive" in text
    assert "price-rounded" in text


def test_command_names_wrong_options_and_ends_with_2(tmp_path: Path, invoke: Any) -> None:
    """All problems of the mapping at once, and nothing is connected."""
    code, _, errors = invoke("a.csv", "--map", "x", "--tz", "Mars", "--default", "side=x")
    assert code == 2
    for option in ("--map x", "--tz Mars", "--default side=x"):
        assert option in errors
    for options in (("--speed", "fast"), ("--trade-id", "y"), ("--dry-run",)):
        code, _, errors = invoke("a.csv", *options)
        assert code == 2
        assert options[0] in errors or "a.csv: does not exist" in errors


def test_command_ends_with_1_when_a_file_is_cut_off(tmp_path: Path, invoke: Any) -> None:
    """The summary says which file, and after which row."""
    body = "".join(json.dumps(trade(trade_id=i * 7919 % 104_729)) + "\n" for i in range(3_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body.encode())[:-2_000])
    code, output, _ = invoke("a.jsonl.gz", "--dry-run")
    assert code == 1
    assert "FILE ERROR    a.jsonl.gz" in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_command_ends_with_1_and_one_line_when_the_disk_is_full(
    tmp_path: Path, invoke: Any
) -> None:
    """An error of ours, and no traceback."""
    write_jsonl(tmp_path / "a.jsonl", ["{"])
    code, _, errors = invoke("a.jsonl", "--dry-run", "--rejects", "/dev/full")
    assert code == 1
    assert errors == "error: /dev/full: cannot be written: No space left on device\n"


def install_publisher(monkeypatch: pytest.MonkeyPatch, publisher: FakePublisher) -> None:
    """Let the command find a publisher where it looks for the connection."""

    @asynccontextmanager
    async def open_publisher(*_: Any, **__: Any) -> AsyncIterator[FakePublisher]:
        yield publisher

    monkeypatch.setattr(command, "open_publisher", open_publisher)


def test_command_publishes_to_the_topic_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Any
) -> None:
    """What may not have been stored ends the command with 1."""
    publisher = FakePublisher(lambda *_: UNKNOWN)
    install_publisher(monkeypatch, publisher)
    monkeypatch.setenv("KAFKA_TOPIC", "my-trades")
    path = write_jsonl(tmp_path / "a.jsonl", [trade()])
    assert invoke(path)[0] == 1
    assert [record.topic for record in publisher.records] == ["my-trades"]


def test_command_stopped_by_a_signal_prints_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Any
) -> None:
    """What is in flight is finished, the summary adds up, and the exit code says stopped."""

    def answer(event: TradeEvent, _call: int) -> SendOutcome:
        if event.trade_id == "0":
            signal.raise_signal(signal.SIGINT)
        return OK

    install_publisher(monkeypatch, FakePublisher(answer))
    path = write_jsonl(tmp_path / "a.jsonl", [trade(trade_id=i) for i in range(5_000)])
    code, output, _ = invoke(path)
    assert code == 130
    assert "stopped ahead of the end" in output
    assert "DO NOT ADD UP" not in output


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_shows_a_note_beside_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of the files is read, and what was rejected."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.Progress("replaying") as shown:
        shown.advance(1_200, "50% read, 100 rejected")
    assert "50% read, 100 rejected" in terminal.getvalue()


def test_summary_that_does_not_add_up_is_a_failure() -> None:
    """A lost row is never reported as success."""
    broken = ReplaySummary(files={"a.jsonl": FileCounts(rows=1)})
    assert not broken.adds_up
    assert not broken.is_success
    assert "DO NOT ADD UP" in broken.to_text()
