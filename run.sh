#!/usr/bin/env bash
# Set the project up and run it.
#
#   ./run.sh          a broker of its own, 100,000 trades, the result (options of `demo` may follow)
#   ./run.sh test     all tests (options of pytest may follow)
#   ./run.sh check    format, lint, types, layers
#   ./run.sh up       keep a broker and a consumer running
#   ./run.sh bench    the benchmarks
#   ./run.sh faults   kill, cut and fill what can be, and prove that nothing is lost; --list, --quick
#   ./run.sh fuzz     hostile inputs by the million (--runs, --seconds, --seed; --money for fills)
#   ./run.sh oracles  our PnL beside that of other people's libraries, which are installed for it
#   ./run.sh clickhouse  install ClickHouse's client and engine (900 MB); `test` then tries the copy too
#   ./run.sh …        anything else is a command of trade-stream; ./run.sh --help lists them
set -euo pipefail
cd "$(dirname "$0")"

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 to 3.14 is needed and none was found. Install it (Debian: apt-get install" \
        "python3 python3-venv; macOS: brew install python), or name one: PYTHON=/path/to/python $0"
}

# Install a requirements file once for each content of it.
install() {
    local stamp=".venv/.installed-$(basename "$1" .txt)"
    if [ ! -x .venv/bin/python ]; then
        local python
        python=$(find_python)
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "this Python has no venv. Install it (Debian: apt-get install python3-venv)"
        echo "setting up .venv" >&2
        "$python" -m venv .venv
    fi
    if ! cmp -s "$1" "$stamp"; then
        echo "installing $1" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" ||
            fail "the installation failed: is a package index reachable? Run $0 again to go on"
        cp "$1" "$stamp"
    fi
}

command=${1:-demo}
[ $# -gt 0 ] && shift
case "$command" in
-*)
    # `./run.sh --count 1000` is the demo with options; `--help` is everybody's.
    set -- "$command" "$@"
    command=demo
    [ "$1" = --help ] && command=help
    ;;
esac

install requirements.txt
case "$command" in
test)
    rm -f .coverage .coverage.*
    .venv/bin/python -m coverage run -m pytest "$@"
    .venv/bin/python -m coverage combine --quiet
    if [ $# -eq 0 ]; then
        .venv/bin/python -m coverage report --fail-under=90 --skip-covered
        .venv/bin/python -m coverage report --fail-under=100 \
            --include="app/models.py,app/money.py,app/pnl/*.py,app/services.py,app/codec.py"
    fi
    ;;
check)
    install requirements/dev.txt
    .venv/bin/ruff format --check .
    .venv/bin/ruff check .
    .venv/bin/mypy
    .venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports
    ;;
bench) exec .venv/bin/python -m benchmarks "$@" ;;
faults) exec .venv/bin/python -m tests.faults "$@" ;;
oracles)
    install requirements/oracles.txt
    .venv/bin/python -m pytest tests/test_pnl_oracles.py "$@"
    ;;
clickhouse)
    install requirements/clickhouse.txt
    echo "installed; the tests of the copy: ./run.sh test tests/clickhouse tests/e2e/test_clickhouse.py"
    ;;
fuzz)
    (install requirements/fuzz.txt) || echo "going on without it" >&2
    exec .venv/bin/python -m tests.fuzz "$@"
    ;;
help) exec .venv/bin/python -m app --help ;;
*) exec .venv/bin/python -m app "$command" "$@" ;;
esac
