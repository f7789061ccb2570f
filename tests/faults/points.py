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

LEDGER_POINTS: Final = (
    "after-claim",
    "before-transaction",
    "in-transaction",
    "before-letters",
    "after-letters",
    "after-transaction",
    "after-positions",
    "before-commit",
    "after-commit",
)
"""Those of a consumer with a ledger, in the order of its work."""
