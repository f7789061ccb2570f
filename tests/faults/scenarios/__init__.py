"""Scenarios, a module for each family; `SCENARIOS` has them all."""

from tests.faults.scenarios import brokers, data, kills, ledger, machine, planted, soak, wires
from tests.faults.scenarios.registry import SCENARIOS, Scenario

__all__ = [
    "SCENARIOS",
    "Scenario",
    "brokers",
    "data",
    "kills",
    "ledger",
    "machine",
    "planted",
    "soak",
    "wires",
]
