"""What surrounds a conversion: other threads, transforms and traces, inference mode, autocast, and default devices."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad
from torch.distributions import Distribution

P = ParamSpec("P")
R = TypeVar("R")
# torch.export patches modules of PyTorch while it runs: two threads at once break it for the whole process.
TRACING = threading.RLock()
_users_device: ContextVar[torch.device | None] = ContextVar("users_device", default=None)


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """A function that one thread runs at a time: while one traces, others would see the model without its values.

    It runs outside of inference mode and autocast, as if called before these, and `on_cpu`.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with TRACING, torch.inference_mode(False), ExitStack() as stack:
            where = _tracing()
            if where:
                raise ValueError(
                    f"{function.__name__} must not be called inside {where}, where tensors have no values of their "
                    "own; convert outside of it, and call the result inside"
                )
            stack.callback(_leave_transforms)
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return on_cpu(function)(*args, **kwargs)

    return wrapper


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """A function that makes its tensors on the CPU where it names no device, whatever PyTorch's default is."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        default = torch.get_default_device()
        if default.type == "cpu":
            return function(*args, **kwargs)
        token = _users_device.set(default)
        try:
            with torch.device("cpu"):
                return function(*args, **kwargs)
        finally:
            _users_device.reset(token)

    return wrapper


@contextmanager
def without_validation() -> Iterator[None]:
    """A context in which distributions do not check their arguments: they branch on them, which cannot be traced."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def users_device(inputs: Sequence[Any]) -> Any:
    """A context for a model's own code: with the user's default device, if its inputs are there."""
    device = _users_device.get()
    there = device is not None and any(isinstance(x, Tensor) and x.device.type == device.type for x in inputs)
    return device if there else nullcontext()


def try_run(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The outputs of a model for copies of inputs, or the exception that it raises."""
    try:
        with torch.no_grad(), users_device(inputs):
            return model(*(x.clone() for x in inputs))
    except Exception as error:
        return error


def _leave_transforms() -> None:
    """Leave the transforms of torch.func that a trace was in when it failed: PyTorch stays in them."""
    is_inside = torch._C._functorch.maybe_current_level() is not None
    while torch._C._functorch.maybe_current_level() is not None:
        torch._C._functorch.pop_dynamic_layer_stack()
    if is_inside and forward_ad._current_level < 0:  # none that the user is in
        with suppress(RuntimeError):  # there is none
            torch._C._exit_dual_level(level=0)


def _tracing() -> str:
    """What makes tensors without values at present, if anything does."""
    if torch._C._functorch.maybe_current_level() is not None:
        return "a transform of torch.func, such as vmap or grad"
    if torch.compiler.is_exporting():
        return "torch.export"
    if torch.compiler.is_compiling():
        return "torch.compile"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return "make_fx"
    return "FakeTensorMode" if detect_fake_mode() is not None else ""
