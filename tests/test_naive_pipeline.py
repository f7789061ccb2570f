"""The benchmark's naive pipeline must come to what ours comes to, or it compares nothing."""

from dataclasses import dataclass

import pytest

from app.ports import Headers, RecordBatch
from app.simulator import TradeSimulator
from benchmarks.naive import NaivePipeline
from benchmarks.peers.same_pipeline import SamePipeline


@dataclass(frozen=True, slots=True)
class StoredRecord:
    offset: int
    value: bytes | None
    timestamp: int = 1_790_000_000_000
    key: bytes | None = None
    headers: Headers = ()


@pytest.mark.parametrize("poison", [0.0, 0.2])
def test_books_refuses_and_holds_what_ours_does(poison: float) -> None:
    """Over trades that build up, reduce, close and turn positions, with poison and without."""
    simulator = TradeSimulator(run_id="T", seed=5, symbols=20, poison=poison)
    values = [simulator.next_trade("2026-03-02T14:30:00.123Z").value for _ in range(3_000)]
    ours, naive = SamePipeline(0), NaivePipeline()
    records = [StoredRecord(*item) for item in enumerate(values)]
    ours.process(RecordBatch.of(0, 1, records, len(records)))
    for value in values:
        naive.handle(value)
    assert naive.outcome() == ours.outcome()
    assert bool(naive.refused) == bool(poison)
