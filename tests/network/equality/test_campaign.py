"""Injected faults are all found and named, and equal networks are never called different."""

import importlib.util
import os

import numpy as np
import pytest
import torch

from conv2affine import check, onnx
from tests.network.equality.faults import FAULTS, MODULES, faulty
from tests.network.equality.files import FILE_FAULTS, FILE_PAIRS, faulty_file
from tests.network.equality.pairs import CHANGES, FILE_CHANGES, PIECEWISE_CHANGES, VGG_CHANGES, file_pair, module_pair
from tests.network.models import PIECEWISE
from tests.shared_networks import FILES, FOLDER, NO_MLP, REFUSED

SHORT = (
    *("resnet-epsilon", "temporal-causal", "resized-align-corners", "resized-softmax-axis", "shufflenet-groups"),
    "squeeze-excite-bias",
)
SHORT_FILES = ("resize-opset", "softmax-opset", "norm-epsilon")
SHORT_PAIRS = ("vgg-bn-fused", "resnet-linear-sparse", "mobilenet-chain-sparse")


def cases(table, short):
    """Rows by name as parameters, all of them long but some."""
    return [pytest.param(*row, id=name, marks=() if name in short else pytest.mark.long) for name, row in table.items()]


def joined(table):
    return {f"{network}-{name}": (network, name) for network, names in table.items() for name in names}


def needs(change):
    """Skip what a tool makes that is not there."""
    for tool in ("onnxsim", "onnxslim"):
        if change.startswith(tool) and importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")


def _within(part, name):
    """The module, for a part of it."""
    return name if part.startswith(f"{name}.") else part


@pytest.mark.parametrize(("network", "fault"), cases(joined(FAULTS), SHORT))
def test_faults_of_modules(network, fault):
    first, second, x, name = faulty(network, fault)
    for box in (None, (-4, 4)):
        result = check(first, second, x, box=box)
        assert result.verdict == "different", result
        assert [{_within(each, name) for each in names} for names in result.origin] == [{name}] * 2, result
        assert result.difference <= result.bound
        assert box is None or np.isfinite(result.bound) == (network in PIECEWISE)
        [witness] = result.witness
        point = torch.from_numpy(witness).float()
        with torch.no_grad():
            off = float((first(point) - second(point)).abs().max())
        assert result.difference == pytest.approx(off, rel=1e-2, abs=1e-7)
        assert box is None or ((witness >= box[0]) & (witness <= box[1])).all()


@pytest.mark.parametrize("fault", cases({name: (name,) for name in (*FILE_FAULTS, *FILE_PAIRS)}, SHORT_FILES))
def test_faults_of_files(fault):
    if fault in FILE_FAULTS and not FOLDER.exists():
        pytest.skip(f"the networks of other people are not there: {FOLDER}")
    first, second, name = faulty_file(fault)
    result = onnx.check(first, second)
    assert (result.verdict, result.origin) == ("different", ((name,), (name,))), result


OLD = ("old-exporter", "onnxsim", "onnxslim", "opset-17")
# What PyTorch does not export, or trace.
MISSING = {"shufflenet": OLD, "transformer": (*OLD, "traced")}
PAIRS = {
    network: [
        change
        for change in (
            *CHANGES,
            *(PIECEWISE_CHANGES if network in PIECEWISE else ()),
            *(VGG_CHANGES if network == "vgg-bn" else ()),
        )
        if change not in MISSING.get(network, ())
    ]
    for network in MODULES
}


# Every second one: all of them take seven minutes of a core, and run with CAMPAIGN=all.
STEP = 1 if os.environ.get("CAMPAIGN") == "all" else 2
RUN = {name: row for n, (name, row) in enumerate(joined(PAIRS).items()) if n % STEP == 0 or name in SHORT_PAIRS}


@pytest.mark.parametrize(("network", "change"), cases(RUN, SHORT_PAIRS))
def test_modules_that_are_equal(network, change):
    needs(change)
    net, other, x = module_pair(network, change)
    result = check(net, other, x, box=(-1, 1))
    assert (result.verdict, result.origin) == ("equal", ((), ())), result
    assert np.isfinite(result.bound) == (network in PIECEWISE)


@pytest.mark.parametrize(("network", "change"), [("vgg-bn", "permuted"), ("temporal", "chain-sparse")])
def test_which_is_first_does_not_matter(network, change):
    net, other, x = module_pair(network, change)
    result = check(other, net, x, box=(-1, 1))
    assert (result.verdict, result.origin) == ("equal", ((), ())), result


# What a tool does not make, or not as valid ONNX: onnxsim 0.8.1 moves constants behind the nodes that read them.
UNSORTED = (
    *("add", "sub", "matmul", "gemm", "conv", "batchnorm", "reshape", "reshape_with_dimension_inference"),
    *("unsqueeze", "squeeze_with_axes", "cast_int_to_float", "dropout_training_mode_false"),
)
NOT_MADE = {
    **{f"Marabou--{name}": ("onnxsim",) for name in UNSORTED},
    **{f"Marabou--{name}": ("onnxslim",) for name in ("constant", "cifar_base_kw")},
    "Marabou--softmax-last-layer": ("graph-double",),
}
# An order of maxima that another tree has.
UNDECIDED_FILES = {"vnncomp2022_benchmarks--tllBench_n=2_N=M=8_m=1_instance_0_0": ("graph", "mlp")}


def file_changes(name):
    """The changes that a file can take."""
    for change in FILE_CHANGES:
        refused = NO_MLP if change == "mlp" else REFUSED
        if not any(name.endswith(each) for each in refused) and change not in NOT_MADE.get(name, ()):
            yield change


FILE_PAIRS_OF = {path.stem: tuple(file_changes(path.stem)) for path in FILES}


@pytest.mark.long
@pytest.mark.parametrize(("name", "change"), cases(joined(FILE_PAIRS_OF), ()))
def test_files_that_are_equal(name, change):
    needs(change)
    first, second = file_pair(name, change)
    result = onnx.check(first, second)
    if change in UNDECIDED_FILES.get(name, ()):
        assert result.verdict == "undecided"
        return
    assert (result.verdict, result.origin) == ("equal", ((), ())), result
