"""Bundles whose weights were fitted to text."""

from __future__ import annotations

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


@pytest.mark.parametrize(("recipe", "share"), [("int4", 0.8), ("fast", 0.8), ("small", 0.85)])
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
