"""PETSc's matrices, by one rank or several: make petsc-check runs it with MPI, in an environment that has PETSc."""

import numpy as np
import pytest
import torch
from torch import nn

from conv2affine import Geometry, to_matrix
from conv2affine.distributed import to_petsc
from tests.cases import CASES
from tests.conftest import status

reason = "there is no PETSc here; make petsc-check sets up an environment for it"
PETSc = pytest.importorskip("petsc4py.PETSc", reason=reason)
SLEPc = pytest.importorskip("slepc4py.SLEPc", reason=reason)


def local(matrix):
    """This rank's rows as a dense array, and which rows these are."""
    start, stop = matrix.getOwnershipRange()
    starts, cols, values = matrix.getValuesCSR()
    dense = np.zeros((stop - start, matrix.getSize()[1]), values.dtype)
    dense[np.repeat(np.arange(stop - start), np.diff(starts)), cols] = values
    return dense, range(start, stop)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rows_are_those_of_the_matrix(case):
    conv = case.conv()
    expected = to_matrix(conv, case.input_size).detach().numpy()
    matrix = to_petsc(conv, case.input_size)
    dense, rows = local(matrix)
    assert matrix.getSize() == expected.shape
    assert np.array_equal(dense, expected[rows.start : rows.stop])
    assert len(matrix.getValuesCSR()[2]) == np.count_nonzero(expected[rows.start : rows.stop])
    assert matrix.getInfo()["mallocs"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int32], ids=str)
def test_dtypes(dtype):
    weight = torch.arange(-4, 8).view(2, 2, 3).to(dtype)
    dense, rows = local(to_petsc(weight, Geometry(2, 2, (3,), input_size=5, padding=1)))
    conv = nn.Conv1d(2, 2, 3, padding=1, bias=False, dtype=torch.float64)
    conv.weight = nn.Parameter(weight.double())
    assert np.array_equal(dense, to_matrix(conv, 5, rows=rows).detach().numpy())


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_dtypes_that_petsc_does_not_hold_are_refused(dtype):
    weight = torch.ones(1, 1, 2, dtype=dtype)
    with pytest.raises(TypeError, match=r"must have a dtype that PETSc's scalars \(float64\) hold; convert the weight"):
        to_petsc(weight, Geometry(1, 1, (2,), input_size=4))


def test_what_petsc_does_not_count_is_refused():
    with pytest.raises(ValueError, match=r"2147483653 rows and columns must be at most 2147483647, .*64-bit"):
        to_petsc(nn.Conv1d(1, 1, 1), 2**31 + 5)
    with pytest.raises(ValueError, match=r"entries of a rank must be at most 2147483647, .* use more ranks"):
        to_petsc(nn.Conv2d(64, 64, 7), 900)


def test_products():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
    matrix = to_petsc(conv, 8)
    x, y = matrix.createVecs()
    sample = torch.randn(3, 8, 8, dtype=torch.float64)
    x.setArray(sample.flatten()[slice(*x.getOwnershipRange())])
    matrix.mult(x, y)
    expected = conv(sample).flatten()[slice(*y.getOwnershipRange())]
    np.testing.assert_allclose(y.getArray(), expected.detach(), rtol=1e-12, atol=1e-12)


def test_singular_values():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, dtype=torch.float64)
    svd = SLEPc.SVD().create()
    svd.setOperator(to_petsc(conv, 16))
    svd.setImplicitTranspose(True)
    svd.setType(SLEPc.SVD.Type.TRLANCZOS)
    svd.setDimensions(nsv=5)
    svd.setTolerances(1e-14)
    svd.solve()
    expected = torch.linalg.svdvals(to_matrix(conv, 16).detach())[:5]
    found = [svd.getSingularTriplet(place) for place in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_memory():
    conv = nn.Conv2d(3, 64, 7, stride=2, padding=3)
    to_petsc(conv, 16)
    before = status("VmRSS")
    matrix = to_petsc(conv, 112)
    nnz = matrix.getInfo(PETSc.Mat.InfoType.LOCAL)["nz_used"]
    assert status("VmHWM") - before <= 1.5 * 12 * nnz  # a column of 4 bytes and a value of 8 per entry
