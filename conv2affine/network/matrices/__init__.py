"""The matrices of affine maps, kept as what they are until they are written out."""
