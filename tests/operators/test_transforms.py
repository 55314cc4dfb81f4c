"""Every transform of PyTorch, eager and compiled: right by finite differences, or refused."""

import pytest
import torch
from torch.autograd import forward_ad

from conv2affine import Geometry, conv_matrix, conv_transpose_matrix

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

OPERATORS = torch.ops.conv2affine
GEOMETRY = Geometry(2, 2, (2,), input_size=3, padding=1, groups=2)
BLOCK = (*GEOMETRY.operator_arguments(), 1, 7)  # rows of both groups, but not all
SIZE = list(GEOMETRY.grouped_size)


def values(w, layout):
    return conv_matrix(w, 3, padding=1, groups=2, layout=layout, rows=range(1, 7)).values()


# name: (function, shape of its argument). The operators, and what the public functions make of them.
FUNCTIONS = {
    "conv_matrix": (lambda w: conv_matrix(w, 3, padding=1, groups=2, rows=range(1, 7)), (2, 1, 2)),
    "conv_transpose_matrix": (lambda w: conv_transpose_matrix(w, 2, stride=2), (1, 2, 2)),
    "dense": (lambda w: OPERATORS.dense(w, *BLOCK), SIZE),
    "bias": (lambda b: OPERATORS.bias(b, 3), (4,)),
    "csr": (lambda w: OPERATORS.csr(w, *BLOCK, False, torch.int32)[2], SIZE),
    "csr-transpose": (lambda w: OPERATORS.csr(w, *BLOCK[:3], 1, 5, True, torch.int64)[2], SIZE),
    "coo": (lambda w: OPERATORS.coo(w, *BLOCK)[1], SIZE),
    "dense_adjoint": (lambda m: OPERATORS.dense_adjoint(m, SIZE, *BLOCK), (6, 6)),
    "sparse_adjoint": (lambda v: OPERATORS.sparse_adjoint(v, SIZE, *BLOCK, False), (10,)),
    "sparse_csr": (lambda w: values(w, torch.sparse_csr), (2, 1, 2)),
    "sparse_coo": (lambda w: values(w, torch.sparse_coo), (2, 1, 2)),
}
# PyTorch 2.13 sends derivatives through the construction of sparse tensors in few cases, and refuses most others.
SPARSE = {"sparse_csr": ["backward"], "sparse_coo": ["backward", "grad", "vjp"]}


def square(function):
    """A scalar function whose central differences are exact: it is quadratic."""
    return lambda x: (function(x) ** 2).sum()


def differences(function, x):
    """The derivative by central differences of 1 in each element, which add axes at the end."""
    steps = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    columns = [(function(x + step) - function(x - step)) / 2 for step in steps]
    return torch.stack(columns, -1).view(*columns[0].shape, *x.shape)


def backward(function, x, _):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(square(function)(x), x)[0]


def double_backward(function, x, v):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(square(function)(x), x, create_graph=True)
    return torch.autograd.grad((gradient * v).sum(), x)[0]


def dual_numbers(function, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent


def gradient(function, x, _):
    return differences(square(function), x)


def hessian(function, x, _):
    return differences(lambda x: differences(square(function), x), x)


def tangent(function, x, v):
    return torch.tensordot(differences(function, x), v, v.dim())


# name: (transform, what it should give)
TRANSFORMS = {
    "backward": (backward, gradient),
    "double-backward": (double_backward, lambda f, x, v: torch.tensordot(hessian(f, x, v), v, v.dim())),
    "grad": (lambda f, x, v: torch.func.grad(square(f))(x), gradient),
    "vjp": (lambda f, x, v: torch.func.vjp(square(f), x)[1](x.new_ones(()))[0], gradient),
    "jvp": (lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1], tangent),
    "dual-numbers": (dual_numbers, tangent),
    "jacrev": (lambda f, x, v: torch.func.jacrev(f)(x), lambda f, x, v: differences(f, x)),
    "jacfwd": (lambda f, x, v: torch.func.jacfwd(f)(x), lambda f, x, v: differences(f, x)),
    "hessian": (lambda f, x, v: torch.func.hessian(square(f))(x), hessian),
    "vmap": (lambda f, x, v: torch.func.vmap(f)(torch.stack([x, v])), lambda f, x, v: torch.stack([f(x), f(v)])),
}


# What PyTorch says where it refuses.
REFUSALS = "|".join(
    (
        "appears to not have been used in the graph",  # no double backward under aot_autograd
        "does not require grad and does not have a grad_fn",
        "Sparse CSR tensors do not have ",
        "must be torch.strided under torch.vmap",
        "Trying to use forward AD with",
        "Could not run 'aten::",
        "Dynamo does not know how to trace",
    )
)


def is_right(name, transform, mode):
    """Whether PyTorch 2.13 takes it; it refuses all others."""
    if name in SPARSE:
        return mode == "eager" and transform in SPARSE[name]
    # "torch.compile with aot_autograd does not currently support double backward"
    return (transform, mode) != ("double-backward", "aot_eager")


def inputs(shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "mode", ["eager", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("compile-eager", "aot_eager"))]
)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transform_is_right_or_refused(name, transform, mode):
    function, shape = FUNCTIONS[name]
    apply, expect = TRANSFORMS[transform]
    x, v = inputs(shape)

    def run(x, v):
        return apply(function, x, v)

    compiled = run if mode == "eager" else torch.compile(run, backend=mode.removeprefix("compile-"))
    if is_right(name, transform, mode):
        torch.testing.assert_close(compiled(x, v), expect(function, x, v))
    else:
        with pytest.raises((RuntimeError, AssertionError, IndexError), match=REFUSALS):
            compiled(x, v)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_transform_with_inductor(transform):
    function, shape = FUNCTIONS["conv_matrix"]
    apply, expect = TRANSFORMS[transform]
    x, v = inputs(shape)
    compiled = torch.compile(lambda x, v: apply(function, x, v), fullgraph=True)
    torch.testing.assert_close(compiled(x, v), expect(function, x, v))


def test_functionalize_keeps_the_operators():
    function, shape = FUNCTIONS["dense"]
    x, v = inputs(shape)
    assert torch.equal(torch.func.functionalize(function)(x), function(x))
    batch = torch.func.functionalize(torch.func.vmap(function))(torch.stack([x, v]))
    assert torch.equal(batch, torch.stack([function(x), function(v)]))
