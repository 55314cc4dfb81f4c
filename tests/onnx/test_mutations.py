"""A hundred mutated files; `make fuzz` converts thousands."""

from tests.fuzzing import files


def test_mutations():
    assert "converted" in files.fuzz(0, 100)
