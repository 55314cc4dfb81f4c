"""PyTorch's own tests of its convolution modules: each layer and input that they use."""

import pytest
import torch
from torch.testing._internal.common_modules import module_db

from conv2affine import to_linear
from conv2affine.convolution.arguments import LAYERS


def module_tests():
    for info in module_db:
        if info.module_cls in LAYERS:
            inputs = info.module_inputs_func(
                info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
            )
            for number, module_input in enumerate(inputs):
                name = f"{info.module_cls.__name__}-{number}-{module_input.desc}"
                yield pytest.param(info.module_cls, module_input, id=name)


@pytest.mark.parametrize(("layer", "module_input"), list(module_tests()))
def test_agrees(layer, module_input):
    made, called = module_input.constructor_input, module_input.forward_input
    conv = layer(*made.args, **{**made.kwargs, "dtype": torch.float64})
    (x,) = called.args
    dims = len(conv.kernel_size)
    fc = to_linear(conv, x.shape[-dims:])
    flat = x.flatten(-dims - 1)
    torch.testing.assert_close(fc(flat), conv(x).flatten(-dims - 1), rtol=1e-12, atol=1e-12)
