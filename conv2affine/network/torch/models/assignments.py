"""Models that assign to the data of their weights when they run, as EEGNet does, which torch.export cannot trace."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

DATA: Any = Tensor.data


class Assignments(TorchFunctionMode):
    """Within it, functions take what was assigned to `weight.data`, or what changed it in place; the weight stays."""

    def __init__(self) -> None:
        super().__init__()
        self.assigned: Any = WeakTensorKeyDictionary()
        self.owners: Any = WeakTensorKeyDictionary()  # of each `weight.data`

    def now(self, x: Tensor) -> Tensor:
        """What a tensor is at present."""
        value: Tensor = self.assigned.get(self.owners.get(x, x), x)
        return value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first: Any = args[0] if args else None
        if func == DATA.__get__:
            data = self.now(first).detach()
            self.owners[data] = self.owners.get(first, first)
            return data
        name = getattr(func, "__name__", "")
        is_weight = isinstance(first, nn.Parameter) or (isinstance(first, Tensor) and first in self.owners)
        writes = is_weight and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__")))
        old, others, kwargs = pytree.tree_map_only(Tensor, self.now, (first, args[1:], kwargs))
        if func == DATA.__set__:
            self.assigned[self.owners.get(first, first)] = others[0]
        elif writes and callable(function := getattr(Tensor, name.removesuffix("_"), None)):
            self.assigned[self.owners.get(first, first)] = function(old, *others, **kwargs)
        elif writes:
            self.assigned[self.owners.get(first, first)] = old.clone()
            func(self.now(first), *others, **kwargs)
        else:
            return func(*(old, *others)[: len(args)], **kwargs)
        return first
