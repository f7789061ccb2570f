"""Positions and PnL: pure arithmetic on scaled integers, of one position at a time."""
