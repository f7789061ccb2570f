"""How every client connects and behaves; aiokafka's own defaults are unsafe in most of it."""

from typing import Any, Final

from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)

from app.config import Settings
from app.errors import TransportError

MAX_REQUEST_BYTES: Final = 2 * 1024 * 1024
"""Above the largest record of the source topic, so that its dead letter fits with its headers."""
MAX_BATCH_BYTES: Final = 256 * 1024
STOP_TIMEOUT_S: Final = 5.0
MAX_FETCH_BYTES: Final = 1_048_588  # the broker's default bound of one batch

_REFUSALS: Final = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)


def connection_options(settings: Settings) -> dict[str, Any]:
    """Give what every kind of client needs to reach the brokers."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "request_timeout_ms": settings.kafka_request_timeout_ms,
        "security_protocol": settings.kafka_security_protocol.value,
        "ssl_context": settings.ssl_context(),
    }
    if settings.kafka_security_protocol.startswith("SASL") and settings.kafka_sasl_password:
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    return options


def producer_options(settings: Settings) -> dict[str, Any]:
    """Give the options of a producer that loses nothing and keeps order: C1 to C3."""
    return {
        **connection_options(settings),
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": "zstd",
        "linger_ms": 5,
        "max_batch_size": MAX_BATCH_BYTES,
        "max_request_size": MAX_REQUEST_BYTES,
    }


def reader_options(settings: Settings) -> dict[str, Any]:
    """Give the options of a consumer outside of any group."""
    return {
        **connection_options(settings),
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # B12: a gap is ours to judge, never skipped in silence
        "isolation_level": "read_committed",
        "check_crcs": True,
        "fetch_max_wait_ms": 50,
        "max_partition_fetch_bytes": MAX_FETCH_BYTES,
    }


def group_options(settings: Settings) -> dict[str, Any]:
    """Give the options of a member of the consumer group."""
    return {
        **reader_options(settings),
        "group_id": settings.kafka_group_id,
        "session_timeout_ms": settings.kafka_session_timeout_ms,
        "heartbeat_interval_ms": min(3_000, settings.kafka_session_timeout_ms // 3),
        "rebalance_timeout_ms": 60_000,
        "max_poll_interval_ms": settings.kafka_max_poll_interval_ms,
        "metadata_max_age_ms": 60_000,  # a raised number of partitions is noticed so late
    }


def transport_error(doing: str, settings: Settings, exc: Exception) -> TransportError:
    """Translate a client error, once, at the edge; the caller raises it from `exc`."""
    retryable = not isinstance(exc, _REFUSALS)
    said = str(exc) or type(exc).__name__
    return TransportError(
        f"{doing} at {settings.kafka_bootstrap_servers}: {said}", retryable=retryable
    )


CLIENT_ERRORS: Final = (KafkaError, OSError, TimeoutError)
"""What a client call raises when a broker is away or refuses; anything else is a bug."""
