"""Random small networks, converted, pickled and back, against the model in float64."""

import pickle
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from conv2affine import to_linear_network, to_mlp
from tests.network.random_networks import KEPT, PIECEWISE, Network, Step, example_input, networks

# Of the largest output; what is rounded may be larger, and cancel.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
LAYOUT = {"layout": st.sampled_from(["auto", "dense", "sparse"])}
MERGE = {"merge": st.sampled_from(["auto", "always", "never"]), "max_pool": st.sampled_from(["max", "relu"])}


def fuzz(seed: int, size: int) -> str:
    """Convert `size` networks. Hypothesis draws them, and makes the one that fails small."""

    @hypothesis_seed(seed)
    @settings(max_examples=size, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from([torch.float32, torch.float64]),
        st.one_of(
            st.tuples(st.just(to_mlp), networks(PIECEWISE), st.fixed_dictionaries(LAYOUT)),
            st.tuples(
                st.just(to_linear_network), networks([*PIECEWISE, *KEPT]), st.fixed_dictionaries({**LAYOUT, **MERGE})
            ),
        ),
    )
    def convert_all(
        dtype: torch.dtype, case: tuple[Callable[..., Any], tuple[int, list[Step]], dict[str, Any]]
    ) -> None:
        check(dtype, *case)

    convert_all()
    return "all equal"


@torch.no_grad()
def check(
    dtype: torch.dtype, convert: Callable[..., Any], network: tuple[int, list[Step]], options: dict[str, Any]
) -> None:
    """One network, converted in this dtype."""
    axes, steps = network
    x, model = example_input(axes), Network(axes, steps)
    expected = model(x)
    x = x.to(dtype)
    result = pickle.loads(pickle.dumps(convert(model.to(dtype), x[:1], **options)))(x)
    assert result.dtype == dtype
    atol = TOLERANCE[dtype] * float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(result.double().reshape(expected.shape), expected, atol=atol, rtol=0)
