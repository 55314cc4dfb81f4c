"""The public function for the affine map that a network is around a point."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csr_array
from torch import Tensor

from conv2affine.convolution.guard import check_left
from conv2affine.convolution.layouts import NAMES, Layout, named_layout
from conv2affine.network.graph import Graph, Piece, unused
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.passes.ends import slices
from conv2affine.network.passes.merge import merge
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.prepare import DTYPES, check_kept, one_of
from conv2affine.network.regions.local import LocalMap
from conv2affine.network.regions.region import LinearRegion, csr_bytes, of_points, to_csr
from conv2affine.network.torch.exporter import export_torch
from conv2affine.network.torch.importing.importer import import_torch
from conv2affine.network.torch.models.intake import ExampleInputs, Model, hold
from conv2affine.network.torch.models.surroundings import alone
from conv2affine.network.torch.modules import Affine
from conv2affine.network.torch.noise import wider
from conv2affine.network.torch.verifying.verify import verify
from conv2affine.network.vectors import check_floats, join_inputs, with_vectors

LAYOUTS = (*NAMES, *NAMES.values())
# Of A x + b - model(x), in float64, relative to the terms of the sum.
TOLERANCE = 1e-9


@alone
def linear_region(
    model: Model, x: ExampleInputs, *, layout: Layout = "dense", dtype: torch.dtype | None = None
) -> LinearRegion:
    """The affine map that a network of affine and piecewise-linear steps is around a point, and where it holds.

        model(x).flatten(1) == x.flatten(1) @ weight.T + bias    for all x with G @ x.flatten() <= h

    Several inputs are one vector, in their order, and so are several outputs, as in `to_mlp`.

    Args:
        model: As in `to_mlp`.
        x: The point: a tensor, a tuple of tensors, or a dict of them by name, a batch of one sample, as `model` takes
            them. Or a batch of several points, which are computed together.
        layout: Of `weight`: "dense" or "sparse" (CSR, for one point), or `torch`'s for these. Default: "dense".
        dtype: Of `weight`, `bias` and `constraints`. All is computed in float64 and rounded once. Default: that in
            which `model` computes most.

    Returns:
        A `LinearRegion`. Where a step is exactly at a wall, its sides have the same value and other slopes: `ties` has
        these steps. A ReLU is off there, and a maximum takes the first of the largest.

    Raises:
        NotImplementedError: As `to_mlp`.
        ValueError: As `to_linear_network`; or if x or what is computed of it is not finite.
        MemoryError: If there is not enough memory left for `weight`, or for what is computed for all points together.
        RuntimeError: As `to_linear_network`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> x = torch.rand(1, 2)
        >>> region = linear_region(model, x)
        >>> torch.allclose(region.weight @ x[0] + region.bias, model(x)[0])
        True
        >>> bool(region.contains(x)), region.constraints[0].shape
        (True, torch.Size([3, 2]))
    """
    one_of("layout", layout, LAYOUTS)
    one_of("dtype", dtype, DTYPES)
    model, inputs = hold(model, x, "x")
    original = import_torch(model, inputs, floats=True)
    network = with_vectors(original, "a linear region")
    graph = simplify(network.graph)
    check_kept(graph, "to have linear regions", "let the model end before it")
    check_floats(network, "a linear region")
    network = dataclasses.replace(network, graph=simplify(merge(graph)))
    check = export_torch(network, wider, lambda _, matrix, bias: Affine(matrix, bias))
    verify(model, check, inputs, network, torch.float64, flat=True)
    points, graph = join_inputs(inputs), _apart(network.graph)
    local = LocalMap(graph, points[:1])
    if len(points) > 1:
        check_left(f"the maps of {len(points)} points", len(points) * local.point_bytes, "pass fewer points at a time")
        local = LocalMap(graph, points)
    if not np.isfinite(local.output).all():
        raise ValueError("the model must be finite at x, and has outputs that are infinite or NaN")
    bias = local.forward(np.zeros((1, 1, local.shape[1])))[0][:, 0]
    like = torch.empty(0, dtype=dtype or network.dtype, device=network.device)
    weight = _weight(local, points, bias, named_layout(layout), like)
    pattern, ties = _patterns(local, network.device)
    ends = slices(original.graph.inputs), slices(original.graph.outputs)
    return LinearRegion(weight, of_points(bias, like.device).to(like.dtype), pattern, ties, *ends, local)


def _apart(graph: Graph) -> Graph:
    """A copy whose weights are its own: what is done to the model does not change it."""
    nodes = [node if isinstance(node, Piece) else dataclasses.replace(node, call=None) for node in graph.nodes]
    return copy.deepcopy(dataclasses.replace(graph, nodes=nodes))


def _weight(local: LocalMap, points: Array, bias: Array, layout: torch.layout, like: Tensor) -> Tensor:
    """The matrices, some of their rows at a time; checked against the outputs."""
    shape = outputs, inputs = local.shape
    if layout is torch.sparse_csr:
        if len(points) > 1:
            raise ValueError(f'layout ("sparse") must be "dense" for {len(points)} points; or take x[i : i + 1]')
        needed, advice = csr_bytes(*shape, local.entries()[0]), "let the model give fewer outputs"
    else:
        needed, advice = len(points) * outputs * inputs * like.itemsize, 'choose layout="sparse", or fewer points'
    number = "one point" if len(points) == 1 else f"{len(points)} points"
    check_left(f"the {outputs} x {inputs} elements of weight for {number}", needed, advice)
    dense = torch.empty(len(points), *shape, dtype=like.dtype) if layout is torch.strided else None
    blocks = [csr_array((0, inputs))]
    for part, rows in local.rows():
        terms = rows * points[:, None]
        error = abs(terms.sum(2) + bias[:, part] - local.output[:, 0, part])
        if (error > TOLERANCE * (abs(terms).sum(2) + local.largest[:, None])).any():
            raise RuntimeError(f"the affine map differs from the model at x by {error.max():.3g}; please report this")
        if dense is None:
            blocks.append(csr_array(rows[0]))
        else:
            dense[:, part] = torch.tensor(rows)
    if dense is None:
        return to_csr(csr_array(scipy.sparse.vstack(blocks)), like)
    return (dense if len(points) > 1 else dense[0]).to(like.device)


def _patterns(local: LocalMap, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each step the piece of each element, and where that is at a wall."""
    # A wall that no input moves is none. A random direction moves all others, with probability 1.
    direction = np.random.default_rng(0).standard_normal((1, 1, local.shape[1]))
    moved = local.forward(direction, constants=False)[1][:, 0] != 0
    tied = local.is_wall & moved & (local.walls[:, 0] == 0)
    pattern: dict[str, Tensor] = {}
    ties: dict[str, Tensor] = {}
    start = 0
    for step, side in local.sides.items():
        name = unused(step.name, pattern.__contains__)
        stop = start + side.is_wall.shape[1]
        at_wall, start = side.by_element(tied[:, start:stop]), stop
        shape = step.outputs[0].shape[step.outputs[0].shape[0] == 1 :]
        pattern[name], at_wall = (of_points(x.reshape(-1, *shape), device) for x in (side.pattern, at_wall))
        if at_wall.any():
            ties[name] = at_wall
    return pattern, ties
