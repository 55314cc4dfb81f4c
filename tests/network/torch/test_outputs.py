"""Outputs of networks: constants of any dtype, and containers of any registered type."""

import collections
import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from conv2affine import onnx, to_linear, to_linear_network, to_mlp
from tests.network.models import Function, samples

X = samples(3, 4, dtype=torch.float32)
CONSTANTS = {
    "int64": torch.tensor([[2**53 + 1, -(2**62) - 1]]),
    "bool": torch.tensor([[True, False]]),
    "uint8": torch.tensor([[0, 255]], dtype=torch.uint8),
    "float64": torch.tensor([[1 / 3, 1e300]], dtype=torch.float64),
    "float16": torch.tensor([[1 / 3, 6e4]], dtype=torch.float16),
    "complex": torch.tensor([[1 + 2j, -1j]]),
    "not-finite": torch.tensor([[torch.inf, torch.nan, -0.0]]),
    "float32": torch.tensor([[1 / 3, 1e-42]]),
    "vector": torch.tensor([2**53 + 1]),
    "volume": torch.arange(2**60, 2**60 + 6).view(1, 2, 3),
    "empty": torch.zeros(1, 0, dtype=torch.int64),
}


@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS)
@pytest.mark.parametrize("is_only", [False, True])
def test_constants_are_copied(constant, is_only):
    def function(x):
        expanded = constant.expand(len(x), *constant.shape[1:])
        return expanded if is_only else (2 * x, expanded)

    net = to_linear_network(Function(function), X)
    for x in (X, X[:0], torch.full((2, 4), torch.inf)):
        result = net(x) if is_only else net(x)[1]
        torch.testing.assert_close(result, constant.expand(len(x), *constant.shape[1:]), rtol=0, atol=0, equal_nan=True)
    result[:] = 0  # the next call does not see it
    repeated = net(X) if is_only else net(X)[1]
    torch.testing.assert_close(repeated, constant.expand(3, *constant.shape[1:]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("convert", [to_mlp, to_linear])
def test_constants_of_other_dtypes_are_no_vector(convert):
    model = nn.Sequential(Function(lambda x: (2 * x, CONSTANTS["int64"].expand(len(x), -1))))
    with pytest.raises(ValueError, match=r"has outputs of one dtype, torch.float32, .* constant output of torch.int64"):
        convert(model, X)


def test_constants_of_other_dtypes_are_not_written_to_files(tmp_path):
    model = Function(lambda x: (2 * x, CONSTANTS["int64"].expand(len(x), -1)))
    with pytest.raises(NotImplementedError, match=r"one is a constant of torch.int64; leave it out"):
        onnx.export(model, X, tmp_path / "x.onnx")


def test_one_number_is_no_output():
    with pytest.raises(ValueError, match=r"output .* must have one row per sample, and is one number; expand it"):
        to_linear_network(Function(lambda x: (x, torch.tensor(3))), X)


Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Box:
    def __init__(self, content):
        self.content = content


torch.export.register_dataclass(Output)
pytree.register_pytree_node(Box, lambda box: ([box.content], None), lambda content, _: Box(*content))

CONTAINERS = {
    "ordered-dict": lambda x: collections.OrderedDict(z=x, a=2 * x),
    "default-dict": lambda x: collections.defaultdict(list, z=x, a=2 * x),
    "deque": lambda x: collections.deque([x, 2 * x], maxlen=3),
    "named-tuple": lambda x: Pair(x, 2 * x),
    "dataclass": lambda x: Output(x),
    "pytree-node": lambda x: Box(2 * x),
    "return-type": lambda x: torch.max(x, 1),
    "dict": lambda x: {"z": x, "a": (2 * x, [None, 3, "word"])},
    "nested": lambda x: {"a": Pair(Output(x, 2 * x), 3), "b": [collections.OrderedDict(c=x.relu())]},
    "constants": lambda x: collections.OrderedDict(a=x.new_ones(len(x), 2, dtype=torch.int64)),
}


def assert_same(got, expected):
    """Equal, container by container."""
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        assert getattr(got, "default_factory", None) is getattr(expected, "default_factory", None)
        assert_same(list(got.values()), list(expected.values()))
    elif isinstance(expected, list | tuple | collections.deque):
        assert len(got) == len(expected)
        assert getattr(got, "maxlen", None) == getattr(expected, "maxlen", None)
        for pair in zip(got, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, Output | Box):
        assert_same(vars(got), vars(expected))
    else:
        assert got == expected


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export about itself
@pytest.mark.parametrize("function", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_are_those_of_the_model(function):
    model = Function(function)
    net = to_linear_network(model, X)
    for again in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_same(again(X), model(X))
    program = torch.export.export(net, (X,), dynamic_shapes=[{0: torch.export.Dim("batch")}])
    larger = samples(5, 4, dtype=torch.float32)  # only the leaves: torch.export makes an immutable_dict of fx's dicts
    assert_same(pytree.tree_leaves(program.module()(larger)), pytree.tree_leaves(model(larger)))


class Unregistered(dict):
    pass


def test_containers_that_pytorch_does_not_know_are_named():
    with pytest.raises(NotImplementedError, match=r"Unregistered'> in output.* not a known type"):
        to_linear_network(Function(lambda x: Unregistered(a=x)), X)


@pytest.mark.parametrize("convert", [to_mlp, to_linear])
@pytest.mark.parametrize("function", [torch.Tensor.flatten, lambda x: x.reshape(-1, 2)], ids=["flatten", "reshape"])
def test_rows_of_parts_of_samples_are_no_vector_of_each(convert, function):
    model = Function(function)
    torch.testing.assert_close(to_linear_network(model, X)(X), model(X))
    with pytest.raises(ValueError, match=r"output 0 must have one row per sample, .* keep the batch axis"):
        convert(model, X)
