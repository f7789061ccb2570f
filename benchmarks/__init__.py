"""Measurements; every figure in the documentation comes out of one of these."""
