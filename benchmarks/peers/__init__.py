"""Contestants of the benchmark: one script for each peer, each run in an environment of its own."""
