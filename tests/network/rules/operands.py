"""What the operators of the tests take, and the kinds of steps that they become."""

import numpy as np
import torch

LINE, IMAGE, VOLUME = (2, 6), (2, 5, 6), (2, 3, 4, 5)


def constant(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


MASK = constant(*IMAGE) > 0
SQUARE = constant(5, 5) + 5 * torch.eye(5)
# Where elements of an image are put along its axis 2.
COLUMNS = torch.from_numpy(np.random.default_rng(0).integers(5, size=(1, 2, 5, 6)))
THIRDS = (torch.arange(5) % 3).view(1, 1, 5, 1).expand(1, 2, 5, 6)


def kinds(rows, number):
    """Kinds of the steps of one of several modules side by side."""
    return {row.kind for row in rows if not row.layout and f"{row.name}.".startswith(f"parts.{number}.")}


def assert_linear(converted, name, shape):
    """One of several modules side by side is a part of their linear layer."""
    model, fc, number = converted.of(name)
    x = constant(3, *shape, seed=3)
    result = fc(x.flatten(1))[:, fc.output_slices[number]]
    torch.testing.assert_close(result, model.one(number, x).flatten(1), atol=1e-12, rtol=0)
