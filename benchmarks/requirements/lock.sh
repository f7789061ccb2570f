#!/usr/bin/env bash
# Pin the environment that draws the figures anew, with a hash for every distribution.
# `bash benchmarks/requirements/lock.sh --upgrade` moves to the newest releases.
set -euo pipefail
cd "$(dirname "$0")"
uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 \
    --custom-compile-command "bash benchmarks/requirements/lock.sh" plots.in -o plots.txt "$@"
