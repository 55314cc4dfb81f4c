"""The guard: what does not fit into memory is refused before anything is allocated."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from conv2affine import Geometry, conv_matrix, to_bias, to_linear, to_matrix
from conv2affine.convolution import guard
from conv2affine.convolution.guard import _cgroups_left
from conv2affine.convolution.sizes import layout_sizes
from conv2affine.operators import ops
from tests.conftest import peak_bytes

MIB = 2**20


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_csr, torch.sparse_csc, torch.sparse_coo], ids=str)
def test_what_does_not_fit_is_refused_with_the_bytes_of_every_layout(layout, monkeypatch):
    monkeypatch.setattr(guard, "memory_left", lambda: 30 * MIB)
    conv = nn.Conv2d(16, 64, 3, padding=1)
    with pytest.raises(MemoryError) as caught:
        to_matrix(conv, 64, layout=layout)
    message = str(caught.value)
    assert message.startswith(f"layout ({layout}) of 262144 x 65536 elements of torch.float32 needs ")
    assert "there are 31.46 MB left" in message
    for name in ("strided: 68.72 GB", "sparse_csr, int32: ", "sparse_csc, int64: ", "sparse_coo, int64: "):
        assert name in message
    assert "rows=range(start, stop)" in message


def test_message_says_what_would_fit(monkeypatch):
    monkeypatch.setattr(guard, "memory_left", lambda: 500 * MIB)
    conv = nn.Conv2d(16, 64, 3, padding=1)
    with pytest.raises(MemoryError, match=r"strided: 68.72 GB, does not fit; sparse_csr, int32: .*, fits;"):
        to_linear(conv, 64)
    assert to_linear(conv, 64, layout=torch.sparse_csr).weight.shape == (262144, 65536)
    assert to_matrix(conv, 64, rows=range(100)).shape == (100, 65536)
    with pytest.raises(MemoryError, match=r"needs 777.34 MB .777342980 bytes."):
        to_matrix(conv, 64, layout=torch.sparse_csr, drop_zeros=True)


def test_pages_that_are_never_touched_take_no_memory(monkeypatch):
    """A 1-D convolution of a long signal: 40 GB of address space, a page a row."""
    monkeypatch.setattr(guard, "memory_left", lambda: 2000 * MIB)
    matrix = conv_matrix(torch.ones(1, 1, 3), 100_000, padding=1)
    before = psutil.Process().memory_info().rss
    assert matrix.numel() == 10**10
    assert matrix[99_999, 99_998:].tolist() == [1, 1]
    assert psutil.Process().memory_info().rss - before < 10 * MIB
    with pytest.raises(MemoryError):
        conv_matrix(torch.ones(1, 1, 3), 1_000_000, padding=1)


@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(Geometry(3, 64, (7, 7), input_size=64, stride=2, padding=3), marks=pytest.mark.long),
        pytest.param(Geometry(16, 32, (3, 3), input_size=32, padding=1), marks=pytest.mark.long),
        pytest.param(
            Geometry(8, 16, (4, 4), input_size=32, stride=2, padding=1, transposed=True), marks=pytest.mark.long
        ),
        Geometry(1, 1, (3,), input_size=30_000, padding=1),
        Geometry(3, 4, (3, 3), input_size=224, padding=1),
        pytest.param(Geometry(1, 2, (5, 5, 5), input_size=(20, 30, 40)), marks=pytest.mark.long),
    ],
    ids=lambda geometry: f"{geometry.shape[0]}x{geometry.shape[1]}",
)
def test_resident_bytes_are_what_the_process_grows_by(geometry):
    rows = min(geometry.shape[0], 2 * 10**9 // (4 * geometry.shape[1]))
    expected = ops.dense_resident_bytes(geometry, torch.float32, range(rows))
    assert grown_bytes(geometry, rows) == pytest.approx(expected, rel=0.3, abs=16 * MIB)


def test_small_pages_take_the_place_of_slow_huge_ones():
    """A third of the small pages have weights."""
    geometry, rows = Geometry(3, 64, (7, 7), input_size=64, stride=2, padding=3), 4000
    expected = ops.dense_resident_bytes(geometry, torch.float32, range(rows)) / 3
    assert grown_bytes(geometry, rows, lost_page_seconds=-1) == pytest.approx(expected, rel=0.3)


def test_rows_without_entries_take_no_memory():
    """Wide padding: 800 MB of zeros around 12 rows."""
    geometry = Geometry(1, 1, (3,), input_size=10, padding=10**7)
    assert grown_bytes(geometry, geometry.shape[0]) < 16 * MIB


def grown_bytes(geometry, rows, lost_page_seconds=float("inf")):
    """Bytes that a fresh process grows by, with the first rows of a dense matrix."""
    code = f"""
import psutil, torch
from conv2affine import Geometry
from conv2affine.operators import ops
from conv2affine.operators.extension import _C
_C.set_lost_page_seconds(float("{lost_page_seconds}"))
geometry, weight = {geometry_call(geometry)}, torch.ones({tuple(geometry.weight_size)})
before = psutil.Process().memory_info().rss
matrix = ops.dense(weight, geometry, 0, {rows})
print(psutil.Process().memory_info().rss - before)
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def geometry_call(geometry):
    """Geometry(...) as source text."""
    names = ("in_channels", "out_channels", "kernel_size", "input_size", "stride", "padding", "transposed")
    return "Geometry(" + ", ".join(f"{name}={getattr(geometry, name)!r}" for name in names) + ")"


def test_limited_address_space_is_an_error_of_ours():
    code = """
import resource, torch, conv2affine
conv = torch.nn.Conv2d(16, 64, 3, padding=1)
conv2affine.to_linear(conv, 4)
mapped = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**28, mapped + 2**28))
try:
    conv2affine.to_linear(conv, 32)
except MemoryError as error:
    print(error)
assert conv2affine.to_linear(conv, 8).weight.shape == (4096, 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs 4.29 GB (4294967296 bytes), and there are" in result.stdout
    assert "sparse_csr, int32: 72.65 MB, fits" in result.stdout


@pytest.mark.diagonal
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("drop_zeros", [False, True], ids=["all", "drop_zeros"])
def test_peak_of_sparse_layouts_is_what_the_guard_counts(layout, dtype, drop_zeros):
    setup = f"""
conv = torch.nn.Conv2d(16, 64, 3, dtype={dtype}).requires_grad_(False)
options = dict(layout={layout}, drop_zeros={drop_zeros})
to_matrix(conv, 4, **options)"""
    peak = peak_bytes(setup, "to_matrix(conv, 32, **options)")
    geometry = Geometry(16, 64, (3, 3), input_size=32)
    nnz = ops.nnz(geometry, range(geometry.shape[0]))
    size = next(size for size in layout_sizes(*geometry.shape, nnz, dtype) if size.layout is layout)
    assert peak == pytest.approx(size.peak_bytes(drop_zeros), rel=0.02, abs=4 * MIB)


def test_bias_is_guarded(monkeypatch):
    conv = nn.Conv1d(1, 100, 1)
    assert to_bias(conv, 500_000).shape == (50_000_000,)
    monkeypatch.setattr(guard, "memory_left", lambda: 30 * MIB)
    for layer in (conv, nn.Conv1d(1, 100, 1, bias=False)):
        with pytest.raises(MemoryError, match=r"a bias of 50000000 entries of torch.float32 needs 200.00 MB"):
            to_bias(layer, 500_000)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bytes_that_64_bits_do_not_count_are_refused_on_any_device(device):
    size = 2**30
    conv = nn.Conv1d(1, 1, 3, padding=1, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=r"the matrix would have 9223372036854775808 bytes, more than .* choose a"):
        to_matrix(conv, size)
    assert to_matrix(conv, size, rows=range(1), layout=torch.sparse_csr).shape == (1, size)
    conv = nn.ConvTranspose1d(1, 1000, 3, stride=2**50, dtype=torch.complex128, device=device)
    with pytest.raises(ValueError, match="the bias would have 36028797018964016000 bytes"):
        to_bias(conv, 3)


def test_sparse_layouts_are_guarded_where_64_bits_do_not_count_the_dense_bytes(monkeypatch):
    monkeypatch.setattr(guard, "memory_left", lambda: 30 * MIB)
    with pytest.raises(MemoryError, match=r"needs 60.13 GB.*strided: 9223.37 PB, does not fit"):
        to_matrix(nn.Conv1d(1, 1, 3, padding=1, dtype=torch.float64), 2**30, layout=torch.sparse_csr)


def test_zeros_of_a_meta_tensor_are_not_dropped():
    with pytest.raises(ValueError, match="drop_zeros must be False on the meta device"):
        to_matrix(nn.Conv1d(1, 1, 3, device="meta"), 5, layout=torch.sparse_coo, drop_zeros=True)


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"])
def test_ranks_of_a_host_share_its_memory(variable, monkeypatch):
    monkeypatch.setattr(guard.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000 * MIB))
    monkeypatch.setattr(guard, "_cgroups_left", lambda *folders: iter([900 * MIB]))
    for ranks, left in (("4", 225 * MIB), ("1", 900 * MIB), ("0", 900 * MIB), ("no number", 900 * MIB)):
        monkeypatch.setenv(variable, ranks)
        assert guard.memory_left() == left
    monkeypatch.delenv(variable)
    assert guard.memory_left() == 900 * MIB


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "1000", "a/b/memory.current": "300"}, [700]),
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "max\n",
                "a/b/memory.current": "300\n",
                "a/memory.max": "900\n",
                "a/memory.current": "400\n",
                "a/memory.stat": "anon 7\ninactive_file 50\nfile 9\n",
            },
            [550],
        ),
        ("0::/gone\n", {"memory.max": "1000", "memory.current": "1200"}, [0]),
        (
            "5:cpu:/x\n4:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": "80", "memory/x/memory.usage_in_bytes": "30"},
            [50],
        ),
        (
            "4:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": f"{2**63 - 4096}", "memory/x/memory.usage_in_bytes": "30"},
            [],
        ),
        ("3:cpu:/x\n", {}, []),
        ("", {}, []),
    ],
    ids=["v2", "v2-parent-with-cache", "v2-container-over-limit", "v1", "v1-without-limit", "none", "no-proc"],
)
def test_control_groups(membership, files, left, tmp_path):
    (tmp_path / "cgroup").write_text(membership)
    root = tmp_path / "fs"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert list(_cgroups_left(tmp_path / "cgroup", root)) == left


def test_readings_of_this_machine_are_sane():
    assert 0 < guard.memory_left() <= psutil.virtual_memory().total
    assert guard.address_space_left() > 0


def test_fake_and_meta_tensors_are_never_refused(monkeypatch):
    monkeypatch.setattr(guard, "memory_left", lambda: 0)
    assert conv_matrix(torch.ones(8, 3, 3, 3, device="meta"), 1000).shape == (7968032, 3000000)
    with torch._subclasses.FakeTensorMode():
        assert conv_matrix(torch.ones(8, 3, 3, 3), 1000).shape == (7968032, 3000000)
