"""Read an export of optimum-onnx as a Checkpoint, with its graph adapted to edgekit's contract."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass

from edgekit.errors import GraphError, SourceError
from edgekit.types import Checkpoint, ModelSpec, Provenance, Rope, SideFile
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Export:
    """A decoder exported by optimum: its graph and its checkpoint.

    The checkpoint's weights have the names of the graph's initializers. Both keep the exported files on disk while they
    are alive.
    """

    graph: ir.Model
    checkpoint: Checkpoint


INPUTS = ("input_ids", "attention_mask", "position_ids")
UNLIMITED_CONTEXT = 2048
"""Context length for models without a limit in the config, such as those with ALiBi."""

# Operators changed between opset 18, the newest that torch's tracing exporter writes, and 21.
CHANGED_SINCE_18 = frozenset({"AveragePool", "DFT", "GridSample", "GroupNormalization", "Resize"})
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "config.json")


def read_export(folder: Path, source: Path, model_id: str, opset: int) -> Export:
    """Read an export.

    Args:
        folder: optimum's output. It is removed, with its parent, when model and weights are no longer used.
        source: the checkpoint's folder, whose side files are preferred; it need not exist.
        model_id: the model as named by the user.
        opset: the least opset to declare.

    Raises:
        GraphError: the graph is not a decoder with a key/value cache, or a side file is missing.
    """
    model = _load_lazily(folder)
    config = _read_json(folder / "config.json")
    IdentityEliminationPass()(model)
    slots = _check_contract(model)
    _unfold_gemms(model.graph)
    _name_weights(model.graph)
    _tie_head(model)
    RemoveUnusedNodesPass()(model)
    _declare_opset(model, opset)
    weights = ExportedWeights(model.graph)
    keeper = _Keeper()
    weakref.finalize(keeper, shutil.rmtree, folder.parent, ignore_errors=True)
    weights.keeper = model.meta["edgekit.files"] = keeper
    files = _side_files(folder, source)
    generation = json.loads(next(f.data for f in files if f.name == "generation_config.json"))
    spec = _spec(config | generation, model.graph, slots)
    local = Path(model_id).resolve() if Path(model_id).is_dir() else None
    provenance = Provenance(
        id=local.name if local else model_id, kind="optimum", sha256=weights.sha256(), location=str(local or model_id)
    )
    return Export(model, Checkpoint(spec, weights, files, provenance))


class _Keeper:
    """An object whose lifetime is that of the exported files."""


def _load_lazily(folder: Path) -> ir.Model:
    """Load the graph with its weights in an external file; below 2 GB optimum puts them into the graph."""
    path = folder / "model.onnx"
    if not (folder / "model.onnx_data").exists():
        ir.save(ir.load(path), path, external_data="model.onnx_data")
    return ir.load(path)


# --- the contract -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slots:
    """The cache's shape: layers, heads and head size."""

    layers: int
    heads: int
    size: int


def _check_contract(model: ir.Model) -> _Slots:
    """Check names and shapes, rename the dimensions as in edgekit, and add position_ids if the graph has none."""
    graph = model.graph
    inputs = {value.name or "": value for value in graph.inputs}
    past = [name for name in inputs if name.startswith("past_key_values.")]
    layers = len(past) // 2
    kinds = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    expected = {*INPUTS, *(f"past_key_values.{kind}" for kind in kinds)}
    outputs = {value.name or "": value for value in graph.outputs}
    missing = ({"input_ids", "attention_mask"} | expected.difference(INPUTS)) - inputs.keys()
    missing |= {"logits", *(f"present.{kind}" for kind in kinds)} - outputs.keys()
    if missing or not layers:
        raise GraphError(f"the exported graph has no {', '.join(sorted(missing)) or 'past_key_values'}", _NOT_A_DECODER)
    extra = inputs.keys() - expected
    if extra:
        raise GraphError(f"the exported graph has an unexpected input '{min(extra)}'", _NOT_A_DECODER)
    shape = inputs["past_key_values.0.key"].shape
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        raise GraphError(f"the exported graph's past keys have shape {shape}, not [B, heads, P, size]", _NOT_A_DECODER)
    slots = _Slots(layers, shape[1], shape[3])
    if "position_ids" not in inputs:
        graph.inputs.append(ir.Value(name="position_ids", type=ir.TensorType(ir.DataType.INT64)))
    values = inputs | outputs | {v.name or "": v for v in graph.inputs}
    for name, value in values.items():
        value.shape = ir.Shape(_dimensions(name, value, slots))
    order = [values[name] for name in (*INPUTS, *(f"past_key_values.{kind}" for kind in kinds))]
    graph.inputs[:] = order
    graph.outputs[:] = [values[name] for name in ("logits", *(f"present.{kind}" for kind in kinds))]
    return slots


_NOT_A_DECODER = "use a text decoder with a key/value cache of shape [B, heads, P, size]"


def _dimensions(name: str, value: ir.Value, slots: _Slots) -> Sequence[int | str]:
    kind = name.split(".", maxsplit=1)[0]
    if kind == "logits":
        if value.shape is None or not isinstance(value.shape[-1], int):
            raise GraphError("the exported graph's logits have no fixed vocabulary size", _NOT_A_DECODER)
        return ("batch_size", "sequence_length", value.shape[-1])
    return {
        "input_ids": ("batch_size", "sequence_length"),
        "position_ids": ("batch_size", "sequence_length"),
        "attention_mask": ("batch_size", "total_sequence_length"),
        "past_key_values": ("batch_size", slots.heads, "past_sequence_length", slots.size),
        "present": ("batch_size", slots.heads, "total_sequence_length", slots.size),
    }[kind]


def _declare_opset(model: ir.Model, opset: int) -> None:
    given = model.opset_imports[""]
    changed = sorted({node.op_type for node in model.graph.all_nodes()} & CHANGED_SINCE_18)
    if given < opset and (changed or given < 18):
        culprit = changed[0] if changed else f"opset {given}"
        raise GraphError(
            f"the exported graph's {culprit} cannot be declared as opset {opset}", "use a target with an older opset"
        )
    model.opset_imports[""] = max(given, opset)


# --- the weights --------------------------------------------------------------------------------


def _unfold_gemms(graph: ir.Graph) -> None:
    """Replace Gemm with a constant weight by MatMul and Add, which ``quantize`` and ``lower`` handle."""
    for node in list(graph):
        if node.op_type != "Gemm" or node.attributes.get_float("alpha", 1.0) != 1.0:
            continue
        x, weight, *bias = node.inputs
        if weight is None or not weight.is_initializer() or node.attributes.get_int("transA"):
            continue
        if bias and node.attributes.get_float("beta", 1.0) != 1.0:
            continue
        if node.attributes.get_int("transB"):
            if len(weight.uses()) > 1:
                continue
            _transpose(weight)
        matmul = ir.node("MatMul", [x, weight], name=node.name)
        made = [matmul]
        if bias and bias[0] is not None:
            made.append(ir.node("Add", [matmul.outputs[0], bias[0]], name=f"{node.name}.bias"))
        result, old = made[-1].outputs[0], node.outputs[0]
        graph.insert_before(node, made)
        result.type, result.shape = old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name, old.name = old.name, None
        graph.remove(node, safe=True)


def _transpose(weight: ir.Value) -> None:
    """Transpose an initializer [N, K] to [K, N] lazily."""
    tensor = weight.const_value
    assert tensor is not None
    rows, columns = tensor.shape.numpy()

    def transposed() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().T), name=weight.name)

    weight.const_value = ir.LazyTensor(
        transposed, dtype=tensor.dtype, shape=ir.Shape((columns, rows)), name=weight.name, cache=False
    )
    weight.shape = ir.Shape((columns, rows))


def _name_weights(graph: ir.Graph) -> None:
    """Give the token table and the head their canonical names, and name unnamed weights after their node.

    The exporter folds transposed weights into constants like ``onnx::MatMul_670``; the node's name,
    ``/model/layers.0/mlp/up_proj/MatMul``, still identifies the layer.
    """
    lookups = (n for n in graph if n.op_type == "Gather" and _origin(n.inputs[1]) is graph.inputs[0])
    table = next((n.inputs[0] for n in lookups), None)
    if table is not None and table.is_initializer():
        _rename(graph, table, EMBEDDING)
    head = graph.outputs[0].producer()
    if head is not None and head.op_type == "Add":
        head = next((v.producer() for v in head.inputs if v is not None and v.producer() is not None), None)
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or not weight.is_initializer():
            continue
        if node is head:
            _rename(graph, weight, HEAD)
        elif (weight.name or "").startswith("onnx::"):
            _rename(graph, weight, (node.name or "").strip("/").rpartition("/")[0].replace("/", ".") + ".weight")


def _origin(value: ir.Value | None) -> ir.Value | None:
    """Follow reshapes and casts back to the original value."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in {"Reshape", "Cast", "Squeeze", "Unsqueeze"}:
            break
        value = node.inputs[0]
    return value


def _rename(graph: ir.Graph, weight: ir.Value, name: str) -> None:
    if name not in graph.initializers:
        weight.name = name


def _tie_head(model: ir.Model) -> None:
    """If the head is the transposed token table, use the table itself, to store the weight only once."""
    graph = model.graph
    head, table = graph.initializers.get(HEAD), graph.initializers.get(EMBEDDING)
    if head is None or table is None or head.const_value is None or table.const_value is None:
        return
    if not np.array_equal(head.const_value.numpy().T, table.const_value.numpy()):
        return
    for node, _ in tuple(head.uses()):
        fused = ir.node("FusedMatMul", [node.inputs[0], table], {"transB": 1}, domain="com.microsoft", name=node.name)
        new, old = fused.outputs[0], node.outputs[0]
        graph.insert_before(node, fused)
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
        graph.remove(node, safe=True)
    model.opset_imports["com.microsoft"] = 1


class ExportedWeights:
    """The graph's floating-point initializers as ``types.Weights``: linear weights transposed to [outputs, inputs]."""

    def __init__(self, graph: ir.Graph) -> None:
        self.keeper: object = None
        self._tensors: dict[str, tuple[ir.TensorProtocol, bool]] = {}
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype.is_floating_point():
                linear = any(use.node.op_type == "MatMul" and use.idx == 1 for use in value.uses())
                self._tensors[name] = (tensor, linear and len(tensor.shape) == 2)

    def names(self) -> tuple[str, ...]:
        """All tensor names, in the graph's order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it. Raises SourceError for an unknown name."""
        tensor, transposed = self._find(name)
        shape = tuple(tensor.shape.numpy())
        return shape[::-1] if transposed else shape

    def stored(self, name: str) -> str:
        """The type of a tensor: ``F32``, ``F16`` or ``BF16``."""
        return {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}.get(str(self._find(name)[0].dtype), "F32")

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the export."""
        return self._find(name)[0].nbytes

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of the first axis as a new float32 array.

        Raises SourceError when the name is unknown or a value is NaN or infinite.
        """
        tensor, transposed = self._find(name)
        array = tensor.numpy()
        rows = np.array((array.T if transposed else array)[start:stop], np.float32, order="C")
        if not np.isfinite(rows).all():
            raise SourceError(f"tensor '{name}' holds NaN or infinite values", "use another checkpoint")
        return rows

    def sha256(self) -> str:
        """The sha256 over the names and bytes of all tensors."""
        digest = sha256()
        for name, (tensor, _) in self._tensors.items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()

    def _find(self, name: str) -> tuple[ir.TensorProtocol, bool]:
        try:
            return self._tensors[name]
        except KeyError:
            raise SourceError(
                f"the exported graph has no weight '{name}'",
                "build with `exporter=native`, or export again with `force`",
            ) from None


# --- the rest of the checkpoint -----------------------------------------------------------------


def _spec(config: dict[str, Any], graph: ir.Graph, slots: _Slots) -> ModelSpec:
    """Make the spec from config.json and the graph.

    Rotation, windows and biases stay neutral (``rope.dim`` 0, no rotating layer), because the graph contains these
    computations and nothing is built from the spec.
    """
    logits = graph.outputs[0].shape
    assert logits is not None
    hidden = int(_first(config, ("hidden_size", "n_embd", "d_model"), slots.heads * slots.size))
    eos = config.get("eos_token_id")
    stops = eos if isinstance(eos, list) else [eos] if eos is not None else []
    return ModelSpec(
        architecture=str(config["model_type"]),
        hidden_size=hidden,
        intermediate_size=int(_first(config, ("intermediate_size", "n_inner", "ffn_dim"), 4 * hidden)),
        layers=slots.layers,
        heads=int(_first(config, ("num_attention_heads", "n_head", "num_heads"), slots.heads)),
        kv_heads=slots.heads,
        head_dim=slots.size,
        vocab_size=int(logits[-1]),  # type: ignore[arg-type]
        context_length=int(
            _first(config, ("max_position_embeddings", "n_positions", "max_seq_len"), UNLIMITED_CONTEXT)
        ),
        norm_eps=float(_first(config, ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"), 0.0)),
        rope=Rope(theta=float(config.get("rope_theta") or 0.0), dim=0),
        tied=HEAD not in graph.initializers,
        windows=(None,) * slots.layers,
        rotary=(False,) * slots.layers,
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=tuple(int(i) for i in stops),
        pad_token_id=config.get("pad_token_id"),
    )


def _first(config: dict[str, Any], keys: Sequence[str], otherwise: float) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), otherwise)


def _side_files(folder: Path, source: Path) -> tuple[SideFile, ...]:
    """The checkpoint's own files, or else those of optimum, whose older transformers may not know the tokenizer."""
    found = {}
    for name in SIDE_FILES:
        path = next((p for p in (source / name, folder / name) if p.is_file()), None)
        if path is not None:
            found[name] = path.read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if name not in found:
            raise GraphError(
                f"neither {source} nor the export has a {name}",
                "copy tokenizer.json and tokenizer_config.json from the model's page into the folder",
            )
    if "generation_config.json" not in found:
        config = json.loads(found["config.json"])
        ids = {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None
        }
        found["generation_config.json"] = json.dumps(ids).encode()
    return tuple(SideFile(name, data) for name, data in found.items())


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise GraphError(f"{path} is not a JSON object", "remove the exported folder and build again")
    return content
