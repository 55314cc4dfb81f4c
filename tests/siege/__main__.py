"""`python -m tests.siege` runs every attack, or the ones that are named; `make siege`."""

import argparse
import sys
import time
import traceback

from tests.siege import files, interrupts, kills, layers, networks, nonsense, threads

# The attack, what one unit of its size is, and its size in a short and in a long siege.
ATTACKS = {
    "layers": (layers.attack, "random layers", 200, 20_000),
    "networks": (networks.attack, "random networks", 20, 2_000),
    "files": (files.attack, "mutated ONNX files", 100, 5_000),
    "kills": (kills.attack, "killed writers", 30, 2_000),
    "nonsense": (nonsense.attack, "calls of operators", 4_000, 100_000),
    "threads": (threads.attack, "conversions in 8 threads", 400, 20_000),
    "interrupts": (interrupts.attack, "interrupts", 2, 50),
}


def main() -> int:
    """Run the siege; the exit status is the number of attacks that found a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.siege", description="Attack the package with random input.")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"which of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--short", action="store_true", help="two minutes instead of an hour")
    parser.add_argument("--seed", type=int, default=0, help="the first random seed (default: 0)")
    parser.add_argument("--size", type=int, help="how many layers, calls, ... instead of the usual number")
    options = parser.parse_args()
    if unknown := set(options.attacks) - set(ATTACKS):
        parser.error(f"attack ({', '.join(sorted(unknown))}) must be one of {', '.join(ATTACKS)}")
    faults = 0
    for name in options.attacks or ATTACKS:
        attack, unit, short, long = ATTACKS[name]
        size = options.size or (short if options.short else long)
        start = time.monotonic()
        try:
            found = attack(options.seed, size)
        except Exception:
            traceback.print_exc()
            found = "FAULT"
            faults += 1
        print(f"{name:11} {size:7,} {unit}, seed {options.seed}, {time.monotonic() - start:.0f} s: {found}", flush=True)
    return faults


if __name__ == "__main__":
    sys.exit(main())
