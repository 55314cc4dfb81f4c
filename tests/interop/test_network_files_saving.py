"""A file of a network is complete, or does not exist: after an interruption, with two writers, on a full disk."""

import errno
import os
import subprocess
import sys
import types

import h5py
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from conv2affine import to_linear_network
from conv2affine.convolution import blocks, guard
from conv2affine.files import open_network, save_network
from conv2affine.interop.files import csr, network, storage
from conv2affine.network.matrices import rows as matrix_rows
from conv2affine.network.torch import layers
from tests.interop.test_network_files import assert_same_networks
from tests.network.models import Function, samples


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.h5"


def stopped(path, monkeypatch, at, model, example_inputs, **options):
    """A call of `save_network` that fails at its n-th write."""
    write, left = os.pwrite, [at]

    def failing(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("stop")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(OSError, match="stop"):
            save_network(path, model, example_inputs, **options)
    assert not path.exists()


def counted(path):
    with h5py.File(path.with_name("net.h5.part")) as file:
        return int(file["rows_written"][0])


def small_network(last=3):
    """Layers by blocks, and one that is made as a whole."""
    resize = nn.Upsample(scale_factor=2, mode="bilinear")
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), resize, nn.ReLU(), nn.Conv2d(8, last, 3)).double()


@pytest.mark.parametrize(("at", "layout"), [*((at, "sparse") for at in (0, 1, 30, 90)), (30, "dense")])
def test_goes_on_after_a_break(at, layout, path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 1000)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 200_000)
    monkeypatch.setattr(matrix_rows, "BLOCK_ENTRIES", 3000)
    monkeypatch.setattr(storage, "SYNC_BYTES", 1)
    model, x = small_network(), samples(2, 3, 9, 9)
    stopped(path, monkeypatch, at, model, x, layout=layout)
    before = counted(path)
    assert (before > 0) == (at > 1)
    begun, sync = [], storage._sync
    monkeypatch.setattr(storage, "_sync", lambda file, offset, done: (begun.append(done), sync(file, offset, done)))
    save_network(path, model, x, layout=layout)
    assert min(begun) > before
    assert os.listdir(path.parent) == [path.name]
    assert_same_networks(open_network(path), to_linear_network(model, x, layout=layout))


def test_rows_that_are_written_are_not_made_again(path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 1000)
    monkeypatch.setattr(storage, "SYNC_BYTES", 1)
    model, x = small_network(), samples(2, 3, 9, 9)
    stopped(path, monkeypatch, 100, model, x, layout="sparse")
    before, made, make = counted(path), [], csr.csr_rows
    first = 8 * 9 * 9 + 8 * 18 * 18
    assert before > first  # two layers are done
    monkeypatch.setattr(csr, "csr_rows", lambda *arguments: (made.append(arguments[2]), make(*arguments))[1])
    save_network(path, model, x, layout="sparse")
    assert first + made[0].start == before


# What is done to the model, or other arguments.
OTHERS = {
    "weight": lambda model: model[0].weight.data.mul_(2),
    "running mean": lambda model: model[1].running_mean.add_(1),
    "dilation": lambda model: vars(model[0]).update(dilation=(2, 2), padding=(2, 2)),
    "slope": lambda model: vars(model[2]).update(negative_slope=0.3),
    "input size": {"example_inputs": samples(2, 3, 10, 10)},
    "dtype": {"dtype": torch.float32},
    "layout": {"layout": "dense"},
    "merge": {"merge": "never"},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_parts_of_another_network_are_refused(change, path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 1000)
    monkeypatch.setattr(storage, "SYNC_BYTES", 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)).double().eval()
    options = {"example_inputs": samples(2, 3, 9, 9), "layout": "sparse"}
    stopped(path, monkeypatch, 5, model, **options)
    part = path.with_name("net.h5.part")
    before = part.read_bytes()
    if isinstance(change, dict):
        options |= change
    else:
        change(model)
    with pytest.raises(ValueError, match=r"net\.h5\.part must be a part of this matrix or network .* delete it"):
        save_network(path, model, **options)
    assert part.read_bytes() == before
    with pytest.raises(ValueError, match=r"has \d+ of 648 rows; call save_network again"):
        open_network(part)


def test_a_wrong_file_gets_no_name(path, monkeypatch):
    """The file is checked against the model."""
    make = csr.csr_rows

    def wrong(*arguments):
        starts, columns, values = make(*arguments)
        return starts, columns, values * 1.001

    monkeypatch.setattr(csr, "csr_rows", wrong)
    model, x = nn.Conv2d(3, 8, 3).double(), samples(2, 3, 9, 9)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not equal the model"):
            save_network(path, model, x, layout="sparse")
        assert os.listdir(path.parent) == ["net.h5.part"]


def test_the_same_call_writes_the_same_bytes(path, monkeypatch):
    model, x = small_network(), samples(2, 3, 9, 9)
    save_network(path, model, x, layout="sparse")
    expected = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(storage, "SYNC_BYTES", 1)
    stopped(path, monkeypatch, 4, model, x, layout="sparse")
    save_network(path, model, x, layout="sparse")
    assert path.read_bytes() == expected


def test_two_writers_do_not_write_one_file(path, monkeypatch):
    model, x = small_network(), samples(2, 3, 9, 9)
    stopped(path, monkeypatch, 4, model, x)
    code = f"""
import fcntl
with open({f"{path}.part"!r}, "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(
            BlockingIOError, match=r"another process is writing this file; wait for it: .*net\.h5\.part"
        ):
            save_network(path, model, x)
        other.communicate(b"\n")
    save_network(path, model, x)


def test_a_part_that_another_program_changed_is_refused(path, monkeypatch):
    model, x = small_network(), samples(2, 3, 9, 9)
    stopped(path, monkeypatch, 4, model, x, layout="sparse")
    part = path.with_name("net.h5.part")
    with h5py.File(part, "r+") as file:
        values = file["layers/0/data"][:]
        del file["layers/0/data"]
        file.create_dataset("layers/0/data", data=values, chunks=(7,))
    before = part.read_bytes()
    with pytest.raises(ValueError, match="layers/0/data must be contiguous in the file"):
        save_network(path, model, x, layout="sparse")
    assert part.read_bytes() == before
    with h5py.File(part, "r+") as file:
        del file["layers/0/data"]
    with pytest.raises(ValueError, match="dataset layers/0/data must have"):
        save_network(path, model, x, layout="sparse")


# Refusals


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_links_and_files_of_others_are_not_replaced(when, path, monkeypatch):
    def put(*arguments):
        path.symlink_to("nowhere")

    if when == "before":
        put()
    else:
        monkeypatch.setattr(network, "verify", put)
    with pytest.raises(FileExistsError, match=r"net\.h5\) must not exist"):
        save_network(path, nn.Linear(2, 2), torch.rand(1, 2))
    assert os.readlink(path) == "nowhere"


def test_a_disk_that_gets_full(path, monkeypatch):
    """What is written is gone on with."""
    model, x, write = small_network(), samples(2, 3, 9, 9), os.pwrite
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "pwrite", lambda *arguments: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"):
        save_network(path, model, x)
    monkeypatch.setattr(os, "pwrite", write)
    save_network(path, model, x)
    assert_close(open_network(path)(x), model(x))


def test_nothing_is_written_over(path):
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"net\.h5\) must not exist"):
        save_network(path, nn.Linear(2, 2), torch.rand(1, 2))
    assert path.read_text() == "mine"


REFUSED = {
    "softmax": (lambda x: x.softmax(1), NotImplementedError, "softmax must be affine or piecewise linear to be saved"),
    "constant": (lambda x: (x, torch.arange(2)), NotImplementedError, "outputs must depend on the inputs"),
    "a set of outputs": (lambda x: {1: x}, NotImplementedError, "dicts with strings as keys to be saved"),
    "a cast": (lambda x: x.float().relu(), NotImplementedError, "_to_copy must be .* or begin after it, or use to_l"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_can_hold_is_refused(name, path):
    function, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        save_network(path, Function(function), samples(2, 3))
    assert not os.listdir(path.parent)


def test_a_full_disk_is_refused_before_anything_is_written(path, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"the file needs .* and there are 100 B left"):
        save_network(path, nn.Linear(20, 20), torch.rand(1, 20))
    assert os.listdir(path.parent) == []


def test_what_is_written_out_as_a_whole_must_fit(path, monkeypatch):
    monkeypatch.setattr(guard, "memory_left", lambda: 1000)
    x = samples(1, 3, 20, 20)
    save_network(path, nn.Conv2d(3, 4, 3).double(), x)
    path.unlink()
    with pytest.raises(MemoryError, match=r"parts of its layer need .* choose a smaller input, or merge='never'"):
        save_network(path, nn.Upsample(scale_factor=2, mode="bilinear"), x)
    assert not os.listdir(path.parent)


@pytest.mark.parametrize("layout", ["dense", "sparse"])
@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv1d(1, 2, 3)], ids=["linear", "conv"])
def test_numbers_that_overflow_in_the_dtype_are_refused(layer, layout, path):
    """A ReLU hides them from a comparison."""
    nn.init.constant_(layer.weight, -7e4)
    model = Function(lambda x: torch.relu(layer(x.abs() + 1)))
    model.layer = layer
    with pytest.raises(ValueError, match=r"weight of its layer must be finite in torch.float16, and some"):
        save_network(path, model, torch.rand(2, 1, 3), dtype=torch.float16, layout=layout)
    assert not path.exists()
