"""Settings: bounds, all problems at once, and no secret in anything that is shown."""

import json
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.config import (
    KeyMismatch,
    OnGap,
    SecurityProtocol,
    Settings,
    child_environment,
    data_home,
    describe,
    is_set,
    misspelt_names,
)
from app.errors import ConfigError

SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_USERNAME": "desk",
    "KAFKA_SASL_PASSWORD": "hunter2",
}

SASL_FIELDS = {name.lower(): value for name, value in SASL.items()}


def problems_of(**environ: str) -> list[str]:
    """Give the lines that an environment is refused with."""
    with pytest.raises(ConfigError) as refused:
        Settings.from_env(environ)
    assert str(refused.value) == "\n".join(refused.value.problems)
    return refused.value.problems


def test_empty_environment_gives_the_documented_defaults() -> None:
    """A local broker, our topic names, our group."""
    settings = Settings.from_env({})
    assert settings.kafka_bootstrap_servers == "localhost:9092"
    assert settings.kafka_topic == "trade-events"
    assert settings.dlq_topic == "dead-letter-trade-events"
    assert settings.positions_topic == "trade-positions"
    assert settings.kafka_group_id == "risk-team-consumer"
    assert settings.kafka_partitions == 8
    assert settings.kafka_create_topics
    assert not settings.high_volume
    assert settings.kafka_security_protocol is SecurityProtocol.PLAINTEXT
    assert settings.key_mismatch is KeyMismatch.REKEY
    assert settings.on_gap is OnGap.STOP
    assert settings.database_url is None


def test_given_environment_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process has in its own environment does not leak into a given one."""
    monkeypatch.setenv("KAFKA_TOPIC", "of-the-process")
    monkeypatch.setenv("HIGH_VOLUME", "perhaps")
    assert Settings.from_env({}).kafka_topic == "trade-events"
    assert Settings().kafka_topic == "trade-events"
    with pytest.raises(ConfigError, match="HIGH_VOLUME"):
        Settings.from_env()
    monkeypatch.setenv("HIGH_VOLUME", "true")
    assert Settings.from_env().kafka_topic == "of-the-process"


def test_values_are_read_from_text() -> None:
    """Names in any case, values with blanks around them, and words in lower case are fine."""
    settings = Settings.from_env(
        {
            "kafka_topic": " trades.v1 ",
            "HIGH_VOLUME": "true",
            "LOG_LEVEL": "debug",
            "KEY_MISMATCH": "dead-letter",
            "ON_GAP": "continue",
            "COMMIT_INTERVAL_MS": "250",
            "SEND_DEADLINE_S": "2.5",
            "KAFKA_PORT": "tcp://10.0.0.1:9092",
        }
    )
    assert settings.kafka_topic == "trades.v1"
    assert settings.high_volume
    assert settings.log_level == "DEBUG"
    assert settings.key_mismatch is KeyMismatch.DEAD_LETTER
    assert settings.on_gap is OnGap.CONTINUE
    assert settings.commit_interval_ms == 250
    assert settings.send_deadline_s == 2.5


def test_books_by_fifo_are_names_with_commas() -> None:
    """Blanks around them are not theirs; and without the setting there are none."""
    ledger = {"DATABASE_URL": "embedded"}
    assert Settings.from_env({}).books_by_fifo == frozenset()
    settings = Settings.from_env(ledger | {"FIFO_BOOKS": " EQ , tax book,B|1"})
    assert settings.books_by_fifo == {"EQ", "tax book", "B|1"}
    assert Settings.from_env(ledger | {"FIFO_BOOKS": "*"}).books_by_fifo == {"*"}
    (problem,) = problems_of(DATABASE_URL="embedded", FIFO_BOOKS="EQ,,FX")
    assert problem.startswith("FIFO_BOOKS: must be names of books")


@pytest.mark.parametrize(
    "more", [{}, {"DATABASE_URL": "embedded", "IDENTITY": "window"}], ids=["no ledger", "window"]
)
def test_books_by_fifo_need_a_ledger_that_knows_every_trade(more: dict[str, str]) -> None:
    """Nothing else has the lots, or the fills to make them of."""
    (problem,) = problems_of(FIFO_BOOKS="EQ", **more)
    assert problem == "FIFO_BOOKS needs a ledger: DATABASE_URL, with IDENTITY=full"


def test_settings_are_frozen() -> None:
    """One object, made once, is what everybody reads."""
    with pytest.raises(ValidationError):
        Settings.from_env({}).kafka_topic = "other"


def test_every_wrong_value_is_named_at_once() -> None:
    """One line each, with its name and what was given, and what does not go together as well."""
    problems = problems_of(
        LOG_LEVEL="loud",
        KAFKA_PARTITIONS="0",
        HIGH_VOLUME="maybe",
        KAFKA_BOOTSTRAP_SERVERS="kafka",
        COMMIT_EVERY="1000001",
        KAFKA_TOPIC="a b",
        KAFKA_SECURITY_PROTOCOL="SASL_SSL",
        DLQ_TOPIC="same",
        POSITIONS_TOPIC="same",
    )
    assert sorted(line.split(":")[0] for line in problems) == [
        "COMMIT_EVERY",
        "HIGH_VOLUME",
        "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_PARTITIONS",
        "KAFKA_SECURITY_PROTOCOL=SASL_SSL needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD",
        "KAFKA_TOPIC",
        "KAFKA_TOPIC, DLQ_TOPIC and POSITIONS_TOPIC must be three topics",
        "LOG_LEVEL",
    ]
    assert any(line.endswith("(was 'maybe')") for line in problems)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("KAFKA_PARTITIONS", 1, 1024),
        ("SEND_DEADLINE_S", 1, 600),
        ("SEND_MAX_ATTEMPTS", 1, 100),
        ("COMMIT_INTERVAL_MS", 10, 10_000),
        ("COMMIT_EVERY", 1, 1_000_000),
        ("CONSUMER_CHUNK_RECORDS", 1, 10_000),
        ("CONSUMER_TAKEOVER_MARGIN", 0, 1_000_000),
        ("KAFKA_SESSION_TIMEOUT_MS", 6_000, 1_800_000),
        ("KAFKA_MAX_POLL_INTERVAL_MS", 10_000, 3_600_000),
        ("KAFKA_REQUEST_TIMEOUT_MS", 1_000, 300_000),
        ("SHUTDOWN_GRACEFUL_TIMEOUT_S", 1, 300),
    ],
)
def test_number_is_bounded_on_both_sides(name: str, lowest: int, highest: int) -> None:
    """The outermost values are accepted, those beyond them refused by name."""
    for value in (lowest, highest):
        assert getattr(Settings.from_env({name: str(value)}), name.lower()) == value
    for value in (lowest - 1, highest + 1):
        problems = problems_of(**{name: str(value)})
        assert [line.split(":")[0] for line in problems] == [name]


@pytest.mark.parametrize(
    "servers",
    [
        *("kafka", "kafka:", ":9092", "kafka:0", "kafka:65536", "kafka:x", "a:1,", "a:1,,b:2"),
        *("a,b:9092", "a b:9092", "http://kafka:9092", "::1:9092", "kafka:9092/x"),
    ],
)
def test_servers_without_host_and_port_are_refused(servers: str) -> None:
    """Every server of the list is looked at, not only the first."""
    assert problems_of(KAFKA_BOOTSTRAP_SERVERS=servers) == [
        (
            "KAFKA_BOOTSTRAP_SERVERS: must be host:port, or several of them with commas between"
            f" (was {servers!r})"
        )
    ]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("embedded", "embedded"),
        (" embedded\n", "embedded"),
        ("postgresql://desk:hunter2@db:5432/ledger", "postgresql://desk:***@db:5432/ledger"),
        ("postgres://desk:hun%40ter2@db/ledger", "postgres://desk:***@db/ledger"),
        ("postgres://desk:@hunter2@db/ledger", "postgres://desk:***@db/ledger"),
        ("postgresql://desk@db/ledger?password=hunter2", "postgresql://desk@db/ledger"),
        (
            "postgresql://desk:hunter2@[::1]:1,b:2/ledger",
            "postgresql://desk:***@[::1]:1,b:2/ledger",
        ),
        ("postgresql:///ledger?host=/run/postgresql", "postgresql:///ledger"),
    ],
)
def test_database_is_shown_without_its_password(given: str, shown: str) -> None:
    """The list of settings says which database it is, and neither it nor a repr says the secret."""
    settings = Settings.from_env({"DATABASE_URL": given})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == given.strip()
    assert {row["name"]: row["value"] for row in describe(settings)}["DATABASE_URL"] == shown
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    "given",
    [
        *("Embedded", "hunter2", "postgres:hunter2", "mysql://desk:hunter2@db/ledger"),
        *("postgresql+asyncpg://desk:hunter2@db/ledger", "postgres://desk:a/hunter2@db/ledger"),
        *("postgres://desk:12/hunter2@db/ledger", "postgres://desk:12?hunter2@db/ledger"),
        *("postgres://desk:12#hunter2@db/ledger", "postgres://desk:[hunter2@db/ledger"),
        "postgres://desk@hunter2:db/ledger",
    ],
)
def test_wrong_database_is_refused_without_being_shown(given: str) -> None:
    """Another kind of address, or a password with a character that parts addresses, is refused."""
    with pytest.raises(ConfigError) as refused:
        Settings.from_env({"DATABASE_URL": given})
    (problem,) = refused.value.problems
    assert problem.startswith("DATABASE_URL: must be `embedded` or postgresql://")
    assert "hunter2" not in everything_in(refused.value)


@pytest.mark.parametrize("name", ["a b", "a/b", "\u00e9", "t" * 250])
def test_topic_name_that_kafka_does_not_take_is_refused(name: str) -> None:
    """Topic names are checked before anything is connected."""
    assert problems_of(KAFKA_TOPIC=name)[0].startswith("KAFKA_TOPIC:")


@pytest.mark.parametrize(
    ("servers", "protocol", "is_open"),
    [
        ("localhost:9092", "PLAINTEXT", False),
        ("LOCALHOST:9092", "PLAINTEXT", False),
        ("127.0.0.1:9092, 127.1.2.3:9093", "PLAINTEXT", False),
        ("[::1]:9092", "PLAINTEXT", False),
        ("localhost:9092,kafka:9092", "PLAINTEXT", True),
        ("localhost.example.com:9092", "PLAINTEXT", True),
        ("127.example.com:9092", "PLAINTEXT", True),
        ("localhost-2:9092", "PLAINTEXT", True),
        ("10.0.0.1:9092", "PLAINTEXT", True),
        ("kafka:9092", "SASL_PLAINTEXT", True),
        ("localhost:9092", "SASL_PLAINTEXT", False),
        ("kafka:9092", "SSL", False),
        ("kafka:9092", "SASL_SSL", False),
    ],
)
def test_plaintext_off_loopback_is_noticed(servers: str, protocol: str, *, is_open: bool) -> None:
    """A network is crossed in the clear unless every server is this machine or TLS is on."""
    settings = Settings.from_env(
        {**SASL, "KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SECURITY_PROTOCOL": protocol}
    )
    assert settings.is_plaintext_off_loopback == is_open


@pytest.mark.parametrize("missing", ["KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"])
@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
@pytest.mark.parametrize("is_empty", [False, True])
def test_sasl_needs_user_and_password(missing: str, protocol: str, *, is_empty: bool) -> None:
    """Half of a log-in, or an empty one, is refused before a broker is asked."""
    environ = {**SASL, "KAFKA_SECURITY_PROTOCOL": protocol, missing: ""}
    if not is_empty:
        del environ[missing]
    assert problems_of(**environ) == [
        f"KAFKA_SECURITY_PROTOCOL={protocol} needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
    ]


def everything_in(error: BaseException) -> str:
    """Give all that a traceback of an error would show."""
    chain: list[str] = []
    shown: BaseException | None = error
    while shown is not None:
        chain += [str(shown), repr(shown)]
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return "\n".join(chain)


@pytest.mark.parametrize(
    "wrong",
    [
        {"KAFKA_SASL_USERNAME": ""},
        {"KAFKA_TOPIC": "same", "DLQ_TOPIC": "same"},
        {"LOG_LEVEL": "loud"},
        {"KAFKA_SECURITY_PROTOCOL": "SASL"},
    ],
    ids=str,
)
def test_secret_is_in_no_message_of_a_refusal(wrong: dict[str, str]) -> None:
    """Neither the error nor anything chained to it shows the password."""
    with pytest.raises(ConfigError) as refused:
        Settings.from_env({**SASL, **wrong})
    assert "hunter2" not in everything_in(refused.value)


def test_wrong_password_value_is_not_shown() -> None:
    """A password that is refused itself is masked in its line, and pydantic shows no input."""
    given: dict[str, Any] = {**SASL, "KAFKA_SASL_PASSWORD": ["hunter2"]}
    with pytest.raises(ConfigError) as refused:
        Settings.from_env(given)
    assert refused.value.problems[0].startswith("KAFKA_SASL_PASSWORD:")
    assert refused.value.problems[0].endswith("(was ***)")
    assert "hunter2" not in everything_in(refused.value)
    with pytest.raises(ValidationError) as direct:
        Settings.model_validate({**SASL_FIELDS, "kafka_topic": "a", "dlq_topic": "a"})
    assert "hunter2" not in everything_in(direct.value)


def test_secret_is_in_no_description() -> None:
    """The list of settings has every name, its source and its meaning, and never the password."""
    environ = {**SASL, "kafka_topic": "trades", "KAFKA_SSL_CAFILE": "/etc/ca.pem"}
    settings = Settings.from_env(environ)
    rows = {row["name"]: row for row in describe(settings, environ)}
    assert "hunter2" not in json.dumps(list(rows.values())) + repr(settings) + str(settings)
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    assert all(row["description"] for row in rows.values())
    assert settings.kafka_sasl_password is not None
    assert settings.kafka_sasl_password.get_secret_value() == "hunter2"
    assert rows["KAFKA_SASL_PASSWORD"]["value"] == "**********"
    assert rows["KAFKA_SSL_CAFILE"]["value"] == "/etc/ca.pem"
    assert (rows["KAFKA_TOPIC"]["value"], rows["KAFKA_TOPIC"]["source"]) == (
        "trades",
        "environment",
    )
    assert rows["DLQ_TOPIC"]["source"] == "default"


def test_description_reads_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a given environment, the process's own says where values come from."""
    monkeypatch.setenv("ON_GAP", "stop")
    sources = {row["name"]: row["source"] for row in describe(Settings.from_env())}
    assert sources["ON_GAP"] == "environment"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("KAFKA_BOOTSTRAP_SERVER", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_GROUPID", "KAFKA_GROUP_ID"),
        ("kafka_topics", "KAFKA_TOPIC"),
        ("KAFKA_SASL_PASWORD", "KAFKA_SASL_PASSWORD"),
        ("DLQ_TOPICS", "DLQ_TOPIC"),
        ("POSITION_TOPIC", "POSITIONS_TOPIC"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("FIFO_BOOK", "FIFO_BOOKS"),
    ],
)
def test_misspelt_name_is_found(name: str, meant: str) -> None:
    """A near miss of one of our names is reported with the name that was likely meant."""
    assert misspelt_names({name: "x"}) == {name: meant}


@pytest.mark.parametrize(
    "name",
    [
        *("KAFKA_TOPIC", "kafka_topic", "KAFKA_PORT", "KAFKA_SERVICE_HOST", "KAFKA_HOME", "PATH"),
        *("KAFKA_PORT_9092_TCP_ADDR", "KAFKA_VERSION", "KAFKA_OPTS", "LOGLEVEL", "TOPIC"),
    ],
)
def test_name_of_somebody_else_is_left_alone(name: str) -> None:
    """Right names, and what Kubernetes and other programs set, are no business of ours."""
    assert misspelt_names({name: "x"}) == {}


def test_misspelt_names_reads_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a given environment, the process's own is looked at."""
    monkeypatch.setenv("KAFKA_TOPIK", "x")
    assert misspelt_names()["KAFKA_TOPIK"] == "KAFKA_TOPIC"


def test_tls_context_verifies_hosts_and_is_modern() -> None:
    """TLS 1.2 or newer with verified names; without TLS there is no context."""
    assert Settings.from_env({}).ssl_context() is None
    assert (
        Settings.from_env({**SASL, "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}).ssl_context()
        is None
    )
    for protocol in ("SSL", "SASL_SSL"):
        context = Settings.from_env({**SASL, "KAFKA_SECURITY_PROTOCOL": protocol}).ssl_context()
        assert context is not None
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", ["KAFKA_SSL_CAFILE", "KAFKA_SSL_CERTFILE"])
def test_unreadable_certificate_is_a_config_error(name: str, tmp_path: Path) -> None:
    """A missing file and one that is no certificate are both named."""
    broken = tmp_path / "broken.pem"
    broken.write_text("not a certificate")
    for path in (tmp_path / "missing.pem", broken):
        settings = Settings.from_env({"KAFKA_SECURITY_PROTOCOL": "SSL", name: str(path)})
        with pytest.raises(ConfigError, match=path.name):
            settings.ssl_context()


def test_process_environment_is_read_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child gets our own environment with some variables set; an empty variable is not set."""
    monkeypatch.setenv("TRADE_STREAM_PROBE", "")
    assert not is_set("TRADE_STREAM_PROBE")
    monkeypatch.setenv("TRADE_STREAM_PROBE", "1")
    assert is_set("TRADE_STREAM_PROBE")
    child = child_environment({"TRADE_STREAM_PROBE": "2"})
    assert child == {**os.environ, "TRADE_STREAM_PROBE": "2"}


def test_data_stands_in_the_project() -> None:
    """Data of our own is kept in one folder of the project."""
    assert data_home() == Path(__file__).parents[1] / ".trade-stream"


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "clickhouse://ch.example/trades",
        "clickhouses://desk:p%40ss@ch.example:9440/trades",
        "http://127.0.0.1:8123",
        "https://[::1]:8443/",
    ],
)
def test_addresses_of_a_clickhouse_are_taken(url: str) -> None:
    """The engine in the process, or a server with or without TLS, user and database."""
    settings = Settings.from_env({"CLICKHOUSE_URL": f" {url} "})
    assert settings.clickhouse_url is not None
    assert settings.clickhouse_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "hunter2", "Embedded", "clickhouse:hunter2", "tcp://ch:hunter2@host:9000",
        "clickhouse://", "clickhouse://desk:hunter2@", "clickhouse://desk:hun/ter2@host/db",
        "clickhouse://host/db?password=hunter2", "clickhouse://host/db#hunter2",
        "clickhouse://host/a b", "clickhouse://host:99999999/hunter2", "clickhouse://h/x/hunter2",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_without_being_shown(url: str) -> None:
    """What may hold a password is not printed, whatever is wrong with it."""
    (problem,) = problems_of(CLICKHOUSE_URL=url)
    assert problem.startswith("CLICKHOUSE_URL: must be `embedded` or clickhouse://")
    assert "hunter" not in problem
    assert "ter2" not in problem


def test_the_password_of_a_clickhouse_is_shown_nowhere() -> None:
    """Neither in what is printed of the settings, nor in their repr."""
    environ = {"CLICKHOUSE_URL": "clickhouses://desk:hunter2@ch.example:8443/trades"}
    settings = Settings.from_env(environ)
    assert "hunter2" not in repr(settings)
    shown = {row["name"]: row["value"] for row in describe(settings, environ)}
    assert shown["CLICKHOUSE_URL"] == "clickhouses://desk:***@ch.example:8443/trades"


def test_the_copy_has_a_group_of_its_own() -> None:
    """In one group the two would each get half of the partitions."""
    (problem,) = problems_of(KAFKA_GROUP_ID="g", CLICKHOUSE_GROUP_ID="g")
    assert problem == "CLICKHOUSE_GROUP_ID and KAFKA_GROUP_ID must be two groups"
