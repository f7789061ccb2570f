"""The jars of Apache Kafka: fetched once into the user's cache, held against our own lock.

The lock names every jar of the class path with its SHA-256, so nothing is resolved at run time
and no byte runs that we have not seen. A jar enters the cache only after it has been verified;
later starts read a jar again only when its size or time of change is not the verified one.
"""

import hashlib
import importlib
import logging
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.embedded.process import exclusive
from app.errors import EmbeddedBrokerError

_LOCK = Path(__file__).with_name("kafka_jars.lock.toml")
_STAMPS = "verified.json"
_DOWNLOADS_AT_ONCE = 4
_ATTEMPTS = 2  # a second try rides out a dropped connection; what fails twice needs a person
_LOCK_TIMEOUT_S = 600.0  # another process may be downloading over a slow line

_Stamps = dict[str, tuple[int, int, str]]
Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Jar:
    """One locked jar: its Maven coordinate `group:artifact:version` and its SHA-256 in hex."""

    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file, as Maven repositories publish it."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


@dataclass(frozen=True, slots=True)
class JarLock:
    """All jars of one version of the broker."""

    kafka_version: str
    jars: tuple[Jar, ...]


def read_lock(path: Path = _LOCK) -> JarLock:
    """Read the lock file that comes with this package."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    jars = tuple(Jar(entry["coordinate"], entry["sha256"]) for entry in content["jar"])
    return JarLock(content["kafka_version"], jars)


def default_cache_dir() -> Path:
    """Name the user's cache folder of this project, by the XDG convention."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trade-stream"


def ensure_jars(lock: JarLock, *, cache_dir: Path, notify: Notify) -> list[Path]:
    """Return the class path, after fetching what is missing and verifying all of it.

    Args:
        lock: What the class path consists of.
        cache_dir: Jars are kept in a folder of it named by the Kafka version.
        notify: Told in one line when a download starts and nobody watches a terminal.

    Raises:
        EmbeddedBrokerError: A jar cannot be fetched, or is not the locked one.
    """
    folder = cache_dir / f"kafka-{lock.kafka_version}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock", timeout_s=_LOCK_TIMEOUT_S, on_wait=lambda: None):
            missing = [jar for jar in lock.jars if not (folder / jar.file_name).exists()]
            if missing:
                _fetch(missing, folder, notify)
        verify_jars(lock.jars, folder)
    except OSError as exc:
        raise EmbeddedBrokerError(
            f"cannot use the cache folder {folder}: {exc}; "
            "make it writable, or set XDG_CACHE_HOME to a folder that is"
        ) from exc
    return [folder / jar.file_name for jar in lock.jars]


def verify_jars(jars: Iterable[Jar], folder: Path) -> None:
    """Hold each jar in `folder` against the lock.

    Raises:
        EmbeddedBrokerError: The first jar that differs, both sums, and what to do.

    Cost:
        About 0.2 s for all of them; 1 ms when none has changed since the last time.
    """
    known = _read_stamps(folder)
    stamps: _Stamps = {}
    for jar in jars:
        path = folder / jar.file_name
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns, jar.sha256)
        if known.get(jar.file_name) != stamp:
            _verify(jar, path, remedy=f"delete the folder {folder} and start again")
        stamps[jar.file_name] = stamp
    if stamps != known:
        partial = folder / f"{_STAMPS}.{os.getpid()}"
        partial.write_bytes(msgspec.json.encode(stamps))
        partial.replace(folder / _STAMPS)


def _read_stamps(folder: Path) -> _Stamps:
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode((folder / _STAMPS).read_bytes(), type=_Stamps)
    return {}


def _verify(jar: Jar, path: Path, *, remedy: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != jar.sha256:
        raise EmbeddedBrokerError(
            f"{jar.file_name} is not the published one: expected SHA-256 {jar.sha256}, "
            f"found {actual}; {remedy}"
        )


def _fetch(jars: list[Jar], folder: Path, notify: Notify) -> None:
    console = Console(stderr=True)
    if not console.is_terminal:
        notify(f"downloading {len(jars)} jars of Apache Kafka into {folder}")
    progress = Progress(
        TextColumn("downloading Apache Kafka"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jars"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with (
        progress,
        tempfile.TemporaryDirectory(prefix="download-", dir=folder) as staging,
        ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool,
    ):
        bar = progress.add_task("jars", total=len(jars))
        context = _maven(Path(staging))
        fetched = [pool.submit(_fetch_one, context, jar, folder) for jar in jars]
        try:
            for future in as_completed(fetched):
                future.result()
                progress.advance(bar)
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch_one(context: Any, jar: Jar, folder: Path) -> None:  # noqa: ANN401 - an optional package
    group, artifact, version = jar.coordinate.split(":")
    wanted = context.project(group, artifact).at_version(version).artifact()
    path = _download(wanted, f"or copy the folder {folder} from a machine that has it")
    _verify(jar, path, remedy="a proxy on the way may serve another file; download it again")
    path.replace(folder / jar.file_name)


def _download(wanted: Any, way_out: str) -> Path:  # noqa: ANN401 - an optional package
    failure: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            return Path(wanted.resolve())
        except (OSError, RuntimeError) as exc:  # RuntimeError: no repository has it
            failure = exc
            wanted.cached_path.unlink(missing_ok=True)  # a partial file would count as present
    raise EmbeddedBrokerError(
        f"cannot download {wanted}: {failure}. The first start needs Maven Central: check the "
        f"network and the proxy (HTTPS_PROXY, REQUESTS_CA_BUNDLE), {way_out}"
    ) from failure


def _maven(staging: Path) -> Any:  # noqa: ANN401 - an optional package
    try:
        maven = importlib.import_module("jgo.maven")
    except ModuleNotFoundError as exc:
        raise EmbeddedBrokerError(
            "downloading the embedded broker needs the package jgo; run: pip install jgo"
        ) from exc
    # It checks against the repository's own SHA-1 and only warns; the lock is stricter.
    logging.getLogger("jgo").setLevel(logging.ERROR)
    return maven.MavenContext(repo_cache=staging)
