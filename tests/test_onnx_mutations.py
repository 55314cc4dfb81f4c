"""A hundred mutated files; `make siege` converts thousands."""

from tests.siege import files


def test_mutations():
    assert "converted" in files.attack(0, 100)
