"""Sharded matrices: every shard in one process by a fake process group, and two and three processes by gloo."""

import contextlib
import os
import resource
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing import assert_close
from torch.testing._internal.distributed.fake_pg import FakeStore

from conv2affine import Geometry, to_bias, to_linear, to_matrix
from conv2affine.distributed import to_dtensor
from tests.cases import CASES, layers, made
from tests.conftest import long_but, status

SHARDED = (Shard(0),)
WORLDS = (2, 3)


# One process


def fake_ranks(*mesh_size):
    """The mesh as each rank has it, one after the other; they cannot communicate."""
    world = torch.Size(mesh_size).numel()
    for rank in range(world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            yield init_device_mesh("cpu", mesh_size)
        finally:
            dist.destroy_process_group()


@given(layers(), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_shards_are_the_rows_of_the_matrix(drawn, ranks):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    matrix, bias = to_matrix(conv, input_size), to_bias(conv, input_size)
    for mesh in fake_ranks(ranks):
        for whole, sharded in (
            (matrix, to_dtensor(conv, input_size, mesh)),
            (matrix, to_dtensor(conv.weight, Geometry.from_layer(conv, input_size))),
            (matrix, to_linear(conv, input_size, device_mesh=mesh).weight),
            (bias, to_linear(conv, input_size, device_mesh=mesh).bias),
        ):
            if sharded is not None:
                assert_same_shard(sharded, distribute_tensor(whole, mesh, SHARDED, src_data_rank=None))


def assert_same_shard(actual, expected):
    assert torch.equal(actual.to_local(), expected.to_local())
    assert actual.placements == expected.placements
    assert actual.shape == expected.shape
    assert actual.stride() == expected.stride()
    assert actual.dtype == expected.dtype


@pytest.mark.parametrize(
    ("mesh_size", "placements"),
    [
        ((3,), (Replicate(),)),
        ((2, 3), (Replicate(), Shard(0))),
        ((3, 2), (Shard(0), Replicate())),
        ((2, 2), (Replicate(), Replicate())),
        ((3, 4), (Shard(0), Shard(0))),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 5, 24])
def test_meshes(mesh_size, placements, rows):
    conv = nn.Conv1d(2, rows, 3).requires_grad_(False)
    matrix = to_matrix(conv, 3)
    for mesh in fake_ranks(*mesh_size):
        expected = distribute_tensor(matrix, mesh, placements, src_data_rank=None)
        assert_same_shard(to_dtensor(conv, 3, mesh, placements), expected)


def test_sparse_shards_are_the_rows_of_the_matrix():
    for case in CASES:
        conv = case.conv().requires_grad_(False)
        matrix = to_matrix(conv, case.input_size)
        for rank, mesh in enumerate(fake_ranks(3)):
            linear = to_linear(conv, case.input_size, layout=torch.sparse_csr, device_mesh=mesh)
            (local,) = linear.children()
            chunks = matrix.chunk(3)
            expected = chunks[rank] if rank < len(chunks) else matrix[:0]
            assert torch.equal(local.weight.to_dense(), expected)
            assert (linear.in_features, linear.out_features) == matrix.shape[::-1]


def test_a_rank_outside_of_the_mesh_has_no_rows():
    conv = nn.Conv1d(1, 1, 2).requires_grad_(False)
    for rank, _ in enumerate(fake_ranks(3)):
        mesh = DeviceMesh("cpu", [0, 1])
        sharded = to_dtensor(conv, 6, mesh)
        assert sharded.shape == (5, 6)
        expected = to_matrix(conv, 6)[3 * rank : 3 * rank + 3] if rank < 2 else torch.empty(0)
        assert torch.equal(sharded.to_local(), expected)


@pytest.mark.parametrize(
    ("error", "placements", "message"),
    [
        (ValueError, (Shard(1),), r"must shard dimension 0: .* call \.redistribute"),
        (ValueError, (Shard(0), Replicate()), "one entry per mesh dimension, that is 1"),
        (TypeError, (Partial(),), r"must be Shard\(0\) or Replicate\(\), got Partial"),
    ],
    ids=["columns", "too-many", "partial"],
)
def test_placements_are_refused(error, placements, message):
    for mesh in fake_ranks(2):
        with pytest.raises(error, match=message):
            to_dtensor(nn.Conv1d(1, 1, 2), 4, mesh, placements)


def test_what_does_not_go_together_is_refused():
    conv = nn.Conv1d(1, 1, 2)
    with pytest.raises(RuntimeError, match=r"device_mesh \(None\) needs a process group: .* torchrun"):
        to_dtensor(conv, 4)
    with pytest.raises(TypeError, match=r"conv must be .* got .*Parameter"):
        to_dtensor(conv.weight, 4)
    with pytest.raises(TypeError, match=r"conv \(Conv1d\) must be a weight tensor if input_size is a Geometry"):
        to_dtensor(conv, Geometry.from_layer(conv, 4))
    for call in (to_dtensor, lambda conv, size, mesh: to_linear(conv, size, device_mesh=mesh)):
        with pytest.raises(TypeError, match=r"device_mesh must be a torch.*DeviceMesh, got 'cpu'; init_device_mesh"):
            call(conv, 4, "cpu")
    for mesh in fake_ranks(2, 2):
        with pytest.raises(ValueError, match=r"must have one dimension, got .* pass the one that shards the layer"):
            to_linear(conv, 4, device_mesh=mesh)
    for mesh in fake_ranks(2):
        with pytest.raises(ValueError, match=r"index_dtype .* must be left out with layout torch\.strided"):
            to_linear(conv, 4, device_mesh=mesh, index_dtype=torch.int32)


# Several processes: each check runs on every rank


def convolution():
    """A layer whose 3 x 2 x 25 rows no two or three ranks split at a channel."""
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64)


def samples(count):
    return torch.randn(count, 4, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def check_memory(mesh, folder):
    """Under a limit that the whole matrix does not fit into; first, while little memory was used."""
    conv = nn.Conv2d(16, 32, 3, stride=2, padding=1).requires_grad_(False)
    whole = 4 * (32 * 16 * 16) * (16 * 32 * 32)  # 537 MB
    to_dtensor(conv, 4, mesh)
    before, mapped = status("VmRSS"), status("VmSize")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + whole * 9 // 10, limits[1]))
    try:
        with pytest.raises(MemoryError, match="choose a layout that fits"):
            to_matrix(conv, 32)
        matrix = to_dtensor(conv, 32, mesh)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert status("VmHWM") - before <= 1.05 * matrix.to_local().nbytes


def check_matrix(mesh, folder):
    conv = convolution()
    assert torch.equal(to_dtensor(conv, 9, mesh).full_tensor(), to_matrix(conv, 9))
    assert torch.equal(to_dtensor(conv, 9, mesh).redistribute(mesh, (Shard(1),)).full_tensor(), to_matrix(conv, 9))


def check_collectives(mesh, folder):
    conv = convolution()
    x = distribute_tensor(samples(1).flatten(), mesh, (Replicate(),))
    with CommDebugMode() as communication:
        y = to_dtensor(conv, 9, mesh) @ x
    assert communication.get_total_counts() == 0
    y = y.to_local().square().sum()
    with CommDebugMode() as communication:
        y.backward()
    assert communication.get_total_counts() == 1


def check_gradients(mesh, folder):
    world = mesh.size()
    conv = convolution()
    x = samples(1).flatten()
    expected = derivatives(conv.weight, to_matrix(conv, 9) @ x)
    for mesh_size, placements in (
        ((world,), SHARDED),
        ((world,), (Replicate(),)),
        ((1, world), (Replicate(), Shard(0))),
        ((world, 1), (Replicate(), Shard(0))),
        ((world, 1), (Shard(0), Shard(0))),
    ):
        mesh = init_device_mesh("cpu", mesh_size)
        replicated = distribute_tensor(x, mesh, [Replicate()] * mesh.ndim)
        actual = derivatives(conv.weight, to_dtensor(conv, 9, mesh, placements) @ replicated)
        assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def derivatives(weight, y):
    """The gradient of a sum of cubes, and the product of its Hessian with ones."""
    y = y.pow(3).sum()
    (gradient,) = torch.autograd.grad(y.full_tensor() if isinstance(y, DTensor) else y, weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    return gradient.detach(), second


def check_parametrised_and_sharded_weights(mesh, folder):
    conv = nn.utils.parametrizations.weight_norm(convolution())
    loss = (to_dtensor(conv, 9, mesh).full_tensor() * torch.arange(324)).sum()
    actual = torch.autograd.grad(loss, tuple(conv.parametrizations.weight.parameters()))
    loss = (to_matrix(conv, 9) * torch.arange(324)).sum()
    expected = torch.autograd.grad(loss, tuple(conv.parametrizations.weight.parameters()))
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    conv = convolution()
    expected = to_matrix(conv, 9).detach()
    conv.weight = nn.Parameter(distribute_tensor(conv.weight.detach(), mesh, SHARDED))
    matrix = to_dtensor(conv, 9, mesh)
    assert torch.equal(matrix.full_tensor(), expected)
    matrix.to_local().sum().backward()
    assert conv.weight.grad.placements == SHARDED
    assert conv.weight.grad.full_tensor().sum() == (expected != 0).sum()


def check_linear(mesh, folder):
    conv, x = convolution(), samples(2)
    conv.eval().bias.requires_grad_(False)
    linear = to_linear(conv, 9, device_mesh=mesh)
    assert type(linear) is nn.Linear
    assert (linear.training, linear.weight.requires_grad, linear.bias.requires_grad) == (False, True, False)
    pointer = linear.weight.to_local().data_ptr()
    parallel = parallelize_module(linear, mesh, ColwiseParallel(output_layouts=Replicate()))
    assert parallel.weight.to_local().data_ptr() == pointer
    assert_close(parallel(x.flatten(1)), conv(x).flatten(1), rtol=1e-12, atol=1e-12)


def check_sparse_linear(mesh, folder):
    conv, x = convolution().eval(), samples(2).requires_grad_()
    (expected,) = torch.autograd.grad(conv(x).square().sum(), x)
    linear = to_linear(conv, 9, layout=torch.sparse_csr, device_mesh=mesh)
    assert not linear.training
    for flat in (x.flatten(1), DTensor.from_local(x.flatten(1), mesh, (Replicate(),))):
        y = linear(flat)
        assert (y.placements, y.shape, y.stride()) == ((Shard(1),), (2, 150), (150, 1))
        assert_close(y.full_tensor(), conv(x).flatten(1), rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(y.square().sum().full_tensor(), x)
        assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert_close(linear(x[0].flatten()).full_tensor(), conv(x)[0].flatten(), rtol=1e-12, atol=1e-12)
    # Each rank's state has names of its own.
    dcp.save(linear.state_dict(), checkpoint_id=f"{folder}/sparse{mesh.size()}")
    with torch.no_grad():
        conv.weight.zero_()
    other = to_linear(conv, 9, layout=torch.sparse_csr, device_mesh=mesh)
    state = other.state_dict()
    dcp.load(state, checkpoint_id=f"{folder}/sparse{mesh.size()}")
    other.load_state_dict(state)
    assert torch.equal(other(x.flatten(1)).full_tensor(), linear(x.flatten(1)).full_tensor())
    if mesh.size() != 2:
        with pytest.raises(dcp.api.CheckpointException, match="Missing key in checkpoint state_dict: rows_"):
            dcp.load(state, checkpoint_id=f"{folder}/sparse2")


def check_checkpoint(mesh, folder):
    """Saved by two ranks, loaded by any number."""
    conv = convolution()
    expected = to_linear(conv, 9)
    linear = to_linear(conv, 9, device_mesh=mesh)
    if mesh.size() == 2:
        dcp.save(linear.state_dict(), checkpoint_id=f"{folder}/linear")
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.zero_()
    linear = to_linear(conv, 9, device_mesh=mesh)
    state = linear.state_dict()
    dcp.load(state, checkpoint_id=f"{folder}/linear")
    linear.load_state_dict(state)
    assert torch.equal(linear.weight.full_tensor(), expected.weight)
    assert torch.equal(linear.bias.full_tensor(), expected.bias)


CHECKS = {name: function for name, function in globals().items() if name.startswith("check_")}


def run_checks(rank, world, folder):
    """All checks on one rank; what went wrong goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for name, check in CHECKS.items():
        try:
            check(mesh, folder)
        except BaseException:  # pytest.raises fails with one that is no Exception
            Path(f"{folder}/{name}-{world}-{rank}").write_text(traceback.format_exc())
            raise
        Path(f"{folder}/{name}-{world}-{rank}").write_text("")
    dist.destroy_process_group()
    os._exit(0)  # PyTorch's end of gloo's threads aborts one process in thirty


@pytest.fixture(scope="module")
def reports(request, tmp_path_factory):
    """A folder with a file per check and rank: the traceback of what it raised, or nothing."""
    folder = tmp_path_factory.mktemp("ranks")
    asked = {item.callspec.params["world"] for item in request.session.items if "test_processes[" in item.name}
    for world in sorted(asked | {2}):
        with contextlib.suppress(torch.multiprocessing.ProcessRaisedException):  # which is in the report
            torch.multiprocessing.spawn(run_checks, (world, str(folder)), world)
    return folder


@pytest.mark.parametrize("world", long_but([2], WORLDS))
@pytest.mark.parametrize("name", CHECKS)
def test_processes(name, world, reports):
    found = [reports / f"{name}-{world}-{rank}" for rank in range(world)]
    errors = [report.read_text() for report in found if report.exists()]
    assert not any(errors), "\n".join(errors)
    assert len(errors) == world, "a rank failed here or before, and ended the others"


def test_checkpoint_is_loaded_by_one_process(reports):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        check_checkpoint(init_device_mesh("cpu", (1,)), reports)
    finally:
        dist.destroy_process_group()
