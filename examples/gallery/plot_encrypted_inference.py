"""
A convolution on encrypted data
===============================

Homomorphic encryption computes on encrypted vectors. It can add them, multiply them entry
by entry, and rotate them; it cannot index them. `Halevi and Shoup (2014)
<https://eprint.iacr.org/2014/106>`__ multiply a matrix by a vector with these operations
alone, one cyclic diagonal of the matrix after the other:

.. code-block:: none

    A x = sum over j of  d_j * rotate(x, j)        d_j[i] = A[i, (i + j) mod n]

Rotations are by far the most expensive operations. A diagonal of zeros needs none, and
nearly all diagonals of a convolution are zero. This page leaves out the encryption:
``numpy.roll`` rotates.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import conv2d

import conv2affine

# %%
# The diagonals
# -------------
# The schemes compute with integers, so the weights are integers too, and so are the
# entries of the matrix.

generator = torch.Generator().manual_seed(0)
weight = torch.randint(-8, 8, (2, 2, 3, 3), generator=generator)


def matrix(size):
    """The rows and columns of the entries, their values, and the number of columns."""
    sparse = conv2affine.conv_matrix(weight, size, padding=1, layout=torch.sparse_coo)
    return sparse.indices().numpy(), sparse.values().numpy(), sparse.shape[1]


def diagonals(size):
    """Each cyclic diagonal that has an entry, by its number."""
    (row, col), values, n = matrix(size)
    result = {int(j): np.zeros(n, dtype=values.dtype) for j in np.unique((col - row) % n)}
    for j, diagonal in result.items():
        on = (col - row) % n == j
        diagonal[row[on]] = values[on]
    return result


def multiply(by_number, vector):
    """The product, in operations that homomorphic encryption supports."""
    return sum(diagonal * np.roll(vector, -j) for j, diagonal in by_number.items())


# %%
# Few for any image size
# ----------------------
# A diagonal belongs to one offset between an input and an output: one of nine places in
# the kernel, and one of two offsets between channels. So there are 18 of them, for an
# image of any size.

sizes = [4, 6, 8, 12, 16, 24, 32]
counts = [len(diagonals(size)) for size in sizes]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
(row, col), _, n = matrix(8)
left.scatter(col, row, c=(col - row) % n, s=2, cmap="turbo")
left.set(title="the matrix for 8 x 8 pixels", aspect="equal", xlim=(0, n), ylim=(n, 0))
full = [2 * size**2 for size in sizes]
right.loglog(sizes, full, "o--", color="tab:gray", label="of a full matrix")
right.loglog(sizes, counts, "o-", label="of the convolution")
right.set(title="diagonals", xlabel="height and width of the image", ylim=1)
right.set(xticks=sizes, xticklabels=sizes)
right.minorticks_off()
right.legend()

# %%
# The product is the layer
# ------------------------
# The two are exactly equal, since all numbers are integers.

for size, count in zip(sizes, counts, strict=True):
    x = torch.randint(-8, 8, (2, size, size), generator=generator)
    y = multiply(diagonals(size), x.flatten().numpy())
    assert np.array_equal(y, conv2d(x, weight, padding=1).flatten())
    print(f"{size:2} x {size:<2}  {count} diagonals instead of {x.numel()}")
assert set(counts) == {18}
