"""JSON logger set-up, nothing else."""

import logging
import sys

import structlog

MAX_TEXT = 256


def configure_logging(level: str = "INFO") -> None:
    """Write every log event as one JSON line to standard error.

    Args:
        level: Lowest level written. aiokafka's own logger never goes below WARNING: at DEBUG it
            writes keys, values and whole requests.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _bound_texts,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Its errors about brokers that are away come again, translated, as ours.
    logging.getLogger("aiokafka").setLevel(max(logging.CRITICAL, logging.getLevelName(level)))


def _bound_texts(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    for name, value in event.items():
        if name != "exception" and isinstance(value, str) and len(value) > 4 * MAX_TEXT:
            event[name] = value[: 4 * MAX_TEXT] + "…"
    return event
