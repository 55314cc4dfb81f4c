"""From an exported program to a graph of affine pieces."""
