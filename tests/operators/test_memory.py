"""The memory that large results live in."""

import copy
import io
import multiprocessing
import pickle

import psutil
import pytest
import torch

from conv2affine import conv_matrix
from conv2affine.operators.extension import _C

pytestmark = pytest.mark.serial

MIB = 2**20
DEFAULT_SECONDS = 8e-3


def large(dtype=torch.float32):
    """A matrix that lives in memory of our own: 1 x 1 kernel, 3000 x 3000."""
    return conv_matrix(torch.ones(1, 1, 1, dtype=dtype), 3000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex128], ids=str)
def test_is_aligned_zeroed_and_contiguous(dtype):
    matrix = large(dtype)
    assert matrix.data_ptr() % 64 == 0
    assert matrix.is_contiguous()
    assert torch.equal(matrix, torch.eye(3000, dtype=dtype))


def test_is_an_ordinary_tensor():
    matrix, expected = large(), torch.eye(3000)
    assert matrix.untyped_storage().nbytes() == 4 * 3000**2
    assert matrix.untyped_storage().resizable()
    assert torch.equal(copy.deepcopy(matrix), expected)
    assert torch.equal(pickle.loads(pickle.dumps(matrix)), expected)
    file = io.BytesIO()
    torch.save(matrix, file)
    file.seek(0)
    assert torch.equal(torch.load(file), expected)
    array = matrix.numpy()
    array[0, 1] = 5
    assert matrix[0, 1] == 5
    matrix[0, 1] = 0
    assert torch.equal(matrix[:10].clone().resize_(100, 3000)[:10], expected[:10])
    assert torch.equal(large().resize_(4000, 3000)[:3000], expected)
    assert large().set_().numel() == 0


@pytest.fixture
def pages(request):
    """Where huge pages never lose too much, or always do."""
    _C.set_lost_page_seconds({"huge": float("inf"), "small": -1}[request.param])
    yield
    _C.set_lost_page_seconds(DEFAULT_SECONDS)


@pytest.mark.parametrize("pages", ["huge", "small"], indirect=True)
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_csr, torch.sparse_csc, torch.sparse_coo], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_pages_change_no_element(pages, layout, threads):
    """A matrix of 52 MB, and of 26 MB in each sparse array; its blocks of rows are too small for memory of our own."""
    size, weight = (10, 10), torch.randn(64, 64, 7, 7, dtype=torch.float64)
    rows, before = 64 * 4 * 4, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix = conv_matrix(weight, size, layout=layout).to_dense()
    finally:
        torch.set_num_threads(before)
    blocks = [conv_matrix(weight, size, rows=range(start, start + 128)) for start in range(0, rows, 128)]
    assert matrix.shape == (rows, 64 * 10 * 10)
    assert torch.equal(matrix, torch.cat(blocks))


def test_numpy_array_outlives_the_tensor():
    array = large().numpy()
    assert array.trace() == 3000


def test_share_memory():
    matrix = large().share_memory_()
    assert matrix.is_shared()
    assert torch.equal(matrix, torch.eye(3000))


def doubled(connection, array):
    array *= 2  # by NumPy: torch's threads are not there after a fork
    connection.send(array.trace())


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_fork_is_copy_on_write():
    matrix = large()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=doubled, args=(theirs, matrix.numpy()))
    process.start()
    assert ours.poll(60)
    assert ours.recv() == 6000
    process.join(60)
    assert matrix.sum() == 3000


def test_memory_is_given_back():
    process = psutil.Process()
    large()
    before = process.memory_info().rss
    for _ in range(20):
        large()
    assert process.memory_info().rss - before < 20 * MIB
