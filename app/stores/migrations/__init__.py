"""The ledger's tables, as numbered SQL; a file that was released never changes."""
