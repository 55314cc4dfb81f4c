"""Results are models themselves, of any layout: they are converted again, bounded, checked and exported."""

import pytest
import torch
from torch import nn

from conv2affine import SparseLinear, check, linear_region, onnx, to_linear, to_linear_network, to_mlp
from tests.conftest import long_but
from tests.network.models import build, conv_bn, samples

LAYOUTS = ("dense", "sparse", "auto")
MAKERS = {"to_linear_network": to_linear_network, "to_mlp": to_mlp}


@pytest.fixture
def net():
    layers = conv_bn(2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    return build(lambda: nn.Sequential(*layers))


@pytest.fixture
def x():
    return samples(3, 2, 6, 6)


@pytest.mark.parametrize("layout", long_but(["sparse"], LAYOUTS))
@pytest.mark.parametrize("make", MAKERS)
def test_results_are_converted_again(make, layout, net, x):
    first = MAKERS[make](net, x, layout=layout)
    second = MAKERS[make](first, x, layout="dense", **({} if make == "to_mlp" else {"merge": "never"}))
    torch.testing.assert_close(second(x), first(x), rtol=0, atol=1e-12)
    assert check(net, second, x).verdict == "equal"


def test_a_file_has_the_same_nodes_when_it_is_converted_again(net, x):
    """Max pooling, which is written as Gather and ReduceMax, gets no matrix for the Gather."""
    first = onnx.export(net.float(), x.float()).model
    second = onnx.convert(first).model
    assert [node.op_type for node in second.graph.node] == [node.op_type for node in first.graph.node]


def test_a_fault_in_a_sparse_layer_is_found_there(net, x):
    faulty = to_linear_network(net, x, layout="sparse")
    name, layer = next((name, each) for name, each in faulty.named_children() if isinstance(each, SparseLinear))
    layer.values.data[len(layer.values) // 2] += 1e-3
    result = check(net, faulty, x)
    assert (result.verdict, result.origin[1]) == ("different", (name,))


@pytest.mark.parametrize("layout", long_but(["sparse"], LAYOUTS[1:]))
def test_bounds_and_regions_of_sparse_layers_are_those_of_dense_ones(layout, net, x):
    sparse, dense = (to_mlp(net, x, layout=each) for each in (layout, "dense"))
    box = x[:1] - 0.01, x[:1] + 0.01
    ends = [to_mlp(each, x[:1], box=box).bounds[-1] for each in (sparse, dense)]
    for first, second in zip(*ends, strict=True):  # the chains have other layers, as zeros of dense ones are entries
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
    assert check(net, sparse, x, box=box).bound < 1e-9
    regions = [linear_region(each, x[:1]) for each in (sparse, dense)]
    torch.testing.assert_close(regions[0].weight, regions[1].weight, rtol=0, atol=1e-12)
    assert float(regions[0].radius) == pytest.approx(float(regions[1].radius), rel=1e-9)


def random_sparse(rows, cols, dtype=torch.float64):
    weight = samples(rows, cols)
    weight[torch.rand(rows, cols) < 0.5] = 0
    return SparseLinear(weight.to(dtype).to_sparse_csr(), samples(rows).to(dtype))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_inputs_of_any_shape(shape):
    layer = random_sparse(5, 4)
    x = samples(3, *shape)
    fc = to_linear(layer, x)
    torch.testing.assert_close(fc(x.flatten(1)), layer(x).flatten(1), rtol=0, atol=1e-14)
    if len(shape) == 1:
        assert torch.equal(fc.weight, layer.weight.to_dense())


def test_the_layer_is_copied_and_not_changed():
    layer = random_sparse(5, 4)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    fc = to_linear(layer, samples(1, 4), layout="sparse")
    fc.values.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    net = to_linear_network(nn.Sequential(layer), samples(1, 4), layout="sparse")
    assert [row.kind for row in net.plan.rows] == ["copied"]


def test_columns_that_do_not_ascend_or_occur_twice():
    parts = torch.tensor([0, 3, 4]), torch.tensor([2, 0, 2, 1]), torch.tensor([1.0, 2.0, 4.0, 8.0]).double()
    layer = SparseLinear(torch.sparse_csr_tensor(*parts, (2, 3), check_invariants=False))
    fc = to_linear(layer, samples(1, 3), layout="sparse")
    assert fc.weight.to_dense().tolist() == [[2, 0, 5], [0, 8, 0]]
    assert layer.values.tolist() == [1, 2, 4, 8]


def test_half_precision():
    model = nn.Sequential(random_sparse(5, 4, torch.float16), nn.ReLU(), random_sparse(3, 5, torch.float16))
    x = samples(1, 4).half()
    result = check(model, nn.Sequential(*(dense(each) for each in model)), x)
    assert result.verdict != "different"


def dense(layer):
    """The same layer as an nn.Linear."""
    if not isinstance(layer, SparseLinear):
        return layer
    linear = nn.Linear(layer.in_features, layer.out_features, dtype=layer.values.dtype)
    linear.weight.data, linear.bias.data = layer.weight.to_dense().data, layer.bias.data
    return linear


def test_a_sparse_network_becomes_a_file(net, x):
    sparse = to_linear_network(net.float(), x.float(), layout="sparse")
    proto = onnx.export(sparse, x.float()).model
    assert check(net, proto, x.float()).verdict == "equal"


@pytest.mark.parametrize("name", ["relu", "ones_like", "sines_like"])
def test_operators_of_others_with_such_a_name_have_no_rule(name):
    with torch.library._scoped_library("someone_else", "DEF") as library:
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, lambda x: x.sin(), "CompositeExplicitAutograd")
        torch.library.register_fake(f"someone_else::{name}", lambda x: torch.empty_like(x), lib=library)

        class Net(nn.Module):
            def forward(self, x):
                return getattr(torch.ops.someone_else, name)(x)

        x = samples(2, 3)
        net = to_linear_network(Net(), x)
        assert [row.kind for row in net.plan.rows] == [f"kept: someone_else::{name}"]
        torch.testing.assert_close(net(x), x.sin())
