"""What examples/npu shows gives the tokens of edgekit's own runners."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.run import Tokenizer
from edgekit.run.runtime import onnxruntime
from edgekit.types import Bundle
from tests.npus import build_tiny, greedy, signed_checkpoint, static_runner, tiny_target

EXAMPLES = Path(__file__).parent.parent / "examples" / "npu"
PROMPT = "The quick brown fox jumps over the lazy dog."
TOKENS = 6
NEEDS_QNN = pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn")


def run(command: Sequence[str | Path], **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def expected(bundle: Bundle, prompt: Sequence[int]) -> list[int]:
    runner = static_runner(bundle)
    made = greedy(runner, prompt, TOKENS)
    runner.close()
    assert len(set(made)) > 2
    return made


def compiled(folder: Path) -> Bundle:
    """A bundle that the vendor's compiler made."""
    checkpoint = signed_checkpoint(folder / "checkpoint")
    emulate = ForNpu(emulate=False)
    return build_bundle(str(checkpoint), target=tiny_target(), precision="fp16", out=folder / "b", npu=emulate)


def python(bundle: Bundle, where: str) -> list[int]:
    folder = bundle.path / bundle.manifest.npus[0].folder
    command = [sys.executable, EXAMPLES / "python_npu.py", folder, PROMPT, "--tokens", str(TOKENS), "--ids", where]
    made: list[int] = json.loads(run(command))
    return made


@pytest.mark.parametrize("largest", [10**9, 140_000], ids=["whole", "in parts"])
def test_python_on_the_cpu(largest: int, tmp_path: Path) -> None:
    bundle = build_tiny(tmp_path, largest_graph_bytes=largest)
    assert python(bundle, "--cpu") == expected(bundle, Tokenizer.of(bundle).encode(PROMPT))


@NEEDS_QNN
def test_python_on_the_emulator(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    assert python(bundle, "--emulate") == expected(bundle, Tokenizer.of(bundle).encode(PROMPT))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """npu.cpp, compiled against the headers of ORT_INCLUDE and the library of the Python package."""
    headers = os.environ.get("ORT_INCLUDE", "")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if not headers or library is None or shutil.which("g++") is None:
        pytest.skip("needs g++, ONNX Runtime's headers in ORT_INCLUDE, and its library")
    folder = tmp_path_factory.mktemp("program")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", headers]
    command = ["g++", *flags, str(EXAMPLES / "npu.cpp"), str(library), "-o", str(folder / "npu")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    return ["env", f"LD_LIBRARY_PATH={folder}", str(folder / "npu")]


def test_cpp_on_the_cpu(program: list[str], tmp_path: Path) -> None:
    bundle = build_tiny(tmp_path)
    build = bundle.manifest.npus[0]
    folder = tmp_path / "uncompiled"
    shutil.copytree(bundle.path / "onnx", folder)
    for path in (bundle.path / build.folder).glob("host.onnx*"):
        shutil.copy(path, folder)
    for graph in build.graphs:
        shutil.copy(bundle.path / graph.source, folder / f"{graph.role}.onnx")
    ids = np.random.default_rng(0).integers(4, 384, 19).tolist()
    answer = run([*program, folder, "-", "-", str(TOKENS), *map(str, ids)])
    assert [int(word) for word in answer.split()] == expected(bundle, ids)


@NEEDS_QNN
def test_cpp_on_the_emulator(program: list[str], tmp_path: Path) -> None:
    import onnxruntime_qnn

    bundle = compiled(tmp_path)
    folder = bundle.path / bundle.manifest.npus[0].folder
    ids = np.random.default_rng(0).integers(4, 384, 19).tolist()
    paths = [onnxruntime_qnn.get_library_path(), onnxruntime_qnn.get_qnn_htp_path()]
    answer = run([*program, folder, *paths, str(TOKENS), *map(str, ids)])
    assert [int(word) for word in answer.split()] == expected(bundle, ids)
