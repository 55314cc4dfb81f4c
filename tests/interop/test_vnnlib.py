"""Specifications in VNN-LIB: what is read, what is refused, and that both versions say the same."""

import gzip
import itertools

import numpy as np
import pytest

from conv2affine.interop.vnnlib import read_spec

DECLARED = """
    ; two inputs, two outputs
    (declare-const X_0 Real) (declare-const X_1 Real)
    (declare-const Y_0 Real)
    (declare-const Y_1 Real)
"""
BOX = "(assert (>= X_0 -1)) (assert (<= X_0 1)) (assert (and (<= X_1 2.5) (>= X_1 .5)))"

# For each: the assertions, and what they mean for numbers.
MEANINGS = {
    "one comparison": ("(assert (<= Y_0 Y_1))", lambda x, y: y[0] <= y[1]),
    "constant on the left": ("(assert (<= 3e-1 Y_0))", lambda x, y: y[0] >= 0.3),
    "conjunction": ("(assert (and (>= Y_0 0) (>= Y_1 0)))", lambda x, y: min(y) >= 0),
    "several assertions": ("(assert (>= Y_0 0)) (assert (<= Y_1 0))", lambda x, y: y[0] >= 0 >= y[1]),
    "disjunction": (
        "(assert (or (and (>= Y_0 1)) (and (>= Y_1 1) (<= Y_0 0))))",
        lambda x, y: y[0] >= 1 or (y[1] >= 1 and y[0] <= 0),
    ),
    "or under and": (
        "(assert (and (or (<= Y_0 0) (>= Y_0 1)) (<= Y_1 0)))",
        lambda x, y: not 0 < y[0] < 1 and y[1] <= 0,
    ),
    "two disjunctions": (
        "(assert (or (<= Y_0 0) (>= Y_0 1))) (assert (or (<= Y_1 0) (>= Y_1 1)))",
        lambda x, y: not 0 < y[0] < 1 and not 0 < y[1] < 1,
    ),
    "several boxes": (
        "(assert (or (and (<= X_0 0) (<= Y_0 0)) (and (>= X_0 .5) (>= Y_0 0))))",
        lambda x, y: (x[0] <= 0 and y[0] <= 0) or (x[0] >= 0.5 and y[0] >= 0),
    ),
    "linear terms": (
        "(assert (<= (+ (* 2.0 Y_0) (- Y_1) 1) (- Y_0 (* Y_1 3.0) (- 2))))",
        lambda x, y: 2 * y[0] - y[1] + 1 <= y[0] - 3 * y[1] + 2,
    ),
    "equality": ("(assert (= Y_0 Y_1))", lambda x, y: y[0] == y[1]),
    "inputs and outputs": ("(assert (<= X_0 Y_0)) (assert (<= X_0 X_1))", lambda x, y: x[0] <= y[0] and x[0] <= x[1]),
    "inputs and outputs mixed": (
        "(assert (>= (+ X_0 (* -1 Y_0) 0.5) (* 2 (- X_1 Y_1))))",
        lambda x, y: x[0] - y[0] + 0.5 >= 2 * (x[1] - y[1]),
    ),
    "chains": (
        "(assert (<= 0 Y_0 Y_1)) (assert (>= 0.5 Y_0 X_0))",
        lambda x, y: 0 <= y[0] <= y[1] and 0.5 >= y[0] >= x[0],
    ),
    "deep, with one part or none": (
        "(assert (and (or (and (<= Y_0 0)) (and (or (>= Y_0 1) (<= Y_1 -1e0)))) (and)))",
        lambda x, y: y[0] <= 0 or y[0] >= 1 or y[1] <= -1,
    ),
    "numbers": (
        "(assert (<= Y_0 +5.E-1)) (assert (>= Y_1 -25.0e-2)) (assert (<= Y_1 (- (- .5))))",
        lambda x, y: y[0] <= 0.5 and -0.25 <= y[1] <= 0.5,
    ),
    "scaled bound of an input": ("(assert (<= (* -2.0 X_0) 1.0))", lambda x, y: x[0] >= -0.5),
}


def write(tmp_path, text, name="p.vnnlib"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("assertions", "means"), MEANINGS.values(), ids=MEANINGS)
def test_a_specification_means_what_it_says(tmp_path, assertions, means):
    spec = read_spec(write(tmp_path, DECLARED + assertions + BOX))
    assert (spec.inputs, spec.outputs) == (2, 2)
    numbers = [-0.75, 0.0, 0.3, 0.5, 1.0]
    found = set()
    for x0, y0, y1 in itertools.product(numbers, numbers, numbers):
        for x1 in (0.0, 0.5, 2.5, 3.0):
            expected = means((x0, x1), (y0, y1)) and 0.5 <= x1 <= 2.5
            assert spec.is_unsafe([x0, x1], [y0, y1]) == expected
            found.add(expected)
    assert found == {True, False}


def test_the_box_holds_those_of_all_cases(tmp_path):
    text = "(assert (or (and (>= X_0 -1) (<= X_0 0)) (and (>= X_0 2) (<= X_0 3)))) (assert (<= X_1 7))"
    low, high = read_spec(write(tmp_path, DECLARED + text)).box
    np.testing.assert_equal(low, [-1, -np.inf])
    np.testing.assert_equal(high, [3, 7])


def test_a_compressed_file_is_read(tmp_path):
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress((DECLARED + BOX).encode()))
    np.testing.assert_equal(read_spec(path).box, [[-1, 0.5], [1, 2.5]])


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "p.vnnlib"
    path.write_text(DECLARED + BOX, encoding="utf-8-sig")
    np.testing.assert_equal(read_spec(path).box, [[-1, 0.5], [1, 2.5]])


VERSION_2 = """
    (vnnlib-version <2.0>)
    (declare-network N
        (declare-input image float32 [1, 2, 2]) (declare-input scale float32 [1])
        (declare-output scores float32 [1, 3]))
    (assert (and (>= image[0,0,0] -1.0) (<= image[0,0,0] 1.0)))
    (assert (<= image[0,1,0] 0.25))
    (assert (>= scale[0] 2.0))
    (assert (or (<= scores[0,0] scores[0,2]) (and (>= scores[0,1] 3.0) (<= (+ scores[0,0] (* 2.0 scores[0,1])) 1.0))))
"""
VERSION_1 = "".join(f"(declare-const {name} Real)" for name in ["X_0", "X_1", "X_2", "X_3", "X_4", "Y_0", "Y_1", "Y_2"])
VERSION_1 += """
    (assert (and (>= X_0 -1.0) (<= X_0 1.0))) (assert (<= X_2 0.25)) (assert (>= X_4 2.0))
    (assert (or (<= Y_0 Y_2) (and (>= Y_1 3.0) (<= (+ Y_0 (* 2.0 Y_1)) 1.0))))
"""


def test_version_2_counts_the_elements_of_all_tensors(tmp_path):
    first = read_spec(write(tmp_path, VERSION_1, "1.vnnlib"))
    second = read_spec(write(tmp_path, VERSION_2, "2.vnnlib"))
    assert (first.inputs, first.outputs) == (second.inputs, second.outputs) == (5, 3)
    assert len(first.cases) == len(second.cases) == 2
    for a, b in zip(first.cases, second.cases, strict=True):
        for name in ("low", "high", "matrix", "limits"):
            np.testing.assert_equal(getattr(a, name), getattr(b, name))


SECOND_NETWORK = VERSION_2.replace(
    "(assert", "(declare-network M (declare-input a float32 [1]) (declare-output b float32 [1])) (assert", 1
)
REFUSED = {
    "no text": ("\0\0(", ValueError, "opening parentheses"),
    "closing alone": (")", ValueError, "closing parenthesis"),
    "nested": ("(" * 200, NotImplementedError, "nested more than 100 deep"),
    "not an assertion": (DECLARED + "(check-sat)", ValueError, r"\(check-sat\) is neither"),
    "a gap": ("(declare-const X_1 Real)(declare-const Y_0 Real)", ValueError, "without a gap"),
    "no output": ("(declare-const X_0 Real)", ValueError, "Y_0, Y_1"),
    "undeclared": (DECLARED + "(assert (<= Y_2 0))", ValueError, "Y_2 is used and not declared"),
    "a stranger": (DECLARED + "(assert (<= Z 0))", ValueError, "Z is neither a number nor a variable"),
    "strict": (DECLARED + "(assert (< Y_0 0))", NotImplementedError, r"\(< Y_0 0\) is none of"),
    "implication": (DECLARED + "(assert (=> (<= X_0 0) (<= Y_0 0)))", NotImplementedError, "is none of"),
    "product": (DECLARED + "(assert (<= (* Y_0 Y_1) 0))", NotImplementedError, "not linear"),
    "division": (DECLARED + "(assert (<= (/ Y_0 2) 0))", NotImplementedError, "not a linear term"),
    "infinite": (DECLARED + "(assert (<= Y_0 1e999))", ValueError, "1e999 is not a finite number"),
    "a word for a number": (DECLARED + "(assert (<= Y_0 inf))", ValueError, "inf is neither a number nor a variable"),
    "Python's number": (DECLARED + "(assert (<= Y_0 1_0))", ValueError, "1_0 is neither a number nor a variable"),
    "leading zeros": (DECLARED + "(assert (<= Y_00 1))", ValueError, "Y_00 is neither a number nor a variable"),
    "twice": (DECLARED + "(declare-const X_0 Real)", ValueError, "X_0 is declared twice"),
    "a function": (DECLARED + "(declare-fun X_2 (Real) Real)", ValueError, "neither a declaration of a Real"),
    "nothing to choose": (DECLARED + "(assert (or))", ValueError, "allows no input"),
    "empty": (DECLARED + "(assert (<= X_0 0)) (assert (>= X_0 1))", ValueError, "allows no input"),
    "too many cases": (
        DECLARED + 14 * "(assert (or (<= Y_0 0) (<= Y_1 0)))",
        NotImplementedError,
        "more than 10,000 cases",
    ),
    "broken 2.0": (VERSION_2.replace("scale[0]", "scale[7]"), ValueError, "cannot be read"),
    "two networks": (SECOND_NETWORK, NotImplementedError, "2 networks"),
}


@pytest.mark.parametrize(("text", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path, text, error, message):
    path = write(tmp_path, text)
    with pytest.raises(error, match=message) as raised:
        read_spec(path)
    assert str(path) in str(raised.value)


def test_what_is_no_path_is_refused():
    with pytest.raises(
        TypeError, match="a specification must be the path of a file, or what read_spec returns, got int"
    ):
        read_spec(5)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "p.vnnlib"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be a text file"):
        read_spec(path)
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(b"not compressed")
    with pytest.raises(ValueError, match="must be a text file"):
        read_spec(path)
