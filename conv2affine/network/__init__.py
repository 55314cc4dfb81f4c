"""Whole networks as affine pieces between nonlinear steps."""
