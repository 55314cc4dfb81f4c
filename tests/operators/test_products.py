"""The product with a CSR matrix as an operator: every derivative and transform of it, and nonsense."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from conv2affine import to_linear
from conv2affine.operators.products import OPERATORS
from tests.conftest import random

# PyTorch's own, when it first loads its forward-mode decompositions
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")


@pytest.mark.parametrize(("dtype", "batch"), [(torch.float64, 1), (torch.complex128, 2)], ids=str)
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_derivatives_of_first_and_second_order(missing, dtype, batch):
    layer = to_linear(nn.Conv1d(1, 1, 2), 3, layout=torch.sparse_csr)
    pattern = (layer.crow_indices, layer.col_indices, 3)
    sizes = [layer.values.shape, (2, batch), (3, batch)]
    known = [random(*size, dtype=dtype).requires_grad_() for place, size in enumerate(sizes) if place != missing]

    def product(*factors):
        return OPERATORS.csr_product.default(*factors[:missing], None, *factors[missing:], *pattern)

    assert torch.autograd.gradcheck(product, known, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, known)
    torch.library.opcheck(OPERATORS.csr_product.default, (*known[:missing], None, *known[missing:], *pattern))


def dual(function):
    def derivative(v, x, dv, dx):
        with forward_ad.dual_level():
            y = function(forward_ad.make_dual(v, dv), forward_ad.make_dual(x, dx))
            return forward_ad.unpack_dual(y).tangent

    return derivative


TRANSFORMS = {
    "grad": lambda f: lambda v, x, dv, dx: grad(lambda *inputs: f(*inputs).sum(), (0, 1))(v, x),
    "vjp": lambda f: lambda v, x, dv, dx: vjp(f, v, x)[1](torch.ones(3, 6, dtype=torch.float64)),
    "jvp": lambda f: lambda v, x, dv, dx: jvp(f, (v, x), (dv, dx))[1],
    "jvp of the input": lambda f: lambda v, x, dv, dx: jvp(partial(f, v), (x,), (dx,))[1],
    "jacrev": lambda f: lambda v, x, dv, dx: jacrev(f, (0, 1))(v, x),
    "jacfwd": lambda f: lambda v, x, dv, dx: jacfwd(f, (0, 1))(v, x),
    "hessian": lambda f: lambda v, x, dv, dx: hessian(lambda *inputs: f(*inputs).sum(), (0, 1))(v, x),
    "vmap of the input": lambda f: lambda v, x, dv, dx: vmap(partial(f, v))(x),
    "vmap of the values": lambda f: lambda v, x, dv, dx: vmap(f, (0, None))(torch.stack([v, dv]), x),
    "vmap of both": lambda f: lambda v, x, dv, dx: vmap(f, (1, 0))(torch.stack([v, dv], 1), torch.stack([x, dx])),
    "gradient of each sample": lambda f: (
        lambda v, x, dv, dx: vmap(grad(lambda *inputs: f(*inputs).sum()), (None, 0))(v, x)
    ),
    "dual numbers": dual,
}


BACKENDS = ("eager", "aot_eager")
COMPILED = [
    pytest.param(name, backend, marks=pytest.mark.long if (number + place) % 2 else ())
    for number, name in enumerate(TRANSFORMS)
    for place, backend in enumerate(BACKENDS)
]


@pytest.mark.parametrize(("name", "backend"), [*((name, None) for name in TRANSFORMS), *COMPILED])
def test_every_transform_is_right(name, backend):
    layer = to_linear(nn.Conv1d(1, 2, 2, dtype=torch.float64), 4, layout=torch.sparse_csr)
    rows, cols, bias = torch.repeat_interleave(layer.crow_indices.diff()), layer.col_indices, layer.bias.detach()
    layer.requires_grad_(False)

    def sparse(values, x):
        return functional_call(layer, {"values": values}, (x,)).sin()

    def dense(values, x):
        matrix = torch.zeros(6, 4, dtype=torch.float64).index_put((rows, cols), values)
        return nn.functional.linear(x, matrix, bias).sin()

    v, x = layer.values.detach(), random(3, 4, dtype=torch.float64)
    arguments = (v, x, random(*v.shape, dtype=torch.float64), x.flip(0))
    transformed = TRANSFORMS[name](sparse)
    if backend is not None:
        torch.compiler.reset()
        transformed = torch.compile(transformed, backend=backend)
    torch.testing.assert_close(transformed(*arguments), TRANSFORMS[name](dense)(*arguments))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (((7,), None, (4, 2)), r"values must have shape \(12,\), got \(7,\)"),
        (((12,), None, (5, 2)), r"x must have shape \(4, 2\), got \(5, 2\)"),
        (((12,), (7, 2), None), r"y must have shape \(6, 2\), got \(7, 2\)"),
        ((None, (6, 2), (4, 3)), r"y must have shape \(6, 3\), got \(6, 2\)"),
        (((12,), (6, 2), (4, 2)), "one of values, y and x must be None, and two given"),
        ((None, (6, 2), None), "one of values, y and x must be None, and two given"),
    ],
)
def test_nonsense_is_refused_by_the_operator(factors, message, device):
    layer = to_linear(nn.Conv1d(1, 2, 2), 4, layout=torch.sparse_csr).to(device)
    tensors = [None if size is None else torch.ones(size, device=device) for size in factors]
    with pytest.raises(ValueError, match=message):
        OPERATORS.csr_product.default(*tensors, layer.crow_indices, layer.col_indices, 4)
