"""Whether a network meets a specification: an ONNX file and a VNN-LIB file in; `sat`, `unsat` or `timeout` out.

`sat` comes with a counterexample, which onnxruntime runs on the original file; `unsat` means that there is none. The
network becomes a chain of linear layers and ReLUs for the boxes of the specification, its bounds become the big-M of a
mixed-integer program, and HiGHS searches. This shows what the chain is for; it is no verifier: solvers made for
networks, as alpha-beta-CROWN or Marabou, decide far more.

    python -m examples.verify_vnnlib network.onnx specification.vnnlib --seconds 300
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import numpy_helper
from scipy.sparse import csr_array

import conv2affine.onnx
from conv2affine.interop.vnnlib import Case
from conv2affine.onnx import Specification, read_spec
from examples.relaxation import Layer, attack, is_excluded, relaxation, search, tighter


@dataclass(frozen=True)
class Answer:
    """What was found.

    Args:
        verdict: "sat", "unsat" or "timeout".
        witness: The input, flat, of a counterexample.
        relus: How many ReLUs the chain has.
        binaries: How many of them are open, so that each needs a binary variable.
        seconds: In all.
    """

    verdict: str
    witness: Any
    relus: int
    binaries: int
    seconds: float


class Original:
    """The network as it is in the file, in onnxruntime."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.shapes = [[n if isinstance(n, int) and n > 0 else 1 for n in x.shape] for x in self.session.get_inputs()]

    def __call__(self, x: Any) -> Any:
        """All outputs as one vector, for all inputs as one."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        parts = np.split(x, ends[:-1])
        feed = {
            value.name: part.reshape(shape).astype(np.float64 if "double" in value.type else np.float32)
            for value, part, shape in zip(self.session.get_inputs(), parts, self.shapes, strict=True)
        }
        return np.concatenate([y.ravel() for y in self.session.run(None, feed)])


def main(arguments: Sequence[str] | None = None) -> Answer:
    """Read, convert, search, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("specification", type=Path)
    parser.add_argument("--seconds", type=float, default=300, help="time limit")
    parser.add_argument("--whole", action="store_true", help="a chain for all inputs, with interval bounds, to compare")
    options = parser.parse_args(arguments)
    try:
        answer = decide(options.network, options.specification, options.seconds, options.whole)
    except Exception as error:  # onnxruntime's have no other class in common
        sys.exit("error: " + str(error).partition("\n")[0])
    print(answer.verdict)
    if answer.witness is not None:
        print(" ".join(f"X_{i}={value:.9g}" for i, value in enumerate(answer.witness[:8])), "...")
    print(f"{answer.relus} ReLUs, {answer.binaries} binary variables, {answer.seconds:.1f} s")
    return answer


def decide(network: Path, specification: Path, seconds: float = 300, whole: bool = False) -> Answer:
    """The answer for a network and a specification."""
    start = time.monotonic()
    spec, original = read_spec(specification), Original(network)
    boxes: dict[bytes, list[Case]] = {}
    for case in spec.cases:
        boxes.setdefault(case.low.tobytes() + case.high.tobytes(), []).append(case)
    relus = binaries = 0
    verdict = "unsat"
    for cases in boxes.values():
        layers, bounds = chain(network, replace(spec, cases=tuple(cases)), whole)
        given = relaxation(layers, bounds)
        relus = max(relus, sum(len(bias) for _, bias in layers[:-1]))
        binaries = max(binaries, len(given.low))
        is_tight = whole
        for case in cases:
            if is_excluded(given, case):
                continue
            witness = attack(given, case, lambda x: spec.is_unsafe(x, original(x)))
            if witness is None and not is_tight:
                given, is_tight = tighter(given, case), True
                if is_excluded(given, case):
                    continue
            if witness is None:
                found, x = search(given, case, start + seconds)
                if x is not None and spec.is_unsafe(x, original(x)):
                    witness = x
                elif found != "infeasible":
                    verdict = "timeout"
            if witness is not None:
                return Answer("sat", witness, relus, binaries, time.monotonic() - start)
    return Answer(verdict, None, relus, binaries, time.monotonic() - start)


def chain(path: Path, spec: Specification, whole: bool = False) -> tuple[list[Layer], list[tuple[Any, Any]]]:
    """The layers of a network's chain, in float64, and the bounds of what they compute.

    Args:
        path: Of the network.
        spec: Of cases that share a box.
        whole: Whether the chain is for all inputs; its bounds are from interval arithmetic then.
    """
    within = None if whole else spec
    result = conv2affine.onnx.convert(path, form="mlp", flat=True, dtype=torch.float64, spec=within)
    graph = result.model.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = []
    for node in graph.node:
        if node.op_type == "Gemm":
            weight, bias = (arrays[name] for name in node.input[1:])
            is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            layers.append((csr_array(weight if is_transposed else weight.T), bias))
    return layers, list(intervals(layers, *spec.box) if whole else result.bounds.values())


def intervals(layers: Sequence[Layer], low: Any, high: Any) -> Iterator[tuple[Any, Any]]:
    """Bounds of what layers compute, by interval arithmetic."""
    for weight, bias in layers:
        center, radius = weight @ (low + high) / 2 + bias, abs(weight) @ (high - low) / 2
        yield center - radius, center + radius
        low, high = np.maximum(center - radius, 0), np.maximum(center + radius, 0)


if __name__ == "__main__":
    main()
