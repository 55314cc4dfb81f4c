"""Fuzzing and fault injection, of any duration; docs/testing.md has the findings.

Each module has a function `fuzz(seed, size)` that raises AssertionError with the seed that shows the fault.
"""
