"""Affine operators alone, over their arguments: each as one linear layer, equal to PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import SparseLinear, to_linear
from tests.network.models import Converted, written
from tests.network.rules.operands import COLUMNS, IMAGE, LINE, MASK, SQUARE, VOLUME, assert_linear, constant

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated"),
    pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter"),
    pytest.mark.filterwarnings(r"ignore:index_reduce\(\) is in beta"),
]

BATCH_NORM = nn.BatchNorm2d(2).double().eval()
with torch.no_grad():
    for tensor in (*BATCH_NORM.parameters(), BATCH_NORM.running_mean):
        tensor.copy_(constant(2, seed=1))
INSTANCE_NORM = nn.InstanceNorm2d(2, affine=True, track_running_stats=True).double().eval()
PLACES = torch.from_numpy(np.random.default_rng(0).permutation(120)[:30]).view(1, 1, 5, 6).repeat(1, 2, 1, 1)


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
    "instance-norm-with-statistics": (INSTANCE_NORM, IMAGE),
    "instance-norm-with-statistics-1d": (nn.InstanceNorm1d(2, track_running_stats=True), LINE),
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
    # Products that are linear after all
    "bilinear-layer": (lambda x: F.bilinear(x, constant(5, 4).expand(*x.shape[:2], -1, -1), constant(3, 6, 4)), IMAGE),
    "bilinear-layer-right": (
        lambda x: F.bilinear(constant(5, 4).expand(*x.shape[:2], -1, -1), x, constant(3, 4, 6), constant(3)),
        IMAGE,
    ),
    "power-of-one": (lambda x: 2 * x**1, IMAGE),
}


LINEAR = Converted(to_linear, AFFINE)


@pytest.mark.parametrize("name", AFFINE)
def test_affine(name):
    assert_linear(LINEAR, name, AFFINE[name][1])
