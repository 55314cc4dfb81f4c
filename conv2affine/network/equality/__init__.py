"""Whether two networks compute the same."""

from conv2affine.network.equality.checking import check
from conv2affine.network.equality.compare import Comparison

__all__ = ["Comparison", "check"]
