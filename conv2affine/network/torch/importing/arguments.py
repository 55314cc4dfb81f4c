"""How the arguments of an ATen operator are read for its rule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from conv2affine.network.rules.operands import Context, NoRuleError, Rule
from conv2affine.network.torch.importing.call import operator_name
from conv2affine.network.torch.importing.rules import REASONS, RULES

NEVER_TRUE = ("isnan", "isinf")  # of values that are surely finite
# Operators whose rules do not hold for infinities and NaN: comparators would spread them, and the others replace NaN.
FOR_NUMBERS = (*NEVER_TRUE, "nan_to_num", "fmax", "fmin", "sort", "topk", "kthvalue", "median", "nanmedian")
# Arguments of schemas that have other names in the rules; None for those whose value does not matter.
NAMES: dict[str, str | None] = {
    **{"self": "x", "input": "x", "mat2": "other", "dim": "axis", "negative_slope": "slope", "ord": "order"},
    **{"A": "matrix", "LU": "matrix", "B": "other"},
    **{"min": "low", "max": "high", "min_val": "low", "max_val": "high", "divisor_override": "divisor"},
    **{"running_mean": "mean", "running_var": "variance"},
    # They matter for shapes, which are known, for dtypes, which are those of the network, and for training.
    **dict.fromkeys(("keepdim", "ceil_mode", "dtype", "memory_format", "momentum")),
    # They select how `_convolution` is computed.
    **dict.fromkeys(("benchmark", "deterministic", "cudnn_enabled", "allow_tf32")),
}


def dtypes_of(node: fx.Node, reached: Sequence[fx.Node]) -> set[torch.dtype]:
    """The dtypes of the arguments that depend on inputs, `reached`; without those of masks beside numbers."""
    masks = {"mul": node.args, "where": node.args[:1]}.get(operator_name(node.target), ()) if len(reached) > 1 else ()
    dtypes = {arg.meta["val"].dtype for arg in reached}
    whole = {dtype for dtype in dtypes if not (dtype.is_floating_point or dtype.is_complex)}
    return dtypes - whole if all(arg in masks for arg in reached if arg.meta["val"].dtype in whole) else dtypes


def find_rule(target: Any) -> Rule | None:
    """The rule of an operator; None if there is none, as for those of other libraries that have the same name."""
    if target.namespace not in ("aten", "conv2affine"):
        return None
    name = target.overloadpacket.__name__
    if name in REASONS:
        return functools.partial(_refuse, REASONS[name])
    # `view_copy` is a view that is copied.
    rule = RULES.get(f"{name}.{target._overloadname}") or RULES.get(name) or RULES.get(name.removesuffix("_copy"))
    return rule and functools.partial(_apply, rule, target)


def _refuse(reason: str, *arguments: Any) -> Any:
    raise NoRuleError(reason)


def _apply(rule: Rule, target: Any, context: Context, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a rule; arguments that it does not take must have their defaults."""
    parameters = _parameters(rule)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {}
    for number, argument in enumerate(target._schema.arguments):
        name = NAMES.get(argument.name, argument.name)
        if number < len(args):
            given = args[number]
        elif argument.name in kwargs:
            given = kwargs[argument.name]
        else:
            continue
        if name is None:
            continue
        if takes_all or name in parameters:
            taken[name] = given
        elif not argument.has_default_value() or given != argument.default_value:
            raise NoRuleError(f"{argument.name} must have its default")
    return rule(context, **taken)


@functools.cache
def _parameters(rule: Rule) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(rule).parameters
