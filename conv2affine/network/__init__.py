"""Whole networks: affine pieces as matrices, with the nonlinear steps between them."""
