"""What converting does to a model: nothing; and which models keep something between calls."""

import contextlib
import copy
import functools
import inspect
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import conv2affine
from conv2affine import onnx
from conv2affine.network.convert import plan_network
from conv2affine.network.torch.importing.importer import _Importer
from conv2affine.network.torch.models.program import export
from tests.network.models import Function

CONVERT = {
    "network": conv2affine.to_linear_network,
    "mlp": conv2affine.to_mlp,
    "linear": conv2affine.to_linear,
    "plan": plan_network,
}


class Attributes(nn.Module):
    """Changes, when it runs, whatever a module can hold."""

    def __init__(self, fails):
        super().__init__()
        self.fails = fails
        self.fc = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.last, self.items, self.table, self.calls = None, [torch.zeros(2)], {"a": torch.zeros(2)}, 0

    def forward(self, x):
        self.count = self.count + 1
        self.last = torch.ones(2)
        self.items[0] = torch.ones(2)
        self.table["b"] = torch.ones(2)
        self.calls = 1
        y = self.fc(x)
        return y * torch.rand(()) if self.fails else y


@pytest.mark.parametrize("convert", CONVERT.values(), ids=CONVERT)
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_as_before(convert, fails):
    model = Attributes(fails).eval()
    buffer, item, state = model.count, model.items[0], copy.deepcopy(model.state_dict())
    rng, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    if fails:
        with pytest.raises(ValueError, match="depend on chance"):
            convert(model, torch.ones(2, 4))
    else:
        convert(model, torch.ones(2, 4))
    assert model.count is buffer
    assert model.items[0] is item
    assert model.last is None
    assert list(model.table) == ["a"]
    assert (model.calls, model.training) == (0, False)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert python == random.getstate()
    assert (numpy == np.random.get_state()[1]).all()


@pytest.mark.parametrize("convert", [conv2affine.to_linear_network, plan_network])
def test_the_weight_of_an_embedding_with_a_norm_is_as_before(convert):
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3)).eval()
    weight = model[0].weight.detach().clone()
    convert(model, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert torch.equal(model[0].weight, weight)


class Leaky(nn.Module):
    def __init__(self, memory, is_buffer):
        super().__init__()
        if is_buffer:
            self.register_buffer("mem", memory)
        else:
            self.mem = memory

    def forward(self, x):
        spike = (self.mem > 20).to(x)
        self.mem = 0.9 * self.mem + torch.relu(x - 20).sum(0, keepdim=True)
        return x + spike


@pytest.mark.parametrize("is_buffer", [False, True])
@pytest.mark.parametrize("memory", [torch.zeros(1), torch.zeros(1, 4)], ids=["grows", "same"])
def test_a_state_without_effect_on_the_probes_is_refused(is_buffer, memory):
    model = nn.Sequential(nn.Linear(4, 4), Leaky(memory, is_buffer)).eval()
    with pytest.raises(ValueError, match=r"1\.mem is a (tensor|buffer) that it keeps from one run to the next"):
        conv2affine.to_linear_network(model, torch.rand(1, 4))
    assert model[1].mem is memory


class Cache(nn.Module):
    def __init__(self):
        super().__init__()
        self.ramp = None

    def forward(self, x):
        if self.ramp is None:
            self.ramp = torch.arange(x.shape[1]).to(x)
        return torch.relu(x + self.ramp)


def test_a_cache_that_is_filled_once_is_no_state():
    x, model = torch.rand(3, 4), Cache()
    torch.testing.assert_close(conv2affine.to_mlp(model, x)(x), model(x))


@functools.lru_cache
def ramp(n):
    return torch.arange(n).float() / n


class Cached(nn.Module):
    def forward(self, x):
        return torch.relu(x + ramp(x.shape[-1]))


@pytest.mark.parametrize("convert", [conv2affine.to_linear_network, conv2affine.to_mlp, plan_network])
def test_a_tensor_that_a_function_caches_stays_a_tensor(convert):
    ramp.cache_clear()
    x, model = torch.rand(2, 5), Cached()
    convert(model, x)
    torch.testing.assert_close(model(x), torch.relu(x + torch.arange(5) / 5))


def test_eight_threads_convert_at_once():
    def work(model):
        x = torch.rand(2, 1, 6, 6)
        return (conv2affine.to_mlp(model, x)(x) - model(x)).abs().max().item()

    # Made before: while one thread is in torch.export, torch.manual_seed raises a KeyError in others.
    models = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval() for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, models)) < 1e-5


@pytest.mark.parametrize("is_context", [False, True])
def test_another_default_device(is_context, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)).eval()
    x = torch.rand(2, 1, 8, 8)

    def run():
        onnx.export(model, x, tmp_path / "a.onnx")
        onnx.convert(tmp_path / "a.onnx", tmp_path / "b.onnx")
        onnx.plan(tmp_path / "a.onnx")
        plan_network(model, x)
        conv2affine.to_linear(nn.Sequential(model[0]), x)
        return [conv2affine.to_linear_network(model, x), conv2affine.to_mlp(model, x)]

    if is_context:
        with torch.device("meta"):
            results = run()
    else:
        torch.set_default_device("meta")
        try:
            results = run()
        finally:
            torch.set_default_device(None)
    for result in results:
        torch.testing.assert_close(result(x), model(x))


def test_a_model_without_tensors_is_where_its_inputs_are():
    """Another device than the CPU, "meta" in the place of one; with values it would be converted."""
    inputs = (torch.rand(1, 4, device="meta"),)
    assert _Importer(export(nn.ReLU(), inputs), inputs, frozenset(), ()).run().device.type == "meta"


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "no-grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_of_pytorch_change_nothing(mode, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)).eval()
    with mode():
        x = torch.rand(2, 1, 8, 8)
        results = [conv2affine.to_linear_network(model, x), conv2affine.to_mlp(model, x)]
        plan_network(model, x)
        conv2affine.to_linear(nn.Sequential(model[0]), x)
        onnx.export(model, x, tmp_path / "a.onnx")
        onnx.convert(tmp_path / "a.onnx", tmp_path / "b.onnx")
    for net in results:
        x = torch.rand(2, 1, 8, 8)
        torch.testing.assert_close(net(x), model(x))
        net(x).sum().backward()  # its parameters are as those of any layer
        assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("convert", CONVERT.values(), ids=CONVERT)
@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad])
def test_inside_a_transform_is_refused(transform, convert):
    model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"must not be called inside a transform of torch.func, .* convert outside"):
        transform(lambda x: convert(model, x[None]))(torch.rand(4, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")  # of PyTorch itself, in torch.func.jvp
def test_a_trace_that_fails_inside_a_transform_leaves_it():
    x = torch.linspace(-1, 1, 6).view(2, 3)

    def fails(x):
        return torch.func.jvp(lambda y: y * torch.full_like(y, 0.1) + y.relu(), (x,), (torch.ones_like(x),))[0]

    with pytest.raises(NotImplementedError, match="makes a constant tensor; make it outside of that function"):
        conv2affine.to_linear_network(Function(fails), x)
    torch.testing.assert_close(torch.func.jvp(torch.sin, (x,), (x,))[1], x * x.cos())
    torch.testing.assert_close(conv2affine.to_linear_network(nn.ReLU(), x)(x), x.relu())


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = nn.Linear(4, 2)
    x = torch.rand(3, 4)
    with pytest.raises(ValueError, match=r"its weight was made inside; take copy.deepcopy\(model\)"):
        conv2affine.to_linear_network(model, x)
    model = copy.deepcopy(model)
    torch.testing.assert_close(conv2affine.to_linear_network(model, x)(x), model(x))


def test_no_warning_in_a_new_process():
    code = """
import torch, conv2affine
from torch import nn
model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), torch.rand(2, 1, 6, 6)
for convert in (conv2affine.to_linear_network, conv2affine.to_mlp):
    convert(model, x, layout="sparse")(x)
conv2affine.to_matrix(model[0], 6, layout=torch.sparse_csc)
"""
    # PyTorch of itself, while it is imported
    command = [sys.executable, "-c", "import warnings, torch; warnings.simplefilter('error')" + code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["graph", "code", "constant_0"])
@pytest.mark.parametrize(
    "made", [nn.Parameter, nn.Module.register_buffer, nn.Linear], ids=["parameter", "buffer", "layer"]
)
def test_names_that_graph_modules_use(name, made):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            if made is nn.Linear:
                self.add_module(name, made(4, 4))
            elif made is nn.Parameter:
                self.register_parameter(name, made(torch.rand(4) + 1))
            else:
                self.register_buffer(name, torch.rand(4) + 1)

        def forward(self, x):
            own = getattr(self, name)
            return torch.fmod(own(x) if made is nn.Linear else x, torch.arange(1.0, 5) if made is nn.Linear else own)

    model, x = Model().eval(), torch.randn(2, 4)
    net = conv2affine.to_linear_network(model, x)
    torch.testing.assert_close(net(x), model(x))
    assert [*inspect.signature(net.forward).parameters] == ["x"]
