"""Import ONNX Runtime with telemetry disabled.

Its Linux wheels contain Microsoft's telemetry client, which starts when the library is loaded: it opens a database in
the user's cache and sends events to a server. It is disabled by an environment variable that is read at load time, so
ONNX Runtime is only imported here. If the user has set the variable, that value is kept.
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
"""The provider that every ONNX Runtime has, which runs the nodes that no other provider does. It is not always the last
available one: registered plugins come after it."""

__all__ = ["CPU", "onnxruntime"]
