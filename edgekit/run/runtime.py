"""ONNX Runtime, told to keep to itself.

Its wheels for Linux hold a client of Microsoft's telemetry that starts when the library is loaded: it opens a database
in the user's cache and sends events to a server. What says no is a variable of the environment, read at that moment,
so every import of ONNX Runtime is here. Who has set the variable keeps what was set.
"""

from __future__ import annotations

import os

_REFUSAL = "ORT_DISABLE_TELEMETRY"
_said = _REFUSAL in os.environ
os.environ.setdefault(_REFUSAL, "1")
try:
    import onnxruntime  # noqa: TID251
finally:
    if not _said:
        del os.environ[_REFUSAL]

CPU = "CPUExecutionProvider"
"""The provider of every ONNX Runtime, which takes what no other does. It is not always the last of those available: a
plugin that is registered comes after it."""

__all__ = ["CPU", "onnxruntime"]
