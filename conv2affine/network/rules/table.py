"""A table of rules by the names of operators; importers join those that they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Table"]

Rule = TypeVar("Rule", bound=Callable[..., Any])


class Table(dict[str, Callable[..., Any]]):
    """Rules by operator.

    Example:
        >>> rules = Table()
        >>> @rules.rule("neg", "negative")
        ... def neg(x):
        ...     return -x
        >>> sorted(rules)
        ['neg', 'negative']
    """

    def rule(self, *names: str) -> Callable[[Rule], Rule]:
        """Enter a function as the rule of these operators."""

        def enter(function: Rule) -> Rule:
            self.update(dict.fromkeys(names, function))
            return function

        return enter
