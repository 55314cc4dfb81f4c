"""The benchmark's contenders give the right matrix of every layer that they claim; nothing is timed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.cases import BY_ID, case
from benchmarks.check import is_right
from benchmarks.contenders import CONTENDERS

UNEVEN = {"stride": (2, 1), "padding": (2, 1)}
CASES = [
    BY_ID["A"],
    case("uneven", nn.Conv2d, (9, 7), 4, 6, (3, 2), **UNEVEN),
    case("dilation", nn.Conv2d, (9, 7), 4, 6, (3, 2), **UNEVEN, dilation=(1, 3)),
    case("padding-beyond-kernel", nn.Conv2d, (2, 3), 1, 2, 2, padding=(4, 5)),
    case("groups", nn.Conv2d, (9, 7), 4, 6, (3, 2), **UNEVEN, dilation=(1, 3), groups=2),
    case("depthwise", nn.Conv2d, 5, 3, 3, 3, padding=1, groups=3),
    case("circular", nn.Conv2d, (9, 7), 4, 6, (3, 2), **UNEVEN, padding_mode="circular"),
    case("transposed", nn.ConvTranspose2d, (5, 4), 4, 6, (3, 2), **UNEVEN, dilation=(1, 3)),
    case("transposed-groups", nn.ConvTranspose2d, (5, 4), 4, 6, 3, stride=2, output_padding=(1, 0), groups=2),
]
PAIRS = [
    pytest.param(contender, case, id=f"{contender.id}-{str(contender.layout)[6:]}-{case.id}")
    for contender in CONTENDERS
    for case in CASES
    if contender.kind == "peer" and not contender.reason_against(case, limit=1e9)
]


@pytest.mark.parametrize(("contender", "case"), PAIRS)
def test_peer_is_right(contender, case):
    if "einconv" in contender.id:
        pytest.importorskip("einconv", reason="installed by make only, without the torch that it asks for")
    assert is_right(contender.prepare(case)(), case)


def test_check_sees_what_is_wrong():
    case, other = BY_ID["A"], replace(BY_ID["A"], options={"padding": 1, "padding_mode": "circular"})
    by_id = {contender.id: contender for contender in CONTENDERS}
    matrix = by_id["conv(eye)"].prepare(case)()
    assert is_right(matrix, case)
    assert not is_right(matrix, other)
    assert not is_right(matrix.double(), case)
    assert not is_right(matrix[1:], case)
    assert not is_right(matrix.half().float(), case)
    sparse = by_id["scipy.sparse.kron"].prepare(case)()
    sparse.data[0] += 1
    assert not is_right(sparse, case)
    explicit_zeros = torch.ones_like(matrix).to_sparse_csr()
    explicit_zeros.values().copy_(matrix.flatten())
    assert not is_right(explicit_zeros, case)
