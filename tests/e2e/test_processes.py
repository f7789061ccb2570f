"""The command line and the programs as users run them, against a real broker."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from app.embedded.kafka import EmbeddedKafka
from app.simulator import POISON
from tests.e2e.harness import PARTITIONS, World, admin_create, trade, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def world(kafka_bootstrap: str) -> Iterator[World]:
    """A world of one test."""
    made = World(kafka_bootstrap)
    yield made
    made.close()


def good(count: int, *, start: int = 0) -> list[tuple[bytes | None, bytes | None]]:
    """Make good trades in a few positions, without keys."""
    return [
        (
            None,
            trade(
                number,
                symbol=f"S{number % 7}",
                side="SELL" if number % 3 else "BUY",
                price=f"{100 + number % 13}.25",
                quantity="10",
            ),
        )
        for number in range(start, start + count)
    ]


def test_produce_consume_positions_and_dead_letters_add_up(world: World) -> None:
    """The commands tell one story: produced = booked + dead-lettered, each reason as poisoned."""
    produced = json.loads(
        world.run("produce", "--count", "3000", "--rate", "0", "--poison", "0.05", "--json")
    )
    consumed = world.consume_all()
    letters = json.loads(world.run("dlq", "list", "--counts", "--json"))
    assert produced["produced"] == 3000
    assert produced["poison"].keys() == POISON.keys()
    assert consumed["reasons"] == produced["poison"]
    assert consumed["fates"]["booked"] == 3000 - sum(produced["poison"].values())
    assert {row["reason"]: row["count"] for row in letters} == produced["poison"]
    assert sum(row["lag"] for row in json.loads(world.run("lag", "--json"))) == 0
    row = world.positions()[0]
    assert row.keys() == {
        "book", "symbol", "quantity", "average_price", "realized_pnl", "unrealized_pnl", "mark",
        "fees", "source",
    }  # fmt: skip
    assert all(isinstance(row[name], str) for name in row if name != "source")


def test_dlq_show_gives_the_original_bytes(world: World) -> None:
    """One dead letter can be looked at whole: key, value, reason and origin."""
    world.create_topics()
    world.publish([(b"k", b'{"trade_id": "BAD"}')])
    world.consume_all()
    (row,) = json.loads(world.run("dlq", "list", "--json"))
    assert row["reason"] == "symbol-missing"
    shown = json.loads(
        world.run("dlq", "show", str(row["partition"]), str(row["offset"]), "--json")
    )
    assert (shown["key"], shown["value"]) == ("k", '{"trade_id": "BAD"}')
    assert shown["source_topic"] == world.events
    world.run("dlq", "show", "0", "999999", exit_code=3)


def test_sigterm_under_load_ends_in_time_with_everything_committed(world: World) -> None:
    """A stopped consumer finishes what it has in hand; the next one goes on without a repeat."""
    world.create_topics()
    consumer = world.start("app/consumer.py", "--json")
    world.publish(good(5000))
    wait_for(lambda: world.progress()[0] > 0, "the first commits")
    stopped_at = time.monotonic()
    consumer.send_signal(signal.SIGTERM)
    output, _ = consumer.communicate(timeout=25)
    assert time.monotonic() - stopped_at < 20
    assert consumer.returncode == 0
    first = json.loads(output)["fates"]
    second = world.consume_all()
    assert second["already_applied"] == 0
    total = sum(first.values()) + sum(second["fates"].values())
    rekeyed = first.get("rekeyed", 0) + second["fates"].get("rekeyed", 0)
    assert total == 5000 + rekeyed
    world.check()


@pytest.mark.timeout(180)
def test_two_workers_and_rebalances_keep_every_position_exact(world: World) -> None:
    """Partitions move between members while records arrive; the state moves with them."""
    world.create_topics()
    world.publish(good(1500))
    first = world.start("app/consumer.py")
    wait_for(lambda: world.progress()[0] > 0, "the first member consumes")
    second = world.start("app/consumer.py")
    world.publish(good(1500, start=1500))
    wait_for(lambda: world.lag() == 0, "both are through")
    first.send_signal(signal.SIGTERM)
    world.publish(good(1500, start=3000))
    assert first.wait(25) == 0
    wait_for(lambda: world.lag() == 0, "the second goes on alone")
    second.send_signal(signal.SIGTERM)
    assert second.wait(25) == 0
    world.check()


@pytest.mark.timeout(180)
def test_supervised_workers_drain_the_topic_and_one_that_dies_is_restarted(world: World) -> None:
    """`consume --workers 2` shares the partitions, survives a SIGKILL of a worker, and sums up.

    It is stopped as service managers do it: by a signal to each process of the service.
    """
    world.create_topics()
    supervisor = world.start("-m", "app", "consume", "--workers", "2", "--json")
    world.publish(good(1000))
    wait_for(lambda: world.lag() == 0, "the workers are through")
    victim = _children(supervisor.pid)[0]
    subprocess.run(["kill", "-9", str(victim)], check=True)
    world.publish(good(1000, start=1000))
    wait_for(lambda: world.lag() == 0, "the rest is consumed")
    wait_for(lambda: len(_children(supervisor.pid)) == 2, "the worker is back")
    for pid in (supervisor.pid, *_children(supervisor.pid)):
        os.kill(pid, signal.SIGTERM)
    output, _ = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 0
    sums = json.loads(output)
    assert sums["restarts"] == 1
    assert sums["fates"]["booked"] >= 1000  # of the worker that was not killed, at least
    world.check()


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def test_producer_stopped_by_ctrl_c_flushes_what_was_accepted(world: World) -> None:
    """Ctrl-C ends the producer cleanly, and its count is what the log holds."""
    world.create_topics()
    producer = world.start("app/producer.py", "--rate", "500", "--json")
    wait_for(lambda: len(world.read(world.events)) > 100, "some trades")
    producer.send_signal(signal.SIGINT)
    output, _ = producer.communicate(timeout=25)
    assert producer.returncode == 0
    summary = json.loads(output)
    assert summary["produced"] == len(world.read(world.events))
    assert summary["not_sent"] == summary["unknown"] == 0


def test_no_broker_ends_with_the_address_and_the_command_that_starts_one(tmp_path: Path) -> None:
    """Without a broker the error names where it looked and what to do, after the timeout given."""
    world = World("127.0.0.1:1")
    started = world.start("app/consumer.py", "--connect-timeout", "1")
    output, errors = started.communicate(timeout=60)
    assert started.returncode == 1
    assert output == ""
    last = errors.strip().splitlines()[-1]
    assert "127.0.0.1:1" in last
    assert "trade-stream broker start" in last


def test_wrong_settings_end_with_code_2_and_every_problem(world: World) -> None:
    """All wrong values are named at once, before anything is connected."""
    started = world.start("app/consumer.py", KAFKA_PARTITIONS="many", LOG_LEVEL="loud")
    _, errors = started.communicate(timeout=30)
    assert started.returncode == 2
    assert "KAFKA_PARTITIONS" in errors
    assert "LOG_LEVEL" in errors


def test_topics_that_differ_are_named_with_their_fix(world: World) -> None:
    """A positions topic that is not compacted, or has other partitions, is refused by name."""
    admin_create(world.bootstrap, world.events, PARTITIONS)
    admin_create(world.bootstrap, f"{world.name}-positions", PARTITIONS + 1)
    problems = json.loads(world.run("topics", "check", "--json", exit_code=1))
    text = json.dumps(problems)
    assert "cleanup.policy=compact" in text
    assert f"{world.name}-positions has {PARTITIONS + 1} partitions" in text
    assert f"{world.dead_letters} is missing" in text
    diagnosis = world.run("doctor", exit_code=1)
    assert "topics" in diagnosis


def test_topics_are_not_created_where_that_is_off(world: World) -> None:
    """KAFKA_CREATE_TOPICS=false ends with a clear error that names the way out."""
    started = world.start("app/producer.py", "--count", "1", KAFKA_CREATE_TOPICS="false")
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "trade-stream topics init" in errors


def test_positions_of_another_group_stop_the_consumer(world: World) -> None:
    """A second group on the same positions topic is told to set POSITIONS_TOPIC."""
    world.create_topics()
    world.publish(good(50))
    world.consume_all()
    stranger = world.start("app/consumer.py", "--until-caught-up", KAFKA_GROUP_ID="stranger")
    _, errors = stranger.communicate(timeout=60)
    assert stranger.returncode == 1
    assert "POSITIONS_TOPIC" in errors
    assert "POSITIONS_TOPIC" in world.run("doctor", exit_code=1, KAFKA_GROUP_ID="stranger")


def test_positions_that_nobody_has_are_none_in_every_form(world: World) -> None:
    """Also of a topic without any, and without a ledger."""
    world.create_topics()
    assert world.run("positions", "--csv") == ""
    assert world.run("positions", "--json") == "[]\n"
    assert world.run("positions") == "no positions\n"


@pytest.mark.timeout(120)
def test_lost_offsets_are_a_gap_until_accepted_and_nothing_is_booked_twice(world: World) -> None:
    """A group whose offsets vanished stops with the gap; `gap accept` replays without effect."""
    world.create_topics()
    world.publish(good(300))
    world.consume_all()
    before = world.positions()
    _delete_offsets(world)
    summary = json.loads(world.run("consume", "--until-caught-up", "--json", exit_code=4))
    assert all("gap accept" in why for why in summary["stopped_partitions"].values())
    assert "offsets" in world.run("doctor", exit_code=1)
    assert "goes on at offset 0" in world.run("gap", "accept")
    assert world.consume_all()["already_applied"] > 0
    assert world.positions() == before
    world.check()
    assert "all is well" in world.run("doctor")


def _delete_offsets(world: World) -> None:
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    wait_for(lambda: _deleted(admin, world.name), "the group is empty and deleted")


def _deleted(admin: AdminClient, group: str) -> bool:
    try:
        admin.delete_consumer_groups([group])[group].result(10)
    except KafkaException:
        return False
    return True


def test_rebuild_makes_damaged_positions_exact_again(world: World) -> None:
    """A position written by a stranger's hand is overruled by `positions rebuild`."""
    world.create_topics()
    world.publish(good(400))
    world.consume_all()
    good_rows = world.positions()
    damaged = json.loads(
        next(
            m.value or b""
            for m in world.read(f"{world.name}-positions")
            if b'"S1"' in (m.value or b"")
        )
    )
    partition = damaged["source"]["partition"]
    damaged["source"]["offset"], damaged["quantity"] = damaged["source"]["offset"] + 1000, "1"
    producer = Producer({"bootstrap.servers": world.bootstrap})
    producer.produce(
        f"{world.name}-positions", json.dumps(damaged).encode(), b"S1", partition=partition
    )
    assert producer.flush(20) == 0
    assert world.positions() != good_rows
    world.run("positions", "rebuild", "--yes")
    assert world.positions() == good_rows
    world.publish(good(100, start=400))
    world.consume_all()
    world.check()


@pytest.mark.timeout(180)
def test_broker_restart_while_consuming_loses_nothing(tmp_path: Path) -> None:
    """The consumer waits while its broker is away, and goes on when it is back."""
    kafka = EmbeddedKafka(data_dir=tmp_path / "kafka", port=0)
    kafka.start()
    world = World(kafka.bootstrap)
    try:
        world.create_topics()
        consumer = world.start("app/consumer.py")
        world.publish(good(1000))
        wait_for(lambda: world.progress()[0] > 0, "the consumer is at work")
        kafka.stop()
        kafka.start()
        world.publish(good(1000, start=1000))
        wait_for(lambda: world.lag() == 0, "the consumer goes on")
        assert consumer.poll() is None
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(25) == 0
        world.check()
    finally:
        world.close()
        kafka.stop()


@pytest.mark.timeout(120)
def test_demo_on_a_given_broker_uses_topics_of_its_own_and_removes_them(world: World) -> None:
    """Where a broker is named, the demo leaves nobody's topics touched and none of its own."""
    result = json.loads(
        world.run("demo", "--count", "5000", "--poison", "0.02", "--seed", "3", "--json")
    )
    assert result["produced"] == 5000 == result["consumed"] + result["dead_lettered"]
    assert result["lag"] == 0
    assert result["cash_invariant_ok"] is True
    assert result["problems"] == []
    topics = AdminClient({"bootstrap.servers": world.bootstrap}).list_topics(timeout=10).topics
    assert not [name for name in topics if name.startswith("trade-demo-")]


def test_demo_stays_out_of_a_ledger_that_is_not_its_own(world: World) -> None:
    """It would fill it with simulated trades, and with the offsets of a topic that goes."""
    process = world.start("-m", "app", "demo", DATABASE_URL="postgresql://127.0.0.1:1/ledger")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "DATABASE_URL: the demo simulates trades" in errors


def test_config_show_names_every_setting_and_hides_secrets(world: World) -> None:
    """Each variable is listed with its value and source; a password never is."""
    secret = "a-canary"
    rows = json.loads(world.run("config", "show", "--json", KAFKA_SASL_PASSWORD=secret))
    by_name = {row["name"]: row for row in rows}
    assert by_name["KAFKA_TOPIC"]["value"] == world.events
    assert by_name["KAFKA_TOPIC"]["source"] == "environment"
    assert secret not in json.dumps(rows)


def test_example_with_an_embedded_consumer_runs(world: World) -> None:
    """The example program consumes what is there and shows the largest positions."""
    world.create_topics()
    world.publish(good(70))
    example = world.start("examples/own_consumer.py")
    output, errors = example.communicate(timeout=60)
    assert example.returncode == 0, errors[-2000:]
    assert "70 booked" in output
    assert "S0" in output


def test_stop_while_waiting_for_a_broker_ends_at_once() -> None:
    """SIGTERM before anything is connected needs no grace time; exit code 130."""
    world = World("127.0.0.1:1")
    started = world.start("app/consumer.py", "--connect-timeout", "60")
    assert started.stderr is not None
    assert "waiting_to_connect" in started.stderr.readline()
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=10)
    assert started.returncode == 130
