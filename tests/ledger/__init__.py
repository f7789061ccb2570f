"""The ledger as users ask it, fill it and prune it."""
