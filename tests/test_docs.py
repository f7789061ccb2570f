"""The documentation says what is: settings, commands, schema, reason codes, examples."""

import doctest
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import typer

from app.cli import app
from app.config import Settings, describe
from app.models import Position
from app.position_codec import encode_heartbeat, encode_position
from app.simulator import POISON
from tests.faults.report import read_outcomes, table
from tests.faults.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def settings_table() -> str:
    """Write the table of settings as the README holds it."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for row in describe(Settings.from_env({}), {}):
        value = row["value"]
        shown = (
            ""
            if value in (None, "None")
            else f"`{str(value).lower() if isinstance(value, bool) else value}`"
        )
        rows.append(f"| `{row['name']}` | {shown} | {row['description']} |")
    return "\n".join(rows)


def test_readme_lists_every_setting_with_its_default() -> None:
    """The configuration table is the one that the settings themselves give."""
    assert settings_table() in README, settings_table()


def test_readme_names_every_command() -> None:
    """Each command of the command line stands in the README's table."""
    group = typer.main.get_command(app)
    names = group.commands  # type: ignore[attr-defined]
    assert names
    for name in names:
        assert re.search(rf"`{name}[ `|\\]", README), name


def test_readme_links_lead_somewhere() -> None:
    """Every relative link of the README and the docs names a file that is there."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_position_records_fit_their_published_schema() -> None:
    """What we write validates against the schema for readers in other languages."""
    schema = json.loads((ROOT / "docs/position-record.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    position = Position(
        "BOOK", "SYM", "USD", -5, -(10**20) - 1, 10**9, 7, -3, 12345, 946684800123456789, 4, 99,
        {3: 17}, 2,
    )  # fmt: skip
    values = [
        encode_position(position, group="g", topic="t", partition=1),
        encode_position(Position(None, "S", "USD"), group="g", topic="t", partition=0),
        encode_heartbeat(group="g", topic="t", partition=0, offset=-1, partitions=8),
    ]  # fmt: skip
    for value in values:
        jsonschema.validate(json.loads(value), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(values[0]) | {"quantity": 1.5}, schema)


def test_dead_letter_page_names_the_reasons_of_the_simulator() -> None:
    """Every reason that the simulator's poison leads to is explained."""
    page = (ROOT / "docs/dead-letters.md").read_text()
    general = {"symbol-missing", "price-wrong-type", "price-out-of-range"}
    for reason in POISON:
        named = re.sub(r"^(symbol|price)-", "<field>-", reason) if reason in general else reason
        assert f"`{named}`" in page, reason


def test_example_of_the_processor_runs() -> None:
    """The embedded processor prints the worked case of two flips."""
    done = subprocess.run(
        [sys.executable, "examples/own_processor.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "net realised 246.7" in done.stdout


def test_readme_python_gives_what_its_comment_says() -> None:
    """The snippet in the README prints the numbers beside it."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == snippet.rsplit("#", 1)[1].split()


def test_examples_of_the_pnl_page_give_what_they_say() -> None:
    """Every worked case of the page is computed, one block after the other as a reader would."""
    page = (ROOT / "docs/pnl.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "pnl.md", "pnl.md", 0)
    assert len(examples.examples) > 40
    told: list[str] = []
    failed, tried = doctest.DocTestRunner().run(examples, out=told.append)
    assert tried == len(examples.examples)
    assert not failed, "".join(told)


def readme_commands() -> list[list[str]]:
    """Give the shell commands of the README, one argument list each."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    lines = (line.split("  #")[0].strip() for line in blocks.splitlines())
    return [shlex.split(line, comments=True) for line in lines if line]


def test_readme_commands_are_all_known() -> None:
    """No command of the README is one that nobody checks."""
    known = (
        "./run.sh",
        "pip",
        "python",
        "HIGH_VOLUME=true",
        "DATABASE_URL=embedded",
        "docker",
        "docker-compose",
        "trade-stream",
    )
    assert {command[0] for command in readme_commands()} == set(known)


@pytest.mark.parametrize("runs", ["faults.json", "faults-late-owners.json", "planted.json"])
def test_the_report_of_faults_is_that_of_its_runs(runs: str) -> None:
    """Every cell of a table comes from the outcomes beside it, all of which passed."""
    outcomes = read_outcomes(ROOT / "docs" / runs)
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert table(outcomes, SCENARIOS) in (ROOT / "docs/faults.md").read_text()


def test_the_report_names_each_bug_that_is_planted() -> None:
    """None is left out of the report."""
    found = {outcome.name for outcome in read_outcomes(ROOT / "docs/planted.json")}
    assert found == {name for name, some in SCENARIOS.items() if some.family == "planted"}
