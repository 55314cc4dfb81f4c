"""What a box leaves open about a chain of linear layers and ReLUs, and three ways to decide it.

Where a ReLU is always on or always off, it is affine. What remains are the inputs x and the outputs a of the open
ReLUs, together u = (x, a), of which everything else is an affine function:

    a = relu(z),   z = matrix @ u + constant,   low < 0 < high,   y = outputs @ u + offset
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, csr_array, diags_array, eye_array, vstack
from torch import Tensor

from conv2affine.interop.vnnlib import Case

STARTS, STEPS = 64, 60
TIGHTER, ROWS = 20, 256
PARTS, BRANCHING, MANY = 64, 10, 100
TOLERANCE = 1e-6  # as that of HiGHS
Layer = tuple[csr_array, Any]  # weight and bias


@dataclass(frozen=True)
class Relaxation:
    """A chain in terms of its inputs and its open ReLUs.

    Args:
        matrix: (open ReLUs, inputs + open ReLUs); each reads inputs, and ReLUs of the layers before its own.
        constant: (open ReLUs,), as are low and high.
        layers: Which of the open ReLUs are in each layer.
        outputs: (outputs, inputs + open ReLUs).
        offset: (outputs,).
    """

    matrix: csr_array
    constant: Any
    low: Any
    high: Any
    layers: Sequence[slice]
    outputs: csr_array
    offset: Any

    def unsafe(self, case: Case) -> tuple[csr_array, Any]:
        """(sides, limits): a case holds where sides @ u <= limits."""
        inputs = len(case.low)
        matrix, limits = case.matrix, case.limits
        if not len(limits):  # all inputs of the box: 0 <= 0
            matrix, limits = np.zeros((1, matrix.shape[1])), np.zeros(1)
        of_x, of_y = csr_array(matrix[:, :inputs]), csr_array(matrix[:, inputs:])
        of_x.resize(len(limits), self.outputs.shape[1])
        return of_x + of_y @ self.outputs, limits - of_y @ self.offset


def relaxation(layers: Sequence[Layer], bounds: Sequence[tuple[Any, Any]]) -> Relaxation:
    """Leave out the ReLUs of a chain that are not open.

    Args:
        layers: All of them.
        bounds: (low, high) of what each computes.
    """
    places = [np.flatnonzero((low < 0) & (high > 0)) for low, high in bounds[:-1]]
    inputs = layers[0][0].shape[1]
    ends = np.cumsum([inputs, *map(len, places)])
    read, add = csr_array(eye_array(inputs, ends[-1])), np.zeros(inputs)  # a layer reads: read @ u + add
    parts = []
    for (weight, bias), (low, high), place, start in zip(layers[:-1], bounds[:-1], places, ends[:-1], strict=True):
        z, constant = weight @ read, weight @ add + bias
        parts.append((z[place], constant[place], low[place], high[place]))
        columns = np.arange(start, start + len(place))
        own = csr_array((np.ones(len(place)), (place, columns)), z.shape)
        is_on = (low >= 0).astype(float)
        read, add = csr_array(diags_array(is_on) @ z + own), is_on * constant
    matrices, *arrays = zip(*parts, strict=True) if parts else ([csr_array((0, inputs))], *[[np.zeros(0)]] * 3)
    slices = [slice(*pair) for pair in zip(ends[:-1] - inputs, ends[1:] - inputs, strict=True)]
    weight, bias = layers[-1]
    return Relaxation(
        csr_array(vstack(matrices)), *map(np.concatenate, arrays), slices, weight @ read, weight @ add + bias
    )


class Lines:
    """Lower bounds of affine functions of u: each open ReLU lies between two lines, and a function is pushed back.

    The bounds of the chain were found so, with 0 or 1 as the slope of the lower line. Any slope from 0 to 1 is right:
    here gradients choose one for each function and ReLU.
    """

    def __init__(self, given: Relaxation, case: Case) -> None:
        self.layers, self.inputs = given.layers, len(case.low)
        self.matrix, self.constant = torch.from_numpy(given.matrix.toarray()), torch.from_numpy(given.constant)
        self.low, self.high = torch.from_numpy(given.low.copy()), torch.from_numpy(given.high.copy())
        self.center, self.radius = (torch.from_numpy(x / 2) for x in (case.high + case.low, case.high - case.low))

    def lowest(self, weights: Tensor, enough: Tensor, before: int, steps: int) -> Tensor:
        """Bounds of weights.T @ u, of ReLUs of the first layers; stops where one is more than enough."""
        slopes = (self.high > -self.low).double()[:, None].repeat(1, weights.shape[1])
        best = torch.full(weights.shape[1:], -torch.inf).double()
        for step in range(steps):
            slopes.requires_grad_()
            bound, _ = self.push(weights, slopes, self.low[:, None], self.high[:, None], before)
            best = torch.maximum(best, bound.detach())
            if (best > enough).any() or not bound.requires_grad:
                break
            [gradient] = torch.autograd.grad(bound.sum(), slopes)
            slopes = (slopes.detach() + 1.5 / (5 + step) * gradient.sign()).clamp(0, 1)
        return best - TOLERANCE

    def push(
        self, weights: Tensor, slopes: Tensor, low: Tensor, high: Tensor, before: int, prices: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Bounds of weights.T @ u - prices.T @ z, and the weights of each a; of what has one side, low or high is 0."""
        upper, pushed, bound = high / (high - low), weights, torch.zeros(weights.shape[1:]).double()
        seen = []
        for layer in reversed(self.layers[:before]):
            a = pushed[self.inputs :][layer]
            positive, negative = a.clamp(0), a.clamp(max=0) * upper[layer]
            z = positive * slopes[layer] + negative
            if prices is not None:
                z = z - prices[layer]
            bound = bound + self.constant[layer] @ z - (low[layer] * negative).sum(0)
            pushed = pushed + self.matrix[layer].T @ z
            seen.insert(0, a.detach())
        bound = bound + self.center @ pushed[: self.inputs] - self.radius @ pushed[: self.inputs].abs()
        return bound, torch.cat(seen) if seen else weights[:0]

    def improve(self, weights: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds in parts of the box, the parts with better slopes and prices, and what each ReLU costs at most."""
        signs, slopes, prices = (part.T.clone() for part in parts.unbind(1))
        low, high = self.low[:, None].where(signs <= 0, 0.0), self.high[:, None].where(signs >= 0, 0.0)
        functions, best = weights[:, None].repeat(1, len(parts)), torch.full((len(parts),), -torch.inf).double()
        slopes.requires_grad_(), prices.requires_grad_()
        scale = float(weights.abs().mean())
        steps = torch.optim.Adam([{"params": slopes}, {"params": prices, "lr": 0.1 * scale}], lr=0.1, maximize=True)
        for _ in range(BRANCHING):
            bound, a = self.push(functions, slopes, low, high, len(self.layers), signs * prices)
            best = torch.maximum(best, bound.detach())
            steps.zero_grad()
            bound.sum().backward()
            steps.step()
            with torch.no_grad():
                slopes.clamp_(0, 1), prices.clamp_(0)
        slopes, prices = slopes.detach(), prices.detach()
        gain = -low * high / (high - low) * a.clamp(max=0).abs()
        return best, torch.stack([signs, slopes, prices]).permute(2, 0, 1), gain.T


def is_excluded(given: Relaxation, case: Case) -> bool:
    """Whether a lower bound of one of the sides is above its limit."""
    _, sides, limits = tensors(given, case)
    found = Lines(given, case).lowest(sides.T, limits + TOLERANCE, len(given.layers), STEPS)
    return bool((found > limits).any())


def tighter(given: Relaxation, case: Case) -> Relaxation:
    """The same, with tighter bounds of each z in the box of a case, and so smaller big-M."""
    lines = Lines(given, case)
    for number, layer in enumerate(given.layers[1:], 1):  # those of the first are exact
        for rows in torch.arange(layer.start, layer.stop).split(ROWS):
            functions = lines.matrix[rows].T
            both = torch.cat([functions, -functions], 1)
            found = lines.lowest(both, torch.tensor(torch.inf), number, TIGHTER)
            least, most = found.chunk(2)
            low, high = lines.constant[rows] + least, lines.constant[rows] - most
            lines.low[rows] = torch.maximum(lines.low[rows], low).clamp(max=0)
            lines.high[rows] = torch.minimum(lines.high[rows], high).clamp(min=0)
    return replace(given, low=lines.low.numpy(), high=lines.high.numpy())


def branch(given: Relaxation, case: Case, end: float) -> bool:
    """Whether a case is excluded, as both halves are: in one a ReLU is on, z >= 0, in the other it is off, z <= 0.

    What such a ReLU adds to a bound has a price: z >= 0 and p >= 0 give f >= f - p z (known as beta-CROWN).

    Args:
        given: The open ReLUs, with bounds.
        case: The case.
        end: When to give up, in time.monotonic.
    """
    lines = Lines(given, case)
    _, sides, limits = tensors(given, case)
    found = lines.lowest(sides.T, limits + TOLERANCE, len(given.layers), STEPS)
    best = int((found - limits).argmax())
    # One row for each part: which ReLUs are on, 1, or off, -1; the slopes; the prices.
    none = torch.zeros(len(given.low))
    parts = torch.stack([none, lines.high > -lines.low, none])[None].double()
    while len(parts):
        parts, now = parts[:-PARTS], parts[-PARTS:]
        bounds, now, gain = lines.improve(sides[best], now)
        is_open = bounds <= limits[best] + TOLERANCE
        now, gain = now[is_open], gain[is_open].where(now[is_open, 0] == 0, -1)
        if time.monotonic() > end or (gain < 0).all(1).any():
            return False
        chosen = gain.argmax(1)
        for sign in (1, -1):
            half = now.clone()
            half[torch.arange(len(half)), 0, chosen] = sign
            parts = torch.cat([parts, half])
    return True


def attack(given: Relaxation, case: Case, is_unsafe: Callable[[Any], bool]) -> Any:
    """An unsafe input that gradients find, or None."""
    matrix, sides, limits = tensors(given, case)
    low, high, constant = map(torch.from_numpy, (case.low, case.high, given.constant))
    generator = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(STARTS, len(low), generator=generator, dtype=low.dtype)
    x[0] = (low + high) / 2
    for step in range(STEPS):
        u = x.requires_grad_()
        for layer in given.layers:
            z = u @ matrix[layer, : u.shape[1]].T + constant[layer]
            u = torch.cat([u, torch.relu(z)], 1)
        excess = (u @ sides.T - limits).amax(1)
        if excess.min() <= 0 and is_unsafe(best := x[excess.argmin()].detach().numpy()):
            return best
        [gradient] = torch.autograd.grad(excess.sum(), x)
        x = (x.detach() - (high - low) / (4 + step) * gradient.sign()).clamp(low, high)
    return None


def tensors(given: Relaxation, case: Case) -> tuple[Tensor, ...]:
    """The matrix, and the sides and limits of a case."""
    sides, limits = given.unsafe(case)
    return tuple(torch.from_numpy(array) for array in (given.matrix.toarray(), sides.toarray(), limits))


def search(given: Relaxation, case: Case, end: float) -> tuple[str, Any]:
    """As `solve`, until a time of time.monotonic; a case that has many open ReLUs is excluded in parts, or not."""
    if len(given.low) > MANY:
        return ("infeasible" if branch(given, case, end) else "timeout"), None
    left = end - time.monotonic()
    return solve(given, case, left) if left > 0 else ("timeout", None)


def solve(given: Relaxation, case: Case, seconds: float) -> tuple[str, Any]:
    """What HiGHS says, "feasible", "infeasible" or "timeout", and the input if there is one.

    The unknowns are u, and for each open ReLU a binary d, 1 where it is on:

        a >= z,   a <= z - low (1 - d),   0 <= a <= high d
    """
    sides, limits = given.unsafe(case)
    inputs, count = len(case.low), len(given.low)
    a = eye_array(count, inputs + count, k=inputs)
    blocks = [
        [given.matrix - a, None],
        [a - given.matrix, diags_array(-given.low)],
        [a, diags_array(-given.high)],
        [sides, csr_array((len(limits), count))],
    ]
    least = [case.low, np.zeros(2 * count)]
    greatest = [case.high, given.high, np.ones(count)]
    result = milp(
        np.concatenate(
            [sides.sum(0), np.zeros(count)]
        ),  # deep inside the case, where rounding leads to no other answer
        integrality=np.repeat([0, 1], [inputs + count, count]),
        bounds=Bounds(np.concatenate(least), np.concatenate(greatest)),
        constraints=LinearConstraint(
            block_array(blocks, format="csr"),
            ub=np.concatenate([-given.constant, given.constant - given.low, np.zeros(count), limits]),
        ),
        options={"time_limit": seconds},
    )
    if result.x is not None:
        return "feasible", np.clip(result.x[:inputs], case.low, case.high)
    return ("infeasible" if result.status == 2 else "timeout"), None
