"""Faults on purpose: real brokers and real processes are hurt, and nothing may be lost."""
