"""Device files beyond their form: every number has a source, every name goes by something."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgekit.build.target_lint import Lint, lint_targets
from edgekit.cli import run
from edgekit.config.recipe import list_targets, load_target
from edgekit.errors import ConfigError
from edgekit.lower import fixes
from edgekit.types.device import NUMBERS

ROOT = Path(__file__).parents[1]
DEVICE = """
name = "phone"
title = "A phone that nobody makes"
chip = "X1"
provider = "QNNExecutionProvider"
opset = 21
precisions = ["int8"]
verified = "none"
fallback = "arm64"
max_context = 4096
memory_bytes = 8_000_000_000
bandwidth_bytes_per_s = 5e10
peak_int8_ops_per_s = 3e13
accuracy_level = 4

[npu]
name = "Mill"
family = "mill"
context = 256
efficiency = [0.1, 0.2]
options = { soc_model = "7" }

[sources]
max_context = { certainty = "chosen", text = "so it shall be" }
memory_bytes = { certainty = "stated", text = "its maker, 2026" }
bandwidth_bytes_per_s = { certainty = "derived", text = "6250e6 * 8" }
peak_int8_ops_per_s = { certainty = "reported", text = "a paper, 2026" }
accuracy_level = { certainty = "chosen", text = "why not" }
"npu.context" = { certainty = "chosen", text = "small" }
"npu.efficiency" = { certainty = "measured", text = "by nobody" }
"npu.options" = { certainty = "stated", text = "the mill's book" }
"""
FAMILY = """
name = "mill"
title = "Mills"
prefill_tokens = 16
largest_graph_bytes = 1_000_000

[runtime]
genai = "mill"
options = { htp_performance_mode = "burst" }

[sources]
prefill_tokens = { certainty = "chosen", text = "a sack" }
largest_graph_bytes = { certainty = "stated", text = "the mill's book" }
"float16.masked" = { certainty = "chosen", text = "in half precision's range" }
"float16.limits.int8" = { certainty = "chosen", text = "good flour" }

[[scheme]]
activations = "float16"
precisions = ["int8"]
lacks = ["op:SkipSimplifiedLayerNormalization"]
quirks = ["shapes:dynamic"]
recipes = { int8 = "npu-int8" }
options = { enable_htp_fp16_precision = "1" }
masked = 1000

[scheme.limits.int8]
top1 = 0.9
kld = 0.1
npu_top1 = 0.9
npu_kld = 0.1
npu_cosine = 0.99
"""


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """A device that nobody makes, with a family of its own: two files and nothing else."""
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "mill.toml").write_text(FAMILY)
    (tmp_path / "phone.toml").write_text(DEVICE)
    return tmp_path / "phone.toml"


def lint(path: Path) -> Lint:
    return lint_targets([str(path)])


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("name", list_targets())
def test_every_target_that_ships_is_clean(name: str) -> None:
    assert lint_targets([name]).problems == ()


def test_all_that_ship_are_looked_at_and_every_family_has_a_device() -> None:
    found = lint_targets()
    assert found.targets == list_targets()
    assert sorted(found.families) == sorted(path.stem for path in ROOT.glob("targets/families/*.toml"))
    assert found.numbers > 80


def test_a_device_is_added_by_adding_its_files(phone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = load_target(phone)
    assert target.npu is not None
    assert (target.npu.name, target.npu.prefill_tokens, target.npu.options) == ("Mill", 16, (("soc_model", "7"),))
    found = lint(phone)
    assert (found.problems, found.families, found.numbers) == ((), ("mill",), 8 + 4)
    assert run(["targets", "lint", str(phone)]) == 0
    assert "12 numbers" in capsys.readouterr().out
    assert run(["targets", "show", str(phone)]) == 0
    shown = capsys.readouterr().out
    for text in ("50.0 GB/s", "6250e6 * 8", "derived", "30 TOPS", "10% to 20%", "good flour", ">= 0.9", "Mill"):
        assert text in shown
    for fixed in ("lower/skip_simplified_layer_normalization.py", "lower/static_shapes.py"):
        assert fixed in shown


@pytest.mark.parametrize("key", [*NUMBERS, "npu.context", "npu.efficiency", "npu.options"])
def test_a_number_of_a_device_without_its_source_is_a_problem(phone: Path, key: str) -> None:
    written = f'"{key}"' if "." in key else key
    lines = [line for line in phone.read_text().splitlines() if not line.startswith(f"{written} = {{ certainty")]
    phone.write_text("\n".join(lines))
    (problem,) = lint(phone).problems
    assert (problem.file, problem.problem) == ("phone.toml", f"'{key}' has no source")
    assert f"{written} = {{ certainty" in problem.hint


@pytest.mark.parametrize("key", ["prefill_tokens", "largest_graph_bytes", "float16.masked", "float16.limits.int8"])
def test_a_number_of_a_family_without_its_source_is_a_problem(phone: Path, key: str) -> None:
    family = phone.parent / "families" / "mill.toml"
    lines = [line for line in family.read_text().splitlines() if "certainty" not in line or key not in line]
    family.write_text("\n".join(lines))
    (problem,) = lint(phone).problems
    assert (problem.file, problem.problem) == ("families/mill.toml", f"'{key}' has no source")


@pytest.mark.parametrize(
    ("old", "new", "problem", "hint"),
    [
        ("accuracy_level = 4\n", "", "[sources] has 'accuracy_level', which is not set", "remove it"),
        ('"6250e6 * 8"', '" "', "the source of 'bandwidth_bytes_per_s' is empty", "who"),
        ('fallback = "arm64"\n', "", "'fallback' is missing for a target with [npu]", "fallback"),
        ('"arm64"', '"amr64"', "fallback: unknown target 'amr64'", "did you mean 'arm64'?"),
        ('"arm64"', '"galaxy-s24"', "fallback 'galaxy-s24' has an NPU itself", "CPU"),
        ('["int8"]', '["int8", "int4"]', "'precisions' lists int4, which no scheme of family 'mill' supports", "int8"),
        ('family = "mill"', 'family = "mil"', "unknown family 'mil'", "hexagon-float"),
        ('"none"', '"nun"', "'verified' must be one of", "did you mean 'none'?"),
        (
            "opset = 21",
            "opset = 21\nquirks = ['cache:float23']",
            "no rewrite for 'cache:float23'",
            "did you mean 'cache:float32'?",
        ),
    ],
)
def test_what_is_wrong_in_a_device(phone: Path, old: str, new: str, problem: str, hint: str) -> None:
    change(phone, old, new)
    (found,) = lint(phone).problems
    assert problem in found.problem
    assert hint in found.hint


@pytest.mark.parametrize(
    ("old", "new", "problem", "hint"),
    [
        (
            'int8 = "npu-int8"',
            'int8 = "npu-itn8"',
            "recipe of int8: unknown recipe 'npu-itn8'",
            "did you mean 'npu-int",
        ),
        ('int8 = "npu-int8"', 'int8 = "npu-int4"', "recipe 'npu-int4' has precision int4, not int8", ""),
        ('"shapes:dynamic"', '"shapes:dynamo"', "no rewrite for 'shapes:dynamo'", "did you mean 'shapes:dynamic'?"),
        ('"good flour"', '""', "the source of 'float16.limits.int8' is empty", ""),
        (
            '"float16.masked" =',
            '"uint16.masked" = { certainty = "chosen", text = "?" }\n"float16.masked" =',
            "[sources] has 'uint16.masked', which is not set",
            "",
        ),
        ('fp16_precision = "1"', 'fp16_precision = "0"', "its graphs compute in float32", "float32"),
        ("masked = 1000", "masked = 70_000", "'masked' is 70000, but float16 ends at 65504", "smaller"),
    ],
)
def test_what_is_wrong_in_a_family(phone: Path, old: str, new: str, problem: str, hint: str) -> None:
    change(phone.parent / "families" / "mill.toml", old, new)
    (found,) = lint(phone).problems
    assert found.file == "families/mill.toml"
    assert problem in found.problem
    assert hint in found.hint


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({'"float16': '"float32'}, "option 'enable_htp_fp16_precision' makes them float16"),
        ({'"float16': '"uint16', "fp16_precision": "fp16_precision"}, "option 'enable_htp_fp16_precision' makes"),
        (
            {'"float16': '"float32', '"1"': '"0"', '["shapes:dynamic"]': '["floats:float32"]'},
            "its quirk 'floats:float32'",
        ),
        ({'"float16': '"float32', '"1"': '"0"'}, ""),
        ({'"1"': '"0"', '["shapes:dynamic"]': '["floats:float32"]'}, ""),
    ],
)
def test_a_route_says_what_its_graphs_compute_in(phone: Path, changes: dict[str, str], problem: str) -> None:
    """Half precision comes from the graph itself, or from the provider's own option."""
    for old, new in changes.items():
        change(phone.parent / "families" / "mill.toml", old, new)
    found = [p.problem for p in lint(phone).problems]
    assert [problem in p for p in found] == [True] if problem else found == []


def test_a_number_agrees_with_the_arithmetic_of_its_source(phone: Path) -> None:
    change(phone, "6250e6 * 8", "6250e6 * 2 * 8; a peak")
    (found,) = lint(phone).problems
    assert found.problem == "'bandwidth_bytes_per_s' is 5e+10, but the arithmetic of its source gives 1e+11"
    change(phone, "6250e6 * 2 * 8", "6240.5e6 * 8")
    assert lint(phone).problems == ()


def test_the_table_of_the_design_says_what_the_families_do() -> None:
    """Devices that compile by themselves: activations, where weights lie, and the cache."""
    design = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+)[^|]*\|[^|]*\| (\w+)", design, re.MULTILINE)
    told = {name: row for name, *row in rows if (ROOT / f"targets/families/{name}.toml").is_file()}
    assert told.keys() == {"coreml", "nnapi", "openvino-npu"}
    npus = {npu.family: npu for name in list_targets() if (npu := load_target(name).npu) and npu.plugin is None}
    for name, (activations, cache) in told.items():
        (scheme,) = npus[name].schemes
        assert activations == scheme.activations
        assert cache == ("float16" if scheme.quirks & {"cache:float32", "floats:float32"} else "float32")


def test_a_fallback_has_no_part_without_an_npu(tmp_path: Path) -> None:
    text = DEVICE[: DEVICE.index("[npu]")].replace("accuracy_level = 4\n", "")
    path = tmp_path / "phone.toml"
    path.write_text("\n".join(line for line in text.splitlines() if "_bytes" not in line and "_ops" not in line))
    problems = [p.problem for p in lint(path).problems]
    assert "'fallback' is set, but there is no [npu]" in problems


def test_problems_end_with_code_3_and_name_file_and_cure(phone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(phone, 'memory_bytes = { certainty = "stated", text = "its maker, 2026" }\n', "")
    assert run(["targets", "lint", "cpu", str(phone)]) == 3
    captured = capsys.readouterr()
    assert "'memory_bytes' has no source" in captured.out
    assert "error: 1 problem in phone.toml" in captured.err
    assert run(["targets", "lint", str(phone), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert [p["problem"] for p in document["problems"]] == ["'memory_bytes' has no source"]


def test_a_file_that_cannot_be_read_is_a_problem_and_one_that_is_not_there_an_error(
    phone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.write_text("name = ")
    assert "not valid TOML" in lint(phone).problems[0].problem
    with pytest.raises(ConfigError, match="unknown target 'galaxy-s224'") as caught:
        lint_targets(["galaxy-s224"])
    assert "did you mean 'galaxy-s24'?" in caught.value.hint
    assert run(["targets", "lint", str(phone.parent / "nowhere.toml")]) == 1
    assert "not found" in capsys.readouterr().err


def test_show_tells_every_number_its_certainty_and_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "show", "galaxy-s24", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    target = load_target("galaxy-s24")
    assert {source["key"] for source in card["target"]["sources"]} == set(target.numbers())
    assert target.npu is not None
    assert [scheme["scheme"]["activations"] for scheme in card["schemes"]] == [
        r.activations for r in target.npu.schemes
    ]
    for scheme in card["schemes"]:
        assert {row["cures"]: row["file"] for row in scheme["rewrites"]}.items() <= fixes().items()
        assert all(source["text"] for _, source in scheme["limits"])


def test_the_list_has_chip_npu_memory_and_bandwidth(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["targets", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    target = load_target("galaxy-s24")
    assert target.npu is not None
    for text in (target.chip, target.npu.name, "8.0 GB", "76.8 GB/s", "emulator"):
        assert text in lines["galaxy-s24"]
