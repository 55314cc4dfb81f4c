from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    openmp: bool
    cuda: bool

def build_info() -> BuildInfo: ...
def axis_taps(
    input: int, output: int, kernel: int, stride: int, padding: int, dilation: int, rule: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def entries(
    weight_size: Sequence[int], geometry: Sequence[int], rule: str, row_start: int, row_stop: int, transpose: bool
) -> int: ...
def dense_resident_bytes(
    weight_size: Sequence[int], geometry: Sequence[int], rule: str, rows: int, itemsize: int
) -> int: ...
