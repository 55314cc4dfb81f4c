"""Complex arithmetic inside of networks of real numbers: pairs of real vectors, and what is not affine kept by name."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import onnx, to_linear, to_linear_network, to_mlp
from tests.network.models import Converted, Function, samples, written

J = torch.tensor(1j, dtype=torch.complex128)
LINE, IMAGE = (2, 6, 2), (2, 5, 6)
VIEW, BACK = torch.view_as_complex, torch.view_as_real


def constant(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


DIAGONAL, MATRIX, SQUARE, BIAS, ROW, KERNEL, LOW = (
    constant(*shape) for shape in ((2, 6), (6, 4), (2, 2), (4,), (6,), (1, 2, 2, 3), (2, 3, 2))
)
WINDOW, MASK = torch.hann_window(4, dtype=torch.float64), torch.arange(6) > 2


def spectral(x):
    """A layer of a Fourier neural operator."""
    f = torch.fft.rfft(x)
    low = torch.zeros(len(x), 3, f.shape[-1], dtype=f.dtype)
    low[..., :2] = torch.einsum("bix,iox->box", f[..., :2], LOW)
    return torch.fft.irfft(low, n=x.shape[-1])


AFFINE = {
    # From and to real numbers
    "view": (lambda x: BACK(VIEW(x)), LINE),
    "view-dtype": (lambda x: (x.view(torch.complex128) * J).view(torch.float64), LINE),
    "complex": (lambda x: torch.complex(x, x.flip(1)).imag, IMAGE),
    "complex-of-a-constant": (lambda x: (torch.complex(x, torch.ones_like(x)) * 2j).real, IMAGE),
    "cast": (lambda x: BACK(x.to(torch.complex128) * DIAGONAL[:, :1, None]), IMAGE),
    "real-times-complex": (lambda x: torch.imag(x * ROW), IMAGE),
    "polar": (lambda x: BACK(torch.polar(x, torch.arange(6.0, dtype=torch.float64))), IMAGE),
    "conj": (lambda x: VIEW(x).conj().imag + BACK(VIEW(x).conj().resolve_conj())[..., 0], LINE),
    "complex-ones-like": (lambda x: BACK(VIEW(x) + torch.full_like(VIEW(x), 1 - 2j)), LINE),
    # Arithmetic
    "add": (lambda x: BACK(1j + VIEW(x) - DIAGONAL + torch.arange(6)), LINE),
    "add-real": (lambda x: BACK(torch.add(VIEW(x), x[..., 0], alpha=3)), LINE),
    "add-broadcasts": (lambda x: BACK(VIEW(x)[:, :1] + J * x[:, :, :1, 1]), LINE),
    "rsub": (lambda x: BACK(2j - VIEW(x)), LINE),
    "mul": (lambda x: BACK(VIEW(x) * DIAGONAL * (1 - 2j)), LINE),
    "div": (lambda x: BACK(VIEW(x) / DIAGONAL + VIEW(x) / (2 - 1j) + VIEW(x) / 4 + VIEW(x) / torch.arange(1, 7)), LINE),
    "real-over-complex": (lambda x: BACK(x / ROW), IMAGE),
    "addcmul": (lambda x: BACK(torch.addcmul(VIEW(x), VIEW(x), DIAGONAL, value=2)), LINE),
    "lerp": (lambda x: BACK(torch.lerp(VIEW(x), VIEW(x).flip(1), 0.3)), LINE),
    "matmul": (lambda x: BACK(VIEW(x) @ MATRIX + SQUARE @ VIEW(x)[..., :4]), LINE),
    "inverse-of-a-constant": (lambda x: BACK(torch.linalg.inv(SQUARE) @ VIEW(x)), LINE),
    "linear": (nn.Sequential(Function(VIEW), nn.Linear(6, 4, dtype=torch.complex128), Function(BACK)), LINE),
    "linear-by-hand": (lambda x: BACK(F.linear(VIEW(x), MATRIX.T, BIAS)), LINE),
    "addmm": (lambda x: BACK(torch.addmm(BIAS, VIEW(x)[:, 0], MATRIX, beta=2, alpha=3)), LINE),
    "einsum": (lambda x: torch.einsum("bci,ik,kc->bk", VIEW(x), MATRIX, MATRIX[:4, :2]).imag, LINE),
    "conv": (
        nn.Sequential(Function(VIEW), nn.Conv1d(2, 3, 3, 2, 1, dtype=torch.complex128), Function(BACK)),
        LINE,
    ),
    "conv-transpose": (
        nn.Sequential(Function(VIEW), nn.ConvTranspose1d(2, 3, 3, dtype=torch.complex128), Function(BACK)),
        LINE,
    ),
    "conv-2d-of-real": (lambda x: BACK(F.conv2d(x.to(torch.complex128), KERNEL)), IMAGE),
    # Moving and sums
    "moving": (lambda x: BACK(VIEW(x).flip(1).roll(1, 2).transpose(1, 2).reshape(len(x), 4, 3)[:, ::2]), LINE),
    "cat": (lambda x: BACK(torch.cat([VIEW(x), DIAGONAL.expand(len(x), -1, -1), x.to(J.dtype)[..., 0]], 1)), LINE),
    "stack": (lambda x: BACK(torch.stack([VIEW(x), VIEW(x).conj()], 1)), LINE),
    "split": (lambda x: BACK(torch.cat(VIEW(x).split([2, 4], -1)[::-1], -1) + sum(VIEW(x).chunk(2, 1))), LINE),
    "index": (lambda x: BACK(VIEW(x)[:, [1, 0]][..., MASK]), LINE),
    "where": (lambda x: BACK(torch.where(MASK, VIEW(x), x[..., 0].to(J.dtype) * 2j + 1)), LINE),
    "masked-fill": (lambda x: BACK(VIEW(x).masked_fill(MASK, 2 - 1j)), LINE),
    "pad": (lambda x: BACK(F.pad(VIEW(x), (1, 2), value=1.5)), LINE),
    "written": (lambda x: BACK(written(VIEW(x), (slice(None), 1), 2j)), LINE),
    "written-in-place": (lambda x: (lambda z: (z.mul_(2j), z.real.add_(1), BACK(z))[-1])(VIEW(x.clone())), LINE),
    "sums": (lambda x: BACK(VIEW(x).sum(-1) + VIEW(x).mean(-1) + VIEW(x).cumsum(-1)[..., 2]), LINE),
    # Fourier transforms
    "fft": (lambda x: BACK(torch.fft.fft(x)), IMAGE),
    "fft-of-complex": (lambda x: BACK(torch.fft.fft(VIEW(x), norm="ortho")), LINE),
    "fft-longer": (lambda x: torch.fft.fft(x, n=9, dim=2).imag, IMAGE),
    "ifft": (lambda x: BACK(torch.fft.ifft(VIEW(x), n=5)), LINE),
    "fft2": (lambda x: BACK(torch.fft.fft2(x)), IMAGE),
    "fftn-shift": (lambda x: BACK(torch.fft.fftshift(torch.fft.fftn(x, dim=(1, 3), norm="forward"), (1, 3))), IMAGE),
    "rfft": (lambda x: BACK(torch.fft.rfft(x)), IMAGE),
    "irfft": (lambda x: torch.fft.irfft(torch.fft.rfft(x) * BIAS), IMAGE),
    "irfft-odd": (lambda x: torch.fft.irfft(VIEW(x), n=7, norm="ortho"), LINE),
    "rfft2": (lambda x: BACK(torch.fft.rfft2(x, norm="ortho")), IMAGE),
    "irfft2": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(5, 6)), IMAGE),
    "hfft": (lambda x: torch.fft.hfft(VIEW(x)), LINE),
    "ihfft": (lambda x: torch.fft.ihfft(x).imag, IMAGE),
    "stft": (lambda x: BACK(torch.stft(x.flatten(1), 8, 4, window=WINDOW.repeat(2), return_complex=True)), IMAGE),
    "istft": (
        lambda x: torch.istft(torch.stft(x.flatten(1), 4, 2, window=WINDOW, return_complex=True), 4, 2, window=WINDOW),
        IMAGE,
    ),
    "analytic-signal": (lambda x: torch.fft.ifft(torch.fft.fft(x) * torch.tensor([1, 2, 2, 1, 0, 0])).imag, IMAGE),
    "convolution-by-fft": (lambda x: torch.fft.irfft(torch.fft.rfft(x, 8) * torch.fft.rfft(WINDOW, 8), 8), IMAGE),
    "spectral": (lambda x: spectral(x), (2, 6)),
}


LINEAR = Converted(to_linear, AFFINE)


@pytest.mark.parametrize("name", AFFINE)
def test_affine(name):
    model, fc, number = LINEAR.of(name)
    x = samples(3, *AFFINE[name][1])
    result = fc(x.flatten(1))[:, fc.output_slices[number]]
    torch.testing.assert_close(result, model.one(number, x).flatten(1), atol=1e-12, rtol=0)


class Net(nn.Module):
    """Complex convolutions with a ReLU on each part between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 3, 3, padding=1, dtype=torch.complex64)
        self.second = nn.Conv1d(3, 2, 3, stride=2, dtype=torch.complex64)
        self.scale = nn.Parameter(torch.randn(3, 1, dtype=torch.complex64))

    def forward(self, x):
        z = self.first(VIEW(x)) * self.scale
        return BACK(self.second(torch.complex(F.relu(z.real), F.relu(z.imag))))


def test_network_in_float32():
    model, x = Net(), samples(4, 1, 10, 2, dtype=torch.float32)
    net, mlp = to_linear_network(model, x), to_mlp(model, x)
    assert [row.kind for row in net.plan.rows if not row.layout] == ["relu"] * 2
    torch.testing.assert_close(net(x), model(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(mlp(x), model(x).flatten(1), atol=1e-5, rtol=0)
    assert all(parameter.is_complex() for parameter in model.parameters())


@pytest.mark.parametrize("form", ["graph", "mlp"])
def test_export(form):
    x = samples(4, 1, 10, 2, dtype=torch.float32)
    made = onnx.export(Net().eval(), x, form=form)
    assert made.difference < 1e-5
    assert not made.kept


def test_export_of_a_conjugate_view():
    x = samples(2, 5, 2, dtype=torch.float32)
    assert onnx.export(Function(lambda x: VIEW(x).conj().imag).eval(), x).difference == 0


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("held", ["program", "trace"])
def test_held(held):
    model, x = Net().eval(), samples(4, 1, 10, 2, dtype=torch.float32)
    file = io.BytesIO()
    if held == "program":
        made = torch.export.export(model, (x[:1],))
    else:
        torch.jit.save(torch.jit.trace(model, x), file)
        file.seek(0)
        made = torch.jit.load(file)
    torch.testing.assert_close(to_mlp(made, x)(x), model(x).flatten(1), atol=1e-5, rtol=0)


# The function, what is kept, and what to_mlp says.
KEPT = {
    "abs": (lambda x: VIEW(x * 2).abs(), ["hypot"], "the absolute value of complex numbers"),
    "angle": (lambda x: VIEW(x * 2).angle(), ["atan2"], "atan2 must be affine"),
    "square": (lambda x: (VIEW(x) * VIEW(x).conj()).real, ["mul"] * 2, "it multiplies values"),
    "tanh": (lambda x: BACK(torch.tanh(2 * VIEW(x)) * 1j), ["complex", "tanh", "view_as_real"], "tanh must be affine"),
    "exp": (lambda x: BACK(torch.exp(1j * x)), ["complex", "exp", "view_as_real"], "exp must be affine"),
    "complex-output": (lambda x: VIEW(x) * 2j, ["complex"], "it is computed in torch.complex128"),
    "complex-outputs": (lambda x: {"a": VIEW(x), "b": 1j * VIEW(x)}, ["complex"] * 2, "complex must be affine"),
}


@pytest.mark.parametrize(("function", "kept", "message"), KEPT.values(), ids=KEPT)
def test_kept(function, kept, message):
    model, x = Function(function), samples(3, *LINE)
    net = to_linear_network(model, x)
    assert [row.kind.removeprefix("kept: ") for row in net.plan.kept] == kept
    torch.testing.assert_close(net(x), model(x), atol=1e-12, rtol=0)
    with pytest.raises(NotImplementedError, match=message):
        to_mlp(model, x)
