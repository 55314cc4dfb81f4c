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
    padding_mode: str,
    transposed: bool,
    by_columns: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def nnz(
    weight_size: Sequence[int],
    geometry: Sequence[int],
    padding_mode: str,
    transposed: bool,
    row_start: int,
    row_stop: int,
    by_columns: bool,
) -> int: ...
def dense_resident_bytes(
    weight_size: Sequence[int],
    geometry: Sequence[int],
    padding_mode: str,
    transposed: bool,
    rows: int,
    itemsize: int,
) -> int: ...
def set_lost_page_seconds(seconds: float) -> None: ...

# The operators, with the arguments of their schemas, below autograd.
def dense(
    weight: Tensor, geometry: Sequence[int], padding_mode: str, transposed: bool, row_start: int, row_stop: int, /
) -> Tensor: ...
def csr(
    weight: Tensor,
    geometry: Sequence[int],
    padding_mode: str,
    transposed: bool,
    row_start: int,
    row_stop: int,
    by_columns: bool,
    index_dtype: torch.dtype,
    /,
) -> tuple[Tensor, Tensor, Tensor]: ...
def coo(
    weight: Tensor, geometry: Sequence[int], padding_mode: str, transposed: bool, row_start: int, row_stop: int, /
) -> tuple[Tensor, Tensor]: ...
def values(
    weight: Tensor,
    geometry: Sequence[int],
    padding_mode: str,
    transposed: bool,
    row_start: int,
    row_stop: int,
    by_columns: bool,
    /,
) -> Tensor: ...
def bias(bias: Tensor, outputs: int, /) -> Tensor: ...
def dense_adjoint(
    matrix: Tensor,
    weight_size: Sequence[int],
    geometry: Sequence[int],
    padding_mode: str,
    transposed: bool,
    row_start: int,
    row_stop: int,
    /,
) -> Tensor: ...
def sparse_adjoint(
    values: Tensor,
    weight_size: Sequence[int],
    geometry: Sequence[int],
    padding_mode: str,
    transposed: bool,
    row_start: int,
    row_stop: int,
    by_columns: bool,
    /,
) -> Tensor: ...
