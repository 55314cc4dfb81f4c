"""Runs of a model and of what it was converted to: outputs, and the scale of each element.

And runs of its operators on a batch and on each sample, which show what mixes samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from conv2affine.network.comparison import COARSE, RUNS, is_close, scale
from conv2affine.network.torch.importing.call import operator_name, origin
from conv2affine.network.torch.models.program import export
from conv2affine.network.torch.models.surroundings import users_device
from conv2affine.network.torch.noise import InDouble, Noise

# The random samples, in units of the largest element of the example; and as many samples of that are run at most.
SCALES = (1 / 64, 1 / 2, 4)
SAMPLES = 8


def samples(inputs: Sequence[Tensor], shrunk: Literal["", "elements", "samples"] = "") -> list[Tensor]:
    """The first samples of the example, and random ones of several scales, the same in every call.

    A model may take some numbers only: with `shrunk`, the random samples are those of the example times factors between
    0 and 1, one for each of the elements, or of the samples, as a positive definite matrix stays one.
    """
    generator = torch.Generator().manual_seed(0)
    return [torch.cat([x[:SAMPLES].detach(), _random(x, generator, shrunk)]) for x in inputs]


def _random(x: Tensor, generator: torch.Generator, shrunk: str) -> Tensor:
    """Random samples like those of x; integers are taken from x, or 0, which is a valid index too."""
    if x.is_floating_point() and shrunk:
        chosen = x[torch.randint(len(x), (len(SCALES),), generator=generator)]
        shape = chosen.shape if shrunk == "elements" else (len(chosen), *[1] * (x.dim() - 1))
        return chosen * torch.rand(shape, generator=generator).to(x)
    if x.is_floating_point():
        largest = torch.cat([x.detach().double().abs().flatten().cpu(), torch.ones(1)]).max()
        sample = torch.randn(len(SCALES), *x.shape[1:], generator=generator, dtype=torch.float64)
        scales = torch.tensor(SCALES, dtype=torch.float64).view(-1, *[1] * (x.dim() - 1))
        return (sample * scales * largest).to(x)
    chosen = x[torch.randint(len(x), (len(SCALES),), generator=generator)]
    return chosen * (torch.rand(chosen.shape, generator=generator) < 0.75).to(x)


class Apart(nn.Module):
    """Calls what takes and returns joined vectors with separate inputs, and returns separate outputs."""

    def __init__(self, module: Callable[..., Tensor], outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.module, self.sizes = module, [math.prod(x.shape[1:]) for x in outputs]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Join, run and split."""
        joined = inputs if len(inputs) == 1 else [torch.cat([x.reshape(len(x), -1) for x in inputs], 1)]
        [vector] = listed(self.module(*joined), flat=True)
        if vector.shape[1] != sum(self.sizes):  # the model mixes samples: this is the wrong shape for each output
            return [vector] * len(self.sizes)
        return list(torch.split(vector, self.sizes, 1))


def exact_outputs(
    model: nn.Module, inputs: Sequence[Tensor], expected: list[Any], flat: bool
) -> tuple[list[Any], bool]:
    """The outputs in float64, or as they are expected; and whether the model can run in float64 at all."""
    try:
        exact = _in_double(model, inputs, None, flat)
        if any(isinstance(a, Tensor) and a.shape != b.shape for a, b in zip(expected, exact, strict=True)):
            raise TypeError("the bytes of float64 are not those of the model's dtype")
    except Exception:  # an operator has no float64, or writes to constants of another dtype
        return expected, False
    return exact, True


def model_scales(
    model: nn.Module, inputs: Sequence[Tensor], exact: list[Any], is_double: bool, eps: float, flat: bool
) -> Iterator[list[Any]]:
    """The scale of each element of the outputs, measured without noise, with one run with noise, and with all runs.

    The scale is how far an element moves, for one unit of noise. No scale is less than the one before.
    """
    eps = eps if is_double else COARSE * eps
    moved: list[list[Any]] = []
    for runs in (0, 1, RUNS):
        while len(moved) < runs:
            noise = Noise(eps, len(moved))
            if is_double:
                moved.append(_in_double(model, inputs, noise, flat))
            else:
                with noise:
                    moved.append(run(model, inputs, flat))
        yield [scale(a, others, eps) if isinstance(a, Tensor) else 0 for a, *others in zip(exact, *moved, strict=True)]


def computes_nan(result: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether an operator of the result gives NaN."""
    nans = _NaNs()
    with nans:
        result(*inputs)
    return nans.found


def result_scales(
    result: nn.Module, inputs: Sequence[Tensor], got: list[Any], eps: float, flat: bool
) -> list[Tensor | float]:
    """The scale of each element of the outputs of the result: what it computes inside may be larger."""
    with Noise(COARSE * eps, copies=RUNS):
        moved = listed(result(*(x.repeat(RUNS, *[1] * (x.dim() - 1)) for x in inputs)), flat)
    scales: list[Tensor | float] = []
    for a, b in zip(got, moved, strict=True):
        has_rows = isinstance(a, Tensor) and b.shape == (RUNS * len(inputs[0]), *a.shape[1:])
        scales.append(scale(a, b.unflatten(0, (RUNS, -1)), COARSE * eps) if has_rows else 0)
    return scales


def _in_double(model: nn.Module, inputs: Sequence[Tensor], noise: Noise | None, flat: bool) -> list[Any]:
    """The outputs in float64 for copies of inputs."""
    copies = [x.clone() for x in inputs]
    with InDouble(copies, noise) as double, users_device(inputs):
        outputs = model(*copies)
    return listed(pytree.tree_map(double.exact, outputs), flat)


def run(model: nn.Module, inputs: Sequence[Tensor], flat: bool) -> list[Any]:
    """The outputs of a model for copies of inputs, as it may write to them."""
    with users_device(inputs):
        return listed(model(*(x.clone() for x in inputs)), flat)


def listed(outputs: Any, flat: bool) -> list[Any]:
    """The outputs as a list; with `flat`, the tensors among them, as one vector per sample."""
    leaves = list(pytree.tree_leaves(outputs))
    if not flat:
        return leaves
    return [x.flatten(1) if x.dim() > 1 else x.unsqueeze(-1) for x in leaves if isinstance(x, Tensor)]


def first_mixing(model: nn.Module, inputs: Sequence[Tensor], tolerance: float) -> str:
    """The first operator whose result for a batch differs from its results for the single samples.

    "MODULE (OPERATOR)"; "" if there is none, or if it cannot be determined. The tolerance is relative to the largest.
    """
    samples = [tuple(x[n : n + 1] for x in inputs) for n in range(len(inputs[0]))]
    try:
        programs = [export(model, batch).module() for batch in (samples[0], tuple(inputs))]
        alone = [_Recorder(programs[0]).record(sample) for sample in samples]
        together = _Recorder(programs[1]).record(inputs)
    except Exception:  # of any kind: this only explains another error
        return ""
    for name, (node, result) in together.items():
        if name in alone[0] and not _is_union(result, [results[name][1] for results in alone], tolerance):
            return f"{origin(node)} ({operator_name(node.target)})"
    return ""


def first_infinite(model: nn.Module, inputs: Sequence[Tensor]) -> str:
    """The first operator that makes infinities or NaN of finite numbers, as in `first_mixing`."""
    sample = tuple(x[:1] for x in inputs)
    try:
        program = export(model, sample).module()
        runs = [_Recorder(program).record([x[n : n + 1] for x in inputs]) for n in range(len(inputs[0]))]
    except Exception:  # of any kind: this only explains another error
        return ""
    for name, (node, _) in runs[0].items():
        for results in runs:
            given = [results[each.name][1] for each in node.all_input_nodes if each.name in results]
            numbers = [arg for arg in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(arg, float)]
            finite = all(math.isfinite(number) for number in numbers) and all(x.isfinite().all() for x in given)
            if finite and not results[name][1].isfinite().all():
                return f"{origin(node)} ({operator_name(node.target)})"
    return ""


class _NaNs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        tensors = (x for x in pytree.tree_leaves(results) if isinstance(x, Tensor) and x.layout is torch.strided)
        self.found = self.found or any(bool(x.isnan().any()) for x in tensors)
        return results


class _Recorder(fx.Interpreter):
    def record(self, inputs: Sequence[Tensor]) -> dict[str, tuple[fx.Node, Tensor]]:
        """The operators and their results, by name."""
        self.results: dict[str, tuple[fx.Node, Tensor]] = {}
        with torch.no_grad():
            self.run(*(x.clone() for x in inputs))
        return self.results

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(n.target, torch._ops.OpOverload) and isinstance(result, Tensor):
            self.results[n.name] = n, torch.view_as_real(result).clone() if result.is_complex() else result.clone()
        return result


def _is_union(together: Tensor, alone: Sequence[Tensor], tolerance: float) -> bool:
    """Whether a result has the elements of the samples' results, in any order, or equals each of them."""
    if together.shape == alone[0].shape:
        return all(is_close(together, one, tolerance) for one in alone)
    elements = torch.cat([one.flatten() for one in alone])
    return is_close(together.flatten().double().sort()[0], elements.double().sort()[0], tolerance)
