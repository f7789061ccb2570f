"""`./run.sh bench`: trades per second in and out, with the plain client calls, on a real Kafka.

Each round makes fresh topics and a fresh group on one embedded broker, publishes a backlog with
`app/producer.py`, drains it with `app/consumer.py`, and counts only if every record has its fate.
Sink: positions, written to Kafka and acknowledged before offsets are committed.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.embedded.kafka import EmbeddedKafka

ROOT = Path(__file__).parents[1]


def calibrate() -> float:
    """Give the time of a fixed loop in ms: how fast the machine is at this moment."""
    started = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number
    return round((time.perf_counter() - started) * 1000, 1)


def run_program(script: str, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run one program of the application; give its JSON summary and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout), "cpu_s": cpu_s}


def measure(bootstrap: str, round_: int, count: int) -> dict[str, float]:
    """Publish and drain once on fresh topics."""
    name = f"bench-{os.getpid()}-{round_}"
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "KAFKA_TOPIC": f"{name}-events",
        "DLQ_TOPIC": f"{name}-dlq",
        "POSITIONS_TOPIC": f"{name}-positions",
        "KAFKA_GROUP_ID": name,
        "LOG_LEVEL": "WARNING",
    }
    calibration_ms = calibrate()
    arguments = ["--count", str(count), "--rate", "0", "--seed", str(round_)]
    produced = run_program("app/producer.py", arguments, environment)
    consumed = run_program("app/consumer.py", ["--until-caught-up"], environment)
    fates = consumed["fates"]
    assert produced["produced"] == count, produced
    assert fates == {"booked": count}, fates  # no figure without its correctness
    return {
        "calibration_ms": calibration_ms,
        "produce_per_s": produced["produce_per_s"],
        "produce_cpu_s_per_million": round(produced["cpu_s"] / count * 1e6, 1),
        "consume_per_s": consumed["consume_per_s"],
        "consume_cpu_s_per_million": round(consumed["cpu_s"] / count * 1e6, 1),
    }


def main() -> None:
    """Measure some rounds; print each and their medians, or one JSON object."""
    parser = argparse.ArgumentParser(prog="./run.sh bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=300_000, help="trades a round")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 100,000 trades")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.count = 3, 100_000
    rounds = []
    with (
        tempfile.TemporaryDirectory() as data_dir,
        EmbeddedKafka(data_dir=Path(data_dir) / "kafka", port=0) as kafka,
    ):
        for round_ in range(options.rounds):
            figures = measure(kafka.bootstrap, round_, options.count)
            rounds.append(figures)
            print(json.dumps(figures), file=sys.stderr, flush=True)
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    result = {
        "count": options.count,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "sink": "positions in Kafka",
        "median": medians,
        "rounds": rounds,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in medians.items():
        print(f"{name:28} {value:>12,}")


if __name__ == "__main__":
    main()
