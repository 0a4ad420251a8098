"""A tiny bundle for an NPU by the real compiler, in some seconds: for tests of what is executed on the emulator."""

import platform
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.types import Bundle
from tests.npus import signed_checkpoint, tiny_target

needs_compiler = pytest.mark.skipif(
    find_spec("onnxruntime_qnn") is None or (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="needs onnxruntime-qnn, whose compiler is for Linux on x86_64",
)


def compile_tiny(folder: Path) -> Bundle:
    """8-bit weights of a turned residual stream, activations in 16-bit integers; compiled and not executed."""
    checkpoint = signed_checkpoint(folder / "checkpoint")
    npu = ForNpu(activations="uint16", emulate=False)
    return build_bundle(str(checkpoint), target=tiny_target(), precision="int8", out=folder / "b", npu=npu)
