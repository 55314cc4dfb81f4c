"""ONNX files: a network in, the same network as linear layers out."""

try:
    import onnx  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("ONNX files need onnx; install it with: pip install 'conv2affine[onnx]'") from error

from conv2affine.interop.vnnlib import Case, Specification, read_spec
from conv2affine.onnx.checking import check
from conv2affine.onnx.conversion import Conversion
from conv2affine.onnx.convert import convert, export, plan

__all__ = ["Case", "Conversion", "Specification", "check", "convert", "export", "plan", "read_spec"]
