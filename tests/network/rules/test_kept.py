"""Operators that are kept, as no rule covers them with these arguments: they run as they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import check, to_linear_network
from tests.conftest import long_but
from tests.network.models import Converted, Function, build
from tests.network.rules.operands import COLUMNS, IMAGE, MASK, SQUARE, THIRDS, constant, kinds

LABELS = torch.tensor([[0, 3, -1, 0, 0, 0]])
X = IMAGE
IMAGES = constant(1, *IMAGE)


def square(x):
    """Invertible matrices."""
    return x[..., :5] + 5 * SQUARE


KEPT = {
    "sigmoid": ("sigmoid", torch.sigmoid, X),
    "gelu": ("gelu", F.gelu, X),
    "hardswish": ("hardswish", F.hardswish, X),
    "square": ("pow", lambda x: x**2, X),
    "divided-by-a-value": ("reciprocal", lambda x: 1 / (x**2 + 1), X),
    "product": ("mul", lambda x: x * x.flip(1), X),
    "product-broadcast": ("mul", lambda x: x * x.mean((2, 3), keepdim=True), X),
    "softmax": ("_softmax", lambda x: x.softmax(1), X),
    "softmax-of-its-logarithm": ("_log_softmax", lambda x: x.log_softmax(1).softmax(1), X),
    "layer-norm": ("layer_norm", nn.LayerNorm(6), X),
    "group-norm": ("group_norm", nn.GroupNorm(1, 2), X),
    "instance-norm": ("instance_norm", nn.InstanceNorm2d(2), X),
    "glu": ("glu", lambda x: F.glu(x, 3), X),
    "matmul-of-values": ("matmul", lambda x: x @ x.mT, X),
    "attention": ("scaled_dot_product_attention", lambda x: F.scaled_dot_product_attention(x, x, 2 * x), X),
    "scatter-by-values": ("scatter_reduce", lambda x: x.scatter_reduce(3, x.argsort(3), x, "mean"), X),
    "scatter-add-by-values": ("scatter_add", lambda x: x.scatter_add(3, x.argsort(3), x), X),
    "scatter-product": (
        "scatter_reduce",
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "prod"),
        X,
    ),
    "sort-of-infinities": ("sort", lambda x: torch.nan_to_num(x.relu().log().sort(3).values, neginf=-5.0), X),
    "maximum-that-is-not-nan": ("fmax", lambda x: torch.fmax(x.log(), x), X),
    "threshold-with-a-jump": ("threshold", lambda x: F.threshold(x, 0.2, 0.0), X),
    "comparison": ("gt", lambda x: (x > x.flip(1)).double(), X),
    "pooling-with-indices": (
        "max_pool2d_with_indices",
        lambda x: F.max_unpool2d(*F.max_pool2d(x[:, :, :4], 2, return_indices=True), 2),
        X,
    ),
    "norm-2": ("linalg_vector_norm", lambda x: x.norm(dim=1), X),
    "norm-0": ("linalg_vector_norm", lambda x: x.norm(0, dim=1), X),
    "fewer-digits": ("_to_copy", lambda x: x.float().double(), X),
    "filled-with-infinities": ("where", lambda x: x.masked_fill(MASK, -torch.inf).softmax(3), X),
    "infinite-mask": ("add", lambda x: (x + torch.where(MASK, -torch.inf, 0.0)).softmax(3), X),
    "infinities-where-nothing-is-put": (
        "scatter_reduce",
        lambda x: torch.full_like(x, -torch.inf).scatter_reduce(2, THIRDS.expand(len(x), -1, -1, -1), x, "amax"),
        X,
    ),
    "infinite-padding": ("pad", lambda x: F.max_pool2d(F.pad(x, (1, 1), value=-torch.inf), 3), X),
    "infinite-weight": ("linear", lambda x: F.linear(x, constant(4, 6) / torch.tensor([1.0] * 5 + [0.0])), X),
    "infinite-statistics": (
        "_native_batch_norm_legit_no_training",
        lambda x: F.batch_norm(x, constant(2) / 0, constant(2).abs()),
        X,
    ),
    "clamp-infinite": ("clamp", lambda x: x.clamp(min=torch.inf), X),
    "leaky-relu-infinite": ("leaky_relu", lambda x: F.leaky_relu(x, torch.inf), X),
    "argmax": ("argmax", lambda x: x.flatten(1).argmax(1), X),
    "singular-values": ("_linalg_svd", lambda x: torch.linalg.svd(x)[1], X),
    "sort": ("sort", lambda x: x.flatten(1).sort(1).values, X),
    "sort-with-indices": ("sort", lambda x: x.sort(2).values * x.sort(2).indices, X),
    "topk-in-any-order": ("topk", lambda x: x.topk(2, 3, sorted=False).values.sum(3), X),
    "cumulative-product": ("cumprod", lambda x: x.cumprod(1), X),
    "not-a-number": ("isnan", lambda x: torch.where(torch.isnan(x.log()), x, 2 * x), X),
    "overflow": ("isinf", lambda x: torch.where(torch.isinf(1e308 * x), -x, x), X),
    "overflow-replaced": ("nan_to_num", lambda x: 1e-308 * torch.nan_to_num(1e308 * x), X),
    "multilabel-margin": (
        "multilabel_margin_loss_forward",
        lambda x: F.multilabel_margin_loss(x[:, 0, 0], LABELS.expand(len(x), -1), reduction="none"),
        X,
    ),
    "permuted-mask": ("where", lambda x: torch.where((x > 0.3).mT, x.mT, -x.mT), X),
    "rolled-mask": ("index_select", lambda x: torch.where((x > 0.3).roll(1, 3), x, -x), X),
    "joined-masks": ("cat", lambda x: torch.cat([x > 0, x < -1], 1).any(3), X),
    "looked-up": ("index", lambda x: SQUARE[x.argmax(2), x.argmin(2)], X),
    "searched": ("searchsorted", lambda x: torch.searchsorted(torch.linspace(-1, 1, 5).double(), x), X),
    "gather-of-a-constant": ("gather", lambda x: IMAGES.expand(len(x), -1, -1, -1).gather(3, x.argsort(3)), X),
    "batched-frames": ("_softmax", lambda x: x.flatten(0, 1).softmax(1).unflatten(0, (-1, 2)), X),
    "inverse": ("linalg_inv", lambda x: torch.linalg.inv(square(x)), X),
    "pseudo-inverse": ("linalg_pinv", lambda x: torch.linalg.pinv(square(x)), X),
    "cholesky": ("linalg_cholesky", lambda x: torch.linalg.cholesky(square(x) @ square(x).mT), X),
    "lu": ("linalg_lu_factor", lambda x: torch.linalg.lu_factor(square(x))[0], X),
    "determinant": ("_linalg_det", lambda x: torch.linalg.det(square(x)), X),
    "logarithm-of-a-determinant": ("where", lambda x: torch.logdet(square(x)).nan_to_num(7), X),
    "solve": ("linalg_solve", lambda x: torch.linalg.solve(square(x), x[..., 5]), X),
    "matrix-power": ("linalg_inv", lambda x: torch.linalg.matrix_power(square(x), -2), X),
}


KEEPING = Converted(to_linear_network, {name: case for name, (_, *case) in KEPT.items()})


@pytest.mark.parametrize("name", KEPT)
def test_kept(name):
    model, net, number = KEEPING.of(name)
    assert f"kept: {KEPT[name][0]}" in kinds(net.plan.kept, number)
    for size in (2, 5):
        x = constant(size, *KEPT[name][2], seed=size)
        torch.testing.assert_close(net(x)[number], model.one(number, x), atol=1e-12, rtol=1e-14)
    none = net(x[:0])[number]
    assert none.shape == (0, *net(x)[number].shape[1:])
    assert none.dtype is net(x)[number].dtype


# What runs by torch.vmap for each sample is another operator than the model's, where no rule of `elementary` covers it.
UNDECIDED = {
    *("infinite-weight", "infinities-where-nothing-is-put", "multilabel-margin"),
    *("gather-of-a-constant", "pooling-with-indices", "scatter-product"),
}


@pytest.mark.parametrize(
    "name", long_but(("glu", "norm-2", "argmax", "inverse", "comparison", "sort-with-indices"), KEPT)
)
def test_a_result_is_known_to_equal_its_model(name):
    _, function, shape = KEPT[name]
    model, x = build(lambda: function if isinstance(function, nn.Module) else Function(function)), constant(2, *shape)
    assert check(model, to_linear_network(model, x), x).verdict == ("undecided" if name in UNDECIDED else "equal")
