"""The CUDA kernels on a GPU: equal to the CPU's, on the current stream, and in a captured graph."""

import pytest
import torch

from conv2affine import Geometry
from conv2affine.operators.extension import _C
from tests.cases import CASES
from tests.operators.calls import DTYPES, OPS, arguments_of, assert_same, calls

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there is no GPU here; operators/test_emulation.py runs the kernels"
    ),
    pytest.mark.skipif(not _C.build_info()["cuda"], reason="conv2affine was built without CUDA"),
]


def on_gpu(op, *arguments):
    """The operator with its tensor on the GPU."""
    return getattr(OPS, op)(arguments[0].cuda(), *arguments[1:])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_cases(case):
    rows, cols = Geometry.from_layer(case.conv(), case.input_size).shape
    for op, call in calls(*arguments_of(case.conv(), case.input_size), (rows // 3, rows), (0, cols)):
        assert_same(on_gpu, op, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype):
    case = next(case for case in CASES if case.id == "Conv2d-circular-overlap")
    rows, cols = Geometry.from_layer(case.conv(), case.input_size).shape
    for op, call in calls(*arguments_of(case.conv(), case.input_size, dtype), (0, rows), (0, cols)):
        assert_same(on_gpu, op, call)


# Large enough that a kernel still runs when the next one is queued.
WEIGHT, GEOMETRY, SIZE = (1, 64, 32, 3, 3), [16, 16, 16, 16, 1, 1, 1, 1, 1, 1], 16 * 16


def test_current_stream():
    weight = torch.zeros(WEIGHT, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # the weight is still to come: a kernel on another stream would see zeros
        weight.fill_(1)
        matrix = OPS.dense(weight, GEOMETRY, "zeros", False, 0, 64 * SIZE)
        values = OPS.values(weight, GEOMETRY, "zeros", False, 0, 64 * SIZE, False)
    torch.cuda.synchronize()
    assert matrix.count_nonzero() == values.numel()
    assert (values == 1).all()


def test_large_sums_do_not_change_from_run_to_run():
    matrix = torch.randn(64 * SIZE, 32 * SIZE, dtype=torch.half, device="cuda")
    call = (matrix, list(WEIGHT), GEOMETRY, "zeros", False, 0, 64 * SIZE)
    adjoint = OPS.dense_adjoint(*call)
    assert torch.equal(adjoint, OPS.dense_adjoint(*call))
    torch.testing.assert_close(adjoint.cpu(), OPS.dense_adjoint(matrix.cpu(), *call[1:]))


def test_graph_capture():
    weight = torch.randn(2, 3, 2, 3, 3, device="cuda")
    geometry = [5, 6, 5, 6, 1, 1, 1, 1, 1, 1]
    results = {}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results["dense"] = OPS.dense(weight, geometry, "reflect", False, 0, 180)
        results["csr"] = OPS.csr(weight, geometry, "reflect", False, 0, 120, True, torch.int64)[2]
        results["adjoint"] = OPS.dense_adjoint(results["dense"], list(weight.shape), geometry, "reflect", False, 0, 180)
    weight.copy_(torch.randn(weight.shape))
    graph.replay()
    cpu = weight.cpu()
    dense = OPS.dense(cpu, geometry, "reflect", False, 0, 180)
    assert torch.equal(results["dense"].cpu(), dense)
    assert torch.equal(results["csr"].cpu(), OPS.csr(cpu, geometry, "reflect", False, 0, 120, True, torch.int64)[2])
    adjoint = OPS.dense_adjoint(dense, list(weight.shape), geometry, "reflect", False, 0, 180)
    torch.testing.assert_close(results["adjoint"].cpu(), adjoint)
