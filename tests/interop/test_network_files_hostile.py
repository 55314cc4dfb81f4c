"""Files that are not whole, damaged, or made to harm: refused, before anything of them is used."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest
from torch import nn

from conv2affine.files import open_csr, open_network, save_csr, save_network
from tests.interop.test_network_files import sparse_network
from tests.network.models import samples


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.h5"
    sparse_network(path)
    return path


@pytest.fixture
def path(saved, tmp_path):
    return shutil.copy(saved, tmp_path / "net.h5")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "net.h5"
    with pytest.raises(FileNotFoundError):
        open_network(path)
    path.write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"path \(.*net.h5\) must be a whole HDF5 file .* signature"):
        open_network(path)
    path.unlink()
    save_csr(path, nn.Conv1d(1, 1, 2), 4)
    with pytest.raises(ValueError, match=r"must be a file of save_network; open_csr reads those of save_csr"):
        open_network(path)


@pytest.mark.parametrize("left", [0, 100, 0.3, 0.9, -1])
def test_truncated_files_are_refused(left, path):
    size = path.stat().st_size
    os.truncate(path, int(left * size) if 0 < left < 1 else left % size)
    with pytest.raises((OSError, ValueError)):
        open_network(path)


def changed(path, change):
    """Change the description in a file."""
    with h5py.File(path, "r+") as file:
        text = json.loads(bytes(file["description"][:]))
        text = change(text) or text
        del file["description"]
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        data = np.frombuffer(text if type(text) is bytes else json.dumps(text).encode(), np.uint8)
        space = h5py.h5s.create_simple(data.shape)
        file.require_dataset("x", (1,), "u1")
        h5py.h5d.create(file.id, b"description", h5py.h5t.NATIVE_UINT8, space, dcpl=create)
        file["description"][:] = data


def put(*keys):
    """A change of one item of a description."""
    *places, last, value = keys

    def change(text):
        for key in places:
            text = text[key]
        text[last] = value

    return change


HOSTILE = {
    "no JSON": lambda text: b"{",
    "no text": lambda text: b"\xff\xfe",
    "a number": lambda text: b"1",
    "nested deeply": lambda text: b"[" * 100_000,
    "version": put("version", 2),
    "dtype": put("dtype", "float16"),
    "code as a name": put("inputs", 0, 0, "x=__import__('os').system('true')"),
    "a keyword as a name": put("inputs", 0, 0, "lambda"),
    "no inputs": put("inputs", []),
    "negative size": put("inputs", 0, 1, [-1, 3, 12, 12]),
    "a fraction as a size": put("inputs", 0, 1, [1, 3.5, 12, 12]),
    "another step": put("nodes", 1, "kind", "system"),
    "a value of later": put("nodes", 1, "inputs", [7]),
    "a value before the first": put("nodes", 1, "inputs", [-1]),
    "two inputs of a ReLU": put("nodes", 1, "inputs", [0, 0]),
    "parameters of a ReLU": put("nodes", 1, "parameters", {"low": 1}),
    "a clip without numbers": put("nodes", 1, "kind", "clip"),
    "size of a step": put("nodes", 1, "size", 2),
    "size of a layer": put("nodes", 0, "size", 1153),
    "a layout": put("nodes", 0, "terms", 0, "layout", "pickle"),
    "a bias that is not there": put("nodes", 1, {"terms": [], "bias": True, "size": 1152, "origin": ["a"]}),
    "no terms": put("nodes", 1, {"terms": [], "bias": False, "size": 1152, "origin": ["a"]}),
    "an output": put("outputs", 0, 0, 99),
    "an output's shape": put("outputs", 0, 1, [1, 2]),
    "outputs twice": put("structure", {"tuple": [0, 0]}),
    "outputs in a set": put("structure", {"set": [0]}),
    "a plan of nonsense": put("plan", [[1, 2]]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptions_are_refused(name, path):
    changed(path, lambda text: None)
    open_network(path)
    changed(path, HOSTILE[name])
    with pytest.raises(ValueError, match="must be a file of save_network as it was written"):
        open_network(path)


@pytest.mark.parametrize("name", ["class", "__class__", "forward", "x.y z", "", "1", "self", "plan"])
def test_any_name_of_a_module_will_do(name, path):
    x = samples(1, 3, 12, 12)
    expected = open_network(path)(x)
    changed(path, put("nodes", 0, "terms", 0, "origin", [name]))
    assert (open_network(path)(x) == expected).all()


def overwrite(dataset, index, value):
    def change(file):
        file[dataset][index] = value

    return change


def chunk(name):
    def change(file):
        values = file[name][:]
        del file[name]
        file.create_dataset(name, data=values, chunks=(7,))

    return change


def link_elsewhere(file):
    del file["layers/0/data"]
    file["layers/0/data"] = h5py.ExternalLink("other.h5", "data")


def another_dtype(file):
    del file["layers/0/data"]
    file["layers/0/data"] = file["layers/0/indices"]


DAMAGED = {
    "offsets that descend": overwrite("layers/0/indptr", 5, 0),
    "offsets before the first": overwrite("layers/0/indptr", 0, -1),
    "offsets past the last": overwrite("layers/0/indptr", -1, 10**6),
    "chunks": chunk("layers/0/data"),
    "a layer that is not there": lambda file: file.__delitem__("layers/0"),
    "another dtype": another_dtype,
    "a link to another file": link_elsewhere,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_datasets_are_refused(name, path):
    with h5py.File(path, "r+") as file:
        DAMAGED[name](file)
    with pytest.raises(ValueError, match="must be a file of save_network as it was written"):
        open_network(path)


@pytest.mark.parametrize("pair", [("layers/0", "layers/1"), ("layers/0/data", "layers/1/data")])
def test_datasets_in_the_place_of_others_are_refused(pair, tmp_path):
    """Also where both have the same shape."""
    path, x = tmp_path / "net.h5", samples(1, 30)
    save_network(path, nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 30)).double(), x, layout="sparse")
    with h5py.File(path, "r+") as file:
        for old, new in (pair, pair[::-1]):
            file.move(old, f"{new}.new")
        for name in pair:
            file.move(f"{name}.new", name)
    with pytest.raises(ValueError, match=r"dataset layers/0/.* must be the one that was written, and is layers/1/"):
        open_network(path)


@pytest.mark.parametrize("column", [-1, 3 * 12 * 12])
def test_columns_out_of_range_are_refused_before_they_are_used(column, path):
    with h5py.File(path, "r+") as file:
        file["layers/0/indices"][700] = column
    net = open_network(path)
    with pytest.raises(ValueError, match=r"columns must be from 0 to 431, .* the file is damaged"):
        net(samples(1, 3, 12, 12))


def test_windows_out_of_range_are_refused(tmp_path):
    path = tmp_path / "net.h5"
    save_network(path, nn.MaxPool1d(2), samples(1, 1, 4))
    with h5py.File(path, "r+") as file:
        file["parameters/0/windows"][0, 0] = 4
    with pytest.raises(ValueError, match="windows of node 0 must read its input"):
        open_network(path)


NUMBERS = "layers/0/data", "layers/0/indices", "layers/0/indptr", "biases/0", "description"


@pytest.mark.parametrize("name", NUMBERS)
def test_a_check_finds_changed_bytes(name, path):
    open_network(path, check=True)
    with h5py.File(path, "r+") as file:
        offset = file[name].id.get_offset()
    with open(path, "r+b") as file:
        file.seek(offset + 5)
        byte = file.read(1)[0]
        file.seek(offset + 5)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ValueError, match=r"does not hold what was written: the file is damaged"):
        open_network(path, check=True)


def test_a_check_finds_changed_numbers_of_a_matrix(tmp_path):
    path = tmp_path / "conv.h5"
    save_csr(path, nn.Conv1d(1, 1, 2), 4)
    open_csr(path, check=True)
    with h5py.File(path, "r+") as file:
        file["data"][1] += 1e-7
    open_csr(path)
    with pytest.raises(ValueError, match=r"conv.h5\) does not hold what was written"):
        open_csr(path, check=True)


def test_a_check_finds_a_changed_attribute(tmp_path):
    path = tmp_path / "conv.h5"
    save_csr(path, nn.Conv1d(1, 1, 2), 4)
    with h5py.File(path, "r+") as file:
        file.attrs["shape"] = [3, 5]
    assert open_csr(path).shape == (3, 5)
    with pytest.raises(ValueError, match=r"conv.h5\) does not hold what was written"):
        open_csr(path, check=True)


def test_a_check_needs_a_digest(path):
    with h5py.File(path, "r+") as file:
        del file["sha256"]
    with pytest.raises(ValueError, match="has no digest to check"):
        open_network(path, check=True)
