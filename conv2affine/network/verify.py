"""The check at the end of every conversion: the result is run against the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["difference", "verify"]

BATCH = 3
# Roundings add up, over the layers and over the elements of a sum; what goes wrong is off by far more.
ROUNDINGS = 1000
# And of what part of the largest output, however rough the dtype is: else anything would pass in half precision.
ROUGHEST = 0.1


def verify(
    model: nn.Module, result: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype, *, flat: bool = False
) -> None:
    """Compare a result with the model, on example inputs and on random ones.

    What rounding may change is measured: it is what the model itself makes of inputs that are off by one rounding.

    Args:
        model: What was converted.
        result: What it was converted to.
        inputs: Example inputs.
        dtype: Of the result.
        flat: Whether the result gives one vector per sample, whatever the shape of the model's output.

    Raises:
        ValueError: If the model does not take any batch, mixes its samples, or does not repeat its results.
        RuntimeError: If the results differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    if flat:
        model = nn.Sequential(model, _Flat())
    with _buffers_kept(model):
        _compare(model, result, inputs, dtype, generator)
        _compare(model, result, [_random(x, generator) for x in inputs], dtype, generator)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a model does to its buffers when it runs."""
    items = [(module._buffers, *item) for module in model.modules() for item in module._buffers.items()]
    kept = [(buffers, name, buffer, buffer.clone()) for buffers, name, buffer in items if buffer is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, value in kept:
                buffers[name] = buffer.copy_(value)


class _Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)


def _random(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch of random samples like those of x; integers are taken from x."""
    if x.is_floating_point():
        scale = x.detach().double().abs().max().clamp(min=1).cpu()
        sample = torch.randn(BATCH, *x.shape[1:], generator=generator, dtype=torch.float64) * scale / 2
        return sample.to(x)
    return x[torch.randint(len(x), (BATCH,), generator=generator)]


def _compare(model: nn.Module, result: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype, generator: Any) -> None:
    eps = max(torch.finfo(dtype).eps, *(torch.finfo(x.dtype).eps for x in inputs if x.is_floating_point()))
    nearby = [
        x * (1 + eps * torch.randn(x.shape, generator=generator).to(x)) if x.is_floating_point() else x for x in inputs
    ]
    with torch.no_grad():
        try:
            expected, again, moved = (_leaves(_run(model, batch)) for batch in (inputs, inputs, nearby))
        except Exception as error:
            raise ValueError(
                f"the model must take a batch of any size, and failed on one of {len(inputs[0])}: {error}"
            ) from error
        if not all(_repeats(a, b, eps) for a, b in zip(expected, again, strict=True)):
            raise ValueError(
                "the model must give the same result for the same input, and two runs differ; call model.eval(), and "
                "remove what depends on chance, or what is changed by a run and used in the next"
            )
        got = _leaves(result(*(x.to(dtype) if x.is_floating_point() else x for x in inputs)))
        for number, (a, b, c) in enumerate(zip(expected, got, moved, strict=True)):
            problem = difference(a, b, c, eps)
            if not problem:
                continue
            if _mixes(model, inputs, number, min(ROUNDINGS * eps, ROUGHEST)):
                raise ValueError(
                    "the model mixes the samples of a batch: what it makes of one depends on the others; only models "
                    "that treat each sample by itself can be converted (batch norm needs eval() and running statistics)"
                )
            raise RuntimeError(f"the result does not equal the model, {problem} in output {number}; please report this")


def difference(expected: Tensor, got: Tensor, moved: Tensor, eps: float) -> str:
    """How two outputs differ beyond rounding; "" if they do not."""
    if expected.shape != got.shape:
        return f"shape {tuple(got.shape)} for {tuple(expected.shape)}"
    if not expected.is_floating_point():
        wrong = (expected != got) & (expected == moved)
        return f"{int(wrong.sum())} elements" if wrong.any() else ""
    expected, got, moved = expected.double(), got.double(), moved.double()
    finite = expected.isfinite()
    if not torch.equal(expected[~finite].nan_to_num(), got[~finite].nan_to_num()):
        return "infinities"
    if not finite.any():
        return ""
    expected, got, moved = expected[finite], got[finite], moved[finite]
    largest, movement = expected.abs().max().item(), (moved - expected).abs().nan_to_num().max().item()
    allowed = min(ROUNDINGS * max(eps * largest, movement), ROUGHEST * largest)
    difference = (got - expected).abs().max().item()
    return "" if difference <= allowed else f"off by {difference:.1e}, where rounding explains {allowed:.1e}"


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """What the model makes of copies: it may write to its inputs."""
    return model(*(x.clone() for x in inputs))


def _repeats(first: Tensor, second: Tensor, eps: float) -> bool:
    """Whether two runs on the same inputs agree; sums in another order may round otherwise."""
    if first.shape != second.shape or not first.is_floating_point():
        return torch.equal(first, second)
    finite = first[first.isfinite()].abs()
    largest = finite.max().item() if len(finite) else 0.0
    return torch.allclose(first, second, rtol=0, atol=16 * eps * largest, equal_nan=True)


def _mixes(model: nn.Module, inputs: Sequence[Tensor], number: int, tolerance: float) -> bool:
    """Whether the model gives other results for each sample by itself."""
    together = _leaves(_run(model, inputs))[number].double()
    alone = torch.cat(
        [_leaves(_run(model, [x[n : n + 1] for x in inputs]))[number] for n in range(len(inputs[0]))]
    ).double()
    return together.shape != alone.shape or not torch.allclose(
        together, alone, rtol=0, atol=tolerance * float(together.abs().max()), equal_nan=True
    )


def _leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
