"""Turns what users pass as a model and its example inputs into a module and tensors."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.serialization import get_unsafe_globals_in_checkpoint

from conv2affine.network.torch.models.held import Held, Inner, Named, Program, Script, is_argument, is_taken
from conv2affine.network.torch.models.program import tensors, unwrap

Model = nn.Module | ExportedProgram | str | Path
ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def hold(model: Model, example_inputs: Any, argument: str = "example_inputs") -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module and the tensors of what a user passes.

    Args:
        model: A module, an `ExportedProgram`, or the file of one, or of a TorchScript module.
        example_inputs: A tensor, a tuple of them, or a dict of tensors by name.
        argument: Their name in messages.

    Raises:
        TypeError: If the model is something else, or an input is not a real dense tensor.
        ValueError: If the model has no values, or takes a fixed number of samples other than one.
    """
    if isinstance(model, str | Path):
        model = _load(Path(model))
    if isinstance(model, ExportedProgram):
        model = model.module(check_guards=False)
    model = unwrap(model)
    if isinstance(model, torch.jit.ScriptModule):
        if "mkldnn" in str(model.graph):
            raise TypeError(
                "model must be TorchScript as it was traced, scripted or frozen, and torch.jit.optimize_for_inference "
                "changed it; pass the module that it was made from"
            )
        model = Script(model)
    elif isinstance(model, fx.GraphModule) and hasattr(model, "_in_spec"):
        model = Program(model)
    inputs = tensors(example_inputs, argument, or_dict=True)
    if not isinstance(example_inputs, Mapping):
        own = (*model._modules, *model._parameters, *model._buffers)
        return (Inner(model) if not isinstance(model, Held) and any(map(is_taken, own)) else model), inputs
    names = [*example_inputs]
    if isinstance(model, Program) and set(model.names) != set(names):
        raise ValueError(
            f"{argument} ({', '.join(names)}) must have the names of the program's inputs: {', '.join(model.names)}"
        )
    if isinstance(model, Program | Script) and set(model.names[: len(names)]) == set(names):
        return model, tuple(example_inputs[name] for name in model.names[: len(names)])
    for name in names:
        if not is_argument(name):
            raise ValueError(
                f"{argument} must have names that arguments can have, as the result takes them, got {name!r}; pass a "
                "tuple, and a module whose forward puts the tensors into the dict"
            )
    return Named(model, names), inputs


def _load(path: Path) -> Any:
    """The program or TorchScript module of a file."""
    if path.suffix == ".onnx":
        advice = "conv2affine.onnx has plan, convert and check for these"
        raise TypeError(f"model ({path}) must be a module, and is an ONNX file; {advice}")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"model ({path}) must be a module, or a file of one, and {what}")
    entries = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if any("/code/" in entry for entry in entries):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit")  # deprecated
            return torch.jit.load(path)  # type: ignore[no-untyped-call]
    if any(entry.endswith(("serialized_exported_program.json", "/models/model.json")) for entry in entries):
        return torch.export.load(path)
    advice = "build the module, call module.load_state_dict(torch.load(path)), and pass the module"
    with contextlib.suppress(Exception):  # of any kind: it is no file of torch.save, or a broken one
        if get_unsafe_globals_in_checkpoint(path):
            advice = "it may hold a whole module: if you trust it, pass torch.load(path, weights_only=False)"
    raise TypeError(
        f"model ({path}) must be a module, or a file of torch.export.save or torch.jit.save, and is another file; "
        f"{advice}"
    )
