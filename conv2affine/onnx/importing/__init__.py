"""From a file, or a module to export, to a graph of affine pieces."""
