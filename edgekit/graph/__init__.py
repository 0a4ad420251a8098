"""Build an FP32 onnx_ir.Model with ONNX Runtime's fused operators from a ModelSpec and lazy weights."""

from edgekit.graph.llama import build_graph as build_graph
from edgekit.graph.optimum import export_with_optimum as export_with_optimum
