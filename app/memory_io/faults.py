"""What can go wrong in memory, on request and repeatably."""

import random
from collections.abc import Callable, Mapping
from enum import StrEnum


class Fault(StrEnum):
    """What becomes of one record that is published, or of one operation of a source or a reader.

    For an operation every fault is a `TransportError`; what it asked for was done with
    `UNKNOWN_STORED` only, which matters for commits.

    Attributes:
        NONE: It succeeds.
        NOT_SENT: It surely has not happened, and may be tried again.
        UNKNOWN_STORED: It has happened, and the answer is lost.
        UNKNOWN_LOST: It has not happened, and nobody can tell.
        REFUSED: The broker will never take it.
    """

    NONE = "none"
    NOT_SENT = "not_sent"
    UNKNOWN_STORED = "unknown_stored"
    UNKNOWN_LOST = "unknown_lost"
    REFUSED = "refused"


def no_fault(_: object) -> Fault:
    """Let everything succeed."""
    return Fault.NONE


def nth(operation: str, number: int, fault: Fault = Fault.UNKNOWN_LOST) -> Callable[[str], Fault]:
    """Script one fault of a source or a reader.

    Args:
        operation: Name of the method, such as `poll` or `commit`.
        number: Which of its calls fails, from 1 on.
        fault: How it fails.
    """
    calls = 0

    def decide(called: str) -> Fault:
        nonlocal calls
        calls += called == operation
        return fault if called == operation and calls == number else Fault.NONE

    return decide


def seeded(seed: int, chances: Mapping[Fault, float]) -> Callable[[object], Fault]:
    """Script random faults that a seed repeats.

    Args:
        seed: The same seed gives the same faults for the same calls.
        chances: Chance of each fault, 0 to 1; what is left to 1 succeeds.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret

    def decide(_: object) -> Fault:
        drawn = rng.random()
        for fault, chance in chances.items():
            drawn -= chance
            if drawn < 0:
                return fault
        return Fault.NONE

    return decide
