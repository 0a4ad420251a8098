"""Turn the constant for the first position with logits into an input, to get only the last positions' logits.

Concatenated protocol buffers are merged, so appending an input adds it to an ONNX file. The runtime then uses the
initializer of the same name as its default.
"""

from __future__ import annotations

from edgekit.types import FIRST_LOGIT

NAMES = (FIRST_LOGIT, "first_logit")
"""Names of the input; old bundles have it as an input in the file, under the second name."""

_INT64 = 7
"""TensorProto.DataType.INT64."""


def open_first_logit(graph: bytes) -> bytes:
    """Add FIRST_LOGIT, int64 [1], as an input with a default to an ONNX file; unchanged if it has no such constant."""
    return graph + ADDED if FIRST_LOGIT.encode() in graph else graph


def _message(number: int, content: bytes) -> bytes:
    """Field ``number`` of a message: a submessage or a string shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def _whole(number: int, value: int) -> bytes:
    """Field ``number`` of a message: an integer below 128."""
    return bytes([number << 3, value])


def _input(name: str) -> bytes:
    """ModelProto.graph.input: a ValueInfoProto of int64 [1]. The numbers are onnx.proto's."""
    shape = _message(1, _whole(1, 1))
    tensor = _whole(1, _INT64) + _message(2, shape)
    value = _message(1, name.encode()) + _message(2, _message(1, tensor))
    return _message(7, _message(11, value))


ADDED = _input(FIRST_LOGIT)
"""The bytes to append to an ONNX file that has the constant."""
