"""The points of a consumer's work at which `worker` can end it."""

from typing import Final

POINTS: Final = (
    "after-fetch",
    "before-effects",
    "half-of-effects",
    "dead-letters-only",
    "after-effects",
    "after-commit",
    "in-revoke",
    "in-assign",
)
