"""Whether two networks compute the same."""

from conv2affine.network.equality.compare import Comparison
from conv2affine.network.equality.modules import check

__all__ = ["Comparison", "check"]
