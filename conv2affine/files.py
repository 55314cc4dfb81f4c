"""The matrix in an HDF5 file, written by blocks of rows."""

from conv2affine.interop.files import open_csr, save_csr

__all__ = ["open_csr", "save_csr"]
