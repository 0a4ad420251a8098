"""A build that was killed is gone on with, and gives the bytes of one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import build_bundle
from edgekit.bundle.journal import JOURNAL
from edgekit.testing import tiny_checkpoint
from edgekit.types import RESUMED

KILLED = """
import os, signal, sys
from edgekit.build.pipeline import build_bundle
from edgekit.bundle.external import _Sink
append, left = _Sink.append, [int(sys.argv[3])]
def count(sink, *rest):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    append(sink, *rest)
_Sink.append = count
build_bundle(sys.argv[1], out=sys.argv[2], target=sys.argv[4], precision=sys.argv[5])
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Told:
    """A Progress that keeps how many bytes were taken over."""

    resumed = 0

    def __call__(self, task, done, total, unit="B"):
        if task == RESUMED:
            self.resumed = done


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=6)


@pytest.fixture(scope="module")
def whole(checkpoint):
    """The bundle that nothing interrupted."""
    return tree(build_bundle(str(checkpoint), out=checkpoint.parent / "whole").path)


def killed(checkpoint, out, tensors, target="cpu", precision="int4"):
    """The folder that a build leaves which is killed after so many tensors."""
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(out), str(tensors), target, precision]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = out.parent.glob(f".{out.name}.edgekit-*")
    assert not out.exists()
    return left


@pytest.mark.parametrize("tensors", [0, 1, 7, 20])
def test_the_bytes_are_those_of_a_build_that_was_not_killed(checkpoint, whole, tmp_path, tensors):
    left = killed(checkpoint, tmp_path / "out", tensors)
    assert len((left / JOURNAL).read_text().splitlines()) == tensors + 1
    told = Told()
    bundle = build_bundle(str(checkpoint), out=tmp_path / "out", progress=told)
    assert (told.resumed > 0) == (tensors > 0)
    assert tree(bundle.path) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_finished_tensors_are_not_quantized_again(tmp_path, monkeypatch):
    # Large enough for no part of a linear weight to lie in the protobuf, which is written last.
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 32, "num_key_value_heads": 16}
    checkpoint = tiny_checkpoint(tmp_path / "tiny", **sizes)
    from edgekit.quantize import model

    quantized = []
    original = model.quantize_weight
    monkeypatch.setattr(
        model, "quantize_weight", lambda w, name, *rest: quantized.append(name) or original(w, name, *rest)
    )
    build_bundle(str(checkpoint), out=tmp_path / "whole")
    everything = list(quantized)
    killed(checkpoint, tmp_path / "out", 20)
    quantized.clear()
    build_bundle(str(checkpoint), out=tmp_path / "out")
    assert 0 < len(quantized) < len(everything)
    assert not [name for name in quantized if name.startswith("model.layers.0.self_attn.")]


def test_a_build_that_is_killed_twice(checkpoint, whole, tmp_path):
    first = killed(checkpoint, tmp_path / "out", 6)
    left = killed(checkpoint, tmp_path / "out", 5)
    assert left != first
    assert len((left / JOURNAL).read_text().splitlines()) == 12
    assert tree(build_bundle(str(checkpoint), out=tmp_path / "out").path) == whole


def test_a_damaged_tensor_is_made_again(checkpoint, whole, tmp_path):
    left = killed(checkpoint, tmp_path / "out", 20)
    lines = [json.loads(line) for line in (left / JOURNAL).read_text().splitlines()]
    (data,) = left.rglob("*.onnx_data")
    with data.open("r+b") as file:
        file.seek(lines[10]["bytes"] - 1)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    told = Told()
    bundle = build_bundle(str(checkpoint), out=tmp_path / "out", progress=told)
    assert told.resumed == lines[9]["bytes"]
    assert tree(bundle.path) == whole


def test_a_file_that_lost_its_end(checkpoint, whole, tmp_path):
    """After a power failure the journal may know of bytes that the disk never got; its own last line may be half."""
    left = killed(checkpoint, tmp_path / "out", 20)
    (data,) = left.rglob("*.onnx_data")
    half = data.stat().st_size // 2
    os.truncate(data, half)
    os.truncate(left / JOURNAL, (left / JOURNAL).stat().st_size - 5)
    told = Told()
    bundle = build_bundle(str(checkpoint), out=tmp_path / "out", progress=told)
    assert 0 < told.resumed <= half
    assert tree(bundle.path) == whole


@pytest.mark.parametrize("changed", ["source", "recipe", "target"])
def test_other_inputs_begin_anew(tmp_path, changed):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", num_hidden_layers=6)
    target, precision = ("portable" if changed == "target" else "cpu"), ("int8" if changed == "recipe" else "int4")
    killed(checkpoint, tmp_path / "out", 20, target, precision)
    if changed == "source":
        tiny_checkpoint(checkpoint, seed=1, num_hidden_layers=6)
    told = Told()
    bundle = build_bundle(str(checkpoint), out=tmp_path / "out", progress=told)
    assert told.resumed == 0
    assert tree(bundle.path) == tree(build_bundle(str(checkpoint), out=tmp_path / "fresh").path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "out", "tiny"]


def test_the_person_is_told(checkpoint, tmp_path):
    killed(checkpoint, tmp_path / "out", 20)
    command = [sys.executable, "-m", "edgekit", "build", str(checkpoint), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resuming a killed build: " in done.stderr
