"""What a shipped graph is made of, read from the file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from edgekit.types import Bundle


def count_operators(bundle: Bundle) -> Counter[tuple[str, str]]:
    """How many nodes of each (domain, operator) the graph has, subgraphs and functions included; "" is ONNX's domain.

    Weights are not read.
    """
    model = ir.load(bundle.graph)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return Counter((n.domain, n.op_type) for g in graphs for n in ir.traversal.RecursiveGraphIterator(g))
