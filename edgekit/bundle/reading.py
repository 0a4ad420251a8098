"""What a shipped graph is made of, read from the file."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgekit.types import JOINED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgekit.types import Bundle


def count_operators(bundle: Bundle) -> Counter[tuple[str, str]]:
    """How many nodes of each (domain, operator) the graph has, subgraphs and functions included; "" is ONNX's domain.

    Weights are not read.
    """
    model = ir.load(bundle.graph)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return Counter((n.domain, n.op_type) for g in graphs for n in ir.traversal.RecursiveGraphIterator(g))


def read_initializers(bundle: Bundle) -> Mapping[str, ir.TensorProtocol]:
    """The graph's constants by name, and those that were joined under their own names too.

    Their bytes are mapped from the file, not read, until ``numpy()`` is used.
    """
    found: dict[str, ir.TensorProtocol] = {}
    for name, value in ir.load(bundle.graph).graph.initializers.items():
        if value.const_value is not None:
            found[name] = value.const_value
            found.update(_parts(value.const_value))
    return found


def _parts(joined: ir.TensorProtocol) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """What an initializer was joined of; see ``JOINED``."""
    start = 0
    for part in joined.metadata_props.get(JOINED, "").split():
        name, _, rows = part.rpartition(":")
        shape = ir.Shape([int(rows), *joined.shape.numpy()[1:]])
        cut = partial(_cut, joined, start, start + int(rows))
        yield name, ir.LazyTensor(cut, joined.dtype, shape, name=name, cache=False)
        start += int(rows)


def _cut(joined: ir.TensorProtocol, start: int, stop: int) -> ir.TensorProtocol:
    return ir.tensor(joined.numpy()[start:stop], dtype=joined.dtype)


def write_at_level(bundle: Bundle, level: int, path: Path) -> None:
    """Write the graph once more with another accuracy level in its MatMulNBits nodes; its weights stay in the bundle.

    Whoever loads it has to name the bundle's folder for external data (see run/driver.py).
    """
    model = ir.load(bundle.graph)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in (n for g in graphs for n in ir.traversal.RecursiveGraphIterator(g)):
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
    path.write_bytes(ir.to_proto(model).SerializeToString())
