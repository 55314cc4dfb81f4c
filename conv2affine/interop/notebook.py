"""Tables for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape


def html_table(heading: Sequence[str], lines: Iterable[Sequence[str]], left: Collection[int]) -> str:
    """A table in HTML; the columns in `left` are aligned to the left, the others to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        styled = (
            f'<{tag} style="text-align: {"left" if n in left else "right"}">{escape(cell)}</{tag}>'
            for n, cell in enumerate(cells)
        )
        return f"<tr>{''.join(styled)}</tr>"

    head = f"<thead>{row(heading, 'th')}</thead>" if heading else ""
    return f"<table>{head}<tbody>{''.join(row(line, 'td') for line in lines)}</tbody></table>"
