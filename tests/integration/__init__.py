"""Tests of the embedded broker with the real thing."""
