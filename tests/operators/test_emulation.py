"""The CUDA kernels, run on the CPU by tests/emulation: equal to the CPU's kernels, bit by bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conv2affine import Geometry
from tests import emulation
from tests.cases import CASES, layers, made
from tests.emulation import cuda
from tests.operators.calls import DTYPES, OPS, arguments_of, assert_same, calls

OVERLAPPING_AND_NOT = [case for case in CASES if case.id in ("Conv2d-circular-overlap", "Conv2d-all-asymmetric")]
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="operators/test_cuda.py runs the kernels on the GPU that is here"
)


@pytest.fixture(autouse=True, scope="module")
def emulated_kernels():
    torch.ops.load_library(emulation.build())


# What depends on the order of blocks or threads rarely survives the last.
ORDERS = [pytest.param("forward", marks=pytest.mark.long), pytest.param("backward", marks=pytest.mark.long), "shuffled"]


@pytest.fixture(autouse=True, scope="module", params=ORDERS)
def order(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONV2AFFINE_EMULATION_ORDER", request.param)
        yield


@pytest.fixture(autouse=True)
def unwritten_memory_shows():
    """What a kernel leaves out is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_cases(case):
    arguments = arguments_of(case.conv(), case.input_size)
    rows, cols = Geometry.from_layer(case.conv(), case.input_size).shape
    for blocks in (((0, rows), (0, cols)), ((rows // 3, rows - rows // 4), (cols // 4, cols - cols // 3))):
        for op, call in calls(*arguments, *blocks):
            assert_same(cuda, op, call)


@given(drawn=layers(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_properties(drawn, data):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    shape = Geometry.from_layer(conv, input_size).shape
    blocks = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
    for op, call in calls(*arguments_of(conv, input_size), *blocks):
        assert_same(cuda, op, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", OVERLAPPING_AND_NOT, ids=lambda case: case.id)
def test_dtypes(case, dtype):
    weight, *mode = arguments_of(case.conv(), case.input_size, dtype)
    rows, cols = Geometry.from_layer(case.conv(), case.input_size).shape
    for strided in (weight, weight.transpose(1, 2).contiguous().transpose(1, 2)):
        for op, call in calls(strided, *mode, (0, rows), (0, cols)):
            assert_same(cuda, op, call)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16], ids=str)
def test_half_types_add_as_in_torch(dtype):
    """Every number of 16 bits, added to another: the two taps of each row read the one input coordinate."""
    pairs = torch.stack([torch.arange(-(2**15), 2**15), torch.randperm(2**16) - 2**15], dim=1)
    pairs = pairs.to(torch.int16).view(dtype)
    may_overflow = pairs.isfinite().all(1) & (pairs.double().abs().sum(1) > torch.finfo(torch.half).max)
    weight = pairs.where(~may_overflow[:, None], 1).reshape(1, -1, 1, 2)  # as those are refused
    arguments = (weight, [1, 1, 1, 0, 1], "replicate", False, 0, 2**16)
    torch.testing.assert_close(cuda("dense", *arguments), OPS.dense(*arguments), rtol=0, atol=0, equal_nan=True)


def test_tables_of_several_uploads():
    """A long kernel between wide borders, and an axis with a pattern for each coordinate by columns."""
    for weight, geometry, padding_mode, rows, cols in (
        (torch.randn(1, 1, 1, 40), [90, 129, 1, 39, 1], "zeros", 129, 90),
        (torch.randn(1, 1, 2, 3), [700, 700, 1, 1, 1], "reflect", 700, 1400),
    ):
        for op, call in calls(weight, geometry, padding_mode, False, (0, rows), (0, cols)):
            assert_same(cuda, op, call)


@pytest.mark.parametrize("dtype", [torch.half, torch.float64], ids=str)
@pytest.mark.parametrize("mode", [("circular", False), ("zeros", True)], ids=str)
def test_slices_of_several_outputs(mode, dtype):
    """So many weights that a thread of an adjoint sums over three outputs, from one line or plane to the next."""
    weight, geometry = torch.randn(1, 16, 16, 2, 3, 3).to(dtype), [4, 5, 7, 4, 5, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    for op, call in calls(weight, geometry, *mode, (100, 2200), (31, 2000)):
        if op.endswith("adjoint"):
            assert_same(cuda, op, call)


@pytest.mark.long
@pytest.mark.parametrize("op", ["dense", "csr", "dense_adjoint"])
def test_more_rows_than_threads_of_a_launch(op):
    rows = 65535 * 256 + 100
    weight = torch.arange(rows).to(torch.int8).view(1, rows, 1, 1)
    rest = ([1, 1, 1, 0, 1], "zeros", False, 0, rows)
    arguments = {
        "dense": (weight, *rest),
        "csr": (weight, *rest, False, torch.int32),
        "dense_adjoint": (weight.view(rows, 1).half(), list(weight.shape), *rest),
    }
    assert_same(cuda, op, arguments[op])


def test_more_than_2_to_the_31_elements():
    torch.use_deterministic_algorithms(False)  # it would fill all of the memory, of which few pages are ever touched
    size = 50_000
    weight = torch.tensor([1, 2, 3], dtype=torch.int8).view(1, 1, 1, 3)
    matrix = cuda("dense", weight, [size, size, 1, 1, 1], "zeros", False, 0, size)
    assert matrix.numel() > 2**31
    corner = OPS.dense(weight, [100, 100, 1, 1, 1], "zeros", False, 0, 100)
    assert torch.equal(matrix[-100:, -100:][1:], corner[1:])
    assert torch.equal(matrix[-100:].count_nonzero(1), torch.tensor([3] * 99 + [2]))


@pytest.mark.parametrize("mode", [("zeros", False), ("replicate", False), ("zeros", True)], ids=str)
@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("padding", [0, 50])
def test_sizes_that_do_not_belong_together(mode, stride, padding):
    geometry = [4, 5, 40, 3, stride, stride, padding, padding, 1, 1]
    weight = torch.randn(2, 3, 2, 2, 3)
    for op, call in calls(weight, geometry, *mode, (0, 720), (0, 80)):
        assert_same(cuda, op, call)


@pytest.mark.parametrize("op", ["dense", "coo", "csr", "values"])
def test_nonsense_is_refused(op):
    extra = {"csr": (False, torch.int32), "values": (False,)}.get(op, ())
    weight, geometry = torch.ones(1, 2, 1, 3), [5, 3, 1, 0, 1]
    with pytest.raises(ValueError, match=r"rows \[0, 7\) must be a range within the 6 rows"):
        cuda(op, weight, geometry, "zeros", False, 0, 7, *extra)
    with pytest.raises(ValueError, match=r"padding_mode \('constant'\) must be one of"):
        cuda(op, weight, geometry, "constant", False, 0, 6, *extra)
    with pytest.raises(NotImplementedError, match="weights of Bool are copied, but not added up"):
        cuda(op, weight.bool(), [1, 1, 1, 1, 1], "replicate", False, 0, 2, *extra)
    with pytest.raises(ValueError, match="must have sums within"):
        cuda(op, (100 * weight).to(torch.int8), [1, 1, 1, 1, 1], "replicate", False, 0, 2, *extra)


def test_adjoint_nonsense_is_refused():
    size, geometry = [1, 2, 1, 3], [5, 3, 1, 0, 1]
    with pytest.raises(ValueError, match=r"matrix must have shape \(6, 5\), got \[5, 6\]"):
        cuda("dense_adjoint", torch.ones(5, 6), size, geometry, "zeros", False, 0, 6)
    with pytest.raises(ValueError, match=r"values must have shape \(18\), got \[17\]"):
        cuda("sparse_adjoint", torch.ones(17), size, geometry, "zeros", False, 0, 6, False)
    with pytest.raises(NotImplementedError, match="not implemented for 'Int'"):
        cuda("dense_adjoint", torch.ones(6, 5).int(), size, geometry, "zeros", False, 0, 6)
