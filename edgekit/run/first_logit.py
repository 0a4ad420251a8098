"""A graph that can be asked for the logits of its last positions: the constant that says where they begin, as an input.

Protocol buffers are merged when one follows another, so an input is added to an ONNX file by appending it. The runtime
then takes the initializer of that name for a default.
"""

from __future__ import annotations

from edgekit.types import FIRST_LOGIT

NAMES = (FIRST_LOGIT, "first_logit")
"""What the input is called; bundles made before it was a constant have it in the file, under the second name."""

_INT64 = 7
"""TensorProto.DataType."""


def open_first_logit(graph: bytes) -> bytes:
    """An ONNX file with FIRST_LOGIT, int64 [1], as an input with a default; without such a constant, as it is."""
    return graph + _INPUT if FIRST_LOGIT.encode() in graph else graph


def _message(number: int, content: bytes) -> bytes:
    """Field ``number`` of a message: a submessage or a string shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def _whole(number: int, value: int) -> bytes:
    """Field ``number`` of a message: a whole number below 128."""
    return bytes([number << 3, value])


def _input(name: str) -> bytes:
    """ModelProto.graph.input: a ValueInfoProto of int64 [1]. The numbers are onnx.proto's."""
    shape = _message(1, _whole(1, 1))
    tensor = _whole(1, _INT64) + _message(2, shape)
    value = _message(1, name.encode()) + _message(2, _message(1, tensor))
    return _message(7, _message(11, value))


_INPUT = _input(FIRST_LOGIT)
