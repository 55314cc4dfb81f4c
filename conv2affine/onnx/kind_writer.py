"""The nodes of a step that has a meaning of its own; see `network.kinds`."""

from __future__ import annotations

import numpy as np

from conv2affine.network.graph import Step
from conv2affine.onnx.writer import Writer

__all__ = ["write_kind"]

SIMPLE = {"relu": "Relu", "abs": "Abs", "maximum": "Max", "minimum": "Min"}
WINDOWS = {"window_max": "ReduceMax", "window_min": "ReduceMin"}


def write_kind(writer: Writer, step: Step, x: list[str], origin: str, output: str | None) -> str:
    """Write a step that its kind describes; gives the name of its result.

    Args:
        writer: Of the model.
        step: Of one of `kinds.KINDS`.
        x: Names of its inputs, as vectors.
        origin: What to name nodes after.
        output: Name of the result; None for a new one.
    """
    call, constant = writer.call, writer.constant
    if step.kind in SIMPLE:
        return call(SIMPLE[step.kind], x, origin, output)
    if step.kind == "leaky_relu":
        slope = step.parameters["slope"]
        if writer.dtype == np.float64:
            # An attribute is float32, and onnxruntime has neither operator for float64: max(x, 0) + slope * min(x, 0).
            low = call("Min", [*x, constant(f"{origin}.zero", np.float64(0))], origin)
            scaled = call("Mul", [low, constant(f"{origin}.slope", slope)], origin)
            return call("Add", [call("Relu", x, origin), scaled], origin, output)
        if np.ndim(slope) == 0:
            return call("LeakyRelu", x, origin, output, alpha=float(slope))
        return call("PRelu", [*x, constant(f"{origin}.slope", slope)], origin, output)
    if step.kind == "clip":
        bounds = [("Max", step.parameters["low"]), ("Min", step.parameters["high"])]
        finite = [(op_type, bound) for op_type, bound in bounds if np.isfinite(bound).any()]
        for op_type, bound in finite:
            name = output if op_type == finite[-1][0] else None
            x = [call(op_type, [*x, constant(f"{origin}.{op_type.lower()}", bound)], origin, name)]
        return x[0] if finite else call("Identity", x, origin, output)
    if step.kind in WINDOWS:
        windows = step.parameters["windows"]
        # What is no element is replaced by another of the window, which changes neither maximum nor minimum.
        windows = np.where(windows < 0, windows.max(axis=1, keepdims=True), windows)
        gathered = call("Gather", [*x, constant(f"{origin}.windows", windows)], origin, axis=1)
        if writer.opset < 18:
            return call(WINDOWS[step.kind], [gathered], origin, output, axes=[2], keepdims=0)
        axes = constant(f"{origin}.axes", np.array([2]))
        return call(WINDOWS[step.kind], [gathered, axes], origin, output, keepdims=0)
    raise NotImplementedError(f"a step of kind {step.kind} from {step.origin} has no operator to run it")
