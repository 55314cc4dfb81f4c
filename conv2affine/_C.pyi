from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    openmp: bool
    cuda: bool

def build_info() -> BuildInfo: ...
def axis_taps(
    input: int,
    output: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    rule: str,
    transpose: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def entries(
    weight_size: Sequence[int], geometry: Sequence[int], rule: str, row_start: int, row_stop: int, transpose: bool
) -> int: ...
def dense_resident_bytes(
    weight_size: Sequence[int], geometry: Sequence[int], rule: str, rows: int, itemsize: int
) -> int: ...

# The operators, with the arguments of their schemas, below autograd.
def dense(weight: Tensor, geometry: Sequence[int], rule: str, row_start: int, row_stop: int, /) -> Tensor: ...
def csr(
    weight: Tensor,
    geometry: Sequence[int],
    rule: str,
    row_start: int,
    row_stop: int,
    index_dtype: torch.dtype,
    transpose: bool,
    /,
) -> tuple[Tensor, Tensor, Tensor]: ...
def coo(
    weight: Tensor, geometry: Sequence[int], rule: str, row_start: int, row_stop: int, /
) -> tuple[Tensor, Tensor]: ...
def values(
    weight: Tensor, geometry: Sequence[int], rule: str, row_start: int, row_stop: int, transpose: bool, /
) -> Tensor: ...
def dense_adjoint(
    matrix: Tensor, weight_size: Sequence[int], geometry: Sequence[int], rule: str, row_start: int, row_stop: int, /
) -> Tensor: ...
def sparse_adjoint(
    values: Tensor,
    weight_size: Sequence[int],
    geometry: Sequence[int],
    rule: str,
    row_start: int,
    row_stop: int,
    transpose: bool,
    /,
) -> Tensor: ...
