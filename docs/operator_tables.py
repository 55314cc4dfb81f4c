"""The tables of docs/operators.md: what the examples become, operator by operator; `make docs` runs this.

Nothing here says what a rule does: each example is imported, and the tables show what its operators became. A rule
without an example is an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import ModuleType
from typing import Any

from conv2affine.network.graph import Kept
from conv2affine.network.rules import activations, arithmetic, positions, shapes
from conv2affine.network.torch.importing.rules import RULES as ATEN
from conv2affine.onnx.importing.rules import RULES as ONNX
from docs.operator_examples import Imported, Use, import_onnx_examples, import_torch_examples, relus, torch_examples
from tests.network.rules import test_affine, test_kept, test_masks, test_positions, test_steps
from tests.onnx.importing import test_rules as onnx_rules

__all__ = ["tables"]

SECTIONS = {
    "Moving and copying": shapes,
    "Arithmetic and sums": arithmetic,
    "Over positions": positions,
    "Steps": activations,
}
MASKED = (3, 8)  # shape of what the examples with comparisons take


def best_uses(rules: Mapping[str, Any], examples: Iterable[Imported]) -> dict[str, Use]:
    """For each rule the example that shows it best; raises an error if one has none."""
    uses: dict[str, list[Use]] = defaultdict(list)
    for example in examples:
        for use in example.uses:
            uses[use.operator].append(use)
    if missing := sorted(rules.keys() - uses.keys()):
        raise LookupError(
            f"these operators have a rule and no example: {', '.join(missing)}; add a case to "
            "tests/network/rules/ or tests/onnx/importing/test_rules.py"
        )
    return {name: min(uses[name], key=lambda use: use.rank) for name in rules}


def cell(text: str) -> str:
    """Code in a cell of a table."""
    return "`" + text.replace("|", "\\|") + "`"


def table(*rows: Sequence[str]) -> str:
    """A table in Markdown; the first row is the heading."""
    heading, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, ["---"] * len(heading), *others]) + "\n"


def in_chain(uses: Sequence[Use]) -> str:
    """How many ReLUs each element of the result takes in a chain."""
    numbers = sorted({round(use.relus, 1) for use in uses})
    if not any(numbers):
        return "linear"
    unit = "ReLU" if numbers == [1] else "ReLUs"
    return f"{numbers[0]:g} to {numbers[-1]:g} {unit}" if len(numbers) > 1 else f"{numbers[0]:g} {unit}"


def section(title: str, module: ModuleType, both: Sequence[dict[str, Use]]) -> str:
    """What the rules of one module make: a row for each, and the examples folded."""
    groups: dict[tuple[str, str], list[list[Use]]] = defaultdict(lambda: [[], []])
    for side, uses in enumerate(both):
        for use in uses.values():
            if use.rule[0] == module.__name__:
                step = use.becomes if use.becomes.startswith("`") else ""
                groups[use.rule[1], step][side].append(use)
    rows, examples = [], []
    for pair in groups.values():
        names = [", ".join(cell(use.operator) for use in uses) for uses in pair]
        every = [*pair[0], *pair[1]]
        rows.append([*names, ", ".join(dict.fromkeys(use.becomes for use in every)), in_chain(every)])
        examples += [[cell(use.operator), cell(use.code), use.becomes, in_chain([use])] for use in every]
    heading = ["in a network", "in a chain"]
    return (
        f"## {title}\n\n{table(['ATen', 'ONNX', *heading], *rows)}\n<details>\n<summary>Examples</summary>\n\n"
        f"{table(['operator', 'example', *heading], *examples)}\n</details>\n"
    )


def kept(rules: Mapping[str, Any], examples: Iterable[Imported]) -> tuple[list[list[str]], list[str]]:
    """What is kept: rows of operators with a rule that does not take these arguments, and the names of others."""
    limits: dict[tuple[str, str], str] = {}
    others: dict[str, None] = {}
    for example in examples:
        for node in example.nodes:
            if isinstance(node, Kept) and node.kind in rules:
                limits.setdefault((node.kind, node.call.reason or "no rule knows it with these inputs"), example.code)
            elif isinstance(node, Kept):
                others[cell(node.kind)] = None
    return [[cell(name), cell(code), reason] for (name, reason), code in limits.items()], list(others)


def tables() -> dict[str, str]:
    """The tables of the page, by name."""
    affine = [*torch_examples(test_affine, "AFFINE"), *torch_examples(test_positions, "AFFINE")]
    steps = torch_examples(test_steps, "STEPS", 1)
    masked = torch_examples(test_masks, "CONTINUOUS", shape=MASKED)
    imported = list(import_torch_examples([*affine, *steps, *masked]))
    files = list(import_onnx_examples([*onnx_rules.AFFINE, *onnx_rules.PIECEWISE]))
    by_comparison = {example.code for example in masked}
    both = best_uses(ATEN, imported), best_uses(ONNX, files)
    written_out = [x for x in imported if x.code in by_comparison]
    by_hand = [[cell(example.code), f"{relus(example.nodes) / prod(MASKED):g}"] for example in written_out]
    limits, others = kept(ATEN, import_torch_examples(torch_examples(test_kept, "KEPT", 1)))
    onnx_limits, onnx_others = kept(ONNX, import_onnx_examples(onnx_rules.KEPT))
    return {
        "rules": "\n".join(section(title, module, both) for title, module in SECTIONS.items()),
        "comparisons": table(["example", "ReLUs for each element in a chain"], *by_hand),
        "limits": table(["operator", "example", "because"], *limits, *onnx_limits),
        "others": ", ".join([*others, *onnx_others]),
    }
