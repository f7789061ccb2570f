"""Bugs planted into the consumer: the harness proves that it can fail."""

from tests.faults.scenarios import data, kills, wires
from tests.faults.scenarios.registry import plant

_ = (data, kills, wires)  # have entered the scenarios that follow

plant("commits-first", "kill-at-random", "lost", "ahead")
plant("letters-not-awaited", "kill-at-random", "lost", "ahead")
plant("positions-not-awaited", "kill-at-random", "lost", "ahead")
plant("books-again", "kill-at-random", "doubled")
plant("swallows-unreadable", "flipped-fetches", "lost")
plant("float-money", "poison", "wrong")
plant("last-record-wins", "late-write", "lost")
plant("no-window", "sent-twice", "doubled")
