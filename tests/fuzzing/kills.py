"""Writers that are killed: their file is not there, or as before, or whole; and the same call writes it again.

Half of them are killed after a random time, the others at their n-th operation on files. They are forks of a process
that has all imports behind it and no threads; `python -m tests.fuzzing.kills SEED SIZE` is that process.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from conv2affine import to_scipy
from conv2affine.files import open_csr, open_network, save_csr, save_network
from conv2affine.onnx import convert
from conv2affine.onnx.exporting import storage

OPERATIONS = 10  # of a writer, approximately
CONV = torch.nn.Conv2d(3, 16, 5, padding=2).requires_grad_(False)
CSR = to_scipy(CONV, 24)
IMAGE = torch.zeros(1, 3, 24, 24)
SIZES = {"old": 48, "new": 64}


def fuzz(seed: int, size: int) -> str:
    """Kill `size` writers."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzzing.kills", str(seed), str(size)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def network(age: str) -> onnx.ModelProto:
    """A model of one size, whose constants are all one number."""
    size = SIZES[age]
    constants = [numpy_helper.from_array(np.full((size, size), 1 / size, np.float32), name) for name in "ab"]
    nodes = [
        helper.make_node(*node)
        for node in (("MatMul", ["x", "a"], ["h"]), ("Relu", ["h"], ["r"]), ("MatMul", ["r", "b"], ["y"]))
    ]
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])] for name in "xy"]
    graph = helper.make_graph(nodes, "network", *ends, constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def write_onnx(path: Path, age: str) -> None:
    convert(network(age), path, overwrite=True)


def write_external(path: Path, age: str) -> None:
    storage.LARGE = 0
    convert(network(age), path, overwrite=True)


def read_onnx(path: Path) -> str:
    constants = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    weights = [array for array in constants if array.ndim == 2]
    age = next(age for age, size in SIZES.items() if size == len(weights[0]))
    for weight in weights:
        np.testing.assert_array_equal(weight, np.full((SIZES[age],) * 2, 1 / SIZES[age], np.float32))
    return age


def write_csr(path: Path, _: str) -> None:
    save_csr(path, CONV, 24, progress=False)


def read_csr(path: Path) -> str:
    matrix = open_csr(path)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(matrix, part), getattr(CSR, part))
    return "new"


def write_network(path: Path, _: str) -> None:
    save_network(path, CONV, IMAGE, progress=False)


def read_network(path: Path) -> str:
    values = next(open_network(path).children()).values
    np.testing.assert_array_equal(values.detach(), CSR.data)
    return "new"


# How a file is written and read, and what may be there before.
WRITERS: dict[str, tuple[Callable[[Path, str], None], Callable[[Path], str], tuple[str, ...]]] = {
    "ONNX": (write_onnx, read_onnx, ("absent", "old")),
    "ONNX with external data": (write_external, read_onnx, ("absent", "old")),
    "CSR": (write_csr, read_csr, ("absent",)),
    "network": (write_network, read_network, ("absent",)),
}


def fork(work: Callable[[], Any]) -> int:
    """Start a process that does this, and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def ended(pid: int) -> int:
    """Its exit status, when it has one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(number: int, folder: str) -> None:
    """Kill this process at its n-th operation on files of a folder."""

    def count(_: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if any(folder in str(argument) for argument in arguments if isinstance(argument, str | Path)):
            number -= 1
            if number < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def kill(seed: int, seconds: dict[str, float]) -> str:
    """Kill one writer; says what is there then."""
    draw = random.Random(seed)
    name = draw.choice(list(WRITERS))
    write, read, states = WRITERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder, "file"), draw.choice(states)
        if before != "absent":
            assert ended(fork(lambda: write(path, before))) == 0
        if draw.random() < 0.5:
            pid = fork(lambda: write(path, "new"))
            time.sleep(draw.uniform(0, seconds[name]))
            os.kill(pid, signal.SIGKILL)
        else:
            number = draw.randrange(OPERATIONS)
            pid = fork(lambda: (die_at(number, folder), write(path, "new")))
        status = ended(pid)
        assert status in (0, -signal.SIGKILL), f"{name}: status {status}"
        found = read(path) if path.exists() else "absent"
        allowed = {before, "absent"} if "external" in name else {before}
        assert found == "new" or (status != 0 and found in allowed), f"{name}: {found} after {before}"
        if found != "new":
            assert ended(fork(lambda: write(path, "new"))) == 0, f"{name}: is not written after a kill"
            assert read(path) == "new", name
        left = sorted(file.name for file in Path(folder).iterdir() if not file.name.startswith(".conv2affine-"))
        assert left == sorted({"file", *(["file.data"] if "external" in name else [])}), f"{name}: {left}"
        return found


def run(first: int, size: int) -> None:
    """Kill writers, and print how often each state was found."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (write, _, _) in WRITERS.items():
            start = time.monotonic()
            assert ended(fork(lambda write=write, name=name: write(Path(folder, name), "new"))) == 0
            seconds[name] = time.monotonic() - start
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + size):
        try:
            outcomes[kill(seed, seconds)] += 1
        except Exception as error:
            raise AssertionError(f"writer of seed {seed}") from error
    print(", ".join(f"{count:,} {found}" for found, count in outcomes.most_common()))


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))
