"""Times calls of one checkout of conv2affine for `benchmarks.against`: keys come in as lines of JSON, seconds go out.

python -m benchmarks.worker CHECKOUT THREADS
"""

import json
import sys
import warnings
from pathlib import Path


def main(checkout: str, threads: int) -> None:
    """Answer until the input ends. The call that was timed last is kept for its next round."""
    sys.path.insert(0, checkout)  # before conv2affine is imported: this package stays the one of the current folder
    import torch

    import conv2affine
    from benchmarks.calls import COMPARED
    from benchmarks.cases import BY_ID
    from benchmarks.timing import seconds

    if Path(checkout).resolve() not in Path(conv2affine.__file__).resolve().parents:
        raise ImportError(f"{checkout} has no package conv2affine, found {conv2affine.__file__}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    current, call = None, None
    for line in sys.stdin:
        table, case, name = key = json.loads(line)
        try:
            if key != current:
                call = None  # its memory is free before the next one is prepared
                call = next(task for task in COMPARED[table].tasks(BY_ID[case]) if task.name == name).prepare()
                current = key
            answer = seconds(call, threads)
        except Exception as error:  # an older checkout may lack what is asked for
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
