"""Why no broker could be reached: the client keeps the cause to its log, so it is asked again."""

import ssl
from typing import Final

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from app.config import Settings
from app.errors import TransportError
from app.kafka_io.options import CLIENT_ERRORS, connection_options, transport_error

_REFUSED: Final = (SaslAuthenticationFailed, ssl.SSLCertVerificationError)


async def no_broker(settings: Settings, exc: Exception) -> TransportError:
    """Translate a failed start of a client.

    Args:
        settings: What it was started with.
        exc: What it raised.

    Returns:
        An error that says what the first broker answered; not retryable where it refused us or
        its certificate is not trusted, since trying again would not help.
    """
    if isinstance(exc, KafkaConnectionError):
        cause = await _first_refusal(settings)
        if isinstance(cause, _REFUSED):
            error = transport_error("the broker and we do not trust each other", settings, cause)
            return TransportError(
                f"{error}. Check the KAFKA_SASL_ and KAFKA_SSL_ settings", retryable=False
            )
    return transport_error("no Kafka broker answers", settings, exc)


async def _first_refusal(settings: Settings) -> Exception | None:
    options = connection_options(settings)
    for server in options.pop("bootstrap_servers").split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            connection = await create_conn(host, int(port), **options)
        except CLIENT_ERRORS as exc:
            return exc
        connection.close()
    return None
