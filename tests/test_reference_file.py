"""The file of reference data: read whole or not at all, and again when it has changed."""

import asyncio
import json
import os
import re
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from app import reference_file
from app.cli import app
from app.config import Settings
from app.errors import ConfigError
from app.memory_io import MemoryDatabase
from app.models import Fate
from app.reference import (
    BookTable,
    CounterpartyTable,
    DatesTable,
    InstrumentTable,
    LimitsTable,
    Reference,
    VenueTable,
)
from app.reference_file import (
    LOOK_INTERVAL_S,
    Loaded,
    ReferenceFile,
    load_calendar,
    open_reference_file,
    read_reference,
    reference_of,
)
from tests.memory_world import TRADES, World, symbols_of, trade, until
from tests.test_reference import CODES
from tests.virtual_time import virtual_time

ROOT = Path(__file__).parents[1]

(HERE,) = symbols_of(0, 1)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """A file in a folder of the test, and what looks at it."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.write(text)
        self.clock = Clock()
        self.file = ReferenceFile(path, read_reference(path), monotonic=self.clock)

    def write(self, text: str) -> None:
        """Put another file in its place, whole."""
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)

    async def look(self) -> bool:
        """Let the interval pass, and look until that is through; tell whether there is news."""
        self.clock.now_s += LOOK_INTERVAL_S
        assert not self.file.look()
        await asyncio.wait(self.looks())
        return self.file.look()

    def looks(self) -> list[asyncio.Task[Loaded | None]]:
        """Give the look that is on its way, if any."""
        return [] if self.file._look is None else [self.file._look]

    def is_refused(self) -> bool:
        """Tell whether older data are used."""
        return self.file.is_refused

    @property
    def symbols(self) -> set[str]:
        """What is known by now."""
        return set(self.file.reference.instruments or {})


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Begin with one instrument."""
    return Watched(tmp_path / "reference.toml", "[instruments.A]\ntick = 0.01\n")


async def test_newer_file_is_read_and_an_equal_one_is_not(watched: Watched) -> None:
    """Once for each change of it, whatever its size and time."""
    assert not await watched.look()
    before = watched.path.stat()
    watched.write("[instruments.B]\ntick = 0.02\n")
    os.utime(watched.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watched.path.stat().st_size == before.st_size
    assert await watched.look()
    assert watched.symbols == {"B"}
    with mock.patch.object(reference_file, "read_reference", side_effect=AssertionError):
        assert not await watched.look()


@pytest.mark.parametrize(
    "text", ["[instruments.B", "[instruments.B]\ntick = 0", "[instrument.B]"], ids=str
)
async def test_broken_file_leaves_what_was_read_before(
    watched: Watched, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told once, is not read again before it changes, and is over with the next good one."""
    watched.write(text)
    assert not await watched.look()
    assert watched.is_refused()
    assert watched.symbols == {"A"}
    with mock.patch.object(reference_file, "read_reference", side_effect=AssertionError):
        assert not await watched.look()
    assert watched.is_refused()
    watched.write("[instruments.C]\n")
    assert await watched.look()
    assert not watched.is_refused()
    assert watched.symbols == {"C"}
    assert capsys.readouterr().out.count("reference_file_refused") == 1


async def test_file_that_is_gone_leaves_what_was_read_before(watched: Watched) -> None:
    """And is read when it is there again, the same one too."""
    aside = watched.path.rename(watched.path.with_suffix(".aside"))
    assert not await watched.look()
    assert watched.is_refused()
    assert not await watched.look()
    assert watched.symbols == {"A"}
    aside.rename(watched.path)
    assert await watched.look()
    assert not watched.is_refused()


async def test_nothing_is_looked_at_before_its_time(watched: Watched) -> None:
    """Neither within the interval nor while a look is on its way."""
    watched.clock.now_s += LOOK_INTERVAL_S - 0.1
    assert not watched.file.look()
    assert not watched.looks()
    watched.clock.now_s += 0.1
    assert not watched.file.look()
    (look,) = watched.looks()
    watched.clock.now_s += 10 * LOOK_INTERVAL_S
    assert not watched.file.look()
    assert watched.looks() == [look]
    watched.file.close()
    await asyncio.wait([look])
    assert look.cancelled()


def test_what_cannot_be_read_is_told_with_its_name(tmp_path: Path) -> None:
    """No file, no text, no TOML, and too much of it."""
    path = tmp_path / "reference.toml"

    def problem() -> str:
        with pytest.raises(ConfigError) as refused:
            read_reference(path)
        (line,) = refused.value.problems
        return line.removeprefix(f"{path}: ")

    assert problem() == "cannot be read: No such file or directory"
    path.write_bytes(b"\xff")
    assert problem().startswith("is not TOML: 'utf-8' codec")
    path.write_text("[limits]\nmax_quantity = 1\nmax_quantity = 2\n")
    assert problem() == "is not TOML: Cannot overwrite a value (at line 3, column 17)"
    path.write_text("[limits]\nmax_quantity = 1e99999999999999999999\n")
    assert problem() == "is not TOML: a number is out of range"
    path.write_text("a = " + "[" * 100_000)
    assert problem().startswith("is not TOML: ")
    path.write_text("[limits]\nmax_quantity = 0\n")
    assert problem() == "limits.max_quantity: must be > 0"
    with mock.patch.object(reference_file, "_MOST_BYTES", 10):
        assert problem() == "must have at most 10 bytes"


async def test_settings_name_the_file(tmp_path: Path) -> None:
    """Without one there are no data, and a wrong one is a wrong setting."""
    assert await open_reference_file(Settings(), monotonic=Clock()) is None
    assert reference_of(Settings()) is None
    path = tmp_path / "reference.toml"
    path.write_text("[books.EQ]\n")
    settings = Settings(reference_file=path)
    opened = await open_reference_file(settings, monotonic=Clock())
    assert opened is not None
    assert opened.reference.books is not None
    read = reference_of(settings)
    assert read is not None
    assert read.books == opened.reference.books
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        await open_reference_file(settings, monotonic=Clock())


def test_calendar_without_its_library_says_what_to_install() -> None:
    """It is asked for by a file alone, and so is the library."""
    with (
        mock.patch.dict(sys.modules, {"exchange_calendars": None}),
        pytest.raises(ValueError, match=r"pip install 'trade-stream\[calendars\]'"),
    ):
        load_calendar.__wrapped__("XNYS")


def test_calendar_has_the_holidays_of_its_venue() -> None:
    """The library's days, in the time of the venue."""
    pytest.importorskip("exchange_calendars")
    calendar = load_calendar("XNYS")
    assert str(calendar.zone) == "America/New_York"
    independence_day, day_before = (
        date.fromisoformat("2025-07-04"),
        date.fromisoformat("2025-07-03"),
    )
    assert calendar.is_closed(independence_day)
    assert not calendar.is_closed(day_before)
    assert not calendar.is_closed(date.fromisoformat("1999-07-04"))
    assert not calendar.is_closed(date.fromisoformat("2090-07-04"))
    with pytest.raises(ValueError, match="no calendar of this name"):
        load_calendar("QQQQ")


# -- in a consumer


class Told(ReferenceFile):
    """A file that says what a test says, without any file."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(Path("none"), Loaded(reference, (0, 0, 0, 0)), monotonic=Clock())
        self._next: Reference | None = None

    def tell(self, reference: Reference) -> None:
        """Be another file from the next look on."""
        self._next = reference

    @property
    def is_told(self) -> bool:
        """Whether the loop has looked since."""
        return self._next is None

    def look(self) -> bool:
        """Give what a test has told."""
        if self._next is None:
            return False
        self.reference, self._next = self._next, None
        return True


def put(world: World, *values: bytes) -> None:
    """Append trades to the first partition."""
    for value in values:
        world.broker.append(TRADES, value, partition=0)


@pytest.mark.parametrize("database", [None, MemoryDatabase()], ids=["kafka alone", "ledger"])
@virtual_time
async def test_trades_after_a_change_of_the_file_are_marked_by_it(
    database: MemoryDatabase | None,
) -> None:
    """Those before keep their marks; all are booked, and counted by their codes."""
    told = Told(Reference(instruments={HERE: InstrumentTable(tick=Decimal(1))}))
    world = World(database)
    worker = world.worker(reference_file=told)
    put(world, trade(HERE, trade_id="A"), trade(HERE, trade_id="B"))
    await worker.start()
    await until(lambda: world.committed.get(0) == 2)
    assert not worker.consumer.stats.suspects
    told.tell(Reference(instruments={HERE: InstrumentTable(tick=Decimal(3))}))
    await until(lambda: told.is_told)
    put(world, trade(HERE, trade_id="C"), trade(HERE, trade_id="D", price="9"))
    await until(lambda: world.committed.get(0) == 4)
    stats = await worker.finish()
    assert stats.suspects == {"off-tick": 1}
    assert +stats.fates == {Fate.BOOKED: 4}
    assert world.newest_positions()[HERE]["quantity"] == "4"
    if database is not None:
        marks = {offset: row["suspects"] for (_, offset), row in database.trades.items()}
        assert {offset: text for offset, text in marks.items() if text} == {2: "{off-tick}"}


@virtual_time
async def test_partition_that_comes_back_is_marked_by_the_newest_file() -> None:
    """Its state was kept while it was away, and what was approved in it was not."""
    told = Told(Reference(instruments={HERE: InstrumentTable()}))
    world = World()
    worker = world.worker(reference_file=told)
    put(world, trade(HERE, trade_id="A"), trade(HERE, trade_id="B"))
    await worker.start()
    await until(lambda: world.committed.get(0) == 2)
    processor = worker.consumer._open[0].processor
    other = world.worker()
    await other.start()
    await until(lambda: len(worker.consumer._open) == 1 and len(other.consumer._open) == 1)
    told.tell(Reference(books={}, instruments={}))
    await until(lambda: told.is_told)
    await other.finish()
    await until(lambda: len(worker.consumer._open) == 2)
    put(world, trade(HERE, trade_id="C"))
    await until(lambda: world.committed.get(0) == 3)
    stats = await worker.finish()
    assert stats.suspects == {"instrument-unknown": 1}
    assert processor.positions.keys() == {HERE}


@virtual_time
async def test_what_has_waited_is_marked_alike_by_another_owner() -> None:
    """A venue that no list knows is doubtful whoever books the trade."""
    database = MemoryDatabase()
    world = World(database)
    amend = trade(HERE, trade_id="A", action="AMEND", version=2, mic="QQQQ")
    new = trade(HERE, trade_id="A")
    put(world, amend, new)
    worker = world.worker(reference_file=Told(Reference()))
    await worker.start(until_caught_up=True)
    expected = dict((await worker.finish_by_itself()).suspects)
    assert expected == {"mic-unknown": 1}
    world = World(MemoryDatabase())
    stats = []
    for value in (amend, new):
        put(world, value)
        worker = world.worker(reference_file=Told(Reference()))
        await worker.start(until_caught_up=True)
        stats.append(await worker.finish_by_itself())
    assert not stats[0].suspects
    assert dict(stats[1].suspects) == expected


@virtual_time
async def test_strict_worker_sends_doubtful_identifiers_to_the_dead_letters() -> None:
    """With the code as the reason; what the file alone doubts is booked, and marked."""
    told = Told(Reference(instruments={HERE: InstrumentTable(tick=Decimal(3))}))
    world = World(validation_strict=True, dlq_breaker_share=1.0)
    worker = world.worker(reference_file=told)
    put(world, trade(HERE, mic="QQQQ"), trade(HERE, isin="US0378331006"), trade(HERE))
    await worker.start()
    await until(lambda: world.committed.get(0) == 3)
    stats = await worker.finish()
    assert stats.reasons == {"mic-unknown": 1, "isin-check-digit": 1}
    assert stats.suspects == {"off-tick": 1}
    assert +stats.fates == {Fate.BOOKED: 1, Fate.DEAD_LETTERED: 2}


@virtual_time
async def test_refused_file_shows_in_the_metrics() -> None:
    """For as long as it is refused."""
    told = Told(Reference())
    worker = World().worker(reference_file=told)
    assert not worker.consumer._counts().is_reference_refused
    told.is_refused = True
    assert worker.consumer._counts().is_reference_refused


# -- the command


def run(*arguments: str) -> tuple[int, str]:
    """Run the command line in this process."""
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


def test_check_says_what_a_file_holds(tmp_path: Path) -> None:
    """And what is not in it, which is not checked."""
    path = tmp_path / "reference.toml"
    path.write_text("[instruments.A]\n[instruments.B]\n[books]\n[limits]\nmax_quantity = 5\n")
    code, output = run("reference", "check", str(path), "--json")
    assert code == 0
    assert json.loads(output) == {
        "problems": [],
        "holds": {
            "instruments": 2,
            "books": 0,
            "limits": 1,
            "dates": None,
            "venues": None,
            "inactive counterparties": None,
        },
    }
    code, output = run("reference", "check", str(path))
    assert code == 0
    assert "nothing of it is checked" in output


def test_check_fails_with_every_problem(tmp_path: Path) -> None:
    """As a table or as JSON."""
    path = tmp_path / "reference.toml"
    path.write_text("[instruments.A]\ntick = 0\n[book]\n")
    code, output = run("reference", "check", str(path), "--json")
    assert code == 1
    told = json.loads(output)["problems"]
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in told] == [
        "instruments.A.tick",
        "book",
    ]
    code, output = run("reference", "check", str(path))
    assert code == 1
    assert "must be > 0" in output
    assert "unknown" in output


# -- the page


def test_example_of_the_page_is_the_file_of_the_examples() -> None:
    """And is right."""
    page = (ROOT / "docs/reference-data.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert block == (ROOT / "examples/reference.toml").read_text()
    reference = read_reference(ROOT / "examples/reference.toml").reference
    assert reference.instruments is not None
    assert reference.rules("MM", "BRK.B").most_quantity_e8 == 500 * 10**8


def test_page_names_every_code_and_every_key() -> None:
    """Each code that marks a trade, and each key that a file may have."""
    page = (ROOT / "docs/reference-data.md").read_text()
    kinds = (InstrumentTable, BookTable, LimitsTable, DatesTable, VenueTable, CounterpartyTable)
    keys = {name for kind in kinds for name in kind.__struct_fields__} - {"limits"}
    assert len(keys) == 15
    for name in keys | CODES.keys() | {"[books.NAME.limits]"}:
        assert f"`{name}`" in page, name
