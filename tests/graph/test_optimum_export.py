"""Graphs that optimum-onnx exports: found, run, made to obey the contract, and right."""

import json
import os
import stat
import sys

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.errors import GraphError, SourceError
from edgekit.graph import optimum
from edgekit.graph.exported import read_export
from edgekit.graph.optimum import export_with_optimum, find_optimum, install_optimum
from edgekit.run.runtime import onnxruntime
from edgekit.testing import tiny_checkpoint, tiny_tokenizer

LAYERS, HEADS, SIZE, VOCAB = 2, 4, 16, 384


def gpt2(path):
    """A tiny random GPT-2 as transformers saves it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=HEADS * SIZE, n_layer=LAYERS, n_head=HEADS, bos_token_id=1,
        eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(tiny_tokenizer())
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    try:
        python = find_optimum()
    except GraphError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    folder = tmp_path_factory.mktemp("gpt2")
    reference = gpt2(folder)
    ticks = []
    export = export_with_optimum(
        str(folder), opset=21, python=python, progress=lambda task, done, total, unit: ticks.append((task, unit))
    )
    assert ("export with optimum", "s") in ticks
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    ir.save(export.graph, path, external_data="model.onnx_data")
    return reference, export.graph, export.checkpoint, onnxruntime.InferenceSession(path)


def run(session, tokens, past):
    """One run: logits [S, V] and the new cache."""
    length = past["past_key_values.0.key"].shape[2]
    feed = {
        "input_ids": np.array([tokens]),
        "attention_mask": np.ones((1, length + len(tokens)), np.int64),
        "position_ids": np.arange(length, length + len(tokens))[None],
    }
    names = [output.name for output in session.get_outputs()]
    results = dict(zip(names, session.run(names, feed | past), strict=True))
    logits = results.pop("logits")[0]
    return logits, {name.replace("present", "past_key_values"): value for name, value in results.items()}


@pytest.mark.optimum
def test_greedy_tokens_equal_torchs(exported):
    import torch

    reference, _, _, session = exported
    prompt = [17, 250, 99, 4, 301]
    expected = reference.generate(torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False)[0, 5:]
    expected_logits = reference(torch.tensor([prompt])).logits[0].detach().numpy()
    nothing = np.zeros((1, HEADS, 0, SIZE), np.float32)
    past = {f"past_key_values.{i}.{kind}": nothing for i in range(LAYERS) for kind in ("key", "value")}
    logits, past = run(session, prompt, past)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4 * np.abs(expected_logits).max())
    tokens = []
    for _ in range(24):
        logits[-1, 2] = -np.inf  # min_new_tokens keeps the end token out
        tokens.append(int(logits[-1].argmax()))
        logits, past = run(session, tokens[-1:], past)
    assert tokens == expected.tolist()


@pytest.mark.optimum
def test_the_contract_is_obeyed(exported):
    _, graph, _, _ = exported
    caches = [f"{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{c}" for c in caches)]
    assert [v.name for v in graph.graph.inputs] == names
    assert [v.name for v in graph.graph.outputs] == ["logits", *(f"present.{c}" for c in caches)]
    past = graph.graph.inputs[3].shape
    assert [str(d) for d in past] == ["batch_size", str(HEADS), "past_sequence_length", str(SIZE)]
    assert graph.opset_imports[""] == 21
    assert not [n for n in graph.graph if n.op_type == "Gemm"]


@pytest.mark.optimum
def test_the_checkpoint_tells_what_the_graph_holds(exported):
    reference, graph, checkpoint, _ = exported
    spec, weights = checkpoint.spec, checkpoint.weights
    assert (spec.architecture, spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == ("gpt2", 2, 4, 4, 16)
    assert (spec.hidden_size, spec.intermediate_size, spec.vocab_size, spec.context_length) == (64, 256, VOCAB, 128)
    assert (spec.tied, spec.eos_token_ids, spec.bos_token_id) == (True, (2,), 1)
    assert checkpoint.provenance.kind == "optimum" and len(checkpoint.provenance.sha256) == 64
    state = reference.state_dict()
    table = state["transformer.wte.weight"].numpy()
    np.testing.assert_array_equal(weights.read("model.embed_tokens.weight"), table)
    np.testing.assert_array_equal(weights.read("model.embed_tokens.weight", 3, 5), table[3:5])
    name = "transformer.h.1.mlp.c_fc.weight"  # GPT-2's own layout is [inputs, outputs]
    assert weights.shape(name) == (256, 64)
    np.testing.assert_array_equal(weights.read(name), state[name].numpy().T)
    assert list(graph.graph.initializers[name].const_value.shape) == [64, 256]
    assert "lm_head.weight" not in weights.names()
    assert {f.name for f in checkpoint.files} >= {"config.json", "generation_config.json", "tokenizer.json"}


@pytest.mark.optimum
def test_what_optimum_refuses_is_told(exported, tmp_path):
    config = tiny_checkpoint(tmp_path / "model") / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"nosuchmodel"'))
    with pytest.raises(GraphError, match=r"optimum cannot export .*model.*nosuchmodel") as caught:
        export_with_optimum(str(tmp_path / "model"), opset=21)
    assert "optimum.exporters.onnx" in caught.value.hint


# --- without optimum ----------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No optimum in this interpreter, in the variable or in the cache."""
    monkeypatch.setattr(optimum, "find_spec", lambda name: None)
    monkeypatch.delenv("EDGEKIT_OPTIMUM_PYTHON", raising=False)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    return tmp_path


def interpreter(path, script="exit 0"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_without_optimum_the_hint_is_the_one_command(nowhere):
    with pytest.raises(GraphError, match="optimum-onnx") as caught:
        find_optimum()
    assert "edgekit doctor --install optimum" in caught.value.hint


def test_the_lookup_goes_from_here_to_the_variable_to_the_cache(nowhere, monkeypatch):
    cached = interpreter(nowhere / "optimum/bin/python")
    assert find_optimum() == cached
    named = interpreter(nowhere / "mine")
    monkeypatch.setenv("EDGEKIT_OPTIMUM_PYTHON", str(named))
    assert find_optimum() == named
    (nowhere / "site/optimum/exporters/onnx").mkdir(parents=True)
    spec = type("Spec", (), {"submodule_search_locations": [str(nowhere / "site/optimum")]})
    monkeypatch.setattr(optimum, "find_spec", lambda name: spec)
    assert str(find_optimum()) == sys.executable


def test_a_variable_that_names_nothing(nowhere, monkeypatch):
    monkeypatch.setenv("EDGEKIT_OPTIMUM_PYTHON", str(nowhere / "gone"))
    with pytest.raises(GraphError, match=r"EDGEKIT_OPTIMUM_PYTHON=.*gone"):
        find_optimum()


@pytest.mark.parametrize(
    "script", ["echo first; echo 'ValueError: not this one'; exit 1", "echo 'ValueError: not this one'"]
)
def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch, script):
    monkeypatch.setattr(optimum.tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    model = tiny_checkpoint(tmp_path / "model")
    with pytest.raises(GraphError, match="ValueError: not this one"):
        export_with_optimum(str(model), opset=21, python=interpreter(tmp_path / "python", script))
    assert list((tmp_path / "temp").iterdir()) == []


def test_an_interpreter_that_cannot_start(tmp_path):
    with pytest.raises(GraphError, match="No such file"):
        export_with_optimum("some/model", opset=21, python=tmp_path / "gone")


def test_a_failed_installation_leaves_nothing(nowhere, tmp_path_factory, monkeypatch):
    script = """
        case $2 in
            venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
            pip) echo "ERROR: No matching distribution found"; echo "advice"; exit 1 ;;
        esac"""
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path_factory.mktemp("base") / "python", script)))
    with pytest.raises(GraphError, match=r"cannot install optimum-onnx in .*: ERROR: No matching distribution found"):
        install_optimum()
    assert list(nowhere.iterdir()) == []


def test_an_installation_that_works_is_found(nowhere, monkeypatch, tmp_path_factory):
    nothing = tmp_path_factory.mktemp("lock") / "lock.txt"
    nothing.write_text("# needs no network\n")
    monkeypatch.setattr(optimum, "LOCK", nothing)
    assert install_optimum() == find_optimum() == nowhere / "optimum/bin/python"
    assert os.access(find_optimum(), os.X_OK)


def test_transformers_5_rope_is_told_to_transformers_4(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    assert optimum._stage(model, tmp_path / "same") == model
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    (model / "config.json").write_text(json.dumps(config))
    staged = optimum._stage(model, tmp_path / "staged")
    told = json.loads((staged / "config.json").read_text())
    assert (told["rope_theta"], told["rope_scaling"]) == (5000.0, {"rope_type": "linear", "factor": 2.0})
    assert (staged / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def hand_made(folder, *, leave_out=(), extra=None, heads=2):
    """An "export" with one Gemm of each kind, as torch's exporter writes them, and a cache that goes round."""
    random = np.random.default_rng(0)
    weights = {
        "wte": random.standard_normal((VOCAB, 32)), "fc.weight": random.standard_normal((32, 48)),
        "fc.bias": random.standard_normal(48), "proj.weight": random.standard_normal((32, 48)),
    }  # fmt: skip
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    weights["onnx::MatMul_7"] = np.ascontiguousarray(weights["wte"].T)
    nodes = [
        ("Gather", ["wte", "input_ids"], "x", {}),
        ("Reshape", ["x", "flat"], "x2", {}),
        ("Gemm", ["x2", "fc.weight", "fc.bias"], "h", {}),
        ("Gemm", ["h", "proj.weight"], "y", {"transB": 1}),
        ("Reshape", ["y", "round"], "z", {}),
        ("MatMul", ["z", "onnx::MatMul_7"], "logits", {}),
        *(("Identity", [f"past_key_values.0.{kind}"], f"present.0.{kind}", {}) for kind in ("key", "value")),
    ]
    cache = ["batch_size", heads, "past", 8]
    inputs = {"input_ids": (ir.DataType.INT64, ["batch_size", "s"]), "attention_mask": (ir.DataType.INT64, ["b", "t"])}
    inputs |= {f"past_key_values.0.{kind}": (ir.DataType.FLOAT, cache) for kind in ("key", "value")}
    inputs |= {extra: (ir.DataType.INT64, ["b"])} if extra else {}
    values = {n: ir.Value(name=n, type=ir.TensorType(t), shape=ir.Shape(s)) for n, (t, s) in inputs.items()}
    constants = weights | {"flat": np.array([-1, 32]), "round": np.array([1, -1, 32])}
    for name, value in constants.items():
        values[name] = ir.Value(name=name, const_value=ir.tensor(value, name=name))
    made = []
    for i, (kind, used, result, attributes) in enumerate(nodes):
        made.append(ir.node(kind, [values[u] for u in used], attributes, name=f"/layer.{i}/{kind}"))
        values[result] = made[-1].outputs[0]
        values[result].name = result
    shapes = {"logits": ["b", "s", VOCAB], "present.0.key": cache, "present.0.value": cache}
    for name, shape in shapes.items():
        values[name].shape, values[name].type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    outputs = [values[n] for n in ("logits", "present.0.key", "present.0.value") if n not in leave_out]
    graph = ir.Graph(
        [values[n] for n in inputs if n not in leave_out], outputs, nodes=made, opset_imports={"": 18}, name="made",
        initializers=[values[n] for n in constants],
    )  # fmt: skip
    out = folder / "work/export"
    out.mkdir(parents=True)
    ir.save(ir.Model(graph, ir_version=8), out / "model.onnx")
    for name, text in {"config": '{"model_type": "made"}', "generation_config": "{}"}.items():
        (out / f"{name}.json").write_text(text)
    (out / "tokenizer.json").write_text("{}")
    (out / "tokenizer_config.json").write_text("{}")
    return out, weights


def test_gemms_become_products_and_weights_get_names(tmp_path):
    out, weights = hand_made(tmp_path)
    export = read_export(out, tmp_path / "none", "made", 21)
    graph, checkpoint = export.graph, export.checkpoint
    kinds = [node.op_type for node in graph.graph]
    assert "Gemm" not in kinds and kinds.count("FusedMatMul") == 1
    assert set(checkpoint.weights.names()) == {"model.embed_tokens.weight", "fc.weight", "fc.bias", "proj.weight"}
    np.testing.assert_array_equal(checkpoint.weights.read("fc.weight"), weights["fc.weight"].T)
    np.testing.assert_array_equal(checkpoint.weights.read("proj.weight", 2, 9), weights["proj.weight"][2:9])
    assert [v.name for v in graph.graph.inputs][:3] == ["input_ids", "attention_mask", "position_ids"]
    ir.save(graph, tmp_path / "saved.onnx", external_data="saved.onnx_data")
    session = onnxruntime.InferenceSession(tmp_path / "saved.onnx")
    nothing = np.zeros((1, 2, 0, 8), np.float32)
    logits, _ = run(session, [5, 9], {"past_key_values.0.key": nothing, "past_key_values.0.value": nothing})
    hidden = weights["wte"][[5, 9]] @ weights["fc.weight"] + weights["fc.bias"]
    expected = hidden @ weights["proj.weight"].T @ weights["wte"].T
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-2)


def test_the_files_live_as_long_as_they_are_needed(tmp_path):
    out, weights = hand_made(tmp_path)
    checkpoint = read_export(out, tmp_path / "none", "made", 21).checkpoint
    np.testing.assert_array_equal(checkpoint.weights.read("model.embed_tokens.weight"), weights["wte"])
    assert out.exists()
    del checkpoint
    assert not out.parent.exists()


def test_damaged_and_unknown_weights_are_named(tmp_path):
    out, _ = hand_made(tmp_path)
    data = ir.load(out / "model.onnx")
    data.graph.initializers["fc.bias"].const_value = ir.tensor(np.full(48, np.nan, np.float32), name="fc.bias")
    ir.save(data, out / "model.onnx")
    checkpoint = read_export(out, tmp_path / "none", "made", 21).checkpoint
    with pytest.raises(SourceError, match=r"fc\.bias"):
        checkpoint.weights.read("fc.bias")
    with pytest.raises(SourceError, match="no weight 'nothing'"):
        checkpoint.weights.read("nothing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"leave_out": ["present.0.value"]}, r"no present\.0\.value"),
        ({"extra": "encoder_hidden_states"}, "unexpected input 'encoder_hidden_states'"),
        ({"heads": "heads"}, r"not \[B, heads, P, size\]"),
    ],
)
def test_what_is_no_decoder_is_refused(tmp_path, change, words):
    out, _ = hand_made(tmp_path, **change)
    with pytest.raises(GraphError, match=words):
        read_export(out, tmp_path / "none", "made", 21)


def test_a_missing_tokenizer_is_named(tmp_path):
    out, _ = hand_made(tmp_path)
    (out / "tokenizer.json").unlink()
    with pytest.raises(GraphError, match=r"tokenizer\.json"):
        read_export(out, tmp_path / "none", "made", 21)
