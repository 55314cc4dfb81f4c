"""One operator at a time, against onnxruntime: in form "graph", and as an mlp where all of it is piecewise linear."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from conv2affine.onnx import convert
from tests.onnx.models import difference, inputs, model, operators, random


@dataclass(frozen=True)
class Case:
    """A model of a few nodes, from x to y."""

    name: str
    nodes: str
    shape: tuple[int | str, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    opset: int = 13


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def reducing(operator: str, how: str, opset: int) -> Case:
    """ScatterElements or ScatterND; with "add" and the like, an element is written to twice."""
    index, updates = ([[[2, 0], [-1, 1]]], (1, 2, 2)) if operator == "ScatterElements" else ([[0, 2], [0, 2]], (2, 2))
    axis = "axis = 1, " if operator == "ScatterElements" else ""
    nodes = f'y = {operator}<{axis}reduction = "{how}">(x, i, u)'
    return Case(f"{operator}-{how}", nodes, (1, 3, 2), {"i": np.array(index), "u": random(*updates)}, opset)


W = random(4, 3, 3, 3)
AFFINE = [
    Case("conv", "y = Conv<pads = [1, 1, 1, 1]>(x, w, b)", ("N", 3, 6, 7), {"w": W, "b": random(4)}),
    Case("conv-asymmetric-pads", "y = Conv<pads = [0, 2, 1, 0], strides = [2, 1]>(x, w)", (1, 3, 6, 7), {"w": W}),
    Case("conv-same-upper", 'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', (1, 3, 6, 7), {"w": W}),
    Case("conv-same-lower", 'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)', (1, 3, 6, 7), {"w": W}),
    Case("conv-valid", 'y = Conv<auto_pad = "VALID", dilations = [2, 1]>(x, w)', (1, 3, 6, 7), {"w": W}),
    Case("conv-groups", "y = Conv<group = 2>(x, w)", (1, 4, 5, 5), {"w": random(6, 2, 2, 2)}),
    Case("conv-two-samples", "y = Conv(x, w, b)", (2, 3, 5, 5), {"w": W, "b": random(4)}),
    Case("conv-1d", "y = Conv<strides = [2]>(x, w)", ("N", 2, 9), {"w": random(3, 2, 3)}),
    Case("conv-3d", "y = Conv<pads = [1, 0, 1, 0, 1, 0]>(x, w)", (1, 2, 3, 4, 5), {"w": random(2, 2, 2, 3, 2)}),
    Case("conv-opset-7", "y = Conv(x, w)", (1, 3, 5, 5), {"w": W}, 7),
    Case(
        "transposed",
        "y = ConvTranspose<strides = [2, 2]>(x, w, b)",
        (1, 3, 4, 4),
        {"w": random(3, 2, 3, 3), "b": random(2)},
    ),
    Case(
        "transposed-output-padding",
        "y = ConvTranspose<strides = [2, 3], output_padding = [1, 2], pads = [1, 0, 0, 1]>(x, w)",
        (1, 3, 4, 4),
        {"w": random(3, 2, 3, 3)},
    ),
    Case(
        "transposed-output-shape",
        "y = ConvTranspose<strides = [2, 2], output_shape = [8, 8]>(x, w)",
        (1, 3, 4, 4),
        {"w": random(3, 2, 3, 3)},
    ),
    Case(
        "transposed-same-upper",
        'y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)',
        (1, 3, 4, 4),
        {"w": random(3, 2, 3, 3)},
    ),
    Case(
        "transposed-same-lower",
        'y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_LOWER">(x, w)',
        (1, 3, 4, 4),
        {"w": random(3, 2, 3, 3)},
    ),
    Case("transposed-groups", "y = ConvTranspose<group = 2, dilations = [2]>(x, w)", (1, 4, 5), {"w": random(4, 3, 2)}),
    Case("gemm", "y = Gemm(x, w, c)", ("N", 5), {"w": random(5, 3), "c": random(3)}),
    Case(
        "gemm-alpha-beta",
        "y = Gemm<alpha = 2.0, beta = 0.5, transB = 1>(x, w, c)",
        (2, 5),
        {"w": random(3, 5), "c": random(3)},
    ),
    Case("gemm-trans-a", "y = Gemm<transA = 1>(x, w, c)", (5, 2), {"w": random(5, 3), "c": random(1)}),
    Case("gemm-constant-left", "y = Gemm<transA = 1, transB = 1>(w, x)", (2, 5), {"w": random(5, 3)}),
    Case("gemm-value-as-bias", "y = Gemm(a, b, x)", (2, 3), {"a": random(2, 4), "b": random(4, 3)}),
    Case("matmul", "y = MatMul(x, w)", ("N", 4, 5), {"w": random(5, 3)}),
    Case("matmul-left", "y = MatMul(w, x)", (2, 5, 3), {"w": random(4, 5)}),
    Case("matmul-vector", "y = MatMul(x, w)", (3, 5), {"w": random(5)}),
    Case("matmul-of-vector", "y = MatMul(x, w)", (5,), {"w": random(5, 3)}),
    Case("matmul-batches", "y = MatMul(x, w)", (2, 4, 5), {"w": random(2, 5, 3)}),
    Case(
        "batch-norm",
        "y = BatchNormalization<epsilon = 0.1>(x, s, b, m, v)",
        ("N", 3, 4),
        {"s": random(3), "b": random(3), "m": random(3), "v": np.abs(random(3))},
    ),
    Case("average-pool", "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)", ("N", 2, 5, 6)),
    Case("average-pool-pads", "y = AveragePool<kernel_shape = [3, 2], pads = [1, 0, 0, 1]>(x)", (1, 2, 5, 6)),
    Case(
        "average-pool-counts-pads",
        "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)",
        (1, 2, 5, 6),
    ),
    Case("average-pool-ceil", "y = AveragePool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x)", (1, 2, 5)),
    Case("average-pool-dilations", "y = AveragePool<kernel_shape = [2], dilations = [2]>(x)", (1, 2, 7), opset=19),
    Case("global-average-pool", "y = GlobalAveragePool(x)", ("N", 3, 4, 5)),
    Case("add-broadcast", "y = Add(x, c)", ("N", 3, 4), {"c": random(3, 1)}),
    Case("add-itself", "y = Add(x, x)", ("N", 3)),
    Case("sub-from-constant", "y = Sub(c, x)", (2, 3), {"c": random(1, 3)}),
    Case("mul-grows", "y = Mul(c, x)", (1, 3), {"c": random(2, 3)}),
    Case("div", "y = Div(x, c)", ("N", 3), {"c": random(3)}),
    Case("sum", "y = Sum(x, c, x)", (1, 3), {"c": random(3)}),
    Case("mean-of-values", "y = Mean(x, c)", (1, 3), {"c": random(3)}),
    Case("neg", "y = Neg(x)", ("N", 3)),
    Case("where", "y = Where(m, x, c)", (2, 3), {"m": np.array([True, False, True]), "c": random(2, 1)}),
    Case("identity", "y = Identity(x)", ("N", 3)),
    Case("dropout", "y = Dropout(x)", ("N", 3)),
    Case("cast", "z = Cast<to = 11>(x)\ny = Cast<to = 1>(z)", ("N", 3)),
    Case("reduce-mean", "y = ReduceMean<axes = [2, -1], keepdims = 0>(x)", ("N", 3, 4, 5)),
    Case("reduce-mean-input", "y = ReduceMean(x, a)", (1, 3, 4), {"a": ints(1)}, 18),
    Case("reduce-sum-all", "y = ReduceSum(x)", (2, 3)),
    Case("reduce-sum-none", "y = ReduceSum<noop_with_empty_axes = 1>(x, a)", (2, 3), {"a": ints()}),
    Case("einsum", 'y = Einsum<equation = "nij,jk->nki">(x, w)', ("N", 2, 3), {"w": random(3, 4)}),
    Case("einsum-second", 'y = Einsum<equation = "ij, nj -> ni">(w, x)', ("N", 3), {"w": random(4, 3)}),
    Case("einsum-implicit", 'y = Einsum<equation = "...ji,ki">(x, w)', (2, 1, 3, 4), {"w": random(5, 4)}),
    Case("einsum-diagonal", 'y = Einsum<equation = "nii->ni">(x)', ("N", 3, 3)),
    Case(
        "col2im",
        "y = Col2Im<strides = [2, 1], pads = [1, 0, 0, 1], dilations = [1, 2]>(x, i, b)",
        ("N", 8, 12),
        {"i": ints(5, 5), "b": ints(2, 2)},
        18,
    ),
    Case("col2im-1d", "y = Col2Im(x, i, b)", (1, 4, 4), {"i": ints(5), "b": ints(2)}, 18),
    *(
        Case(
            f"grid-sample-{mode}-{padding}-{corners}",
            f'y = GridSample<mode = "{mode}", padding_mode = "{padding}", align_corners = {corners}>(x, g)',
            (1, 2, 5, 6),
            {"g": 0.7 * random(1, 3, 4, 2)},
            16,
        )
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ),
    *(
        Case(
            f"roi-align-opset-{opset}",
            "y = RoiAlign<output_height = 2, output_width = 3, spatial_scale = 0.9>(x, r, n)",
            (1, 2, 8, 7),
            {"r": np.float32([[0, 0, 6, 5], [1, 2, 7.5, 7]]), "n": ints(0, 0)},
            opset,
        )
        for opset in (10, 16, 22)
    ),
    Case("affine-grid", "y = AffineGrid(x, s)", ("N", 2, 3), {"s": ints(1, 3, 4, 5)}, 20),
    Case("affine-grid-3d", "y = AffineGrid<align_corners = 1>(x, s)", ("N", 3, 4), {"s": ints(1, 3, 2, 3, 2)}, 20),
    Case(
        "deformable-convolution",
        "y = DeformConv<group = 2, offset_group = 2>(x, w, o, b, m)",
        (1, 4, 5, 6),
        {"w": random(4, 2, 3, 3), "o": random(1, 36, 3, 4), "b": random(4), "m": random(1, 18, 3, 4)},
        19,
    ),
    Case(
        "rotary-embedding",
        "y = RotaryEmbedding(x, c, s, p)",
        ("N", 2, 5, 8),
        {"c": random(9, 4), "s": random(9, 4, seed=1), "p": np.arange(5)[None]},
        23,
    ),
    Case(
        "rotary-embedding-interleaved",
        "y = RotaryEmbedding<num_heads = 2, rotary_embedding_dim = 6, interleaved = 1>(x, c, s)",
        ("N", 5, 16),
        {"c": random(1, 5, 3), "s": random(1, 5, 3, seed=1)},
        23,
    ),
    Case("grid-sample-3d", 'y = GridSample<mode = "linear">(x, g)', (1, 2, 3, 4, 5), {"g": random(1, 2, 3, 2, 3)}, 20),
    Case("cumsum", "y = CumSum<exclusive = 1, reverse = 1>(x, a)", (2, 3), {"a": np.int64(-1)}),
    Case("dft", "y = DFT(x)", ("N", 6, 1), opset=17),
    Case("dft-length", "y = DFT<axis = 2>(x, n)", ("N", 3, 6, 2), {"n": np.int64(8)}, 17),
    Case("dft-onesided", "y = DFT<onesided = 1, axis = 1>(x, n)", ("N", 7, 3, 1), {"n": np.int64(5)}, 17),
    Case("dft-inverse", "y = DFT<inverse = 1>(x)", (2, 5, 2), opset=17),
    Case("dft-of-axis", "y = DFT(x, , a)", ("N", 4, 3, 2), {"a": np.int64(-3)}, 20),
    Case("dft-opset-20", "y = DFT(x)", ("N", 4, 3, 1), opset=20),
    Case("stft", "y = STFT<onesided = 1>(x, s, w)", ("N", 20, 1), {"s": np.int64(4), "w": random(6)}, 17),
    Case("stft-length", "y = STFT<onesided = 1>(x, s, , n)", ("N", 16, 1), {"s": np.int64(3), "n": np.int64(5)}, 17),
    Case(
        "stft-complex",
        "y = STFT<onesided = 0>(x, s, w, n)",
        (2, 12, 2),
        {"s": np.int64(4), "w": random(4), "n": np.int64(4)},
        17,
    ),
    Case("reshape", "y = Reshape(x, s)", ("N", 2, 3), {"s": ints(0, -1)}),
    Case(
        "reshape-by-shape",
        "s = Shape(x)\nt = Gather(s, i)\nu = Concat<axis = 0>(t, m)\ny = Reshape(x, u)",
        ("N", 2, 3),
        {"i": ints(0), "m": ints(-1)},
    ),
    Case(
        "shape-constant-opset-8",
        "s = Constant<value = int64[2] {-1, 6}>()\ny = Reshape(x, s)",
        ("N", 2, 3),
        opset=8,
    ),
    Case("transpose", "y = Transpose<perm = [0, 2, 1]>(x)", ("N", 2, 3)),
    Case("transpose-batch", "y = Transpose<perm = [1, 0]>(x)", ("N", 3)),
    Case("concat", "a = Neg(x)\ny = Concat<axis = 1>(x, c, a)", (1, 2, 3), {"c": random(1, 1, 3)}),
    Case("split", "a, b = Split<axis = 1>(x, s)\ny = Concat<axis = 1>(b, a)", ("N", 5), {"s": ints(2, 3)}),
    Case(
        "split-attribute", "a, b = Split<axis = 1, split = [2, 3]>(x)\ny = Concat<axis = 1>(b, a)", ("N", 5), opset=11
    ),
    Case("slice", "y = Slice(x, s, e, a, t)", (1, 7, 3), {"s": ints(-1), "e": ints(0), "a": ints(1), "t": ints(-2)}),
    Case("slice-attributes", "y = Slice<starts = [1], ends = [5], axes = [1]>(x)", (1, 7), opset=9),
    Case("gather", "y = Gather<axis = 1>(x, i)", ("N", 4, 2), {"i": np.array([[3, 0], [1, 1]])}),
    Case("squeeze", "z = Squeeze(x, a)\ny = Unsqueeze(z, b)", ("N", 1, 3), {"a": ints(1), "b": ints(2)}),
    Case("squeeze-attributes", "z = Squeeze<axes = [1]>(x)\ny = Unsqueeze<axes = [2]>(z)", ("N", 1, 3), opset=9),
    Case("expand", "y = Expand(x, s)", (1, 3, 1), {"s": ints(2, 1, 4)}),
    Case("tile", "y = Tile(x, r)", (1, 3), {"r": ints(1, 2)}),
    Case("flatten", "y = Flatten(x)", ("N", 2, 3)),
    Case("gather-elements", "y = GatherElements<axis = 1>(x, i)", (1, 3, 2), {"i": np.array([[[2, 0], [1, 1]]])}),
    Case("gather-nd", "y = GatherND(x, i)", (1, 3, 2), {"i": np.array([[0, 2], [0, 0]])}),
    Case(
        "scatter-elements",
        "y = ScatterElements<axis = 1>(x, i, u)",
        (1, 3, 2),
        {"i": np.array([[[2, 0]]]), "u": random(1, 1, 2)},
    ),
    reducing("ScatterElements", "add", 16),
    reducing("ScatterND", "add", 16),
    Case("compress", "y = Compress<axis = 1>(x, c)", ("N", 3, 2), {"c": np.array([True, False, True])}),
    Case("compress-flat", "y = Compress(x, c)", (1, 3, 2), {"c": np.array([False, True, True, False])}),
    Case(
        "max-unpool",
        "y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(x, i)",
        (1, 1, 2, 2),
        {"i": np.array([[[[5, 2], [8, 15]]]])},
    ),
    Case("power-of-one", "y = Pow(x, p)", ("N", 3), {"p": np.float32([1.0])}),
    Case("cast-like", "z = CastLike(x, d)\ny = CastLike(z, x)", ("N", 3), {"d": np.float64(0)}, 15),
    Case("scatter-nd", "y = ScatterND(x, i, u)", (1, 3, 2), {"i": np.array([[0, 2]]), "u": random(1, 2)}),
    Case("scatter", "y = Scatter<axis = 1>(x, i, u)", (1, 3, 2), {"i": np.array([[[2, 0]]]), "u": random(1, 1, 2)}, 9),
    Case("reverse-sequence", "y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, l)", (1, 4, 2), {"l": ints(3)}),
    Case("trilu", "y = Trilu<upper = 0>(x)", ("N", 3, 4), opset=14),
    Case("center-crop-pad", "y = CenterCropPad<axes = [1, 2]>(x, s)", (1, 2, 5), {"s": ints(4, 3)}, 18),
    Case("pad", "y = Pad(x, p, v)", (1, 2, 3), {"p": ints(0, 0, 1, 0, 1, 2), "v": np.float32(2)}),
    Case("pad-reflect", 'y = Pad<mode = "reflect">(x, p)', (1, 2, 4), {"p": ints(0, 0, 2, 0, 0, 1)}),
    Case("pad-edge", 'y = Pad<mode = "edge">(x, p)', (1, 2, 4), {"p": ints(0, 0, 2, 0, 0, 1)}),
    Case("pad-attribute", "y = Pad<pads = [0, 0, 1, 0, 0, 2]>(x)", (1, 2, 4), opset=9),
    Case("pad-negative", "y = Pad(x, p, v)", (1, 2, 5), {"p": ints(0, 0, -1, 0, 1, 2), "v": np.float32(2)}),
    Case("pad-negative-axes", "y = Pad(x, p, , a)", ("N", 2, 5), {"p": ints(1, -2, 0, -1), "a": ints(-2, -1)}, 18),
    Case("pad-negative-attribute", "y = Pad<pads = [0, -1, 1, 0, 0, -2], value = 3.0>(x)", (1, 2, 4), opset=9),
    Case("depth-to-space", "y = DepthToSpace<blocksize = 2>(x)", (1, 8, 2, 3)),
    Case("space-to-depth", "y = SpaceToDepth<blocksize = 2>(x)", (1, 2, 4, 6)),
    Case(
        "resize-axes",
        'y = Resize<mode = "linear", axes = [3, 2]>(x, r, s)',
        (1, 2, 3, 4),
        {"r": random(0), "s": np.float32([1.5, 2])},
        18,
    ),
    Case("resize-nearest", "y = Resize(x, r, s)", (1, 2, 3, 4), {"r": random(0), "s": np.float32([1, 1, 2, 1.5])}),
    Case(
        "resize-linear",
        'y = Resize<mode = "linear">(x, r, s)',
        (1, 2, 3, 4),
        {"r": random(0), "s": np.float32([1, 1, 2, 2])},
    ),
    Case(
        "resize-align-corners",
        'y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, r, s, t)',
        (1, 2, 3, 4),
        {"r": random(0), "s": random(0), "t": ints(1, 2, 5, 7)},
    ),
    Case(
        "resize-cubic",
        'y = Resize<mode = "cubic">(x, r, s)',
        (1, 1, 4, 4),
        {"r": random(0), "s": np.float32([1, 1, 2, 2])},
    ),
    Case("resize-opset-10", "y = Resize(x, s)", (1, 2, 3, 4), {"s": np.float32([1, 1, 2, 2])}, 10),
    Case("upsample", "y = Upsample(x, s)", (1, 2, 3, 4), {"s": np.float32([1, 1, 2, 3])}, 9),
    Case("upsample-linear", 'y = Upsample<mode = "linear">(x, s)', (1, 2, 3, 4), {"s": np.float32([1, 1, 2, 2])}, 9),
    Case("constant-node", "c = Constant<value = float[3] {1.0, 2.0, 3.0}>()\ny = Add(x, c)", ("N", 3)),
    Case("constant-folded", "d = Mul(c, c)\ne = Exp(d)\ny = Add(x, e)", ("N", 3), {"c": random(3)}),
    Case(
        "quantised-weight",
        "w = DequantizeLinear(q, s)\ny = MatMul(x, w)",
        ("N", 3),
        {"q": np.int8([[1, -2], [3, 4], [5, 6]]), "s": np.float32(0.5)},
    ),
]
PIECEWISE = [
    Case("relu", "y = Relu(x)", ("N", 3)),
    Case("abs", "y = Abs(x)", ("N", 3)),
    Case("leaky-relu", "y = LeakyRelu<alpha = 0.2>(x)", ("N", 3)),
    Case("prelu", "y = PRelu(x, s)", ("N", 3, 2), {"s": random(3, 1)}),
    Case("prelu-scalar", "y = PRelu(x, s)", ("N", 3, 2), {"s": random(1)}),
    Case("clip", "y = Clip(x, l, h)", ("N", 3), {"l": np.float32(-0.5), "h": np.float32(0.5)}),
    Case("clip-low", "y = Clip(x, l)", ("N", 3), {"l": np.float32(-0.5)}),
    Case("clip-nothing", "y = Clip(x)", ("N", 3)),
    Case("clip-attributes", "y = Clip<min = -1.0, max = 0.5>(x)", ("N", 3), opset=9),
    Case("shrink", "y = Shrink<lambd = 0.3, bias = 0.3>(x)", ("N", 3)),
    Case("thresholded-relu", "y = ThresholdedRelu<alpha = 0.0>(x)", ("N", 3)),
    Case("hard-sigmoid", "y = HardSigmoid<alpha = 0.3, beta = 0.4>(x)", ("N", 3)),
    Case("max", "a = Neg(x)\ny = Max(x, a)", ("N", 3)),
    Case("max-of-three", "a = Neg(x)\ny = Max(x, a, c)", ("N", 3), {"c": random(3)}),
    Case("min-broadcast", "a = Neg(x)\nb = Reshape(a, s)\ny = Min(x, b)", (1, 3), {"s": ints(3, 1)}),
    Case("max-pool", "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)", ("N", 2, 4, 5)),
    Case("max-pool-pads", "y = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 0, 1], strides = [2, 1]>(x)", (1, 2, 5, 5)),
    Case("max-pool-same", 'y = MaxPool<kernel_shape = [3], strides = [2], auto_pad = "SAME_UPPER">(x)', (1, 2, 6)),
    Case(
        "max-pool-ceil", "y = MaxPool<kernel_shape = [2], strides = [2], ceil_mode = 1, dilations = [2]>(x)", (1, 2, 8)
    ),
    Case("reduce-l1", "y = ReduceL1<axes = [1, -1], keepdims = 0>(x)", ("N", 4, 2, 3)),
    Case("reduce-l1-input", "y = ReduceL1(x, a)", ("N", 4, 2), {"a": ints(2)}, 18),
    Case("lp-pool-1", "y = LpPool<kernel_shape = [2], p = 1>(x)", ("N", 2, 4)),
    Case(
        "lp-pool-1-pads",
        "y = LpPool<kernel_shape = [3, 2], pads = [1, 0, 1, 1], strides = [2, 1], p = 1>(x)",
        (1, 2, 5, 6),
    ),
    Case(
        "lp-pool-1-ceil", "y = LpPool<kernel_shape = [2], strides = [2], ceil_mode = 1, p = 1>(x)", (1, 2, 5), opset=18
    ),
    Case("lp-pool-1-dilations", "y = LpPool<kernel_shape = [2], dilations = [2], p = 1>(x)", (1, 2, 7), opset=18),
    Case("global-lp-pool-1", "y = GlobalLpPool<p = 1>(x)", ("N", 2, 3, 3)),
    Case("global-max-pool", "y = GlobalMaxPool(x)", ("N", 2, 3, 3)),
    Case("reduce-max", "y = ReduceMax<axes = [1], keepdims = 0>(x)", ("N", 4, 2)),
    Case("reduce-min", "y = ReduceMin<axes = [1]>(x)", ("N", 4, 2)),
    Case("top-k", "y, i = TopK(x, k)", ("N", 5), {"k": ints(3)}),
    Case("top-k-smallest", "y, i = TopK<axis = 1, largest = 0>(x, k)", ("N", 4, 2), {"k": ints(2)}),
    Case("top-k-attribute", "y, i = TopK<k = 2>(x)", ("N", 4), opset=9),
    reducing("ScatterElements", "max", 18),
    reducing("ScatterND", "min", 18),
    Case(
        "residual",
        "r = Conv<pads = [1, 1]>(x, w)\ns = Relu(r)\nt = Add(s, x)\ny = Relu(t)",
        ("N", 2, 5),
        {"w": random(2, 2, 3)},
    ),
]
KEPT = [
    Case("sigmoid", "a = MatMul(x, w)\ny = Sigmoid(a)", ("N", 3), {"w": random(3, 4)}),
    Case("sigmoid-of-image", "y = Sigmoid(x)", ("N", 2, 3)),
    Case("softmax-opset-11", "y = Softmax<axis = 1>(x)", ("N", 3, 2), opset=11),
    Case("softmax", "y = Softmax<axis = 1>(x)", ("N", 3, 2)),
    Case("product", "a = Neg(x)\ny = Mul(x, a)", ("N", 3)),
    Case("product-broadcast", "a = ReduceSum<keepdims = 1>(x, i)\ny = Mul(x, a)", ("N", 2, 3), {"i": ints(1)}),
    Case(
        "attention",
        "a = Transpose<perm = [0, 2, 1]>(x)\nb = MatMul(x, a)\nc = Softmax(b)\ny = MatMul(c, x)",
        ("N", 3, 2),
    ),
    Case("power", "y = Pow(x, p)", ("N", 3), {"p": np.float32(2)}),
    Case("top-k-and-places", "a, i = TopK(x, k)\nj = Cast<to = 1>(i)\ny = Add(a, j)", ("N", 4), {"k": ints(2)}),
    Case("top-k-in-any-order", "a, i = TopK<sorted = 0>(x, k)\ny = ReduceSum(a)", (1, 4), {"k": ints(2)}),
    Case("sign", "y = Sign(x)", ("N", 3)),
    Case("compare", "a = Greater(x, c)\nb = Cast<to = 1>(a)\ny = Add(x, b)", ("N", 3), {"c": random(3)}),
    Case("compare-opset-13", "a = LessOrEqual(x, c)\nb = Cast<to = 1>(a)\ny = Add(x, b)", ("N", 3), {"c": random(3)}),
    Case(
        "group-norm",
        "y = GroupNormalization<num_groups = 2>(x, s, b)",
        ("N", 4, 3),
        {"s": random(4), "b": random(4)},
        21,
    ),
    Case("arg-max", "i = ArgMax<axis = 1>(x)\nj = Cast<to = 1>(i)\ny = Add(j, j)", ("N", 3, 2)),
    Case("divide-constant", "y = Div(c, x)", ("N", 3), {"c": np.float32(2)}),
    Case("einsum-of-values", 'y = Einsum<equation = "ni,nj->nij">(x, x)', ("N", 3)),
    Case("lp-pool", "y = LpPool<kernel_shape = [2]>(x)", ("N", 2, 4)),
    Case("global-lp-pool", "y = GlobalLpPool(x)", ("N", 2, 3, 3)),
    Case("layer-norm", "y = LayerNormalization(x, s)", ("N", 4), {"s": random(4)}, 17),
    Case(
        "quantised",
        "q = QuantizeLinear(x, s, z)\ny = DequantizeLinear(q, s, z)",
        ("N", 4),
        {"s": np.float32(0.1), "z": np.uint8(128)},
    ),
    Case("max-pool-indices", "a, i = MaxPool<kernel_shape = [2]>(x)\nj = Cast<to = 1>(i)\ny = Add(a, j)", (1, 2, 4)),
    Case(
        "roi-align-maximum",
        'y = RoiAlign<mode = "max">(x, r, n)',
        (1, 1, 4, 4),
        {"r": np.float32([[0, 0, 3, 3]]), "n": ints(0)},
        16,
    ),
    Case("infinite-constant", "y = Mul(x, c)", (1, 2), {"c": np.float32([-np.inf, 1])}),
    Case(
        "masked",
        "a = Where(m, x, c)\ny = Softmax(a)",
        ("N", 2, 3),
        {"m": np.array([True, False, True]), "c": np.float32(-np.inf)},
    ),
    Case("infinities-moved", "r = Relu(x)\nl = Log(r)\ny = Transpose<perm = [0, 2, 1]>(l)", ("N", 2, 3)),
    Case(
        "infinities-left-out",
        "r = Relu(x)\nl = Log(r)\nk = Where(m, l, c)\np = Pad(k, w)\ny = Add(p, d)",
        ("N", 3),
        {"m": np.array([True, False, True]), "c": random(3), "w": ints(0, 1, 0, 1), "d": random(5)},
    ),
    Case("unequal-divisor", "y = Div(x, c)", (1, 2), {"c": np.float32([0, 1])}),
    Case(
        "resize-crop",
        'y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, r, s)',
        (1, 1, 4),
        {"r": np.float32([0, 0, 0, 1, 1, 0.5]), "s": np.float32([1, 1, 2])},
    ),
    Case(
        "resize-corners-of-unclear-size",
        'y = Resize<coordinate_transformation_mode = "align_corners", mode = "linear">(x, r, s)',
        (1, 1, 4),
        {"r": random(0), "s": np.float32([1, 1, 0.6])},
    ),
]


# The batch is not along the first axis of their result.
ONE_SAMPLE = ("transpose-batch",)


def check(case: Case, form: str) -> list[str]:
    """Convert a case, compare it with the original for one sample and several; gives the operators of the result."""
    original = model(case.nodes, {"x": case.shape}, case.constants, opset=case.opset)
    result = convert(original, form=form)
    for batch in (1, 4):
        assert difference(original, result.model, inputs(result.model, batch)) <= 1e-5
    assert bool(result.kept) == (case in KEPT)
    assert result.is_batched == (case.shape[0] == "N" and case.name not in ONE_SAMPLE), result.static
    return operators(result.model)


@pytest.mark.parametrize("case", AFFINE, ids=lambda case: case.name)
def test_affine(case):
    assert set(check(case, "graph")) <= {"Gemm", "Reshape", "Identity"}


@pytest.mark.parametrize("case", PIECEWISE, ids=lambda case: case.name)
def test_piecewise_linear(case):
    check(case, "graph")


@pytest.mark.parametrize("case", [*AFFINE, *PIECEWISE], ids=lambda case: case.name)
def test_mlp(case):
    found = check(case, "mlp")
    assert set(found) <= {"Gemm", "Relu", "Reshape"}
    assert "Reshape" not in found[1:-1]


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.name)
def test_kept(case):
    check(case, "graph")
    with pytest.raises(NotImplementedError, match="must be affine or piecewise linear"):
        check(case, "mlp")
