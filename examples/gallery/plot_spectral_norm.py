"""
The exact spectral norm of a convolution
========================================

The spectral norm of a layer says how much it can stretch an input. It is the largest
singular value of the matrix. Two other numbers are easier to get, and often used in its
place:

- the norm of the kernel, reshaped to (out channels, everything else)
  (`Miyato et al., 2018 <https://arxiv.org/abs/1802.05957>`__);
- the norm of the same layer with circular padding, from a Fourier transform of the kernel
  (`Sedghi et al., 2019 <https://arxiv.org/abs/1805.10408>`__).

How far are they from the exact norm? For k x k kernels and stride 1,

.. code-block:: none

    reshaped kernel  <=  exact  <=  circular, on a padded image  <=  k * reshaped kernel

because the rows of an inner output position are the reshaped kernel; because the matrix
with zero padding is a block of the circular one; and because at each frequency the
circular layer is the reshaped kernel times a matrix of norm k.
"""

import matplotlib.pyplot as plt
import torch
from scipy.sparse.linalg import svds
from torch import nn

import conv2affine

torch.manual_seed(0)
conv = nn.Conv2d(8, 8, 3, padding=1).double().requires_grad_(False)

# %%
# Three ways to the norm
# ----------------------


def exact_norm(size):
    """The largest singular value of the sparse matrix."""
    matrix = conv2affine.to_scipy(conv, size)
    return svds(matrix, k=1, return_singular_vectors=False, rng=0)[0]


def circular_norm(size):
    """One small matrix per frequency: channels by channels."""
    frequencies = torch.fft.fft2(conv.weight, s=(size, size)).permute(2, 3, 0, 1)
    return torch.linalg.matrix_norm(frequencies, 2).max().item()


kernel_norm = torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item()

# %%
# One layer, many image sizes
# ---------------------------
# The exact norm grows with the image, because fewer outputs lie at the border.

sizes = [3, 4, 6, 8, 12, 16, 24, 32, 48]
exact = [exact_norm(size) for size in sizes]
circular = [circular_norm(size + 1) for size in sizes]

figure, axes = plt.subplots(layout="constrained")
axes.axhline(
    3 * kernel_norm, color="tab:gray", linestyle="--", label="3 times the reshaped kernel"
)
axes.plot(sizes, circular, "o-", color="tab:orange", label="circular padding")
axes.plot(sizes, exact, "o-", color="tab:blue", label="exact")
axes.axhline(kernel_norm, color="tab:gray", linestyle=":", label="reshaped kernel")
axes.set(xlabel="height and width of the image", ylabel="spectral norm", ylim=0)
axes.legend(loc="lower right")

# %%
# The order of the three
# ----------------------

for size, norm, bound in zip(sizes, exact, circular, strict=True):
    print(f"{size:2} x {size:<2}  {norm:.4f} <= {bound:.4f}")
    assert kernel_norm <= norm <= bound <= 3 * kernel_norm
print(f"reshaped kernel {kernel_norm:.4f}, 3 times that {3 * kernel_norm:.4f}")
assert exact == sorted(exact)
