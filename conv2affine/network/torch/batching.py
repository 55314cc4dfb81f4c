"""Which operators run on a batch of any size as they run on one sample."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from conv2affine.network.torch.importing.call import AtenCall

__all__ = ["runs_on_batches", "runs_on_vectors"]

# Operators that treat the first axis as a batch, whatever their constant arguments are.
BATCHED = re.compile(r"(adaptive_)?max_pool\dd(_with_indices)?|group_norm|scaled_dot_product_attention|upsample_.*")
# Pointwise operators that PyTorch does not tag as such. It has no rule of torch.vmap for fake quantisation.
UNTAGGED = {
    torch.ops.aten.hardswish,
    torch.ops.aten.log_sigmoid_forward,
    torch.ops.aten.fake_quantize_per_tensor_affine_cachemask,
}


def runs_on_vectors(call: AtenCall, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an operator computes the same on flat vectors; `shapes` are those of its inputs and its results."""
    return _is_pointwise(call) and len(set(shapes)) == 1 and not _tensors(call)


def runs_on_batches(call: AtenCall, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an operator takes a batch of any size as it takes a batch of one."""
    axes = len(shapes[0])
    if any(shape[:1] != (1,) for shape in shapes) or len({len(shape) for shape in shapes}) != 1:
        return False
    if _is_pointwise(call):
        return all(tensor.dim() < axes or len(tensor) == 1 for tensor in _tensors(call))
    name = call.target.overloadpacket.__name__
    if name in ("softmax", "_softmax", "log_softmax", "_log_softmax"):
        return bool(call.args[1] % axes != 0)
    if name == "layer_norm":
        return len(call.args[1]) < axes
    if name == "fake_quantize_per_channel_affine_cachemask":
        return bool(call.args[3] % axes != 0)
    if name == "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams":
        return True
    return axes > 2 and BATCHED.fullmatch(name) is not None


def _is_pointwise(call: AtenCall) -> bool:
    return torch.Tag.pointwise in call.target.tags or call.target.overloadpacket in UNTAGGED


def _tensors(call: AtenCall) -> list[Tensor]:
    """Its constant tensors."""
    return [leaf for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
