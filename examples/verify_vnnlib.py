"""Whether a network meets a specification: an ONNX file and a VNN-LIB file in; `sat`, `unsat` or `timeout` out.

`sat` comes with a counterexample, which onnxruntime runs on the original file; `unsat` means that there is none. The
network becomes a chain of linear layers and ReLUs for the boxes of the specification, its bounds become the big-M of a
mixed-integer program, and HiGHS searches. This shows what the chain is for; it is no verifier: solvers made for
networks, as alpha-beta-CROWN or Marabou, decide far more.

    python -m examples.verify_vnnlib network.onnx specification.vnnlib --seconds 300
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import numpy_helper
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, hstack, identity, vstack
from torch import Tensor, nn

import conv2affine.onnx
from conv2affine.interop.vnnlib import Case
from conv2affine.onnx import Specification, read_spec

STARTS, STEPS = 64, 60


@dataclass(frozen=True)
class Answer:
    """What was found.

    Args:
        verdict: "sat", "unsat" or "timeout".
        witness: The input, flat, of a counterexample.
        relus: In the chain, and how many of them have bounds of both signs, so that they need a binary variable.
        seconds: In all.
    """

    verdict: str
    witness: Any
    relus: int
    binaries: int
    seconds: float


class Original:
    """The network as it is in the file, in onnxruntime."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.shapes = [[n if isinstance(n, int) and n > 0 else 1 for n in x.shape] for x in self.session.get_inputs()]

    def __call__(self, x: Any) -> Any:
        """All outputs as one vector, for all inputs as one."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        parts = np.split(x, ends[:-1])
        names = [value.name for value in self.session.get_inputs()]
        feed = {
            name: part.reshape(shape).astype(np.float32)
            for name, part, shape in zip(names, parts, self.shapes, strict=True)
        }
        return np.concatenate([y.ravel() for y in self.session.run(None, feed)])


def main(arguments: Sequence[str] | None = None) -> Answer:
    """Read, convert, search, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("specification", type=Path)
    parser.add_argument("--seconds", type=float, default=300, help="time limit")
    options = parser.parse_args(arguments)
    answer = decide(options.network, options.specification, options.seconds)
    print(answer.verdict)
    if answer.witness is not None:
        print(" ".join(f"X_{i}={value:.9g}" for i, value in enumerate(answer.witness[:8])), "...")
    print(f"{answer.relus} ReLUs, {answer.binaries} binary variables, {answer.seconds:.1f} s")
    return answer


def decide(network: Path, specification: Path, seconds: float = 300) -> Answer:
    """The answer for a network and a specification."""
    start = time.monotonic()
    spec, original = read_spec(specification), Original(network)
    boxes: dict[bytes, list[Case]] = {}
    for case in spec.cases:
        boxes.setdefault(case.low.tobytes() + case.high.tobytes(), []).append(case)
    relus = binaries = 0
    verdict, witness = "unsat", None
    for cases in boxes.values():
        chain = to_chain(network, replace(spec, cases=tuple(cases)))
        relus, binaries = max(relus, chain.relus), max(binaries, chain.binaries)
        for case, rows in zip(cases, chain.rows, strict=True):
            if (chain.bounds[-1][0][rows] > case.limits).any():
                continue  # the bounds alone prove it
            witness = attack(chain, case, rows, lambda x: spec.is_unsafe(x, original(x)))
            if witness is None:
                left = start + seconds - time.monotonic()
                found, x = solve(chain, case, rows, left) if left > 0 else ("timeout", None)
                if x is not None and spec.is_unsafe(x, original(x)):
                    witness = x
                elif found != "infeasible":
                    verdict = "timeout"
            if witness is not None:
                return Answer("sat", witness, relus, binaries, time.monotonic() - start)
    return Answer(verdict, None, relus, binaries, time.monotonic() - start)


@dataclass(frozen=True)
class Chain:
    """A network for the box of some cases, followed by the left sides of their inequalities.

    Args:
        mlp: Linear layers and ReLUs; the outputs are matrix @ (x, y) of all cases.
        bounds: (low, high) of the outputs of each linear layer.
        rows: Which outputs belong to each case.
    """

    mlp: nn.Sequential
    bounds: Sequence[tuple[Any, Any]]
    rows: Sequence[slice]

    @property
    def relus(self) -> int:
        return sum(len(low) for low, _ in self.bounds[:-1])

    @property
    def binaries(self) -> int:
        return sum(int(((low < 0) & (high > 0)).sum()) for low, high in self.bounds[:-1])

    @property
    def linear(self) -> list[tuple[csr_array, Any]]:
        """The matrix and the bias of each linear layer."""
        layers = [layer for layer in self.mlp if hasattr(layer, "weight")]
        return [(csr_array(layer.weight.detach().to_dense().numpy()), layer.bias.detach().numpy()) for layer in layers]


def to_chain(path: Path, spec: Specification) -> Chain:
    """The chain of a network, in float64, for cases that share a box."""
    result = conv2affine.onnx.convert(path, form="mlp", flat=True, dtype=torch.float64, spec=spec).model
    arrays = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in result.graph.initializer}
    modules: list[nn.Module] = []
    for node in result.graph.node:
        if node.op_type == "Relu":
            modules.append(nn.ReLU())
        else:  # Gemm, with its matrix as it is, or transposed
            weight, bias = (arrays[name] for name in node.input[1:])
            is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            modules.append(linear(weight if is_transposed else weight.T, bias))
    sides = torch.from_numpy(np.concatenate([case.matrix for case in spec.cases]))
    zeros = torch.zeros(len(sides), dtype=torch.float64)
    network = nn.Sequential(*modules)
    if sides[:, : spec.inputs].any():
        model: nn.Module = WithInput(network, linear(sides, zeros))
    else:  # the usual case, in which the chain need not carry its input along
        model = nn.Sequential(network, linear(sides[:, spec.inputs :], zeros))
    box = torch.from_numpy(spec.box[0]), torch.from_numpy(spec.box[1])
    mlp = conv2affine.to_mlp(model, box[0][None], box=box)
    ends = np.cumsum([0, *(len(case.limits) for case in spec.cases)])
    rows = [slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
    return Chain(mlp, [(a.numpy(), b.numpy()) for a, b in mlp.bounds], rows)


class WithInput(nn.Module):
    """The left sides of inequalities of (x, network(x))."""

    def __init__(self, network: nn.Module, sides: nn.Linear) -> None:
        super().__init__()
        self.network, self.sides = network, sides

    def forward(self, x: Tensor) -> Tensor:
        return self.sides(torch.cat([x, self.network(x)], 1))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of this weight (rows, cols) and bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def attack(chain: Chain, case: Case, rows: slice, is_unsafe: Callable[[Any], bool]) -> Any:
    """An unsafe input that gradients find, or None."""
    low, high, limits = (torch.from_numpy(array) for array in (case.low, case.high, case.limits))
    generator = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(STARTS, len(low), generator=generator, dtype=low.dtype)
    x[0] = (low + high) / 2
    for step in range(STEPS):
        x.requires_grad_()
        excess = (chain.mlp(x)[:, rows] - limits).amax(1)
        if excess.min() <= 0 and is_unsafe(best := x[excess.argmin()].detach().numpy()):
            return best
        [gradient] = torch.autograd.grad(excess.sum(), x)
        size = (high - low) / (4 + step)
        x = (x.detach() - size * gradient.sign()).clamp(low, high)
    return None


def solve(chain: Chain, case: Case, rows: slice, seconds: float) -> tuple[str, Any]:
    """What HiGHS says, "feasible", "infeasible" or "timeout", and the input if there is one.

    The variables are x, the units of each layer, and a binary variable for each unit with bounds of both signs, 1 where
    it is active. For a = relu(z), z = W a_before + b in [l, h], with the binary d:

        a >= z,   a <= z - l (1 - d),   0 <= a <= h d
    """
    columns = [len(case.low)]
    rules: list[tuple[list[tuple[int, csr_array]], Any, Any]] = []  # blocks by column, lower and upper limits
    low, high, is_integer = [case.low], [case.high], [np.zeros(len(case.low))]
    before = 0
    for (weight, bias), (lower, upper) in zip(chain.linear[:-1], chain.bounds[:-1], strict=True):
        place, binary = len(columns), len(columns) + 1
        unstable = np.flatnonzero((lower < 0) & (upper > 0))
        columns += [len(lower), len(unstable)]
        low += [np.zeros(len(lower)), np.zeros(len(unstable))]
        high += [np.maximum(upper, 0), np.ones(len(unstable))]
        is_integer += [np.zeros(len(lower)), np.ones(len(unstable))]
        select = csr_array(identity(len(lower), format="csr"))
        active = np.flatnonzero(lower >= 0)
        rules.append(([(place, select[active]), (before, -weight[active])], bias[active], bias[active]))
        some, z = select[unstable], -weight[unstable]
        rules.append(([(place, some), (before, z)], bias[unstable], np.full(len(unstable), np.inf)))
        scaled = csr_array((-lower[unstable], (np.arange(len(unstable)),) * 2))
        blocks = [(place, some), (before, z), (binary, scaled)]
        rules.append((blocks, np.full(len(unstable), -np.inf), bias[unstable] - lower[unstable]))
        scaled = csr_array((-upper[unstable], (np.arange(len(unstable)),) * 2))
        rules.append(([(place, some), (binary, scaled)], np.full(len(unstable), -np.inf), np.zeros(len(unstable))))
        before = place
    weight, bias = chain.linear[-1]
    rules.append(([(before, weight[rows])], np.full(len(case.limits), -np.inf), case.limits - bias[rows]))
    matrix = vstack([row_of(blocks, columns) for blocks, _, _ in rules], format="csr")
    constraint = LinearConstraint(matrix, *(np.concatenate(limits) for limits in list(zip(*rules, strict=True))[1:]))
    result = milp(
        np.zeros(sum(columns)),
        integrality=np.concatenate(is_integer),
        bounds=Bounds(np.concatenate(low), np.concatenate(high)),
        constraints=constraint,
        options={"time_limit": seconds},
    )
    if result.x is not None:
        return "feasible", np.clip(result.x[: columns[0]], case.low, case.high)
    return ("infeasible" if result.status == 2 else "timeout"), None


def row_of(blocks: Sequence[tuple[int, csr_array]], columns: Sequence[int]) -> csr_array:
    """A row of blocks, with zeros between them."""
    [count] = {block.shape[0] for _, block in blocks}
    there = dict(blocks)
    return hstack([there.get(number, csr_array((count, width))) for number, width in enumerate(columns)], format="csr")


if __name__ == "__main__":
    main()
