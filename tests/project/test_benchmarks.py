"""The benchmark's contenders give the right matrix of every layer that they claim, and all calls of the tables work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.__main__ import read_arguments
from benchmarks.against import Worker, compare
from benchmarks.calls import COMPARED, measure_calls
from benchmarks.cases import BY_ID, case
from benchmarks.check import is_right
from benchmarks.cold import measure_cold
from benchmarks.contenders import CONTENDERS
from benchmarks.report import cold_table

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


@pytest.mark.parametrize("table", COMPARED)
def test_calls_can_be_timed(table):
    small = case("small", nn.Conv1d, 9, 1, 1, 9, padding=4) if table == "long" else BY_ID["A"]
    tasks = list(COMPARED[table].tasks(small))
    seconds = measure_calls(tasks, rounds=1, threads=torch.get_num_threads())
    assert seconds.keys() == {task.name for task in tasks}
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in seconds.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--table", "conversions"], "--table conversions goes with --against only"),
        (["--table", "dense", "--against", "."], "--table dense goes without --against only"),
        (["--table", "dense", "csr", "--cases", "n=6000"], "--cases must be of the tables dense, csr: A, B, C"),
    ],
    ids=["not-against", "against", "cases"],
)
def test_what_no_table_has_is_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        read_arguments(given)
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_checkouts_are_timed_by_turns(tmp_path):
    root = Path(__file__).parents[2]
    workers = Worker(root, 1), Worker(root, 1)
    comparisons = compare(workers, "conversions", BY_ID["A"], 2, 1e9)
    assert "to_linear" in {comparison.call for comparison in comparisons}
    for comparison in comparisons:
        assert not comparison.error
        assert len(comparison.here) == len(comparison.there) == 2
        assert comparison.ratio > 0
    failed = workers[0].seconds(
        "conversions", BY_ID["A"], replace(next(COMPARED["conversions"].tasks(BY_ID["A"])), name="no")
    )
    assert failed.startswith("StopIteration")
    for worker in workers:
        worker.close()
    assert [worker.process.returncode for worker in workers] == [0, 0]
    with pytest.raises(RuntimeError, match="the worker ended with exit code 1"):
        Worker(tmp_path, 1).seconds("conversions", BY_ID["A"], next(COMPARED["conversions"].tasks(BY_ID["A"])))


def test_first_calls(monkeypatch):
    monkeypatch.setattr("benchmarks.cold.PAUSE", 0)
    cold = measure_cold(BY_ID["A"], torch.strided, rounds=2, threads=1)
    assert (len(cold.ours), len(cold.zeros), cold.bytes) == (2, 2, 4 * 210 * 84)
    assert cold_table(cold).renderables[0].plain == "A  Conv2d(2, 5, 3, padding=1) @ 6x7, strided, 70.6 kB, 2 rounds"
