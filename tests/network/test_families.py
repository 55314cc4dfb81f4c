"""Networks of the families that people use, against themselves in float64."""

import pytest
import torch
from torch import nn

from conv2affine import SparseLinear, to_linear_network, to_mlp
from conv2affine.network.torch.models import decompositions
from tests.conftest import long_but
from tests.network.models import OTHERS, PIECEWISE, Several, build, samples

MERGES = ("auto", "always", "never")


def close(result, expected):
    torch.testing.assert_close(result, expected, atol=1e-11 * float(expected.detach().abs().max().clamp(min=1)), rtol=0)


NAMES = [*PIECEWISE, *OTHERS]
SHORT = ("resnet", "unet", "shufflenet", "squeeze-excite", "transformer", "vgg-bn")


@pytest.mark.parametrize("name", long_but(SHORT, NAMES))
def test_network(name):
    make, shape = {**PIECEWISE, **OTHERS}[name]
    model = build(make)
    x = samples(5, *shape)
    for merge, layout in zip(MERGES, ("auto", "dense", "sparse"), strict=True):
        net = to_linear_network(model, x[:1], merge=merge, layout=layout)
        close(net(x), model(x))
        kinds = {"dense": (nn.Linear,), "sparse": (SparseLinear,), "auto": (nn.Linear, SparseLinear)}[layout]
        assert {type(module) for module in net.children()} <= {
            *kinds,
            *(type(m) for m in net.children() if "PerSample" in type(m).__name__),
        }


@pytest.mark.parametrize("name", long_but(SHORT, PIECEWISE))
def test_chain(name):
    make, shape = PIECEWISE[name]
    model = build(make)
    x = samples(5, *shape)
    mlp = to_mlp(model, x[:1])
    close(mlp(x), model(x).flatten(1))
    kinds = [type(layer).__name__.removeprefix("Sparse") for layer in mlp]
    assert kinds == ["Flatten", *["Linear", "ReLU"] * (len(kinds) // 2 - 1), "Linear"]


def test_chain_carries_what_is_known_to_be_positive_once():
    """A residual block after a ReLU is as wide as its branch and its shortcut together."""
    model = build(PIECEWISE["resnet"][0])[2]
    mlp = to_mlp(nn.Sequential(nn.ReLU(), model), samples(1, 4, 4, 4))
    assert [layer.out_features for layer in mlp if isinstance(layer, nn.Linear)] == [64, 128, 64, 64]


def test_several_inputs_and_outputs():
    model = build(Several)
    image, vector = samples(4, 2, 3), samples(4, 6)
    net = to_linear_network(model, (image, vector))
    result, expected = net(image, vector), model(image, vector)
    assert result.keys() == expected.keys()
    close(result["both"], expected["both"])
    close(result["pair"][0], expected["pair"][0])
    assert torch.equal(result["pair"][1], vector)
    assert torch.equal(result["largest"], expected["largest"])


def test_batch_norm_costs_nothing():
    """One layer for each convolution, and one entry for each tap: no more than the convolutions alone."""
    model = build(PIECEWISE["vgg-bn"][0])
    net = to_linear_network(model, samples(1, *PIECEWISE["vgg-bn"][1]))
    names = [name for name, _ in net.named_children()]
    assert names == ["_0_0", "_2_0", "_3_0", "_6", "_9"]


@pytest.mark.parametrize("pad", [nn.ZeroPad2d((1, 2, 0, 1)), nn.ReflectionPad2d(1), nn.ConstantPad2d(1, 0.5)])
def test_padding_and_batch_norm_belong_to_their_convolution(pad):
    model = build(lambda: nn.Sequential(pad, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    plan = to_linear_network(model, samples(2, 3, 6, 6)).plan
    assert [row.name for row in plan.layers] == ["1, 2"]


def test_a_padded_convolution_is_copied():
    plan = to_linear_network(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)).double(), samples(2, 3, 6, 6)).plan
    assert [(row.name, row.kind) for row in plan.rows] == [("1", "copied")]


def test_repvgg_is_one_layer():
    net = to_linear_network(build(PIECEWISE["repvgg"][0]), samples(1, 3, 8, 8))
    assert len(list(net.children())) == 1


@pytest.mark.parametrize("name", long_but(["resnet"], ["resnet", "densenet", "unet"]))
def test_auto_has_no_more_entries_than_always(name):
    make, shape = PIECEWISE[name]
    model, x = build(make), samples(1, *shape)
    auto, always, never = (to_linear_network(model, x, merge=merge).plan.nnz for merge in MERGES)
    assert auto <= always
    assert auto <= never


@pytest.mark.long
@pytest.mark.parametrize("name", [*PIECEWISE, *OTHERS])
def test_float32_is_not_refused_for_its_rounding(name):
    make, shape = {**PIECEWISE, **OTHERS}[name]
    x = samples(2, *shape, dtype=torch.float32)
    for convert in (to_linear_network, to_mlp) if name in PIECEWISE else (to_linear_network,):
        result = convert(build(make, torch.float32), 100 * x)
        expected = build(make)(x.double())
        torch.testing.assert_close(result(x).double(), expected.reshape(result(x).shape), atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export about itself
@pytest.mark.parametrize("name", ["vgg-bn", "transformer"])
def test_operators_are_decomposed_as_by_pytorchs_public_function(name, monkeypatch):
    make, shape = {**PIECEWISE, **OTHERS}[name]
    program = torch.export.export(build(make), (samples(1, *shape),))
    decomposed = decompositions.decompose(program)
    monkeypatch.setattr(decompositions, "ARGUMENTS", [])  # as with a PyTorch whose function takes others
    assert decomposed.graph_module.code == decompositions.decompose(program).graph_module.code
    assert decomposed.graph_module.code != program.graph_module.code


def test_float32_is_rounded_once():
    make, shape = PIECEWISE["resnet"]
    model, x = build(make), samples(3, *shape)
    exact, rounded = to_linear_network(model, x), to_linear_network(model, x, dtype=torch.float32)
    for name, tensor in exact.state_dict().items():
        weight, other = (
            t.to_dense() if t.layout is torch.sparse_csr else t for t in (tensor, rounded.state_dict()[name])
        )
        assert torch.equal(weight.float(), other)
    assert rounded(x.float()).dtype is torch.float32
