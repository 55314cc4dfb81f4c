"""One call of a compiled operator by seed: arguments made from its schema, and the check of its result."""

import functools
import random
import resource
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from conv2affine import Geometry
from tests.fuzzing.random_layers import random_layer

CALLS_OF_A_LAYER = 8  # it takes longer to make than a call
MAX_BYTES = 2 * 2**30  # for all that a call allocates

INTEGERS = (-(2**63), -(2**62), -(2**32), -(2**31), -2, -1, 0, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**32, 2**62)
INTEGERS += (2**63 - 1, 2**63)
SIZES = ((), (0,), (1,), (3, 0, 2), (2, 2, 2), (1, 1, 1, 1), (1, 2, 3, 2, 2, 2), (1,) * 7, (2,) * 12)
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
WORDS = ("zeros", "circular", "reflect", "replicate", "", "Zeros", "zeros\0", "constant", "\u00e9" * 1000)


@functools.cache
def operators() -> list[Any]:
    """The compiled operators. `csr_product` is not one: it trusts its indices, as PyTorch's products do."""
    names = {
        name.removeprefix("conv2affine::") for name in torch._C._dispatch_get_all_op_names() if "conv2affine" in name
    }
    return [getattr(torch.ops.conv2affine, name).default for name in sorted(names - {"csr_product"})]


def arguments(seed: int) -> tuple[Any, list[Any], int]:
    """(operator, arguments, how many of them may be wrong)."""
    draw = random.Random(seed)
    operator = draw.choice(operators())
    known = valid_arguments(seed, draw, {argument.name for argument in operator._schema.arguments})
    values = [known[argument.name] for argument in operator._schema.arguments]
    wrong = draw.choice((0, 1, 1, 1, 2, 3))
    for _ in range(wrong):
        place = draw.randrange(len(values))
        kind = str(operator._schema.arguments[place].real_type)
        if kind == "List[int]" and draw.random() < 0.7:
            changed = list(values[place])
            if changed:
                changed[draw.randrange(len(changed))] = draw.choice(INTEGERS)
            values[place] = changed
        else:
            values[place] = NONSENSE[kind](draw)
    return operator, values, wrong


layer = functools.lru_cache(maxsize=1)(random_layer)


def valid_arguments(seed: int, draw: random.Random, names: set[str]) -> dict[str, Any]:
    """What the operators take for a random layer, by the names in their schemas."""
    conv, input_size = layer(seed // CALLS_OF_A_LAYER)
    geometry = Geometry.from_layer(conv, input_size)
    weight = geometry.group_weight(conv.weight)
    numbers, padding_mode, transposed = geometry.operator_arguments()
    by_columns = "by_columns" in names and draw.random() < 0.5
    start, stop = sorted(draw.randint(0, geometry.shape[1 if by_columns else 0]) for _ in range(2))
    mode = {"geometry": list(numbers), "padding_mode": padding_mode, "transposed": transposed}
    block = {"row_start": start, "row_stop": stop}
    known = {"weight": weight, **mode, **block, "by_columns": by_columns, "weight_size": list(weight.shape)}
    if "values" in names:
        known["values"] = torch.ops.conv2affine.values(weight, *mode.values(), start, stop, by_columns)
    known["matrix"] = weight.new_ones(stop - start, geometry.shape[1])
    known["index_dtype"] = draw.choice((torch.int32, torch.int64))
    return {**known, "bias": weight.flatten()[:3], "outputs": draw.randint(1, 9)}


def any_tensor(draw: random.Random) -> Tensor:
    """Any dtype, shape, strides, layout and device."""
    size, dtype = draw.choice(SIZES), draw.choice(DTYPES)
    makers: tuple[Callable[[], Tensor], ...] = (
        lambda: torch.ones(size).to(dtype),
        lambda: torch.empty(size, dtype=dtype, device="meta"),
        lambda: torch.zeros(1, dtype=dtype).expand(draw.choice((2**20, 2**40, 2**60))),
        lambda: torch.zeros((), dtype=dtype).expand(1, 2**31, 2**20, 1),
        lambda: torch.zeros(size).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.ones(3, 1, 2, 4).transpose(0, 3)[:, :, ::2],
        lambda: torch.full(size, float("nan"), requires_grad=True),
        lambda: torch.zeros(2, 3, dtype=torch.complex64).conj(),
    )
    try:
        return draw.choice(makers)()
    except (RuntimeError, NotImplementedError):  # PyTorch has no such tensor
        return torch.zeros(size)


NONSENSE: dict[str, Callable[[random.Random], Any]] = {
    "Tensor": any_tensor,
    "List[int]": lambda draw: [draw.choice(INTEGERS) for _ in range(draw.choice((0, 1, 3, 4, 5, 10, 15, 16, 1000)))],
    "int": lambda draw: draw.choice(INTEGERS),
    "bool": lambda draw: draw.random() < 0.5,
    "str": lambda draw: draw.choice(WORDS),
    "ScalarType": lambda draw: draw.choice(DTYPES),
}


def call(seed: int) -> str:
    """Make the call, and check its result; the outcome in a word."""
    operator, values, wrong = arguments(seed)
    try:
        with torch.inference_mode(seed % 2 == 1):  # straight to the kernels, or through autograd in Python
            result = operator(*values)
    except Exception as error:
        if not wrong or any(trace in str(error) for trace in ("Exception raised from", "bad_alloc", "INTERNAL ASSERT")):
            raise
        return type(error).__name__
    check_result({a.name: v for a, v in zip(operator._schema.arguments, values, strict=True)}, operator, result)
    return "results"


def check_result(given: dict[str, Any], operator: Any, result: Any) -> None:
    """Indices lie inside the matrix and ascend."""
    if operator._schema.name not in ("conv2affine::csr", "conv2affine::coo") or result[0].is_meta:
        return
    groups, outs, ins, *kernel = given["weight"].shape
    inputs, outputs = (prod(given["geometry"][part * len(kernel) :][: len(kernel)]) for part in range(2))
    lines, across = groups * outs * outputs, groups * ins * inputs
    if given.get("by_columns"):
        lines, across = across, lines
    count = given["row_stop"] - given["row_start"]
    assert 0 <= count <= lines
    if operator._schema.name == "conv2affine::csr":
        crow, col, entries = result
        assert len(crow) == count + 1
        assert crow[0] == 0
        assert crow[-1] == len(col) == len(entries)
        assert (crow.diff() >= 0).all()
        row = torch.repeat_interleave(crow.diff())
    else:
        (row, col), entries = result
        assert len(col) == len(entries)
    if len(col):
        assert row.min() >= 0
        assert row.max() < count
        assert col.min() >= 0
        assert col.max() < across
        assert ((row * across + col).diff() > 0).all()


def run(first: int, count: int, progress: str) -> None:
    """Make calls within little memory; print how often each outcome came, and the bytes that are lost."""
    torch.ones(2**20).sum()  # starts the threads, whose stacks the limit would count
    process = psutil.Process()
    limit = process.memory_info().data + MAX_BYTES  # not of the address space: AddressSanitizer has taken that already
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    outcomes: Counter[str] = Counter()
    path, held = Path(progress), []
    for seed in range(first, first + count):
        path.write_text(str(seed))
        outcomes[call(seed)] += 1
        held.append(process.memory_info().rss)
    for outcome, number in outcomes.items():
        print(outcome, number)
    print(min(held[-100:]) - min(held[:100]))
