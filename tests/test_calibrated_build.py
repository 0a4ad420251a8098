"""Bundles whose weights were fitted to text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from edgekit import build_bundle, open_bundle
from edgekit.corpus import PACKAGED
from edgekit.errors import ConfigError
from edgekit.run import load_runner
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=3))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and then it rests. " * 400)
    return path


def loss(bundle, model, tokens):
    """Mean squared error of the logits against the FP32 model's."""
    import onnx_ir  # noqa: F401

    from edgekit.build.pipeline import draw
    from edgekit.config.recipe import builtin_recipe
    from edgekit.quantize import reference_logits

    checkpoint = open_model(model)
    graph, weights = draw(checkpoint, builtin_recipe("fp32"), 21)
    expected = reference_logits(graph, weights, tokens)
    runner = load_runner(bundle)
    try:
        return float(np.square(runner.logits(tokens) - expected).mean())
    finally:
        runner.close()


@pytest.mark.parametrize(("recipe", "share"), [("int4", 0.85), ("fast", 0.9), ("small", 0.95)])
def test_the_logits_are_nearer_to_fp32(recipe, share, model, text, tmp_path):
    plain = build_bundle(model, recipe=recipe, out=tmp_path / "plain")
    fitted = build_bundle(model, recipe=recipe, calibrate=(str(text),), out=tmp_path / "fitted")
    assert [f.bytes for f in fitted.manifest.files if f.path.endswith("_data")] == [
        f.bytes for f in plain.manifest.files if f.path.endswith("_data")
    ]
    from edgekit.source import source_tokenizer

    tokens = source_tokenizer(open_model(model))("The brown dog jumps over the quick fox, and then the lazy one rests.")
    assert loss(fitted, model, tokens) < share * loss(plain, model, tokens)


def test_the_manifest_says_what_the_text_was(model, text, tmp_path):
    made = build_bundle(model, precision="int4", calibrate=(str(text),), out=tmp_path / "b")
    told = open_bundle(made.path).manifest.calibrated
    assert told is not None
    (source,) = told.sources
    assert (source.name, source.tokens, told.tokens) == ("mine.txt", told.tokens, 8192)
    assert len(source.sha256) == 64


def test_the_same_text_gives_the_same_bytes_and_another_others(model, text, tmp_path):
    hashes = [
        build_bundle(model, precision="int4", calibrate=(source,), out=tmp_path / name).sha256
        for name, source in (("a", str(text)), ("b", str(text)), ("c", PACKAGED))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.txt", b"A few words.", r"short\.txt: its text is shorter than a window"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "not UTF-8 at byte 3"),
        ("bad.jsonl", b'{"text": "one"}\n{"text": 2}\n', "line 2: no 'text'"),
        ("bad.jsonl", b'{"text": "one"}\n{"text": \n', "line 2"),
        (None, None, "no such file"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused_and_nothing_is_left(name, content, message, model, tmp_path):
    path = tmp_path / (name or "missing.txt")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        build_bundle(model, precision="int4", calibrate=(str(path),), out=tmp_path / "b")
    assert caught.value.hint
    assert not (tmp_path / "b").exists()


KILLED = """
import os, signal, sys
from edgekit.build.pipeline import build_bundle
from edgekit.quantize.kept import Kept
keep, left = Kept.keep, [int(sys.argv[4])]
def count(kept, *rest):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    keep(kept, *rest)
Kept.keep = count
build_bundle(sys.argv[1], out=sys.argv[2], precision="int4", calibrate=(sys.argv[3],))
"""


def killed(model, text, out, weights):
    """The file of what a build rounded that is killed after so many weights."""
    command = [sys.executable, "-c", KILLED, model, str(out), str(text), str(weights)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = out.parent.glob(f".{out.name}.edgekit-*")
    return left / "calibrated"


@pytest.fixture(scope="module")
def whole(model, text, tmp_path_factory):
    return build_bundle(model, precision="int4", calibrate=(str(text),), out=tmp_path_factory.mktemp("whole") / "b")


@pytest.fixture
def rounded(monkeypatch):
    """Names of the weights that are rounded from here on."""
    from edgekit.quantize.calibrate import Calibration

    names, original = [], Calibration._round
    monkeypatch.setattr(
        Calibration, "_round", lambda self, name, *rest: names.append(name) or original(self, name, *rest)
    )
    return names


@pytest.mark.parametrize("weights", [0, 1, 9, 20])
def test_a_killed_build_is_gone_on_with_and_gives_the_same_bytes(weights, model, text, whole, rounded, tmp_path):
    killed(model, text, tmp_path / "b", weights)
    made = build_bundle(model, precision="int4", calibrate=(str(text),), out=tmp_path / "b")
    assert len(rounded) == 21 - weights
    assert made.sha256 == whole.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_is_damaged_or_of_another_text_is_rounded_again(model, text, whole, rounded, tmp_path):
    kept = killed(model, text, tmp_path / "b", 9)
    with kept.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    made = build_bundle(model, precision="int4", calibrate=(str(text),), out=tmp_path / "b")
    assert len(rounded) == 21 - 8
    assert made.sha256 == whole.sha256
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().upper())
    rounded.clear()
    killed(model, text, tmp_path / "c", 9)
    build_bundle(model, precision="int4", calibrate=(str(other),), out=tmp_path / "c")
    assert len(rounded) == 21


def test_a_disk_without_room_for_what_is_kept_stops_no_build(model, text, whole, monkeypatch, tmp_path):
    from edgekit.quantize.kept import Kept

    monkeypatch.setattr(Kept, "__init__", lambda self, path, key: setattr(self, "_path", tmp_path / "no" / "where"))
    monkeypatch.setattr(Kept, "recall", lambda *_: None)
    made = build_bundle(model, precision="int4", calibrate=(str(text),), out=tmp_path / "b")
    assert made.sha256 == whole.sha256


def test_a_budget_is_spent_by_what_the_text_shows(model, text, monkeypatch, tmp_path):
    import edgekit.quantize.budget as budget

    read = []
    original = budget.measure_sensitivity
    monkeypatch.setattr(budget, "measure_sensitivity", lambda *a, **k: read.append(k["text"]) or original(*a, **k))
    build_bundle(model, precision="int4", bits=6.0, calibrate=(str(text),), out=tmp_path / "text")
    build_bundle(model, precision="int4", bits=6.0, out=tmp_path / "free")
    assert read[0].shape == (16, 512)
    assert read[1] is None


def test_a_model_writes_its_own_text(model, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.build.pipeline.CALIBRATION_TOKENS", 512)
    made = build_bundle(model, precision="int4", calibrate=("self",), out=tmp_path / "b")
    assert [source.name for source in made.manifest.calibrated.sources] == ["self"]
    assert made.manifest.calibrated.tokens == 512
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
