"""Every kind of matrix against the one that it is written out to, and products and sums of all kinds."""

import numpy as np
import pytest
import torch

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.compose import add, compose
from conv2affine.network.matrices.expressions import Product, Sum
from conv2affine.network.matrices.layers import Convolution, Repeated
from conv2affine.network.matrices.matrix import Matrix, Selection, Sparse
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules import windows
from conv2affine.network.rules.moves import concatenate, follow
from conv2affine.network.torch import layers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weight(*shape):
    return torch.randn(shape, generator=generator(), dtype=torch.float64)


def random(*shape):
    return np.random.default_rng(0).normal(size=shape)


MATRICES = {
    "conv1d": rules.convolution(weight(4, 2, 3), (6,), (2,), [(2, 1)], (1,)),
    "conv2d": rules.convolution(weight(4, 3, 3, 2), (5, 6), (2, 1), [(1, 0), (2, 1)], (1, 2)),
    "conv2d-groups": rules.convolution(weight(4, 2, 3, 3), (4, 4), (1, 1), [(1, 1), (1, 1)], (1, 1), 2),
    "conv3d": rules.convolution(weight(2, 1, 2, 2, 2), (3, 3, 3), (1, 1, 1), [(0, 0)] * 3, (1, 1, 1)),
    "transposed": rules.convolution(weight(3, 2, 3), (5,), (2,), [(1, 0)], (2,), transposed=True, output_padding=(1,)),
    "transposed-groups": rules.convolution(weight(4, 3, 2), (3,), (3,), [(0, 0)], (1,), 2, transposed=True),
    "transposed-cut": rules.convolution(weight(1, 1, 2), (4,), (1,), [(2, 2)], (1,), transposed=True),
    "average": windows.average_pool(
        2, (5, 7), (3, 3), [windows.Axis(2, 2), windows.Axis(3, 3, (1, 1))], count_include_pad=False
    ),
    "adaptive": windows.adaptive_average_pool(3, (5, 7), (3, 4)),
    "mean": rules.reduce((1, 3, 4, 5), (2,), mean=True),
    "matmul-right": rules.matmul_right(weight(4, 3), (2, 5, 4)),
    "matmul-left": rules.matmul_left(weight(2, 3, 4), (2, 4, 5)),
    "matmul-right-alone": rules.matmul_right(weight(4, 3), (1, 4)),
    "matmul-right-batches": rules.matmul_right(weight(2, 4, 3), (2, 5, 4)),
    "matmul-left-shared": rules.matmul_left(weight(1, 3, 4), (2, 4, 5)),
    "repeated": Repeated(rules.convolution(weight(4, 1, 2), (5,), (2,), [(1, 0)], (1,), 2), 3),
    "identity": Selection(None, 6),
    "diagonal": Selection(None, 6, random(6)),
    "selection": Selection(np.array([3, -1, 3, 0, 5]), 6, random(5)),
    "diagonal-positions": Selection(None, 12, random(3), 4),
    "selection-positions": Selection(np.array([2, -1, 0, 2]), 12, random(4), 4),
}
MATRICES["product"] = Product(
    rules.convolution(weight(2, 2, 3), (5,), (1,), [(0, 0)], (1,)), rules.separable(2, [random(5, 4)])
)
MATRICES["sum"] = Sum(Selection(None, 6, random(6)), Sparse(Selection(np.array([1, 0, 2, 3, -1, 5]), 6).csr()))
matrices = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)


def same(matrix: Matrix, dense: np.ndarray) -> None:
    """The matrix equals a dense one, by all that it says of itself."""
    csr = matrix.csr()
    assert matrix.shape == dense.shape
    np.testing.assert_allclose(csr.toarray(), dense, atol=1e-13)
    assert csr.has_canonical_format
    x = random(3, dense.shape[1])
    np.testing.assert_allclose(matrix.apply(x), x @ dense.T, atol=1e-12)
    # At most so many, whatever they happen to be.
    assert dense.size >= matrix.nnz >= csr.nnz
    assert (matrix.counts(1) >= np.diff(csr.indptr)).all()
    assert (matrix.counts(0) >= np.bincount(csr.indices, minlength=csr.shape[1])).all()
    for rows in some_rows(csr.shape[0]):
        assert matrix.reads(rows)[columns(csr, rows)].all()


def some_rows(size):
    generator = np.random.default_rng(2)
    return [np.zeros(size, bool), np.ones(size, bool), np.arange(size) == size // 2, generator.random(size) < 0.2]


def columns(csr, rows):
    """The columns with an entry in one of these rows."""
    return np.unique(csr[np.flatnonzero(rows)].indices)


@matrices
def test_apply_and_counts(matrix):
    same(matrix, matrix.csr().toarray())


@pytest.mark.parametrize("name", [name for name in MATRICES if name not in ("product", "sum")])
def test_counts_are_exact(name):
    matrix = MATRICES[name]
    csr = matrix.csr()
    assert matrix.nnz == csr.nnz
    assert (matrix.counts(1) == np.diff(csr.indptr)).all()
    assert (matrix.counts(0) == np.bincount(csr.indices, minlength=csr.shape[1])).all()


@pytest.mark.parametrize("name", MATRICES)
def test_columns_that_rows_read_are_exact(name):
    matrix = MATRICES[name]
    for rows in some_rows(matrix.shape[0]):
        assert np.flatnonzero(matrix.reads(rows)).tolist() == columns(matrix.csr(), rows).tolist()


def selections(size: int) -> list[Selection]:
    generator = np.random.default_rng(1)
    positions = next(part for part in (5, 4, 3, 2, 1) if size % part == 0)
    return [
        Selection(None, size),
        Selection(None, size, generator.normal(size=size)),
        Selection(generator.permutation(size), size),
        Selection(np.arange(size) - 1, size, generator.normal(size=size)),
        Selection(generator.integers(-1, size, 7), size, generator.normal(size=7)),
        Selection(None, size, generator.normal(size=1), size),
        Selection(np.arange(size // positions)[::-1] - 1, size, generator.normal(size=size // positions), positions),
    ]


@matrices
@pytest.mark.parametrize("number", range(7))
def test_selected_outputs(matrix, number):
    selection = selections(matrix.shape[0])[number]
    same(compose(selection, matrix), selection.csr().toarray() @ matrix.csr().toarray())


@matrices
@pytest.mark.parametrize("number", range(7))
def test_selected_inputs(matrix, number):
    rows = matrix.shape[1]
    selection = selections(rows)[number]
    if number == 4:  # inputs that are read several times, or never
        index = np.random.default_rng(2).integers(-1, 5, rows)
        selection = Selection(index, 5, random(rows))
    same(compose(matrix, selection), matrix.csr().toarray() @ selection.csr().toarray())


@matrices
def test_product(matrix):
    other = rules.separable(1, [random(matrix.shape[1], 4)])
    same(compose(matrix, other), matrix.csr().toarray() @ other.csr().toarray())


@matrices
def test_sum(matrix):
    same(add(matrix, matrix), 2 * matrix.csr().toarray())
    other = Sparse(compose(Selection(None, matrix.shape[0], random(matrix.shape[0])), matrix).csr())
    same(add(matrix, other), matrix.csr().toarray() + other.csr().toarray())


REPEATED = {name: matrix for name, matrix in MATRICES.items() if isinstance(matrix, Repeated)}
repeated = pytest.mark.parametrize("matrix", REPEATED.values(), ids=REPEATED)


@repeated
@pytest.mark.parametrize("outputs", [True, False])
def test_what_treats_all_rows_alike_goes_into_their_weight(matrix, outputs):
    size = matrix.block.shape[0 if outputs else 1]
    positions = matrix.block.geometry.output_size if outputs else matrix.block.geometry.input_size
    factors = np.repeat(random(size // positions[0]), positions[0])
    alike = Selection(None, size * matrix.times, np.tile(factors, matrix.times))
    pair = (alike, matrix) if outputs else (matrix, alike)
    result = compose(*pair)
    assert isinstance(result, Repeated)
    assert result.times == matrix.times
    same(result, pair[0].csr().toarray() @ pair[1].csr().toarray())


@repeated
def test_what_treats_rows_differently_waits(matrix):
    different = Selection(None, matrix.shape[0], random(matrix.shape[0]))
    shifted = Selection(np.roll(np.arange(matrix.shape[0]), 1), matrix.shape[0])
    crossed = Selection(np.arange(matrix.shape[0])[::-1].copy(), matrix.shape[0])
    for selection in (different, shifted, crossed):
        result = compose(selection, matrix)
        assert isinstance(result, Product)
        same(result, selection.csr().toarray() @ matrix.csr().toarray())


@repeated
def test_products_and_sums_of_rows_are_of_rows(matrix):
    outer = rules.matmul_right(weight(matrix.block.shape[0], 2), (matrix.times, matrix.block.shape[0]))
    same(compose(outer, matrix), outer.csr().toarray() @ matrix.csr().toarray())
    total = add(matrix, matrix)
    assert isinstance(total, Repeated)
    same(total, 2 * matrix.csr().toarray())


@matrices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_layers_have_the_entries_rounded_once(matrix, dtype, monkeypatch):
    """In float16 the check of a conversion allows 1 % of an output: here each entry counts."""
    expected = torch.from_numpy(matrix.csr().toarray()).to(dtype)
    assert torch.equal(layers.layer(matrix, None, dtype, "dense").weight, expected)
    assert torch.equal(layers.layer(matrix, None, dtype, "sparse").weight.to_dense(), expected)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 3 * matrix.shape[1] * dtype.itemsize)
    chunks = list(layers.row_chunks(matrix, dtype))
    assert {len(chunk) for chunk in chunks[:-1]} <= {3}
    assert torch.equal(torch.cat(chunks), expected)


@pytest.mark.parametrize("make", [rules.matmul_right, rules.matmul_left])
def test_rows_share_one_weight(make):
    shared = weight(4, 4)
    [numbers] = make(shared, (3, 512, 4) if make is rules.matmul_right else (512, 4, 3)).numbers
    assert numbers.untyped_storage().data_ptr() == shared.untyped_storage().data_ptr()


CONVOLUTIONS = {name: matrix for name, matrix in MATRICES.items() if isinstance(matrix, Convolution)}


@pytest.mark.parametrize("conv", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("outputs", [True, False])
def test_a_factor_per_channel_goes_into_the_weight(conv, outputs):
    g = conv.geometry
    channels, size = (g.out_channels, g.output_size) if outputs else (g.in_channels, g.input_size)
    positions = int(np.prod(size))
    diagonal = Selection(None, channels * positions, np.repeat(random(channels), positions))
    pair = (diagonal, conv) if outputs else (conv, diagonal)
    result = compose(*pair)
    assert isinstance(result, Convolution)
    assert not result.copied
    same(result, pair[0].csr().toarray() @ pair[1].csr().toarray())


def test_a_choice_of_channels_goes_into_the_weight():
    conv = MATRICES["conv2d"]
    outputs = Selection(np.r_[28:42, 0:14], conv.shape[0])
    chosen = compose(outputs, conv)
    assert isinstance(chosen, Convolution)
    assert chosen.copied
    same(chosen, outputs.csr().toarray() @ conv.csr().toarray())
    # The second and third of three parts that are concatenated; the first is another input.
    inputs = Selection(np.r_[np.full(30, -1), 0:60], 60)
    read = compose(conv, inputs)
    assert isinstance(read, Convolution)
    assert read.geometry.in_channels == 2
    same(read, conv.csr().toarray() @ inputs.csr().toarray())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv2d-groups"])
def test_zeros_around_the_input_are_padding(name, scaled):
    conv = MATRICES[name]
    g = conv.geometry
    sides = [(1, 0), (1, 2)][: len(g.input_size)]
    inner = [size - left - right for size, (left, right) in zip(g.input_size, sides, strict=True)]
    cols = g.in_channels * int(np.prod(inner))
    numbers = np.arange(cols).reshape(g.in_channels, *inner)
    index = np.pad(numbers, [(0, 0), *sides], constant_values=-1).ravel()
    scale = np.append(np.repeat(random(g.in_channels), np.prod(inner)), 0)[index] if scaled else None
    zeros = Selection(index, cols, scale)
    result = compose(conv, zeros)
    assert isinstance(result, Convolution)
    assert result.copied is not scaled
    same(result, conv.csr().toarray() @ zeros.csr().toarray())


def test_factors_pass_what_only_moves_elements():
    conv, moved = MATRICES["conv2d"], Selection(np.random.default_rng(0).permutation(90), 90)
    factors = Selection(None, conv.shape[0], np.repeat(random(4), conv.shape[0] // 4))
    result = compose(factors, compose(conv, moved))
    assert isinstance(result.outer, Convolution)
    same(result, factors.csr().toarray() @ conv.csr().toarray() @ moved.csr().toarray())


@pytest.mark.parametrize("name", ["conv2d", "conv2d-groups", "transposed-groups"])
def test_placed_channels_keep_their_factors_in_the_weight(name):
    conv = MATRICES[name]
    positions = int(np.prod(conv.geometry.output_size))
    index = np.r_[np.full(positions, -1), np.arange(conv.shape[0]), np.full(2 * positions, -1)]
    placed = Selection(index, conv.shape[0], np.repeat(random(conv.geometry.out_channels + 3), positions))
    result = compose(placed, conv)
    assert isinstance(result.inner, Convolution)
    same(result, placed.csr().toarray() @ conv.csr().toarray())
    assert result.csr(np.float32).dtype == np.float32


def pointwise(outputs, inputs, groups=1, stride=1):
    return rules.convolution(
        weight(outputs, inputs // groups, 1, 1), (4, 5), (stride,) * 2, [(0, 0)] * 2, (1, 1), groups
    )


JOINED = {
    "inner-pointwise": (
        MATRICES["conv2d-groups"],
        rules.convolution(weight(4, 3, 1, 1), (4, 4), (1, 1), [(0, 0)] * 2, (1, 1)),
    ),
    "outer-pointwise": (
        pointwise(2, 4, stride=2),
        rules.convolution(weight(4, 3, 3, 2), (5, 5), (1, 1), [(1, 0), (1, 0)], (1, 1)),
    ),
    "pool-after-pointwise": (
        windows.average_pool(4, (4, 5), (2, 2), [windows.Axis(2, 2)] * 2, count_include_pad=True),
        pointwise(4, 6),
    ),
    "both": (pointwise(6, 4, groups=2), pointwise(4, 3)),
}


@pytest.mark.parametrize("pair", JOINED.values(), ids=JOINED)
def test_a_kernel_of_size_1_joins_another_convolution(pair):
    result = compose(*pair)
    assert isinstance(result, Convolution)
    same(result, pair[0].csr().toarray() @ pair[1].csr().toarray())


GROUPS = {
    "alike": (4, 4),
    "outer-in-inner": (6, 2),
    "inner-in-outer": (2, 6),
    "outer-whole": (1, 3),
    "askew": (4, 6),
    "askew-too": (6, 4),
}


@pytest.mark.parametrize(("outer", "inner"), GROUPS.values(), ids=GROUPS)
def test_counts_of_a_product_of_groups(outer, inner):
    first = rules.convolution(weight(12, 12 // inner, 3), (7,), (1,), [(1, 1)], (1,), inner)
    second = rules.convolution(weight(24, 12 // outer, 3), (7,), (2,), [(0, 1)], (1,), outer)
    product = compose(second, first)
    csr = product.csr()
    same(product, second.csr().toarray() @ first.csr().toarray())
    if product.pattern is not None:
        assert product.nnz == csr.nnz
        assert (product.counts(1) == np.diff(csr.indptr)).all()
    assert (product.pattern is None) == (max(outer, inner) % min(outer, inner) > 0)


def test_counts_of_a_large_layer_take_no_memory():
    layer = rules.matmul_right(torch.empty(2**17, 2**17, device="meta"), (1, 2**17))
    assert layer.nnz == compose(layer, layer).nnz == 2**34
    assert layer.counts(0).tolist() == [2**17] * 2**17


SCALES = {
    "number": ((), 60),
    "one": ((1, 1, 1), 60),
    "channels": ((3, 1, 1), 20),
    "rows": ((1, 3, 4, 1), 5),
    "rows-only": ((4, 1), 5),
    "columns": ((5,), 1),
    "all": ((1, 3, 4, 5), 1),
}


@pytest.mark.parametrize(("shape", "positions"), SCALES.values(), ids=SCALES)
def test_diagonal(shape, positions):
    scale = random(*shape)
    diagonal = rules.diagonal(scale, (1, 3, 4, 5))
    assert diagonal.positions == positions
    same(diagonal, np.diag(np.broadcast_to(scale, (1, 3, 4, 5)).ravel()))


def test_diagonal_of_nothing():
    same(rules.diagonal(random(3, 1), (1, 3, 0)), np.zeros((0, 0)))


@pytest.mark.parametrize("name", ["diagonal-positions", "selection-positions"])
def test_sum_of_selections_with_other_positions(name):
    matrix = MATRICES[name]
    total = add(matrix, matrix.split(2))
    assert isinstance(total, Selection)
    assert total.positions == 2
    same(total, 2 * matrix.csr().toarray())


NO_MOVES = {
    "sum": lambda x: x[:, :1] + x[:, 1:],
    "constant-added": lambda x: x + 3,
    "last-or-next": lambda x: x[:, -1:] + (x[:, :1] >= 1),
    "negative-number": lambda x: np.where(x[:, :1] >= 1, -x, x[:, :1] + 0 * x),
    "is-zero": lambda x: (x == 0) * 1.0,
    "not-a-number": lambda x: np.where(x > 0, x, np.nan),
}


@pytest.mark.parametrize("function", NO_MOVES.values(), ids=NO_MOVES)
def test_what_does_more_than_to_move_is_refused(function):
    with pytest.raises(ValueError, match="more than move elements"):
        follow(function, [Value((1, 9))])


def test_columns_that_coincide_are_counted_once_at_most():
    product = compose(rules.matmul_right(weight(30, 5), (1, 30)), Selection(np.tile(np.arange(3), 10), 3))
    assert product.nnz == product.csr().nnz == 15


def test_selection_of_no_samples():
    assert MATRICES["selection-positions"].apply(np.zeros((0, 12))).shape == (0, 16)


def test_factors_of_channels_stay_so():
    diagonal = rules.diagonal(random(4, 1, 1), (1, 4, 5, 5))
    assert AffineMap.identity("x", 100).then(diagonal).terms["x"] is diagonal


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_concatenation_is_what_moves_the_elements(axis):
    def shape(number):
        sizes = [2, 3, 4, 2]
        sizes[axis] = number
        return tuple(sizes)

    first, second = Value(shape(1)), Value(shape(3))
    values = [first, second, first]
    [(expected, result)] = follow(lambda a, b: np.concatenate([a, b, a], axis), [first, second])
    map = concatenate(values, result, axis)
    assert list(map.terms) == [first, second]
    for value in (first, second):
        same(map.terms[value], expected.terms[value].csr().toarray())
    assert map.bias.tolist() == [0] * expected.size


def test_concatenation_of_one_value_is_the_value():
    value, nothing = Value((1, 3, 4)), Value((1, 0, 4))
    assert concatenate([nothing, value, nothing], value.shape, 1).alias is value


def test_bias_of_integer_constants_is_float64():
    [(map, _)] = follow(lambda x: np.full(3, 7), [Value((1, 4))])
    assert map.bias.dtype == np.float64


def test_selections_are_followed():
    result = compose(
        Selection(np.array([1, -1]), 2, np.array([2.0, 3.0])), Selection(np.array([4, 0]), 6, np.array([5.0, 7.0]))
    )
    assert isinstance(result, Selection)
    same(result, np.array([[14.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]))
    there_and_back = compose(Selection(np.array([1, 2, 0]), 3), Selection(np.array([2, 0, 1]), 3))
    assert isinstance(there_and_back, Selection)
    assert there_and_back.is_identity


@pytest.mark.parametrize("function", [compose, add])
def test_shapes_must_fit(function):
    with pytest.raises(ValueError, match=r"got \(6, 6\) and \(5, 6\)" if function is add else r"\(6, 6\) and \(5, 6\)"):
        function(MATRICES["identity"], MATRICES["selection"])
