"""Networks whose large layers are shared by two and three ranks, against the network of one process."""

import copy
import os
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing import assert_close
from torch.testing._internal.distributed.fake_pg import FakeStore

from conv2affine import SparseLinear, to_linear_network
from conv2affine.convolution import guard
from conv2affine.interop.dtensor import local_rows
from conv2affine.interop.sharded import SHARDED, GatheredSparseLinear
from conv2affine.network import convert
from conv2affine.network.torch import layers, ranks
from conv2affine.network.torch.noise import Noise
from conv2affine.network.torch.ranks import together
from conv2affine.network.torch.verifying import verify
from tests.network.models import PIECEWISE, Function, build, samples

NAMES = ("resnet", "densenet", "unet", "mobilenet")  # sums, concatenations, interpolation, clips


def network(name, **options):
    make, shape = PIECEWISE[name]
    model, x = build(make), samples(3, *shape)
    return model, x, to_linear_network(model, x, **options)


def shared(net):
    return {name: module for name, module in net.named_children() if isinstance(module, GatheredSparseLinear)}


# One process


@pytest.fixture
def fake_mesh():
    """Two ranks, as the first of them has them; they cannot communicate."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "together", lambda mesh: nullcontext(lambda *items: None))
        yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_a_rank_that_fails_in_a_run_starts_no_collective(fake_mesh, monkeypatch):
    """The other rank waits in one of a layer, and two that differ end a process."""
    sent = []

    def gather(found, own, group):
        sent.append(own["digest"])
        found[:] = [own] * len(found)

    monkeypatch.setattr(dist, "all_gather_object", gather)
    expected = r"rank 0 cannot run the network, in which other ranks may wait for it .*: RuntimeError: mat1 and mat2"
    with pytest.raises(RuntimeError, match=expected), together(fake_mesh):
        ranks.InStep(torch.nn.Linear(2, 2), fake_mesh)(torch.ones(1, 3))
    assert sent == [ranks.RUN]


def test_plan_counts_the_part_of_a_rank(fake_mesh, monkeypatch):
    monkeypatch.setattr(layers, "SHARED_BYTES", 20_000)
    monkeypatch.setattr(convert, "verify", lambda *arguments: None)  # it would communicate
    _, _, net = network("resnet", device_mesh=fake_mesh)
    large = [row for row in net.plan.layers if row.layout == "sharded"]
    assert len(large) == len(shared(net)) > 2
    for row in large:
        assert row.ranks == 2
        assert dict(row.bytes)["sharded"] == -(-dict(row.bytes)["sparse"] // 2)
        assert dict(row.bytes)["sparse"] > 20_000 or dict(row.bytes)["dense"] > 20_000
    assert net.plan.bytes == sum(dict(row.bytes)[row.layout] for row in net.plan.layers)
    # On the way to float32, a rank has its part of the largest layer in float64.
    _, _, whole = network("resnet")
    assert net.plan.peak_bytes - net.plan.bytes == (whole.plan.peak_bytes - whole.plan.bytes) // 2
    assert "sharded" in str(net.plan)


def test_nothing_is_sent_while_layers_are_built(fake_mesh, monkeypatch):
    monkeypatch.setattr(layers, "SHARED_BYTES", 20_000)
    monkeypatch.setattr(convert, "verify", lambda *arguments: None)
    mode, export = CommDebugMode(), convert.export_torch

    def counted(*arguments):
        with mode:  # not around torch.export, which it disturbs
            return export(*arguments)

    monkeypatch.setattr(convert, "export_torch", counted)
    _, _, net = network("unet", device_mesh=fake_mesh)
    assert shared(net)
    assert mode.get_total_counts() == 0


def test_what_one_process_refuses_two_build(fake_mesh, monkeypatch):
    monkeypatch.setattr(layers, "SHARED_BYTES", 20_000)
    monkeypatch.setattr(convert, "verify", lambda *arguments: None)
    _, _, net = network("resnet", device_mesh=fake_mesh)
    needed = net.plan.peak_bytes
    monkeypatch.setattr(guard, "memory_left", lambda: needed)
    with pytest.raises(MemoryError, match="the layers need"):
        network("resnet")
    network("resnet", device_mesh=fake_mesh)


def test_numbers_that_overflow_in_the_dtype_are_refused(fake_mesh, monkeypatch):
    monkeypatch.setattr(layers, "SHARED_BYTES", 0)
    monkeypatch.setattr(convert, "verify", lambda *arguments: None)
    model = Function(lambda x: torch.relu(-7e4 * x.abs() + 0.5))
    with pytest.raises(ValueError, match=r"^mul: weight of its layer must be finite in torch.float16, and some"):
        to_linear_network(model, torch.rand(1, 3), dtype=torch.float16, device_mesh=fake_mesh)


def test_meshes_are_refused(fake_mesh):
    with pytest.raises(TypeError, match="device_mesh must be a torch"):
        network("resnet", device_mesh=2)
    with pytest.raises(ValueError, match="device_mesh must have one dimension"):
        network("resnet", device_mesh=init_device_mesh("cpu", (1, 2)))
    with pytest.raises(ValueError, match="must have this rank"):
        network("resnet", device_mesh=DeviceMesh("cpu", [1]))


# Several processes


def entries(layer, mesh):
    """Those of a layer that are in the rows of this rank."""
    rows = local_rows(layer.out_features, mesh, SHARDED)
    return slice(*layer.crow_indices[[rows.start, rows.stop]].tolist())


def check_weights(mesh, folder):
    """Bit by bit those of one process, whatever the layer is made of."""
    for name in NAMES:
        _, _, whole = network(name, layout="sparse")
        _, _, net = network(name, layout="sparse", device_mesh=mesh)
        assert shared(net)
        for child, module in net.named_children():
            expected = getattr(whole, child)
            assert isinstance(expected, SparseLinear)
            if child in shared(net):
                [module] = module.children()
                rows, own = local_rows(expected.out_features, mesh, SHARDED), entries(expected, mesh)
                assert torch.equal(module.values, expected.values[own])
                assert torch.equal(module.col_indices, expected.col_indices[own])
                if module.bias is not None:
                    assert torch.equal(module.bias, expected.bias[rows.start : rows.stop])
            else:
                assert torch.equal(module.weight.to_dense(), expected.weight.to_dense())


def check_outputs_and_gradients(mesh, folder):
    for name in NAMES:
        model, x, net = network(name, device_mesh=mesh)
        with CommDebugMode() as mode:
            net(x)
        assert mode.get_total_counts() == len(shared(net)) > 0  # one all-gather each
        y = net(x.requires_grad_())
        assert type(y) is torch.Tensor
        expected = model(x)
        assert_close(y, expected, rtol=1e-11, atol=1e-11)
        # One backward pass on all ranks: the whole gradient of the input, and that of the rank's own entries.
        _, _, whole = network(name, layout="sparse")
        pairs = [(getattr(whole, child), *module.children()) for child, module in shared(net).items()]
        gradient, *own = torch.autograd.grad(y.square().sum(), [x, *(local.values for _, local in pairs)])
        wanted, *every = torch.autograd.grad(whole(x).square().sum(), [x, *(layer.values for layer, _ in pairs)])
        assert_close(gradient, wanted, rtol=1e-10, atol=1e-11)
        for (layer, _), actual, expected in zip(pairs, own, every, strict=True):
            assert_close(actual, expected[entries(layer, mesh)], rtol=1e-10, atol=1e-11)


def check_noise(mesh, folder):
    """What the check multiplies by noise is not yet there when a collective returns."""
    local = samples(2, 3) + mesh.get_rank()
    with Noise(1e-3):
        gathered = DTensor.from_local(local, mesh, SHARDED).full_tensor()
    assert torch.equal(gathered, torch.cat([samples(2, 3) + rank for rank in range(mesh.size())]))


def check_checkpoints(mesh, folder):
    model, x, net = network("vgg-bn", device_mesh=mesh)
    dcp.save(net.state_dict(), checkpoint_id=f"{folder}/checkpoint")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    other = to_linear_network(model, x, device_mesh=mesh)
    assert not torch.equal(other(x), net(x))
    state = other.state_dict()
    dcp.load(state, checkpoint_id=f"{folder}/checkpoint")
    other.load_state_dict(state)
    assert torch.equal(other(x), net(x))
    assert [name for name in state if "rows_" in name]


def check_wrong_layers_are_found_on_all_ranks(mesh, folder):
    """The check compares what the ranks compute together."""
    own, wrong = ranks.finite_layer, float(mesh.get_rank() == 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "finite_layer", lambda name, matrix, bias, *rest: own(name, matrix, bias + wrong, *rest))
        with pytest.raises(RuntimeError, match="does not equal the model"):
            network("vgg-bn", device_mesh=mesh)


def check_what_fails_on_one_rank_fails_on_all(mesh, folder):
    is_other = mesh.get_rank() != 1
    with pytest.MonkeyPatch.context() as patch:
        if not is_other:
            patch.setattr(guard, "memory_left", lambda: 1000)
        error, message = (
            (RuntimeError, "as rank 1 of device_mesh cannot: MemoryError: ") if is_other else (MemoryError, "")
        )
        with pytest.raises(error, match=f"{message}the layers need"):
            network("vgg-bn", device_mesh=mesh)
    model, x, net = network("vgg-bn", device_mesh=mesh)  # and goes on
    assert_close(net(x), model(x))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).mul_(2)
    for others in ((changed, x, "auto"), (model, x + 1, "auto"), (model, x, "never")):
        given, example, merge = (model, x, "auto") if is_other else others
        with pytest.raises(ValueError, match=r"options must be the same on all ranks, and rank \d has others"):
            to_linear_network(given, example, merge=merge, device_mesh=mesh)


def check_what_fails_in_the_check_of_one_rank_fails_on_all(mesh, folder):
    """Before the network runs there, and after; no rank waits."""
    is_other = mesh.get_rank() != 1
    for name in ("run", "exact_outputs"):

        def fails(*args):
            raise MemoryError("none left")

        with pytest.MonkeyPatch.context() as patch:
            if not is_other:
                patch.setattr(verify, name, fails)
            with pytest.raises((RuntimeError, ValueError, MemoryError), match="none left") as caught:
                network("vgg-bn", device_mesh=mesh)
            assert not is_other or "no rank converts the model, as rank 1 of device_mesh cannot" in str(caught.value)
    model, x, net = network("vgg-bn", device_mesh=mesh)  # and goes on
    assert_close(net(x), model(x))


def check_ranks_whose_roundings_decide_are_told(mesh, folder):
    """One asks for the run of the network that measures its own scale, and another does not."""
    with pytest.MonkeyPatch.context() as patch:
        if mesh.get_rank() == 1:
            patch.setattr(verify, "_first_problem", lambda *arguments: (0, "off"))
        with pytest.raises(RuntimeError, match="for rank 1 it does, for others not: what they compute differs"):
            network("vgg-bn", device_mesh=mesh)
    network("vgg-bn", device_mesh=mesh)  # and goes on


CHECKS = [function for name, function in globals().items() if name.startswith("check_")]


def run_checks(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    layers.SHARED_BYTES = 4_000
    for check in CHECKS:
        check(mesh, folder)
    dist.destroy_process_group()
    os._exit(0)  # PyTorch's end of gloo's threads aborts one process in thirty


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 3])
def test_processes(world, tmp_path):
    torch.multiprocessing.spawn(run_checks, (world, str(tmp_path)), world)
