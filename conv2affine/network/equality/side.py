"""One of two networks that are compared: what it computes, in its own dtype and exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.network.equality.forms import Mask
from conv2affine.network.graph import Graph, Kept, Piece, Step, Value
from conv2affine.network.kinds import evaluate
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.passes.elementary import elementary
from conv2affine.network.passes.ends import join_ends
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.passes.to_relu import to_relu
from conv2affine.network.proof.bounds import bounds, check_memory
from conv2affine.network.proof.forward import Interval

# Relative size of one rounding where a side computes in float64: its entries are products in float64 here too.
LEAST_UNIT = 2.0**-46


class NotExactError(RuntimeError):
    """An operator does not run in float64, or not on these inputs."""


class NotTakenError(RuntimeError):
    """A network does not run on these inputs."""


@dataclass(frozen=True)
class Side:
    """A network, from one vector of all inputs to one vector of all outputs.

    Args:
        network: Any graph.
        dtype: In which it computes.
        eps: Of the coarsest dtype in which it computes.
        dtypes: Of its inputs.
        own: Takes a point, (inputs,), and returns the outputs that the network computes in its own dtype.
        box: That for which it is a chain, as `Box.json` writes it; "" if it is not for a box.
    """

    network: Graph
    dtype: torch.dtype
    eps: float
    dtypes: Sequence[torch.dtype]
    own: Callable[[Array], Array]
    box: str

    @cached_property
    def whole(self) -> Graph:
        """The network of one input and one output, with its piecewise-linear steps as they are."""
        return simplify(elementary(join_ends(self.network), self.dtype))

    @cached_property
    def graph(self) -> Graph:
        """The network of one input and one output, as pieces, ReLUs, and operators that are neither."""
        return simplify(to_relu(self.whole, self.dtype))

    def is_exact(self, node: Piece) -> bool:
        """Whether nothing is rounded: in an alias, and in a step that takes one of several numbers, as a maximum does.

        What such a step becomes is sums and differences, none of which the network computes.
        """
        if node.map.alias is not None:
            return True
        inside = node.output not in self._computed
        return inside and all((np.abs(part.data) == 1).all() for part in self.matrices[node].values())

    @cached_property
    def _computed(self) -> frozenset[Value]:
        return frozenset(self.whole.producer)

    @property
    def unit(self) -> float:
        """Relative size of one rounding."""
        return max(self.eps / 2, LEAST_UNIT)

    @property
    def has_bounds(self) -> bool:
        """Whether it has pieces and ReLUs only, all in its dtype."""
        kept = any(isinstance(node, Kept) for node in self.graph.nodes)
        return not kept and self.eps <= torch.finfo(self.dtype).eps

    @cached_property
    def not_negative(self) -> Mapping[Value, Mask]:
        """The elements of each value that are sums of ReLUs, each times a number >= 0, and of a number >= 0."""
        masks = {self.graph.inputs[0]: np.zeros(self.graph.inputs[0].size, bool)}
        for node in self.graph.nodes:
            if isinstance(node, Piece):
                mask = node.map.bias >= 0
                for source, part in self.matrices[node].items():
                    wrong = (part.data < 0) | ~masks[source][part.indices]
                    mask &= csr_array((1.0 * wrong, part.indices, part.indptr), shape=part.shape).sum(axis=1) == 0
                masks[node.output] = mask
            else:
                masks.update({value: np.full(value.size, isinstance(node, Step)) for value in node.outputs})
        return masks

    @property
    def relus(self) -> int:
        """How many numbers go through a ReLU."""
        return sum(node.outputs[0].size for node in self.graph.nodes if isinstance(node, Step))

    @cached_property
    def matrices(self) -> Mapping[Piece, Mapping[Value, csr_array]]:
        """The matrices of all pieces, written out."""
        check_memory(self.graph)
        pieces = [node for node in self.graph.nodes if isinstance(node, Piece)]
        return {node: {source: matrix.nonzero() for source, matrix in node.map.terms.items()} for node in pieces}

    def ranges(self, box: Interval) -> dict[Value, Interval]:
        """Bounds of all values in a box."""
        return bounds(self.graph, {self.graph.inputs[0]: box}, self.dtype)

    def run(self, points: Array) -> Array:
        """The outputs (points, outputs) in its own dtype."""
        try:
            return np.stack([self.own(point) for point in points])
        except Exception as error:  # a network may raise anything
            raise NotTakenError(f"{type(error).__name__}: {error}") from error

    @np.errstate(all="ignore")
    def values(self, points: Array, unit: float = 0.0, seed: int = 0) -> dict[Value, Array]:
        """All values (points, elements) in float64; with `unit`, moved as roundings of this size move them."""
        random = np.random.default_rng(seed)
        values = {self.graph.inputs[0]: points}
        for node in self.graph.nodes:
            if isinstance(node, Piece):
                y = np.tile(node.map.bias, (len(points), 1))
                size = np.abs(y)
                for source, matrix in self.matrices[node].items():
                    y += (matrix @ values[source].T).T
                    if unit:
                        size += (abs(matrix) @ np.abs(values[source]).T).T
                y = _moved(node, y, values)
                if unit and node.map.alias is None and y.dtype.kind == "f":
                    y += unit * size * random.uniform(-1, 1, y.shape)
                values[node.output] = y
            elif isinstance(node, Kept):
                values.update(zip(node.outputs, _run_kept(node, values), strict=True))
                for value in node.outputs if unit else ():
                    seen = values[value]
                    if seen.dtype.kind == "f":  # kernels are accurate relative to the largest result
                        largest = np.abs(seen).max(axis=1, keepdims=True, initial=0)
                        values[value] = seen + unit * largest * random.uniform(-1, 1, seen.shape)
            else:
                values[node.outputs[0]] = np.maximum(values[node.inputs[0]], 0)
        return values

    @np.errstate(all="ignore")
    def whole_values(self, points: Array) -> dict[Value, Array]:
        """All values (points, elements) of the steps as they are, in float64."""
        values = {self.whole.inputs[0]: points}
        for node in self.whole.nodes:
            if isinstance(node, Kept):
                values.update(zip(node.outputs, _run_kept(node, values), strict=True))
            elif isinstance(node, Piece):
                y = evaluate(node, values) + np.zeros((len(points), 1))
                values[node.output] = _moved(node, y, values)
            else:
                values[node.outputs[0]] = evaluate(node, values)
        return values

    def output(self, values: Mapping[Value, Array]) -> Array:
        """The outputs among the values."""
        return values[self.graph.outputs[0]].astype(np.float64)

    def gradient(self, values: Mapping[Value, Array], weights: Array, of: Value | None = None) -> Array:
        """The gradient of weights (points, elements) times a value, the output if none is given.

        What passes an operator that is kept is left out.
        """
        waiting = {of or self.graph.outputs[0]: weights}
        for node in reversed(self.graph.nodes):
            found = [waiting.pop(value) for value in node.outputs if value in waiting]
            for source in node.inputs if found and not isinstance(node, Kept) else ():
                if isinstance(node, Piece):
                    part = (self.matrices[node][source].T @ found[0].T).T
                else:
                    part = found[0] * (values[source] > 0)
                waiting[source] = waiting[source] + part if source in waiting else part
        return waiting.get(self.graph.inputs[0], np.zeros((len(weights), self.graph.inputs[0].size)))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors that say which model they are about."""
    try:
        yield
    except Exception as error:
        if len(error.args) == 1:
            error.args = (f"{name}: {error}",)
        raise


def _moved(node: Piece, y: Array, values: Mapping[Value, Any]) -> Array:
    """The output y of a piece: whole numbers or masks, if it moves such."""
    dtypes = [values[source].dtype for source in node.inputs]
    whole = y.astype(np.result_type(*dtypes)) if dtypes else y
    return whole if (whole == y).all() else y


def _run_kept(node: Kept, values: Mapping[Value, Array]) -> list[Any]:
    """The outputs of an operator, one sample at a time: in float64, where they are not whole numbers or masks."""
    count = len(values[node.inputs[0]])
    rows = []
    for number in range(count):
        arrays = [values[value][number].reshape(shape) for value, shape in zip(node.inputs, node.shapes, strict=True)]
        try:
            results = [np.asarray(result).reshape(-1) for result in node.call.run(arrays)]
            if [result.size for result in results] != [value.size for value in node.outputs]:
                raise ValueError("its results have other shapes")  # as onnx.reference gives for some pools
            rows.append([result.astype(np.float64) if result.dtype.kind == "f" else result for result in results])
        except Exception as error:  # PyTorch and onnx.reference may raise anything
            raise NotExactError(
                f"{', '.join(node.origin)} does not run in float64 on the inputs tried: {error}"
            ) from error
    return [np.stack(column) for column in zip(*rows, strict=True)]
