#!/usr/bin/env bash
# Build the image and run it, without a Docker engine: buildah builds it on a base made by
# debootstrap, and producer and consumer run in it against the embedded broker.
#
# Needs root, Debian's packages buildah and debootstrap (installed if they are missing), and
# Python's package index. BASE_IMAGE=… uses another base than the one made here.
set -euo pipefail
cd "$(dirname "$0")/.."

image=localhost/trade-stream:check
base=${BASE_IMAGE:-localhost/trade-stream-base:bookworm}
trades=2000
work=$(mktemp -d)
containers=()
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

clean_up() {
    local container
    for container in "${containers[@]}"; do buildah rm "$container" >/dev/null 2>&1 || true; done
    .venv/bin/python -m app broker stop --data-dir "$work/kafka" || true
    rm -rf "$work"
}
trap clean_up EXIT

if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap
fi
[ -x .venv/bin/python ] || ./run.sh version

if [ -z "${BASE_IMAGE:-}" ] && ! buildah images "$base" >/dev/null 2>&1; then
    echo "== base image"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
        bookworm "$work/root" >"$work/debootstrap.log" || { tail "$work/debootstrap.log"; exit 1; }
    ln -sf python3 "$work/root/usr/bin/python"
    container=$(buildah from scratch)
    containers+=("$container")
    buildah add --quiet "$container" "$work/root" / >/dev/null
    buildah commit --quiet "$container" "$base" >/dev/null
    rm -rf "$work/root"
fi

echo "== image"
# A machine behind its own certificate authority says so to pip with PIP_CERT.
certificates=()
if [ -n "${PIP_CERT:-}" ]; then
    certificates=(-v "$PIP_CERT:$PIP_CERT:ro" --env "PIP_CERT=$PIP_CERT")
fi
buildah bud --quiet --network host "${certificates[@]}" --build-arg "BASE_IMAGE=$base" -t "$image" .
buildah inspect --type image --format '{{.OCIv1.Config.User}} {{.OCIv1.Config.Cmd}}' "$image"

echo "== broker"
.venv/bin/python -m app broker start --data-dir "$work/kafka" --port 0
bootstrap=$(.venv/bin/python -m app broker status --data-dir "$work/kafka" --json |
    .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["bootstrap"])')

in_image() {
    local container
    container=$(buildah from "$image")
    containers+=("$container")
    buildah run --network host --user 10001 --env "KAFKA_BOOTSTRAP_SERVERS=$bootstrap" \
        "$container" -- "$@"
}

echo "== producer in the image"
in_image python app/producer.py --count "$trades" --rate 0 --json | tee "$work/produced.json"
echo "== consumer in the image"
in_image python app/consumer.py --until-caught-up --json | tee "$work/consumed.json"
echo "== check"
in_image python -c 'import os, sys; sys.exit(os.getuid() == 0)'
in_image python -c 'import os, tempfile; tempfile.TemporaryFile(dir=os.environ["QUARANTINE_DIR"])'
.venv/bin/python - "$work" "$trades" <<'P'
import json, pathlib, sys

work, trades = pathlib.Path(sys.argv[1]), int(sys.argv[2])
produced = json.loads((work / "produced.json").read_text())
consumed = json.loads((work / "consumed.json").read_text())
assert produced["produced"] == trades, produced
assert consumed["fates"] == {"booked": trades}, consumed
print(f"the image works: {trades} trades produced and booked in it")
P
