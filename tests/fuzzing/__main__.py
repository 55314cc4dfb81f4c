"""`python -m tests.fuzzing` runs every fuzzer, or those that are named; so does `make fuzz`."""

import argparse
import sys
import time
import traceback

from tests.fuzzing import files, interrupts, kills, layers, networks, nonsense, threads

# The function, the unit of its size, and its size in a short and in a long run.
FUZZERS = {
    "layers": (layers.fuzz, "random layers", 200, 20_000),
    "networks": (networks.fuzz, "random networks", 20, 2_000),
    "files": (files.fuzz, "mutated ONNX files", 100, 5_000),
    "kills": (kills.fuzz, "killed writers", 30, 2_000),
    "nonsense": (nonsense.fuzz, "calls of operators", 4_000, 100_000),
    "threads": (threads.fuzz, "conversions in 8 threads", 400, 20_000),
    "interrupts": (interrupts.fuzz, "interrupts", 2, 50),
}


def main() -> int:
    """Run the fuzzers; the exit status is the number of those that found a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzzing", description="Test the package with random input and injected faults."
    )
    parser.add_argument("fuzzers", nargs="*", metavar="FUZZER", help=f"which of {', '.join(FUZZERS)}; default: all")
    parser.add_argument("--short", action="store_true", help="two minutes instead of an hour")
    parser.add_argument("--seed", type=int, default=0, help="the first random seed (default: 0)")
    parser.add_argument("--size", type=int, help="how many layers, calls, ... instead of the usual number")
    options = parser.parse_args()
    if unknown := set(options.fuzzers) - set(FUZZERS):
        parser.error(f"fuzzer ({', '.join(sorted(unknown))}) must be one of {', '.join(FUZZERS)}")
    faults = 0
    for name in options.fuzzers or FUZZERS:
        fuzz, unit, short, long = FUZZERS[name]
        size = options.size or (short if options.short else long)
        start = time.monotonic()
        try:
            found = fuzz(options.seed, size)
        except Exception:
            traceback.print_exc()
            found = "FAULT"
            faults += 1
        print(f"{name:11} {size:7,} {unit}, seed {options.seed}, {time.monotonic() - start:.0f} s: {found}", flush=True)
    return faults


if __name__ == "__main__":
    sys.exit(main())
