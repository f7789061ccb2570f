#!/usr/bin/env bash
# Pin every peer's environment anew: NAME.in to NAME.txt, with a hash for every distribution.
# `bash benchmarks/peers/requirements/lock.sh --upgrade` moves to the newest releases.
set -euo pipefail
cd "$(dirname "$0")"
for name in *.in; do
    # Peers that run our own pipeline code run it on the project's versions of its dependencies.
    constraint=()
    grep -q '^msgspec$' "$name" && constraint=(-c ../../../requirements.txt)
    uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 \
        --custom-compile-command "bash benchmarks/peers/requirements/lock.sh" \
        "${constraint[@]}" "$name" -o "${name%.in}.txt" "$@"
done
