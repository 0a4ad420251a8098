"""What a folder holds besides a model, or in its place: told in a line, or refused for what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from edgekit import words
from edgekit.build.pipeline import build_bundle
from edgekit.cli.tables import inspection_tables
from edgekit.errors import SourceError
from edgekit.inspect.model import inspect_model
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint

MATRIX = np.ones((4, 8), np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m", tie_word_embeddings=False)


def add(folder: Path, **tensors: np.ndarray) -> None:
    file = folder / "model.safetensors"
    more = {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({**load_file(file), **more}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "v_head.summary.weight",
        "score.weight",
        "mtp.layers.0.eh_proj.weight",
        "model.mtp_layers.0.eh_proj.weight",
        "model.layers.99.eh_proj.weight",
        "medusa_head.0.linear.weight",
    ],
)
def test_what_is_left_aside_is_told(name: str, folder: Path, tmp_path: Path) -> None:
    add(folder, **{name: MATRIX, "model.layers.0.self_attn.rotary_emb.inv_freq": MATRIX[0]})
    AutoModelForCausalLM.from_pretrained(folder)  # leaves it aside too
    assert open_model(str(folder)).left_aside == (name,)
    rows = list(inspection_tables(inspect_model(folder), tensors=False))
    assert f"1 tensor that the model does not use: '{name}'" in str(vars(rows[0]))
    told: list[str] = []
    build_bundle(str(folder), precision="int8", out=tmp_path / "b", note=told.append)
    assert told == [f"left aside: {words.left_aside((name,))}"]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.bool_])
def test_tables_of_whole_numbers_are_left_aside(kind: type, folder: Path) -> None:
    """A mask, a counter, a list of positions: what the model would use of them follows from its config."""
    mask = {"model.layers.0.self_attn.bias": np.ones((1, 1, 8, 8), kind)}
    add(folder, **mask, position_ids=np.ones((1, 8), kind))
    AutoModelForCausalLM.from_pretrained(folder)
    assert open_model(str(folder)).left_aside == tuple(mask)


def test_a_model_without_anything_beside_it_is_told_nothing(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    build_bundle(str(folder), precision="int8", out=tmp_path / "b", note=told.append)
    assert not told
    assert not inspect_model(folder).left_aside


def test_several_tensors_are_counted() -> None:
    assert words.left_aside(("a.weight", "b.weight")) == "2 tensors that the model does not use, first 'a.weight'"


def replace_weights(*files: str, remove: tuple[str, ...] = ("model.safetensors",)) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in remove:
            (folder / name).unlink()
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"?" * 64)

    return change


WITHOUT_CONFIG = ("model.safetensors", "config.json")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (replace_weights("onnx/model.onnx"), "holds ONNX weights", "safetensors"),
        (replace_weights("weights.npz"), "holds MLX weights", "safetensors"),
        (replace_weights("global_step1/mp_rank_00_model_states.pt"), "pickle", "save_pretrained"),
        (replace_weights("a-Q4.gguf", "b-Q8.gguf"), "'a-Q4.gguf', 'b-Q8.gguf'", "one of the GGUF files"),
        (replace_weights("a.gguf", "mmproj-a.gguf"), "'a.gguf'", "to use the GGUF file, pass its path"),
        (replace_weights("a.gguf", remove=WITHOUT_CONFIG), "no config.json, but has 'a.gguf'", "a.gguf"),
        (replace_weights("mmproj-a.gguf", "z.gguf", remove=WITHOUT_CONFIG), "no config.json", "z.gguf"),
        (
            replace_weights("params.json", "consolidated.00.pth", remove=WITHOUT_CONFIG),
            "original release",
            "config.json",
        ),
    ],
    ids=["onnx", "mlx", "deepspeed", "several gguf", "gguf and projector", "gguf", "projector first", "llama's own"],
)
def test_other_files_are_named_for_what_they_are(
    change: Callable[[Path], None], message: str, hint: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(SourceError) as caught:
        open_model(str(folder))
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("loads", [{"load_in_4bit": False, "load_in_8bit": False}, {"load_in_8bit": False}])
def test_bitsandbytes_that_quantizes_nothing(loads: dict[str, bool], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", **loads}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_model(str(folder))
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()[name].numpy()
    np.testing.assert_array_equal(checkpoint.weights.read(name), expected)
    config["quantization_config"]["load_in_4bit"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="already quantized"):
        open_model(str(folder))


ROPE = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("newer", "wrong"),
    [
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, ""),
        ({"type": "linear", "factor": 2.0}, ""),
        ({"rope_type": "default", "rope_theta": 10000.0}, "rope_type"),
        ({"rope_type": "linear", "factor": 4.0}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, "rope_theta"),
    ],
)
def test_two_dialects_of_rope_must_agree(newer: dict[str, object], wrong: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": 10000.0, "rope_scaling": ROPE, "rope_parameters": newer}
    (folder / "config.json").write_text(json.dumps(config))
    if not wrong:
        rope = open_model(str(folder)).spec.rope
        assert (rope.kind, rope.factor, rope.theta) == ("linear", 2.0, 10000.0)
        return
    with pytest.raises(SourceError, match=f"'{wrong}' is .* with rope_scaling, and .* in rope_parameters"):
        open_model(str(folder))
