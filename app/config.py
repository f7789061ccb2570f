"""Settings: every environment variable of the platform, with its bounds, in one frozen object."""

import difflib
import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from app.errors import ConfigError

HIGH_VOLUME_COUNT: Final = 100_000
_TOPIC_PATTERN: Final = r"^[A-Za-z0-9._-]{1,249}$"
_PREFIXES: Final = (
    "KAFKA_",
    "DLQ_",
    "POSITION",
    "HEALTH_",
    "DATABASE_",
    "CLICKHOUSE_",
    "REFERENCE_",
    "VALIDATION_",
    "FIFO_",
)
_SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)
_LARGEST_PORT: Final = 65_535
EMBEDDED_DATABASE: Final = "embedded"
_DATABASE_SERVER: Final = re.compile(r"([\w.%-]+|\[[0-9A-Fa-f:.]+\])?(:\d{1,5})?", re.ASCII)
_DATABASE_FORM: Final = (
    "must be `embedded` or postgresql://USER:PASSWORD@HOST:PORT/DATABASE,"
    " with / ? # @ : [ ] % of a password written as %2F %3F %23 %40 %3A %5B %5D %25"
)
EMBEDDED_CLICKHOUSE: Final = "embedded"
_CLICKHOUSE_SCHEMES: Final = frozenset({"clickhouse", "clickhouses", "http", "https"})
_CLICKHOUSE_FORM: Final = (
    "must be `embedded` or clickhouse://USER:PASSWORD@HOST:PORT/DATABASE, with the HTTP port"
    " (clickhouses:// for TLS), with / ? # @ : [ ] % of a password written as"
    " %2F %3F %23 %40 %3A %5B %5D %25"
)


def _servers(text: str) -> str:
    for server in text.split(","):
        match = _SERVER.fullmatch(server.strip())
        if match is None or not 0 < int(match.group(2)) <= _LARGEST_PORT:
            raise ValueError("must be host:port, or several of them with commas between")
    return text


def _book_names(text: str) -> str:
    if not all(name.strip() for name in text.split(",")):
        raise ValueError("must be names of books with commas between, or `*` for all")
    return text


def _database(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value().strip()
    if text == EMBEDDED_DATABASE:
        return SecretStr(text)
    try:
        scheme, netloc, path, query, fragment = urlsplit(text)
    except ValueError:  # says what it has read, which may be of the password
        raise ValueError(_DATABASE_FORM) from None
    servers = netloc.rpartition("@")[2].split(",")
    if (
        not text.startswith(f"{scheme}://")
        or scheme not in {"postgresql", "postgres"}
        # What stands behind an unescaped / ? or # of a password is taken for something else.
        or not all(map(_DATABASE_SERVER.fullmatch, servers))
        or "@" in path + query
        or fragment
    ):
        raise ValueError(_DATABASE_FORM)
    return SecretStr(text)


def _clickhouse(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value().strip()
    if text == EMBEDDED_CLICKHOUSE:
        return SecretStr(text)
    try:
        scheme, netloc, path, query, fragment = urlsplit(text)
    except ValueError:  # says what it has read, which may be of the password
        raise ValueError(_CLICKHOUSE_FORM) from None
    server = netloc.rpartition("@")[2]
    if (
        scheme not in _CLICKHOUSE_SCHEMES
        or not text.startswith(f"{scheme}://")
        or not server.partition(":")[0]
        or not _DATABASE_SERVER.fullmatch(server)
        or not re.fullmatch(r"/?\w*", path, re.ASCII)
        or query
        or fragment
    ):
        raise ValueError(_CLICKHOUSE_FORM)
    return SecretStr(text)


Topic = Annotated[str, Field(pattern=_TOPIC_PATTERN)]


class SecurityProtocol(StrEnum):
    """How clients reach the brokers."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


class KeyMismatch(StrEnum):
    """What becomes of a trade that stands in a partition which its position key does not name."""

    REKEY = "rekey"
    DEAD_LETTER = "dead-letter"
    ACCEPT = "accept"


class OnGap(StrEnum):
    """What a partition does when records it has not seen are gone."""

    STOP = "stop"
    CONTINUE = "continue"


class IdentityScope(StrEnum):
    """Among which trades one that was sent twice is recognised, where there is a ledger."""

    FULL = "full"
    WINDOW = "window"


class Settings(BaseModel):
    """Everything that can be set; names in the environment are the upper-case field names."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", str_strip_whitespace=True, hide_input_in_errors=True
    )

    kafka_bootstrap_servers: Annotated[str, AfterValidator(_servers)] = Field(
        default="localhost:9092", description="Brokers to ask first: `host:port`, comma-separated."
    )
    kafka_topic: Topic = Field(default="trade-events", description="Topic of the trades.")
    dlq_topic: Topic = Field(
        default="dead-letter-trade-events", description="Topic of what cannot be used."
    )
    positions_topic: Topic = Field(
        default="trade-positions", description="Compacted topic of the positions; one group's."
    )
    kafka_group_id: Annotated[str, Field(min_length=1, max_length=249)] = Field(
        default="risk-team-consumer", description="Consumer group; it owns the positions topic."
    )
    kafka_create_topics: bool = Field(
        default=True, description="Create missing topics with the right settings."
    )
    kafka_partitions: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=8, description="Partitions of topics that we create."
    )
    kafka_security_protocol: SecurityProtocol = Field(
        default=SecurityProtocol.PLAINTEXT,
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.",
    )
    kafka_sasl_mechanism: Annotated[
        str, Field(pattern=r"^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$")
    ] = Field(default="SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.")
    kafka_sasl_username: str | None = Field(default=None, description="SASL user.")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="SASL password.")
    kafka_ssl_cafile: Path | None = Field(
        default=None, description="PEM file of the CA; the system's CAs without it."
    )
    kafka_ssl_certfile: Path | None = Field(default=None, description="PEM client certificate.")
    kafka_ssl_keyfile: Path | None = Field(default=None, description="PEM key of it.")
    kafka_raw_batches: bool = Field(
        default=True,
        description="Read whole record batches; false uses the client's public calls, slower.",
    )
    database_url: Annotated[SecretStr, AfterValidator(_database)] | None = Field(
        default=None,
        description="PostgreSQL of the ledger: `postgresql://…`, or `embedded`. No ledger without.",
    )
    clickhouse_url: Annotated[SecretStr, AfterValidator(_clickhouse)] | None = Field(
        default=None,
        description="ClickHouse of the analytics copy: `clickhouse://…`, or `embedded`.",
    )
    clickhouse_group_id: Annotated[str, Field(min_length=1, max_length=249)] = Field(
        default="clickhouse-copy", description="Consumer group of the analytics copy alone."
    )
    high_volume: bool = Field(
        default=False, description=f"Publish {HIGH_VOLUME_COUNT:,} trades as fast as possible."
    )
    log_level: Annotated[
        str,
        BeforeValidator(str.upper),
        Field(pattern=r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$"),
    ] = Field(default="INFO", description="DEBUG, INFO, WARNING, ERROR or CRITICAL.")
    key_mismatch: KeyMismatch = Field(
        default=KeyMismatch.REKEY, description="Misplaced trades: rekey, dead-letter or accept."
    )
    on_gap: OnGap = Field(
        default=OnGap.STOP, description="Records lost before we saw them: stop or continue."
    )
    defaults_currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field(
        default="USD", description="Currency of a trade that names none."
    )
    send_deadline_s: Annotated[float, Field(ge=1, le=600)] = Field(
        default=60.0, description="Longest wait for the outcome of a send, in seconds."
    )
    send_max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5, description="Attempts for a record that surely was not sent."
    )
    commit_interval_ms: Annotated[int, Field(ge=10, le=10_000)] = Field(
        default=250,
        description="Longest time between commits, and between flushes, while trades arrive.",
    )
    commit_every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=100_000, description="Most records in flight before the partitions are paused."
    )
    consumer_chunk_records: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=500, description="Records processed before the event loop gets a turn."
    )
    consumer_takeover_margin: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=1_000, description="Records read again before the committed offset at a takeover."
    )
    dedupe_window: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=5_000,
        description="Offsets of a partition for which a trade sent twice is booked once; 0: none.",
    )
    identity: IdentityScope = Field(
        default=IdentityScope.FULL,
        description="Trades sent twice, with a ledger: recognised among all, or in a window.",
    )
    fifo_books: Annotated[str, AfterValidator(_book_names)] | None = Field(
        default=None,
        description="Books kept first in, first out, in the ledger: names with commas, `*`: all.",
    )
    reference_file: Path | None = Field(
        default=None,
        description="TOML file of instruments, books and limits, by which trades are marked.",
    )
    validation_strict: bool = Field(
        default=False, description="Refuse doubtful identifiers and dates instead of marking them."
    )
    park_max: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=10_000,
        description="Events of a partition that may wait for what they follow, with a ledger.",
    )
    park_deadline_s: Annotated[float, Field(ge=0, le=2_592_000)] = Field(
        default=3600.0, description="Longest wait of such an event, in seconds."
    )
    dlq_breaker_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2,
        description="Share of the last 1,000 records of a partition that may be refused; 1: all.",
    )
    quarantine_dir: Path | None = Field(
        default=None,
        description="For batches that cannot be read; `.trade-stream/quarantine` without.",
    )
    watchdog_timeout_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        default=120.0,
        description="A worker that is behind and gets nowhere for so long ends, to be restarted.",
    )
    positions_heartbeat_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=30.0, description="An idle owner writes to its positions partition this often."
    )
    kafka_session_timeout_ms: Annotated[int, Field(ge=6_000, le=1_800_000)] = Field(
        default=30_000, description="A worker silent for so long is taken for dead."
    )
    kafka_max_poll_interval_ms: Annotated[int, Field(ge=10_000, le=3_600_000)] = Field(
        default=300_000, description="A worker that does not poll for so long is taken for stuck."
    )
    kafka_request_timeout_ms: Annotated[int, Field(ge=1_000, le=300_000)] = Field(
        default=12_000, description="Longest wait for one answer; longer than a leader change."
    )
    shutdown_graceful_timeout_s: Annotated[float, Field(ge=1, le=300)] = Field(
        default=20.0, description="Longest time from SIGTERM to the end of the process."
    )
    health_port: Annotated[int, Field(ge=0, le=_LARGEST_PORT)] | None = Field(
        default=None,
        description="Port of health and metrics, of the first worker; 0: any. Not served without.",
    )
    health_host: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        default="127.0.0.1", description="Address that health and metrics are served at."
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings from the environment.

        Args:
            environ: Instead of the process's own; names are matched without regard to case, and
                an empty value counts as not set.

        Raises:
            ConfigError: With one line for every value that is wrong.
        """
        given = {
            name.lower(): value
            for name, value in (os.environ if environ is None else environ).items()
            if value
        }
        values: dict[str, Any] = {name: given[name] for name in cls.model_fields if name in given}
        try:
            return cls(**values)
        except ValidationError as exc:
            errors = exc.errors()
        wrong = {str(error["loc"][0]) for error in errors if error["loc"]}
        if wrong:  # what does not go together is named with them, not after they are mended
            try:
                cls(**{name: value for name, value in values.items() if name not in wrong})
            except ValidationError as exc:
                errors += exc.errors()
        # Nothing chained: what pydantic says may hold a password.
        raise ConfigError([line for error in errors for line in _problems(dict(error))])

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = []
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            problems.append(
                f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} needs"
                " KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
            )
        topics = {self.kafka_topic, self.dlq_topic, self.positions_topic}
        if len(topics) != 3:  # noqa: PLR2004 - the three of them
            problems.append("KAFKA_TOPIC, DLQ_TOPIC and POSITIONS_TOPIC must be three topics")
        if self.clickhouse_group_id == self.kafka_group_id:
            problems.append("CLICKHOUSE_GROUP_ID and KAFKA_GROUP_ID must be two groups")
        if self.fifo_books and not (self.database_url and self.identity is IdentityScope.FULL):
            problems.append("FIFO_BOOKS needs a ledger: DATABASE_URL, with IDENTITY=full")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def books_by_fifo(self) -> frozenset[str]:
        """Names of the books that FIFO_BOOKS lists; `*` stands for all."""
        return frozenset(name.strip() for name in (self.fifo_books or "").split(",")) - {""}

    @property
    def is_plaintext_off_loopback(self) -> bool:
        """Whether trades would cross a network in the clear."""
        servers = self.kafka_bootstrap_servers.split(",")
        return self.kafka_security_protocol in (
            SecurityProtocol.PLAINTEXT,
            SecurityProtocol.SASL_PLAINTEXT,
        ) and not all(map(_is_loopback, servers))

    def ssl_context(self) -> ssl.SSLContext | None:
        """Make the TLS context of the clients: TLS 1.2 or newer, host names verified.

        Raises:
            ConfigError: A certificate file is missing or unreadable.
        """
        if "SSL" not in self.kafka_security_protocol:
            return None
        try:
            context = ssl.create_default_context(cafile=self.kafka_ssl_cafile)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.kafka_ssl_certfile:
                context.load_cert_chain(self.kafka_ssl_certfile, self.kafka_ssl_keyfile)
        except (OSError, ssl.SSLError) as exc:
            files = (self.kafka_ssl_cafile, self.kafka_ssl_certfile, self.kafka_ssl_keyfile)
            named = ", ".join(str(file) for file in files if file)
            raise ConfigError([f"KAFKA_SSL_*: cannot load {named}: {exc}"]) from exc
        return context


def misspelt_names(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Find names that look like misspelt ones of ours, each with the name that was likely meant.

    A near miss counts only where it is set on purpose for us; other programs' variables, such as
    the `KAFKA_PORT` that Kubernetes sets for a service, are no business of ours.
    """
    known = [name.upper() for name in Settings.model_fields]
    found = {}
    for name in os.environ if environ is None else environ:
        if name.upper() in known or not name.upper().startswith(_PREFIXES):
            continue
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
        if near:
            found[name] = near[0]
    return found


def describe(settings: Settings, environ: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """List every setting with its value, where it comes from and what it means; no secrets."""
    given = {name.upper() for name in (os.environ if environ is None else environ)}
    rows = []
    for name, info in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = str(value) if isinstance(value, SecretStr | Path) else value
        if name in {"database_url", "clickhouse_url"} and value is not None:
            shown = _without_password(value.get_secret_value())
        rows.append(
            {
                "name": name.upper(),
                "value": shown,
                "source": "environment" if name.upper() in given else "default",
                "description": info.description,
            }
        )
    return rows


def _is_loopback(server: str) -> bool:
    host = server.strip().rpartition(":")[0].strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _without_password(database: str) -> str:
    if database in {EMBEDDED_DATABASE, EMBEDDED_CLICKHOUSE}:
        return database
    scheme, netloc, path, _, _ = urlsplit(database)  # the query may hold a password too
    account, at, servers = netloc.rpartition("@")
    user, colon, _ = account.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}{at}{servers}{path}"


def _problems(error: dict[str, Any]) -> list[str]:
    name = "_".join(str(part) for part in error["loc"]).upper()
    message = str(error["msg"]).removeprefix("Value error, ")
    if not name:
        return message.split("\n")
    given = error["input"]
    # A database's address holds a password, and what it looks like is not known when it is wrong.
    is_secret = "PASSWORD" in name or name.startswith(("DATABASE_URL", "CLICKHOUSE_URL"))
    shown = "***" if is_secret else repr(given)
    return [f"{name}: {message} (was {shown})"]


def data_home() -> Path:
    """Give the folder for data of our own: `.trade-stream` of the project, or of where we are."""
    root = Path(__file__).resolve().parents[1]
    # Beside an installed package there is no project to keep data in.
    home = root if (root / "pyproject.toml").is_file() else Path.cwd()
    return home / ".trade-stream"


def child_environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """Give the environment for a process that we start: our own, with some variables set."""
    return {**os.environ, **overrides}


def set_for_children(name: str, value: str) -> None:
    """Set a variable for this process and every one that it starts."""
    os.environ[name] = value


def is_set(name: str) -> bool:
    """Tell whether a variable is set in the environment of this process, and not empty."""
    return bool(os.environ.get(name))
