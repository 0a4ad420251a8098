"""The whole line for a model outside the native builder: exported, built, verified and measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgekit.bench.latency import bench_bundle
from edgekit.build.pipeline import build_bundle
from edgekit.config.recipe import load_recipe
from edgekit.errors import GraphError
from edgekit.graph.optimum import find_optimum
from edgekit.testing import tiny_tokenizer
from edgekit.verify.bundle import verify_bundle

pytestmark = [pytest.mark.optimum, pytest.mark.timeout(300)]


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    try:
        monkeypatch.setenv("EDGEKIT_OPTIMUM_PYTHON", str(find_optimum()))
    except GraphError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    path = tmp_path / "gpt2"
    shape = {"vocab_size": 384, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=2, initializer_range=0.2, **shape)).save_pretrained(path)
    (path / "tokenizer.json").write_text(tiny_tokenizer())
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return path


def test_an_exported_model_becomes_a_bundle_that_verifies(gpt2, tmp_path):
    # 8-bit activations cost a random model of this size more than the limit of a trained one.
    recipe = replace(load_recipe("int8"), accuracy_level=1)
    bundle = build_bundle(str(gpt2), recipe=recipe, exporter="optimum", out=tmp_path / "bundle")
    assert bundle.manifest.recipe.smooth == 0
    verification = verify_bundle(bundle, tokens=256, window=64)
    assert {c.name: c.status for c in verification.checks if c.status != "pass"} == {}
    assert 0 < verification.quality.kld_mean.value < 0.01
    measurement = bench_bundle(bundle, pp=(16,), tg=(4,), depth=(0, 8), repetitions=1)
    assert {name for name, _ in measurement.roofline} == {"pp16", "tg4@0", "tg4@8"}
