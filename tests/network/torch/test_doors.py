"""What people hold: programs, TorchScript, files, tensors by name, whole numbers; and what they pass by mistake."""

import copy
import inspect
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import conv2affine
from conv2affine import onnx, plan, to_linear, to_linear_network, to_mlp
from tests.conftest import long_but
from tests.network.models import Counts, Function

# What makes the cases, not what converts them: see the test with warnings as errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec:FutureWarning"),
]
BATCH = [{0: torch.export.Dim("batch")}]


def make():
    torch.manual_seed(0)
    features = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(12, 4)).eval()


MODEL, X = make(), torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def module_of(program):
    return program.module()


HELD = {
    "program-of-any-batch": lambda m, x: torch.export.export(m, (x,), dynamic_shapes=BATCH),
    "program-of-one-sample": lambda m, x: torch.export.export(m, (x[:1],)),
    "decomposed-program": lambda m, x: torch.export.export(m, (x[:1],)).run_decompositions(),
    "module-of-a-program": lambda m, x: module_of(torch.export.export(m, (x[:1],))),
    "traced": lambda m, x: torch.jit.trace(m, x),
    "scripted": lambda m, x: torch.jit.script(m),
    "frozen": lambda m, x: torch.jit.freeze(torch.jit.script(m)),
    "traced-inside": lambda m, x: nn.Sequential(torch.jit.trace(m[:4], x), m[4:]),
    "scripted-inside": lambda m, x: nn.Sequential(torch.jit.script(m[:4]), m[4:]),
    "data-parallel": lambda m, x: nn.DataParallel(m),
    "fx": lambda m, x: torch.fx.symbolic_trace(m),
}


def saved(save, name):
    def hold(model, x, folder):
        path = folder / name
        save(model, x, path)
        return path

    return hold


FILES = {
    "pt2": saved(lambda m, x, path: torch.export.save(torch.export.export(m, (x[:1],)), path), "model.pt2"),
    "traced": saved(lambda m, x, path: torch.jit.trace(m, x).save(path), "model.pt"),
    "scripted": saved(lambda m, x, path: torch.jit.script(m).save(path), "model.pt"),
}


def check(held, module=MODEL, x=X):
    """All functions on what stands for a module."""
    expected = module(x)
    net = to_linear_network(held, x)
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(to_mlp(held, x)(x), expected.flatten(1))
    assert str(plan(held, x)) == str(net.plan)
    assert onnx.export(held, x, form="mlp").difference < 1e-5
    return net


@pytest.mark.parametrize("name", long_but(("program-of-one-sample", "frozen", "traced-inside", "data-parallel"), HELD))
def test_all_functions_take_what_stands_for_a_module(name):
    held = HELD[name](make(), X)
    run = held.module() if isinstance(held, torch.export.ExportedProgram) else held
    before = run(X[:1])
    assert not check(held).plan.kept
    assert torch.equal(run(X[:1]), before)


@pytest.mark.parametrize("hold", FILES.values(), ids=FILES)
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_files(hold, kind, tmp_path):
    net = to_linear_network(kind(hold(make(), X, tmp_path)), X)
    torch.testing.assert_close(net(X), MODEL(X))
    assert not net.plan.kept


@pytest.mark.parametrize("name", ["program-of-any-batch", "program-of-one-sample", "traced", "scripted", "frozen"])
def test_to_linear_and_plan_take_one_layer_held(name):
    conv = nn.Sequential(nn.Conv2d(1, 2, 3)).eval()
    held = HELD[name](conv, X)
    torch.testing.assert_close(to_linear(held, X)(X.flatten(1)), conv(X).flatten(1))
    assert len(plan(held, X).layers) == 1


def test_a_program_keeps_the_names_of_modules_and_inputs():
    net = to_linear_network(HELD["program-of-one-sample"](make(), X), X)
    assert [row.name for row in net.plan.layers] == ["0, 1", "5"]
    assert [node.target for node in net.graph.nodes if node.op == "placeholder"] == ["input"]


def test_layers_of_a_loaded_file_are_copied(tmp_path):
    net = to_linear_network(FILES["scripted"](nn.Sequential(nn.Conv2d(1, 2, 3)), X, tmp_path), X)
    assert "copied" in str(net.plan)


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.memory = torch.zeros(1)

    def forward(self, x):
        self.count += 1
        self.memory = self.memory + 1
        return torch.relu(x) + self.memory


@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential], ids=["itself", "inside"])
def test_torchscript_with_state_is_refused_and_left_as_it_was(wrap):
    script = torch.jit.script(Stateful())
    with pytest.raises(ValueError, match="memory is a tensor that it keeps from one run to the next"):
        to_linear_network(wrap(script), X)
    assert script.count.item() == 0
    assert script.memory.item() == 0


class Runs(nn.Module):
    """Keeps a number from one run to the next."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        return torch.relu(x) * self.runs


DOORS = {
    "to_linear_network": to_linear_network,
    "plan": plan,
    "linear_region": conv2affine.linear_region,
    "check": lambda model, x: conv2affine.check(model, model, x),
    "onnx.export": onnx.export,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_number_that_is_kept_is_refused(door):
    model = Runs()
    with pytest.raises(ValueError, match="the model must give the same result for the same input, and two runs differ"):
        door(model, X)
    assert model.runs == 0


def test_a_program_with_state_is_left_as_it_was():
    program = torch.export.export(Counts(False), (X[:1],))
    to_mlp(program, X)
    assert program.state_dict["count"].item() == 0


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, a, b, scale: float = 2.0):
        return torch.relu(self.first(a) - scale * self.second(b))


class OneDict(Two):
    def forward(self, batch):
        return super().forward(batch["a"], batch["b"])


NAMED = {"b": torch.rand(3, 2), "a": torch.rand(3, 3)}


@pytest.mark.parametrize(
    "hold",
    [Two, OneDict, lambda: torch.export.export(Two(), (), {name: x[:1] for name, x in NAMED.items()})],
    ids=["arguments", "one-dict", "program"],
)
def test_inputs_by_name(hold):
    torch.manual_seed(2)
    model = hold()
    torch.manual_seed(2)
    expected = Two()(**NAMED)
    net = to_linear_network(model, NAMED)
    torch.testing.assert_close(net(**NAMED), expected)
    assert "first" in str(net.plan)
    assert str(plan(model, NAMED)) == str(net.plan)


@pytest.mark.parametrize(
    "hold",
    [
        torch.jit.script,
        lambda model: torch.jit.trace(model, (NAMED["a"], NAMED["b"])),
        lambda model: torch.jit.freeze(torch.jit.script(model)),
    ],
    ids=["scripted", "traced", "frozen"],
)
def test_inputs_of_a_script_by_name(hold):
    model = Two().eval()
    script = hold(model)
    torch.testing.assert_close(to_linear_network(script, NAMED)(**NAMED), model(**NAMED))
    mlp = to_mlp(script, NAMED, box=({"a": 0, "b": -1}, {"a": 1, "b": 2}))
    assert mlp.input_names == ("a", "b")
    assert mlp.box[0].tolist() == [0, 0, 0, -1, -1]
    for x in (NAMED, (NAMED["a"], NAMED["b"])):
        assert conv2affine.check(script, model, x).verdict == "equal"


def test_names_of_a_script():
    with pytest.raises(ValueError, match="name the tensors as forward does: a, b, scale"):
        to_mlp(torch.jit.script(Two()), {"a": NAMED["a"], "c": NAMED["b"]})


IMAGE = torch.randint(0, 256, (3, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
CASTS = {
    "float": (lambda x: x.float() / 255, IMAGE),
    "divided": (lambda x: x / 255, IMAGE),
    "multiplied": (lambda x: x * (1 / 128) - 1, IMAGE),
    "channels-last": (lambda x: x.permute(0, 3, 1, 2).to(torch.float32) / 255, IMAGE.permute(0, 2, 3, 1)),
    "flipped": (lambda x: x.flip(-1).float() / 255, IMAGE),
    "twice": (lambda x: x.float() / 255 + x[..., :1].float(), IMAGE),
    "int64": (lambda x: x.float(), IMAGE.long()),
    "mask": (lambda x: x.float(), IMAGE > 99),
    "if-uint8": (lambda x: x.float() / 255 if x.dtype is torch.uint8 else x, IMAGE),
}


@pytest.mark.parametrize("name", long_but(("float", "mask"), CASTS))
def test_a_chain_of_whole_numbers_begins_at_their_cast(name):
    cast, x = CASTS[name]
    model = nn.Sequential(Function(cast), make())
    expected = model(x)
    torch.testing.assert_close(to_linear_network(model, x)(x), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(to_mlp(model, x)(x.float()), expected, atol=1e-4, rtol=1e-4)
    for form in ("graph", "mlp"):
        [info] = onnx.export(model, x, form=form).model.graph.input
        assert info.type.tensor_type.elem_type == 1  # float
    fc = to_linear(nn.Sequential(Function(cast), make()[0]), x)
    torch.testing.assert_close(fc(x.flatten(1).float()), model[1][0](cast(x)).flatten(1), atol=1e-4, rtol=1e-4)


NO_CASTS = {
    "overflow": (lambda x: (x + 200).float(), NotImplementedError, "add must be affine .* computed in torch.uint8"),
    "half-first": (lambda x: x.half().float(), NotImplementedError, "_to_copy must be affine .* torch.float16"),
    "compared": (lambda x: x.float() * (x > 3), NotImplementedError, "must be affine"),
    "moved-out": (lambda x: x.flip(-1), NotImplementedError, "flip must be affine .* computed in torch.uint8"),
    "integers-out": (lambda x: x, ValueError, "a chain takes floating-point numbers, and the model takes"),
}


@pytest.mark.parametrize(("function", "error", "message"), NO_CASTS.values(), ids=NO_CASTS)
def test_whole_numbers_that_are_computed_with_are_refused(function, error, message):
    with pytest.raises(error, match=message):
        to_mlp(nn.Sequential(Function(function)), IMAGE)


class OneImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 2, 3), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten())


class Images(nn.Module):
    """What the advice for a model of one image says."""

    def __init__(self):
        super().__init__()
        self.model = OneImage()

    def forward(self, x):
        return torch.stack([self.model(sample) for sample in x])


def test_a_model_for_one_image_as_the_advice_says():
    model, x = Images(), torch.rand(3, 6, 6)
    with pytest.raises(ValueError, match=r"torch.stack\(\[model\(sample\) for sample in x\]\), and x.unsqueeze\(0\)"):
        to_mlp(model.model, x)
    torch.testing.assert_close(to_mlp(model, x.unsqueeze(0))(x.unsqueeze(0))[0], model.model(x))


THREE = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 4)).eval()
X3 = torch.rand(2, 3, 6, 6)
# What was passed, and what the message says.
MISTAKES = {
    "state-dict": (MODEL.state_dict(), X, TypeError, r"got a state_dict \(OrderedDict of tensors\); build the module"),
    "class": (nn.ReLU, X, TypeError, r"got the class ReLU; pass a module of that class, ReLU\(...\)"),
    "nothing": (None, X, TypeError, "got NoneType"),
    "no-file": ("no-such-file.pt2", X, FileNotFoundError, r"model \(no-such-file.pt2\) .* no such file"),
    "folder": ("tests", X, FileNotFoundError, r"model \(tests\) .* is a folder"),
    "onnx-file": ("model.onnx", X, TypeError, "is an ONNX file; conv2affine.onnx has plan, convert and check"),
    "program-of-five": (
        torch.export.export(MODEL, (torch.rand(5, 1, 6, 6),)),
        X,
        ValueError,
        r"was exported for 5; pass torch.export.export\(module, \(x,\), dynamic_shapes=",
    ),
    "training": (copy.deepcopy(MODEL).train(), X, ValueError, r"call model.eval\(\)"),
    "meta": (nn.Sequential(nn.Linear(6, 2, device="meta")), X, ValueError, "its 0.weight is on the meta device"),
    "lazy": (nn.Sequential(nn.LazyLinear(3)), X, ValueError, "run a batch through it first"),
    "unbatched": (THREE, X3[0], ValueError, r"shape \(3, 6, 6\) .*pass x.unsqueeze\(0\): the first axis is"),
    "channels": (THREE, X3[:, :2], ValueError, r"shape \(2, 2, 6, 6\) .* to have 3 channels, but got 2 channels"),
    "size": (THREE, X3[..., :5], ValueError, r"shape \(2, 3, 6, 5\) .*pass what it takes, batch first"),
    "dtype": (THREE, X3.double(), ValueError, r"of torch.float64, .*pass x.to\(torch.float32\)"),
    "one-for-two": (Two(), NAMED["a"], ValueError, r"pass a tuple of 2 tensors: \(a, b\)"),
    "names": (Two(), {"a": NAMED["a"], "c": NAMED["b"]}, ValueError, "name the tensors as forward does: a, b, scale"),
    "layers": ([*THREE], X3, TypeError, r"got list of modules; pass nn.Sequential\(\*layers\)"),
    "batch-norm": (
        nn.Sequential(THREE, nn.BatchNorm1d(4)),
        X3,
        ValueError,
        r"; call model.eval\(\), and give batch norm",
    ),
    "array": (THREE, X3.numpy(), TypeError, r"got ndarray; pass torch.from_numpy\(x\)"),
    "arrays": (THREE, (X3.numpy(),), TypeError, r"{x}\[0\] must be a tensor, got ndarray; pass torch.from"),
    "array-by-name": (Two(), {"a": X3.numpy()}, TypeError, r"{x}\['a'\] must be a tensor, got ndarray; pass torch.fr"),
    "no-names": (Two(), {}, TypeError, "{x} must be a tensor, .* or a dict of them by name, got an empty dict"),
    "numbers": (Two(), {0: NAMED["a"], 1: NAMED["b"]}, TypeError, "got dict; use strings as its names"),
    "keyword": (Two(), {"lambda": X3}, ValueError, "{x} must have names that arguments can have, .*, got 'lambda'"),
    "no-name": (Two(), {"0": X3, "a": X3}, ValueError, "got '0'; pass a tuple, and a module whose forward puts"),
    "program-of-two": (
        torch.export.export(Two(), (NAMED["a"], NAMED["b"])),
        (NAMED["a"], NAMED["b"]),
        ValueError,
        r"dynamic_shapes=\[{0: torch.export.Dim.DYNAMIC}\] \* 2\)",
    ),
    "inputs-of-a-chain": (
        to_mlp(Two(), (NAMED["a"], NAMED["b"])),
        (NAMED["a"], NAMED["b"]),
        ValueError,
        r"pass their vector, torch.cat\(\[a.flatten\(1\), b.flatten\(1\)\], 1\)",
    ),
}


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (THREE.state_dict(), r"module.load_state_dict\(torch.load\(path\)\)"),
        (THREE, r"torch.load\(path, weights_only=False\)"),
    ],
    ids=["state-dict", "module"],
)
def test_files_of_torch_save_are_refused_with_advice(content, advice, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(TypeError, match=f"must be a module, or a file of .* and is another file; .*{advice}"):
        to_linear_network(tmp_path / "model.pt", X3)


@pytest.mark.parametrize("name", ["data.pkl", "archive/data.pkl"])
def test_broken_files_are_refused_as_any_other(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        file.writestr(name, b"broken")
        file.writestr("archive/version", "3")
    with pytest.raises(TypeError, match=r"must be a module, or a file of .* and is another file"):
        to_linear_network(tmp_path / "model.pt", X3)


@pytest.mark.parametrize("function", [to_linear, to_linear_network, to_mlp, plan, onnx.export])
@pytest.mark.parametrize(("model", "x", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_the_message_names_what_was_passed_and_what_to_do(function, model, x, error, message):
    _, name, *_ = inspect.signature(function).parameters
    with pytest.raises(error, match=message.replace("{x}", name)) as caught:
        function(model, x)
    assert "report" not in str(caught.value)
    assert "values of tensors" not in str(caught.value)


@pytest.mark.parametrize("function", [to_linear, to_linear_network, to_mlp, onnx.export])
def test_a_model_of_one_sample_at_a_time(function):
    model = nn.Sequential(THREE[0], Function(lambda x: x.view(1, -1)), THREE[2])
    with pytest.raises(
        ValueError, match=r"fails on one of \d samples: mat1 .*; write x.flatten\(1\), not x.view\(1, -1"
    ):
        function(model, X3[:1])


def test_a_file_that_is_no_model(tmp_path):
    torch.save(MODEL.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(TypeError, match=r"weights.pth\) must be .*module.load_state_dict\(torch.load\(path\)\)"):
        to_mlp(tmp_path / "weights.pth", X)


def test_sizes_in_place_of_an_example():
    with pytest.raises(TypeError, match=r"example_inputs\[0\] must be a tensor, got int; pass a tensor"):
        to_mlp(THREE, (3, 6, 6))


def in_fake_mode(convert):
    with FakeTensorMode():
        convert(torch.rand(1, 1, 6, 6))


INSIDE = {
    "FakeTensorMode": in_fake_mode,
    "torch.export": lambda convert: torch.export.export(Function(convert), (X,)),
    "torch.jit.trace": lambda convert: torch.jit.trace(convert, X),
    "torch.compile": lambda convert: torch.compile(convert, backend="eager")(X),
    "make_fx": lambda convert: torch.fx.experimental.proxy_tensor.make_fx(convert)(X),
    "a transform of torch.func": lambda convert: torch.vmap(convert)(X[None]),
}


@pytest.mark.parametrize("where", INSIDE)
@pytest.mark.parametrize("function", [to_linear_network, to_mlp, plan, onnx.export])
def test_conversions_inside_traces_are_refused(function, where):
    def convert(x):
        function(MODEL, x)
        return x

    with pytest.raises(ValueError, match=rf"{function.__name__}\w* must not be called inside {where}|plan_network"):
        INSIDE[where](convert)


def test_a_step_without_a_rule_for_vmap_is_refused_by_name():
    model = nn.Sequential(Function(lambda x: torch.as_strided_scatter(x.exp(), x[:, :2], (len(x), 2), (8, 1))))
    with pytest.raises(NotImplementedError, match=r"^0 \(as_strided_scatter\) must be .* torch.vmap .*no rule"):
        to_linear_network(model, torch.rand(1, 8))


@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("hold", ["program-of-one-sample", "traced", "scripted"])
def test_dtypes(hold, dtype):
    x = X.to(dtype)
    model = make().to(dtype)
    held = HELD[hold](model, x)
    for result in (to_linear_network(held, x), to_mlp(held, x)):
        assert result(x).dtype is dtype
        torch.testing.assert_close(result(x), model(x), atol=0.1 if dtype.itemsize == 2 else 1e-9, rtol=0)


WARN = ["program-of-one-sample", "traced", "scripted"]


@pytest.mark.parametrize("hold", [HELD[name] for name in WARN], ids=WARN)
def test_under_another_default_dtype_and_with_warnings_as_errors(hold):
    default = torch.get_default_dtype()
    held = hold(MODEL, X)
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for convert in (to_linear_network, to_mlp):
                assert convert(held, X)(X).dtype is torch.float32
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("name", ["pt2", "traced"])
def test_files_with_warnings_as_errors(name, tmp_path):
    path = FILES[name](make(), X, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_mlp(path, X)


@pytest.mark.parametrize(("narrow", "wide"), [(torch.float32, torch.float64), (torch.float16, torch.float32)], ids=str)
def test_a_model_that_casts_its_input_to_a_wider_dtype(narrow, wide):
    layer, x = nn.Linear(5, 4).to(wide), torch.randn(3, 5).to(narrow)
    model = Function(lambda x: torch.relu(layer(x.view(-1, 5).to(wide))))
    torch.testing.assert_close(to_mlp(model, x)(x.to(wide)), model(x))
    torch.testing.assert_close(to_linear_network(model, x)(x), model(x))
    fc = to_linear(Function(lambda x: layer(x.to(wide))), x)
    torch.testing.assert_close(fc(x.to(wide)), layer(x.to(wide)))


def test_numpy_sizes_are_sizes():
    conv = nn.Conv2d(1, 2, 3)
    assert to_linear(conv, np.int64(6)).in_features == to_linear(conv, tuple(np.array([6, 6]))).in_features == 36


def test_a_layer_is_no_network():
    assert isinstance(plan(nn.Conv2d(1, 2, 3), X), conv2affine.Plan)
