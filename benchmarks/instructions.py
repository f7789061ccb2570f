"""`./run.sh bench instructions`: machine instructions a record, which no neighbour can disturb.

Each stage of the hot path runs under callgrind twice, for few and for more rounds; the difference
is what the rounds cost. The figures are held against the committed ones.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.hot_path import RECORDS, STAGES

BASELINE: Final = Path(__file__).with_name("instructions.json")
TOLERANCE: Final = 0.05
_FEW, _MORE = 1, 3
_COLLECTED = re.compile(r"Collected : (\d+)")


def main(*, write: bool) -> int:
    """Count, print and compare.

    Args:
        write: Keep the figures as the ones to compare with.

    Returns:
        Exit code: 1 when a stage has risen by more than 5%, 2 when there is no valgrind.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed (Debian: apt-get install valgrind)", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(2) as pool:
        counted = dict(zip(STAGES, pool.map(partial(instructions, valgrind), STAGES), strict=True))
    before = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    known = before.get("stages", {}) if before.get("python") == python else {}
    risen = []
    print(f"{'instructions a record':24}{'now':>10}{'committed':>12}{'change':>9}")
    for stage, figure in counted.items():
        change = figure / known[stage] - 1 if stage in known else None
        shown = "" if change is None else f"{change:+.1%}"
        print(f"{stage:24}{figure:>10,}{known.get(stage, 0) or '-':>12}{shown:>9}")
        if change is not None and change > TOLERANCE:
            risen.append(stage)
    layers = counted["pipeline"] / counted["fused"] - 1
    print(f"layers over the hand-fused loop: {layers:+.1%}")
    print(f"money step of the pipeline: {counted['money'] / counted['pipeline']:.1%}")
    if write:
        BASELINE.write_text(json.dumps({"python": python, "stages": counted}, indent=2) + "\n")
    if risen:
        print(f"risen by more than {TOLERANCE:.0%}: {', '.join(risen)}", file=sys.stderr)
    return int(bool(risen))


def instructions(valgrind: str, stage: str) -> int:
    """Count the instructions of a stage for one record."""
    few, more = (_collected(valgrind, stage, rounds) for rounds in (_FEW, _MORE))
    return round((more - few) / ((_MORE - _FEW) * RECORDS))


def _collected(valgrind: str, stage: str, rounds: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                valgrind, "--tool=callgrind", f"--callgrind-out-file={folder}/out",
                sys.executable, "-m", "benchmarks.hot_path", stage, str(rounds),
            ],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    found = _COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"callgrind of {stage} failed:\n{done.stderr[-2000:]}")
    return int(found.group(1))
