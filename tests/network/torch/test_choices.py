"""Models whose forward takes Python numbers from what they hold, switches gradients, or calls torch.vmap."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import to_linear_network, to_mlp
from tests.conftest import long_but


class Model(nn.Module):
    """A layer with numbers beside it, and a function of both and of the input."""

    def __init__(self, function):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer, self.scale = nn.Linear(6, 6), nn.Parameter(torch.tensor(0.7))
            self.weights = nn.Parameter(torch.randn(3, 4, 6))
        self.register_buffer("count", torch.tensor(2))
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, True]))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def loop(m, x):
    for _ in range(int(m.count)):
        x = F.relu(m.layer(x))
    return x


def checked(m, x):
    y = m.layer(x)
    assert not torch.isnan(y).any()
    if not y.isfinite().all() or torch.isinf(y).sum() > 0:
        raise ValueError
    return F.relu(y)


def logged(m, x):
    """What is taken of the input is not used."""
    y = F.relu(m.layer(x)) if m.scale > 0 else x
    m.last = y.mean().item()
    return y


@torch.enable_grad()
def with_gradients(m, x):
    with torch.no_grad():
        w = F.normalize(m.layer.weight, dim=1)
        y = F.linear(x, w)
    return F.relu(y) + m.layer(y), y


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
MODELS = {
    "branch-by-a-parameter": lambda m, x: F.relu(m.layer(x)) if m.scale > 0 else x,
    "loop-by-a-buffer": loop,
    "item": lambda m, x: F.relu(m.layer(x)[:, : m.count.item()]).sum(1, keepdim=True) * m.count.item(),
    "float": lambda m, x: F.leaky_relu(m.layer(x), float(m.scale.detach())) if bool(m.mask.any()) else x,
    "list": lambda m, x: F.relu(m.layer(x))[:, [n for n, is_on in enumerate(m.mask.tolist()) if is_on]],
    "nested-list": lambda m, x: (
        F.relu(m.layer(x)) * m.weights[0, :1].repeat(1, 1).tolist()[0][3] * m.scale.detach().item()
    ),
    "equal": lambda m, x: F.relu(m.layer(x)) if torch.equal(m.mask, m.mask.clone()) else x,
    "checks-of-finite-numbers": checked,
    "logged": logged,
    "gradients": with_gradients,
    "vmap-of-samples": lambda m, x: torch.vmap(lambda row: torch.relu(m.layer.weight @ row + m.layer.bias))(x),
    "vmap-of-weights": lambda m, x: torch.vmap(lambda w: F.relu(x @ w.T))(m.weights).sum(0),
}
SHORT = ("branch-by-a-parameter", "checks-of-finite-numbers", "gradients", "vmap-of-weights")


@pytest.mark.parametrize("name", long_but(SHORT, MODELS))
def test_equals_the_model(name):
    model = Model(MODELS[name]).eval()
    expected = model(X)
    joined = torch.cat([part.flatten(1) for part in expected], 1) if isinstance(expected, tuple) else expected
    net = to_linear_network(model, X)
    assert not net.plan.kept
    torch.testing.assert_close(net(X), expected)
    torch.testing.assert_close(to_mlp(model, X)(X), joined)


REFUSED = {
    "branch": lambda m, x: x if m.layer(x).abs().max() > 100 else F.relu(m.layer(x)),
    "branch-after-a-copy": lambda m, x: (
        x if torch.zeros(3, 6).index_copy_(0, torch.tensor([0]), x[:1]).sum() > 0 else -x
    ),
    "finite-logarithms": lambda m, x: x if (x.sum(1) + 3).log().isfinite().all() else -x,
    "finite-quotients": lambda m, x: -x if torch.isinf(1 / F.relu(x)).any() else x,
    "branch-by-a-number": lambda m, x: x if torch.tensor(x[0, 0].item()) > 0 else F.relu(m.layer(x)),
    "after-a-number": lambda m, x: (x[0, 0].item(), x if m.scale > 0 else -x)[1],
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_choices_by_inputs_are_refused(function):
    with pytest.raises(NotImplementedError, match="compute with tensors alone, without branches"):
        to_linear_network(Model(function).eval(), X)
