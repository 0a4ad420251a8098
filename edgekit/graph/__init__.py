"""From a ModelSpec and lazy weights to an onnx_ir.Model in FP32 and the fused dialect."""

from edgekit.graph.llama import build_graph as build_graph
from edgekit.graph.optimum import export_with_optimum as export_with_optimum
