"""Consumers killed at named points and at any time: positions still equal the independent model."""

import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.e2e.harness import World, kill, trade, wait_for
from tests.faults.points import POINTS

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SYMBOLS = [f"S{n}" for n in range(40)]
BOOKS = ("", "ALPHA", "BETA")
_NTH = {
    "in-assign": "1",
    "dead-letters-only": "1",
    "in-revoke": "1",
}  # the others die in the midst of work


def records(seed: int, count: int) -> list[tuple[bytes | None, bytes | None]]:
    """Make records of strangers: no key, the position key, or another key; some are poison."""
    draw = random.Random(seed)
    made: list[tuple[bytes | None, bytes | None]] = []
    for number in range(count):
        if draw.random() < 0.03:
            made.append((b"poison", draw.choice([b"{", b"[]", b'{"trade_id":"BAD"}', b"\xff"])))
            continue
        symbol, book = draw.choice(SYMBOLS), draw.choice(BOOKS)
        value = trade(
            seed * 100_000 + number,
            symbol=symbol,
            book=book or None,
            side=draw.choice(["BUY", "SELL"]),
            price=f"{draw.randint(1, 99999) / 100:.2f}",
            quantity=str(draw.randint(1, 300)),
        )
        key = draw.choice([None, f"{book}|{symbol}" if book else symbol, f"order-{number}"])
        made.append((None if key is None else key.encode(), value))
    return made


@pytest.fixture
def worlds(kafka_bootstrap: str) -> Iterator[dict[str, World]]:
    """One world for each point of death."""
    made = {point: World(kafka_bootstrap) for point in POINTS}
    yield made
    for world in made.values():
        world.close()


def _die_and_recover(point: str, world: World) -> None:
    world.create_topics()
    world.publish(records(hash(point) % 1000, 1500))
    dying = world.start("-m", "tests.faults.worker", "--at", point, "--nth", _NTH.get(point, "2"))
    if point == "in-revoke":
        wait_for(lambda: world.lag() == 0, "the first member consumes")
        world.start("app/consumer.py", "--until-caught-up")  # its joining revokes the first one's
    wait_for(lambda: dying.poll() is not None, f"death {point}", timeout_s=90)
    assert dying.returncode == -signal.SIGKILL, (point, dying.communicate()[1][-2000:])
    world.publish(records(hash(point) % 1000 + 1, 500))
    world.consume_all()
    world.check()


@pytest.mark.timeout(240)
def test_sigkill_at_every_point_leaves_exact_positions(worlds: dict[str, World]) -> None:
    """Wherever the consumer dies, its successor ends with every record in exactly one fate."""
    with ThreadPoolExecutor(3) as pool:
        deaths = {p: pool.submit(_die_and_recover, p, world) for p, world in worlds.items()}
    for point, death in deaths.items():
        assert death.exception() is None, f"{point}: {death.exception()!r}"


def _has_reached(world: World, goal: int) -> bool:
    done, left = world.progress()
    return done >= goal or not left


@pytest.mark.timeout(180)
def test_sigkill_at_random_times_while_records_arrive(kafka_bootstrap: str) -> None:
    """Kills at arbitrary moments under load lose nothing and book nothing twice."""
    world = World(kafka_bootstrap)
    try:
        world.create_topics()
        draw = random.Random(20260302)
        for round_ in range(3):
            consumer = world.start("app/consumer.py")
            world.publish(records(round_, 2000))
            goal = world.progress()[0] + draw.randint(1, 1500)
            wait_for(partial(_has_reached, world, goal), "some progress")
            kill(consumer)
        world.consume_all()
        world.check()
    finally:
        world.close()
