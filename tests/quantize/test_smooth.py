from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.build.pipeline import build_bundle, draw
from edgekit.config.recipe import builtin_recipe, load_recipe
from edgekit.errors import ConfigError, SourceError
from edgekit.quantize import smooth
from edgekit.run.runtime import onnxruntime
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint


def loud_checkpoint(path, **overrides):
    """A tiny model in which every 13th channel of the norms is ten times as loud as its neighbours."""
    folder = tiny_checkpoint(path, **overrides)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("layernorm.weight"):
            weight[::13] *= 10
    save_file(weights, folder / "model.safetensors")
    return folder


def feeds_for(spec, tokens):
    empty = {
        f"past_key_values.{i}.{kind}": np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
        for i in range(spec.layers)
        for kind in ("key", "value")
    }
    positions = np.arange(tokens.shape[1])[None]
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": positions, **empty}


def logits(model, spec, tokens):
    return onnxruntime.InferenceSession(model).run(["logits"], feeds_for(spec, tokens))[0]


def test_the_smoothed_model_computes_the_same_function(tmp_path):
    checkpoint = open_model(str(loud_checkpoint(tmp_path / "model")))
    tokens = np.random.default_rng(0).integers(0, 384, (1, 24))
    plain, _ = draw(checkpoint, builtin_recipe("fp32"), 21)
    recipe = load_recipe("int8")
    assert recipe.smooth > 0
    smoothed, weights = draw(checkpoint, recipe, 21)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(weights.read(name), checkpoint.weights.read(name))
    a, b = (logits(ir.to_proto(m).SerializeToString(), checkpoint.spec, tokens) for m in (plain, smoothed))
    assert np.abs(a - b).max() <= 2e-6 * np.abs(a).max()


def test_biases_are_divided_with_their_rows(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgekit.testing import tiny_config, tiny_tokenizer

    torch.manual_seed(0)
    left_out = ("architectures", "model_type", "torch_dtype")
    values = {k: v for k, v in tiny_config(mlp_bias=True, attention_bias=True).items() if k not in left_out}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer())
    checkpoint = open_model(str(tmp_path))
    assert checkpoint.spec.mlp_bias
    tokens = np.random.default_rng(0).integers(0, 300, (1, 24))
    smoothed, _ = draw(checkpoint, load_recipe("int8"), 21)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    found = logits(ir.to_proto(smoothed).SerializeToString(), checkpoint.spec, tokens)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_scales_are_powers_of_two_and_rows_may_be_read_in_parts(tmp_path):
    checkpoint = open_model(str(loud_checkpoint(tmp_path / "model")))
    graph, _ = draw(checkpoint, builtin_recipe("fp32"), 21)
    weights = smooth(graph, checkpoint.weights, 0.5)
    for name in checkpoint.weights.names():
        before, after = checkpoint.weights.read(name), weights.read(name)
        ratio = np.log2(after[before != 0] / before[before != 0])
        assert np.array_equal(ratio, np.rint(ratio)), name
        assert np.abs(ratio).max() <= 12
        assert np.array_equal(weights.read(name, 3, 7), after[3:7]), name
    norm = "model.layers.0.input_layernorm.weight"
    ratio = weights.read(norm) / checkpoint.weights.read(norm)
    assert ratio[::13].max() < np.median(ratio)


def test_two_observations_agree_to_the_bit(tmp_path):
    checkpoint = open_model(str(loud_checkpoint(tmp_path / "model")))
    first, second = (draw(checkpoint, load_recipe("int8"), 21)[1] for _ in range(2))
    assert all(np.array_equal(first.read(n), second.read(n)) for n in first.names())


class Watched:
    """Weights that note what is read of them, and fail at one name."""

    def __init__(self, weights, broken=""):
        self.weights, self.broken, self.seen = weights, broken, []
        self.names, self.shape, self.stored, self.nbytes = weights.names, weights.shape, weights.stored, weights.nbytes

    def read(self, name, start=0, stop=None):
        if name == self.broken:
            raise SourceError(f"{name} is damaged", "")
        self.seen.append(name)
        return self.weights.read(name, start, stop)


def test_the_first_layer_is_scaled_before_the_last_one_is_read(tmp_path):
    checkpoint = open_model(str(loud_checkpoint(tmp_path / "model")))
    graph, _ = draw(checkpoint, builtin_recipe("fp32"), 21)
    whole = smooth(graph, checkpoint.weights, 0.5)
    last = max(n for n in checkpoint.weights.names() if n.endswith("gate_proj.weight"))
    expected = {n: whole.read(n) for n in reversed(checkpoint.weights.names())}
    watched = Watched(checkpoint.weights)
    weights = smooth(graph, watched, 0.5)
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(weights.read(name), expected[name])
    assert name in watched.seen
    assert last not in watched.seen
    assert all(np.array_equal(weights.read(n), expected[n]) for n in checkpoint.weights.names())


def test_several_threads_read_the_same_scales(tmp_path):
    checkpoint = open_model(str(loud_checkpoint(tmp_path / "model")))
    graph, _ = draw(checkpoint, builtin_recipe("fp32"), 21)
    names = checkpoint.weights.names()
    alone = smooth(graph, checkpoint.weights, 0.5)
    together = smooth(graph, checkpoint.weights, 0.5)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(together.read, reversed(names)))
    assert all(np.array_equal(a, alone.read(n)) for n, a in zip(reversed(names), found, strict=True))


def test_weights_that_cannot_be_observed_are_never_read_without_their_scales(tmp_path):
    checkpoint = open_model(str(loud_checkpoint(tmp_path / "model")))
    graph, _ = draw(checkpoint, builtin_recipe("fp32"), 21)
    weights = smooth(graph, Watched(checkpoint.weights, broken="model.layers.0.mlp.gate_proj.weight"), 0.5)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"gate_proj\.weight is damaged"):
            weights.read("model.layers.1.self_attn.q_proj.weight")


def test_smoothing_saves_what_8_bit_activations_lose_to_loud_channels(tmp_path):
    from dataclasses import replace

    folder = loud_checkpoint(tmp_path / "model", hidden_size=128, num_attention_heads=8)
    spec = open_model(str(folder)).spec
    tokens = np.random.default_rng(0).integers(0, 384, (1, 64))
    recipe = replace(load_recipe("int8"), accuracy_level=4, overrides=())
    exact = build_bundle(str(folder), out=tmp_path / "exact", precision="fp32")
    wanted = logits(str(exact.graph), spec, tokens)

    def lost(alpha):
        made = build_bundle(str(folder), out=tmp_path / str(alpha), recipe=replace(recipe, smooth=alpha))
        return np.square(logits(str(made.graph), spec, tokens) - wanted).mean()

    assert lost(0.5) < 0.8 * lost(0.0)


@pytest.mark.parametrize("value", ["1.5", "-0.5", '"much"'])
def test_a_recipe_that_asks_for_too_much_is_refused(tmp_path, value):
    file = tmp_path / "r.toml"
    file.write_text(
        f'name = "r"\nprecision = "int8"\nsmooth = {value}\n[linear]\nbits = 8\nblock_size = 32\nsymmetric = true\n'
    )
    with pytest.raises(ConfigError, match="smooth"):
        load_recipe(file)
