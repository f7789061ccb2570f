"""Bugs planted into the consumer: the harness proves that it can fail."""

from tests.faults.scenarios import brokers, data, kills, ledger, wires
from tests.faults.scenarios.registry import STUCK, plant

_ = (brokers, data, kills, ledger, wires)  # have entered the scenarios that follow

plant("commits-first", "kill-at-random", "lost", "ahead")
plant("commits-unnamed", "slow-downstream", "lost", "ahead")
plant("letters-not-awaited", "kill-at-random", "lost", "ahead")
plant("positions-not-awaited", "kill-at-random", "lost", "ahead", STUCK)
plant("books-again", "kill-at-random", "doubled")
# Where it is the last batch of a partition, nothing follows that would show what is missing.
plant("swallows-unreadable", "flipped-fetches", "lost", STUCK)
plant("float-money", "poison", "wrong")
plant("last-record-wins", "late-write", "lost")
plant("no-seek", "flipped-fetches", "lost", STUCK)
plant("no-epoch", "storm", "lost", "doubled", STUCK)
plant("no-new-producer", "no-leader", STUCK)
plant("no-origin", "kill-at-random", "invented", "doubled")
plant("no-window", "sent-twice", "doubled")
plant("ledger-arrival-order", "ledger-storm", "wrong")
plant("ledger-commits-first", "ledger-storm", "ahead")
plant("ledger-forgets-parked", "ledger-storm", "lost")
plant("ledger-hasty-history", "ledger-storm", "invented", "lost", "wrong")
plant("ledger-letters-late", "ledger-storm", "lost", "ahead")
plant("ledger-newest-wins", "ledger-terminated", "damaged", "lost")
plant("ledger-offset-first", "ledger-storm", "lost")
plant("ledger-positions-apart", "ledger-storm", "lost", "doubled", "wrong")
# A worker may end because the past of a position makes no sense any more.
plant("ledger-unfenced", "ledger-zombie", "lost", "doubled", "wrong", STUCK)
