"""Bundle -> Runner over ONNX Runtime; sampling, text and conversation on top of it."""

from edgekit.run.chat import Chat
from edgekit.run.generation import Finish, Generation, generate
from edgekit.run.runner import CHUNK, OnnxRunner, load_runner
from edgekit.run.session import SessionInfo
from edgekit.run.text import Tokenizer
from edgekit.run.threads import physical_cores

__all__ = [
    "CHUNK",
    "Chat",
    "Finish",
    "Generation",
    "OnnxRunner",
    "SessionInfo",
    "Tokenizer",
    "generate",
    "load_runner",
    "physical_cores",
]
