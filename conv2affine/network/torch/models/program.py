"""From a PyTorch module and example inputs to the operators that it runs."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from conv2affine.network.torch.importing.complex import complex_as_pairs
from conv2affine.network.torch.importing.constants import fold_constants
from conv2affine.network.torch.models.advice import reason
from conv2affine.network.torch.models.assignments import Assignments
from conv2affine.network.torch.models.choices import Choices
from conv2affine.network.torch.models.decompositions import decompose
from conv2affine.network.torch.models.held import Inner, Named, Program, class_name
from conv2affine.network.torch.models.surroundings import users_device, without_validation

SOLVES = (torch.ops.aten.linalg_solve, torch.ops.aten.linalg_solve_ex, torch.ops.aten._linalg_solve_ex)
# What to do, where torch.export fails.
BRANCHES = "compute with tensors alone, without branches on what is in them, such as torch.where(x > 0, a, b)"
CAUSES = {
    "fake tensor": (
        "a tensor with values is lost",
        "let forward keep no tensor in an object, change no other tensor's data, and take no derivatives: give each "
        "tensor to the function, as F.linear(x, torch.renorm(weight, 2, 0, 1)), or compute it once, before the "
        "conversion",
    ),
    "Cannot access storage of Sparse": ("a sparse tensor is no attribute of a module", "call register_buffer for it"),
    "Cannot access storage of TensorWrapper": (
        "a function that torch.func transforms makes a constant tensor",
        "make it outside of that function, before it",
    ),
    "__obj_flatten__": (
        "it holds packed weights, as what torch.ao.quantization makes does",
        "pass the float model that it was made from",
    ),
    "linalg_lstsq": ("it does not know linalg.lstsq", "call torch.linalg.pinv(matrix) @ x"),
    "Size-like symbols: u": (
        "elements are selected by values of the inputs, as h[h < 0] *= 0.1 does",
        "choose instead: h = torch.where(h < 0, 0.1 * h, h)",
    ),
}


def export(model: nn.Module, inputs: tuple[Tensor, ...], state: frozenset[str] = frozenset()) -> ExportedProgram:
    """The operators of a module, as PyTorch traces them; `state` names the buffers that each run replaces."""
    with warnings.catch_warnings(), torch.no_grad(), users_device(inputs), without_validation():
        warnings.simplefilter("ignore")  # PyTorch's about itself; the result is checked
        try:
            if isinstance(model, Program):  # by itself, its operators keep the names of their modules
                program: ExportedProgram = torch.export.export(model.model, *model.arguments(inputs))
            else:
                with Choices(model, inputs), Assignments():
                    program = torch.export.export(model, inputs)
            program = _flat(program)
            _align_solves(program)
            fold_constants(program, state)
            decomposed = decompose(program)
            complex_as_pairs(decomposed)
            _join_equal(decomposed)
            if isinstance(model, Inner | Named):
                _leave_out_wrapper(decomposed)
        except Exception as error:
            what, advice = next(
                (found for part, found in CAUSES.items() if part in str(error)),
                (f"{type(error).__name__}: {reason(error)}", BRANCHES),
            )
            raise NotImplementedError(
                f"{class_name(model)} must be a module that torch.export takes with these inputs, and it fails: "
                f"{what}; {advice}"
            ) from error
    return decomposed


def _flat(program: ExportedProgram) -> ExportedProgram:
    """A program with plain operators for what `torch.vmap`, `torch.no_grad` and `torch.broadcast_tensors` make."""
    if any("functorch" in getattr(node.target, "__module__", "") for node in program.graph.nodes):
        program = program.run_decompositions({})
    for node in program.graph.nodes:
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled:
            continue
        _, inner, *given = node.args
        inner = program.graph_module.get_submodule(inner.target)
        with program.graph.inserting_before(node):
            results = program.graph.graph_copy(
                inner.graph, dict(zip(inner.graph.find_nodes(op="placeholder"), given, strict=True))
            )
        for user in list(node.users):
            result = results[user.args[1]]
            user.replace_all_uses_with(result)
            program.graph_signature.replace_all_uses(user.name, result.name)
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.broadcast_tensors.default):
        for user in list(node.users):  # a constant among them stays one
            with program.graph.inserting_before(user):
                sizes = user.meta["val"].shape
                result = program.graph.call_function(
                    torch.ops.aten.expand.default, (node.args[0][user.args[1]], [*sizes])
                )
            result.meta = dict(user.meta)
            user.replace_all_uses_with(result)
            program.graph_signature.replace_all_uses(user.name, result.name)
    program.graph.eliminate_dead_code()
    return program


def _align_solves(program: ExportedProgram) -> None:
    """Give right-hand sides of `linalg.solve` as many axes as the matrices: with fewer, some batches make them vectors.

    For A of (3, 3, 3), a B of (3, 3) is three vectors, and for any other number of samples one matrix.
    """
    for node in program.graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in SOLVES:
            continue
        matrix, other = (each.meta["val"] for each in node.args[:2])
        if 1 < other.dim() == matrix.dim() - 1 and other.shape != matrix.shape[:-1]:
            with program.graph.inserting_before(node):
                aligned = program.graph.call_function(torch.ops.aten.unsqueeze.default, (node.args[1], 0))
            aligned.meta = {**node.meta, "val": other.unsqueeze(0)}
            node.update_arg(1, aligned)


def _join_equal(program: ExportedProgram) -> None:
    """Take one operator in place of all with the same arguments: rules see that h > 0 is about the h next to it."""
    seen: dict[str, fx.Node] = {}
    for node in list(program.graph.nodes):
        first = seen.setdefault(repr((node.target, node.args, node.kwargs)), node)
        if node.op == "call_function" and first is not node:
            node.replace_all_uses_with(first)
            program.graph_signature.replace_all_uses(node.name, first.name)
            program.graph.erase_node(node)


def _leave_out_wrapper(program: ExportedProgram) -> None:
    """Give the modules that operators come from the names that they have in the user's module."""
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {
            key: (path.removeprefix("model").removeprefix("."), kind) for key, (path, kind) in stack.items()
        }


def floating_dtypes(program: ExportedProgram) -> tuple[torch.dtype, ...]:
    """The floating dtypes of what depends on the inputs, the most frequent first."""
    inputs = program.graph_signature.user_inputs
    reached: set[fx.Node] = set()
    count: Counter[torch.dtype] = Counter()
    for node in program.graph.nodes:
        if node.name in inputs or reached.intersection(node.all_input_nodes):
            reached.add(node)
            for result in pytree.tree_leaves(node.meta.get("val")):
                if isinstance(result, Tensor) and result.is_floating_point():
                    count[result.dtype] += node.op == "call_function"  # an input alone counts 0, and so comes last
    return tuple(dtype for dtype, _ in count.most_common()) or (torch.get_default_dtype(),)


def tensors(given: Any, argument: str, *, or_dict: bool = False) -> tuple[Tensor, ...]:
    """Inputs of a model as a tuple of tensors, batch first, checked; `argument` is their name in messages."""
    inputs = (given,) if isinstance(given, Tensor) else given
    names: list[Any] = [*range(len(inputs))] if isinstance(inputs, tuple | list) else []
    if or_dict and isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        names, inputs = [*given], tuple(given.values())
    if not names:
        by_name = ", or a dict of them by name" * or_dict
        got = f"{'an empty ' * (isinstance(given, tuple | list | dict) and not given)}{_class_and_advice(given)}"
        if isinstance(given, Mapping) and given:
            got = f"{type(given).__name__}; {'use strings as its names' if or_dict else 'pass its tensors in a tuple'}"
        raise TypeError(
            f"{argument} must be a tensor, or a tuple of tensors in the order that the model takes{by_name}, got {got}"
        )
    for key, x in zip(names, inputs, strict=True):
        name = f"{argument}[{key!r}]"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {_class_and_advice(x)}")
        if x.is_complex():
            raise TypeError(f"{name} ({x.dtype}) must be real; take torch.view_as_real(x), and make it complex inside")
        if x.is_meta or x.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor with values, got {x.layout} on device {x.device}")
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(f"{name} must have a sample, batch first, got shape {tuple(x.shape)}")
        if len(x) != len(inputs[0]):
            first = f"{argument}[{names[0]!r}]"
            raise ValueError(f"{name} must have as many samples as {first}, {len(inputs[0])}, got {len(x)}")
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite, got infinities or NaN; pass another example")
    return tuple(inputs)


def _class_and_advice(x: Any) -> str:
    """What was passed in place of a tensor, and what to pass, if that is known."""
    name = type(x).__name__
    if name == "ndarray":
        return f"{name}; pass torch.from_numpy(x)"
    if isinstance(x, int):
        return f"{name}; pass a tensor, such as torch.rand(1, 3, 32, 32), and set other arguments in a module"
    return name if isinstance(x, tuple | list | dict) else f"{name}; set arguments that are not tensors in a module"


def unwrap(model: Any) -> nn.Module:
    """The module inside wrappers that compile or distribute it, checked."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    dynamo = sys.modules.get("torch._dynamo")  # its import would draw random numbers
    if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        return unwrap(model._orig_mod)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {_what(model)}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"model is lazy, and its {name} has no values yet; run a batch through it first")
        if tensor.is_meta:
            raise ValueError(f"model must have values, and its {name} is on the meta device; load them first")
        if tensor.is_inference():
            raise ValueError(
                f"model must be made outside of torch.inference_mode, and its {name} was made inside; take "
                "copy.deepcopy(model), made outside"
            )
    return model


def _what(model: Any) -> str:
    """What was passed in place of a model, and what to pass."""
    if isinstance(model, type):
        return f"the class {model.__name__}; pass a module of that class, {model.__name__}(...)"
    name = type(model).__name__
    if isinstance(model, Mapping):
        values = model.values()
        name = f"a state_dict ({name} of tensors)" if all(isinstance(x, Tensor) for x in values) else name
        return f"{name}; build the module, call module.load_state_dict(...), and pass the module"
    if isinstance(model, tuple | list) and model and all(isinstance(layer, nn.Module) for layer in model):
        return f"{name} of modules; pass nn.Sequential(*layers)"
    if isinstance(model, Tensor | tuple | list):
        return f"{name}; the model comes first, and its example inputs after it"
    if hasattr(model, "graph") or hasattr(model, "get_inputs"):
        return f"{name}; call conv2affine.onnx.convert if that is an ONNX model"
    return f"{name}; call a function in the forward of a module"
