"""Runs a model and leaves it as it was; and finds what it keeps from one run to the next."""

from __future__ import annotations

import operator
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from conv2affine.network.torch.models.surroundings import try_run

# Attributes of every module; its tensors are in the dicts among them.
PYTORCHS = vars(nn.Module())
OWN_CONTAINERS = [name for name, value in PYTORCHS.items() if isinstance(value, dict | set)]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[State]:
    """Restore what runs of a model change: its attributes, their tensors, and the random state; gives its state."""
    state = State(model)
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(cuda):
            yield state
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        state.put_back()


def warm_up(model: nn.Module, inputs: Sequence[Tensor], before: State) -> tuple[frozenset[str], list[Any]]:
    """Run a model twice, so that what it computes once and caches has values before it is traced.

    Args:
        model: Within `unchanged`.
        inputs: Batch first.
        before: The state of the model, from `unchanged`.

    Returns:
        Names of the buffers that each run replaces, which torch.export does not report; and the outputs of both runs,
        of which the last is the exception that it raises, if it does not run.

    Raises:
        ValueError: If it keeps a tensor from one run to the next.
    """
    states, outputs = [before], list[Any]()
    for _ in range(2):
        outputs.append(try_run(model, inputs))
        if isinstance(outputs[-1], Exception):
            return frozenset(), outputs
        states.append(State(model, to_restore=False))
    _, once, twice = states
    nothing = (None, None, None)
    for name in sorted(before.attributes.keys() | once.attributes.keys() | twice.attributes.keys()):
        old, first, second = (state.attributes.get(name, nothing)[2] for state in states)
        was_there = old is not None or name in before.numbers
        writes = once.stamps.get(name) != twice.stamps.get(name)
        if not writes and _equal(first, second) and (_equal(old, first) or not was_there):
            continue  # nothing changed, or a cache was filled
        owner, key, _ = twice.attributes.get(name) or once.attributes.get(name) or before.attributes[name]
        if _is_read(model, inputs, owner, key):
            raise ValueError(
                f"the model must give the same result for the same input, and {name} is a tensor that it keeps from "
                "one run to the next; make it an input and an output"
            )
    replaced = frozenset(name for name, buffer in once.buffers.items() if twice.buffers.get(name) is not buffer)
    return replaced, outputs


def _is_read(model: nn.Module, inputs: Sequence[Tensor], owner: Any, key: Any) -> bool:
    """Whether a model reads one of its tensors: it then fails with something else in its place."""
    if not isinstance(owner, dict | list | deque):
        return True
    kept = owner[key] if not isinstance(owner, dict) or key in owner else None
    owner[key] = object()
    try:
        return isinstance(try_run(model, inputs), Exception)
    finally:
        owner[key] = kept


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return (
        first.shape == second.shape
        and first.dtype is second.dtype
        and first.device == second.device
        and (torch.equal(first, second) or bool(((first == second) | ((first != first) & (second != second))).all()))
    )


def _constants(module: nn.Module) -> Sequence[str]:
    """The attributes of one of PyTorch's own modules that its runs do not change."""
    is_pytorchs = type(module).__module__.startswith("torch.nn.")
    return getattr(module, "__constants__", ()) if is_pytorchs else ()


def _content(container: Any) -> Any:
    """A plain copy of a container."""
    kind: Any = dict if isinstance(container, dict) else set if isinstance(container, set) else list
    return kind(container)


def _is_same(container: Any, content: Any) -> bool:
    """Whether a container holds the very objects of another, keys and values, in the same order."""
    if isinstance(content, set):
        return bool(container == content)
    pairs = [(container, content)]
    if isinstance(content, dict):
        pairs.append((container.values(), content.values()))
    return len(container) == len(content) and all(all(map(operator.is_, *pair)) for pair in pairs)


class State:
    """What a model holds: its modules' attributes, containers and helper objects in them, and copies of all tensors.

    Unless it is there `to_restore` all that with `put_back`, parameters and buffers are not copied.

    Attributes:
        attributes: By name: the owner of a tensor, or of None; the key; and a copy. Without parameters and buffers.
        numbers: Names of numbers.
        stamps: By name of a tensor: its identity, and how often it was written to.
        buffers: By name, without copies.
        tensors: Each tensor, an alias of its present memory, and a copy.
    """

    def __init__(self, model: nn.Module, to_restore: bool = True) -> None:
        self.to_restore = to_restore
        self.attributes: dict[str, tuple[Any, Any, Tensor | None]] = {}
        self.tensors: list[tuple[Tensor, Tensor, Tensor]] = []
        self.containers: list[tuple[Any, Any]] = []
        self.scripted: list[tuple[nn.Module, str, Tensor]] = []
        self.numbers: set[str] = set()
        self.stamps: dict[str, tuple[int, int]] = {}
        self.buffers = dict(model.named_buffers())
        self.seen: dict[int, Any] = {}
        with torch.no_grad():
            for name, module in model.named_modules():
                self.module(name, module)

    def module(self, name: str, module: nn.Module) -> None:
        """Record what a module itself holds."""
        if id(module) in self.seen:
            return
        self.seen[id(module)] = module
        if isinstance(module, torch.jit.ScriptModule):
            self.script(name, module)
            return
        attributes = vars(module)
        if self.to_restore:
            self.registered(attributes)
        known = _constants(module)
        for key, value in list(attributes.items()):
            if key not in PYTORCHS and not (key in known and isinstance(value, int | float | str | tuple)):
                self.value(f"{name}.{key}".lstrip("."), value, attributes, key, True)

    def registered(self, attributes: dict[str, Any]) -> None:
        """Record the dicts of a module, and its parameters and buffers."""
        self.containers.append((attributes, dict(attributes)))
        for key in OWN_CONTAINERS:
            value = attributes.get(key, {})
            self.containers.append((value, _content(value) if value else type(PYTORCHS[key])()))  # most are empty
            for tensor in value.values() if value and isinstance(value, dict) else ():
                if isinstance(tensor, Tensor):
                    self.tensor(tensor)

    def script(self, name: str, module: torch.jit.ScriptModule) -> None:
        """Record what a TorchScript module itself holds, outside of Python."""
        registered = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        held: Any = module
        for key in held._concrete_type.get_attributes() if hasattr(held, "_concrete_type") else ():
            value = getattr(module, key)
            if isinstance(value, Tensor):
                self.scripted.append((module, key, value))
                if key not in registered:
                    self.value(f"{name}.{key}".lstrip("."), value, module, key, True)
                elif self.to_restore:
                    self.tensor(value)

    def value(self, name: str, value: Any, owner: Any, key: Any, inside: bool) -> None:
        """Record an attribute or an element; `inside` the module itself, not a helper object."""
        if value is None:
            self.attributes[name] = owner, key, None
        elif isinstance(value, Tensor):
            self.attributes[name] = owner, key, self.tensor(value)
            self.stamps[name] = id(value), 0 if value.is_inference() else value._version
        elif isinstance(value, int | float):
            self.numbers.add(name)
        elif isinstance(value, nn.Module):
            if inside:
                for path, module in value.named_modules(prefix=name):
                    self.module(path, module)
        elif id(value) not in self.seen:
            self.inner(name, value, inside)

    def inner(self, name: str, value: Any, inside: bool) -> None:
        """Record what a container or a helper object holds."""
        items: list[tuple[Any, Any]]
        if isinstance(value, dict | list | set | tuple | deque):
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            if not isinstance(value, tuple):
                self.containers.append((value, _content(value)))
        elif (
            inside
            and isinstance(getattr(value, "__dict__", None), dict)
            and not callable(value)
            and not isinstance(value, ModuleType)
        ):
            self.seen[id(value)] = value
            self.inner(name, vars(value), False)
            return
        else:
            return
        self.seen[id(value)] = value
        for key, element in items:
            self.value(f"{name}.{key}", element, value, key, inside)

    def tensor(self, tensor: Tensor) -> Tensor | None:
        """Record a tensor; returns its copy."""
        if tensor.is_meta or tensor.layout is not torch.strided or is_lazy(tensor):
            return None
        copy = tensor.detach().clone()
        self.tensors.append((tensor, tensor.detach(), copy))
        return copy

    def put_back(self) -> None:
        """Restore everything."""
        for container, content in reversed(self.containers):
            if (container or content) and not _is_same(container, content):
                container.clear()
                (container.extend if isinstance(content, list) else container.update)(content)
        for module, key, value in self.scripted:
            if getattr(module, key) is not value:
                setattr(module, key, value)
        with torch.no_grad():
            for tensor, memory, copy in self.tensors:
                if tensor.shape != memory.shape or tensor.data_ptr() != memory.data_ptr():
                    tensor.data = memory
                if not _equal(memory, copy):
                    memory.copy_(copy)
