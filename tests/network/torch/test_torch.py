"""What users do with a converted network, what is refused, and what is left unchanged."""

import concurrent.futures
import contextlib
import copy
import io
import pickle
from collections import OrderedDict, deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv2affine
from conv2affine import to_linear, to_linear_network, to_mlp
from conv2affine.network.passes import chain
from conv2affine.network.report import NetworkPlan
from tests.network.models import (
    MODEL,
    OTHERS,
    PIECEWISE,
    SHAPE,
    Counts,
    Function,
    Residual,
    build,
    conv_bn,
    mobilenet,
    resnet,
    samples,
)

X = samples(3, 3, 8, 8)


# Use


def test_names_are_those_of_the_modules():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return x + self.conv2(F.relu(self.conv1(x)))

    net = to_linear_network(nn.ModuleDict({"layer1": Block()})["layer1"], samples(1, 1, 4, 4, dtype=torch.float32))
    assert [name for name, _ in net.named_children()] == ["conv1", "conv2"]
    assert "self.conv1(" in net.code


def test_the_code_has_nothing_that_is_not_used():
    two = Function(lambda x, y: F.adaptive_max_pool2d(x, 2, return_indices=True)[0])
    net = to_linear_network(two, (samples(2, 1, 4, 4), samples(2, 3, 4)))
    assert [node.op for node in net.graph.nodes if not node.users] == ["placeholder", "output"]


@pytest.mark.parametrize("convert", [to_linear_network, to_mlp])
@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_is_a_module_like_any_other(convert, layout, model, x):
    net = convert(model, x, layout=layout)
    expected = net(x)
    for again in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(again(x), expected)
        assert str(again.plan) == str(net.plan)
    torch.testing.assert_close(net.float()(x.float()), expected.float(), atol=1e-4, rtol=1e-4)


class Turned(nn.Module):
    """Moves the values of a dict to other keys in each run."""

    def __init__(self):
        super().__init__()
        self.linear, self.kept = nn.Linear(3, 3), {"a": torch.zeros(3), "b": torch.ones(3)}

    def forward(self, x):
        turned = dict(zip(["b", "a"], self.kept.values(), strict=True))
        self.kept.clear()
        self.kept.update(turned)
        return self.linear(x)


def test_values_under_other_keys_are_put_back():
    model = Turned()
    before = dict(model.kept)
    for convert in (to_linear_network, to_mlp):
        convert(model, torch.rand(2, 3))
        assert list(model.kept) == ["a", "b"]
        assert all(model.kept[key] is value for key, value in before.items())


class Counting(nn.Module):
    """Grows a list, a set, a deque and PyTorch's own set of buffers in each run."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen, self.last, self.all = nn.Linear(3, 3), {0}, deque([1, 2], maxlen=2), [3]

    def contents(self):
        return [list(each) for each in (self.seen, self.last, self.all, self._non_persistent_buffers_set)]

    def forward(self, x):
        self.seen.add(len(self.seen))
        self.last.append(len(self.seen))
        self.all.append(len(self.seen))
        self.register_buffer(f"buffer{len(self.seen)}", torch.zeros(1), persistent=False)
        return self.linear(x)


@pytest.mark.parametrize("convert", [to_linear_network, to_mlp])
def test_containers_are_put_back(convert):
    model = Counting()
    before, kept = model.contents(), (model.seen, model.last, model.all)
    convert(model, torch.rand(2, 3))
    assert model.contents() == before
    assert all(a is b for a, b in zip(kept, (model.seen, model.last, model.all), strict=True))
    assert model.last.maxlen == 2


def test_what_is_read_of_a_deque_is_refused():
    class Remembering(Counting):
        def forward(self, x):
            self.last.append(x.sum())
            return self.linear(x) + sum(self.last)

    with pytest.raises(ValueError, match=r"last.1 is a tensor that it keeps from one run to the next"):
        to_linear_network(Remembering(), torch.rand(2, 3))


def test_state_dict(model, x):
    first, second = to_linear_network(model, x, layout="dense"), to_linear_network(build(MODEL), x, layout="dense")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), first(x))


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_export(layout, model, x):
    net = to_linear_network(model, x, layout=layout)
    program = torch.export.export(net, (x,), dynamic_shapes=[{0: torch.export.Dim("batch", min=2)}])
    larger = samples(7, *SHAPE)
    torch.testing.assert_close(program.module()(larger), model(larger))


@pytest.mark.parametrize(
    ("function", "own"),
    [
        (lambda x: x.transpose(0, 1).softmax(0).transpose(0, 1), ["PerSample"]),
        (lambda x: x.flatten(0, 1).softmax(1).unflatten(0, (-1, 4)), []),
    ],
    ids=["each-sample", "joined-with-positions"],
)
def test_export_of_a_step_that_is_kept(function, own):
    model, x = Function(function), samples(3, 4, 6)
    net = to_linear_network(model, x)
    assert [type(module).__name__ for module in net.children()] == own
    program = torch.export.export(net, (x,), dynamic_shapes=[{0: torch.export.Dim("batch")}])
    torch.testing.assert_close(program.module()(samples(5, 4, 6)), model(samples(5, 4, 6)))


@pytest.mark.filterwarnings("ignore")  # of the exporters about themselves
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["resnet", "squeeze-excite", "transformer"])
def test_onnx_export(name, dynamo, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    make, shape = {**PIECEWISE, **OTHERS}[name]
    x, file = samples(3, *shape, dtype=torch.float32), tmp_path / "net.onnx"
    net = to_linear_network(build(make, torch.float32), x, layout="dense")
    batch = {"dynamic_shapes": [{0: "n"}]} if dynamo else {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
    torch.onnx.export(net, (x,), file, dynamo=dynamo, input_names=["x"], output_names=["y"], **batch)
    larger = samples(5, *shape, dtype=torch.float32)
    [y] = runtime.InferenceSession(file).run(None, {"x": larger.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), net(larger).detach(), atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_model(model, x):
    net = to_linear_network(model, x, layout="dense")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    model(a).sum().backward()
    net(b).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_parameters_require_gradients_as_the_models(model, x):
    assert all(parameter.requires_grad for parameter in to_linear_network(model, x).parameters())
    assert not any(
        parameter.requires_grad for parameter in to_linear_network(model.requires_grad_(False), x).parameters()
    )


class Keeps(nn.Module):
    """Parameters that reach the result as they are: in a kept step, as an output, as a bias, as a weight."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc, self.constant = nn.LayerNorm(8), nn.Linear(8, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.fc(self.norm(x)).flatten(1), self.constant.expand(len(x), -1)


@pytest.mark.parametrize("is_read", [False, True])
def test_buffers_that_a_run_changes_are_as_before(is_read):
    model = Counts(is_read)
    model.count += 3
    with contextlib.suppress(ValueError):
        torch.testing.assert_close(to_linear_network(model, X)(X), 2 * X)
    assert model.count == 3


CONTAINERS = {
    "list": (lambda: [0], lambda held: held.append(1), list),
    "deque": (lambda: deque([0], maxlen=1), lambda held: held.append(held[0] + 1), list),
    "dict": (lambda: {0: 0}, lambda held: held.update({len(held): 0}), dict),
    "set": (lambda: {0}, lambda held: held.add(len(held)), set),
    "tensors": (lambda: deque([torch.zeros(2)]), lambda held: held[0].add_(1), lambda held: held[0].tolist()),
}


@pytest.mark.parametrize("name", ["held", "negative_slope"])
@pytest.mark.parametrize(("make", "change", "content"), CONTAINERS.values(), ids=CONTAINERS)
def test_containers_that_a_run_changes_are_as_before(make, change, content, name):
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LeakyReLU()
            setattr(self.layer, name, make())

        def forward(self, x):
            change(getattr(self.layer, name))
            return 2 * x

    model = Holds()
    held = getattr(model.layer, name)
    with contextlib.suppress(ValueError):
        torch.testing.assert_close(to_linear_network(model, X)(X), 2 * X)
    assert getattr(model.layer, name) is held
    assert content(held) == content(make())


def test_example_inputs_are_as_before():
    x = X.clone()
    torch.testing.assert_close(to_linear_network(Function(lambda x: x.add_(1)), x)(X), X + 1)
    assert torch.equal(x, X)


@pytest.mark.parametrize("make", [MODEL, Keeps])
@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_nothing_is_changed_or_shared(make, layout, x):
    model = build(make)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    results = [
        to_linear_network(model, x, layout=layout),
        *([to_mlp(model, x, layout=layout)] if make is MODEL else []),
    ]
    with torch.no_grad():
        for tensor in (tensor for result in results for tensor in result.state_dict().values()):
            tensor.zero_()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_the_mode_is_that_of_the_model(x):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).double().train()
    assert to_linear_network(model, x).training
    assert not to_linear_network(model.eval(), x).training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    model, x = build(MODEL, dtype), samples(3, *SHAPE, dtype=dtype)
    net = to_linear_network(model, x, layout="dense")
    assert net(x).dtype is dtype
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}


WRAPPED = {
    "data-parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "sequential": nn.Sequential,
    "swa": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrapped(wrap, model, x):
    torch.testing.assert_close(to_linear_network(wrap(model).eval(), x)(x), model(x))


# Plans and memory


@pytest.mark.parametrize("function", [None, lambda x: x.relu() + (-x).relu() + 1], ids=["modules", "bias of a sum"])
def test_plan_is_that_of_the_result(function, model, x):
    model = Function(function) if function else model
    plan = conv2affine.plan(model, x)
    assert isinstance(plan, NetworkPlan)
    assert str(plan) == str(to_linear_network(model, x).plan)
    layers = [m for m in to_linear_network(model, x).modules() if isinstance(m, nn.Linear)]
    assert [(row.rows, row.cols) for row in plan.layers] == [(m.out_features, m.in_features) for m in layers]


UNREAD = {  # strides and slices leave units that nothing reads
    "strides": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1, 3), nn.ReLU(), nn.Conv2d(6, 2, 2, 2)),
        (1, 20, 20),
    ),
    "slice": (lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), Function(lambda h: h[:, ::2, 2:5] - 1)), (1, 12)),
    "carried": (
        lambda: Residual(nn.Sequential(conv_bn(2, 2), nn.Conv2d(2, 2, 1, 2)), nn.Conv2d(2, 2, 1, 2)),
        (2, 6, 6),
    ),
    "resnet": (resnet, (3, 16, 16)),
    "mobilenet": (mobilenet, (3, 16, 16)),
}


@pytest.mark.parametrize(("make", "shape"), UNREAD.values(), ids=UNREAD)
def test_plan_of_a_chain_is_that_of_the_result(make, shape):
    made, x = make().eval(), torch.rand(2, *shape)
    mlp, rows = to_mlp(made, x), conv2affine.plan(made, x, form="mlp").layers
    linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    entries = [int((layer.weight.to_dense() != 0).sum()) for layer in linear]
    assert [(row.rows, row.cols) for row in rows] == [tuple(layer.weight.shape) for layer in linear]
    assert [row.nnz for row in rows] == entries
    for layer in linear[1:]:
        assert (layer.weight.to_dense() != 0).any(0).all()


def test_plan_of_a_large_network_makes_nothing_large():
    model = nn.Sequential(
        *(nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2)), nn.BatchNorm2d(64), nn.ReLU()
    ).eval()
    plan = conv2affine.plan(model, samples(1, 64, 224, 224, dtype=torch.float32))
    assert [row.nnz for row in plan.layers] == [2 * 0 + 64 * 64 * (3 * 224 - 2) ** 2] * 2
    assert [row.kind for row in plan.rows] == ["copied", "computed", "relu"]
    with pytest.raises(MemoryError, match=r"(?s)the layers need .* GB, and there are .* left; .*total"):
        to_linear_network(model, samples(1, 64, 224, 224, dtype=torch.float32))


def test_outputs_that_are_no_tensors():
    model = nn.Sequential(Function(lambda x: {"y": 2 * x, "none": None, "number": 3, "word": "x"}))
    net, mlp = to_linear_network(model, X), to_mlp(model, X)
    assert net(X).pop("y").equal(2 * X)
    assert {name: value for name, value in net(X).items() if name != "y"} == {"none": None, "number": 3, "word": "x"}
    assert mlp(X).equal(2 * X.flatten(1))


def test_complex_results_are_compared():
    model, x = Function(torch.fft.rfft), samples(3, 8)
    net = to_linear_network(model, x)
    torch.testing.assert_close(net(x), model(x))


@pytest.mark.parametrize(
    ("function", "layers"),
    [(lambda x: x.sort(1).values, 19), (lambda x: torch.cat([x[:, 3:], x[:, :3].relu()], 1), 3)],
    ids=["sort", "shuffled"],
)
def test_values_that_a_piece_reads_nothing_of_have_no_layer(function, layers):
    x = samples(5, 6)
    net = to_linear_network(Function(function), x)
    assert len(list(net.children())) == layers
    assert all(layer.weight.count_nonzero() for layer in net.children())
    torch.testing.assert_close(net(x), function(x))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("layers", [[(8, 0)], [(8, 0), (0, 3)]], ids=["no-outputs", "no-inputs"])
def test_layers_without_elements(layers):
    model = nn.Sequential(*(layer for sizes in layers for layer in (nn.ReLU(), nn.Linear(*sizes)))).double()
    x = samples(3, 8)
    for convert in (to_linear_network, to_mlp):
        assert convert(model, x)(x).equal(model(x))
    fc = to_linear(model[1:], x)
    assert fc(x).equal(model[1:](x))


def test_saved_and_loaded(model, x):
    file = io.BytesIO()
    net = to_linear_network(model, x)
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), net(x))


class Recurrence(nn.Module):
    """T[k] = 2 conv(T[k - 1]) - T[k - 2]."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.conv = steps, nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[[0.2, 0.3, 0.2]]]))

    def forward(self, x):
        before, last = x, self.conv(x)
        for _ in range(self.steps - 1):
            before, last = last, 2 * self.conv(last) - before
        return torch.relu(last)


def test_a_chain_of_shared_pieces_takes_linear_time(monkeypatch):
    reads, read = [], chain._Chain.find
    monkeypatch.setattr(chain._Chain, "find", lambda *args: reads.append(args) or read(*args))
    model, x = Recurrence(40), torch.rand(2, 1, 12, dtype=torch.float64)  # exponential, it would not end
    torch.testing.assert_close(to_mlp(model, x)(x), model(x).flatten(1))
    assert len(reads) < 200


def test_threads_convert_at_once():
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.rand(2, 1, 6, 6)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: to_linear_network(model, x), range(8)))
    for net in results:
        torch.testing.assert_close(net(x), model(x))


@pytest.mark.parametrize("name", ["plan", "self"])
def test_modules_named_as_attributes(name):
    model, x = nn.Sequential(OrderedDict({name: nn.Linear(2, 3), "last": nn.ReLU()})).double(), samples(3, 2)
    torch.testing.assert_close(to_linear_network(model, x)(x), model(x))
