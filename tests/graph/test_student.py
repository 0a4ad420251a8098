"""Students as plain folders: transformers is the judge, for every family."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import CONFIGS, make_pair
from transformers import AutoModelForCausalLM

from edgekit.errors import LearnError
from edgekit.graph import build_graph
from edgekit.learn.layers import Layers
from edgekit.learn.student import write_student
from edgekit.learn.width import narrow
from edgekit.quantize import reference_logits
from edgekit.source import CutWeights, keep_layers, open_model

EVERY_FAMILY = [n for n in CONFIGS if n not in ("llama yarn in full", "qwen3 heads of 24", "smollm3 heads of 8")]
LAYERS = {2: (1,), 3: (0, 2), 4: (0, 1, 3)}


def cut(checkpoint, ffn=None, kv_heads=None):
    """A smaller model: fewer layers, channels and heads."""
    spec = checkpoint.spec
    layers = LAYERS[spec.layers]
    model = Layers(keep_layers(spec, layers), CutWeights(checkpoint.weights, layers))
    windows = np.random.default_rng(0).integers(4, spec.vocab_size, (2, 24))
    return layers, narrow(model, ffn or spec.intermediate_size, kv_heads or spec.kv_heads, windows)


def judged(folder, tokens):
    """Logits of the model that transformers opens, [S,V]."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        return model.eval().float()(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_transformers_and_edgekit_open_what_is_written_and_compute_the_same(name, tmp_path):
    checkpoint = make_pair(CONFIGS[name](), tmp_path / "teacher").checkpoint
    whole_heads = name.startswith("phi3") or checkpoint.spec.kv_heads == 1
    layers, small = cut(checkpoint, ffn=64, kv_heads=None if whole_heads else 1)
    out = write_student(tmp_path / "student", checkpoint, small.spec, small.weights, layers)
    opened = open_model(str(out))
    assert replace(opened.spec, eos_token_ids=()) == replace(small.spec, eos_token_ids=())
    tokens = np.random.default_rng(1).integers(4, 384, 20).tolist()
    graph = build_graph(opened.spec, opened.weights, opset=21, name="student")
    found = reference_logits(graph, opened.weights, tokens)
    assert np.abs(found - judged(out, tokens)).max() < 1e-4 * np.abs(found).max()
    drawn = build_graph(small.spec, small.weights, opset=21, name="student")
    assert np.array_equal(found, reference_logits(drawn, small.weights, tokens))


@pytest.mark.parametrize("name", ["llama explicit head_dim, biases", "qwen3", "smollm3", "phi3", "mistral"])
def test_llama_cpp_has_a_name_for_every_tensor(name, tmp_path):
    """Its converter reads the class from `architectures`, and maps names by these tables."""
    import gguf
    from safetensors import safe_open

    checkpoint = make_pair(CONFIGS[name](), tmp_path / "teacher").checkpoint
    layers, small = cut(checkpoint, ffn=64)
    out = write_student(tmp_path / "student", checkpoint, small.spec, small.weights, layers)
    kind = {"mistral": "llama"}.get(checkpoint.spec.architecture, checkpoint.spec.architecture)
    known = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == kind), len(layers))
    with safe_open(out / "model.safetensors", "np") as file:
        assert all(known.get_name(stored, try_suffixes=(".weight", ".bias")) for stored in file.keys())  # noqa: SIM118
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == json.loads((tmp_path / "teacher" / "config.json").read_text())["architectures"]
    assert config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]) == checkpoint.spec.head_dim


@pytest.fixture
def teacher(tmp_path):
    return make_pair(CONFIGS["llama"](), tmp_path / "teacher").checkpoint


def test_lists_of_layers_are_cut_to_those_that_are_kept(tmp_path):
    from transformers import Qwen2Config, SmolLM3Config

    checkpoint = make_pair(CONFIGS["smollm3"](), tmp_path / "a").checkpoint
    layers, small = cut(checkpoint)
    out = write_student(tmp_path / "b", checkpoint, small.spec, small.weights, layers)
    config = SmolLM3Config.from_pretrained(out)
    assert config.no_rope_layers == [1, 0, 0]
    checkpoint = make_pair(CONFIGS["qwen2 windows above"](), tmp_path / "c").checkpoint
    layers, small = cut(checkpoint)
    out = write_student(tmp_path / "d", checkpoint, small.spec, small.weights, layers)
    config = Qwen2Config.from_pretrained(out)
    assert config.max_window_layers == 1
    assert config.layer_types == ["full_attention", "sliding_attention"]


def test_bfloat16_is_the_nearest(teacher, tmp_path):
    layers, small = cut(teacher)
    out = write_student(tmp_path / "student", teacher, small.spec, small.weights, layers, stored="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    name = "model.layers.0.mlp.up_proj.weight"
    expected = torch.tensor(small.weights.read(name)).to(torch.bfloat16)
    assert torch.equal(model.state_dict()[name], expected)


def test_the_tokenizer_s_files_are_the_teacher_s_own(teacher, tmp_path):
    layers, small = cut(teacher)
    from edgekit.types import SideFile

    cards = (SideFile("README.md", b"# A student\n"), SideFile("run.json", b"{}"))
    out = write_student(tmp_path / "student", teacher, small.spec, small.weights, layers, cards=cards)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "teacher" / name).read_bytes()
    assert (out / "README.md").read_bytes() == b"# A student\n"


class Broken(CutWeights):
    """Weights whose last tensor cannot be read."""

    def read(self, name, start=0, stop=None):
        if name == "lm_head.weight":
            raise LearnError("stopped", "go on")
        return super().read(name, start, stop)


def test_nothing_half_made_is_left(teacher, tmp_path):
    layers = (0,)
    spec = keep_layers(teacher.spec, layers)
    with pytest.raises(LearnError, match="stopped"):
        write_student(tmp_path / "student", teacher, spec, Broken(teacher.weights, layers), layers)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_what_stands_at_the_place_stays(teacher, tmp_path):
    spec, weights = keep_layers(teacher.spec, (0,)), CutWeights(teacher.weights, (0,))
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine.txt").write_text("mine")
    with pytest.raises(LearnError, match="already exists"):
        write_student(tmp_path / "student", teacher, spec, weights, (0,))
    assert [p.name for p in (tmp_path / "student").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_told_before_anything_is_written(teacher, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(9, 9, 1000))
    spec, weights = keep_layers(teacher.spec, (0,)), CutWeights(teacher.weights, (0,))
    with pytest.raises(LearnError, match="not enough disk space"):
        write_student(tmp_path / "student", teacher, spec, weights, (0,))
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_phi3_keeps_its_heads(tmp_path):
    checkpoint = make_pair(CONFIGS["phi3"](), tmp_path / "teacher").checkpoint
    layers, small = cut(checkpoint, kv_heads=2)
    with pytest.raises(LearnError, match="derives the head size"):
        write_student(tmp_path / "student", checkpoint, small.spec, small.weights, layers)
