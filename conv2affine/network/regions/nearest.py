"""The distance to the nearest wall: exactly, and mostly without the rows of the others.

A wall w(x + d) = w + g d has the distance |w| / |g|. For a random direction r of independent standard normal numbers,
the mean of (g r)^2 is |g|^2. Over K directions, the mean M of (g r)^2 is below T |g|^2 with a probability of at most
exp(-K (T - 1 - ln T) / 2): with the numbers below, 1e-24 for a wall. So |w| sqrt(T / M) is a lower bound of the
distance, and |g| itself is needed only for walls whose bound is below the smallest distance that is found.

Source: S. Dasgupta, A. Gupta, An elementary proof of a theorem of Johnson and Lindenstrauss, 2003, lemma 2.2
"""

from __future__ import annotations

from itertools import count

import numpy as np

from conv2affine.network.matrices.matrix import Array
from conv2affine.network.regions.local import LocalMap, norm

DIRECTIONS = 256  # K
FACTOR = 1 / 3  # T
# Walls of a point whose rows are computed at a time.
ROWS = 8


def nearest(local: LocalMap) -> Array:
    """(points,): the distance of each point to its nearest wall, by the 2-norm; infinite if there is none."""
    inputs = local.shape[1]
    if inputs <= 2 * DIRECTIONS:
        return _exactly(local)
    sizes = abs(local.walls[:, 0])
    bounds = np.sqrt(FACTOR) * _distances(sizes, _means(local))
    found = np.full(local.points, np.inf)
    for turn in count():
        nearer = bounds < found[:, None]
        if not nearer.any():
            break
        if turn and nearer.sum(1).max() > inputs:  # too many walls are about as near as the nearest
            return _exactly(local)
        walls = np.argsort(bounds, 1)[:, :ROWS]
        distances = _distances(np.take_along_axis(sizes, walls, 1), norm(local.wall_rows(walls), 2))
        distances[~np.take_along_axis(nearer, walls, 1)] = np.inf  # what is no wall, or farther
        found = np.minimum(found, distances.min(1))
        np.put_along_axis(bounds, walls, np.inf, 1)
    return found


def _exactly(local: LocalMap) -> Array:
    """From the rows of all walls."""
    found: Array = _distances(abs(local.walls[:, 0]), local.norms()).min(1, initial=np.inf)
    return found


def _distances(sizes: Array, norms: Array) -> Array:
    """|w| / |g|, infinite where g is zero."""
    distances: Array = np.divide(sizes, norms, where=norms > 0, out=np.full(sizes.shape, np.inf))
    return distances


def _means(local: LocalMap) -> Array:
    """(points, walls): the roots of the mean squares of the walls' derivatives along random directions."""
    random, total = np.random.default_rng(0), np.zeros(local.is_wall.shape)
    for part in local.chunks(DIRECTIONS, local.walls.shape[2]):
        directions = random.standard_normal((1, part.stop - part.start, local.shape[1]))
        total = np.hypot(total, norm(local.forward(directions, constants=False)[1], 1))
    return np.where(local.is_wall, total / np.sqrt(DIRECTIONS), 0)
