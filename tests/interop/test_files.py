"""CSR in files: equal to the matrix, sound after a kill, small in memory, as fast as the disk."""

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
from torch import nn

from conv2affine import Geometry, to_matrix, to_scipy
from conv2affine.convolution import blocks
from conv2affine.files import open_csr, open_network, save_csr, save_network
from conv2affine.interop.files import csr, storage
from tests.cases import CASES


@pytest.fixture
def path(tmp_path):
    return tmp_path / "conv.h5"


@pytest.mark.parametrize("block_entries", [1, 100, 2**15])
def test_file_is_the_matrix(block_entries, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", block_entries)
    for case in CASES:
        conv = case.conv()
        save_csr(tmp_path / case.id, conv, case.input_size)
        assert_same_csr(open_csr(tmp_path / case.id), to_scipy(conv, case.input_size))


def assert_same_csr(actual, expected):
    assert actual.shape == expected.shape
    for name in ("data", "indices", "indptr"):
        assert getattr(actual, name).dtype == getattr(expected, name).dtype
        assert np.array_equal(getattr(actual, name), getattr(expected, name))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.uint16, torch.int64, torch.float32, torch.float64, torch.complex64], ids=str
)
def test_dtypes(dtype, index_dtype, path):
    weight = torch.arange(1, 13).to(dtype).view(2, 2, 3)
    geometry = Geometry(2, 2, (3,), input_size=5, padding=1)
    save_csr(path, weight, geometry, index_dtype=index_dtype)
    matrix = open_csr(path)
    assert matrix.indices.dtype == matrix.indptr.dtype == str(index_dtype).removeprefix("torch.")
    conv = nn.Conv1d(2, 2, 3, padding=1, bias=False)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    assert np.array_equal(matrix.toarray(), to_matrix(conv, 5).numpy())
    assert matrix.dtype == str(dtype).removeprefix("torch.")


def test_anndata_reads_it(path):
    conv = nn.Conv2d(3, 8, 3, padding=1)
    save_csr(path, conv, 9)
    with h5py.File(path) as file:
        assert_same_csr(anndata.io.read_elem(file["/"]), to_scipy(conv, 9))
        part = anndata.io.sparse_dataset(file["/"])[100:200]
        assert (part != to_scipy(conv, 9, rows=range(100, 200))).nnz == 0


def test_blocks_of_rows_and_products(path):
    conv = nn.Conv2d(3, 8, 3, padding=1)
    save_csr(path, conv, 9)
    matrix, expected = open_csr(path), to_scipy(conv, 9)
    assert_same_csr(matrix[100:200], expected[100:200])
    x = np.ones(matrix.shape[1], np.float32)
    assert np.array_equal(matrix @ x, expected @ x)
    with pytest.raises(ValueError, match="read-only"):
        matrix.data[0] = 1


# A writer is killed


def saved_by_another_process(path, kill_at):
    """`save_csr` in a process that kills itself at its `kill_at`-th write, or before it renames the file."""
    code = f"""
import os, signal, torch
from conv2affine.files import save_csr
from conv2affine.interop.files import storage
from conv2affine.convolution import blocks
torch.manual_seed(0)
blocks.BLOCK_ENTRIES, storage.SYNC_BYTES = 60 * 27, 1
writes, write = 0, os.pwrite
def counted(*arguments):
    global writes
    writes += 1
    if writes == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)
os.pwrite = counted
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
save_csr({str(path)!r}, torch.nn.Conv2d(3, 8, 3, padding=1), 12)
"""
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


@pytest.mark.parametrize("kill_at", [1, 2, 27, 0], ids=lambda at: f"write-{at}" if at else "rename")
def test_goes_on_after_a_kill(kill_at, path, monkeypatch):
    assert saved_by_another_process(path, kill_at) == -signal.SIGKILL
    assert not path.exists()
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    with h5py.File(path.with_name("conv.h5.part")) as file:
        counted = int(file["rows_written"][0])
    assert (counted > 0) == (kill_at in (0, 27))
    make, started = csr.csr_rows, []

    def watched(weight, geometry, rows, *arguments):
        started.append(rows.start)
        return make(weight, geometry, rows, *arguments)

    monkeypatch.setattr(csr, "csr_rows", watched)
    save_csr(path, conv, 12)
    assert os.listdir(path.parent) == [path.name]
    assert_same_csr(open_csr(path), to_scipy(conv, 12))
    assert started[:1] == ([] if kill_at == 0 else [counted])


def test_starts_again_after_a_kill_while_the_file_was_made(path):
    path.with_name("conv.h5.part.new").write_bytes(b"\x89HDF")
    conv = nn.Conv2d(3, 8, 3, padding=1)
    save_csr(path, conv, 12)
    assert os.listdir(path.parent) == [path.name]
    assert_same_csr(open_csr(path), to_scipy(conv, 12))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """What a killed writer leaves."""
    path = tmp_path_factory.mktemp("unfinished") / "conv.h5"
    saved_by_another_process(path, 27)
    return path.with_name("conv.h5.part")


def test_unfinished_files_are_not_opened(unfinished):
    with pytest.raises(ValueError, match=r"has \d+ of 1152 rows; call save_csr again"):
        open_csr(unfinished)


def test_a_file_that_is_only_there_in_part_is_not_finished(unfinished):
    path = unfinished.with_suffix("")
    expected = f"this file is not finished, and {unfinished} is a part of it; save it again to continue: '{path}'"
    for read in (open_csr, open_network):
        with pytest.raises(FileNotFoundError, match=re.escape(expected)):
            read(path)
    with pytest.raises(FileNotFoundError, match="No such file"):
        open_csr(path.with_name("other.h5"))


@pytest.mark.parametrize("change", ["weight", "input_size", "dtype", "index_dtype"])
def test_parts_of_another_matrix_are_refused(change, path, unfinished):
    shutil.copy(unfinished, path.with_name("conv.h5.part"))
    torch.manual_seed(change == "weight")
    conv = nn.Conv2d(3, 8, 3, padding=1, dtype=torch.float64 if change == "dtype" else None)
    index_dtype = torch.int64 if change == "index_dtype" else None
    part = path.with_name("conv.h5.part")
    before = part.read_bytes()
    with pytest.raises(ValueError, match=r"conv\.h5\.part must be a part of this matrix .* and is not; delete it"):
        save_csr(path, conv, 13 if change == "input_size" else 12, index_dtype=index_dtype)
    assert part.read_bytes() == before


# Refusals


def test_check_format_finds_columns_out_of_range(path):
    save_csr(path, nn.Conv1d(1, 1, 2), 4)
    open_csr(path).check_format()
    with h5py.File(path, "a") as file:
        file["indices"][3] = 10**6
    with pytest.raises(ValueError, match="indices must be < 4"):
        open_csr(path).check_format()


def test_nothing_is_written_over(path):
    conv = nn.Conv1d(1, 1, 2)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"conv\.h5\) must not exist; delete the file, or choose"):
        save_csr(path, conv, 4)
    path.rename(f"{path}.part")
    with pytest.raises(ValueError, match=r"must be a part of this matrix .* and is not HDF5 .* delete it"):
        save_csr(path, conv, 4)
    assert Path(f"{path}.part").read_text() == "mine"
    assert not path.exists()


def test_a_full_disk_is_refused_before_anything_is_written(path):
    with pytest.raises(OSError, match=r"the file needs 1\.\d+ TB \(\d+ bytes\), and there are .* left"):
        save_csr(path, nn.Conv2d(128, 128, 3, padding=1), (721, 1440))
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_limit_of_the_size_of_files_leaves_no_file(limit, path):
    code = f"""
import resource, signal, torch
from conv2affine.files import save_csr
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
save_csr({str(path)!r}, torch.nn.Conv2d(2, 8, 3, padding=1), 64)
"""
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.stderr.endswith(f"OSError: [Errno 27] the file needs 4.75 MB: File too large: '{path}.part'\n")
    assert os.listdir(path.parent) == []


def test_a_file_that_another_process_makes_is_left(path):
    made = path.with_name(f"{path.name}.part.new")
    with open(made, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"another process is writing this file; wait for it: .*conv.h5.part"):
            save_csr(path, nn.Conv2d(1, 2, 3), 8)
        assert os.listdir(path.parent) == [made.name]


def test_a_disk_that_is_full_midway_can_be_continued(path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 60 * 27)
    monkeypatch.setattr(storage, "SYNC_BYTES", 1)
    conv, write, left = nn.Conv2d(3, 8, 3, padding=1), os.pwrite, iter(range(20))

    def fail(*arguments):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match=r"No space left on device; the rows .* to continue, .*conv.h5.part"):
        save_csr(path, conv, 12)
    monkeypatch.setattr(os, "pwrite", write)
    save_csr(path, conv, 12)
    assert (open_csr(path, check=True) != to_scipy(conv, 12)).nnz == 0


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (nn.ReLU(), TypeError, "path must be the path of a file, got ReLU; it is the first argument"),
        ("", IsADirectoryError, r"path \(\) must be a file, and is a folder"),
        ("no-such-folder/x.h5", FileNotFoundError, r"the folder of path \(no-such-folder/x.h5\) must be there"),
    ],
    ids=["model", "empty", "no-folder"],
)
def test_what_is_no_path_is_refused_first(target, error, message):
    for save in (save_csr, save_network):
        with pytest.raises(error, match=message):
            save(target, None, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes_are_refused(dtype, path):
    with pytest.raises(TypeError, match=r"must have a dtype of SciPy's sparse arrays, .* convert it with float"):
        save_csr(path, nn.Conv1d(1, 1, 2, dtype=dtype), 4)


def test_sums_of_bool_are_refused(path):
    geometry = Geometry(1, 1, (3,), input_size=4, padding=1, padding_mode="replicate")
    with pytest.raises(TypeError, match="must have a dtype that can be added"):
        save_csr(path, torch.ones(1, 1, 3, dtype=torch.bool), geometry)
    assert os.listdir(path.parent) == []


def test_other_files_are_refused(path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*conv"):
        open_csr(path)
    with pytest.raises(IsADirectoryError, match=r"Is a directory: "):
        open_csr(path.parent)
    path.write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"path \(.*conv.*\) must be a whole HDF5 file .* signature"):
        open_csr(path)
    with h5py.File(path, "w") as file:
        file["data"] = [1]
    with pytest.raises(ValueError, match=r"must be a file of save_csr; open_network .* anndata\.io\.read_elem may"):
        open_csr(path)
    path.unlink()
    save_csr(path, nn.Conv1d(1, 1, 2), 4)
    with h5py.File(path, "r+") as file:
        values = file["data"][:]
        del file["data"]
        file.create_dataset("data", data=values, chunks=(2,))
    with pytest.raises(ValueError, match=r"was written again by another program; read it with anndata"):
        open_csr(path)


def test_what_is_not_installed_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"files need h5py; install it with: pip install 'conv2affine\[files\]'"):
        save_csr(path, nn.Conv1d(1, 1, 2), 4)


def test_progress(path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    save_csr(path, nn.Conv1d(1, 1, 2), 4, progress=False)
    assert capsys.readouterr().err == ""
    path.unlink()
    save_csr(path, nn.Conv1d(1, 1, 2), 4)
    output = capsys.readouterr()
    assert "100%" in output.err
    assert output.out == ""


# Large files


@pytest.mark.serial
def test_memory(path):
    """476 MB take less than 50 MB of memory; 4 GB, with CONV2AFFINE_INPUT_SIZE=464, take no more."""
    input_size = int(os.environ.get("CONV2AFFINE_INPUT_SIZE", "160"))
    code = f"""
import os, torch
from conv2affine.files import save_csr
def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
conv = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3)
save_csr({str(path)!r}, conv, 8)
os.remove({str(path)!r})
before = memory("VmRSS")
save_csr({str(path)!r}, conv, {input_size})
print(memory("VmHWM") - before)
"""
    assert int(subprocess.check_output([sys.executable, "-c", code])) < 50e6
