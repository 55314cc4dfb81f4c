"""The affine map that a network is around a point, with the region where it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csr_array
from torch import Tensor

from conv2affine.convolution.guard import check_left
from conv2affine.convolution.sizes import sizes_of
from conv2affine.network.regions.local import LocalMap
from conv2affine.network.regions.nearest import nearest
from conv2affine.network.torch.models.program import tensors
from conv2affine.network.vectors import join_inputs


@dataclass(frozen=True, eq=False, repr=False)
class LinearRegion:
    """The affine map that a network is around a point, and where: within walls, each of one step's element.

        model(x).flatten(1) == x.flatten(1) @ weight.T + bias    for all x with G @ x.flatten() <= h

    Of a batch of several points, everything has an axis more, the first.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,).
        pattern: For each step, by the module that it comes from, the piece that each of its elements is on: for a ReLU
            0 where it is off, 1 where it is on; for other functions of one number, the number of bends below; for a
            maximum, the number of the one that is taken, in its window.
        ties: For the steps of which an element is exactly at a wall, where: bool, in the shape of `pattern`, which has
            the side that was taken. Empty if there are none.
        input_slices: Where each input of the model is in the vector of all.
        output_slices: Likewise.
    """

    weight: Tensor
    bias: Tensor
    pattern: dict[str, Tensor]
    ties: dict[str, Tensor]
    input_slices: tuple[slice, ...]
    output_slices: tuple[slice, ...]
    _local: LocalMap

    def __repr__(self) -> str:
        (outputs, inputs), walls = self._local.shape, int(self._local.is_wall.sum())
        points = f"{self._local.points} points, " if self._local.points > 1 else ""
        return f"LinearRegion({points}{outputs} outputs, {inputs} inputs, {len(self.pattern)} steps, {walls} walls)"

    @cached_property
    def radius(self) -> Tensor:
        """The distance from the point to the nearest wall, by the 2-norm, float64; infinite if there is none.

        Computed on first access, which takes a product with each layer for each input element, or for some hundred
        random directions where there are fewer of these.
        """
        return of_points(nearest(self._local), self.bias.device)

    @cached_property
    def constraints(self) -> tuple[Tensor, Tensor]:
        """(G, h): the walls as a CSR matrix (walls, inputs) and (walls,), in the order of the steps, for one point.

        A ReLU has one for each element, a maximum one for each element of a window that is not taken. `wall_slices` has
        the rows of each step. Computed on first access, as `radius`.

        Raises:
            ValueError: If there are several points.
            MemoryError: If G may need more memory than is left.
        """
        local = self._single("constraints")
        walls, inputs = int(local.is_wall.sum()), local.shape[1]
        entries = local.entries()[1]
        needed = 2 * csr_bytes(walls, inputs, entries)  # by columns, and then by rows
        check_left(f"constraints of {walls} x {inputs} with up to {entries} entries", needed, "radius needs less")
        [kept] = local.is_wall
        columns = [csr_array(part[0][:, kept]) for part in local.columns()]
        rows = csr_array(scipy.sparse.vstack(columns).T) if columns else csr_array((walls, inputs))
        h = -local.forward(np.zeros((1, 1, inputs)))[1][0, 0, kept]
        return to_csr(rows, self.bias), torch.from_numpy(h).to(self.bias)

    @property
    def wall_slices(self) -> dict[str, slice]:
        """The rows of `constraints` that are the walls of each step."""
        sides = self._single("wall_slices").sides.values()
        ends = accumulate((int(side.is_wall.sum()) for side in sides), initial=0)
        return {name: slice(*pair) for name, pair in zip(self.pattern, pairwise(ends), strict=True)}

    def contains(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Whether points are in the region: none of their steps is beyond a wall.

        Args:
            x: One or more samples: a tensor or a tuple of tensors, as the model takes them. For a region of several
                points as many samples, each for its own point.

        Returns:
            (samples,), bool.

        Raises:
            TypeError: If x is something else.
            ValueError: If it has other sizes than the model takes, or is not finite.
        """
        inputs, local = tensors(x, "x"), self._local
        sizes, taken = [prod(each.shape[1:]) for each in inputs], [part.stop - part.start for part in self.input_slices]
        if sizes not in (taken, [local.shape[1]]):
            raise ValueError(
                f"x must have {' + '.join(map(str, taken))} elements per sample, got {' + '.join(map(str, sizes))}"
            )
        points = join_inputs(inputs)
        if local.points not in (1, len(points)):
            raise ValueError(f"x must have {local.points} samples, one for each point of the region, got {len(points)}")
        parts = local.chunks(len(points), local.walls.shape[2]) if local.points == 1 else [slice(None)]
        samples = [points[None, part] if local.points == 1 else points[:, None] for part in parts]
        inside = [((local.forward(x)[1] <= 0) | ~local.is_wall[:, None]).all(2).ravel() for x in samples]
        return torch.from_numpy(np.concatenate(inside)).to(self.bias.device)

    def _single(self, name: str) -> LocalMap:
        if self._local.points > 1:
            raise ValueError(
                f"{name} must be asked of one point, and there are {self._local.points}; take x[i : i + 1]"
            )
        return self._local


def of_points(values: Any, device: torch.device) -> Tensor:
    """What has an axis of points as a tensor; without that axis if there is one point."""
    tensor = torch.tensor(values)
    return (tensor[0] if len(tensor) == 1 else tensor).to(device)


def to_csr(matrix: csr_array, like: Tensor) -> Tensor:
    """A CSR tensor of the dtype and on the device of another tensor."""
    starts, columns, values = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
    return torch.sparse_csr_tensor(starts, columns, values, matrix.shape, check_invariants=False).to(like)


def csr_bytes(rows: int, cols: int, nnz: int) -> int:
    """Bytes of a CSR matrix of float64."""
    return sizes_of(torch.sparse_csr, rows, cols, nnz, torch.float64)[0].bytes
