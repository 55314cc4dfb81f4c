"""The affine map that a network is around a point, and the region where it holds."""

from conv2affine.network.regions.build import linear_region
from conv2affine.network.regions.region import LinearRegion

__all__ = ["LinearRegion", "linear_region"]
