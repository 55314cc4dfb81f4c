"""Signals, Ctrl-C among them, in the middle of an operator."""

import signal
import threading

import pytest
import torch
from operators import calls

from conv2affine import conv_matrix
from tests.fuzzing import interrupts

pytestmark = pytest.mark.serial

OPS = torch.ops.conv2affine
# A full matrix of 16 million entries, which takes several pieces of work.
SIZE = 4000
FULL = (torch.ones(1, 1, 1, 2 * SIZE - 1), [SIZE, SIZE, 1, SIZE - 1, 1], "zeros", False)


@pytest.fixture
def heard():
    """A signal every millisecond; gives those that Python has heard."""
    times = []
    threads, before = torch.get_num_threads(), signal.signal(signal.SIGALRM, lambda *_: times.append(1))
    torch.set_num_threads(1)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    yield times
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("op", ["dense", "coo", "csr", "values", "dense_adjoint", "sparse_adjoint"])
@pytest.mark.parametrize("below_autograd", [False, True])
def test_operators_hear_signals(heard, op, below_autograd):
    arguments = next(arguments for name, arguments in calls(*FULL, (0, SIZE), (0, SIZE)) if name == op)
    with torch.inference_mode(below_autograd):
        heard.clear()
        getattr(OPS, op)(*arguments)
    assert len(heard) > 3  # one of them, or two, at the end


def test_another_thread_hears_none(heard):
    results = []
    thread = threading.Thread(target=lambda: results.append(conv_matrix(FULL[0][0], SIZE, padding=SIZE - 1)))
    thread.start()
    thread.join()
    assert torch.equal(results[0], torch.ones(SIZE, SIZE))


def test_interrupt_gives_the_memory_back():
    interrupts.fuzz(0, 1)
