"""Mutated ONNX files: each gives a right result or a clear error, and leaves nothing behind.

    python -m tests.onnx.mutations 1000 [FIRST]

Prints what each mutant gives; ends at once where one crashes, hangs or gives an unclear error.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto

from conv2affine.onnx import convert
from conv2affine.onnx.importing.reader import read
from conv2affine.onnx.running.runner import runner, sample
from tests.onnx.importing.test_rules import AFFINE, KEPT, PIECEWISE, model

SECONDS = 20
SEED = 2  # of inputs on which `convert` did not compare the two
TOLERANCE = 1e-3
CLEAR = (ValueError, NotImplementedError, MemoryError, RuntimeError)
CASES = [*AFFINE, *PIECEWISE, *KEPT]
CNN = """
c = Conv<pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1], group = 1>(x, w, b)
n = BatchNormalization<epsilon = 0.1>(c, s, s, s, v)
r = Relu(n)
p = MaxPool<kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1]>(r)
t = Transpose<perm = [0, 2, 3, 1]>(p)
f = Reshape(t, q)
g = Gemm<alpha = 0.5, transB = 1>(f, k, l)
y = LeakyRelu<alpha = 0.1>(g)
"""


def base(choice: random.Random) -> ModelProto:
    """A model to start from."""
    if choice.random() < 0.5:
        case = choice.choice(CASES)
        return model(case.nodes, {"x": case.shape}, case.constants, opset=case.opset)
    numbers = np.random.default_rng(0)
    shapes = {"w": (2, 1, 3, 3), "b": (2,), "s": (2,), "v": (2,), "k": (3, 18), "l": (3,)}
    constants = {name: np.abs(numbers.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    constants["q"] = np.array([-1, 18])
    return model(CNN, {"x": ("N", 1, 6, 6)}, constants)


def flip_bytes(data: ModelProto, choice: random.Random) -> bytes:
    content = bytearray(data.SerializeToString())
    for _ in range(choice.randint(1, 4)):
        content[choice.randrange(len(content))] = choice.randrange(256)
    return bytes(content)


def cut(data: ModelProto, choice: random.Random) -> bytes:
    content = data.SerializeToString()
    return content[: choice.randrange(len(content))]


def drop_node(data: ModelProto, choice: random.Random) -> bytes:
    number = choice.randrange(len(data.graph.node))
    node = data.graph.node[number]
    for other in data.graph.node:  # its first input takes the place of its result
        for place, name in enumerate(other.input):
            if name == node.output[0] and node.input:
                other.input[place] = node.input[0]
    del data.graph.node[number]
    return data.SerializeToString()


def rename(data: ModelProto, choice: random.Random) -> bytes:
    """Another operator, or another input, for a node."""
    node, other = choice.choice(data.graph.node), choice.choice(data.graph.node)
    if node.input and choice.random() < 0.5:
        names = [*node.input, *other.input, *other.output, ""]
        node.input[choice.randrange(len(node.input))] = choice.choice(names)
    else:
        node.op_type = choice.choice([case.nodes.split("= ")[1].split("<")[0].split("(")[0] for case in CASES])
    return data.SerializeToString()


def change_attribute(data: ModelProto, choice: random.Random) -> bytes:
    attributes = [attribute for node in data.graph.node for attribute in node.attribute]
    if not attributes:
        return drop_node(data, choice)
    attribute = choice.choice(attributes)
    number = choice.choice([-(2**63), -2, -1, 0, 1, 2, 3, 7, 1000, 2**31, 2**62])
    if attribute.type == AttributeProto.INTS and attribute.ints:
        if choice.random() < 0.3:
            attribute.ints.append(number)
        else:
            attribute.ints[choice.randrange(len(attribute.ints))] = number
    elif attribute.type == AttributeProto.INT:
        attribute.i = number
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = choice.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    elif attribute.type == AttributeProto.STRING:
        attribute.s = choice.choice([b"", b"SAME_UPPER", b"VALID", b"\xff", b"linear", b"reflect"])
    return data.SerializeToString()


def change_shape(data: ModelProto, choice: random.Random) -> bytes:
    number = choice.choice([-1, 0, 1, 2, 3, 5, 100, 2**31, 2**62])
    if data.graph.initializer and choice.random() < 0.5:
        dims = choice.choice(data.graph.initializer).dims
        if len(dims) > 1 and choice.random() < 0.5:
            dims[0], dims[-1] = dims[-1], dims[0]
        elif dims:
            dims[choice.randrange(len(dims))] = number
    else:
        shape = choice.choice([*data.graph.input, *data.graph.output]).type.tensor_type.shape
        if shape.dim:
            choice.choice(shape.dim).dim_value = number
    return data.SerializeToString()


def change_constant(data: ModelProto, choice: random.Random) -> bytes:
    """Other numbers in a constant, which may be sizes or axes."""
    if data.graph.initializer:
        tensor = choice.choice(data.graph.initializer)
        if tensor.data_type == 7 and tensor.raw_data:
            numbers = np.frombuffer(tensor.raw_data, np.int64).copy()
            numbers[choice.randrange(len(numbers))] = choice.choice([-(2**40), -1, 0, 1, 2, 5, 1000, 2**40])
            tensor.raw_data = numbers.tobytes()
        elif choice.random() < 0.3:
            tensor.data_type = choice.choice([1, 6, 7, 9, 10, 11, 99])
        elif tensor.raw_data:
            content = bytearray(tensor.raw_data)
            content[choice.randrange(len(content))] = choice.choice([0, 0x7F, 0x80, 0xFF])
            tensor.raw_data = bytes(content)
    return data.SerializeToString()


MUTATIONS: list[Callable[[ModelProto, random.Random], bytes]] = [
    flip_bytes,
    cut,
    drop_node,
    rename,
    change_attribute,
    change_shape,
    change_constant,
]


def check(seed: int) -> str:
    """Convert a mutant; says what it gives. Raises AssertionError where that is wrong, or an unclear error."""
    choice = random.Random(seed)
    data = base(choice)
    mutation = choice.choice(MUTATIONS)
    content = mutation(data, choice)
    form = choice.choice(["graph", "mlp"])
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.onnx", Path(name) / "out.onnx"
        source.write_bytes(content)
        result, failure = None, None
        try:
            result = convert(source, target, form=form)
        except CLEAR as error:
            failure = error
        if result is None:
            assert str(failure), "an error must say something"
            assert not isinstance(failure, UnicodeError | DecodeError), repr(failure)
            assert list(Path(name).iterdir()) == [source]
            return f"{mutation.__name__} {form}: {type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
        assert sorted(Path(name).iterdir()) == [source, target]
        original = read(source)
        inputs = sample(original.inputs, SEED, False)
        for a, b in zip(runner(original.proto)(inputs), runner(target)(inputs), strict=True):
            assert a.shape == b.shape
            a, b = a.astype(float), b.astype(float)
            largest = np.abs(a[np.isfinite(a)]).max(initial=0)
            np.testing.assert_allclose(b, a, rtol=0, atol=TOLERANCE * largest)
        return f"{mutation.__name__} {form}: {result.difference:.0e}"


def give_up(*_: object) -> None:
    raise AssertionError(f"it takes more than {SECONDS} s")


def main() -> None:
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, give_up)
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    totals: Counter[str] = Counter()
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)
        signal.alarm(SECONDS)
        answer = check(seed)
        signal.alarm(0)
        totals["refused" if "Error:" in answer else "converted"] += 1
        print(answer, flush=True)
    print(dict(totals))


if __name__ == "__main__":
    main()
