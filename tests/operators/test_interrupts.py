"""Signals, Ctrl-C among them, in the middle of an operator."""

import signal
import threading
from functools import partial
from operator import methodcaller

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conv2affine import conv_matrix
from tests.fuzzing import interrupts
from tests.operators.calls import calls

pytestmark = pytest.mark.serial

OPS = torch.ops.conv2affine
# A full matrix of 16 million entries, which one thread fills in four chunks.
SIZE = 4000
FULL = (torch.ones(1, 1, 1, 2 * SIZE - 1), [SIZE, SIZE, 1, SIZE - 1, 1], "zeros", False)


class Signalled(TorchDispatchMode):
    """Sends a signal as each operator begins, with no Python code after it that could hear it before or afterwards."""

    def __init__(self):
        super().__init__()
        self.ended = []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        steps = partial(signal.setitimer, signal.ITIMER_REAL, 1e-6), partial(operator._op, *arguments)
        self.ended.extend(map(methodcaller("__call__"), steps))
        return self.ended[-1]


@pytest.fixture
def signalled():
    threads, before = torch.get_num_threads(), signal.signal(signal.SIGALRM, signal.default_int_handler)
    torch.set_num_threads(1)
    yield Signalled()
    signal.signal(signal.SIGALRM, before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("op", ["dense", "coo", "csr", "values", "dense_adjoint", "sparse_adjoint"])
@pytest.mark.parametrize("below_autograd", [False, True])
def test_a_signal_ends_an_operator(signalled, op, below_autograd):
    arguments = next(arguments for name, arguments in calls(*FULL, (0, SIZE), (0, SIZE)) if name == op)
    with torch.inference_mode(below_autograd), pytest.raises(KeyboardInterrupt), signalled:
        getattr(OPS, op)(*arguments)
    assert len(signalled.ended) == 1  # the timer was set, and the operator has not ended


def test_another_thread_hears_none(signalled):
    def wait():
        signal.setitimer(signal.ITIMER_REAL, 1e-6)
        thread.join()

    results = []
    thread = threading.Thread(target=lambda: results.append(conv_matrix(FULL[0][0], SIZE, padding=SIZE - 1)))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        wait()
    thread.join()
    assert torch.equal(results[0], torch.ones(SIZE, SIZE))


def test_interrupt_gives_the_memory_back():
    interrupts.fuzz(0, 1)
