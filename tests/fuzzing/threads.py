"""Eight threads convert at once, and each gets what one thread gets alone."""

from concurrent.futures import ThreadPoolExecutor

import torch

from conv2affine import to_matrix
from tests.fuzzing.random_layers import random_layer

THREADS = 8
LAYOUTS = (torch.strided, torch.sparse_csr, torch.sparse_coo)


def fuzz(seed: int, size: int) -> str:
    """Convert `size` layers; each layer in every thread, so that threads also share a layer."""
    made = [random_layer(number) for number in range(seed, seed + max(1, size // THREADS))]

    def convert(number: int) -> list[torch.Tensor]:
        conv, input_size = made[number]
        return [to_matrix(conv, input_size, layout=layout).to_dense() for layout in LAYOUTS]

    alone = [convert(number) for number in range(len(made))]
    numbers = [number for number in range(len(made)) for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        for number, results in zip(numbers, pool.map(convert, numbers), strict=True):
            for result, expected in zip(results, alone[number], strict=True):
                assert torch.equal(result, expected), f"layer of seed {seed + number}: {made[number]}"
    return "all equal"
