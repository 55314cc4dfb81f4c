"""Random small networks, 1-D to 3-D: every conversion equals the network."""

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conv2affine import to_linear_network, to_mlp
from tests.network.random_networks import KEPT, PIECEWISE, Network, example_input, networks


def check(convert, axes, steps):
    x, model = example_input(axes), Network(axes, steps)
    with torch.no_grad():
        expected = model(x)
        result = convert(model, x[:1])(x).reshape(expected.shape)
    torch.testing.assert_close(result, expected, atol=1e-12 * float(expected.abs().max().clamp(min=1)), rtol=0)


BOUNDED = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@BOUNDED
@given(
    networks([*PIECEWISE, *KEPT]),
    st.sampled_from(["auto", "always", "never"]),
    st.sampled_from(["max", "relu"]),
)
@example((1, [("avg_pool", 0, 0), ("avg_pool", 0, 0)]), "auto", "max")
@example((2, [("strided", 0, 0), ("strided", 1, 0), ("add", 1, 2), ("max_pool", 3, 0)]), "auto", "relu")
def test_network(network, merge, max_pool):
    check(lambda model, x: to_linear_network(model, x, merge=merge, max_pool=max_pool), *network)


@BOUNDED
@given(networks(PIECEWISE))
@example((1, [("relu", 0, 0), ("conv", 1, 0), ("relu", 2, 0), ("add", 0, 3), ("abs", 4, 0), ("maximum", 5, 0)]))
def test_chain(network):
    check(to_mlp, *network)
