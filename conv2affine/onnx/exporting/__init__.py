"""From a graph of affine pieces to a file."""
