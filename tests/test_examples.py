"""The examples run; what they print is for the eye."""

import pytest

pytest.importorskip("sklearn", reason="the examples need what the extra `demo` brings")
from examples import spectral_norm


def test_spectral_norm(capsys):
    spectral_norm.main(["--epochs", "1"])
    table = capsys.readouterr().out
    assert all(name in table for name in ("no constraint", "torch's spectral_norm", "matrix_norm", "power iteration"))


@pytest.mark.parametrize("size", [1, 8])
def test_power_iteration_finds_the_norm(size):
    conv = spectral_norm.nn.Conv2d(1, 8, 3, padding=1)
    estimate = spectral_norm.PowerIteration()
    for _ in range(200):
        found = estimate(conv, size)
    expected = spectral_norm.exact_norm(conv, size)
    spectral_norm.torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_verify_digits(tmp_path, capsys):
    pytest.importorskip("omlt", reason="the example needs what the extra `verify` brings")
    from examples import verify_digits

    options = {"images": 2, "output": tmp_path}
    answers = verify_digits.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    assert {answer.found is None for answer in answers} == {True, False}
    printed = capsys.readouterr().out
    assert "OMLT refuses it: ValueError" in printed
    assert "proved: it stays that" in printed
    assert (tmp_path / "counterexamples.png").stat().st_size > 1000
