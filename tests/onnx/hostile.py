"""Small files that ask for much. As a script: converts one, and prints seconds, bytes, and what became of it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from conv2affine.onnx import convert
from tests.onnx.models import model, random

NONE = np.zeros(0, np.float32)
X = {"x": (1, 1, 4, 4)}


def chain(line: str, times: int, last: str = "y = Relu(v{times})") -> str:
    """A node so many times, from v0 = x on."""
    lines = [line.format(before="x" if n == 0 else f"v{n}", after=f"v{n + 1}") for n in range(times)]
    return "\n".join([*lines, last.format(times=times)])


def pad(start: int, stop: int, mode: str = "constant") -> ModelProto:
    return model(f'y = Pad<mode = "{mode}">(x, p)', {"x": (1, 8)}, {"p": np.array([0, start, 0, stop])})


def resize(size: int, scale: float, mode: str = "cubic") -> ModelProto:
    return model(
        f'y = Resize<mode = "{mode}">(x, r, s)', {"x": (1, 1, size, 1)}, {"r": NONE, "s": np.float32([1, 1, scale, 1])}
    )


CASES: dict[str, Callable[[], ModelProto]] = {
    "pad-both": lambda: pad(-200_000_000, 200_000_000),
    "pad-large": lambda: pad(0, 100_000_000),
    "pad-reflect": lambda: pad(20_000_000, 0, "reflect"),
    "tiles": lambda: model(chain("{after} = Tile({before}, r)", 20), X, {"r": np.array([1, 1, 4, 4])}),
    "constant-tiles": lambda: model(
        chain("{after} = Tile({before}, r)", 20, "y = Add(x, v{times})").replace("(x, r", "(a, r"),
        {"x": (1, 1)},
        {"r": np.array([4, 4]), "a": random(2, 2)},
    ),
    "constants": lambda: model(
        "\n".join(f"c{n} = ConstantOfShape(s)" for n in range(50))
        + "\ny = Sum(x, "
        + ", ".join(f"c{n}" for n in range(50))
        + ")",
        {"x": (1, 1)},
        {"s": np.array([1000, 1000])},
    ),
    "constant-product": lambda: model(
        "r = Expand(a, s)\np = MatMul(r, r)\ny = Add(x, p)",
        {"x": (1, 1)},
        {"a": random(1, 1), "s": np.array([4000, 4000])},
    ),
    "constant-products": lambda: model(
        "v0 = Expand(a, s)\n" + "\n".join(f"v{n + 1} = MatMul(v{n}, v{n})" for n in range(200)) + "\ny = Add(x, v200)",
        {"x": (1, 1)},
        {"a": random(1, 1), "s": np.array([700, 700])},
    ),
    "inner-product": lambda: model(
        "r = Expand(a, s)\nt = Transpose(r)\np = MatMul(r, t)\ny = Add(x, p)",
        {"x": (1, 1)},
        {"a": random(1, 1), "s": np.array([100, 100_000])},
    ),
    "resize-cubic": lambda: resize(100_000, 1.5),
    "resize-linear": lambda: resize(100_000, 1.5, "linear"),
    "resize-up": lambda: resize(8, 1_000_000.0),
    "large-input": lambda: model("y = Relu(x)", {"x": (1, 2**24)}),
    "large-moves": lambda: model("t = Transpose(x)\ny = Transpose(t)", {"x": (2**12, 2**12)}),
    "many-moves": lambda: model(chain("{after} = Transpose({before})", 30), {"x": (2**10, 2**10)}),
    "max-pool": lambda: model("y = MaxPool<kernel_shape = [1000, 1000]>(x)", {"x": (1, 1, 2000, 2000)}),
    "average-pool": lambda: model("y = AveragePool<kernel_shape = [1000, 1000]>(x)", {"x": (1, 1, 2000, 2000)}),
    "global-pool": lambda: model("y = GlobalMaxPool(x)", {"x": (1, 1, 4000, 4000)}),
    "cumsum": lambda: model("y = CumSum(x, a)", {"x": (1, 200_000)}, {"a": np.array(1)}),
    "conv-huge-input": lambda: model(
        chain("{after} = Conv<pads = [1, 1, 1, 1]>({before}, w)", 4),
        {"x": (1, 1, 3000, 3000)},
        {"w": random(1, 1, 3, 3)},
    ),
    "conv-many-channels": lambda: model("y = Conv(x, w)", {"x": (1, 64, 512, 512)}, {"w": random(64, 64, 3, 3)}),
    "conv-transpose": lambda: model("y = ConvTranspose<strides = [4000, 4000]>(x, w)", X, {"w": random(1, 1, 2, 2)}),
    "outer-sum": lambda: model("t = Transpose(x)\ny = Add(x, t)", {"x": (1, 5000)}),
    "outer-product": lambda: model("y = MatMul(x, w)", {"x": (5000, 1)}, {"w": random(1, 5000)}),
    "einsum": lambda: model('y = Einsum<equation = "ab,cd->abcd">(x, w)', {"x": (100, 50)}, {"w": random(50, 50)}),
    "gather": lambda: model(
        "i = Expand(z, s)\ny = Gather(x, i)", {"x": (8, 8)}, {"z": np.array(0), "s": np.array([2000, 2000])}
    ),
    "reduce": lambda: model("e = Expand(x, s)\ny = ReduceMax(e)", {"x": (1, 1)}, {"s": np.array([4000, 4000])}),
    "kept": lambda: model(chain("{after} = Softmax({before})", 6), {"x": (1, 2**22)}),
    "sort": lambda: model("y, i = TopK(x, k)", {"x": (1, 2**22)}, {"k": np.array([2**20])}),
    "one-hot": lambda: model(
        "y = OneHot(i, d, v)\ni = Cast<to = 7>(x)", {"x": (4000,)}, {"d": np.array(4000), "v": np.float32([0, 1])}
    ),
    "range": lambda: model(
        "z = Range(a, b, c)\ny = Add(x, z)", {"x": (1,)}, {"a": np.float32(0), "b": np.float32(1e8), "c": np.float32(1)}
    ),
    "nonzero": lambda: model(
        "e = Expand(a, s)\nn = NonZero(e)\nc = Cast<to = 1>(n)\ny = Add(x, c)",
        {"x": (1, 1)},
        {"a": random(1, 1), "s": np.array([1000, 1000])},
    ),
    "pairs": lambda: model(chain("{after} = Concat<axis = 1>({before}, {before})", 24), {"x": (1, 4)}),
    "sums": lambda: model(chain("{after} = Add({before}, {before})", 2000), {"x": (1, 64)}),
    "squares": lambda: model(chain("{after} = Mul({before}, {before})", 2000), {"x": (1, 64)}),
    "relus": lambda: model(chain("{after} = Relu({before})", 20_000), {"x": (1, 4)}),
    "windows": lambda: model(
        chain("{after} = MaxPool<kernel_shape = [9, 9], pads = [4, 4, 4, 4]>({before})", 20), {"x": (1, 1, 64, 64)}
    ),
    "products": lambda: model(
        chain("{after} = Conv<pads = [2, 2, 2, 2]>({before}, w)", 60), {"x": (1, 4, 64, 64)}, {"w": random(4, 4, 5, 5)}
    ),
    "dense": lambda: model(
        "f = Flatten(x)\n"
        + "\n".join(f"v{n + 1} = MatMul({'f' if n == 0 else f'v{n}'}, w)" for n in range(40))
        + "\ny = Relu(v40)",
        {"x": (1, 1, 16, 16)},
        {"w": random(256, 256)},
    ),
}


def main(name: str, form: str) -> None:
    """Convert one."""
    proto = CASES[name]()
    start = time.process_time()
    try:
        became = f"converted, kept {len(convert(proto, form=form).kept)}"
    except (MemoryError, NotImplementedError, ValueError) as error:
        became = f"{type(error).__name__}: {error}".split("\n")[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.process_time() - start:.1f} {peak} {became}")


if __name__ == "__main__":
    main(*sys.argv[1:])
