"""The weight and bias that a layer's next `forward` uses, however they are parametrised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from conv2affine.convolution.arguments import Conv, InputSize
from conv2affine.convolution.geometry import Geometry

# Forward pre-hooks that compute a parameter. Between two calls of forward, the layer holds what they computed last.
HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)


def read(conv: Conv | Tensor, input_size: InputSize | Geometry) -> tuple[Tensor, Tensor | None, Geometry]:
    """(weight, bias, geometry) of a layer at an input size, or of a weight in a geometry; everything is checked.

    The weight has shape `geometry.weight_size`; a weight has no bias.

    Raises:
        TypeError: If it is neither; or as `Geometry.from_layer`.
        ValueError: As `Geometry.from_layer`, or if the weight has another shape than the geometry asks for.

    Example:
        >>> _, _, geometry = read(torch.zeros(1, 1, 3), Geometry(1, 1, (3,), input_size=5))
        >>> geometry.shape
        (3, 5)
    """
    if isinstance(input_size, Geometry):
        if not isinstance(conv, Tensor):
            raise TypeError(
                f"conv ({type(conv).__qualname__}) must be a weight tensor if input_size is a Geometry; pass a layer "
                "with sizes, or its weight with the Geometry"
            )
        weight, bias, geometry = conv, None, input_size
    else:
        geometry = Geometry.from_layer(conv, input_size)  # type: ignore[arg-type]  # refuses tensors
        weight, bias = weight_and_bias(conv)  # type: ignore[arg-type]
    geometry.check_weight(weight)
    return weight, bias, geometry


def weight_and_bias(conv: Conv) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias, or None, that the next `conv(x)` of a layer uses.

    Parametrizations (`torch.nn.utils.parametrize`) and the hooks of `torch.nn.utils.prune`, `weight_norm` and
    `spectral_norm` are computed on copies of the layer's buffers: neither the layer nor the state of a random number
    generator changes. Forward pre-hooks of other kinds are not called. Where nothing computes them, both are the
    layer's own parameters, otherwise new tensors that are differentiable in the original ones.

    Example:
        >>> conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 2, 3))
        >>> weight, _ = weight_and_bias(conv)
        >>> torch.equal(weight, conv.weight)
        True
    """
    state = vars(conv)
    hooks = [hook for hook in state["_forward_pre_hooks"].values() if isinstance(hook, HOOKS)]
    if "parametrizations" not in state["_modules"] and not hooks:
        return conv.weight, conv.bias
    twin, weight = _twin(conv, {}), next(conv.parameters())
    with torch.random.fork_rng([weight.get_device()] if weight.is_cuda else []):
        for hook in hooks:
            hook(twin, ())
        return _parameter(conv, twin, "weight"), _parameter(conv, twin, "bias")


def _parameter(conv: Conv, twin: Any, name: str) -> Any:
    """A parameter of the twin, which stays out of the cache of `parametrize.cached()`, but not what is in there."""
    if not parametrize.is_parametrized(conv, name):
        return getattr(twin, name)
    cached = parametrize._cache.get((id(conv), name))
    return twin.parametrizations[name]() if cached is None else cached


def _twin(module: nn.Module, twins: dict[nn.Module, Any]) -> Any:
    """A module with the same parameters, copies of the buffers, and twins of the submodules."""
    if module not in twins:
        twin = twins[module] = object.__new__(type(module))
        state = vars(module)
        vars(twin).update(
            state,
            _buffers={name: buffer if buffer is None else buffer.clone() for name, buffer in state["_buffers"].items()},
            _modules={name: child and _twin(child, twins) for name, child in state["_modules"].items()},
        )
    return twins[module]
