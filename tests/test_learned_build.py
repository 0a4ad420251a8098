"""Bundles from the codes that a training run left."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgekit import build_bundle, open_bundle
from edgekit.build.learned import CARD, FILE, save_learned
from edgekit.build.pipeline import draw
from edgekit.bundle.reading import read_initializers
from edgekit.config.recipe import builtin_recipe, load_recipe
from edgekit.errors import ConfigError
from edgekit.quantize import recipe_policy
from edgekit.quantize.model import load_method
from edgekit.quantize.tensor import quantize_weight
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.verify.bundle import verify_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


def leave(model, folder, recipe, change=lambda packed: packed):
    """What a run leaves: the codes of the data-free fit with every scale changed, and one norm."""
    checkpoint = open_model(str(model))
    _, weights = draw(checkpoint, recipe, 21)
    policy = recipe_policy(recipe, checkpoint.spec.layers)
    packed, grids, floats = {}, {}, {}
    with ThreadPoolExecutor(1) as pool:
        for name in weights.names():
            grid = policy(name, weights.shape(name))
            if grid is None:
                floats[name] = weights.read(name)
                continue
            grids[name] = grid
            fitted = quantize_weight(weights, name, grid, load_method(recipe.method), pool)
            packed[name] = change(replace(fitted, scales=fitted.scales * fitted.scales.dtype.type(0.5)))
    floats["model.norm.weight"] = floats["model.norm.weight"] * np.float32(1.25)
    folder.mkdir(exist_ok=True)
    save_learned(folder / FILE, packed, grids, floats, recipe)
    return packed


@pytest.fixture
def run(model, tmp_path):
    leave(model, tmp_path / "run", builtin_recipe("int4"))
    return tmp_path / "run"


def test_codes_and_floats_are_built_in_as_they_are(model, tmp_path):
    packed = leave(model, tmp_path / "run", builtin_recipe("int4"))
    bundle = build_bundle(str(model), out=tmp_path / "b", learned=tmp_path / "run")
    stored = read_initializers(bundle)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        assert np.array_equal(stored[f"{name}.codes"].numpy(), packed[name].codes)
        assert np.array_equal(stored[f"{name}.scales"].numpy(), packed[name].scales)
    norm = open_model(str(model)).weights.read("model.norm.weight")
    assert np.array_equal(stored["model.norm.weight"].numpy(), norm * np.float32(1.25))
    entry = next(t for t in bundle.manifest.tensors if t.name == "model.norm.weight")
    assert entry.error == pytest.approx(0.25)
    checks = verify_bundle(bundle, source=str(model), tokens=512, max_kld=1e9, min_top1=0).checks
    assert [c.name for c in checks if c.status == "fail"] == []


def test_a_students_own_codes_are_used_where_the_recipe_is_theirs(model, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(model, student)
    recipe = replace(builtin_recipe("int4"), smooth=0.0)
    packed = leave(model, student, recipe)
    said = []
    bundle = build_bundle(str(student), out=tmp_path / "b", note=said.append)
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(read_initializers(bundle)[f"{name}.codes"].numpy(), packed[name].codes)
    assert bundle.manifest.recipe.smooth == 0
    assert not said
    build_bundle(str(student), precision="int8", out=tmp_path / "b8", note=said.append)
    assert "not used" in said[0]
    assert "'int4', not 'int8'" in said[0]


def test_codes_of_another_recipe_are_refused(model, run, tmp_path):
    with pytest.raises(ConfigError, match="recipe 'int4', not 'small'"):
        build_bundle(str(model), recipe="small", out=tmp_path / "b", learned=run)
    with pytest.raises(ConfigError, match="has no learned"):
        build_bundle(str(model), out=tmp_path / "b", learned=tmp_path)
    assert not (tmp_path / "b").exists()


def changed(path, change):
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        about = dict(file.metadata())
    change(tensors, about)
    save_file(tensors, path, metadata=about)


UP = "model.layers.0.mlp.gate_proj.weight"


def put(name, value):
    return lambda tensors, about: tensors.__setitem__(name, value(tensors))


DAMAGE = {
    "codes missing": (lambda t, a: t.pop(f"{UP}.codes"), "is missing"),
    "zero points missing": (lambda t, a: t.pop(f"{UP}.zeros"), "is missing"),
    "codes of another shape": (put(f"{UP}.codes", lambda t: t[f"{UP}.codes"][:-1].copy()), "not uint8"),
    "scales of another type": (put(f"{UP}.scales", lambda t: t[f"{UP}.scales"].astype(np.float32)), "not float16"),
    "a scale of zero": (put(f"{UP}.scales", lambda t: t[f"{UP}.scales"] * np.float16(0)), "zero or not finite"),
    "a scale that is no number": (
        put(f"{UP}.scales", lambda t: t[f"{UP}.scales"] * np.float16(np.nan)),
        "zero or not finite",
    ),
    "a norm that is no number": (
        put("model.norm.weight", lambda t: t["model.norm.weight"] * np.float32(np.inf)),
        "not finite float32",
    ),
    "another format": (lambda t, a: a.update(format="pt"), "not what a training run"),
    "no recipe": (lambda t, a: a.pop("recipe"), "cannot be read"),
    "a recipe that is none": (lambda t, a: a.update(recipe='{"name": 3}'), "cannot be read"),
    "grids that are none": (lambda t, a: a.update(grids="[]"), "cannot be read"),
    "a grid of 3 bits": (
        lambda t, a: a.update(grids=a["grids"].replace('"bits": 4', '"bits": 3')),
        "no grid of 3 bits",
    ),
    "a grid of 16 bits": (
        lambda t, a: a.update(grids=a["grids"].replace('"bits": 4', '"bits": 16')),
        "no grid of 16 bits",
    ),
    "a norm on a grid": (
        lambda t, a: a.update(
            grids=json.dumps({**json.loads(a["grids"]), "model.norm.weight": json.loads(a["grids"])[UP]})
        ),
        r"model.norm.weight \[64\] is on no grid",
    ),
    "a tensor of another model": (
        lambda t, a: a.update(grids=json.dumps({**json.loads(a["grids"]), "other": json.loads(a["grids"])[UP]})),
        "no tensor other",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused(damage, said, model, run, tmp_path):
    changed(run / FILE, damage)
    with pytest.raises(ConfigError, match=said):
        build_bundle(str(model), out=tmp_path / "b", learned=run)
    assert not (tmp_path / "b").exists()


def test_a_truncated_file_and_a_damaged_card_are_refused(model, run, tmp_path):
    (run / CARD).write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        build_bundle(str(model), out=tmp_path / "b", learned=run)
    (run / CARD).unlink()
    (run / FILE).write_bytes((run / FILE).read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be read"):
        build_bundle(str(model), out=tmp_path / "b", learned=run)


def test_codes_of_a_model_with_other_shapes_are_refused(run, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", intermediate_size=160)
    with pytest.raises(ConfigError, match="not uint8"):
        build_bundle(str(other), out=tmp_path / "b", learned=run)


def test_a_small_recipe_s_table_can_be_learned(model, tmp_path):
    packed = leave(model, tmp_path / "run", load_recipe("small"))
    bundle = build_bundle(str(model), recipe="small", out=tmp_path / "b", learned=tmp_path / "run")
    stored = read_initializers(bundle)
    table = {"model.embed_tokens.weight.codes", "model.embed_tokens.weight.table"} & set(stored)
    assert np.array_equal(
        stored[table.pop()].numpy().reshape(-1), packed["model.embed_tokens.weight"].codes.reshape(-1)
    )


def test_bundles_from_before_calibration_are_read(model, tmp_path):
    made = build_bundle(str(model), out=tmp_path / "b")
    path = made.path / "edgekit.json"
    record = json.loads(path.read_text())
    for key in ("calibrated", "learned"):
        assert record.pop(key) is None
    assert record["recipe"].pop("low") is None
    path.write_text(json.dumps(record))
    assert open_bundle(made.path, check=False).manifest.recipe == made.manifest.recipe
