"""Networks that cast what they compute, and that depend on how tensors lie in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import conv2affine
from conv2affine import to_linear_network
from tests.network.models import (
    Function,
    samples,
)

LINEAR = nn.Linear(6, 6)
CASTS = {
    "inside": lambda x: LINEAR(LINEAR(x).half().sigmoid().float()),
    "inside-layer": lambda x: LINEAR(F.linear(LINEAR(x).relu().double(), LINEAR.weight.double()).float()),
    "at-the-end": lambda x: LINEAR(LINEAR(x).relu()).double(),
    "at-the-start": lambda x: LINEAR(x.double().sigmoid().float()),
    "half-on-both-sides": lambda x: LINEAR(x.half().float()).half(),
    "some-outputs": lambda x: (LINEAR(x).half(), LINEAR(x), x.argmax(1)),
    "constants": lambda x: (2 * x, *(torch.ones(1, 2, dtype=d).expand(len(x), -1) for d in (torch.half, torch.int64))),
}


@pytest.mark.parametrize("function", CASTS.values(), ids=CASTS)
def test_casts_are_kept(function):
    model, x = Function(function), samples(3, 6, dtype=torch.float32)
    net = to_linear_network(model, x)
    torch.testing.assert_close(net(x), model(x))
    assert all("linear" not in row.kind for row in net.plan.kept) or function is CASTS["inside-layer"]
    result = to_linear_network(model, x, dtype=torch.float64)(x.double())
    for a, b in zip(pytree.tree_leaves(result), pytree.tree_leaves(model(x)), strict=True):
        assert a.dtype is (torch.float64 if b.dtype is torch.float32 else b.dtype)


LAYER = nn.Linear(24, 24)


def eighths(x):
    """Numbers whose products and sums have no roundings, so that their bits are the same in any order."""
    return (8 * x).round() / 8


with torch.no_grad():
    for parameter in LAYER.parameters():
        parameter.copy_(eighths(parameter))


def layered(x):
    return LAYER(x.flatten(1)).unflatten(1, (2, 3, 4))


MEMORY = {
    "as-strided": lambda x: layered(x).as_strided((len(x), 4), (24, 6)),
    "as-strided-input": lambda x: x.flatten(1).as_strided((len(x), 4), (24, 6)),
    "as-strided-after-a-step": lambda x: layered(x).sigmoid().as_strided((len(x), 4), (24, 6), 1),
    "as-strided-copy": lambda x: (
        layered(x).mT.clone(memory_format=torch.contiguous_format).as_strided((len(x), 4), (24, 6))
    ),
    "shorter-dtype": lambda x: layered(x).view(torch.int16),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(layered(x).view(len(x), 12, 2))),
    "channels-last": lambda x: layered(x).to(memory_format=torch.channels_last).sigmoid(),
    "no-elements": lambda x: layered(x)[:, :, :0].reshape(2 * len(x), 0),
    "no-elements-in-a-vector": lambda x: layered(x)[:, 0, 0, :0].sigmoid().flatten(),
}


@pytest.mark.parametrize("layout", ["dense", "sparse"])
@pytest.mark.parametrize("function", MEMORY.values(), ids=MEMORY)
def test_what_depends_on_memory_is_as_in_the_model(function, layout):
    model, x = Function(function), eighths(samples(3, 2, 3, 4, dtype=torch.float32))
    net = to_linear_network(model, x, layout=layout)
    for batch in (x, eighths(samples(5, 2, 3, 4, dtype=torch.float32))):
        torch.testing.assert_close(net(batch), model(batch), equal_nan=True)


OTHERS_MEMORY = {
    "transposed": lambda x: layered(x).mT.as_strided((len(x), 4), (24, 6)),
    "part": lambda x: layered(x)[:, :1].as_strided((len(x), 24), (24, 1)),
    "end": lambda x: x[:, 1:].as_strided((len(x), 12), (24, 1)),
}


@pytest.mark.parametrize("function", OTHERS_MEMORY.values(), ids=OTHERS_MEMORY)
def test_views_of_another_tensors_memory_are_refused(function):
    with pytest.raises(
        NotImplementedError, match=r"\(as_strided\) must take a tensor that is contiguous and fills its"
    ):
        to_linear_network(Function(function), samples(3, 2, 3, 4, dtype=torch.float32))


def test_dtype_is_that_of_the_inputs_where_no_output_has_one():
    conv = nn.Conv1d(1, 3, 2, dtype=torch.float64)
    model = nn.Sequential(conv, Function(lambda x: x.flatten(1).argmax(1)))
    x = samples(4, 1, 5)
    net = conv2affine.to_linear_network(model, x)
    assert net(x).equal(model(x))
    assert {p.dtype for p in net.parameters()} == {torch.float64}
