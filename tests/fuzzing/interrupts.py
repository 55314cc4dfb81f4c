"""Ctrl-C in the middle of a build: it is heard soon, and the memory is given back."""

import random
import signal
import subprocess
import sys
import time

import psutil

MAX_SECONDS = 2.0  # of processor time, so that other work on the machine does not count
MAX_PATIENCE = 60.0
MAX_KEPT_BYTES = 200e6  # of the 3.2 GB that a build takes

# Builds a matrix of 3.2 GB again and again until it is interrupted, then says how much memory it still holds.
VICTIM = """
import psutil, signal, time, torch, conv2affine
signal.signal(signal.SIGINT, signal.default_int_handler)  # programs that run in the background ignore it
conv = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3).requires_grad_(False)
conv2affine.to_matrix(conv, 8)
before = psutil.Process().memory_info().rss
print("ready", flush=True)
try:
    while True:
        conv2affine.to_matrix(conv, 64)
except KeyboardInterrupt:
    print(psutil.Process().memory_info().rss - before, time.process_time())
"""


def fuzz(seed: int, size: int) -> str:
    """Interrupt `size` builds, each at a random time."""
    draw = random.Random(seed)
    longest = 0.0
    for _ in range(size):
        with subprocess.Popen([sys.executable, "-c", VICTIM], stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0, 0.5))
            times = psutil.Process(victim.pid).cpu_times()
            victim.send_signal(signal.SIGINT)
            try:
                words = victim.communicate(timeout=MAX_PATIENCE)[0].split()
            except subprocess.TimeoutExpired:
                victim.kill()
                raise
        assert victim.returncode == 0, f"ended with status {victim.returncode} after an interrupt"
        kept, seconds = float(words[0]), float(words[1]) - times.user - times.system
        assert kept < MAX_KEPT_BYTES, f"{kept:,.0f} bytes are kept after an interrupt"
        assert seconds < MAX_SECONDS, f"the interrupt was heard after {seconds:.1f} s of processor time"
        longest = max(longest, seconds)
    return f"heard after {longest:.2f} s of processor time at most, memory given back"
