#!/usr/bin/env bash
# Write the requirement files anew from pyproject.toml, with a hash for every distribution.
# `bash requirements/lock.sh --upgrade` moves every pin to its newest release.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 \
        --custom-compile-command "bash requirements/lock.sh" pyproject.toml "$@"
}
compile --extra broker --extra parquet --extra postgres --group test -o requirements.txt "${@}"
compile -c requirements.txt -o requirements/runtime.txt
compile --group dev -c requirements.txt -o requirements/dev.txt
compile --group fuzz -c requirements.txt -o requirements/fuzz.txt
compile --extra clickhouse -c requirements.txt -o requirements/clickhouse.txt
compile --extra calendars -c requirements.txt -o requirements/calendars.txt
compile --group oracles -c requirements.txt -c requirements/dev.txt -o requirements/oracles.txt
