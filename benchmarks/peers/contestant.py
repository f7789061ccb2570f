"""What every contestant shares: its job, its clock, its result; only the standard library."""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

EXIT_CANNOT_RUN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the harness asks for.

    Attributes:
        input: Of a produce job: a msgpack file of keys and values.
        until_end: Stop when the whole group has committed `count`, not after `count` of our own.
        members: How many processes the group has; each reads when it has its share of the
            partitions, has written its pid to the file `ready`, and the file `go` is there.
        positions_file: Where the positions of one of several processes go.
        database_url: Of an empty PostgreSQL database on a unix socket, if trades are to be stored.
    """

    mode: str
    variant: str
    bootstrap: str
    topic: str
    count: int
    partitions: int
    group: str = ""
    input: str = ""
    dlq_topic: str = ""
    positions_topic: str = ""
    dedupe_window: int = 0
    until_end: bool = False
    members: int = 1
    ready: str = ""
    go: str = ""
    positions_file: str = ""
    database_url: str = ""


class Stopwatch:
    """CPU time from just before the client is made, wall time from the first record."""

    def __init__(self) -> None:
        self._cpu_from = time.process_time()
        self._wall_from = 0.0
        self._cpu_s = self._wall_s = 0.0
        self.first_ns = self.last_ns = 0

    def first_record(self) -> None:
        """Note that the first record is in hand, or about to be sent; once is enough."""
        self._wall_from = self._wall_from or time.perf_counter()
        self.first_ns = self.first_ns or time.monotonic_ns()

    def stop(self) -> None:
        """Note that the last commit or record is acknowledged."""
        self._wall_s = time.perf_counter() - self._wall_from
        self.last_ns = time.monotonic_ns()
        self._cpu_s = time.process_time() - self._cpu_from

    def result(self, records: int, versions: Mapping[str, str], **more: object) -> dict[str, Any]:
        """Make the result of a run."""
        return {
            "records": records,
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
            "wall_s": round(self._wall_s, 4),
            "cpu_s": round(self._cpu_s, 4),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "versions": {"python": sys.version.split()[0], **versions},
            **more,
        }


class CannotRunError(Exception):
    """This contestant cannot take part; `str()` of it says why."""


def main(variants: Mapping[tuple[str, str], Callable[[Job], dict[str, Any]]]) -> None:
    """Run the job of the command line and print its result as the last line.

    Args:
        variants: What runs each (mode, variant).
    """
    # Standard output is the result's alone: what a framework prints goes to standard error.
    result_fd = os.dup(1)
    os.dup2(2, 1)
    job = Job(**json.loads(sys.argv[1]))
    run = variants.get((job.mode, job.variant))
    result: dict[str, Any] = {"error": f"there is no variant {job.variant} of {job.mode}"}
    if run is not None:
        try:
            result = run(job)
        except CannotRunError as exc:
            result = {"error": str(exc)}
    os.write(result_fd, json.dumps(result).encode() + b"\n")
    if "error" in result:
        sys.exit(EXIT_CANNOT_RUN)


def positions_digest(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Give the SHA-256 over all positions.

    Args:
        rows: Key, quantity, open cost and realised PnL of each, as plain exact decimals.
    """
    return hashlib.sha256("".join(position_lines(rows)).encode()).hexdigest()


def position_lines(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Give the lines that the digest is made of, in their order."""
    return [f"{' '.join(row)}\n" for row in sorted(rows)]


def load_input(path: str, count: int, decode: Callable[[bytes], Any]) -> list[tuple[bytes, bytes]]:
    """Read the records to produce, repeated in a cycle up to `count`.

    Args:
        path: A msgpack array of [key, value] pairs.
        count: How many to give.
        decode: Of msgpack.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - one line less for every environment
        pairs = [(key, value) for key, value in decode(file.read())]
    return (pairs * (count // len(pairs) + 1))[:count]
