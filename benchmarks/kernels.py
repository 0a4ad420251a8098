"""A graph of only the kernels that a decoded token needs: a bundle's matmuls and attention.

Its nodes are independent, every weight and cache has its own memory, and inputs and outputs are bound, so no graph with
these kernels on these bytes can be faster.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.run import default_settings, session
from edgekit.run.runtime import onnxruntime
from edgekit.types import Bundle

INTS = {np.dtype(np.int32): TensorProto.INT32, np.dtype(np.int64): TensorProto.INT64}


@dataclass
class Kernels:
    """A graph under construction. A run reads ``nbytes`` of stored weights; ``caches`` are written in place."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    caches: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    results: dict[str, np.ndarray] = field(default_factory=dict)
    nbytes: int = 0

    def time(self, bundle: Bundle, runs: int) -> float:
        """Milliseconds per run, with the bundle's number of threads."""
        fed = {**self.inputs, **{past: cache for past, (_, cache) in self.caches.items()}}
        made = {**self.results, **dict(self.caches.values())}
        entries, outputs = ([_described(*pair) for pair in values.items()] for values in (fed, made))
        graph = helper.make_graph(self.nodes, "kernels", entries, outputs, self.constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        settings = default_settings(bundle.manifest)
        options = session._options(settings)
        for entry in session.session_entries(bundle.manifest, settings):
            options.add_session_config_entry(*entry)
        handle = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = handle.io_binding()
        for name, array in fed.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in made.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for _ in range(runs // 4):
            handle.run_with_iobinding(binding)
        started = time.perf_counter()
        for _ in range(runs):
            handle.run_with_iobinding(binding)
        return (time.perf_counter() - started) / runs * 1e3


def gather_kernels(bundle: Bundle, length: int = 0) -> Kernels:
    """The matmuls of the token graph, in order, with attention over ``length`` positions unless that is 0."""
    graph = onnx.load(bundle.graph, load_external_data=True).graph
    constants = {i.name: i for i in graph.initializer}
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast" and n.input[0] in constants}
    repeats = {n.output[0]: n for n in graph.node if n.op_type == "Expand"}

    def read(name: str) -> tuple[np.ndarray, int]:
        """A matmul's input as ONNX Runtime holds it after loading, and its bytes in the file."""
        repeat = repeats.get(name)
        stored = repeat.input[0] if repeat else name
        array = onnx.numpy_helper.to_array(constants[casts.get(stored, stored)])
        nbytes = array.nbytes
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        if repeat:
            array = np.broadcast_to(array, onnx.numpy_helper.to_array(constants[repeat.input[1]]))
        return np.ascontiguousarray(array), nbytes

    kernels = Kernels()
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            _add_product(kernels, node, read)
        elif node.op_type == "GroupQueryAttention" and length:
            _add_attention(kernels, node, bundle, length)
    return kernels


def _add_product(kernels: Kernels, node: onnx.NodeProto, read: Callable[[str], tuple[np.ndarray, int]]) -> None:
    size = {a.name: a.i for a in node.attribute}
    x, y = f"x{size['K']}", f"y{len(kernels.nodes)}"
    kernels.inputs[x] = np.random.default_rng(0).standard_normal((1, 1, size["K"])).astype(np.float32)
    names = [f"{y}.{name}" for name in node.input[1:]]
    for own, (array, nbytes) in zip(names, map(read, node.input[1:]), strict=True):
        kernels.constants.append(onnx.numpy_helper.from_array(array, own))
        kernels.nbytes += nbytes
    kernels.nodes.append(helper.make_node("MatMulNBits", [x, *names], [y], domain="com.microsoft", **size))
    kernels.results[y] = np.empty((1, 1, size["N"]), np.float32)


def _add_attention(kernels: Kernels, node: onnx.NodeProto, bundle: Bundle, length: int) -> None:
    spec, random, y = bundle.manifest.spec, np.random.default_rng(0), f"y{len(kernels.nodes)}"
    own, shared = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    widths = (own, shared, shared) if node.input[1] else (own + 2 * shared,)
    capacity = 1 << (length - 1).bit_length()
    names = []
    for index, name in enumerate(node.input):
        if not name:
            names.append("")
        elif index < 3:
            names.append(f"a{index}")
            kernels.inputs[names[-1]] = random.standard_normal((1, 1, widths[index])).astype(np.float32)
        elif index < 5:
            names.append(f"{y}.past{index}")
            cache = random.standard_normal((1, spec.kv_heads, capacity, spec.head_dim)).astype(np.float32)
            kernels.caches[names[-1]] = f"{y}.present{index}", cache
        else:
            names.append(("last", "total", "cos", "sin", "position")[index - 5])
    kernels.inputs |= {
        "last": np.array([length - 1], np.int32),
        "total": np.array(length, np.int32),
        "cos": np.ones((bundle.manifest.context_length, spec.rope.dim // 2), np.float32),
        "sin": np.zeros((bundle.manifest.context_length, spec.rope.dim // 2), np.float32),
    }
    if "position" in names:
        kernels.inputs["position"] = np.array([[length - 1]])
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(names)
    copy.output.extend([y, f"{y}.present3", f"{y}.present4"])
    kernels.nodes.append(copy)
    kernels.results[y] = np.empty((1, 1, own), np.float32)


def _described(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, INTS.get(array.dtype, TensorProto.FLOAT), array.shape)
