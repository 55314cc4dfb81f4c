"""Whole networks: affine pieces as matrices, with the nonlinear steps between them."""

try:
    import scipy.sparse  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("networks need SciPy; install it with: pip install 'conv2affine[scipy]'") from error
