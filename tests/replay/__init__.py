"""Tests of the replay of files."""
