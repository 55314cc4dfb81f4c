"""Each operator alone, over its arguments: as one linear layer, as a step of a known kind, or kept."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import SparseLinear, to_linear, to_linear_network, to_mlp
from tests.network.models import Converted, Function, written

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated"),
    pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter"),
    pytest.mark.filterwarnings(r"ignore:index_reduce\(\) is in beta"),
]


def constant(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


LINE, IMAGE, VOLUME, MATRIX = (2, 6), (2, 5, 6), (2, 3, 4, 5), (4, 3)
MASK = constant(2, 5, 6) > 0
BATCH_NORM = nn.BatchNorm2d(2).double().eval()
with torch.no_grad():
    for tensor in (*BATCH_NORM.parameters(), BATCH_NORM.running_mean):
        tensor.copy_(constant(2, seed=1))
INSTANCE_NORM = nn.InstanceNorm2d(2, affine=True, track_running_stats=True).double().eval()
INSTANCE_NORM.load_state_dict(BATCH_NORM.state_dict())

COLUMNS = torch.from_numpy(np.random.default_rng(0).integers(5, size=(1, 2, 5, 6)))
PLACES = torch.from_numpy(np.random.default_rng(0).permutation(120)[:30]).view(1, 1, 5, 6).repeat(1, 2, 1, 1)
THIRDS = (torch.arange(5) % 3).view(1, 1, 5, 1).expand(1, 2, 5, 6)
GRID = constant(1, 3, 4, 2)
LABELS = torch.tensor([[0, 3, -1, 0, 0, 0]])
SQUARE = constant(5, 5) + 5 * torch.eye(5)


class OfGraph(nn.Module):
    """A function of a sparse matrix."""

    def __init__(self, function):
        super().__init__()
        self.function, self.matrix = function, (constant(4, 5) * (constant(4, 5) > 0)).to_sparse()

    def forward(self, x):
        return self.function(self.matrix, x)


AFFINE = {
    # Arithmetic with constants
    "add": (lambda x: x + constant(5, 1), IMAGE),
    "add-scalar-alpha": (lambda x: torch.add(x, 3.0, alpha=0.1), IMAGE),
    "add-broadcasts-the-value": (lambda x: x.mean(2, keepdim=True) + constant(5, 6), IMAGE),
    "sub": (lambda x: x - constant(6), IMAGE),
    "where-infinite-elsewhere": (
        lambda x: torch.where(MASK, x, torch.where(MASK, -torch.inf, constant(6))) + MASK,
        IMAGE,
    ),
    "sub-alpha": (lambda x: torch.sub(x, x.flip(1), alpha=3), IMAGE),
    "rsub": (lambda x: 1 - x, IMAGE),
    "rsub-tensor": (lambda x: torch.rsub(x, constant(5, 6), alpha=2), IMAGE),
    "neg": (lambda x: -x, IMAGE),
    "mul": (lambda x: constant(2, 1, 6) * x, IMAGE),
    "ldexp": (lambda x: torch.ldexp(x, torch.tensor([3, -1, 0, 1, 2, 4])), IMAGE),
    "mul-broadcasts-the-value": (lambda x: x[:, :1] * constant(3, 5, 6), IMAGE),
    "mul-scalar": (lambda x: x * 0.1, IMAGE),
    "mul-mask": (lambda x: x * MASK, IMAGE),
    "div": (lambda x: x / 3, IMAGE),
    "div-tensor": (lambda x: x / constant(5, 6), IMAGE),
    "div-scalar": (lambda x: torch.gradient(x, spacing=2.0, dim=2)[0], IMAGE),
    "where": (lambda x: torch.where(MASK, x, constant(6)), IMAGE),
    "where-both": (lambda x: torch.where(MASK, x.flip(2), 2 * x), IMAGE),
    "masked-fill": (lambda x: x.masked_fill(MASK, 3.5), IMAGE),
    "lerp-with-constants": (lambda x: 0.3 * x + 0.7 * x.roll(1, 1), IMAGE),
    "full-like": (lambda x: x + torch.full_like(x, 2.5), IMAGE),
    # Moving
    "view": (lambda x: x.view(len(x), -1, 3), IMAGE),
    "view-copied": (lambda x: torch.permute_copy(torch.view_copy(x, (len(x), 10, 6)), (0, 2, 1)), IMAGE),
    "permute": (lambda x: x.permute(0, 3, 1, 2), IMAGE),
    "transpose-the-batch-away-and-back": (lambda x: x.transpose(0, 1).flip(0).transpose(0, 1), IMAGE),
    "slice": (lambda x: x[:, 1:, ::2, 3:5], IMAGE),
    "select": (lambda x: x[:, 1], IMAGE),
    "index": (lambda x: x[:, [1, 0, 0], [4, 1, 1]], IMAGE),
    "index-mask": (lambda x: x[:, :, MASK[0, :, 0]].flatten(2) * 2, IMAGE),
    "index-mask-computed": (lambda x: 2 * x[..., constant(6) > 0].flatten(2), IMAGE),
    "index-nonzero": (lambda x: x[:, MASK.nonzero()[:, 0]], IMAGE),
    "index-select": (lambda x: x.index_select(2, torch.tensor([4, 0, 0])), IMAGE),
    "gather": (lambda x: x.gather(1, torch.tensor([[[[1] * 6] * 5]]).expand(len(x), -1, -1, -1)), IMAGE),
    "expand": (lambda x: x[:, :, None].expand(-1, -1, 3, -1, -1), IMAGE),
    "repeat": (lambda x: x.repeat(1, 2, 1, 3), IMAGE),
    "repeat-interleave": (lambda x: x.repeat_interleave(2, dim=1), IMAGE),
    "flip": (lambda x: x.flip(1, 3), IMAGE),
    "roll": (lambda x: x.roll((1, 2), (2, 3)), IMAGE),
    "cat": (lambda x: torch.cat([x, constant(1, 1, 5, 6).expand(len(x), -1, -1, -1), x.flip(1)], 1), IMAGE),
    "stack": (lambda x: torch.stack([x, 2 * x], 2), IMAGE),
    "cat-nothing": (lambda x: 2 * torch.cat([x[:, :0], x, x[:, 2:2]], 1), IMAGE),
    "split": (lambda x: torch.cat(x.split([1, 4], 2)[::-1], 2), IMAGE),
    "chunk": (lambda x: sum(x.chunk(3, 3)), IMAGE),
    "unbind": (lambda x: x.unbind(1)[1], IMAGE),
    "unfold": (lambda x: x.unfold(2, 3, 2), IMAGE),
    "im2col": (lambda x: F.unfold(x, 3, padding=1, stride=2), IMAGE),
    "tril": (lambda x: x.tril(), IMAGE),
    "diagonal": (lambda x: x.diagonal(dim1=2, dim2=3), IMAGE),
    "pixel-shuffle": (lambda x: F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2), IMAGE),
    "pixel-unshuffle": (lambda x: F.pixel_unshuffle(x[:, :, :4], 2), IMAGE),
    "channel-shuffle": (lambda x: F.channel_shuffle(x.repeat(1, 2, 1, 1), 2), IMAGE),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3), value=1.5), IMAGE),
    "pad-cuts": (lambda x: F.pad(x, (-1, 2)), IMAGE),
    **{
        f"pad-{mode}": (lambda x, mode=mode: F.pad(x, (1, 2, 2, 0), mode), IMAGE)
        for mode in ("reflect", "replicate", "circular")
    },
    **{
        f"pad-{mode}-1d": (lambda x, mode=mode: F.pad(x, (3, 2), mode), LINE)
        for mode in ("reflect", "replicate", "circular")
    },
    **{
        f"pad-{mode}-3d": (lambda x, mode=mode: F.pad(x, (1, 2, 0, 1, 1, 2), mode), VOLUME)
        for mode in ("reflect", "replicate", "circular")
    },
    "sparse-linear": (SparseLinear(constant(3, 6).to_sparse_csr()), LINE),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), IMAGE),
    "nearest-1d": (lambda x: F.interpolate(x, 9), LINE),
    "nearest-3d": (lambda x: F.interpolate(x, (4, 3, 7)), VOLUME),
    "nearest-exact": (lambda x: F.interpolate(x, (7, 4), mode="nearest-exact"), IMAGE),
    "slice-assignment": (lambda x: F.pad(torch.cat([x[:, :, :2], 0 * x[:, :, 2:]], 2), (0, 1)), IMAGE),
    "resolve-conj": (lambda x: torch.view_as_real(torch.view_as_complex(x).conj().resolve_conj()), (2, 6, 2)),
    "neg-view": (lambda x: torch.view_as_complex(x).conj().imag, (2, 6, 2)),
    "resolve-neg": (lambda x: torch.view_as_complex(x).conj().imag.resolve_neg(), (2, 6, 2)),
    "clone-detach-contiguous": (lambda x: x.clone().detach().contiguous(), IMAGE),
    "dropout": (nn.Dropout(0.5), IMAGE),
    # Sums
    "mean": (lambda x: x.mean((2, 3)), IMAGE),
    "mean-keepdim": (lambda x: x.mean(1, keepdim=True), IMAGE),
    "sum": (lambda x: x.sum(-1), IMAGE),
    "cumsum-dtype": (lambda x: x.cumsum(2, dtype=x.dtype) + x.sum(2, keepdim=True, dtype=x.dtype), IMAGE),
    "cumsum": (lambda x: x.cumsum(2), IMAGE),
    # Products with constants
    "linear": (nn.Linear(6, 4), (6,)),
    "solve": (lambda x: torch.linalg.solve(SQUARE, x), (2, 5, 3)),
    "solve-from-right": (lambda x: torch.linalg.solve(SQUARE, x, left=False), (2, 3, 5)),
    "solve-triangular": (lambda x: torch.linalg.solve_triangular(SQUARE, x, upper=True), (2, 5, 3)),
    "solve-triangular-from-right": (
        lambda x: torch.linalg.solve_triangular(SQUARE, x, upper=False, left=False, unitriangular=True),
        (2, 3, 5),
    ),
    "triangular-solve": (lambda x: torch.triangular_solve(x, SQUARE, transpose=True)[0], (2, 5, 3)),
    "lu-solve": (lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(SQUARE), x), (2, 5, 3)),
    "lu-solve-adjoint": (
        lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(SQUARE), x, adjoint=True),
        (2, 5, 3),
    ),
    "inverse-of-a-literal": (lambda x: torch.linalg.inv(torch.tensor([[2.0, 1], [0, 1]]).double()) @ x, (2, 2, 3)),
    "cholesky-solve": (lambda x: torch.cholesky_solve(x, SQUARE.tril()), (2, 5, 3)),
    "nan-to-num": (lambda x: 2 * torch.nan_to_num(x), IMAGE),
    "linear-positions": (nn.Linear(6, 4, bias=False), IMAGE),
    "matmul": (lambda x: x @ constant(6, 3), IMAGE),
    "matmul-left": (lambda x: constant(3, 5) @ x, IMAGE),
    "matmul-batched": (lambda x: x @ constant(2, 6, 3), IMAGE),
    "matmul-batched-left": (lambda x: constant(2, 3, 5) @ x, IMAGE),
    "matmul-repeated": (lambda x: (x[:, None] @ constant(3, 2, 6, 4)).flatten(1), IMAGE),
    "matmul-repeated-left": (lambda x: constant(3, 1, 4, 5) @ x[:, None], IMAGE),
    "matmul-ensemble": (lambda x: torch.matmul(x, constant(3, 6, 4)).transpose(0, 1), (6,)),
    "matmul-vector": (lambda x: x @ constant(6), IMAGE),
    "matmul-vector-left": (lambda x: constant(5) @ x, IMAGE),
    "addmm": (lambda x: torch.addmm(constant(3), x, constant(6, 3), alpha=2, beta=0.5), (6,)),
    "bmm": (lambda x: torch.bmm(x, constant(1, 6, 3).expand(len(x), -1, -1)), LINE),
    "mm": (lambda x: torch.mm(x, constant(6, 3)), (6,)),
    "matmul-sparse": (OfGraph(lambda a, x: (a @ x.movedim(0, 1).flatten(1)).view(4, -1, 3).movedim(1, 0)), (5, 3)),
    "sparse-addmm": (
        OfGraph(lambda a, x: torch.stack([torch.sparse.addmm(h[:4], a, h, beta=2.0, alpha=0.5) for h in x])),
        (5, 3),
    ),
    "addmv": (lambda x: torch.stack([torch.addmv(constant(4), constant(4, 6), row, alpha=2) for row in x]), (6,)),
    "addbmm": (
        lambda x: torch.stack([torch.addbmm(constant(5, 3), y, constant(2, 6, 3), beta=2, alpha=0.5) for y in x]),
        IMAGE,
    ),
    "baddbmm": (lambda x: torch.baddbmm(constant(5, 3), x[:, 0], constant(1, 6, 3).expand(len(x), -1, -1)), IMAGE),
    "to-the-same-dtype": (lambda x: x.to(torch.float64, copy=True), IMAGE),
    "split-evenly": (lambda x: torch.cat(x.split(2, 3)[1:], 2), IMAGE),
    "triu": (lambda x: x.triu(1), IMAGE),
    "slice-written": (
        lambda x: torch.slice_scatter(x, constant(1, 2, 2, 6).expand(len(x), -1, -1, -1), 2, 1, 3),
        IMAGE,
    ),
    "select-written": (lambda x: torch.select_scatter(x, x[:, 1], 1, 0), IMAGE),
    "einsum": (lambda x: torch.einsum("nchw,hd->ncdw", x, constant(5, 3)), IMAGE),
    "einsum-channels": (lambda x: torch.einsum("oc,nchw->nohw", constant(4, 2), x), IMAGE),
    "bilinear-with-a-constant": (lambda x: F.linear(x.transpose(1, 3), constant(4, 2)).transpose(1, 3), IMAGE),
    # Normalisation
    "batch-norm": (BATCH_NORM, IMAGE),
    "batch-norm-1d": (nn.BatchNorm1d(6).eval(), (6,)),
    "batch-norm-3d": (nn.BatchNorm3d(2, affine=False).eval(), VOLUME),
    # Pooling
    "avg-pool-1d": (nn.AvgPool1d(3, 2, 1), LINE),
    "avg-pool-2d": (nn.AvgPool2d((2, 3), (1, 2)), IMAGE),
    "avg-pool-3d": (nn.AvgPool3d(2, padding=1), VOLUME),
    "avg-pool-ceil": (nn.AvgPool2d(2, ceil_mode=True), IMAGE),
    "avg-pool-ceil-padding": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "avg-pool-without-padding": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    "avg-pool-divisor": (nn.AvgPool2d(3, 2, 1, divisor_override=5), IMAGE),
    "adaptive-avg-pool-1d": (nn.AdaptiveAvgPool1d(4), LINE),
    "adaptive-avg-pool-2d": (nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "adaptive-avg-pool-3d": (nn.AdaptiveAvgPool3d((2, None, 3)), VOLUME),
    "global-avg-pool": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "lp-pool-1": (lambda x: F.avg_pool2d(x, 2) * 4, IMAGE),
    # Resizing
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear-aligned": (lambda x: F.interpolate(x, (3, 9), mode="bilinear", align_corners=True), IMAGE),
    "bilinear-scale": (lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"), IMAGE),
    "linear-1d": (lambda x: F.interpolate(x, 9, mode="linear"), LINE),
    "trilinear": (lambda x: F.interpolate(x, (2, 7, 6), mode="trilinear"), VOLUME),
    "bicubic": (lambda x: F.interpolate(x, (7, 4), mode="bicubic"), IMAGE),
    "bicubic-scale": (lambda x: F.interpolate(x, scale_factor=1.3, mode="bicubic", align_corners=True), IMAGE),
    # Convolutions
    "conv1d": (nn.Conv1d(2, 3, 3, 2, 1), LINE),
    "conv2d": (nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), (1, 2), groups=2), IMAGE),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1, bias=False), VOLUME),
    "conv-by-its-operator": (
        lambda x: torch._convolution(x, constant(3, 2, 3, 3), None, [1], [1], [1], False, [0], 1, False, False, True),
        IMAGE,
    ),
    "conv-of-time-first": (
        lambda x: torch.conv_tbc(x.transpose(0, 1).contiguous(), constant(3, 6, 4), constant(4), 1).transpose(0, 1),
        LINE,
    ),
    "conv-same": (nn.Conv2d(2, 3, (2, 3), padding="same"), IMAGE),
    "conv-circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv-reflect-same": (nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"), LINE),
    "conv-transposed-1d": (nn.ConvTranspose1d(2, 3, 3, 2, 1, 1), LINE),
    "conv-transposed-2d": (nn.ConvTranspose2d(2, 4, 3, 2, 1, groups=2, dilation=2, output_padding=1), IMAGE),
    "conv-transposed-3d": (nn.ConvTranspose3d(2, 1, 2), VOLUME),
    "conv-for-each-frame": (
        lambda x: F.conv1d(x.flatten(0, 1), constant(4, 5, 3), constant(4)).unflatten(0, (-1, 2)),
        IMAGE,
    ),
    # Written into
    "index-fill": (lambda x: x.index_fill(2, torch.tensor([1, 3]), 0.5), IMAGE),
    "index-add": (lambda x: x.index_add(2, torch.tensor([1, 3]), x[:, :, :2]), IMAGE),
    "scatter": (lambda x: x.scatter(2, COLUMNS.expand(len(x), -1, -1, -1)[:, :, :2], 1.5), IMAGE),
    "scatter-reduce": (
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "sum"),
        IMAGE,
    ),
    "scatter-add": (lambda x: x.scatter_add(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1)), IMAGE),
    "scatter-with-reduction": (
        lambda x: x.scatter(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), reduce="add"),
        IMAGE,
    ),
    "scatter-mean": (
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "mean"),
        IMAGE,
    ),
    "scatter-mean-of-others": (
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "mean", include_self=False),
        IMAGE,
    ),
    "index-reduce-mean": (lambda x: x.index_reduce(2, torch.tensor([1, 3, 1]), x[:, :, :3], "mean"), IMAGE),
    "diagonal-written": (lambda x: torch.diagonal_scatter(x, x[:, :, :, 5], dim1=2, dim2=3), IMAGE),
    "mask-written": (lambda x: x.masked_scatter(MASK, x.flatten(1)[:, : MASK.sum()]), IMAGE),
    "max-unpool": (lambda x: F.max_unpool2d(x, PLACES.expand(len(x), -1, -1, -1), 2), IMAGE),
    "max-unpool-3d": (lambda x: F.max_unpool3d(x[:, :, None], PLACES[:, :, None].repeat(len(x), 1, 1, 1, 1), 2), IMAGE),
    "index-written": (lambda x: written(x, (slice(None), [0, 1], [2, 3]), 0), IMAGE),
    "index-written-with-values": (lambda x: written(x, (slice(None), 0, [2, 3]), 2 * x[:, 1, :2]), IMAGE),
    "column-written": (lambda x: written(x, (slice(None), 0), 0), IMAGE),
    "slice-written-with-values": (lambda x: written(x, (slice(None), slice(None), slice(1, 3)), x[:, :, :2]), IMAGE),
    "constants-written": (lambda x: written(x.new_ones(len(x), 4, 5, 6), (slice(None), slice(0, 4, 2)), x), IMAGE),
    "fold": (lambda x: F.fold(F.unfold(x, (3, 2), padding=1, stride=2), (5, 6), (3, 2), padding=1, stride=2), IMAGE),
    # Resampling
    "instance-norm-with-statistics": (INSTANCE_NORM, IMAGE),
    "instance-norm-with-statistics-1d": (nn.InstanceNorm1d(2, track_running_stats=True), LINE),
    "grid-sample": (lambda x: F.grid_sample(x, GRID.expand(len(x), -1, -1, -1), align_corners=False), IMAGE),
    "grid-sample-nearest": (
        lambda x: F.grid_sample(x, GRID.expand(len(x), -1, -1, -1), "nearest", "border", align_corners=True),
        IMAGE,
    ),
    "grid-sample-cubic": (
        lambda x: F.grid_sample(x, 3 * GRID.expand(len(x), -1, -1, -1), "bicubic", "reflection", align_corners=False),
        IMAGE,
    ),
    "grid-sample-3d": (
        lambda x: F.grid_sample(x, constant(1, 2, 3, 2, 3).expand(len(x), -1, -1, -1, -1), align_corners=False),
        VOLUME,
    ),
    "antialiased": (lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True), IMAGE),
    "antialiased-cubic": (lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True), IMAGE),
    # Products that are linear after all
    "bilinear-layer": (lambda x: F.bilinear(x, constant(5, 4).expand(*x.shape[:2], -1, -1), constant(3, 6, 4)), IMAGE),
    "bilinear-layer-right": (
        lambda x: F.bilinear(constant(5, 4).expand(*x.shape[:2], -1, -1), x, constant(3, 4, 6), constant(3)),
        IMAGE,
    ),
    "power-of-one": (lambda x: 2 * x**1, IMAGE),
    "conv-weight-computed": (lambda x: F.conv2d(x, F.normalize(constant(3, 2, 3, 3), dim=1)), IMAGE),
}


LINEAR = Converted(to_linear, AFFINE)


@pytest.mark.parametrize("name", AFFINE)
def test_affine(name):
    model, fc, number = LINEAR.of(name)
    x = constant(3, *AFFINE[name][1], seed=3)
    result = fc(x.flatten(1))[:, fc.output_slices[number]]
    torch.testing.assert_close(result, model.one(number, x).flatten(1), atol=1e-12, rtol=0)


X, FEW, ORDERED = IMAGE, (3, 4), "minimum, maximum"
STEPS = {
    "relu": ("relu", F.relu, X),
    "relu6": ("clip", F.relu6, X),
    "leaky-relu": ("leaky_relu", lambda x: F.leaky_relu(x, 0.3), X),
    "leaky-relu-default": ("leaky_relu", F.leaky_relu, X),
    "leaky-relu-steep": ("leaky_relu", lambda x: F.leaky_relu(x, -1.5), X),
    "prelu": ("leaky_relu", nn.PReLU(), X),
    "prelu-channels": ("leaky_relu", lambda x: F.prelu(x, constant(2)), X),
    "hardtanh": ("clip", lambda x: F.hardtanh(x, -0.5, 0.25), X),
    "hardsigmoid": ("clip", lambda x: F.hardsigmoid(4 * x), X),
    "clamp-low": ("clip", lambda x: x.clamp(min=0.1), X),
    "clamp-high": ("clip", lambda x: x.clamp(max=-0.1), X),
    "clamp-crossed": ("clip", lambda x: x.clamp(0.5, -0.5), X),
    "clamp-tensors": ("clip", lambda x: torch.clamp(x, constant(6) - 1, constant(5, 1) + 1), X),
    "threshold": ("clip", lambda x: F.threshold(x, 0.2, 0.2), X),
    "abs": ("abs", torch.abs, X),
    "norm-1": ("abs", lambda x: x.norm(1, dim=1), X),
    "norm-1-axes": ("abs", lambda x: torch.linalg.vector_norm(x, 1, (1, -1), keepdim=True), X),
    "norm-inf": ("abs, window_max", lambda x: torch.linalg.vector_norm(x, torch.inf, 2), X),
    "norm-minus-inf": ("abs, window_min", lambda x: torch.linalg.vector_norm(x, -torch.inf, (2, 3)), X),
    "pairwise-distance-1": ("abs", lambda x: F.pairwise_distance(x, x.flip(1), p=1), X),
    "maximum": ("maximum", lambda x: torch.maximum(x, 1 - x), X),
    "fmax": ("maximum", lambda x: torch.fmax(x, 1 - x), X),
    "fmin": ("minimum", lambda x: torch.fmin(x, 1 - x), X),
    "maximum-broadcast": ("maximum", lambda x: torch.maximum(x.mean(2, keepdim=True), x), X),
    "maximum-constant": ("clip", lambda x: torch.maximum(constant(5, 6), x), X),
    "minimum": ("minimum", lambda x: torch.minimum(x, x.roll(1, 3)), X),
    "minimum-constant": ("clip", lambda x: torch.minimum(x, constant(6)), X),
    "amax": ("window_max", lambda x: x.amax((1, 3)), X),
    "amax-keepdim": ("window_max", lambda x: x.amax(2, keepdim=True), X),
    "amin": ("window_min", lambda x: x.amin((1, 3)), X),
    "min-dim": ("window_min", lambda x: x.min(1).values, X),
    "max-dim": ("window_max", lambda x: x.max(1).values, X),
    "max-pool-1d": ("window_max", nn.MaxPool1d(3, 2, 1), LINE),
    "max-pool-2d": ("window_max", nn.MaxPool2d((2, 3), (1, 2), (1, 0), dilation=(2, 1)), X),
    "max-pool-3d": ("window_max", nn.MaxPool3d(2, 1), VOLUME),
    "max-pool-ceil": ("window_max", nn.MaxPool2d(3, 2, 1, ceil_mode=True), X),
    "max-pool-3d-first-result": ("window_max", lambda x: F.max_pool3d(x, 2, return_indices=True)[0], VOLUME),
    "running-maximum": ("window_max", lambda x: x.cummax(2).values, X),
    "running-minimum": ("window_min", lambda x: x.cummin(-1).values, X),
    "scatter-maximum": (
        "window_max",
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "amax"),
        X,
    ),
    "scatter-minimum-of-others": (
        "window_min",
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "amin", include_self=False),
        X,
    ),
    "scatter-maximum-from-infinities": (
        "window_max",
        lambda x: x.new_full((len(x), 2, 3, 6), -torch.inf).scatter_reduce(
            2, THIRDS.expand(len(x), -1, -1, -1), x, "amax"
        ),
        X,
    ),
    "index-reduce-maximum": (
        "window_max",
        lambda x: x.index_reduce(2, torch.tensor([1, 3, 1]), constant(1, 2, 3, 6).expand(len(x), -1, -1, -1), "amax"),
        X,
    ),
    "sort": (ORDERED, lambda x: x.sort(2).values, FEW),
    "sort-descending": (ORDERED, lambda x: x.sort(dim=1, descending=True, stable=True)[0], FEW),
    "sort-pairs": (ORDERED, lambda x: x.view(len(x), -1, 2).sort().values.flatten(1), FEW),
    "topk": (ORDERED, lambda x: x.topk(2, 2).values, FEW),
    "topk-smallest": (ORDERED, lambda x: x.topk(3, 1, largest=False)[0], FEW),
    "kthvalue": (ORDERED, lambda x: x.kthvalue(2, 2).values, FEW),
    "median": (ORDERED, lambda x: x.median(2).values, FEW),
    "median-filter": (ORDERED, lambda x: x.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).median(-1).values, FEW),
    "nanmedian": (ORDERED, lambda x: x.nanmedian(1, keepdim=True).values, FEW),
    "quantile": (ORDERED, lambda x: torch.quantile(x, 0.3, dim=2), FEW),
    "clamp-values": (ORDERED, lambda x: torch.clamp(x, x.roll(1, 3), x.roll(2, 3) + 1), X),
    "extremes": ("window_max, window_min", lambda x: torch.stack(torch.aminmax(x, dim=2), 1), X),
    "distances-1": ("abs", lambda x: torch.cdist(x, x.flip(1), p=1), X),
    "distances-inf": ("abs, window_max", lambda x: torch.cdist(x, constant(3, 6), p=torch.inf), X),
    "max-pool-first-result": ("window_max", lambda x: F.max_pool2d(x, 2, return_indices=True)[0], X),
    "adaptive-max-pool-1d": ("window_max", nn.AdaptiveMaxPool1d(4), LINE),
    "adaptive-max-pool-2d": ("window_max", nn.AdaptiveMaxPool2d((2, 4)), X),
    "adaptive-max-pool-3d": ("window_max", nn.AdaptiveMaxPool3d(2), VOLUME),
}


KINDS = {name: set(kinds.split(", ")) for name, (kinds, *_) in STEPS.items()}
CASES = {name: case for name, (_, *case) in STEPS.items()}
NETWORKS, CHAINS = Converted(to_linear_network, CASES), Converted(to_mlp, CASES)
RELUS = Converted(functools.partial(to_linear_network, max_pool="relu"), CASES)


def kinds(rows, number):
    """Kinds of the steps of one of several modules side by side."""
    return {row.kind for row in rows if not row.layout and f"{row.name}.".startswith(f"parts.{number}.")}


@pytest.mark.parametrize("name", STEPS)
def test_steps(name):
    model, net, number = NETWORKS.of(name)
    assert kinds(net.plan.rows, number) == KINDS[name]
    for size in (2, 5):
        x = constant(size, *CASES[name][1], seed=size)
        torch.testing.assert_close(net(x)[number], model.one(number, x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", STEPS)
def test_steps_in_a_chain(name):
    model, mlp, number = CHAINS.of(name)
    assert {type(layer).__name__ for layer in mlp} <= {"Flatten", "Linear", "SparseLinear", "ReLU"}
    for size in (2, 5):
        x = constant(size, *CASES[name][1], seed=size)
        result = mlp(x)[:, mlp.output_slices[number]]
        torch.testing.assert_close(result, model.one(number, x).flatten(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["max-pool-2d", "max-pool-ceil", "amax"])
def test_max_pool_as_relus(name):
    model, net, number = RELUS.of(name)
    assert kinds(net.plan.rows, number) == {"relu"}
    x = constant(2, *CASES[name][1])
    torch.testing.assert_close(net(x)[number], model.one(number, x), atol=1e-12, rtol=0)


def square(x):
    """Invertible matrices."""
    return x[..., :5] + 5 * SQUARE


KEPT = {
    "sigmoid": ("sigmoid", torch.sigmoid, X),
    "gelu": ("gelu", F.gelu, X),
    "hardswish": ("hardswish", F.hardswish, X),
    "square": ("pow", lambda x: x**2, X),
    "divided-by-a-value": ("reciprocal", lambda x: 1 / (x**2 + 1), X),
    "product": ("mul", lambda x: x * x.flip(1), X),
    "product-broadcast": ("mul", lambda x: x * x.mean((2, 3), keepdim=True), X),
    "softmax": ("_softmax", lambda x: x.softmax(1), X),
    "layer-norm": ("layer_norm", nn.LayerNorm(6), X),
    "group-norm": ("group_norm", nn.GroupNorm(1, 2), X),
    "instance-norm": ("instance_norm", nn.InstanceNorm2d(2), X),
    "glu": ("glu", lambda x: F.glu(x, 3), X),
    "matmul-of-values": ("matmul", lambda x: x @ x.mT, X),
    "attention": ("scaled_dot_product_attention", lambda x: F.scaled_dot_product_attention(x, x, 2 * x), X),
    "scatter-by-values": ("scatter_reduce", lambda x: x.scatter_reduce(3, x.argsort(3), x, "mean"), X),
    "scatter-add-by-values": ("scatter_add", lambda x: x.scatter_add(3, x.argsort(3), x), X),
    "scatter-product": (
        "scatter_reduce",
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "prod"),
        X,
    ),
    "sort-of-infinities": ("sort", lambda x: torch.nan_to_num(x.relu().log().sort(3).values, neginf=-5.0), X),
    "maximum-that-is-not-nan": ("fmax", lambda x: torch.fmax(x.log(), x), X),
    "threshold-with-a-jump": ("threshold", lambda x: F.threshold(x, 0.2, 0.0), X),
    "comparison": ("gt", lambda x: (x > x.flip(1)).double(), X),
    "pooling-with-indices": (
        "max_pool2d_with_indices",
        lambda x: F.max_unpool2d(*F.max_pool2d(x[:, :, :4], 2, return_indices=True), 2),
        X,
    ),
    "norm-2": ("linalg_vector_norm", lambda x: x.norm(dim=1), X),
    "norm-0": ("linalg_vector_norm", lambda x: x.norm(0, dim=1), X),
    "fewer-digits": ("_to_copy", lambda x: x.float().double(), X),
    "filled-with-infinities": ("where", lambda x: x.masked_fill(MASK, -torch.inf).softmax(3), X),
    "infinite-mask": ("add", lambda x: (x + torch.where(MASK, -torch.inf, 0.0)).softmax(3), X),
    "infinities-where-nothing-is-put": (
        "scatter_reduce",
        lambda x: torch.full_like(x, -torch.inf).scatter_reduce(2, THIRDS.expand(len(x), -1, -1, -1), x, "amax"),
        X,
    ),
    "infinite-padding": ("pad", lambda x: F.max_pool2d(F.pad(x, (1, 1), value=-torch.inf), 3), X),
    "infinite-weight": ("linear", lambda x: F.linear(x, constant(4, 6) / torch.tensor([1.0] * 5 + [0.0])), X),
    "infinite-statistics": (
        "_native_batch_norm_legit_no_training",
        lambda x: F.batch_norm(x, constant(2) / 0, constant(2).abs()),
        X,
    ),
    "clamp-infinite": ("clamp", lambda x: x.clamp(min=torch.inf), X),
    "leaky-relu-infinite": ("leaky_relu", lambda x: F.leaky_relu(x, torch.inf), X),
    "argmax": ("argmax", lambda x: x.flatten(1).argmax(1), X),
    "singular-values": ("_linalg_svd", lambda x: torch.linalg.svd(x)[1], X),
    "sort": ("sort", lambda x: x.flatten(1).sort(1).values, X),
    "sort-with-indices": ("sort", lambda x: x.sort(2).values * x.sort(2).indices, X),
    "topk-in-any-order": ("topk", lambda x: x.topk(2, 3, sorted=False).values.sum(3), X),
    "cumulative-product": ("cumprod", lambda x: x.cumprod(1), X),
    "not-a-number": ("isnan", lambda x: torch.where(torch.isnan(x.log()), x, 2 * x), X),
    "overflow": ("isinf", lambda x: torch.where(torch.isinf(1e308 * x), -x, x), X),
    "overflow-replaced": ("nan_to_num", lambda x: 1e-308 * torch.nan_to_num(1e308 * x), X),
    "multilabel-margin": (
        "multilabel_margin_loss_forward",
        lambda x: F.multilabel_margin_loss(x[:, 0, 0], LABELS.expand(len(x), -1), reduction="none"),
        X,
    ),
    "batched-frames": ("_softmax", lambda x: x.flatten(0, 1).softmax(1).unflatten(0, (-1, 2)), X),
    "inverse": ("linalg_inv", lambda x: torch.linalg.inv(square(x)), X),
    "pseudo-inverse": ("linalg_pinv", lambda x: torch.linalg.pinv(square(x)), X),
    "cholesky": ("linalg_cholesky", lambda x: torch.linalg.cholesky(square(x) @ square(x).mT), X),
    "lu": ("linalg_lu_factor", lambda x: torch.linalg.lu_factor(square(x))[0], X),
    "determinant": ("_linalg_det", lambda x: torch.linalg.det(square(x)), X),
    "matrix-power": ("linalg_inv", lambda x: torch.linalg.matrix_power(square(x), -2), X),
}


KEEPING = Converted(to_linear_network, {name: case for name, (_, *case) in KEPT.items()})


@pytest.mark.parametrize("name", KEPT)
def test_kept(name):
    model, net, number = KEEPING.of(name)
    assert f"kept: {KEPT[name][0]}" in kinds(net.plan.kept, number)
    for size in (2, 5):
        x = constant(size, *KEPT[name][2], seed=size)
        torch.testing.assert_close(net(x)[number], model.one(number, x), atol=1e-12, rtol=0)
    none = net(x[:0])[number]
    assert none.shape == (0, *net(x)[number].shape[1:])
    assert none.dtype is net(x)[number].dtype


def test_steps_are_equal_only_with_equal_arguments():
    def steps(x):
        return [x.softmax(1), x.softmax(2), x.softmax(1), F.leaky_relu(x, 0.1), F.leaky_relu(x, 0.2), x**2, x**3]

    model, x = Function(steps), constant(2, *IMAGE)
    net = to_linear_network(model, x)
    assert len([row for row in net.plan.rows if not row.layout]) == 6
    for result, expected in zip(net(x), model(x), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
