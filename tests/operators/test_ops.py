"""The operators themselves: nonsense is refused, fakes and schemas hold, threads agree."""

import pytest
import torch

from conv2affine import Geometry, conv_matrix
from tests.conftest import assert_same_bits
from tests.operators.calls import arguments_of, calls

DENSE = torch.ops.conv2affine.dense
# A valid call that each test below spoils in one place: Conv2d(4, 6, (2, 3), padding=1, groups=2) @ 4x5.
VALID = {
    "weight": torch.ones(2, 3, 2, 2, 3),
    "input_size": [4, 5],
    "output_size": [5, 5],
    "stride": [1, 1],
    "padding": [1, 1],
    "dilation": [1, 1],
    "padding_mode": "zeros",
    "transposed": False,
    "row_start": 0,
    "row_stop": 150,
}
GEOMETRY = ("input_size", "output_size", "stride", "padding", "dilation")


def dense(**changes):
    """DENSE of the valid call with some of its arguments changed."""
    arguments = {**VALID, **changes}
    geometry = [number for name in GEOMETRY for number in arguments.pop(name)]
    return DENSE(geometry=geometry, **arguments)


def test_valid_call_is_valid():
    assert dense().shape == (150, 80)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("weight", torch.ones(6, 2, 2), "weight must have the shape"),
        ("weight", torch.ones(6, 2, 2, 1, 1, 2, 3), "weight must have the shape"),
        ("weight", torch.ones(2, 3, 2, 1, 2, 3), "geometry must have 15 values, 3 each for input_size"),
        ("weight", torch.ones(0, 3, 2, 2, 3), "at least one group"),
        ("weight", torch.ones(2, 3, 2, 0, 3), r"kernel size \(0\)"),
        ("input_size", [5], "geometry must have 10 values, 2 each for input_size"),
        ("input_size", [0, 5], r"axis 0: input size \(0\)"),
        ("input_size", [4, -5], r"axis 1: input size \(-5\)"),
        ("input_size", [2**50, 2**50], "number of columns"),
        ("output_size", [5, 5, 1], "geometry must have 10 values"),
        ("output_size", [5, 0], r"output size \(0\)"),
        ("output_size", [2**50, 2**50], "number of rows"),
        ("stride", [0, 1], r"stride \(0\)"),
        ("stride", [2**62, 1], "do not fit into a signed 64-bit integer"),
        ("padding", [-1, 1], r"padding \(-1\)"),
        ("padding", [2**63 - 1, 1], "do not fit into a signed 64-bit integer"),
        ("dilation", [1, -2], r"dilation \(-2\)"),
        ("padding_mode", "constant", r"padding_mode \('constant'\) must be one of"),
        ("row_start", -1, r"rows \[-1, 150\) must be a range within the 150 rows"),
        ("row_start", 151, r"rows \[151, 150\)"),
        ("row_stop", 151, r"rows \[0, 151\)"),
    ],
)
def test_nonsense_is_refused(argument, value, message):
    with pytest.raises(ValueError, match=message):
        dense(**{argument: value})


def test_more_bytes_than_64_bits_count_are_refused():
    spoilt = {"input_size": [2**30, 2**18], "output_size": [28, 25]}
    with pytest.raises(ValueError, match="number of bytes of the dense matrix"):
        dense(**spoilt, row_stop=6 * 700)


@pytest.mark.parametrize("mode", [("zeros", False), ("replicate", False), ("zeros", True)], ids=str)
@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("padding", [0, 50])
def test_sizes_that_do_not_belong_together_stay_in_bounds(mode, stride, padding):
    """An output far larger than the input reads nothing or what the padding mode folds back, never beyond."""
    padding_mode, transposed = mode
    arguments = {
        "output_size": [40, 3],
        "stride": [stride, stride],
        "padding": [padding, padding],
        "padding_mode": padding_mode,
        "transposed": transposed,
    }
    matrix = dense(**arguments, row_stop=6 * 120)
    full = 12 if padding_mode == "replicate" else 0
    assert matrix.shape == (720, 80)
    assert ((matrix.sum(1) <= 12) & (matrix.sum(1) >= full)).all()


def test_unsupported_tensors_are_refused():
    with pytest.raises(NotImplementedError, match="'SparseCPU' backend"):
        dense(weight=VALID["weight"].to_sparse())
    with pytest.raises(NotImplementedError, match="weights of Bool are copied, but not added up, and up to 6 of them"):
        dense(weight=VALID["weight"].bool(), input_size=[2, 2], padding_mode="replicate")


def test_bytes_of_row_starts_are_checked():
    """2^61 rows of no entries: their starts take more bytes than 64 bits count."""
    rows = 828285 * 1478752 * 1882585
    geometry = [1, 1, 1, 828285, 1478752, 1882585, 3, 3, 3, 1, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="number of bytes of the row starts"):
        torch.ops.conv2affine.csr(torch.ones(1, 1, 1, 1, 1, 1), geometry, "zeros", False, 0, rows, False, torch.int64)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.float8_e4m3fn, torch.complex32], ids=str)
def test_any_dtype_is_copied(dtype):
    bits = torch.arange(72, dtype=torch.uint8).view(2, 3, 2, 2, 3)
    weight = (
        (bits % 2).bool() if dtype is torch.bool else bits.to(torch.int16).view(torch.int8)[..., ::2].float().to(dtype)
    )
    matrix = dense(weight=weight)
    assert matrix.dtype is dtype
    copied = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(matrix.view(copied), dense(weight=weight.view(copied)))


INT_MAX = 2**63 - 1


@pytest.mark.parametrize(
    ("dtype", "values", "refused"),
    [
        (torch.int8, [100, 100, -73], False),
        (torch.int8, [100, 100, 100], True),
        (torch.uint8, [200, 50, 5], False),
        (torch.uint8, [200, 50, 6], True),
        (torch.int16, [-32768, 32767, -32767], False),
        (torch.int16, [-32768, -1, 0], True),
        (torch.int32, [2**31 - 1, 1, 0], True),
        (torch.int64, [INT_MAX, 0, -INT_MAX], False),
        (torch.int64, [INT_MAX, INT_MAX, -INT_MAX], False),
        (torch.int64, [INT_MAX, 1, 0], True),
        (torch.int64, [-INT_MAX, -1, -1], True),
        (torch.float16, [60000, 5000, 500], False),
        (torch.float16, [60000, 5000, 600], True),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["dense", "csr", "coo", "values"])
def test_sums_that_do_not_fit_are_refused(op, dtype, values, refused):
    """All three taps of each output read the one input."""
    weight = torch.tensor(values, dtype=dtype).view(1, 1, 1, 3)
    arguments = (weight, [1, 1, 1, 1, 1], "replicate", False, 0, 1)
    arguments += {"csr": (False, torch.int64), "values": (False,)}.get(op, ())
    operator = getattr(torch.ops.conv2affine, op)
    if refused:
        with pytest.raises(ValueError, match=r"must have sums within .* where taps meet in one entry, got"):
            operator(*arguments)
    else:
        result = operator(*arguments)
        result = result[-1] if isinstance(result, tuple) else result
        assert result.dtype is dtype
        first, second, third = weight.flatten()
        assert result.item() == (first + second) + third == pytest.approx(sum(values), rel=1e-4)


def test_sums_next_to_infinite_weights_are_checked():
    weight = torch.tensor([[60000.0, 60000.0], [float("inf"), 1.0]], dtype=torch.float16).view(1, 2, 1, 2)
    arguments = ([1, 1, 1, 0, 1], "replicate", False)
    with pytest.raises(ValueError, match="must have sums within"):
        torch.ops.conv2affine.dense(weight, *arguments, 0, 2)
    assert torch.ops.conv2affine.dense(weight[:, 1:], *arguments, 0, 1).item() == float("inf")


def test_bias():
    bias = torch.ops.conv2affine.bias
    values = torch.tensor([-0.0, float("nan"), 2.5])
    assert_same_bits(bias(values, 4), values.repeat_interleave(4))
    assert_same_bits(bias(values[::2], 1), values[::2])
    assert bias(torch.ones(0), 3).shape == (0,)
    with pytest.raises(ValueError, match=r"bias must have shape \(channels\), got \[2, 3\]"):
        bias(torch.ones(2, 3), 4)
    with pytest.raises(ValueError, match=r"outputs \(0\) must be >= 1"):
        bias(torch.ones(3), 0)
    with pytest.raises(ValueError, match="number of bytes of the bias"):
        bias(torch.ones(3), 2**61)


def test_threads_agree_bitwise():
    weight = torch.randn(24, 16, 5, 5)

    def matrix(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return conv_matrix(weight, 16, padding=3, padding_mode="reflect")
        finally:
            torch.set_num_threads(before)

    single = matrix(1)
    assert torch.equal(single, matrix(2))
    assert torch.equal(single, matrix(7))


def test_more_than_2_to_the_31_elements():
    size = 50_000  # 2.5e9 elements of a byte each, of which few pages are ever touched
    matrix = conv_matrix(torch.tensor([[[1, 2, 3]]], dtype=torch.int8), size, padding=1)
    assert matrix.numel() > 2**31
    corner = conv_matrix(torch.tensor([[[1, 2, 3]]], dtype=torch.int8), 100, padding=1)
    assert torch.equal(matrix[-100:, -100:][1:], corner[1:])
    assert torch.equal(matrix[-100:].count_nonzero(1), torch.tensor([3] * 99 + [2]))


@pytest.mark.parametrize("left", [0, 8])
def test_freed_storage_is_refused(left):
    """PyTorch lets users take the memory of a tensor away; kernels read through plain pointers."""
    conv = torch.nn.Conv2d(2, 3, 2, bias=False)
    arguments = arguments_of(conv, (4, 4))
    rows, cols = Geometry.from_layer(conv, 4).shape
    for op, (tensor, *others) in calls(*arguments, (0, rows), (0, cols)):
        tensor = tensor.clone()
        tensor.untyped_storage().resize_(left)
        with pytest.raises(ValueError, match=f"must have a storage of at least .* bytes, got {left}"):
            getattr(torch.ops.conv2affine, op)(tensor, *others)


def test_freed_weight_is_refused():
    weight = torch.ones(4, 4, 3, 3)
    weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="weight must have a storage of at least 576 bytes, got 0"):
        conv_matrix(weight, 8)
    part = torch.ones(8, 4, 3, 3)[4:]
    part.untyped_storage().resize_(4 * 8 * 36 - 4)
    with pytest.raises(ValueError, match="at least 1152 bytes, got 1148"):
        conv_matrix(part, 8)
