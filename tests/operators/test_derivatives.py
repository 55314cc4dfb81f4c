"""What PyTorch knows of the operators: opcheck on each, derivatives of every order and kind, batches, compilation."""

from math import prod

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.utils import parametrizations

from conv2affine import Geometry, conv_matrix, conv_transpose_matrix, to_bias, to_matrix
from tests.cases import CASES, case
from tests.conftest import long_but

OPERATORS = torch.ops.conv2affine
by_id = {"ids": lambda case: case.id}
# One of each kind, small: finite differences take a call an element.
SMALL = [
    case
    for case in CASES
    if case.id
    in (
        "Conv1d-groups",
        "Conv1d-stride",
        "Conv1d-circular-whole-input",
        "Conv1d-replicate-far",
        "Conv1d-reflect-to-the-end",
        "Conv2d-circular-overlap",
        "Conv2d-depthwise-multiplier",
        "Conv3d-plain",
        "ConvTranspose1d-stride-and-dilation",
        "ConvTranspose1d-output-padding",
        "ConvTranspose2d-groups",
        "ConvTranspose3d-plain",
    )
]


def calls(case, dtype=torch.float64, rows=None):
    """Each operator with the arguments of a case: (name, arguments)."""
    conv = case.conv(dtype).requires_grad_(False)
    geometry = Geometry.from_layer(conv, case.input_size)
    weight = geometry.group_weight(conv.weight)
    total, cols = geometry.shape
    block = rows or (0, total)
    common = (*geometry.operator_arguments(), *block)
    size = list(weight.shape)
    nnz = len(OPERATORS.values(weight, *common, False))
    yield "dense", (weight, *common)
    yield "csr", (weight, *common, False, torch.int32)
    yield "coo", (weight, *common)
    yield "values", (weight, *common, False)
    yield "dense_adjoint", (torch.randn(block[1] - block[0], cols, dtype=dtype), size, *common)
    yield "sparse_adjoint", (torch.randn(nnz, dtype=dtype), size, *common, False)
    yield "values", (weight, *geometry.operator_arguments(), 0, cols, True)


def test_small_cases_are_all_there():
    assert len(SMALL) == 12


@pytest.mark.parametrize("case", long_but(SMALL, CASES), **by_id)
def test_opcheck(case):
    for name, (x, *arguments) in calls(case):
        # opcheck adds up all outputs before it differentiates: that does not work for indices.
        differentiable = name not in ("csr", "coo")
        torch.library.opcheck(getattr(OPERATORS, name).default, (x.clone().requires_grad_(differentiable), *arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", SMALL, **by_id)
def test_gradients_of_the_operators(case, dtype):
    for name, (x, *arguments) in calls(case, dtype, rows=(1, 4) if case.id == "Conv2d-circular-overlap" else None):

        def function(x, name=name, arguments=arguments):
            outputs = getattr(OPERATORS, name)(x, *arguments)
            return outputs[-1] if isinstance(outputs, tuple) else outputs

        x = x.clone().requires_grad_()
        assert gradcheck(function, x, fast_mode=True)
        assert gradgradcheck(lambda x, function=function: function(x) ** 2, x, fast_mode=True)


@pytest.mark.parametrize("case", CASES, **by_id)
def test_adjoint_is_the_adjoint(case):
    """<A(w), M> == <w, A'(M)>, for every operator that has one and its rows in blocks."""
    for rows in (None, (0, 0), (1, 2)):
        named = dict(calls(case, rows=rows if rows != (1, 2) or to_rows(case) > 1 else None))
        for name, adjoint in (("dense", "dense_adjoint"), ("values", "sparse_adjoint")):
            weight = named["dense"][0]
            x, *arguments = named[adjoint]
            image = getattr(OPERATORS, name)(weight, *arguments[1:])
            back = getattr(OPERATORS, adjoint)(x, *arguments)
            torch.testing.assert_close((image * x).sum(), (weight * back).sum())


def to_rows(case):
    return Geometry.from_layer(case.conv(), case.input_size).shape[0]


# Each way of summing a line of rows: see Note [Lines].
LINES = [
    case("whole", nn.Conv2d, (24, 20), 2, 3, 3, padding=1),
    case("whole-stride", nn.Conv2d, (47, 20), 2, 3, 3, padding=1, stride=2),
    case("whole-groups", nn.Conv2d, (24, 20), 4, 6, 3, padding=1, groups=2),
    case("blocks", nn.Conv1d, 700, 2, 3, 5, padding=2),
    case("blocks-dilation", nn.Conv2d, (3, 100), 2, 3, 3, padding=4, dilation=3),
    case("blocks-replicate", nn.Conv1d, 300, 2, 3, 7, padding=5, padding_mode="replicate"),
    case("blocks-circular", nn.Conv2d, (12, 60), 2, 2, 3, padding=1, padding_mode="circular"),
    case("blocks-stride", nn.ConvTranspose2d, (4, 40), 2, 3, 5, stride=3),
    case("blocks-stride-and-dilation", nn.ConvTranspose1d, 200, 3, 2, 4, stride=3, dilation=2),
    case("no-borders", nn.Conv2d, (9, 20), 2, 3, 3),
    case("no-borders-stride", nn.Conv3d, (4, 5, 16), 3, 2, 2, stride=2),
    case("no-borders-but-lines", nn.Conv2d, (9, 20), 2, 3, 3, padding=(1, 0)),
    case("weight-twice-in-a-column", nn.Conv1d, 7, 2, 3, 2, padding=1, dilation=3, padding_mode="replicate"),
    case("no-sums", nn.Conv1d, 600, 1, 2, 599, padding=299),
    case("no-sums-circular", nn.Conv1d, 560, 1, 2, 599, padding=299, padding_mode="circular"),
]


@pytest.mark.parametrize("case", long_but(LINES[:-1], LINES), **by_id)
def test_adjoint_is_the_weight_gradient_of_pytorch(case):
    """The matrix is the layer at every unit vector. Whole numbers: sums are exact in any order."""
    conv = case.conv().requires_grad_()
    geometry = Geometry.from_layer(conv, case.input_size)
    rows, cols = geometry.shape
    matrix = torch.randint(-9, 10, (rows, cols)).double()
    basis = torch.eye(cols, dtype=torch.float64).view(cols, geometry.in_channels, *geometry.input_size)
    images = (conv(basis) - conv(torch.zeros_like(basis[:1]))).flatten(1)
    for start, stop in ((0, rows), (7, rows - 5)):
        (expected,) = torch.autograd.grad(images[:, start:stop], conv.weight, matrix[start:stop].T, retain_graph=True)
        expected = geometry.group_weight(expected).round()
        arguments = (list(expected.shape), *geometry.operator_arguments(), start, stop)
        assert torch.equal(OPERATORS.dense_adjoint(matrix[start:stop], *arguments), expected)
        starts, columns, _ = OPERATORS.csr(expected, *arguments[1:], False, torch.int64)
        values = matrix[torch.arange(start, stop).repeat_interleave(starts.diff()), columns]
        assert torch.equal(OPERATORS.sparse_adjoint(values, *arguments, False), expected)
    starts, columns, _ = OPERATORS.csr(expected, *arguments[1:4], 0, cols, True, torch.int64)
    (expected,) = torch.autograd.grad(images, conv.weight, matrix.T)
    values = matrix.T[torch.arange(cols).repeat_interleave(starts.diff()), columns]
    back = OPERATORS.sparse_adjoint(values, *arguments[:4], 0, cols, True)
    assert torch.equal(back, geometry.group_weight(expected).round())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_adjoint_of_ones_counts_in_every_dtype(dtype):
    """4096 entries a weight: halves could not count so far by themselves."""
    geometry = Geometry(2, 3, (1, 1), input_size=64)
    arguments = (geometry.grouped_size, *geometry.operator_arguments(), 0, geometry.shape[0])
    weight = OPERATORS.dense_adjoint(torch.ones((), dtype=dtype).expand(geometry.shape), *arguments)
    assert (weight == 4096).all()
    values = torch.ones(6 * 4096, dtype=dtype)
    assert torch.equal(OPERATORS.sparse_adjoint(values, *arguments, False), weight)


def test_adjoint_does_not_depend_on_threads():
    geometry = Geometry(3, 2, (3, 3), input_size=40, padding=1)
    arguments = (geometry.grouped_size, *geometry.operator_arguments(), 0, geometry.shape[0])
    matrix = torch.randn(geometry.shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(OPERATORS.dense_adjoint(matrix, *arguments))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


MATRICES = {
    "transposed": lambda: torch.randn(14, 30).T,
    "expanded": lambda: torch.randn(()).expand(30, 14),
    "every-other-column": lambda: torch.randn(30, 28)[:, ::2],
    "conjugated": lambda: torch.randn(30, 14, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("name", MATRICES)
def test_adjoint_of_a_matrix_with_any_strides(name):
    matrix = MATRICES[name]()
    geometry = Geometry(1, 2, (2,), input_size=14, padding=1)
    arguments = (geometry.grouped_size, *geometry.operator_arguments(), 0, geometry.shape[0])
    expected = OPERATORS.dense_adjoint(matrix.clone(memory_format=torch.contiguous_format).resolve_conj(), *arguments)
    assert torch.equal(OPERATORS.dense_adjoint(matrix, *arguments), expected)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dense_adjoint", torch.ones(149, 80), r"matrix must have shape \(150, 80\), got \[149, 80\]"),
        ("dense_adjoint", torch.ones(150 * 80), r"matrix must have shape"),
        ("sparse_adjoint", torch.ones(7), r"values must have shape \(\d+\), got \[7\]"),
        ("sparse_adjoint", torch.ones(1, 7), r"values must have shape"),
    ],
)
def test_adjoint_of_another_shape_is_refused(name, change, message):
    geometry = Geometry(4, 6, (2, 3), input_size=(4, 5), padding=1, groups=2)
    arguments = (geometry.grouped_size, *geometry.operator_arguments(), 0, 150)
    with pytest.raises(ValueError, match=message):
        getattr(OPERATORS, name)(change, *arguments, *[False] * (name == "sparse_adjoint"))


@pytest.mark.parametrize(
    ("kernel_size", "error"), [([2**22, 2**21, 2**21], ValueError), ([2**20, 2**20, 2**20], RuntimeError)], ids=str
)
def test_adjoint_for_more_weights_than_there_can_be_is_refused(kernel_size, error):
    one = [1, 1, 1]
    geometry = [*one, *one, *one, *(size // 2 for size in kernel_size), *one]
    with pytest.raises(error, match=r"signed 64-bit|allocate memory"):
        OPERATORS.dense_adjoint(torch.ones(1, 1), [*one, *kernel_size], geometry, "zeros", False, 0, 1)


# The public functions

WEIGHT = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FUNCTIONS = {
    "groups": lambda w: conv_matrix(w, 4, padding=1, groups=2),
    "one-group": lambda w: conv_matrix(w, 6, stride=2),
    "circular-rows": lambda w: conv_matrix(w, 3, padding=2, groups=2, padding_mode="circular", rows=range(3, 13)),
    "transposed": lambda w: conv_transpose_matrix(w, 2, stride=2, groups=2),
    "csr-values": lambda w: conv_matrix(w, 4, padding=1, groups=2, layout=torch.sparse_csr).values(),
}
by_name = pytest.mark.parametrize("name", FUNCTIONS)
dense_by_name = pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "csr-values"])


@by_name
def test_gradcheck(name):
    assert gradcheck(FUNCTIONS[name], WEIGHT.clone().requires_grad_())


# torch itself compiles its forward derivatives with torch.jit.script, which it deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
@dense_by_name
def test_gradcheck_in_every_mode(name):
    function, weight = FUNCTIONS[name], WEIGHT.clone().requires_grad_()
    assert gradcheck(function, weight, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(lambda w: function(w) ** 2, weight, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("in_dim", [0, 2])
@dense_by_name
def test_vmap_over_weights(name, in_dim):
    function = FUNCTIONS[name]
    weights = torch.stack([WEIGHT, -WEIGHT, 2 * WEIGHT])
    expected = torch.stack([function(w) for w in weights])
    batch = weights.movedim(0, in_dim)
    assert torch.equal(torch.func.vmap(function, in_dims=in_dim)(batch), expected)
    twice = torch.func.vmap(torch.func.vmap(function, in_dims=in_dim))(torch.stack([batch, batch]))
    assert torch.equal(twice, torch.stack([expected, expected]))
    gradient = torch.func.grad(lambda w: (function(w) ** 2).sum())
    gradients = torch.func.vmap(gradient, in_dims=in_dim)(batch)
    torch.testing.assert_close(gradients, torch.stack([gradient(w) for w in weights]))


@pytest.mark.parametrize("case", SMALL, **by_id)
def test_vmap_of_the_operators_is_a_loop_over_the_batch(case):
    total = to_rows(case)
    for rows in (None, (total // 3, total - total // 4)):
        for name, (x, *arguments) in calls(case, rows=rows):
            if name in ("csr", "coo"):
                continue
            operator = getattr(OPERATORS, name)
            batch = torch.stack([x, 3 * x])

            def function(x, operator=operator, arguments=arguments):
                return operator(x, *arguments)

            expected = torch.stack([function(x), function(3 * x)])
            torch.testing.assert_close(torch.func.vmap(function)(batch), expected)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo], ids=str)
def test_gradients_through_sparse_products(layout):
    x = torch.randn(28, 3, dtype=torch.float64)

    def product(w, layout=layout):
        return conv_matrix(w, 7, padding=2, groups=2, padding_mode="replicate", layout=layout) @ x

    def gradient(layout):
        return torch.func.grad(lambda w: (product(w, layout) ** 2).sum())(WEIGHT)

    assert gradcheck(product, WEIGHT.clone().requires_grad_())
    if layout is torch.sparse_coo:  # PyTorch 2.13 supports no other sparse layout in torch.func
        torch.testing.assert_close(gradient(layout), gradient(torch.strided))
    else:
        with pytest.raises(RuntimeError, match="do not have strides"):
            gradient(layout)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_forward_mode_through_sparse_layouts_is_refused_and_not_taken_for_zero():
    for layout in (torch.sparse_csr, torch.sparse_coo):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward AD"):
            conv_matrix(forward_ad.make_dual(WEIGHT, WEIGHT), 7, groups=2, layout=layout)


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_gradients_reach_the_layer(layer):
    conv = layer(2, 3, 3, padding=1).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    parameters = (conv.weight, conv.bias)
    expected = torch.autograd.grad((conv(x) ** 2).sum(), parameters)
    y = to_matrix(conv, (5, 6)) @ x.flatten() + to_bias(conv, (5, 6))
    for ours, theirs in zip(torch.autograd.grad((y**2).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_reach_parametrised_weights():
    conv = parametrizations.weight_norm(nn.Conv1d(2, 3, 3)).double()
    x = torch.randn(2, 6, dtype=torch.float64)
    parameters = list(conv.parametrizations.weight.parameters())
    expected = torch.autograd.grad((conv(x) ** 2).sum(), parameters)
    y = to_matrix(conv, 6) @ x.flatten() + to_bias(conv, 6)
    for ours, theirs in zip(torch.autograd.grad((y**2).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic, fresh_dynamo):
    def product(weight, x):
        return conv_matrix(weight, x.shape[1:], padding="same", padding_mode="circular") @ x.flatten()

    compiled = torch.compile(product, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (5, 6, 9):
        weight = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
        x = torch.randn(2, size, dtype=torch.float64)
        assert torch.equal(compiled(weight, x), product(weight, x))
        (ours,) = torch.autograd.grad((compiled(weight, x) ** 2).sum(), weight)
        (expected,) = torch.autograd.grad((product(weight, x) ** 2).sum(), weight)
        torch.testing.assert_close(ours, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_layers_and_export(fresh_dynamo):
    class Penalty(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x), to_matrix(self.conv, (6, 7)).square().sum() + to_bias(self.conv, (6, 7)).sum()

    module, x = Penalty(), torch.randn(1, 2, 6, 7)
    expected = module(x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(module, (x,)).module()
    for made in (compiled, exported):
        torch.testing.assert_close(made(x), expected)


def test_meta_and_fake_tensors_have_shape_dtype_and_device():
    conv = nn.Conv2d(3, 64, 7, stride=2, padding=3, device="meta", dtype=torch.bfloat16)
    matrix = to_matrix(conv, 224)
    assert (matrix.shape, matrix.dtype, matrix.device.type) == ((802_816, 150_528), torch.bfloat16, "meta")
    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            weight = torch.empty(64, 3, 7, 7, device=device, dtype=torch.float16)
            geometry = Geometry(3, 64, (7, 7), input_size=224, stride=2, padding=3)
            arguments = (geometry.group_weight(weight), *geometry.operator_arguments(), 0, geometry.shape[0])
            outputs = [
                conv_matrix(weight, 224, stride=2, padding=3),
                *OPERATORS.csr(*arguments, False, torch.int32),
                *OPERATORS.coo(*arguments),
                OPERATORS.values(*arguments, False),
            ]
            assert {output.device.type for output in outputs} == {device}
            shapes = [tuple(output.shape) for output in outputs]
            nnz = 116_214_528
            assert shapes == [(802_816, 150_528), (802_817,), (nnz,), (nnz,), (2, nnz), (nnz,), (nnz,)]
            dtypes = [output.dtype for output in outputs]
            half = torch.float16
            assert dtypes == [half, torch.int32, torch.int32, half, torch.int64, half, half]
            back = OPERATORS.dense_adjoint(outputs[0], geometry.grouped_size, *arguments[1:])
            assert (back.shape, back.device.type) == (geometry.grouped_size, device)


ONE = (1, 1, 1)
LINE = ([9, 7, 1, 0, 1], "zeros", False)  # Conv1d(1, 1, 3) @ 9
HUGE = (828285, 1478752, 1882585)
CHANNELS = (1, 2**30, 2**29, 1)
# Per line: operator, shape of its first argument, other arguments, message.
NONSENSE = [
    ("dense", (6, 2, 2), (*LINE, 0, 7), "weight must have the shape"),
    ("dense", (0, 1, 1, 3), (*LINE, 0, 7), "at least one group"),
    ("dense", (*ONE, 3), ([9, 7], "zeros", False, 0, 7), "geometry must have 5 values"),
    ("dense", (*ONE, 3), (LINE[0], "constant", False, 0, 7), "must be one of 'zeros'"),
    ("dense", (*ONE, 3), ([9, 7, 0, 0, 1], "zeros", False, 0, 7), r"stride \(0\)"),
    ("dense", (*ONE, 3), (*LINE, 0, 8), r"rows \[0, 8\)"),
    ("dense", (*ONE, 3), ([2**60, 2**60, 1, 0, 1], "zeros", False, 0, 7), "number of elements of the matrix"),
    ("dense", CHANNELS, ([2, 2, 1, 0, 1], "zeros", False, 0, 2**31), "number of bytes of the dense matrix"),
    ("values", (*ONE, 3), (*LINE, 5, 4, False), r"rows \[5, 4\)"),
    ("values", CHANNELS, ([2, 2, 1, 0, 1], "zeros", False, 0, 2**31, True), r"rows \[0, 2147483648\)"),
    ("values", CHANNELS, ([2, 2, 1, 0, 1], "zeros", False, 0, 2**31, False), "number of bytes of the sparse matrix"),
    ("coo", CHANNELS, ([2, 2, 1, 0, 1], "zeros", False, 0, 2**31), "number of bytes of the sparse matrix"),
    ("csr", (*ONE, 3), (*LINE, 0, 7, False, torch.float32), "must be int32 or int64"),
    ("csr", (1, 2**16, 2**15, 1), ([2, 2, 1, 0, 1], "zeros", False, 0, 2**17, False, torch.int32), "int32 counts to"),
    (  # 2^61 rows without an entry
        "csr",
        (*ONE, *ONE),
        ([*ONE, *HUGE, 3, 3, 3, *ONE, *ONE], "zeros", False, 0, prod(HUGE), False, torch.int64),
        "number of bytes of the row starts",
    ),
    (
        "dense_adjoint",
        (1, 1),
        ([*ONE, 2**21, 2**21, 2**20], [*ONE, *ONE, *ONE, 2**20, 2**20, 2**19, *ONE], "zeros", False, 0, 1),
        "number of bytes of the weight",
    ),
    ("dense_adjoint", (7, 8), ([*ONE, 3], *LINE, 0, 7), r"matrix must have shape \(7, 9\), got \[7, 8\]"),
    ("sparse_adjoint", (20,), ([*ONE, 3], *LINE, 0, 7, False), r"values must have shape \(21\), got \[20\]"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("name", "shape", "arguments", "message"), NONSENSE)
def test_nonsense_is_refused_with_and_without_data(name, shape, arguments, message, device):
    with pytest.raises(ValueError, match=message):
        getattr(OPERATORS, name)(torch.zeros((), device=device).expand(shape), *arguments)
