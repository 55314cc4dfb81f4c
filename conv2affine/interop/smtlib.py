"""Formulas of SMT-LIB, as far as VNN-LIB 1.0 has them: and, or, comparisons of linear terms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise, product
from math import isfinite, prod
from typing import Any

# An inequality: sum of row[letter, number] * variable <= -row[None].
Row = dict[tuple[str, int] | None, float]
MAX_CASES = 10_000
MAX_DEPTH = 100
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
TOO_MANY = f"it has more than {MAX_CASES:,} cases, as the cases of each `or` multiply"


def expressions(text: str) -> list[Any]:
    """The S-expressions of a text, as lists of strings and lists."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", text):
        if token == "(":
            stack.append([])
            if len(stack) > MAX_DEPTH:
                raise NotImplementedError(f"its parentheses are nested more than {MAX_DEPTH} deep")
        elif token != ")":
            stack[-1].append(token)
        elif len(stack) == 1:
            raise ValueError("a closing parenthesis has no opening one")
        else:
            stack[-2].append(stack.pop())
    if len(stack) > 1:
        raise ValueError(f"{len(stack) - 1} opening parentheses have no closing one")
    return stack[0]


def alternatives(formula: Any) -> Iterator[list[Row]]:
    """The disjunctive normal form of a formula: lists of rows that hold together."""
    match formula:
        case ["or", *parts]:
            for part in parts:
                yield from alternatives(part)
        case ["and", *parts]:
            choices = [list(alternatives(part)) for part in parts]
            if prod(map(len, choices)) > MAX_CASES:
                raise NotImplementedError(TOO_MANY)
            for choice in product(*choices):
                yield [row for rows in choice for row in rows]
        case ["<=" | ">=" | "=" | "==" as relation, _, _, *_]:  # (<= 0 X_0 1) is 0 <= X_0 and X_0 <= 1
            terms = [_linear(term) for term in formula[1:]]
            pairs = list(pairwise(terms)) if relation != ">=" else []
            pairs += [(right, left) for left, right in pairwise(terms)] if relation != "<=" else []
            yield [_plus(left, right, -1) for left, right in pairs]
        case _:
            raise NotImplementedError(f"{in_words(formula)} is none of and, or, <=, >= and =")


def _linear(term: Any) -> Row:
    """The coefficients of a linear term; that of None is the constant."""
    match term:
        case str():
            if not re.fullmatch(NUMBER, term):
                return {variable(term): 1.0}
            if not isfinite(number := float(term)):
                raise ValueError(f"{term} is not a finite number")
            return {None: number}
        case ["+", *parts] if parts:
            return reduce(_plus, map(_linear, parts))
        case ["-", part]:
            return _plus({}, _linear(part), -1)
        case ["-", first, *parts]:
            return reduce(lambda total, part: _plus(total, _linear(part), -1), parts, _linear(first))
        case ["*", first, *parts] if parts:
            total = _linear(first)
            for part in parts:
                factor = _linear(part)
                if set(total) <= {None}:
                    total, factor = factor, total
                if not set(factor) <= {None}:
                    raise NotImplementedError(f"{in_words(term)} is not linear")
                total = _plus({}, total, factor.get(None, 0.0))
            return total
        case _:
            raise NotImplementedError(f"{in_words(term)} is not a linear term of +, - and *")


def _plus(first: Row, second: Row, scale: float = 1.0) -> Row:
    """The sum first + scale * second."""
    return {key: first.get(key, 0.0) + scale * second.get(key, 0.0) for key in {**first, **second}}


def variable(name: str) -> tuple[str, int]:
    """The letter and the number of a name, as X_3."""
    found = re.fullmatch(r"([XY])_(0|[1-9][0-9]*)", name)
    if found is None:
        raise ValueError(f"{name} is neither a number nor a variable X_i or Y_j")
    return found[1], int(found[2])


def in_words(expression: Any) -> str:
    """An S-expression as text, cut where it is long."""
    text = expression if isinstance(expression, str) else f"({' '.join(map(in_words, expression))})"
    return text if len(text) < 80 else f"{text[:76]} ..."
