"""Read the contents of a bundle's graphs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.errors import BundleError
from edgekit.numerics.nibbles import pack_bits, unpack_bits
from edgekit.record import from_json
from edgekit.strangers import read_plain
from edgekit.types import JOINED
from edgekit.types.npu import Placement

_LARGEST_PLACEMENT = 50_000_000
"""Maximum size of placement.json in bytes; a node takes about a hundred."""

_MOST_WIDENED = 3_000_000_000
"""Most 2-bit weights that are widened to 4 bits inside a graph: a protobuf holds 2 GB."""

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgekit.types import Bundle


def count_operators(bundle: Bundle) -> Counter[tuple[str, str]]:
    """The number of nodes per (domain, operator), including subgraphs and functions; "" is ONNX's domain.

    Weights are not read.
    """
    model = _load(bundle.graph)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return Counter((n.domain, n.op_type) for g in graphs for n in ir.traversal.RecursiveGraphIterator(g))


def read_initializers(bundle: Bundle) -> Mapping[str, ir.TensorProtocol]:
    """The graph's constants by name; parts of joined constants are also listed under their own names.

    Their bytes are memory-mapped and not read until ``numpy()`` is called.
    """
    found: dict[str, ir.TensorProtocol] = {}
    for name, value in _load(bundle.graph).graph.initializers.items():
        if value.const_value is not None:
            found[name] = value.const_value
            found.update(_parts(value.const_value))
    return found


def _load(path: Path) -> ir.Model:
    """Read a graph.

    Raises:
        BundleError: the file is not an ONNX graph.
    """
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's and onnx_ir's errors have no common base class
        raise BundleError(
            f"{path}: not an ONNX graph: {str(error)[:200]}", "rebuild the bundle with `edgekit build`"
        ) from error


def _parts(joined: ir.TensorProtocol) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """The parts that an initializer was joined from; see ``JOINED``."""
    start = 0
    for part in joined.metadata_props.get(JOINED, "").split():
        name, _, rows = part.rpartition(":")
        shape = ir.Shape([int(rows), *joined.shape.numpy()[1:]])
        cut = partial(_cut, joined, start, start + int(rows))
        yield name, ir.LazyTensor(cut, joined.dtype, shape, name=name, cache=False)
        start += int(rows)


def _cut(joined: ir.TensorProtocol, start: int, stop: int) -> ir.TensorProtocol:
    return ir.tensor(joined.numpy()[start:stop], dtype=joined.dtype)


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    """Store the 2-bit codes and zero points of a MatMulNBits as 4-bit ones inside the graph."""
    codes, rows = node.inputs[1], node.attributes["N"].as_int()
    assert codes is not None and codes.const_value is not None
    packed = codes.const_value.numpy()
    wide = pack_bits(unpack_bits(packed, 2, 4 * packed.shape[-1]), 4)
    if len(node.inputs) > 3 and (value := node.inputs[3]) is not None:
        while value.const_value is None and (repeated := value.producer()) is not None:
            value = repeated.inputs[0]  # one zero point per row, repeated for its blocks
            assert value is not None
        assert value.const_value is not None
        zeros = unpack_bits(value.const_value.numpy(), 2, packed.shape[1])
    else:
        zeros = np.full((rows, 1), 2, np.uint8)
    zeros = np.broadcast_to(zeros if zeros.shape[1] == packed.shape[1] else zeros[:, :1], (rows, packed.shape[1]))
    for index, kind, array in ((1, "codes", wide), (3, "zeros", pack_bits(np.ascontiguousarray(zeros), 4))):
        tensor = ir.tensor(array, name=f"{node.name}.wide.{kind}")
        made = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        graph.register_initializer(made)
        if index == len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, made)
    node.attributes["bits"] = ir.AttrInt64("bits", 4)


@dataclass(frozen=True)
class ContextFacts:
    """The facts of an EPContext graph: operators left uncompiled, the binary's file, and the compiler's note."""

    others: tuple[str, ...]
    binary: str
    compatibility: str


def read_context(path: Path) -> ContextFacts:
    """Read a compiled graph.

    Raises:
        BundleError: it cannot be read, or its EPContext nodes do not use exactly one binary file.
    """
    model = _load(path)
    nodes = [node for node in model.graph if node.op_type == "EPContext"]
    binaries = {a.as_string() for n in nodes if (a := n.attributes.get("ep_cache_context"))}
    if len(binaries) != 1:
        raise BundleError(
            f"{path}: {len(nodes)} compiled nodes with {len(binaries)} binaries",
            "rebuild the bundle with `edgekit build`",
        )
    notes = [v for k, v in model.metadata_props.items() if k.startswith("ep_compatibility_info.")]
    others = tuple(node.op_type for node in model.graph if node.op_type != "EPContext")
    return ContextFacts(others, binaries.pop(), notes[0] if notes else "")


def read_placements(path: Path) -> tuple[Placement, ...]:
    """Read ``placement.json``: where each node runs, for each separately compiled graph.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        items = json.loads(read_plain(path, _LARGEST_PLACEMENT, error=BundleError))
        return tuple(from_json(Placement, json.dumps(item)) for item in items)
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{path}: not a placement: {error}", "rebuild the bundle with `edgekit build`") from error


def node_names(path: Path) -> tuple[tuple[str, str], ...]:
    """The (name, operator) of each node in a graph's file, in order. Weights are not read."""
    return tuple((str(node.name), node.op_type) for node in _load(path).graph)


def graph_at_level(bundle: Bundle, level: int) -> bytes:
    """The graph with another accuracy level in its MatMulNBits nodes, serialized; its weights stay in the bundle.

    To load it, pass the folder of the bundle's graph for external data (see run/predictor_worker.py). At level 0, which
    has no kernel for 2-bit codes, the graph holds them as 4-bit ones, the same numbers, if they fit an ONNX file.
    """
    model = _load(bundle.graph)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = [n for g in graphs for n in ir.traversal.RecursiveGraphIterator(g) if n.op_type == "MatMulNBits"]
    for node in nodes:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
    narrow = [n for n in nodes if n.attributes["bits"].as_int() == 2]
    if not level and sum(n.attributes["K"].as_int() * n.attributes["N"].as_int() for n in narrow) < _MOST_WIDENED:
        for node in narrow:
            _widen(model.graph, node)
    return bytes(ir.to_proto(model).SerializeToString())
