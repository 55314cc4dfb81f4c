"""The check at the end of a conversion: what it refuses, what it lets pass, and what it is measured against."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv2affine
from conv2affine.network import convert, vectors
from conv2affine.network.torch.importing import rules
from conv2affine.network.torch.modules import Affine
from conv2affine.network.torch.noise import InDouble, Noise
from tests.network.models import Function, samples

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def uneven(dtype):
    """A layer whose rows, and what it reads, differ in scale by eleven orders."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 6)).to(dtype).eval()
    with torch.no_grad():
        model[3].weight *= torch.tensor([1e5, 1e-6, 1, 1e5, 1e-3, 1e2]).unsqueeze(1)
        model[3].bias *= model[3].weight.abs().amax(1)
    return model


@pytest.mark.diagonal
@DTYPES
@pytest.mark.parametrize("function", [conv2affine.to_linear_network, conv2affine.to_mlp])
@pytest.mark.parametrize("row", [0, 1, 4])
def test_a_layer_with_a_wrong_row_is_refused(function, row, dtype, break_row):
    model, x = uneven(dtype), torch.rand(2, 3, 8, 8, dtype=dtype)
    function(model, x)
    break_row(row, convert, vectors)
    with pytest.raises(RuntimeError, match=rf"off by .* at \[\d+, {row}\], where rounding explains .* in output 0"):
        function(model, x)


@DTYPES
@pytest.mark.parametrize("off", [1e-2, 1e-6])
def test_a_piece_with_a_wrong_row_is_refused(off, dtype, monkeypatch):
    model, x = uneven(dtype), torch.rand(2, 3, 8, 8, dtype=dtype)
    rule = rules.RULES["linear"]

    def broken(context, *args, weight, **options):
        factors = torch.ones(len(weight), 1, dtype=torch.float64)
        factors[1] += off
        return rule(context, *args, weight=weight * factors, **options)

    monkeypatch.setitem(rules.RULES, "linear", broken)
    with pytest.raises(RuntimeError, match=r"off by .* at \[\d+, 1\], where rounding explains .* in output 0"):
        conv2affine.to_linear_network(model, x)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_a_result_that_fails_in_float64_is_refused(error, monkeypatch):
    def fails(*arguments):
        raise error("no float64")

    model, x = uneven(torch.float32), torch.rand(2, 3, 8, 8)
    monkeypatch.setattr(Affine, "forward", fails)
    expected = "the result must run in float64, as the model does, and fails: no float64; please report this"
    with pytest.raises(RuntimeError, match=expected):
        conv2affine.to_linear_network(model, x)
    result = conv2affine.to_linear_network(Function(lambda x: model(x).view(torch.int16)), x)  # which cannot either
    assert result(x).dtype is torch.int16


ENDS = torch.linspace(-1, 1, 6)
STEPS = {
    "clip": lambda y: y.clamp(-1e9, 1e9),
    "clip-of-tensors": lambda y: y.clamp(ENDS - 1e9, ENDS + 1e9),
    "clip-from-above": lambda y: y.clamp(max=ENDS + 1e9),
    "leaky-relu": lambda y: nn.functional.leaky_relu(y, 0.5),
    "prelu": lambda y: nn.functional.prelu(y, torch.linspace(0.1, 0.6, 6)),
    "windows": lambda y: nn.functional.max_pool1d(y.unsqueeze(1), 3, 1, 1).squeeze(1),
    "sort": lambda y: y.sort(1).values,
    "constant": lambda y: (y, ENDS.expand(len(y), 6)),
    "kept": lambda y: {"a": y.sin(), "b": y.view(-1, 2, 3).transpose(1, 2)},
}


@pytest.mark.parametrize("function", STEPS.values(), ids=STEPS)
def test_a_small_fault_before_a_step_is_refused(function, monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 6), Function(function)).eval(), samples(3, 4, dtype=torch.float32)
    conv2affine.to_linear_network(model, x)
    rule = rules.RULES["linear"]
    monkeypatch.setitem(
        rules.RULES, "linear", lambda *args, weight, **options: rule(*args, weight=weight * (1 + 1e-7), **options)
    )
    with pytest.raises(RuntimeError, match="in float64 in output 0; please report this"):
        conv2affine.to_linear_network(model, x)


ZEROS = {
    "difference-of-a-clip": lambda x: x - x.clamp(-1e4, 1e4),
    "added-and-taken-away": lambda x: (x + 0.1) - 0.1 - x,
    "relu-of-a-negative": lambda x: F.relu(-x.abs() - 1),
    "times-zero": lambda x: 0 * x,
    "mean-of-a-centred-vector": lambda x: (x - x.mean(1, keepdim=True)).mean(1, keepdim=True),
}


@pytest.mark.diagonal
@DTYPES
@pytest.mark.parametrize("function", ZEROS.values(), ids=ZEROS)
def test_a_result_of_zeros_passes(function, dtype):
    model = nn.Sequential(nn.Linear(5, 7), Function(function)).to(dtype)
    x = torch.randn(3, 5, dtype=dtype)
    for result in (conv2affine.to_linear_network(model, x), conv2affine.to_mlp(model, x)):
        torch.testing.assert_close(result(x), model(x), atol=1e-5, rtol=0)


WALLS = {
    "one-less-a-clip": lambda x: F.relu(0.7 - x.clamp(-0.3, 0.7)),
    "one-less-a-maximum-of-clips": lambda x: F.relu(0.7 - F.max_pool1d(x.clamp(-0.3, 0.7)[:, None], 5, 1).flatten(1)),
    "one-less-a-clip-that-is-one": lambda x: 0.5 - (x + torch.linspace(5, 9, 64).to(x)).clamp(-1 / 3, 0.5),
    "sum-of-clips": lambda x: torch.cat([(x + 9).clamp(-1, 0.1) @ ZERO_SUM.to(x), x], 1),
}
ZERO_SUM = torch.tensor([0.45, 0, -0.45, 0.15, 0.15, -0.3, *[0] * 58], dtype=torch.float64)[:, None]


@DTYPES
@pytest.mark.parametrize("form", ["network", "mlp", "box"])
@pytest.mark.parametrize("function", WALLS.values(), ids=WALLS)
def test_rounding_at_a_wall_is_no_error(function, form, dtype):
    model, x = Function(function), torch.randn(4, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    if form == "network":
        result = conv2affine.to_linear_network(model, x, max_pool="relu")
    else:
        result = conv2affine.to_mlp(model, x, box=(-3, 3) if form == "box" else None)
    torch.testing.assert_close(result(x), model(x), atol=1e-5, rtol=0)


def test_what_inputs_reach_is_computed_in_float64_and_nothing_else():
    weight, x = torch.rand(4, 4), torch.rand(3, 4)

    def model(x):
        halved = F.softmax(weight, 1).half().float()  # what no input reaches stays as it is
        return (x @ halved).half().float().exp().sum(1)

    with InDouble([x]) as double:
        y = model(x)
    got = double.exact(y)
    assert y.dtype is torch.float32
    expected = (x.double() @ F.softmax(weight, 1).half().double()).exp().sum(1)
    torch.testing.assert_close(got, expected, atol=1e-14, rtol=0)
    with InDouble([x], Noise(1e-6)) as double:
        y = model(x)
    assert 0 < (double.exact(y) - expected).abs().max() < 1e-4


FUNCTIONS = {
    "written-in-python": lambda x: F.interpolate(x, scale_factor=1.7, mode="linear"),
    "with-sums-of-weights-inside": lambda x: F.conv1d(x.to(torch.complex64), PARTS).imag,
    "with-a-constant-of-its-own": lambda x: torch.istft(torch.stft(x[0], 4, return_complex=True), 4),
}
PARTS = torch.randn(1, 2, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:A window was not provided")
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_all_inside_of_a_function_is_in_float64(function):
    x = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(1))
    with InDouble([x]) as double:
        y = function(x)
    assert y.dtype is torch.float32
    wide = PARTS.to(torch.complex128)
    expected = F.conv1d(x.to(wide.dtype), wide).imag if "conv1d" in function.__code__.co_names else function(x.double())
    torch.testing.assert_close(double.exact(y), expected, atol=1e-12, rtol=0)


def test_noise_moves_each_element_by_its_own_scale():
    weight = torch.randn(3, 50, dtype=torch.float64) * torch.tensor([[1e5], [1.0], [1e-6]])
    x = torch.rand(400, 50, dtype=torch.float64)
    with Noise(1e-9):
        moved = F.linear(x * 1, weight) - x @ weight.T
    scale = ((x[:, None] * weight) ** 2).sum(2).sqrt().mean(0) * 1e-9
    assert ((moved.std(0) > 0.3 * scale) & (moved.std(0) < 3 * scale)).all()


CONSTANTS = {
    "batch-norm-of-a-weight": lambda x, w: F.linear(x, F.batch_norm(w[None], None, None, training=True)[0]),
    "inverse": lambda x, w: x @ torch.linalg.inv(w),
    "qr": lambda x, w: x @ torch.linalg.qr(w)[0],
    "matrix-exp": lambda x, w: x @ torch.matrix_exp(w),
    "cholesky": lambda x, w: x @ torch.linalg.cholesky(w @ w.T + torch.eye(5)),
    "solve": lambda x, w: x @ torch.linalg.solve(w, torch.eye(5)),
    "solve-for-an-input": lambda x, w: torch.linalg.solve(w, x.mT).mT,
    "solve-from-the-right": lambda x, w: torch.linalg.solve(w, x, left=False),
    "weight-norm-by-hand": lambda x, w: F.linear(x, w / w.norm(dim=1, keepdim=True)),
    "linspace": lambda x, w: x @ w * torch.linspace(0, 1, 5),
    "eigenvectors": lambda x, w: x @ torch.linalg.eigh(w + w.T)[1],
    "cayley": lambda x, w: x @ torch.linalg.solve(torch.eye(5) + w - w.T, torch.eye(5) - w + w.T),
    "eye-and-linspace": lambda x, w: x @ (w * torch.eye(5)) + torch.linspace(0, 1, 5, dtype=torch.float64).to(x),
    "in-place": lambda x, w: x @ torch.zeros(5, 5).copy_(w).triu_(),
    "written-after-it-is-read": lambda x, w: slices(x, w),
}


def slices(x, w):
    out = torch.zeros(len(x), 5, dtype=x.dtype)
    before = out + w[0]
    out[:, 1] = x[:, 2]
    return out @ w + before


@pytest.mark.diagonal
@DTYPES
@pytest.mark.parametrize("function", CONSTANTS.values(), ids=CONSTANTS)
def test_what_no_input_reaches_runs_as_it_is(function, dtype):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).to(dtype))

        def forward(self, x):
            return torch.relu(function(x, self.w))

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model, x = Model().eval(), torch.randn(3, 5)
        for result in (conv2affine.to_linear_network(model, x), conv2affine.to_mlp(model, x)):
            torch.testing.assert_close(result(x), model(x))
    finally:
        torch.set_default_dtype(default)


SHAPED = {
    "cat": lambda x: torch.cat([x, torch.full_like(x, 0.1)], 1),
    "stack": lambda x: torch.stack([x, x.new_full(x.shape, 0.1)], 1).flatten(1),
    "product": lambda x: torch.cat([x, torch.ones_like(x) * 0.1], 1),
    "sine": lambda x: torch.cat([x, torch.full_like(x, 0.1).sin()], 1),
    "where": lambda x: torch.where(x > 0.5, x, torch.full_like(x, 0.1)),
    "kept": lambda x: torch.atan2(x, torch.full_like(x, 0.1)),
    "kept-power": lambda x: torch.pow(torch.full_like(x, 0.1), x),
    "written-to": lambda x: torch.full_like(x, 0.1).index_copy(1, torch.tensor([2]), x[:, 4:]).mul_(3),
    "vmap": lambda x: torch.vmap(lambda row: torch.cat([row, torch.full_like(row, 0.1) * 0.3]))(x),
    "permuted": lambda x: x.repeat(1, 2) + shaped_as_it_lies(torch.stack([x, x], 2).permute(0, 2, 1)),
}


def shaped_as_it_lies(y):
    return torch.full_like(y, 0.1).permute(0, 2, 1).view(len(y), -1)


NUMBERS = {
    "two": lambda x: torch.where(x > 0.1, 0.3, 0.1) + x,
    "filled": lambda x: x.masked_fill(x.flip(1) > 0.1, 0.3),
    "other": lambda x: torch.where(x > 0, x * x, -0.1),
    "jumps": lambda x: torch.where(x.abs() <= 0.3, 0.1, x - 0.2),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("function", [*SHAPED.values(), *NUMBERS.values()], ids=[*SHAPED, *NUMBERS])
def test_constants_are_rounded_as_in_the_model(function, dtype):
    """Tensors of the shape of an input have its dtype; numbers are exact where the pieces run in float64."""
    model, x = Function(function), torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    net = conv2affine.to_linear_network(model, x)  # it compares the pieces in float64
    torch.testing.assert_close(net(x), model(x))


@torch.library.custom_op("conv2affine_tests::half_like", mutates_args=())
def half_like(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 + 1


half_like.register_fake(torch.empty_like)


def test_operators_of_others_with_such_names_read_elements():
    x = torch.randn(3, 4)
    with pytest.raises(NotImplementedError, match="half_like"):
        conv2affine.to_mlp(Function(half_like), x)
    net = conv2affine.to_linear_network(Function(lambda x: half_like(x) + x), x)
    torch.testing.assert_close(net(x + 1), half_like(x + 1) + x + 1)


def written_and_read(x, z):
    y, view = x * z, z[:, :2]
    before = x[:, :2] * view
    z.mul_(3)
    middle = x[:, :2] * view + z[:, :2]
    view.add_(x[:, :2])
    return torch.cat([y, before, middle, view, z], 1)


def written_by_out(x, z):
    y = z * 3
    torch.mul(x, 2.5, out=z)
    return y + z


def written_in_parts(x, z):
    first, second = z.chunk(2, 1)
    first.mul_(3)
    second.copy_(x[:, :2])
    return z.flip(1), first


def written_conjugate(x, z):
    y = torch.complex(z, 2 * z)
    y.conj().imag.copy_(x)
    return torch.view_as_real(y * (1 + 2j)).flatten(1)


WRITTEN = {
    "read-before": written_and_read,
    "out": written_by_out,
    "parts": written_in_parts,
    "conjugate": written_conjugate,
    "flat": lambda x, z: (z.add_(1), z.add_(x), z.view(-1).view_as(x))[2] + z,
    "columns": lambda x, z: [z[:, n + 1].add_(z[:, n] * 0.3 + x[:, n]) for n in range(3)] and z * 3,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("kind", ["module", "script", "program"])
@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_constants_may_be_written_to_by_what_inputs_reach(function, kind, dtype):
    if function is written_conjugate and dtype is torch.bfloat16:
        pytest.skip("PyTorch has no complex numbers of this dtype")
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = runs = Function(lambda x: function(x, torch.full_like(x, 0.1)))
    if kind == "script":
        model = torch.jit.trace(model, x)
    elif kind == "program":
        model = torch.export.export(model, (x,), dynamic_shapes=[({0: torch.export.Dim.DYNAMIC},)])
    net = conv2affine.to_linear_network(model, x)
    few = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(net(x), runs(x), rtol=few, atol=few)


MASKED = {
    "maximum": lambda x: torch.maximum(x + LARGE, x.flip(1)),
    "maximum-second": lambda x: torch.maximum(x.flip(1), x + LARGE),
    "minimum": lambda x: torch.minimum(x - LARGE, x.flip(1)),
    "amax": lambda x: (x + LARGE).amax(1, keepdim=True),
    "pool-of-a-pad": lambda x: F.max_pool1d(F.pad(x, (1, 1), value=-1e9)[:, None], 2).flatten(1),
    "masked-fill": lambda x: x.masked_fill(LARGE < 0, -1e9).amax(1, keepdim=True),
}
LARGE = torch.tensor([0, -1e9, 0, -1e9, 0, -1e4])


@pytest.mark.diagonal
@DTYPES
@pytest.mark.parametrize("function", MASKED.values(), ids=MASKED)
def test_large_constants_in_a_maximum_cost_no_digits(function, dtype):
    model, x = nn.Sequential(nn.Linear(5, 6), Function(function)).to(dtype), torch.randn(20, 5, dtype=dtype)
    for result in (conv2affine.to_mlp(model, x), conv2affine.to_linear_network(model, x, max_pool="relu")):
        torch.testing.assert_close(result(x), model(x), atol=1e-5, rtol=1e-6)


def test_digits_that_a_result_loses_inside_are_no_rounding(monkeypatch):
    from conv2affine.network.passes import to_relu

    monkeypatch.setattr(to_relu, "_smaller_first", lambda writer, a, b: (a, b))
    model, x = nn.Sequential(nn.Linear(5, 6), Function(MASKED["maximum"])), torch.randn(3, 5)
    with pytest.raises(RuntimeError, match="the result does not equal the model, off by"):
        conv2affine.to_mlp(model, x)


def test_digits_that_float64_has_are_said_to_be_missing():
    """A spline is 0 far away, where the ReLUs of it cancel up to their roundings, and here these are multiplied."""

    def spline(x):
        return torch.where(x < 0.4, (x - 0.1) / 0.3 * (x >= 0.1), (0.9 - x) / 0.5 * (x < 0.9)) * x * x

    model, x = Function(spline), 10 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    message = (
        r"the result does not equal the model, off by .* torch.float32 has too few digits: pass dtype=torch.float64"
    )
    with pytest.raises(RuntimeError, match=message):
        conv2affine.to_linear_network(model, x)
    net = conv2affine.to_linear_network(model, x, dtype=torch.float64)
    torch.testing.assert_close(net(x.double()), model(x.double()), atol=1e-9, rtol=0)


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.fc(torch.relu(x)).float()


@pytest.mark.parametrize("seed", range(3))
def test_autocast_inside_of_a_model_is_no_error(seed):
    torch.manual_seed(seed)
    model, x = Autocast(), torch.rand(2, 8)
    torch.testing.assert_close(conv2affine.to_linear_network(model, x)(x), model(x), atol=1e-2, rtol=1e-2)


@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [nn.GroupNorm(2, 8), nn.LayerNorm(3), nn.Softmax(1)], ids=lambda m: type(m).__name__)
def test_rounding_the_inputs_of_a_kept_step_is_no_error(kept, dtype):
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.rand(2, 8, 3)
        result = conv2affine.to_linear_network(kept.eval(), x, dtype=dtype)
        torch.testing.assert_close(result(x.to(dtype)).float(), kept(x), atol=0.1, rtol=0.1)


def test_nan_that_a_mask_leaves_out_is_no_error():
    """Some outputs are so small that only noise shows how far they may be off."""
    torch.manual_seed(0)
    masked = Function(lambda x: torch.where(x > 0, x.log(), x))
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), masked, nn.Conv2d(8, 8, 3, padding=1)).eval()
    x = torch.rand(3, 1, 16, 16)
    net = conv2affine.to_linear_network(model, x)
    # The log of 2e-5 makes a rounding 5e4 times larger: the model itself is 4e-5 off, and which way, processors decide.
    torch.testing.assert_close(net(x), model(x), atol=1e-4, rtol=0)


def test_a_model_that_writes_to_its_input_is_exported():
    x = torch.rand(3, 8)
    conv2affine.onnx.export(Function(lambda x: x.add_(1)), x)
    assert (x <= 1).all()


def test_a_sparse_constant_is_refused_with_the_reason():
    sparse = torch.eye(8).to_sparse_csr()
    with pytest.raises(NotImplementedError, match="Sparse CSR tensors"):
        conv2affine.to_linear_network(Function(lambda x: (sparse @ x.t()).t()), torch.rand(2, 8))
