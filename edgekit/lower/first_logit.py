"""Symptom: the graph computes logits for every position of a prompt, but only the last are needed.

For 512 tokens and a 49k vocabulary they take 100 MB and an eighth of the time.
Cure: the head reads positions from a constant start of 0. Opened as is, the graph still returns the logits of every
position, and the runtime removes the slice. ``run`` turns the constant into an input (run/first_logit.py). An input
with a default in the file would make every other runtime warn.
Exactness: bit-exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.patch import initializer
from edgekit.types import FIRST_LOGIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.types import Target

FIXES = frozenset({"logits:every-position"})
MATMULS = frozenset({"MatMul", "FusedMatMul", "MatMulNBits", "Gemm"})
END = np.iinfo(np.int64).max


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Slice the head's input, [B,S,H] to [B,S - start,H]. A graph whose head is not a matmul is left unchanged."""
    graph = model.graph
    head = next((o.producer() for o in graph.outputs if o.name == "logits"), None)
    if head is None or head.op_type not in MATMULS:
        return model
    first = initializer(graph, ir.tensor(np.zeros(1, np.int64), name=FIRST_LOGIT))
    end = initializer(graph, ir.tensor(np.asarray([END]), name="first_logit.end"))
    axis = initializer(graph, ir.tensor(np.asarray([1]), name="first_logit.axis"))
    hidden = ir.Value(name="first_logit.hidden")
    graph.insert_before(
        head, ir.node("Slice", [head.inputs[0], first, end, axis], name="first_logit.hidden", outputs=[hidden])
    )
    head.replace_input_with(0, hidden)
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """The logits, if a matmul produces them without the slice."""
    head = next((o.producer() for o in model.graph.outputs if o.name == "logits"), None)
    if head is not None and head.op_type in MATMULS and FIRST_LOGIT not in model.graph.initializers:
        yield "logits"
