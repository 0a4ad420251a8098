"""The float model in NumPy, which a probe's reference comes from, against the bundle in ONNX Runtime."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.build.npu_emulate import make_probe
from edgekit.build.pipeline import build_bundle, draw
from edgekit.config.recipe import builtin_recipe
from edgekit.quantize import reference_logits
from edgekit.run import load_runner
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint

RECIPE = builtin_recipe("fp32")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_it_is_what_the_runner_computes(architecture: str, tied: bool, tmp_path: Path) -> None:
    window = {"sliding_window": 6} if architecture == "mistral" else {}
    folder = tiny_checkpoint(tmp_path / "m", architecture, tie_word_embeddings=tied, **window)
    runner = load_runner(build_bundle(str(folder), precision="fp32", out=tmp_path / "b"), threads=1)
    tokens = np.random.default_rng(0).integers(0, 384, 40).tolist()
    checkpoint = open_model(str(folder))
    for rotate in (False, True):
        found = reference_logits(*draw(checkpoint, replace(RECIPE, rotate=rotate), 21), tokens)
        assert found.shape == (40, 384)
        np.testing.assert_allclose(found, runner.logits(tokens), atol=1e-4 * np.abs(found).max())


def test_a_probe_is_of_the_model_before_it_was_smoothed_or_turned(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    checkpoint = open_model(str(folder))
    plain = make_probe(checkpoint, 24)
    turned = replace(RECIPE, smooth=0.5, rotate=True)
    changed = reference_logits(*draw(checkpoint, turned, 21), plain.tokens)
    assert (len(plain.tokens), plain.logits.shape) == (24, (24, 384))
    np.testing.assert_allclose(plain.logits, changed, atol=1e-4 * np.abs(plain.logits).max())
    runner = load_runner(build_bundle(str(folder), precision="fp32", out=tmp_path / "b"), threads=1)
    np.testing.assert_allclose(plain.logits, runner.logits(plain.tokens), atol=1e-4 * np.abs(plain.logits).max())
