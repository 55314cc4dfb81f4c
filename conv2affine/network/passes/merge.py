"""The pass that decides where one piece ends and the next begins."""

from __future__ import annotations

import dataclasses
from typing import Literal

from conv2affine.network.graph import Graph, Node, Piece, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.expressions import Product
from conv2affine.network.matrices.matrix import Matrix, Selection

Merge = Literal["auto", "always", "never"]
MERGE = ("auto", "always", "never")


def merge(graph: Graph, mode: Merge = "auto") -> Graph:
    """A graph in which affine nodes that follow one another are one piece.

    "always" merges a piece into all pieces that use it; "never" merges none; "auto" merges where the products have no
    more entries than their factors together. The piece counts as a factor if nothing else needs it.
    """
    if mode == "never":
        return graph
    users, needed = graph.users, set(graph.outputs)
    merged: dict[Value, Piece] = {}
    nodes: list[Node] = []
    for old in graph.nodes:
        if not isinstance(old, Piece):
            nodes.append(old)
            continue
        piece = _substitute(old, merged)
        following = [node for node in users[old.output] if isinstance(node, Piece)]
        is_read = old.output in needed or len(following) < len(users[old.output])
        if following and (mode == "always" or _pays(piece, following, is_read)):
            merged[old.output] = piece
        if is_read or old.output not in merged:
            nodes.append(piece)
    return dataclasses.replace(graph, nodes=nodes)


def _pays(piece: Piece, following: list[Piece], is_read: bool) -> bool:
    """Whether the pieces that follow have no more entries after a merge than they and this piece have before."""
    factors = [node.map.terms[piece.output] for node in following]
    before = sum(matrix.nnz for matrix in factors) + (
        0 if is_read else sum(matrix.nnz for matrix in piece.map.terms.values())
    )
    after = 0
    for factor in factors:
        for matrix in piece.map.terms.values():
            after += Product(factor, matrix).nnz
            if after > before:
                return False
    return True


def _substitute(piece: Piece, merged: dict[Value, Piece]) -> Piece:
    """The piece with merged pieces in place of their values."""
    map: AffineMap[Value] = AffineMap({}, piece.map.bias)
    origins: dict[Value, tuple[str, ...]] = {}
    for source, matrix in piece.map.terms.items():
        inner = merged.get(source)
        if inner is None:
            map = map.plus({source: matrix})
            found = {source: piece.origins[source]}
        else:
            map += inner.map.then(matrix)
            own = () if _moves(matrix) else piece.origins[source]
            # A term comes from its modules, unless it only moves elements.
            found = {x: (() if _moves(inner.map.terms[x]) else names) + own for x, names in inner.origins.items()}
        for name, names in found.items():
            origins[name] = tuple(dict.fromkeys(origins.get(name, ()) + names))
    # After a split, a piece may read no element of a source.
    terms = {source: matrix for source, matrix in map.terms.items() if not _is_empty(matrix)}
    return Piece(piece.output, AffineMap(terms, map.bias), {source: origins[source] for source in terms})


def _is_empty(matrix: Matrix) -> bool:
    return isinstance(matrix, Selection) and not matrix.nnz


def _moves(matrix: Matrix) -> bool:
    return isinstance(matrix, Selection) and matrix.scale is None
