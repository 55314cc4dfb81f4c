"""Networks in files: equal to those in memory, read by blocks, and models like any other."""

import copy
import io
import os
import pickle
import subprocess
import sys

import anndata
import h5py
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from conv2affine import SparseLinear, linear_region, to_linear_network
from conv2affine.convolution import blocks
from conv2affine.files import open_network, save_network
from conv2affine.interop.files import mapped
from conv2affine.network.kinds import FORMS, KINDS
from conv2affine.network.matrices import rows as matrix_rows
from conv2affine.network.torch import layers
from tests.network.models import PIECEWISE, Function, build, samples


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.h5"


def assert_same_networks(actual, expected):
    """Bit by bit."""
    states = actual.state_dict(), expected.state_dict()
    names = [name for name in states[1] if not name.startswith("constant")]
    assert {name for name in states[0] if not name.startswith("constant")} == {*names}
    for name in names:
        assert states[0][name].dtype is states[1][name].dtype
        assert torch.equal(states[0][name], states[1][name])
    assert str(actual.plan) == str(expected.plan)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, layout) for name in ("vgg-bn", "unet") for layout in ("auto", "sparse", "dense")),
        *(pytest.param(name, "sparse", marks=pytest.mark.long) for name in PIECEWISE if name not in ("vgg-bn", "unet")),
    ],
)
def test_file_is_the_network(name, layout, path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 100)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(matrix_rows, "BLOCK_ENTRIES", 500)
    monkeypatch.setattr(mapped, "BLOCK_ENTRIES", 500)
    make, shape = PIECEWISE[name]
    model, x = build(make), samples(2, *shape)
    save_network(path, model, x, layout=layout)
    net, expected = open_network(path), to_linear_network(model, x, layout=layout)
    assert_same_networks(net, expected)
    assert not net.training
    x = samples(3, *shape)
    assert_close(net(x), expected(x), rtol=1e-13, atol=1e-13)
    assert os.listdir(path.parent) == [path.name]


def clips(x):
    y = F.leaky_relu(x, 0.2) + F.prelu(x, torch.linspace(-1, 1, 3, dtype=x.dtype))
    return torch.clamp(y, torch.full((3, 1, 1), -0.5, dtype=x.dtype), torch.full((3, 1, 1), 0.7, dtype=x.dtype))


STEPS = {
    "slopes and clips": clips,
    "hardtanh": lambda x: F.hardtanh(x) + F.relu6(x),
    "abs": lambda x: x.abs() * 2,
    "maximum": lambda x: torch.maximum(x.flip(1), x) - torch.minimum(x.flip(2), 2 * x),
    "max pooling": lambda x: F.max_pool2d(x, 3, 2, 1) - F.max_pool2d(-x, 3, 2, 1),
    "reductions": lambda x: x.amax((2, 3)) + x.amin((2, 3)),
    "a step and a bias": lambda x: F.relu(x) + 1,
    "a constant": lambda x: (x, torch.ones(len(x), 2, dtype=x.dtype)),
    "nested outputs": lambda x: {"a": x.relu(), "b": (2 * x, [x.flatten(1)])},
    "the input itself": lambda x: (x, x.relu(), x),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_and_outputs(name, path):
    model, x = Function(STEPS[name]), samples(4, 3, 5, 5)
    save_network(path, model, x)
    assert_close(open_network(path)(x), model(x), rtol=1e-13, atol=1e-13)


def test_max_pooling_as_layers(path):
    model, x = Function(STEPS["max pooling"]), samples(4, 3, 5, 5)
    save_network(path, model, x, max_pool="relu")
    assert {row.kind for row in open_network(path).plan.rows} <= {"relu", "copied", "computed"}
    assert_close(open_network(path)(x), model(x), rtol=1e-13, atol=1e-13)


def test_several_inputs_by_name(path):
    class Model(nn.Module):
        def forward(self, image, mask):
            return (image * 2).relu() + mask.flip(1)

    inputs = {"image": samples(3, 4), "mask": samples(3, 4)}
    save_network(path, Model(), inputs)
    assert_close(open_network(path)(**inputs), Model()(**inputs))


def test_float32(path):
    make, shape = PIECEWISE["resnet"]
    model, x = build(make), samples(2, *shape)
    save_network(path, model, x, dtype=torch.float32)
    net = open_network(path)
    assert net(x.float()).dtype is torch.float32
    assert_same_networks(net, to_linear_network(model, x, dtype=torch.float32))


@pytest.mark.parametrize("layout", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cast", ["model", "layers"])
def test_two_bytes(cast, dtype, layout, path, monkeypatch):
    """The file has the bits of the layers in memory; NumPy has no bfloat16."""
    monkeypatch.setattr(mapped, "BLOCK_ENTRIES", 500)
    resize = nn.Upsample(scale_factor=2, mode="nearest")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), resize, nn.ReLU6(), nn.Flatten(), nn.Linear(144, 5))
    x, options = samples(3, 3, 5, 5, dtype=torch.float32).to(dtype), {"layout": layout, "merge": "never"}
    if cast == "layers":
        options["dtype"] = dtype
    model = model.to(dtype if cast == "model" else torch.float32)
    example = x.to(next(model.parameters()).dtype)
    save_network(path, model, example, **options)
    net, expected = open_network(path), to_linear_network(model, example, **options)
    assert next(net.parameters()).dtype is dtype
    assert_same_networks(net, expected)
    assert torch.equal(net(x), expected(x))


def sparse_network(path):
    """A network whose layers are large enough to be sparse."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).double()
    x = samples(2, 3, 12, 12)
    save_network(path, model, x, layout="sparse")
    return model, x, open_network(path)


def test_a_run_reads_each_layer_once_by_blocks(path, monkeypatch):
    monkeypatch.setattr(mapped, "BLOCK_ENTRIES", 1000)
    _, x, net = sparse_network(path)
    read, product = [], mapped.matmul

    def counted(starts, columns, values, x):
        read.append(len(values))
        return product(starts, columns, values, x)

    monkeypatch.setattr(mapped, "matmul", counted)
    net(x[:1])
    assert max(read) < 1500
    assert sum(read) == net.plan.nnz


def test_gradients_and_training(path):
    model, x, net = sparse_network(path)
    before = path.read_bytes()
    x.requires_grad_()
    assert_close(*(torch.autograd.grad(each(x).square().sum(), x) for each in (net, model)))
    layer = next(child for child in net.children() if isinstance(child, SparseLinear))
    layer.requires_grad_()
    net(x).square().sum().backward()
    expected = to_linear_network(model, x.detach(), layout="sparse").requires_grad_()
    expected(x).square().sum().backward()
    assert_close(layer.values.grad, next(expected.children()).values.grad)
    with torch.no_grad():
        layer.values.add_(1)
    assert path.read_bytes() == before
    assert not torch.equal(open_network(path)(x), net(x))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": lambda net: (torch.save(net, f := io.BytesIO()), f.seek(0), torch.load(f, weights_only=False))[-1],
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_in_memory(name, path):
    model, x, net = sparse_network(path)
    copied = COPIES[name](net)
    path.write_bytes(bytes(path.stat().st_size))  # which mapped layers see
    assert not torch.equal(net(x), model(x))
    assert_close(copied(x), model(x))
    assert str(copied.plan) == str(net.plan)


def test_state_dicts_are_those_of_networks_in_memory(path):
    model, x, net = sparse_network(path)
    memory = to_linear_network(model, x, layout="sparse")
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
    memory.load_state_dict(net.state_dict())
    assert_close(memory(x), model(x))


def test_export_needs_a_run_before(path):
    model, x, net = sparse_network(path)
    with pytest.raises(ValueError, match=r"must have run once before torch\.export; a run checks its columns"):
        torch.export.export(net, (x,))
    net(x)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    assert_close(program.module()(x[:1]), model(x[:1]))


def test_networks_in_files_are_models(path, tmp_path):
    """Max pooling, of windows with a border, too."""
    model, x = build(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU())), samples(1, 3, 9, 9)
    save_network(path, model, x, layout="sparse")
    net = open_network(path)
    net(x)
    save_network(tmp_path / "again.h5", net, x)
    assert_close(open_network(tmp_path / "again.h5")(x), model(x))
    assert_close(linear_region(net, x).weight, linear_region(model, x).weight)


def test_meta_tensors_have_shapes(path):
    _, x, net = sparse_network(path)
    assert net.to("meta")(x.to("meta")).shape == (2, 3, 12, 12)
    with torch.device("meta"):
        assert_close(open_network(path)(x), open_network(path)(x))


def test_layers_are_matrices_that_anndata_reads(path):
    _, _, net = sparse_network(path)
    with h5py.File(path) as file:
        for group in file["layers"].values():
            layer = net.get_submodule(f"_{group.attrs['name']}")
            assert (anndata.io.read_elem(group).toarray() == layer.weight.to_dense().numpy()).all()


# Large files


@pytest.mark.serial
def test_memory(path):
    """A network of 81 MB, whose largest layer has 73 MB, takes less than 25 MB of memory, its check included."""
    code = f"""
import os, threading, torch
from torch import nn
from conv2affine.files import save_network
def memory():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
                      nn.MaxPool2d(4), nn.Conv2d(32, 8, 3)).eval()
save_network({str(path)!r}, model, torch.rand(1, 3, 16, 16), layout="sparse")
os.remove({str(path)!r})
before = peak = memory()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, memory())
thread = threading.Thread(target=watch)
thread.start()
save_network({str(path)!r}, model, torch.rand(1, 3, 32, 32), layout="sparse")
done.set()
print(peak - before)
"""
    assert int(subprocess.check_output([sys.executable, "-c", code])) < 25e6
    assert path.stat().st_size > 80e6


def test_every_kind_of_step_has_a_form():
    assert FORMS.keys() == KINDS.keys()
