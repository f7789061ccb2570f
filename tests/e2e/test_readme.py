"""The commands of the README, run one after the other as a newcomer would."""

import csv
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import readme_commands

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# Containers run where there is an engine (deploy/check_image.sh); tests do not run themselves.
NOT_RUN = ("docker", "docker-compose")


@pytest.fixture
def checkout(open_dir: Path) -> Iterator[Path]:
    """A copy of the project with files to replay, so that nothing of the developer's is touched."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 9092)) == 0:
            pytest.skip("something listens on port 9092, which the README's commands use")
    copy = open_dir / "trade-stream"
    ignore = shutil.ignore_patterns(".git", ".trade-stream", ".venv", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=ignore)
    _write_prints(copy)
    yield copy
    for command in (["db", "stop"], ["broker", "purge", "--yes", "--force"]):
        subprocess.run(
            [sys.executable, "-m", "app", *command], cwd=copy, check=False, capture_output=True
        )


def _write_prints(folder: Path) -> None:
    with gzip.open(folder / "prints.csv.gz", "wt", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["DT", "SYMBOL", "PRICE", "SIZE"])
        rows.writerows([["2026-03-02 09:30:00.5", "ABC", "10.25", n] for n in range(1, 21)])
    prints = [
        {"s": "BTC", "p": "60000.5", "q": "2", "T": 1772443800000 + n, "t": n, "m": n % 2 == 0}
        for n in range(20)
    ]
    (folder / "prints.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prints))


def _translated(command: list[str]) -> tuple[list[str], dict[str, str]]:
    """Give the command for this interpreter, and the variables set in front of it."""
    variables = {}
    while "=" in command[0]:
        name, value = command[0].split("=", 1)
        variables[name] = value
        command = command[1:]
    match command[0]:
        case "python":
            return [sys.executable, *command[1:]], variables
        case "pip":
            return [sys.executable, "-m", "pip", *command[1:]], variables
        case "trade-stream":
            return [sys.executable, "-m", "app", *command[1:]], variables
        case _:
            return command, variables


@pytest.mark.timeout(300)
def test_readme_commands_do_what_they_say(checkout: Path) -> None:
    """Every command of the README ends well, in its order, in a fresh copy of the project."""
    # The copy uses the interpreter at hand: making another environment is the image's business.
    (checkout / ".venv").symlink_to(Path(sys.prefix))
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "COVERAGE_", "COV_"))
    }
    commands = [c for c in readme_commands() if c[0] not in NOT_RUN and c[-1] != "test"]
    last = commands.pop(next(i for i, c in enumerate(commands) if c[-2:] == ["broker", "stop"]))
    assert len(commands) > 8
    printed = ""
    for command in [*commands, last]:
        arguments, variables = _translated(command)
        done = subprocess.run(
            arguments,
            cwd=checkout,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr[-2000:]}"
        printed += done.stdout
    assert "It adds up: 100,000 produced" in printed
    assert "published 100,000 trades" in printed
    assert "The ledger has 100,000 trades" in printed
    assert "stopped" in printed
