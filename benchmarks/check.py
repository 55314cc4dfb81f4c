"""Whether a result is the matrix of the layer: asked before any time is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from benchmarks.cases import Case

BLOCK = 2**23  # entries that are taken to float64 at a time


def is_right(result: Any, case: Case) -> bool:
    """Shape and dtype, and A @ x against conv(x) - bias in float64, for a random x."""
    conv = case.conv(torch.float64)
    x = torch.randn(conv.in_channels, *case.input_size, dtype=torch.float64)
    expected = (conv(x) - conv.bias.view(-1, 1, 1)).flatten()
    matrix = result.weight if isinstance(result, nn.Linear) else result
    if isinstance(matrix, tuple):  # the operator alone gives the parts
        matrix = torch.sparse_csr_tensor(*matrix, (case.plan.rows, case.plan.cols), check_invariants=False)
    if tuple(matrix.shape) != (case.plan.rows, case.plan.cols) or matrix.dtype not in (torch.float32, np.float32):
        return False
    if isinstance(matrix, Tensor) and matrix.layout is torch.strided:
        blocks = matrix.detach().split(max(1, BLOCK // case.plan.cols))
        product = torch.cat([block.double() @ x.flatten() for block in blocks])
    else:
        sparse = as_scipy(matrix)
        # An entry in two halves would still give the right product.
        if sparse.nnz != case.plan.nnz:
            return False
        product = torch.from_numpy(sparse @ x.flatten().cpu().numpy()).to(x.device)
    return torch.allclose(product, expected, rtol=1e-5, atol=1e-5)


def as_scipy(matrix: Any) -> sp.csr_array:
    """A sparse result of any library as SciPy's, on the same memory where that is possible."""
    if not isinstance(matrix, Tensor):
        return matrix
    arrays = (part.detach().cpu().numpy() for part in (matrix.values(), matrix.col_indices(), matrix.crow_indices()))
    return sp.csr_array(tuple(arrays), tuple(matrix.shape))
