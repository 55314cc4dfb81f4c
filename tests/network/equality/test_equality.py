"""Whether two networks are equal: inputs and outputs, files, the command line; the campaign has faults and pairs."""

import copy
import json

import numpy as np
import onnx as standard
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import conv2affine
from conv2affine import check, onnx
from conv2affine.cli import app
from tests.network.equality import faults as equality_faults
from tests.network.equality.files import fused_norm
from tests.network.models import Function
from tests.onnx.models import model as model_of
from tests.onnx.models import random


def test_outputs_of_other_sizes_are_different():
    first, second = nn.Linear(3, 2), nn.Linear(3, 4)
    result = check(first, second, torch.rand(1, 3))
    assert (result.verdict, result.difference) == ("different", np.inf)
    assert result.text().startswith("different: their outputs have other sizes, or other infinities")


def file(size=3):
    return model_of("y = Gemm(x, w)", {"x": ("N", size)}, {"w": random(size, 2)})


MIXING = {
    "order": lambda x: x.flip(0),
    "sum": lambda x: x.cumsum(0),
    "number": lambda x: x * len(x),
    "position": lambda x: x + torch.arange(len(x)).view(-1, 1),
    "mean": lambda x: x - x.mean(0),
    "order-of-a-list": lambda x: x.flip(0).unbind(0),
    "longer-list": lambda x: [*x.unbind(0), *x.unbind(0)[1:]],
    "mask": lambda x: x > x.mean(0) - 1,
}


@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING)
def test_what_equals_another_for_one_sample_only_is_refused(function):
    for number, name in enumerate("ab"):
        pair = Function(lambda x: x * 1), Function(function)
        with pytest.raises(ValueError, match=rf"^{name}: .* mixes the samples of a batch"):
            check(*(pair if number else pair[::-1]), torch.rand(1, 3))


NOT_MIXING = {
    "other-axis": lambda x: x.relu().unsqueeze(0),
    "squeezed": lambda x: x.relu().unsqueeze(1).squeeze(),
    "constant": lambda x: (x.relu(), torch.ones(2, 3)),
    "rows-of-samples": lambda x: x.relu().view(-1, 1),
    "rows-of-outputs": lambda x: torch.cat([x.relu(), x.abs()]),
    "last-axis": lambda x: x.relu().t().unsqueeze(1).squeeze(),
    "list": lambda x: x.relu().unbind(0),
    "lists": lambda x: (x.relu().unbind(0), x.abs().unbind(0)),
    "list-of-pairs": lambda x: [*zip(x.relu().unbind(0), x.abs().unbind(0), strict=True)],
    "mask": lambda x: (x.relu(), x > 0),
    "number-that-is-no-tensor": lambda x: (x.relu(), len(x)),
    "cancels": lambda x: (x @ torch.ones(3, 5) * 1e7 + 1e7) - 1e7,
    "of-one-only": lambda x: x.relu().view(1, 3),
}


@pytest.mark.parametrize("function", NOT_MIXING.values(), ids=NOT_MIXING)
def test_where_the_batch_is_in_an_output_does_not_matter(function):
    assert check(Function(function), Function(function), torch.rand(1, 3)).verdict == "equal"


@pytest.mark.parametrize("box", [None, (-1, 1)], ids=["everywhere", "box"])
def test_outputs_may_have_no_elements(box):
    result = check(Function(lambda x: x[:, :0]), Function(lambda x: x.relu()[:, :0]), torch.rand(1, 3), box=box)
    assert (result.verdict, result.difference) == ("equal", 0)


@pytest.mark.parametrize(("factor", "verdict"), [(1, "undecided"), (2, "different")])
def test_numbers_whose_sums_overflow_are_compared_by_runs(factor, verdict):
    mask = torch.tensor([False, True, False])

    def largest(x):
        return x.masked_fill(mask, torch.finfo(torch.float64).min).amax(1, keepdim=True).relu()

    result = check(Function(largest), Function(lambda x: factor * largest(x)), torch.rand(1, 3).double())
    assert result.verdict == verdict


def test_refusals():
    with pytest.raises(ValueError, match="a and b must take the same inputs, and have 3 and 4 elements"):
        onnx.check(file(3), file(4))
    with pytest.raises(ValueError, match=r"a comparison takes floating-point numbers, .* torch\.int64; pass x\.float"):
        check(nn.Embedding(3, 2), nn.Embedding(3, 2), torch.zeros(1, 1, dtype=torch.long))
    cast = model_of("c = Cast<to = 1>(x)\ny = Relu(c)", {"x": ("N", 3)}, types={"x": 7})
    with pytest.raises(NotImplementedError, match=r"^a: inputs .* and x is not; leave out the Cast that reads it"):
        onnx.check(cast, cast)
    with pytest.raises(
        ValueError, match=r"x must have the inputs of a, which are x of \(1, 3\) for one sample, got \(1"
    ):
        check(file(), file(), torch.rand(1, 4))
    with pytest.raises(TypeError, match=r"x must be a tensor, or a tuple of tensors .*, got str"):
        check(file(), file(), "x")


@pytest.mark.parametrize("tolerance", [-1, float("nan")], ids=str)
def test_tolerances_are_checked(tolerance):
    result = check(nn.Linear(2, 2), nn.Linear(2, 2), torch.rand(1, 2))
    for ask in (result.is_within, result.verdict_for, result.text, result.summary):
        with pytest.raises(ValueError, match=f"tolerance must be at least 0, got {tolerance}"):
            ask(tolerance)


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("place", ["weight", "bias"])
@pytest.mark.filterwarnings("error")
def test_a_network_with_nan_or_infinities_is_different(place, number):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        getattr(other[2], place).fill_(number)
    for first, second in ((model, other), (other, model)):
        result = check(first, second, torch.rand(1, 3))
        assert (result.verdict, result.difference, result.origin) == ("different", np.inf, (("2",), ("2",)))
    assert check(other, copy.deepcopy(other), torch.rand(1, 3)).verdict != "different"


def test_steps_that_part_where_no_input_shows_it():
    """A weight differs that reads a unit which is 0 in the box."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    other = copy.deepcopy(model)
    other[0].bias.data[0] = model[0].bias.data[0] = -1e3  # never active in the box
    other[2].weight.data[0, 0] += 1
    result = check(model, other, torch.zeros(1, 3), box=(0, 1))
    assert result.verdict == "within"
    assert result.bound < 1e-4
    assert result.origin == (("2",), ("2",))
    assert result.is_within(1e-4)
    assert result.is_within() is None


@pytest.mark.parametrize("box", [None, (-1, 1)])
def test_a_relu_of_what_is_never_positive_is_zero(box):
    """As in the pair relu(v) - relu(-v) that a chain carries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    for parameter in (model[2].weight, model[2].bias):
        parameter.data[0] = -parameter.data[0].abs()
    without = nn.Sequential(*model[:2], nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    without[2].weight.data, without[2].bias.data = model[2].weight.data[1:], model[2].bias.data[1:]
    without[4].weight.data, without[4].bias.data = model[4].weight.data[:, 1:], model[4].bias.data
    for pair in ((model, without), (without, model)):
        result = check(*pair, torch.rand(1, 3), box=box)
        assert result.verdict == "equal"
        assert box is None or result.difference <= result.bound < 1e-5


def renamed(proto):
    """The same with other names, and nodes in another order."""
    other = standard.ModelProto.FromString(proto.SerializeToString())
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in ("x", "y") else f"{name}_" for name in names]
    for tensor in other.graph.initializer:
        tensor.name += "_"
    return other


FILES = {
    "copy": lambda: (fused_norm(None), fused_norm(None)),
    "fused": lambda: (fused_norm(None), fused_norm()),
    "opset": lambda: (fused_norm(opset=13), fused_norm(opset=17)),
    "renamed": lambda: (fused_norm(None), renamed(fused_norm(None))),
    "converted": lambda: (fused_norm(), onnx.convert(fused_norm()).model),
    "float64": lambda: (fused_norm(), onnx.convert(fused_norm(), dtype=torch.float64).model),
}


@pytest.mark.parametrize("pair", FILES.values(), ids=FILES)
def test_files_that_are_equal(pair):
    for first, second in (pair(), pair()[::-1]):
        result = onnx.check(first, second)
        assert (result.verdict, result.origin) == ("equal", ((), ())), result


def test_a_module_and_its_file(tmp_path):
    model, faulty, x, name = equality_faults.faulty("resized", "weight")
    standard.save(onnx.export(model, x).model, tmp_path / "model.onnx")
    assert check(model, tmp_path / "model.onnx", x).verdict == "equal"
    result = check(tmp_path / "model.onnx", faulty, x)
    assert result.verdict == "different"
    assert name in result.origin[1]


def test_inputs_by_name_may_come_in_any_order():
    class Difference(nn.Module):
        def forward(self, x, y):
            return x - y

    class Opposite(nn.Module):
        def forward(self, x, y):
            return y - x

    x, y = torch.rand(2, 1, 3)
    held = onnx.export(Difference(), (x, y)).model, torch.export.export(Difference(), (x, y)), Difference()
    for first in held:
        for inputs in ({"x": x, "y": y}, {"y": y, "x": x}):
            assert check(first, Difference(), inputs).verdict == "equal"
            assert check(Opposite(), first, inputs).verdict == "different"
    turned = copy.deepcopy(held[0])
    turned.graph.input.reverse()
    with pytest.raises(ValueError, match="in one order, and take x, y and y, x; pass x as a tuple"):
        check(held[0], turned, {"x": x, "y": y})


class Mixed(nn.Module):
    """Takes two inputs, and returns two outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 2, 3), nn.Linear(3, 8)

    def forward(self, image, vector):
        h = self.conv(image).flatten(1).relu() - self.linear(vector)
        return h.relu(), vector.sum(1)


@pytest.mark.parametrize("box", [None, ((0, -1), (1, 2))], ids=["everywhere", "box"])
def test_a_chain_takes_the_vector_of_several_inputs(box, tmp_path):
    torch.manual_seed(0)
    model, x = Mixed().eval(), (torch.rand(2, 1, 4, 4), torch.rand(2, 3))
    chain = conv2affine.to_mlp(model, x, box=box)
    path = tmp_path / "model.onnx"
    standard.save(onnx.export(model, x).model, path)
    by_name = {"vector": x[1], "image": x[0]}
    wrong = copy.deepcopy(chain)
    with torch.no_grad():
        wrong[-1].bias[0] += 1
    for other, given in ((model, x), (model, by_name), (path, x), (path, by_name), (copy.deepcopy(chain), by_name)):
        for result in (check(other, chain, given, box=box), check(chain, other, given, box=box)):
            assert result.verdict == "equal", (other, result)
        for result in (check(other, wrong, given, box=box), check(wrong, other, given, box=box)):
            assert result.verdict == "different"
            assert [part.shape for part in result.witness] == [(1, 1, 4, 4), (1, 3)]
    turned = conv2affine.to_mlp(model, by_name)
    for given in (by_name, {"image": x[0], "vector": x[1]}):
        assert check(turned, model, given).verdict == "equal"
        with pytest.raises(ValueError, match="in one order, and take vector, image and image, vector; pass x as"):
            check(turned, chain, given)
    with pytest.raises(ValueError, match=r"b: x must have its inputs, vector of 3, image of 16 .* got \[16, 3\]"):
        check(model, turned, x)
    with pytest.raises(ValueError, match=r"b: x \(image, other\) must have the names of its inputs: image, vector"):
        check(model, chain, {"image": x[0], "other": x[1]})
    with pytest.raises(ValueError, match=r"a: x must be of inputs \(image, vector\), got a, b; or be a tuple"):
        check(path, path, {"a": x[0], "b": x[1]})
    vector = torch.cat([each.flatten(1) for each in x], 1)
    for given in (vector, (vector,)):
        assert check(chain, chain, given).verdict == "equal"
    # Their elements are as many as those of the vector, and a box by name would be another one.
    with pytest.raises(ValueError, match=r"a: x must have its inputs, image of 16, vector of 3 .* got \[3, 16\]"):
        check(chain, wrong, x[::-1])


@pytest.mark.parametrize("names", [("image", "vector"), ["a", "b"], "image", None], ids=str)
def test_a_module_may_have_names_of_its_own(names):
    model, x = Mixed().eval(), (torch.rand(2, 1, 4, 4), torch.rand(2, 3))
    model.input_names = names
    for given in (x, {"image": x[0], "vector": x[1]}):
        assert check(model, model, given).verdict == "equal"
    with pytest.raises(ValueError, match="pass a tuple of 2 tensors: "):
        check(model, model, x[0])


def test_errors_name_the_model():
    good, wrong = nn.Linear(3, 2), nn.Linear(4, 2)
    for pair, name in (((wrong, good), "a"), ((good, wrong), "b")):
        with pytest.raises(ValueError, match=f"^{name}: the model must take its example inputs"):
            check(*pair, torch.rand(1, 3))
    file = onnx.export(good, torch.rand(1, 3)).model
    for pair, name in (((wrong, file), "a"), ((file, wrong), "b")):
        with pytest.raises(TypeError, match=f"^{name}: source must be an onnx.ModelProto .*, got Linear"):
            onnx.check(*pair)


def test_command_line(tmp_path):
    weights = random(3, 3), random(3, 3)
    weights[1][0, 0] += 0.01
    paths = [str(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    for path, w in zip(paths, weights, strict=True):
        standard.save(model_of("h = Gemm(x, w)\ny = Relu(h)", {"x": ("N", 3)}, {"w": w}), path)
    spec = tmp_path / "box.vnnlib"
    names = [*(f"X_{n}" for n in range(3)), *(f"Y_{n}" for n in range(3))]
    ends = [f"(assert (>= X_{n} 0))\n(assert (<= X_{n} 1))" for n in range(3)]
    spec.write_text("\n".join([*(f"(declare-const {name} Real)" for name in names), *ends, "(assert (>= Y_0 9))"]))
    box = ["--box", "0", "1"]
    for arguments, code, says in (
        ([paths[0], paths[0]], 0, "equal: "),
        (paths, 1, "different: "),
        ([*paths, *box, "--tolerance", "0.011"], 0, "within: "),
        ([*paths, "--spec", str(spec), "--tolerance", "0.011"], 0, "within: "),
        ([*paths, *box, "--tolerance", "0.009"], 1, "is above the tolerance, 0.009"),
        ([*paths, *box, "--tolerance", "0.0100005"], 2, "undecided: "),
        ([*paths, *box, "--tolerance", "0.0100005"], 2, "is above the tolerance, 0.0100005, and no difference"),
        ([*paths, "--tolerance", "1"], 2, "there is no bound to meet the tolerance, 1"),
        ([*paths, "--spec", str(spec), "--box", "0", "1"], 2, "error: "),
        ([paths[0], str(tmp_path / "none.onnx")], 2, "error: "),
    ):
        result = CliRunner().invoke(app, ["check", *arguments])
        assert (result.exit_code, says in result.output) == (code, True), (arguments, result.output)
        if "error" not in says:
            shown = json.loads(CliRunner().invoke(app, ["check", *arguments, "--json"]).stdout)
            assert shown["verdict"] == result.output.partition(":")[0]
            assert (shown["reason"] or "") in result.output
    result = CliRunner().invoke(app, ["check", *paths, "--json", *box])
    shown = json.loads(result.stdout)
    assert (shown["verdict"], shown["origin"]) == ("different", [["h"], ["h"]])
    assert shown["difference"] == pytest.approx(0.01, rel=1e-3)
    assert 0.01 <= shown["bound"] <= 0.0101


def test_a_conversion_with_a_certificate(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    nodes = "h = Gemm(x, w)\np = Relu(h)\ny = Gemm(p, v)"
    standard.save(model_of(nodes, {"x": ("N", 8)}, {"w": random(8, 12), "v": random(12, 2, seed=1)}), paths[0])
    options = ["--form", "mlp", "--box", "0", "0.5", "--certify", "--shape", "x=1,8", "--flat", "--force"]
    result = CliRunner().invoke(app, ["convert", *paths, *options])
    assert result.exit_code == 0, result.output
    shown = json.loads(CliRunner().invoke(app, ["convert", *paths, *options, "--json"]).stdout)["certificate"]
    assert shown["difference"] <= shown["bound"] <= 1e-4
    assert shown["assumption"] in result.stderr


def test_a_pool_to_which_onnx_reference_gives_another_shape():
    nodes = "z = AveragePool<kernel_shape = [2, 2], strides = [1, 2], count_include_pad = 1>(x)\ny = Mul(z, c)"
    file = model_of(nodes, {"x": ("N", 2, 3, 1)}, {"c": np.float32(2)})
    assert onnx.check(file, file).note == "z does not run in float64 on the inputs tried: its results have other shapes"


class Categories(nn.Module):
    """A column of categories and others: it does not run on other categories."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(4, 3), nn.Linear(5, 2)

    def forward(self, x):
        return self.layer(torch.cat([self.table(x[:, 0].long()), x[:, 1:]], 1))


@pytest.mark.parametrize("box", [None, (0, 3)])
def test_a_model_of_categories_is_converted_and_compared(box):
    torch.manual_seed(0)
    model, x = Categories().eval(), torch.tensor([[0, 0.1, -2], [3, 0.2, 1]])
    net = conv2affine.to_linear_network(model, x)
    torch.testing.assert_close(net(x), model(x))
    assert check(model, net, x, box=box).verdict == "equal"
    wrong = copy.deepcopy(model)
    wrong.table.weight.data[2] += 0.1
    assert check(wrong, net, x, box=box).verdict == "different"
    assert check(wrong, net, x[:1], box=box).verdict in ("different", "undecided")  # no example has the category


def test_a_model_of_positive_definite_matrices_is_converted_and_compared():
    x = (torch.eye(4) + 0.5).expand(2, 4, 4).contiguous()
    model = Function(lambda x: torch.linalg.cholesky(x).exp())
    net = conv2affine.to_linear_network(model, x)
    torch.testing.assert_close(net(x), model(x))
    assert check(model, net, x).verdict == "equal"
    assert check(model, Function(lambda x: 1.1 * model(x)), x).verdict == "different"


def test_a_step_that_fails_where_its_input_is_rounded_is_left_out():
    table = torch.arange(5.0)[:, None]
    model = Function(lambda x: table[torch.ceil(x[:, 0] / 2).long()])
    other = Function(lambda x: table[torch.ceil(x[:, 0] / 4 + x[:, 0] / 4).long()])
    x = torch.tensor([[8.0], [0], [4]])  # a little more than 8 / 2 is no place in the table
    assert check(model, other, x).verdict == "equal"
    assert check(model, Function(lambda x: 1.5 * other(x)), x).verdict != "equal"
    with pytest.raises(ValueError, match="no input was found on which a and b both run; pass a box"):
        check(model, other, x, box=(50, 80))
