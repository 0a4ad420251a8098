"""Targets and recipes as TOML: what is read, and how each mistake is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edgekit.config.recipe import builtin_recipe, list_targets, load_recipe, load_target
from edgekit.errors import ConfigError
from edgekit.types import Grid, Override

ROOT = Path(__file__).parents[1]

TARGET = """
name = "phone"
title = "A phone"
provider = "SomeExecutionProvider"
opset = 20
precisions = ["int4"]
verified = "none"
"""
RECIPE = """
name = "mine"
precision = "int4"
[linear]
bits = 4
block_size = 64
symmetric = false
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_shipped_targets_load_and_carry_their_file_name() -> None:
    names = list_targets()
    assert {"cpu", "portable"} <= set(names)
    for name in names:
        assert load_target(name).name == name
    assert "op:MatMulNBits" in load_target("portable").lacks
    assert load_target("cpu").shared_kv is True


def test_target_file_with_everything(tmp_path: Path) -> None:
    text = TARGET.replace("SomeExecutionProvider", "OpenVINOExecutionProvider") + (
        'lacks = ["op:Gather"]\nquirks = ["slow"]\nshared_kv = true\naccuracy_level = 4\nmax_context = 2048\n'
        'memory_bytes = 8_000_000_000\nbandwidth_bytes_per_s = 5e10\nnotes = "n"\n'
        '[provider_options]\nnum_streams = "1"\ndevice_type = "NPU"\n'
    )
    target = load_target(write(tmp_path, "phone.toml", text))
    assert target.provider_options == (("device_type", "NPU"), ("num_streams", "1"))
    assert (target.lacks, target.quirks) == (frozenset({"op:Gather"}), frozenset({"slow"}))
    assert (target.shared_kv, target.accuracy_level, target.max_context) == (True, 4, 2048)
    assert (target.memory_bytes, target.bandwidth_bytes_per_s, target.notes) == (8 * 10**9, 5e10, "n")


HOSTILE = [
    ('[provider_options]\nbackend_path = "./evil.so"\n', "provider_options: 'backend_path' may not be set"),
    ('[provider_options]\ncache_dir = "/tmp"\n', "provider_options: 'cache_dir' may not be set"),
    ('fallback = "./other.toml"\n', "'fallback' must be a name"),
    (
        '[npu]\nname = "N"\nfamily = "../../families/x"\ncontext = 64\nefficiency = [0.1, 0.2]\n',
        "'npu.family' must be a name",
    ),
    (
        '[npu]\nname = "N"\nfamily = "openvino-npu"\ncontext = 64\nefficiency = [0.1, 0.2]\n'
        'options = { load_config = "x" }\n',
        "npu.options: 'load_config' may not be set",
    ),
]


@pytest.mark.parametrize(("lines", "message"), HOSTILE)
def test_a_target_file_from_elsewhere_chooses_no_library_and_no_file(tmp_path: Path, lines: str, message: str) -> None:
    text = (TARGET + lines).replace("SomeExecutionProvider", "OpenVINOExecutionProvider")
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_target(write(tmp_path, "phone.toml", text))
    assert caught.value.hint


def test_a_family_from_elsewhere_names_no_package(tmp_path: Path) -> None:
    family = (ROOT / "targets" / "families" / "openvino-npu.toml").read_text()
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "mill.toml").write_text(
        family.replace('name = "openvino-npu"', 'name = "mill"') + '\n[plugin]\nmodule = "evil"\n'
    )
    text = TARGET + '[npu]\nname = "N"\nfamily = "mill"\ncontext = 64\nefficiency = [0.1, 0.2]\n'
    with pytest.raises(ConfigError, match="unknown key 'plugin'"):
        load_target(write(tmp_path, "phone.toml", text))


def test_unknown_numbers_of_a_target_are_none(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, "phone.toml", TARGET))
    assert (target.accuracy_level, target.max_context, target.memory_bytes) == (None, None, None)
    assert target.bandwidth_bytes_per_s is None


@pytest.mark.parametrize("name", ["int4", "int8", "fp16", "fp32"])
def test_every_precision_has_its_recipe(name: str) -> None:
    recipe = builtin_recipe(name)  # type: ignore[arg-type]
    assert (recipe.name, recipe.precision) == (name, name)
    assert (recipe.linear is not None) is name.startswith("int")
    if recipe.linear is not None:
        assert recipe.linear.bits == int(name[3:])


def test_recipe_file_with_everything(tmp_path: Path) -> None:
    text = """
name = "mine"
precision = "int4"
method = "round"
accuracy_level = 4
size_mb = 1.5
[linear]
bits = 4
block_size = 0
symmetric = false
scale = "float32"
[embedding]
bits = 8
block_size = 16
symmetric = true
[[override]]
match = "*.v_proj.weight"
grid = { bits = 8, block_size = 32, symmetric = true }
[[override]]
match = "*.down_proj.weight"
keep = "float"
"""
    recipe = load_recipe(write(tmp_path, "mine.toml", text))
    assert recipe.linear == Grid(4, 0, False, "float32")
    assert recipe.embedding == Grid(8, 16, True, "float16")
    assert recipe.overrides == (
        Override("*.v_proj.weight", Grid(8, 32, True)),
        Override("*.down_proj.weight", None),
    )
    assert (recipe.method, recipe.accuracy_level, recipe.size_bytes) == ("round", 4, 1_500_000)
    assert recipe.bits_per_weight is None


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ("opsett = 3", "phone.toml: unknown key 'opsett'", "did you mean 'opset'?"),
        ("max_context = '9'", "'max_context' must be a whole number, not '9'", ""),
        ("max_context = 0", "'max_context' must be at least 1, not 0", ""),
        ("max_context = true", "'max_context' must be a whole number, not True", ""),
        ("shared_kv = 1", "'shared_kv' must be true or false, not 1", ""),
        ("lacks = 'op:X'", "'lacks' must be a list, not 'op:X'", ""),
        ("lacks = [1]", "'lacks' must be a list of strings", ""),
        ("lacks = ['a', 'a']", "'lacks' must be a list without duplicates", ""),
        ("accuracy_level = 5", "'accuracy_level' must be one of 0, 1, 2, 3, 4, not 5", ""),
        ("bandwidth_bytes_per_s = -1.0", "'bandwidth_bytes_per_s' must be a number above 0, not -1.0", ""),
        ("[provider_options]\nthreads = 4", "'provider_options.threads' must be text, not 4", ""),
        ("provider_options = []", "'provider_options' must be a table", ""),
        ("= broken", "not valid TOML", "targets"),
    ],
)
def test_bad_target_names_file_key_and_fix(tmp_path: Path, change: str, message: str, hint: str) -> None:
    path = write(tmp_path, "phone.toml", TARGET + change)
    with pytest.raises(ConfigError) as caught:
        load_target(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('precisions = ["int4"]', 'precisions = ["int5"]', "'precisions' must be a list of fp32, fp16, int8, int4"),
        ('verified = "none"', 'verified = "nobe"', "'verified' must be one of measured, executed"),
        ("opset = 20", "", "'opset' is missing"),
        ('name = "phone"', 'name = "tablet"', "'name' is 'tablet', but the file is phone.toml"),
    ],
)
def test_bad_required_value_of_a_target(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_target(write(tmp_path, "phone.toml", TARGET.replace(old, new)))
    assert message in caught.value.message


def test_unknown_target_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        load_target("protable")
    assert caught.value.message == "unknown target 'protable'"
    assert "did you mean 'portable'?" in caught.value.hint
    assert "cpu" in caught.value.hint


def test_unknown_family_of_an_npu_lists_the_known(tmp_path: Path) -> None:
    npu = '[npu]\nname = "N"\nfamily = "hexagon-flaot"\ncontext = 8\nefficiency = [0.1, 0.2]\n'
    with pytest.raises(ConfigError) as caught:
        load_target(write(tmp_path, "phone.toml", TARGET + npu))
    assert caught.value.message == "unknown family 'hexagon-flaot'"
    assert "did you mean 'hexagon-float'?" in caught.value.hint


def test_a_phone_of_ours_has_the_options_of_its_family_and_its_own() -> None:
    npu = load_target("galaxy-s24").npu
    assert npu is not None
    assert dict(npu.options) == {"htp_graph_finalization_optimization_mode": "3", "soc_model": "57"}
    assert npu.schemes[0].activations == "float16"
    assert npu.numbers()["prefill_tokens"] == npu.prefill_tokens


def test_missing_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe file .*nowhere\.toml not found"):
        load_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ("blocks = 3", "unknown key 'linear.blocks'", "did you mean 'block_size'?"),
        ("[linaer]", "unknown key 'linaer'", "did you mean 'linear'?"),
        ("[embedding]\nbits = 5", "'embedding.bits' must be one of 2, 4, 8, not 5", ""),
        ("[embedding]\nbits = 8\nblock_size = 48", "'embedding.block_size' must be one of 0, 16, 32", ""),
        ("[embedding]\nbits = 8\nblock_size = 32", "'embedding.symmetric' is missing", ""),
        ("scale = 'bfloat16'", "'linear.scale' must be one of float16, float32", "did you mean 'float16'?"),
        ("[[override]]\nmatch = 'x'", "the override of 'x' needs either grid or keep", "keep"),
        ("[[override]]\nmatch = 'x'\nkeep = 'int'", "'override[0].keep' must be one of float", ""),
        ("[[override]]\nmatch = 'x'\ngird = 1", "unknown key 'override[0].gird'", "did you mean 'grid'?"),
        ("[override]", "'override' must be a list", ""),
    ],
)
def test_bad_recipe_names_key_and_fix(tmp_path: Path, change: str, message: str, hint: str) -> None:
    path = write(tmp_path, "mine.toml", RECIPE + change)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace("int4", "fp16"), "precision fp16 allows no grids"),
        ('name = "m"\nprecision = "int8"', "precision int8 needs a \\[linear\\] table"),
        ("size_mb = 90\nbits_per_weight = 4.5\n" + RECIPE, "size_mb and bits_per_weight are both set"),
        ("size_mb = 0\n" + RECIPE, "'size_mb' must be a number above 0"),
        ("size_mb = nan\n" + RECIPE, "'size_mb' must be a number above 0"),
        ("accuracy_level = 7\n" + RECIPE, "'accuracy_level' must be one of 0, 1, 2, 3, 4, not 7"),
    ],
)
def test_contradictions_of_a_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, "mine.toml", text))


def test_a_device_may_open_its_npu_otherwise_than_its_family(tmp_path: Path) -> None:
    text = Path("targets/galaxy-s24.toml").read_text()
    path = tmp_path / "galaxy-s24.toml"
    path.write_text(text.replace("[sources]", '[npu.runtime]\nbackend_path = "QnnHtp.dll"\n\n[sources]'))
    family, other = load_target("galaxy-s24").npu, load_target(path).npu
    assert family is not None
    assert other is not None
    assert other.runtime.genai == family.runtime.genai == "qnn"
    assert dict(other.runtime.options) == dict(family.runtime.options) | {"backend_path": "QnnHtp.dll"}


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "size_mb = 1" + "0" * 400,
        "accuracy_level = 0x" + "f" * 10_000,
        "size_mb = nan",
        "smooth = inf",
        'name = "\\ud800"',
    ],
    ids=lambda text: text[:20],
)
def test_a_value_of_a_stranger_is_refused_with_a_hint(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text if text.startswith("name") else f'name = "mine"\nprecision = "fp32"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert caught.value.hint
    assert len(caught.value.message) < 500


@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_at_once(tmp_path):
    pipe, endless = tmp_path / "pipe.toml", tmp_path / "endless.toml"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    (tmp_path / "huge.toml").touch()
    os.truncate(tmp_path / "huge.toml", 20_000_000_000)
    for path in (pipe, endless, tmp_path / "huge.toml", tmp_path, Path("a" * 300 + ".toml"), Path("a\0.toml")):
        with pytest.raises(ConfigError) as caught:
            load_recipe(path)
        assert caught.value.hint
