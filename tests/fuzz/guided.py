"""Inputs led by what they reach in the code, which is instrumented as this module imports it."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final, Never

import atheris

with atheris.instrument_imports(include=["app"]):
    import app.services  # noqa: F401 - imported here, so that it is instrumented

from tests.fuzz.campaign import KEPT_IN, Campaign
from tests.fuzz.mutator import SEEDS, mutate

_MAX_BYTES: Final = 4096  # some ten trades; it would else spend its time on the longest lists
_NEVER_S: Final = 10**6  # a hang is found by the CPU time of an input, not by the clock on the wall


def guided(runs: int, *, seconds: float, seed: int) -> Never:
    """Let libFuzzer choose the inputs; it has no way back, so the process ends with the report."""
    campaign = Campaign("atheris, led by coverage", runs=runs, seconds=seconds, seed=seed)
    KEPT_IN.mkdir(parents=True, exist_ok=True)
    found = Path(tempfile.mkdtemp(prefix="trade-stream-fuzz-"))
    small = [data for data in SEEDS if len(data) <= _MAX_BYTES]
    for number, data in enumerate(small):
        (found / f"seed-{number:04}").write_bytes(data)

    def run(data: bytes) -> None:
        campaign.run(data)
        if campaign.is_over:
            new = sum(1 for _ in found.iterdir()) - len(small)
            print(f"{campaign.report()}\n{new:,} inputs reached something new", flush=True)
            shutil.rmtree(found)
            os._exit(1 if campaign.failures else 0)

    def change(data: bytes, max_size: int, change_seed: int) -> bytes:
        if change_seed % 2:
            return mutate(data, change_seed, max_size=max_size)
        # The other half is for its own changes, which know what was compared with what.
        changed: bytes = atheris.Mutate(data, max_size)
        return changed

    for data in SEEDS:
        if len(data) > _MAX_BYTES:
            run(data)
    options = [f"-max_len={_MAX_BYTES}", f"-seed={seed}", f"-timeout={_NEVER_S}"]
    options += ["-len_control=0", "-verbosity=0", f"-artifact_prefix={KEPT_IN}/", str(found)]
    atheris.Setup([sys.argv[0], *options], run, custom_mutator=change)
    atheris.Fuzz()
    raise AssertionError("libFuzzer came back")
