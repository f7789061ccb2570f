"""Replay of trades from files: rows become trade events, and are published.

    CSV, JSON Lines, Parquet ─ files ─▶ Row ─ mapper ─▶ MappedTrade ─ run ─▶ Publisher
                                         └─ no trade ─▶ rejects file ◀─ not stored ─┘

A row that cannot be used is named with file, line and reason; it never stops or shrinks the rest.
"""

from app.replay.mapper import MappedTrade, RowMapper
from app.replay.mapping import FieldMapping
from app.replay.pace import Clock, parse_speed
from app.replay.run import check_files, replay
from app.replay.summary import ReplaySummary, RowFate

__all__ = [
    "Clock",
    "FieldMapping",
    "MappedTrade",
    "ReplaySummary",
    "RowFate",
    "RowMapper",
    "check_files",
    "parse_speed",
    "replay",
]
