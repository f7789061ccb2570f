"""The machine a figure was made on: how fast it is at this moment, and what is installed on it."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any, Final

from app.embedded.jars import read_lock

REFERENCE_MS: Final = 40.0
"""Calibration of the machine that scaled figures are stated for.

The targets were set on one where a pure-Python murmur2 of 16 bytes took 3,323 ns. Where this loop
takes 30 ms, that takes 2,550 ns.
"""
_LIBRARIES: Final = ("aiokafka", "cramjam", "msgspec")
_LOOPS: Final = 5


def calibrate() -> float:
    """Give the time of a fixed pure-Python loop in ms: its fastest part, times their number.

    A short interruption is forgiven; a machine that is slow for longer shows.
    """
    parts = []
    for _ in range(_LOOPS):
        started = time.perf_counter()
        total = 0
        for number in range(1_000_000 // _LOOPS):
            total += number
        parts.append(time.perf_counter() - started)
    return min(parts) * _LOOPS * 1000


def cpu_seconds(pid: int) -> float:
    """Give the user and system time of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Give what a running process holds of the memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def describe() -> dict[str, Any]:
    """Describe machine and versions for the report."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "kafka": read_lock().kafka_version,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "calibration_ms": round(calibrate(), 1),
        "reference_ms": REFERENCE_MS,
    }


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
