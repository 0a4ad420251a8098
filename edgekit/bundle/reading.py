"""What a shipped graph is made of, read from the file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.types import Bundle


def count_operators(bundle: Bundle) -> Counter[tuple[str, str]]:
    """How many nodes of each (domain, operator) the graph has, subgraphs and functions included; "" is ONNX's domain.

    Weights are not read.
    """
    model = ir.load(bundle.graph)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return Counter((n.domain, n.op_type) for g in graphs for n in ir.traversal.RecursiveGraphIterator(g))


def read_initializers(bundle: Bundle) -> Mapping[str, ir.TensorProtocol]:
    """The graph's constants by name. Their bytes are mapped from the file, not read, until ``numpy()`` is used."""
    values = ir.load(bundle.graph).graph.initializers
    return {name: value.const_value for name, value in values.items() if value.const_value is not None}
