"""Models as users have them, each wrapped as a module that takes tensors, batch first."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

EMPTY = fx.GraphModule(nn.Module(), fx.Graph())


class Held(nn.Module):
    """A wrapper of what is not a plain module of tensors; with the names of its inputs, if they have any."""

    def __init__(self, model: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.names = model, [name if is_argument(name) else "" for name in names]
        self.training = getattr(model, "training", False)  # a frozen TorchScript module has none


class Script(Held):
    """Runs a TorchScript module so that torch.export sees its operators."""

    def __init__(self, module: Any) -> None:
        _, *arguments = module._c._get_method("forward").schema.arguments
        super().__init__(module, [argument.name for argument in arguments])

    def forward(self, *inputs: Tensor) -> Any:
        """What the model makes of its inputs."""
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # it would fuse what it has run
            script: Any = self.model._c
            return script._get_method("forward")(*inputs)


class Program(Held):
    """Runs an exported program for any number of samples; one for one sample, on each sample by itself."""

    def __init__(self, module: Any) -> None:
        inputs = module.graph.find_nodes(op="placeholder")
        super().__init__(module, [node.target for node in inputs])
        self.structure = module._in_spec
        self.training = False
        sizes = [size for node in inputs for size in getattr(node.meta.get("val"), "shape", ())[:1]]
        fixed = [size for size in sizes if isinstance(size, int)]
        self.is_for_one = bool(fixed)
        if any(size != 1 for size in fixed):
            raise ValueError(
                f"model must be a program for one sample or for any number, and was exported for {max(fixed)}; pass "
                "torch.export.export(module, (x,), dynamic_shapes=[{0: torch.export.Dim.DYNAMIC}]"
                f"{f' * {len(inputs)}' * (len(inputs) > 1)})"
            )

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of the program."""
        if not self.is_for_one:
            return self.call(inputs)
        results = [self.call([x[n : n + 1] for x in inputs]) for n in range(len(inputs[0]))]
        return pytree.tree_map(_concatenate, *results)

    def call(self, inputs: Sequence[Tensor]) -> Any:
        """Call the program itself."""
        args, kwargs = self.arguments(inputs)
        return self.model(*args, **kwargs)

    def arguments(self, inputs: Sequence[Tensor]) -> Any:
        """The arguments with which the program was exported, which may be nested, or have names."""
        return pytree.tree_unflatten(list(inputs), self.structure)


class Inner(Held):
    """Runs a module that has attributes of a name that a graph module cannot have, such as `graph` or `code`."""

    def __init__(self, model: nn.Module) -> None:
        parameters = inspect.signature(model.forward).parameters.values()
        super().__init__(model, [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD])

    def forward(self, *inputs: Tensor) -> Any:
        """What the model makes of its inputs."""
        return self.model(*inputs)


class Named(Held):
    """Runs a module on tensors by name, in this order: each an argument of that name, or all of them in one dict."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__(model, names)
        self.order = names
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.in_one_dict = not takes_any and not parameters.keys() >= set(names)

    def forward(self, *inputs: Tensor) -> Any:
        """What the model makes of its inputs."""
        given = dict(zip(self.order, inputs, strict=True))
        return self.model(given) if self.in_one_dict else self.model(**given)


def is_taken(name: str) -> bool:
    """Whether a graph module has an attribute of this name."""
    return hasattr(EMPTY, name)


def is_argument(name: str) -> bool:
    """Whether an argument can have this name."""
    return name.isidentifier() and not iskeyword(name)


def joined_names(model: Any) -> tuple[str, ...]:
    """The names of the inputs that a layer or chain of ours takes as one vector; of none for another model."""
    names, places = getattr(model, "input_names", None), getattr(model, "input_slices", None)
    if not isinstance(names, tuple) or not isinstance(places, tuple):  # a module may have attributes of these names
        return ()
    return names if len(names) == len(places) > 1 and all(isinstance(each, slice) for each in places) else ()


def class_name(model: nn.Module) -> str:
    """The class name of the user's module."""
    return type(model.model if isinstance(model, Held) else model).__name__


def make_traceable(model: nn.Module) -> None:
    """Within `unchanged`, replace submodules that torch.export does not take by modules that compute the same.

    And make buffers of tensors.
    """
    for module in list(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            for name, parameter in module.named_parameters(recurse=False):
                if not isinstance(parameter, nn.Parameter):  # loaded from a file
                    setattr(module, name, nn.Parameter(parameter.detach(), parameter.requires_grad))
        elif not isinstance(module, Script):
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor) and value.layout is not torch.strided:
                    del vars(module)[name]
                    module.register_buffer(name, value)
            for name, child in module._modules.items():
                switch = getattr(child, "fake_quant_enabled", None)
                if isinstance(child, torch.jit.ScriptModule):
                    module._modules[name] = Script(child)
                elif isinstance(switch, Tensor) and not switch.any():  # it only observes
                    module._modules[name] = nn.Identity()


def _concatenate(first: Any, *others: Any) -> Any:
    """The results for all samples, from those for each."""
    if not isinstance(first, Tensor):
        return first
    if first.shape[:1] != (1,):
        raise ValueError(
            f"each output of a program for one sample must have one row, and one has shape {tuple(first.shape)}"
        )
    return torch.cat((first, *others))
