"""Where results are written, and which files a conversion never replaces."""

from __future__ import annotations

import errno
import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from conv2affine.onnx import convert
from conv2affine.onnx.exporting import storage
from conv2affine.onnx.importing import inference, reader
from tests.onnx.models import cnn, model, operators, random


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_source_is_not_replaced(tmp_path, link):
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(cnn(), source)
    if link is None:
        target = source
    else:
        link(source, target)
    with pytest.raises(ValueError, match="must not be the source itself"):
        convert(source, target, overwrite=True)


def test_a_specification_is_not_replaced(tmp_path):
    path = tmp_path / "p.vnnlib"
    path.write_text("(declare-const X_0 Real)")
    with pytest.raises(ValueError, match=r"p\.vnnlib must not be a file that is read"):
        storage.check_target(path, True, cnn(), None, path)


def test_a_result_has_no_name_of_a_packed_file(tmp_path):
    with pytest.raises(ValueError, match=r"b.onnx.gz must not have the name of a packed file.* name it b.onnx"):
        convert(cnn(), tmp_path / "b.onnx.gz")


@pytest.mark.parametrize("name", ["out.onnx", "bounds.npz"])
def test_a_full_disk_leaves_no_file_and_is_named(name, tmp_path, monkeypatch):
    def full(file, *_, **__):
        if Path(getattr(file, "name", file)).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / name
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        convert(cnn(), path) if name == "out.onnx" else storage.save_bounds({}, path)
    assert os.listdir(tmp_path) == []


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular file"):
        storage.check_target(tmp_path / "pipe", True)
    with pytest.raises(IsADirectoryError):
        storage.check_target(tmp_path, True)


def test_what_counts_as_there(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "x.data").touch()
    for name in ("dangling", "x"):
        with pytest.raises(FileExistsError):
            storage.check_target(tmp_path / name, False)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"], ids=["long", "nul"])
def test_names_that_no_file_has(tmp_path, name):
    with pytest.raises(ValueError, match=r"path .* must"):
        storage.check_target(tmp_path / name, True)
    with pytest.raises(ValueError, match=r"source \(.*\) must be a path that a file can have"):
        convert(tmp_path / name)


def test_a_name_that_is_not_utf8(tmp_path):
    """It is read, and not written: onnx takes no such path."""
    path = tmp_path / os.fsdecode(b"\xff.onnx")
    path.write_bytes(cnn().SerializeToString())
    assert convert(path).difference < 1e-6
    with pytest.raises(ValueError, match=r"path \(.*\) must be text in UTF-8"):
        convert(cnn(), path, overwrite=True)


def test_mode_stays_and_stale_data_goes(tmp_path):
    path = tmp_path / "x"
    onnx.save_model(cnn(), path, save_as_external_data=True, location="x.data", size_threshold=0)
    assert (tmp_path / "x.data").exists()
    (tmp_path / "new").write_text("new")
    path.chmod(0o600)
    storage.publish(tmp_path / "new", path, True)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["x"]


def test_one_of_eight_writers_wins(tmp_path):
    def write(number: int) -> bool:
        file = tmp_path / str(number)
        file.write_text(str(number))
        try:
            storage.publish(file, tmp_path / "x", False)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 1


def test_attributes_are_found_by_name():
    text = "i = Cast<to = 6>(x)\n f = Cast<saturate = 1, to = 1>(i)\n y = MatMul(f, w)"
    result = convert(model(text, {"x": ("N", 4)}, {"w": random(4, 3)}, opset=19), dtype=torch.float64).model
    casts = [node for node in result.graph.node if node.op_type == "Cast"]
    assert [helper.get_node_attr_value(node, "to") for node in casts] == [TensorProto.INT32, TensorProto.DOUBLE]
    assert "Cast" in operators(result)


def test_reversed_nodes_are_sorted_in_linear_time():
    graph = onnx.GraphProto()
    nodes = [NodeProto(op_type="Relu", input=[f"v{i}"], output=[f"v{i + 1}"]) for i in range(20_000)]
    graph.node.extend(reversed(nodes))
    reader._sort(graph)
    assert list(graph.node) == nodes


def test_functions_are_counted_before_they_are_written_out():
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    proto = model("y = Relu(x)", {"x": ("N", 4)}, opset=17)
    proto.opset_import.append(opsets[1])
    for i in range(40):
        callee, domain = (f"f{i + 1}", "f") if i < 39 else ("Relu", "")
        nodes = [helper.make_node(callee, [a], [b], domain=domain) for a, b in ("ab", "bc")]
        proto.functions.append(helper.make_function("f", f"f{i}", ["a"], ["c"], nodes, opsets))
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "f0", "f"
    with pytest.raises(ValueError, match=str(2**40)):
        reader.read(proto)


def test_data_of_others_is_never_replaced(tmp_path):
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    data = tmp_path / "out.onnx.data"
    onnx.save_model(cnn(), source, save_as_external_data=True, location=data.name, size_threshold=0)
    kept = data.read_bytes()
    packed, link = tmp_path / "in.onnx.gz", tmp_path / "folder" / "in.onnx"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    link.parent.mkdir()
    link.symlink_to(source)
    for path in (source, packed, link):
        for replaced in (target, data):
            with pytest.raises(ValueError, match="the source has its data there"):
                convert(path, replaced, overwrite=True)
    target.write_text("no model")
    with pytest.raises(FileExistsError, match="not the data of"):
        convert(cnn(), target, overwrite=True)
    assert data.read_bytes() == kept
    assert target.read_text() == "no model"


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(*args):
        raise PermissionError

    monkeypatch.setattr("os.link", link)
    convert(cnn(), tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    with pytest.raises(FileExistsError, match="is there already"):
        convert(cnn(), tmp_path / "out.onnx")


def test_tensors_that_share_a_file_are_counted_each(tmp_path):
    with (tmp_path / "x.data").open("wb") as file:
        file.truncate(2**26)  # sparse
    proto = cnn()
    for number in range(200):
        tensor = proto.graph.initializer.add(name=f"t{number}", dims=[2**24], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="x.data")
        tensor.external_data.add(key="length", value=str(2**40))
    (tmp_path / "x.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(
        ValueError, match=r"external data of tensor t0 .* must not make that of the model larger than 134217728"
    ):
        convert(tmp_path / "x.onnx")


GREEDY = {
    "tiles": "\n".join(f"t{n + 1} = Tile(t{n}, r)" for n in range(20)) + "\ny = Gather(t20, x)",
    "constants": "\n".join(f"c{n} = ConstantOfShape(s)" for n in range(9)) + "\ny = Sum(x, c0, c1, c2, c3, c4, c5)",
    "product": "p = MatMul(a, b)\ny = Add(p, x)",
    "values": "\n".join(f"v{n + 1} = Expand(v{n}, s)" for n in range(9)) + "\ny = Relu(v9)",
}


@pytest.mark.parametrize("nodes", GREEDY.values(), ids=GREEDY)
def test_what_a_file_asks_for_is_counted_before_it_is_made(nodes, monkeypatch):
    """Small files that ask for much, by a smaller limit."""
    monkeypatch.setattr(inference, "PROTOBUF_BYTES", 2**20)
    nodes = nodes.replace("(v0,", "(x,").replace("(t0,", "(a,")
    constants = {"r": [2, 8], "s": [2**6, 2**9], "a": random(2**9, 1), "b": random(1, 2**9)}
    arrays = {name: array if name in "ab" else np.array(array) for name, array in constants.items()}
    proto = model(nodes.replace("y = Gather(t20, x)", "y = Add(t20, x)"), {"x": (1, 1)}, arrays)
    with pytest.raises(ValueError, match=r"node \w+: \w+: constants and values .* at most 1\.05 MB together"):
        convert(proto)
