"""Runs models, and compares the outputs of two of them for the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from onnx.shape_inference import InferenceError

from conv2affine.network.comparison import (
    COARSE,
    EPS,
    INFINITIES,
    OWN_ROUNDINGS,
    RUNS,
    difference,
    own_part,
    scale,
    smallest,
    tolerance_of,
)
from conv2affine.onnx.importing.upgrade import widened
from conv2affine.onnx.model import HALVES, TensorInfo, one_line
from conv2affine.onnx.reference import evaluator
from conv2affine.onnx.running.noise import with_noise

# Operators that onnx.reference computes in loops, and how many elements it does in seconds.
LOOPS = (
    *("AveragePool", "DeformConv", "GridSample", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "Resize", "RoiAlign"),
    "Upsample",
)
MAX_LOOPED = 2**16
HALF_DTYPES = [helper.tensor_dtype_to_np_dtype(elem_type) for elem_type in HALVES]


@dataclass
class Run:
    """Runs a model: takes inputs by name, returns the outputs in order.

    Args:
        function: Runs it.
        refusals: Why onnxruntime does not take the model, or did not run it; none if it does, or is not installed.
        noisy: Makes a run with noise after each operator, of a given size, for a run of this number.
    """

    function: Callable[[Mapping[str, Any]], list[Any]]
    refusals: list[str] = field(default_factory=list)
    noisy: Callable[..., Run] | None = None

    def __call__(self, inputs: Mapping[str, Any]) -> list[Any]:
        return self.function(inputs)

    @property
    def refusal(self) -> str:
        """The first refusal of onnxruntime; "" if there is none."""
        return next(iter(self.refusals), "")


class RunError(RuntimeError):
    """The model does not run."""


def runner(model: ModelProto | Path) -> Run:
    """Runs a model by onnxruntime, where that is installed and supports the model, else by onnx.reference."""
    run = _onnxruntime(model)
    if isinstance(model, ModelProto):
        run.noisy = lambda *given: runner(with_noise(model, *given))
    return run


def _onnxruntime(model: ModelProto | Path) -> Run:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return Run(_reference(model))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # it copies the layers
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # runs once
    options.enable_mem_pattern = False  # planning it takes time quadratic in the number of layers
    try:
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no class of their own: an operator that it lacks, say
        return Run(_reference(model, MAX_LOOPED), [one_line(error)])

    refusals: list[str] = []

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        try:
            return list(session.run(None, dict(inputs)))
        except Exception as error:  # it takes models that it cannot run, and not all types of inputs
            reason = one_line(error)
            try:
                outputs = _reference(model, MAX_LOOPED)(inputs)
            except RunError:
                raise RunError(f"onnxruntime cannot run the model: {reason}") from error
            refusals.append(reason)
            return outputs

    return Run(run, refusals)


def _reference(model: ModelProto | Path, max_looped: int | None = None) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Runs a model by onnx.reference, with float32 for types of half the size.

    `max_looped` is a limit for the elements of a result that it computes one by one.
    """
    try:
        proto = onnx.load_model(model) if isinstance(model, Path) else model
        run_wide = evaluator(widened(proto)[0]).run
        looped = 0 if max_looped is None else _looped(proto)
    except Exception as error:
        raise RunError(f"neither onnxruntime nor onnx.reference takes the model: {error}") from error
    if max_looped is not None and looped > max_looped:
        raise RunError(
            f"onnxruntime does not run the model, and onnx.reference is slow at results of {looped} elements"
        )
    halves = {info.name for info in proto.graph.output if info.type.tensor_type.elem_type == TensorProto.FLOAT16}

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        wide = {name: x.astype(np.float32) if x.dtype in HALF_DTYPES else x for name, x in inputs.items()}
        try:
            with np.errstate(all="ignore"):
                outputs = run_wide(None, wide)
                named = zip(proto.graph.output, outputs, strict=True)
                return [x.astype(np.float16) if info.name in halves else x for info, x in named]
        except Exception as error:  # onnx.reference may raise anything
            raise RunError(f"onnx.reference cannot run the model: {error}") from error

    return run


def _looped(proto: ModelProto) -> int:
    """Elements of the largest result that onnx.reference computes one by one, for one sample."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    names = {name for node in graph.node if node.op_type in LOOPS for name in node.output}
    shapes = (info.type.tensor_type.shape.dim for info in (*graph.output, *graph.value_info) if info.name in names)
    return max((prod(dim.dim_value or 1 for dim in shape) for shape in shapes), default=0)


def sample(tensors: Sequence[TensorInfo], batch: int, is_batched: bool) -> dict[str, Any]:
    """Random inputs, of `batch` samples each if they may hold any number of them."""
    random = np.random.default_rng(batch)
    inputs = {}
    for tensor in tensors:
        shape = (batch, *tensor.shape[1:]) if is_batched else tensor.shape
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        numbers = random.integers(0, 2, shape) if dtype.kind in "iub" else random.standard_normal(shape)
        inputs[tensor.name] = np.array(numbers, dtype)
    return inputs


def compare(
    expected: Run,
    got: Run,
    inputs: Mapping[str, Any],
    dtypes: Mapping[str, Any],
    eps: float,
    flat: int | None = None,
) -> float:
    """The largest difference of two models, relative to the largest element of each output, for inputs of the first.

    Each element may differ by what rounding can change in it, measured with noise in the inputs of the first, and after
    each of its operators; and by what it can change inside of the second.

    Args:
        expected: The original.
        got: The result.
        inputs: Of the original.
        dtypes: Of the inputs that the second model takes in another type.
        eps: One rounding, relative to what is rounded.
        flat: The number of samples, if the second model takes and returns vectors.

    Raises:
        ValueError: If the original does not run, or gives infinities or NaN that a layer spreads.
        RuntimeError: If they differ by more than rounding, or if the second does not run.
    """
    eps = max(EPS, eps)
    try:
        wanted = expected(inputs)
    except RunError as error:
        raise ValueError(f"the model must run on random inputs, to be compared with the result: {error}") from error
    given = {name: _reshaped(x.astype(dtypes.get(name, x.dtype)), flat) for name, x in inputs.items()}
    given = {name: np.asarray(x) for name, x in given.items()}
    largest, moved, own = 0.0, list[Any](), list[Any]()
    for number, (a, b) in enumerate(zip(wanted, got(given), strict=True)):
        a, b = as_tensor(_reshaped(np.asarray(a), flat)), as_tensor(b)
        if a.shape != b.shape:
            shapes = f"shape {tuple(b.shape)}, and that of the original is {tuple(a.shape)}"
            raise RuntimeError(f"output {number} has {shapes}")
        floor = smallest(a.dtype, b.dtype)
        problem = difference(a, b, tolerance_of(eps) * scale(a, [], COARSE * eps) + floor)
        if problem:  # what passes without noise passes with it, and noise takes most of the time
            moved = moved or list(zip(*disturbed(expected, inputs, COARSE * eps), strict=True))
            size = scale(a, (as_tensor(x).reshape(a.shape) for x in moved[number]), COARSE * eps)
            allowed = tolerance_of(eps) * size + floor
            problem = difference(a, b, allowed)
        if problem:
            own = own or list(zip(*disturbed(got, given, COARSE * eps), strict=True))
            own_size = scale(b, map(as_tensor, own[number]), COARSE * eps)
            problem = difference(a, b, allowed + OWN_ROUNDINGS * eps * own_part(own_size, size))
        if problem == INFINITIES:
            raise ValueError(
                f"output {number} does not have the {INFINITIES} of the original: a linear layer spreads those that a "
                "node gives, as 0 * inf is NaN; give that node only what it is finite for, or try merge='never' "
                "(--merge never); or if numbers overflow in the layers, pass dtype=torch.float64 (--dtype float64)"
            )
        if problem:
            raise RuntimeError(
                f"the result does not equal the original, {problem} in output {number}; please report this"
            )
        if a.is_floating_point() and a.numel():
            whole, off = (x.double().abs().nan_to_num(posinf=0).max().item() for x in (a, a.double() - b.double()))
            largest = max(largest, off / whole if whole else off)
    return largest


def disturbed(run: Run, inputs: Mapping[str, Any], eps: float) -> list[list[Any]]:
    """The outputs of several runs with noise in the inputs; and inside, where a model runs so.

    They are pairs of opposite noise, as those of PyTorch.
    """
    random = np.random.default_rng(0)
    noise = [{name: random.uniform(-eps, eps, x.shape) for name, x in inputs.items()} for _ in range(RUNS // 2)]
    moved = [{name: _near(x, sign * each[name]) for name, x in inputs.items()} for each in noise for sign in (1, -1)]
    try:
        return [(run.noisy(eps, number) if run.noisy else run)(each) for number, each in enumerate(moved)]
    except (RunError, InferenceError):
        return [*map(run, moved)]


def _near(x: Any, noise: Any) -> Any:
    return np.asarray(x * (1 + noise), x.dtype) if x.dtype.kind == "f" else x


def as_tensor(array: Any) -> torch.Tensor:
    """A copy as a tensor; integers as int64, as PyTorch lacks some of NumPy's types."""
    return torch.from_numpy(np.array(array, np.int64 if array.dtype.kind in "iu" else None))


def _reshaped(array: Any, samples: int | None) -> Any:
    return array if samples is None else array.reshape(samples, -1)
