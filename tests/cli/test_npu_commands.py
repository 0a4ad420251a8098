"""What the commands show of a bundle for an NPU: compiled and executed by the real tools, on a tiny model."""

import json
import shutil

import pytest

from edgekit.bundle import open_bundle
from edgekit.cli import run
from edgekit.cli.console import show
from edgekit.cli.documents import Built
from edgekit.cli.tables import built_lines
from edgekit.config.recipe import load_target
from edgekit.record import from_json
from edgekit.testing import FakeCompiler
from edgekit.types import Inspection, Measurement
from tests.npus import compile_nothing, tiny_target
from tests.real_npu import compile_tiny, needs_compiler

QUICK = ["--tokens", "128", "--window", "32", "--npu-tokens", "12", "--npu-steps", "2"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A bundle that was compiled and not executed."""
    return compile_tiny(tmp_path_factory.mktemp("npu")).path


@pytest.fixture
def quick(compiled):
    """What a short verification of it is asked with: bundles hold no path of their source."""
    return [*QUICK, "--source", str(compiled.parent / "checkpoint")]


@pytest.fixture
def copy(compiled, tmp_path):
    return shutil.copytree(compiled, tmp_path / "bundle")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@needs_compiler
def test_build_shows_nodes_binaries_and_an_estimate(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(
        "edgekit.build.pipeline.load_target", lambda name: tiny_target() if name == "s24" else load_target(name)
    )
    arguments = ["build", str(checkpoint), "--target", "s24", "--precision", "fp16", "--no-emulate"]
    assert run([*arguments, "-o", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "galaxy-s24: Hexagon v75, activations float16, a cache of 48 tokens, compiled by onnxruntime-qnn" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert rows["prefill"][1] == "8"
    assert rows["decode"][1] == "1"
    for role in ("prefill", "decode"):
        assert int(rows[role][2]) > 30
        assert rows[role][3] == "0"
    assert "not run on an emulator" in shown
    assert "shared/prefill_qnn.bin: not run: emulators cannot load shared weights" in shown
    assert "decode, estimated" in shown
    assert "76.8 GB/s" in shown
    assert rows["push"][1] == "npu/galaxy-s24/,"  # what to copy


@needs_compiler
def test_verify_records_what_the_emulator_gave_and_every_command_shows_it(copy, quick, tmp_path, capsys):
    assert run(["verify", str(copy), *quick, "--record"]) == 0
    shown = capsys.readouterr().out
    assert "pass  galaxy-s24: decode" in shown
    assert "emulated: top-1" in shown
    (build,) = open_bundle(copy).manifest.npus
    assert [e.tokens for e in build.emulations] == [12, 2]

    assert run(["inspect", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "NPU galaxy-s24" in shown
    assert "decode emulated: top-1" in shown
    assert "decode estimated:" in shown
    assert "\nnpu " in shown
    assert run(["inspect", str(copy), "--json"]) == 0
    assert from_json(Inspection, capsys.readouterr().out).npus == (build,)

    page = tmp_path / "report.html"
    assert run(["report", str(copy), "-o", str(page)]) == 0
    html = page.read_text()
    assert "On the NPU" in html
    assert "galaxy-s24: decode, the NPU alone" in html
    assert '<span class="how emulated">' in html
    assert "tok/s" in html


@needs_compiler
def test_three_lines_say_who_lost_what(copy, quick, capsys):
    assert run(["verify", str(copy), *quick, "--record"]) == 0
    capsys.readouterr()
    show(*built_lines(Built.of(open_bundle(copy), 1.0)))
    shown = capsys.readouterr().out
    assert [shown.count(name) for name in ("total", "lost by quantization", "lost by the NPU")] == [2, 2, 2]
    assert "run on the emulator" in shown


@needs_compiler
def test_verify_ends_with_3_when_the_emulator_is_too_far_off(copy, quick, capsys):
    path = copy / "edgekit.json"
    manifest = json.loads(path.read_text())
    for scheme in manifest["npus"][0]["target"]["npu"]["schemes"]:
        for limits in scheme["limits"]:
            limits["kld"] = 1e-9
    path.write_text(json.dumps(manifest))
    assert run(["verify", str(copy), *quick]) == 3
    captured = capsys.readouterr()
    assert "KL against FP32 is" in captured.out
    assert "galaxy-s24: prefill, galaxy-s24: decode" in captured.err


@needs_compiler
def test_bench_prints_no_speed_of_an_npu(compiled, tmp_path, capsys):
    assert run(["bench", str(compiled)]) == 0
    shown = capsys.readouterr().out
    assert "the speed of an NPU cannot be measured here; estimated from the DRAM bytes" in shown
    assert "floor = " in shown
    assert run(["bench", str(compiled), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [e["role"] for e in document["estimates"]] == ["prefill", "decode"]
    assert "series" not in document
    for option in (["--record"], ["--output", str(tmp_path / "line.json")]):
        assert run(["bench", str(compiled), *option]) == 1
        assert "--cpu" in capsys.readouterr().err
    assert not (tmp_path / "line.json").exists()


@needs_compiler
def test_bench_measures_the_graph_for_the_cpu_when_it_is_asked_for(compiled, capsys):
    quick = ["--pp", "8", "--tg", "4", "--depth", "0", "--repetitions", "1", "--warmup", "0"]
    assert run(["bench", str(compiled), "--cpu", *quick, "--json"]) == 0
    measurement = from_json(Measurement, capsys.readouterr().out)
    assert measurement.environment.provider == "CPUExecutionProvider"
    assert measurement.device == "arm64"


@needs_compiler
def test_run_answers_on_the_cpu_and_says_so(compiled, capsys):
    assert run(["run", str(compiled), "The quick", "--max-new-tokens", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["new_tokens"] == 2
    assert "running the bundle's CPU graph; its NPU graphs are for galaxy-s24" in captured.err


def test_options_for_the_emulator_where_there_is_none(bundle, capsys):
    assert run(["verify", str(bundle), "--npu-tokens", "8"]) == 1
    assert "no graphs for an NPU" in capsys.readouterr().err
    assert run(["verify", str(bundle), "--on", "arm64", "--npu-steps", "8"]) == 1
    assert "--npu-steps" in capsys.readouterr().err


@pytest.fixture
def doubled(monkeypatch):
    compile_nothing(monkeypatch)


def test_targets_check(checkpoint, doubled, capsys):
    arguments = ["targets", "check", str(checkpoint), "--target", "galaxy-s24", "--target", "qcs6490"]
    assert run([*arguments, "--context", "64,128"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 layers (the middle one) and the head" in shown
    assert "galaxy-s24: int8 weights (recipe npu-int8), float16 activations" in shown
    assert "qcs6490: int8 weights" in shown
    assert shown.count("compiled\n") == 8
    assert run([*arguments, "--context", "64", "--whole", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["layers"], document["all_layers"], document["cures"]) == (2, 2, [])
    assert [g["context"] for g in document["targets"][0]["graphs"]] == [64, 64]


def test_targets_check_ends_with_3_and_names_operator_reason_and_cure(checkpoint, capsys, monkeypatch):
    compile_nothing(monkeypatch, FakeCompiler(refused={"Softmax": "no such kernel"}, error="a node is off"))
    assert run(["targets", "check", str(checkpoint), "--target", "galaxy-s24", "--context", "64"]) == 3
    captured = capsys.readouterr()
    row = next(line for line in captured.out.splitlines() if line.startswith("Softmax"))
    assert row.split("  ")[0] == "Softmax"
    assert "no such kernel" in row
    assert "none in edgekit/lower" in row
    assert "first Softmax '" in captured.err
    assert "': no such kernel" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "cpu"], "has no NPU"),
        (["--target", "galaxy-s24", "--context", "1"], "pass numbers from 2 to"),
        (["--target", "galaxy-s24", "--context", "many"], "--context is 'many'"),
        (["--target", "galaxy-s24", "--context", "4096"], "longer than the model's 512"),
    ],
)
def test_targets_check_refuses(checkpoint, doubled, capsys, arguments, said):
    assert run(["targets", "check", str(checkpoint), *arguments]) == 1
    assert said in capsys.readouterr().err
