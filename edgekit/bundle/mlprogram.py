"""Convert static graphs to an ML Program, Core ML's format, node by node, since coremltools does not read ONNX.

``python -m edgekit.bundle.mlprogram OUT NAME=GRAPH...`` runs as a subprocess: coremltools loads torch if installed,
logs and draws progress bars. Each graph becomes a function; equal weights are stored once. Quantized weights stay
quantized (``constexpr_blockwise_shift_scale``, iOS 18).
"""

from __future__ import annotations

import json
import re
import sys
from math import gcd, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import coremltools as ct
import numpy as np
import onnx_ir as ir
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Function, Program, types

from edgekit.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

DATE = "com.github.apple.coremltools.conversion_date"
TYPES = {ir.DataType.FLOAT16: types.fp16, ir.DataType.FLOAT: types.fp32}
CODES = {ir.DataType.INT4: types.int4, ir.DataType.INT8: types.int8}


def convert(graphs: Sequence[tuple[str, Path]], out: Path) -> None:
    """Write the package ``out`` with one function per named graph, the first being the default.

    The output is deterministic.

    Raises:
        BundleError: an operator has no translation.
    """
    together = ct.utils.MultiFunctionDescriptor()
    with TemporaryDirectory(dir=out.parent) as folder:
        for name, graph in graphs:
            alone = str(Path(folder) / f"{name}.mlpackage")
            program = Program()
            program.add_function("main", _function(ir.load(graph).graph))
            ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                # The graph has the precision it needs: do not round anything else.
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            ).save(alone)
            together.add_function(alone, "main", name)
        together.default_function_name = graphs[0][0]
        ct.utils.save_multifunction(together, str(out))
    _without_chance(out)


def _function(graph: ir.Graph) -> Function:
    """The function of one static graph. Names of inputs and outputs have "_" where ONNX has "."."""
    given = {
        str(v.name): Builder.placeholder(tuple(v.shape.numpy()), dtype=TYPES[v.dtype])
        for v in graph.inputs
        if v.shape is not None and v.dtype is not None
    }
    with Function({_name(n): p for n, p in given.items()}, opset_version=ct.target.iOS18) as function:
        writer = _Writer({n: function.inputs[_name(n)] for n in given}, {str(v.name) for v in graph.outputs})
        for node in graph:
            writer.write(node)
        function.set_outputs([writer.values[str(v.name)] for v in graph.outputs])
    return function


class _Writer:
    """Calls coremltools' builder for each node; ``values`` are its variables, or arrays for constants."""

    def __init__(self, values: dict[str, Any], outputs: set[str]) -> None:
        self.values, self._outputs = values, outputs

    def write(self, node: ir.Node) -> None:
        """Translate one node.

        Raises:
            BundleError: its operator has no translation.
        """
        translate: Callable[[ir.Node], Any] | None = getattr(self, f"_{node.op_type.lower()}", None)
        if node.op_type in _ELEMENTS:
            x, y = (self._value(v) for v in node.inputs)
            made = _ELEMENTS[node.op_type](x=x, y=y, **self._named(node))
        elif node.op_type in _UNARY:
            made = _UNARY[node.op_type](x=self._value(node.inputs[0]), **self._named(node))
        elif translate is not None:
            made = translate(node)
        else:
            raise BundleError(f"{node.op_type} '{node.name}' has no translation to an ML Program", _WITHOUT)
        for value, variable in zip(node.outputs, made if isinstance(made, list | tuple) else [made], strict=True):
            self.values[str(value.name)] = variable

    def _value(self, value: ir.Value | None) -> Any:
        """The variable of a value, or the array of an initializer."""
        assert value is not None
        known = self.values.get(str(value.name))
        if known is None and value.const_value is not None:
            return value.const_value.numpy()
        return known

    def _named(self, node: ir.Node) -> dict[str, str]:
        """The ``name`` argument of an operation that makes an output of the graph."""
        name = str(node.outputs[0].name)
        return {"name": _name(name)} if name in self._outputs else {}

    def _cast(self, node: ir.Node) -> Any:
        dtype = {ir.DataType.FLOAT16: "fp16", ir.DataType.FLOAT: "fp32"}[ir.DataType(_integer(node, "to"))]
        return Builder.cast(x=self._value(node.inputs[0]), dtype=dtype, **self._named(node))

    def _matmul(self, node: ir.Node) -> Any:
        x, weight = (self._value(v) for v in node.inputs)
        if isinstance(weight, np.ndarray):
            weight = np.ascontiguousarray(weight.T)
        elif not _is_weight(weight):
            return Builder.matmul(x=x, y=weight, **self._named(node))
        return Builder.linear(x=x, weight=weight, **self._named(node))

    def _gemm(self, node: ir.Node) -> Any:
        x, weight = (self._value(v) for v in node.inputs)
        if set(node.attributes) != {"transB"} or not isinstance(weight, np.ndarray):
            raise BundleError(f"Gemm '{node.name}' is not a plain matmul with a constant matrix", _WITHOUT)
        return Builder.linear(x=x, weight=weight, **self._named(node))

    def _dequantizelinear(self, node: ir.Node) -> Any:
        """A weight [K,N] with scales [K / block, N] or [N], transposed to [N,K] for ``linear``."""
        stored = node.inputs[0]
        if stored is None or stored.const_value is None or len(node.inputs) > 2:
            raise BundleError(f"DequantizeLinear '{node.name}' is not a symmetrically quantized weight", _WITHOUT)
        codes, scales = stored.const_value.numpy().T, np.atleast_2d(self._value(node.inputs[1])).T
        block = _integer(node, "block_size", 0) or codes.shape[1]
        # Core ML's blocks must divide the row; ONNX's last block may be shorter.
        fitting = gcd(codes.shape[1], block)
        scales = np.repeat(scales, block // fitting, axis=1)[:, : codes.shape[1] // fitting]
        integer = types.nptype_from_builtin(CODES[stored.const_value.dtype])
        return Builder.constexpr_blockwise_shift_scale(
            data=np.ascontiguousarray(codes.astype(np.int8)).astype(integer),
            scale=np.ascontiguousarray(scales),
            name=_name(str(stored.name)),
        )

    def _reshape(self, node: ir.Node) -> Any:
        x, shape = (self._value(v) for v in node.inputs)
        sizes = [x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)]
        if -1 in sizes:
            sizes[sizes.index(-1)] = prod(x.shape) // -prod(sizes)
        return Builder.reshape(x=x, shape=sizes, **self._named(node))

    def _transpose(self, node: ir.Node) -> Any:
        return Builder.transpose(
            x=self._value(node.inputs[0]), perm=node.attributes["perm"].as_ints(), **self._named(node)
        )

    def _split(self, node: ir.Node) -> Any:
        x, sizes = (self._value(v) for v in node.inputs)
        return Builder.split(x=x, split_sizes=[int(size) for size in sizes], axis=_integer(node, "axis", 0))

    def _concat(self, node: ir.Node) -> Any:
        values, axis = [self._value(v) for v in node.inputs], _integer(node, "axis")
        if all(isinstance(value, np.ndarray) for value in values):
            return np.concatenate(values, axis=axis)
        return Builder.concat(values=values, axis=axis, **self._named(node))

    def _shape(self, node: ir.Node) -> NDArray[np.int64]:
        x = self._value(node.inputs[0])
        return np.asarray(x.shape, np.int64)[_integer(node, "start", 0) : _integer(node, "end", len(x.shape))]

    def _softmax(self, node: ir.Node) -> Any:
        return Builder.softmax(x=self._value(node.inputs[0]), axis=_integer(node, "axis", -1), **self._named(node))

    def _reducemax(self, node: ir.Node) -> Any:
        return self._reduced(node, Builder.reduce_max)

    def _reducemean(self, node: ir.Node) -> Any:
        return self._reduced(node, Builder.reduce_mean)

    def _reduced(self, node: ir.Node, reduce: Callable[..., Any]) -> Any:
        x, axes = (self._value(v) for v in node.inputs)
        keep = bool(_integer(node, "keepdims", 1))
        return reduce(x=x, axes=[int(axis) for axis in axes], keep_dims=keep, **self._named(node))


_ELEMENTS: dict[str, Callable[..., Any]] = {
    "Add": Builder.add,
    "Sub": Builder.sub,
    "Mul": Builder.mul,
    "Div": Builder.real_div,
    "Max": Builder.maximum,
    "Pow": Builder.pow,
}
_UNARY: dict[str, Callable[..., Any]] = {"Sqrt": Builder.sqrt, "Sigmoid": Builder.sigmoid}
_WITHOUT = "build without `mlpackage`"


def _integer(node: ir.Node, name: str, default: int | None = None) -> int:
    found = node.attributes.get(name)
    if found is None and default is not None:
        return default
    return node.attributes[name].as_int()


def _is_weight(variable: Any) -> bool:
    return variable.op is not None and variable.op.op_type.startswith("constexpr")


def _name(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _without_chance(package: Path) -> None:
    """Remove the date from the specification and the random identifiers from the manifest."""
    place = package / "Data/com.apple.CoreML/model.mlmodel"
    spec = ct.utils.load_spec(str(package))
    spec.description.metadata.userDefined.pop(DATE, None)
    place.write_bytes(spec.SerializeToString(deterministic=True))
    place.chmod(0o644)  # coremltools makes it readable by its owner only
    manifest = package / "Manifest.json"
    text = manifest.read_text(encoding="utf-8")
    for random, item in json.loads(text)["itemInfoEntries"].items():
        text = text.replace(random, str(uuid5(NAMESPACE_URL, item["path"])))
    manifest.write_text(json.dumps(json.loads(text), indent=4, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    pairs = [argument.split("=", 1) for argument in sys.argv[2:]]
    convert([(name, Path(graph)) for name, graph in pairs], Path(sys.argv[1]))
