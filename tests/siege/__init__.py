"""The siege: attacks that run for as long as one likes; docs/testing.md has what they found.

Each attack is a function `attack(seed, size)` that raises AssertionError with the seed that shows the fault.
"""
