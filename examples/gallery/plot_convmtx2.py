"""
MATLAB's convmtx2 and SciPy's convolve2d
========================================

Signal processing flips the kernel before it slides it over the image. PyTorch does not:
its convolution is what others call correlation. So the matrix of a convolution in their
sense is that of the flipped kernel, and their three modes are three paddings.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.signal import convolve2d

import conv2affine

# %%
# Three modes, three paddings
# ---------------------------
# A kernel with k taps along an axis reaches k - 1 pixels beyond the image. "full" keeps
# every output with a pixel in reach, "valid" every output with all its pixels in the
# image, and "same" the middle of "full", from (k - 1) // 2 on.

PADDING = {
    "full": lambda k: (k - 1, k - 1),
    "same": lambda k: (k // 2, (k - 1) // 2),
    "valid": lambda k: (0, 0),
}


def convolution_matrix(kernel, size, mode="full"):
    """The matrix of ``convolve2d(image, kernel, mode)``, between flattened images."""
    flipped = torch.from_numpy(np.flip(kernel).copy())
    padding = [PADDING[mode](k) for k in kernel.shape]
    return conv2affine.conv_matrix(flipped[None, None], size, padding=padding).numpy()


def convmtx2(kernel, rows, cols):
    """MATLAB's function: it stores images by columns, so everything is transposed."""
    return convolution_matrix(kernel.T, (cols, rows))


# %%
# The matrices
# ------------

kernel = np.arange(1.0, 10.0).reshape(3, 3)
figure, places = plt.subplots(1, 3, figsize=(9, 6), layout="constrained", sharex=True)
for place, mode in zip(places, PADDING, strict=True):
    matrix = convolution_matrix(kernel, (5, 6), mode)
    place.imshow(np.where(matrix == 0, np.nan, matrix), cmap="viridis_r", vmin=0)
    rows, cols = matrix.shape
    place.set(title=f"{mode}: {rows} x {cols}", xticks=[], yticks=[])

# %%
# Compared with SciPy
# -------------------
# Odd and even kernels, wide and tall ones, and an image narrower than a kernel.

rng = np.random.default_rng(0)
compared = 0
for kernel_size in (3, 3), (2, 4), (1, 5), (4, 1), (5, 2):
    for image_size in (6, 7), (5, 5), (9, 4):
        kernel, image = rng.standard_normal(kernel_size), rng.standard_normal(image_size)
        for mode in PADDING:
            if mode == "valid" and any(np.less(image_size, kernel_size)):
                continue  # nothing is left
            product = convolution_matrix(kernel, image_size, mode) @ image.flatten()
            expected = convolve2d(image, kernel, mode).flatten()
            np.testing.assert_allclose(product, expected, atol=1e-12)
            compared += 1
        product = convmtx2(kernel, *image_size) @ image.flatten(order="F")
        expected = convolve2d(image, kernel).flatten(order="F")
        np.testing.assert_allclose(product, expected, atol=1e-12)
        compared += 1
print(f"{compared} products are equal to SciPy's.")
assert compared == 59
