"""The matrix of a convolution: PyTorch convolution layers as equivalent linear layers."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from conv2affine import reference
from conv2affine.conv import to_conv
from conv2affine.convolution.geometry import Geometry
from conv2affine.interop.scipy import as_linear_operator, to_scipy
from conv2affine.linear import to_linear, torch_conv_layer_to_affine
from conv2affine.matrix import conv_matrix, conv_transpose_matrix, to_bias, to_matrix
from conv2affine.planning import Plan, plan
from conv2affine.projection import from_matrix
from conv2affine.sparse_linear import SparseLinear

if TYPE_CHECKING:
    from conv2affine.network.convert import to_linear_network
    from conv2affine.network.equality import Comparison, check
    from conv2affine.network.regions import LinearRegion, linear_region
    from conv2affine.network.vectors import to_mlp

try:
    __version__ = version("conv2affine")
except PackageNotFoundError:  # built in place by CMake, without an installation
    __version__ = "unknown"

__all__ = [
    "Comparison",
    "Geometry",
    "LinearRegion",
    "Plan",
    "SparseLinear",
    "as_linear_operator",
    "check",
    "conv_matrix",
    "conv_transpose_matrix",
    "from_matrix",
    "linear_region",
    "plan",
    "reference",
    "to_bias",
    "to_conv",
    "to_linear",
    "to_linear_network",
    "to_matrix",
    "to_mlp",
    "to_scipy",
    "torch_conv_layer_to_affine",
]


_NETWORKS = {
    "Comparison": "conv2affine.network.equality",
    "check": "conv2affine.network.equality",
    "LinearRegion": "conv2affine.network.regions",
    "linear_region": "conv2affine.network.regions",
    "to_linear_network": "conv2affine.network.convert",
    "to_mlp": "conv2affine.network.vectors",
}
_MODULES = ("distributed", "files", "onnx")


def __getattr__(name: str) -> Any:
    """Import on first use what takes time to import, or needs more than is always installed."""
    if name in _NETWORKS:
        return getattr(import_module(_NETWORKS[name]), name)
    if name in _MODULES:
        return import_module(f"conv2affine.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What users call, for completion: none of the modules that it is made of."""
    return sorted({*__all__, *_MODULES, "__version__"})
