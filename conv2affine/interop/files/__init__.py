"""Matrices and networks in HDF5 files."""
