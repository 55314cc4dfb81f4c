"""Injected faults are all found and named, and equal networks are never called different."""

import importlib.util

import numpy as np
import pytest
from equality_faults import FAULTS, FILE_FAULTS, FILE_PAIRS, MODULES, faulty, faulty_file
from equality_pairs import CHANGES, FILE_CHANGES, PIECEWISE_CHANGES, file_pair, module_pair
from network_models import PIECEWISE
from shared_networks import FILES, FOLDER, NO_MLP, REFUSED

from conv2affine import check, onnx

SHORT = ("resnet-epsilon", "temporal-causal", "resized-softmax-axis", "resize-opset")
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


@pytest.mark.parametrize("fault", cases({name: (name,) for name in (*FILE_FAULTS, *FILE_PAIRS)}, SHORT))
def test_faults_of_files(fault):
    if fault in FILE_FAULTS and not FOLDER.exists():
        pytest.skip(f"the networks of other people are not there: {FOLDER}")
    first, second, name = faulty_file(fault)
    result = onnx.check(first, second)
    assert (result.verdict, result.origin) == ("different", ((name,), (name,))), result


PAIRS = {network: (*CHANGES, *(PIECEWISE_CHANGES if network in PIECEWISE else ())) for network in MODULES}


@pytest.mark.parametrize(("network", "change"), cases(joined(PAIRS), SHORT_PAIRS))
def test_modules_that_are_equal(network, change):
    needs(change)
    net, other, x = module_pair(network, change)
    result = check(net, other, x, box=(-1, 1))
    assert (result.verdict, result.origin) == ("equal", ((), ())), result
    assert np.isfinite(result.bound) == (network in PIECEWISE)


def file_changes(name):
    """The changes that a file can take."""
    for change in FILE_CHANGES:
        refused = NO_MLP if change == "mlp" else REFUSED
        if not any(name.endswith(each) for each in refused):
            yield change


FILE_PAIRS_OF = {path.stem: tuple(file_changes(path.stem)) for path in FILES}


@pytest.mark.long
@pytest.mark.parametrize(("name", "change"), cases(joined(FILE_PAIRS_OF), ()))
def test_files_that_are_equal(name, change):
    needs(change)
    first, second = file_pair(name, change)
    result = onnx.check(first, second)
    assert (result.verdict, result.origin) == ("equal", ((), ())), result
