"""ONNX Runtime's mobile usability check: which nodes of a static graph NNAPI and Core ML list as supported."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgekit.errors import RunError
from edgekit.run.runtime import CPU, onnxruntime
from edgekit.types.npu import Usability, UsabilityReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UNKNOWN = (
    "types: a listed operator may not support the tensor's type (NNAPI: 16-bit integers and float16)",
    "the conditions of each provider, such as which inputs must be constant or have two dimensions",
    "external weights: NNAPI's provider rejects nodes that read them, which is not checked",
    "graph differences: operators that this computer's CPU lacks in half precision are decomposed first (Softmax)",
    "which unit of the device runs a node, and whether its driver or Core ML's compiler accepts it",
)


def check_usability(graphs: Sequence[Path], session: Sequence[tuple[str, str]]) -> UsabilityReport:
    """Run the check on each graph as a session would pass it to a provider: optimized at the basic level.

    Args:
        graphs: static graphs.
        session: entries of the session's configuration.

    Raises:
        RunError: this onnxruntime does not have the check, or cannot open a graph.
    """
    found = tuple(usability for graph in graphs for usability in _check(graph, session))
    tool = f"onnxruntime {onnxruntime.__version__}, tools.mobile_helpers.usability_checker"
    return UsabilityReport(tool, tuple(session), found, UNKNOWN)


def _check(graph: Path, session: Sequence[tuple[str, str]]) -> Iterator[Usability]:
    try:
        from onnxruntime.tools.mobile_helpers import usability_checker as checker  # noqa: TID251
    except ImportError as error:
        raise RunError(
            f"onnxruntime {onnxruntime.__version__} has no mobile usability check: {error}",
            "pip install -U onnxruntime",
        ) from error
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / graph.name
        _optimize(graph, optimized, session)
        model = checker.ModelProtoWithShapeInfo(optimized).model_with_shape_info
    for provider, partitions in (
        ("NNAPI", checker.check_nnapi_partitions(model, True)),
        *(
            (f"CoreML {kind}", checker.check_coreml_partitions(model, True, f"coreml_supported_{kind.lower()}_ops.md"))
            for kind in ("NeuralNetwork", "MLProgram")
        ),
    ):
        yield _usability(graph.name, provider, partitions)


def _usability(graph: str, provider: str, found: Any) -> Usability:
    return Usability(
        graph=graph,
        provider=provider,
        partitions=found.num_partitions,
        supported=found.num_supported_nodes,
        nodes=found.num_nodes,
        unsupported=tuple(sorted(found.unsupported_ops)),
        dynamic=found.nodes_unsupported_due_to_dynamic_input,
        rank=found.num_unsupported_nodes_due_to_rank,
        suitable=found.suitability().name,
        conditions=tuple(found.supported_ops_checker.get_caveats()),
    )


def _optimize(graph: Path, out: Path, session: Sequence[tuple[str, str]]) -> None:
    """Write a graph as a session optimizes it before it asks the providers; its weights go next to it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 4
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{out.name}_data")
    for key, value in session:
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=[CPU])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise RunError(
            f"{graph.name}: {' '.join(str(error).split())}", "rebuild the bundle with `edgekit build`"
        ) from error
