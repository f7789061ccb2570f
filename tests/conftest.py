"""Fixtures of the whole suite: one real broker, started once and only when a test asks for it."""

import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from app.embedded.kafka import EmbeddedKafka

settings.register_profile("dev", max_examples=60, deadline=None)
settings.register_profile("ci", max_examples=500, deadline=None, print_blob=True)
settings.register_profile("long", max_examples=10_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a value so that types are told apart and hostile ones stay short."""
    if not isinstance(val, str | bytes | int | float | Decimal):
        return None
    text = ascii(val)
    return text if len(text) <= 48 else f"{text[:32]}~{zlib.crc32(text.encode()):08x}"


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Apache Kafka that all tests of the session share, each with own topics."""
    data_dir: Path = tmp_path_factory.mktemp("kafka")
    kafka = EmbeddedKafka(data_dir=data_dir, port=0)
    kafka.start()
    try:
        yield kafka.bootstrap
    finally:
        kafka.stop()


@pytest.fixture(scope="session")
def open_dir() -> Iterator[Path]:
    """A folder that every user may enter, for PostgreSQL, which never runs as root."""
    folder = Path(tempfile.mkdtemp(prefix="trade-stream-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    """A command run in this process sets logging up for itself alone."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
