"""Blocks of rows of a matrix, equal bit by bit to those of the whole; and how much they hold."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from conv2affine.network.matrices import rows
from conv2affine.network.matrices.expressions import Product, Sum
from conv2affine.network.matrices.layers import Repeated, Separable
from conv2affine.network.matrices.matrix import Selection, Sparse
from conv2affine.network.matrices.rows import by_rows, entries_of, held_entries, row_blocks, take_rows
from conv2affine.network.rules.formulas import convolution
from tests.network.models import samples


def matrices():
    conv = convolution(samples(4, 2, 3, 3), (5, 5), (1, 1), ((1, 1), (1, 1)), (1, 1))  # (100, 50)
    small = convolution(samples(2, 2, 3, 3), (5, 5), (1, 1), ((1, 1), (1, 1)), (1, 1))  # (50, 50)
    pool = Sparse(Selection(samples(30, dtype=torch.float32).long().numpy() % 100, 100, samples(30).numpy()).csr())
    chosen = Selection(np.array([5, -1, 30, 5, 99, 0]), 100, samples(6).numpy())
    axis = csr_array(samples(7, 5).numpy())
    return {
        "convolution": conv,
        "written out": pool,
        "selection": Selection(None, 100),
        "channels": Selection(np.array([1, -1, 0]), 50, None, 25),
        "interpolation": Separable(2, (axis, csr_array(np.eye(5)))),
        "copies": Repeated(small, 3),
        "of a product": Product(pool, conv),
        "moved": Product(chosen, conv),
        "with moved columns": Product(conv, Selection(np.arange(50)[::-1].copy(), 50)),
        "of three": Product(conv, Product(small, small)),
        "of an interpolation": Product(Separable(2, (axis, axis)), small),
        "sum": Sum(conv, Product(Selection(None, 100), conv)),
        "with a part twice": Sum(twice := Product(small, small), Product(small, twice)),
    }


@pytest.mark.parametrize("name", matrices())
@pytest.mark.parametrize("block_entries", [30, 2**20])
def test_rows_are_those_of_the_matrix(name, block_entries, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ENTRIES", block_entries)
    matrix = matrices()[name]
    whole, prepared = matrix.csr(), by_rows(matrix)
    for part in (range(0), range(3, 6), range(matrix.shape[0]), *row_blocks(prepared, range(matrix.shape[0]))):
        expected = whole[part.start : part.stop]
        for actual in (take_rows(each, part).csr() for each in (matrix, prepared)):
            assert actual.shape == expected.shape
            assert all((getattr(actual, n) == getattr(expected, n)).all() for n in ("data", "indices", "indptr"))


def test_blocks_of_rows_hold_few_entries(monkeypatch):
    """Of a product whose factors are larger; counted as they are written out."""
    monkeypatch.setattr(rows, "BLOCK_ENTRIES", 2000)
    conv = convolution(samples(4, 4, 3, 3), (9, 9), (1, 1), ((1, 1), (1, 1)), (1, 1))
    pool = convolution(torch.ones(4, 1, 3, 3).double(), (9, 9), (3, 3), ((0, 0), (0, 0)), (1, 1), groups=4)
    matrix, made, write = Product(pool, conv), [], rows._range
    monkeypatch.setattr(rows, "_range", lambda *given: made.append(write(*given)) or made[-1])
    prepared, count = by_rows(matrix), 0
    for part in row_blocks(prepared, range(matrix.shape[0])):
        made.clear()
        take_rows(prepared, part).csr()
        written = sum(each.nnz for each in made)
        assert written <= entries_of(prepared, part) <= 2000
        count += 1
    assert count > 4
    assert held_entries(matrix) == 0
    assert conv.nnz > 8000
