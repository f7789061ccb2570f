"""Every error the platform raises on purpose: one branch per reaction of its caller.

    TradeStreamError
    ├── ConfigError              exit 2 before anything is connected, all problems at once
    ├── RecordError(ValueError)  dead-letter the record, wait for the ack, go on; never retried
    │   ├── DecodeError          its bytes cannot be read as one trade event
    │   └── InvalidTradeError    a trade event, but not one that can be booked
    │       └── DoubtfulTradeError   it could be, and is refused because somebody wants it so
    ├── TransportError           a broker or a dependency is away: wait, back off, try again
    ├── TopicError               a topic is missing or not as delivery needs it: a person decides
    ├── OffsetGapError           records this group never saw are gone: a person decides
    ├── UnreadableError          a batch of one partition cannot be read: stop that one, alarm
    ├── OwnershipError           another owner wrote newer state: restore the partition again
    ├── LedgerError              the database is not fit for the ledger: a person decides
    ├── CopyError                ClickHouse is not fit for the analytics copy: a person decides
    ├── StalledError             a worker gets nowhere, and nobody knows why: end it, start anew
    ├── ReplayFileError          a file cannot be used: name it, and replay the next one
    └── EmbeddedError            a server that we start ourselves cannot start or stop
        ├── EmbeddedBrokerError      Apache Kafka
        └── EmbeddedDatabaseError    PostgreSQL

Anything else that escapes is a bug: it stops the process and is never swallowed.
"""


class TradeStreamError(Exception):
    """Base of everything raised on purpose; `str()` of it is fit for a person to read."""


class ConfigError(TradeStreamError):
    """One or more settings are wrong.

    Args:
        problems: One line for each wrong setting: its name, what was given, what is allowed.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RecordError(TradeStreamError, ValueError):
    """A record that cannot be used.

    Args:
        reason: Stable reason code, such as `price-not-positive`; part of the outside contract.
        message: Names the field, never its value, so that it may be logged and sent anywhere.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DecodeError(RecordError):
    """The bytes of a record are not one readable trade event."""


class InvalidTradeError(RecordError):
    """A trade event that cannot be booked as it is."""


class DoubtfulTradeError(InvalidTradeError):
    """A trade event that is refused for what is otherwise only marked; see `VALIDATION_STRICT`."""


class TransportError(TradeStreamError):
    """A broker or another dependency did not answer, or refused.

    Args:
        message: What was tried and against which address.
        retryable: False when trying again cannot help, such as a refused password.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class TopicError(TradeStreamError):
    """A topic is missing, or differs from what delivery needs."""


class OffsetGapError(TradeStreamError):
    """Records between what the group has processed and what the topic still holds are gone."""


class UnreadableError(TradeStreamError):
    """A batch of a partition cannot be read, and so nothing after it.

    Args:
        partition: The partition to stop; others are not concerned.
        message: Where it is, and what is wrong with it.
    """

    def __init__(self, partition: int, message: str) -> None:
        super().__init__(message)
        self.partition = partition


class OwnershipError(TradeStreamError):
    """Another owner has written newer state of a partition that we believed to be ours."""


class LedgerError(TradeStreamError):
    """The database cannot be the ledger as it is; says what to do."""


class CopyError(TradeStreamError):
    """ClickHouse cannot hold the analytics copy as it is; says what to do."""


class StalledError(TradeStreamError):
    """A worker is behind and makes no progress although everything that it needs is there."""


class ReplayFileError(TradeStreamError):
    """A file of a replay cannot be read or written, or not any further.

    Args:
        file: The file as it was named.
        problem: What is wrong with it.
    """

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file
        self.problem = problem


class EmbeddedError(TradeStreamError):
    """A server that we start ourselves cannot be started or stopped; says what to do."""


class EmbeddedBrokerError(EmbeddedError):
    """The embedded Apache Kafka cannot be started, stopped or prepared; says what to do."""


class EmbeddedDatabaseError(EmbeddedError):
    """The embedded PostgreSQL cannot be started, stopped or prepared; says what to do."""
