"""Modules that are affine as a whole, as one linear layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from conv2affine import SparseLinear, to_linear
from tests.network.models import (
    Function,
    samples,
)


class Same(nn.Conv2d):
    """TensorFlow's "same" padding, with a stride."""

    def forward(self, x):
        pads = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(x.shape[:1:-1], self.stride[::-1], self.kernel_size[::-1], strict=True)
        ]
        sides = [side for pad in pads for side in (pad // 2, pad - pad // 2)]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (variance + 1e-5).sqrt(), self.bias)


class LowRank(nn.Module):
    """A convolution and a product of two small ones, as adapters add them."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Conv2d(3, 4, 3)
        self.down, self.up = nn.Conv2d(3, 2, 3, bias=False), nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x):
        return self.base_layer(x) + 0.5 * self.up(self.down(x))


class OutputSize(nn.ConvTranspose2d):
    """A transposed convolution that is asked for a size."""

    def forward(self, x):
        return super().forward(x, output_size=(18, 17))


WHOLE = {
    "padding-and-convolution": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(3, 4, 3)),
    "reflection-and-convolution": lambda: nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(3, 4, 3, 2)),
    "convolution-and-norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    "same": lambda: Same(3, 4, 3, 2),
    "standardised": lambda: Standardised(3, 4, 3),
    "low-rank": LowRank,
    "channels-last": lambda: Function(
        lambda x: F.conv2d(x.permute(0, 2, 1, 3), torch.ones(2, 8, 3, 3, dtype=x.dtype)).permute(0, 2, 3, 1)
    ),
    "output-size": lambda: OutputSize(3, 4, 3, 2),
    "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "pruned": lambda: prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5),
    "convolution-and-linear": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), backend="eager"),
    "nothing": nn.Identity,
    "constant": lambda: Function(lambda x: 0 * x + 1),
}


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_csr])
def test_affine_as_a_whole(make, layout):
    module, x = nn.Sequential(make()).double().eval(), samples(3, 3, 8, 8)
    fc = to_linear(module, x, layout=layout)
    assert type(fc) is (nn.Linear if layout is torch.strided else SparseLinear)
    torch.testing.assert_close(fc(x.flatten(1)), module(x).flatten(1))


@pytest.mark.parametrize(
    "make", [lambda: Same(3, 4, 3, 2), lambda: Standardised(3, 4, 3)], ids=["same", "standardised"]
)
def test_layers_that_compute_otherwise_are_networks(make):
    module, x = make().double(), samples(3, 3, 8, 8)
    torch.testing.assert_close(to_linear(module, x)(x.flatten(1)), module(x).flatten(1))
    with pytest.raises(TypeError, match="overrides forward"):
        to_linear(module, 8)
