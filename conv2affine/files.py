"""The matrix of a layer, and whole networks, in HDF5 files that are written by blocks of rows."""

from conv2affine.interop.files.csr import open_csr, save_csr
from conv2affine.interop.files.network import open_network, save_network

__all__ = ["open_csr", "open_network", "save_csr", "save_network"]
