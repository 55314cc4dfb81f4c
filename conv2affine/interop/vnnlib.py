"""Specifications of networks in VNN-LIB: boxes of inputs, and what the outputs must not be there.

A file says when a network is unsafe: for some input in a box, linear inequalities hold. X_i and Y_j count the elements
of all inputs and of all outputs, in their order and C-contiguous, so a file stays valid for a converted network.

Source: https://www.vnnlib.org
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conv2affine.interop.smtlib import Row, alternatives, expressions, in_words, variable

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """A box of inputs x, and inequalities matrix @ (x, y) <= limits, with y = network(x).

    Args:
        low: (inputs,), smallest value of each input element; -inf for none.
        high: (inputs,), largest value of each input element; inf for none.
        matrix: (inequalities, inputs + outputs).
        limits: (inequalities,).
    """

    low: Array
    high: Array
    matrix: Array
    limits: Array


@dataclass(frozen=True)
class Specification:
    """A network is unsafe where one of the cases holds.

    Args:
        inputs: Number of input elements, X_0, X_1, ...
        outputs: Number of output elements, Y_0, Y_1, ...
        cases: For each, a box and inequalities that hold together.
    """

    inputs: int
    outputs: int
    cases: tuple[Case, ...]

    @property
    def box(self) -> tuple[Array, Array]:
        """The smallest box, (low, high), that holds the boxes of all cases."""
        return np.min([case.low for case in self.cases], axis=0), np.max([case.high for case in self.cases], axis=0)

    def box_for(self, inputs: int, outputs: int) -> tuple[Array, Array]:
        """The box of a network with this many elements of inputs and outputs.

        Raises:
            ValueError: If the specification is about other numbers of them, or an input has no bound.
        """
        if (self.inputs, self.outputs) != (inputs, outputs):
            raise ValueError(
                f"spec must be about the {inputs} inputs and {outputs} outputs of the network, and is about "
                f"{self.inputs} and {self.outputs}"
            )
        for side, bound in zip(("lower", "upper"), self.box, strict=True):
            if np.isinf(bound).any():
                raise ValueError(
                    f"spec must bound every input on both sides, and X_{np.isinf(bound).argmax()} has no {side} bound "
                    "in one of its cases; add that to the file"
                )
        return self.box

    def is_unsafe(self, x: ArrayLike, y: ArrayLike) -> bool:
        """Whether the specification calls an input and its output, flat vectors, unsafe."""
        x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
        return any(
            (case.low <= x).all()
            and (x <= case.high).all()
            and (case.matrix @ np.concatenate([x, y]) <= case.limits).all()
            for case in self.cases
        )


def read_spec(path: str | Path) -> Specification:
    """Read a specification in VNN-LIB 1.0, or in 2.0 with the package `vnnlib`.

    Args:
        path: Of a file `.vnnlib` or `.vnnlib.gz`.

    Returns:
        Its inequalities as a disjunction of cases.

    Raises:
        TypeError: If `path` is no path.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not VNN-LIB, or has no case that any input can fulfil; the message names it.
        NotImplementedError: If it has something else than <=, >= and = of linear terms, under `and` and `or`, of one
            network; or more than 10,000 cases.
        ImportError: If it is of version 2.0, and `vnnlib` is not installed.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "unit.vnnlib"
        >>> _ = path.write_text('''
        ...     (declare-const X_0 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
        ...     (assert (and (>= X_0 -1) (<= X_0 1)))
        ...     (assert (or (<= Y_0 Y_1) (<= (* 2.0 Y_0) 3.0)))
        ... ''')
        >>> spec = read_spec(path)
        >>> spec.box, [case.matrix.tolist() for case in spec.cases]
        ((array([-1.]), array([1.])), [[[0.0, 1.0, -1.0]], [[0.0, 2.0, 0.0]]])
    """
    if not isinstance(path, str | Path):
        kind = type(path).__name__
        raise TypeError(f"a specification must be the path of a file, or what read_spec returns, got {kind}")
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            text = re.sub(";.*", "", file.read())
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} must be a text file in VNN-LIB: {error}") from error
    try:
        counts, formulas = _read_2(text) if "declare-network" in text else _read_1(text)
        cases = [_case(counts, rows) for rows in alternatives(["and", *formulas])]
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"{path} cannot be read: {error}") from error
    cases = [case for case in cases if (case.low <= case.high).all()]
    if not cases:
        raise ValueError(
            f"{path} allows no input at all: a lower bound of an input is above its upper one, or an `or` is empty"
        )
    return Specification(*counts, tuple(cases))


def _read_1(text: str) -> tuple[tuple[int, int], list[Any]]:
    """The numbers of inputs and outputs, and the formula of each assertion."""
    declared: dict[str, set[int]] = {"X": set(), "Y": set()}
    formulas = []
    for expression in expressions(text):
        match expression:
            case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                letter, number = variable(name)
                if number in declared[letter]:
                    raise ValueError(f"{name} is declared twice")
                declared[letter].add(number)
            case ["assert", formula]:
                formulas.append(formula)
            case _:
                raise ValueError(f"{in_words(expression)} is neither a declaration of a Real nor an assertion")
    for letter, numbers in declared.items():
        if numbers != set(range(len(numbers))) or not numbers:
            raise ValueError(f"{letter}_0, {letter}_1, ... must be declared without a gap, and {len(numbers)} are")
    return (len(declared["X"]), len(declared["Y"])), formulas


def _read_2(text: str) -> tuple[tuple[int, int], list[Any]]:
    """The same for version 2.0, whose variables X[0, 1] are rewritten as X_1."""
    try:
        import vnnlib
    except ModuleNotFoundError as error:
        raise ImportError("VNN-LIB 2.0 needs vnnlib; install it with: pip install 'conv2affine[spec]'") from error
    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise ValueError(str(error)) from error
    if len(query.networks) != 1:
        raise NotImplementedError(f"it is about {len(query.networks)} networks; write one specification for each")
    [network] = query.networks
    if network.hidden:
        raise NotImplementedError(
            f"it names hidden values, as {network.hidden[0].name}, and must name inputs and outputs only"
        )
    places: dict[str, tuple[str, int, tuple[int, ...]]] = {}
    counts = []
    ends: Any = (("X", network.inputs), ("Y", network.outputs))
    for letter, tensors in ends:
        sizes = [prod(tensor.shape) for tensor in tensors]
        for tensor, start in zip(tensors, accumulate(sizes, initial=0), strict=False):
            places[tensor.name] = letter, start, tuple(tensor.shape)
        counts.append(sum(sizes))

    def flat(match: re.Match[str]) -> str:
        letter, start, shape = places[match[1]]
        index = tuple(int(number) for number in match[2].split(",") if number.strip())
        return f"{letter}_{start + int(np.ravel_multi_index(index, shape)) if shape else start}"

    rewritten = re.sub(r"([^\s()\[\]]+)\s*\[([\d,\s]*)\]", flat, " ".join(map(str, query.assertions)))
    return (counts[0], counts[1]), [formula for _, formula in expressions(rewritten)]


def _case(counts: Sequence[int], rows: Sequence[Row]) -> Case:
    """A conjunction; rows of one input alone are a part of the box."""
    inputs, outputs = counts
    low, high = np.full(inputs, -inf), np.full(inputs, inf)
    others = []
    for row in rows:
        variables = {key: factor for key, factor in row.items() if key is not None and factor}
        limit = -row.get(None, 0.0)
        for letter, number in variables:
            if number >= counts["XY".index(letter)]:
                raise ValueError(f"{letter}_{number} is used and not declared")
        if len(variables) == 1 and (key := next(iter(variables)))[0] == "X":
            factor, number = variables[key], key[1]
            if factor > 0:
                high[number] = min(high[number], limit / factor)
            else:
                low[number] = max(low[number], limit / factor)
        else:
            others.append((variables, limit))
    matrix = np.zeros((len(others), inputs + outputs))
    for number, (variables, _) in enumerate(others):
        for (letter, place), factor in variables.items():
            matrix[number, place + (inputs if letter == "Y" else 0)] = factor
    return Case(low, high, matrix, np.array([limit for _, limit in others]))
