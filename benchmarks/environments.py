"""One pinned environment for each peer of the benchmarks, made once and kept in the user's cache.

An environment is built under a name of its own and renamed when it is whole, by one process at a
time: a build that was cut off leaves rubbish that the next one removes, never half an environment.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from app.embedded.jars import default_cache_dir
from app.embedded.process import exclusive

REQUIREMENTS = Path(__file__).parent / "peers" / "requirements"
_BUILD_TIMEOUT_S = 1200.0
_HASH_LENGTH = 12
_ERROR_LINES = 5


class EnvironmentBuildError(Exception):
    """A peer's environment could not be made; `str()` of it says why and what to do."""


def environment(name: str) -> Path:
    """Give the Python of a peer's environment, after building it where it is not there yet.

    Args:
        name: Of the peer's script; one without a requirements file runs in this environment.

    Raises:
        EnvironmentBuildError: The packages could not be fetched or installed.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    folder = default_cache_dir() / "benchmarks"
    home = folder / f"{name}-{_fingerprint(requirements)}"
    if not home.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / f"{name}.lock"
        with exclusive(lock, timeout_s=_BUILD_TIMEOUT_S, on_wait=lambda: _tell(f"{name}: waiting")):
            if not home.exists():
                _build(name, requirements, home)
    return _python(home)


def _fingerprint(requirements: Path) -> str:
    # The interpreter is part of it: what was compiled for one version is of no use to another.
    content = f"{sys.version_info[:2]}\n".encode() + requirements.read_bytes()
    return hashlib.sha256(content).hexdigest()[:_HASH_LENGTH]


def _build(name: str, requirements: Path, home: Path) -> None:
    prefix = f"building-{name}-"
    for rubbish in home.parent.glob(f"{prefix}*"):  # we hold the lock: nobody builds in it
        shutil.rmtree(rubbish)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=home.parent) as staging:
        building = Path(staging) / "environment"
        _tell(f"{name}: making an environment, once, in {home}")
        _run(name, [sys.executable, "-m", "venv", str(building)])
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
        _run(name, [str(_python(building)), *install])
        building.rename(home)
    _tell(f"{name}: ready")


def _python(home: Path) -> Path:
    return home / "bin" / "python"


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_ERROR_LINES:])
    raise EnvironmentBuildError(
        f"cannot make the environment of {name}: is a package index reachable, directly or through "
        f"a proxy (HTTPS_PROXY, PIP_INDEX_URL, PIP_CERT)? What was made so far is removed; "
        f"try again. It said:\n{said}"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    for peer in sys.argv[1:] or sorted(path.stem for path in REQUIREMENTS.glob("*.txt")):
        print(environment(peer))
