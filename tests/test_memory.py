"""The guard, and the memory that large results live in."""

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from conv2affine import Geometry, conv_matrix, guard, ops, to_linear, to_matrix
from conv2affine.guard import _cgroups_left

MIB = 2**20


def large(dtype=torch.float32):
    """A matrix that lives in memory of our own: 1 x 1 kernel, 3000 x 3000."""
    return conv_matrix(torch.ones(1, 1, 1, dtype=dtype), 3000)


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


def test_message_tells_what_would_fit(monkeypatch):
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
        Geometry(3, 64, (7, 7), input_size=64, stride=2, padding=3),
        Geometry(16, 32, (3, 3), input_size=32, padding=1),
        Geometry(8, 16, (4, 4), input_size=32, stride=2, padding=1, transposed=True),
        Geometry(1, 1, (3,), input_size=30_000, padding=1),
        Geometry(3, 4, (3, 3), input_size=224, padding=1),
        Geometry(1, 2, (5, 5, 5), input_size=(20, 30, 40)),
    ],
    ids=lambda geometry: f"{geometry.shape[0]}x{geometry.shape[1]}",
)
def test_resident_bytes_are_what_the_process_grows_by(geometry):
    rows = min(geometry.shape[0], 2 * 10**9 // (4 * geometry.shape[1]))
    weight = torch.ones(geometry.weight_size)
    code = f"""
import psutil, torch
from conv2affine import Geometry, ops
geometry, weight = {geometry_call(geometry)}, torch.ones({tuple(weight.shape)})
before = psutil.Process().memory_info().rss
matrix = ops.dense(weight, geometry, 0, {rows})
print(psutil.Process().memory_info().rss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    expected = ops.dense_resident_bytes(geometry, torch.float32, range(rows))
    assert grown == pytest.approx(expected, rel=0.3, abs=16 * MIB)


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
        ("3:cpu:/x\n", {}, []),
        ("", {}, []),
    ],
    ids=["v2", "v2-parent-with-cache", "v2-container-over-limit", "v1", "none", "no-proc"],
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex128], ids=str)
def test_is_aligned_zeroed_and_contiguous(dtype):
    matrix = large(dtype)
    assert matrix.data_ptr() % 64 == 0
    assert matrix.is_contiguous()
    assert torch.equal(matrix, torch.eye(3000, dtype=dtype))


def test_is_an_ordinary_tensor():
    matrix, expected = large(), torch.eye(3000)
    assert matrix.untyped_storage().nbytes() == 4 * 3000**2
    assert matrix.untyped_storage().resizable()
    assert torch.equal(copy.deepcopy(matrix), expected)
    assert torch.equal(pickle.loads(pickle.dumps(matrix)), expected)
    file = io.BytesIO()
    torch.save(matrix, file)
    file.seek(0)
    assert torch.equal(torch.load(file), expected)
    array = matrix.numpy()
    array[0, 1] = 5
    assert matrix[0, 1] == 5
    matrix[0, 1] = 0
    assert torch.equal(matrix[:10].clone().resize_(100, 3000)[:10], expected[:10])
    assert torch.equal(large().resize_(4000, 3000)[:3000], expected)
    assert large().set_().numel() == 0


def test_numpy_array_outlives_the_tensor():
    array = large().numpy()
    assert array.trace() == 3000


def test_share_memory():
    matrix = large().share_memory_()
    assert matrix.is_shared()
    assert torch.equal(matrix, torch.eye(3000))


def doubled(connection, array):
    array *= 2  # by NumPy: torch's threads are not there after a fork
    connection.send(array.trace())


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_fork_is_copy_on_write():
    matrix = large()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=doubled, args=(theirs, matrix.numpy()))
    process.start()
    assert ours.poll(60)
    assert ours.recv() == 6000
    process.join(60)
    assert matrix.sum() == 3000


def test_memory_is_given_back():
    process = psutil.Process()
    large()
    before = process.memory_info().rss
    for _ in range(20):
        large()
    assert process.memory_info().rss - before < 20 * MIB


def test_huge_pages_are_asked_for_where_rows_are_touched_everywhere():
    def flags(matrix):
        """Flags of the mapping that holds the matrix, as the kernel tells them: hg for huge pages, nh for none."""
        address, found = matrix.data_ptr(), False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split(" ")[0]:
                start, stop = (int(part, 16) for part in line.split(" ")[0].split("-"))
                found = start <= address < stop
            elif found and line.startswith("VmFlags:"):
                return line.split()[1:]
        return []

    assert "hg" in flags(conv_matrix(torch.ones(8, 8, 3, 3), 32, padding=1))
    assert "nh" in flags(conv_matrix(torch.ones(1, 1, 3), 20_000, padding=1))
