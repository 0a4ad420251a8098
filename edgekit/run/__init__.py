"""Bundle -> Runner over ONNX Runtime; sampling, text and conversation on top of it."""

from edgekit.run.runner import OnnxRunner, load_runner
from edgekit.run.session import SessionInfo
from edgekit.run.threads import physical_cores

__all__ = ["OnnxRunner", "SessionInfo", "load_runner", "physical_cores"]
