"""Static graphs of a phone with a narrow window, opened on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.config.recipe import load_target
from edgekit.graph import build_graph
from edgekit.lower import lower_static
from edgekit.lower.static import StaticGraphs
from edgekit.run.npu import StaticRunner
from edgekit.run.runtime import onnxruntime
from edgekit.types import Checkpoint
from edgekit.types.device import Npu, NpuScheme
from tests.graph.pairs import Decoder

WIDTH, SLOTS = 8, 40
PHONE = load_target("galaxy-s24")


def npu_of(largest: int = 10**9) -> Npu:
    assert PHONE.npu is not None
    return replace(PHONE.npu, prefill_tokens=WIDTH, context=SLOTS, largest_graph_bytes=largest)


def route_of(activations: str = "float16", *, half: bool = False) -> NpuScheme:
    """A scheme of the phone; its cache in float32, which rounds nothing, unless ``half``."""
    (scheme,) = (r for r in npu_of().schemes if r.activations == activations)
    return scheme if half else replace(scheme, quirks=scheme.quirks - {"cache:float32"})


def lowered(model: ir.Model, scheme: NpuScheme, largest: int = 10**9) -> StaticGraphs:
    return lower_static(model, PHONE, npu_of(largest), scheme)


def open_graph(model: ir.Model) -> onnxruntime.InferenceSession:
    """On one thread, exact products."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def open_runner(graphs: StaticGraphs, rows: list[np.ndarray] | None = None) -> StaticRunner:
    """Over sessions; every run's logits are appended to ``rows``."""

    def watch(given: dict[str, np.ndarray]) -> None:
        if rows is not None and "logits" in given:
            rows.append(given["logits"][0])

    chains = [[open_graph(part) for part in chain] for chain in (graphs.prefill, graphs.decode)]
    return StaticRunner(open_graph(graphs.host), *chains, watch=watch)


class Exact(Decoder):
    """Without activations on 8 bits."""

    @property
    def session(self) -> onnxruntime.InferenceSession:
        if "opened" not in self.__dict__:
            self.opened = open_graph(self.model)
        return self.opened


def float_graph(checkpoint: Checkpoint) -> ir.Model:
    return build_graph(checkpoint.spec, checkpoint.weights, opset=PHONE.opset, name="tiny")
