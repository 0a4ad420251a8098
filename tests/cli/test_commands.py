"""Every command once, as a person would call it, on a tiny model."""

import io
import json
import shutil
from dataclasses import replace
from math import log

import pytest

from edgekit import open_bundle
from edgekit.cli import run, tables
from edgekit.cli.console import show
from edgekit.cli.documents import Built
from edgekit.record import from_json
from edgekit.types import Inspection, Measurement, Verification


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} in JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


def test_build(checkpoint, tmp_path, capsys):
    assert run(["build", str(checkpoint), "--precision", "int8", "-o", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "INT8 for cpu" in captured.out
    assert "edgekit verify" in captured.out
    assert captured.err == ""
    assert (tmp_path / "out" / "edgekit.json").is_file()


def test_build_json(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["build", str(checkpoint), "-o", str(out), "--bits", "7", "--json"]) == 0
    document = strict(capsys.readouterr().out)
    assert document["manifest"]["recipe"]["precision"] == "int4"
    assert document["manifest"]["recipe"]["bits_per_weight"] == 7
    assert document["bytes"] == sum(
        f.stat().st_size for f in out.rglob("*") if f.is_file() and f.name != "edgekit.json"
    )
    assert document["bits_per_weight"] > 4


@pytest.mark.parametrize(
    ("parameters", "module", "told"), [(8e9, None, True), (1e8, None, False), (8e9, "numba", False)]
)
def test_a_large_build_without_numba_tells_how_to_be_faster(bundle, capsys, monkeypatch, parameters, module, told):
    built = replace(Built.of(open_bundle(bundle), 1.0), parameters=int(parameters))
    monkeypatch.setattr(tables, "find_spec", lambda _: module)
    show(*tables.built_lines(built))
    assert ("pip install 'edgekit[large]'" in capsys.readouterr().out) is told


def test_build_refuses_a_folder_that_is_there_and_force_replaces_a_bundle(checkpoint, copy, tmp_path, capsys):
    arguments = ["build", str(checkpoint), "--precision", "fp32", "-o", str(copy)]
    assert run(arguments) == 1
    assert "hint:" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0
    assert "FP32" in capsys.readouterr().out


def test_inspect_a_checkpoint_and_a_bundle(checkpoint, bundle, capsys):
    for path, stored in ((checkpoint, "F32"), (bundle, "4 bits, block 32, asymmetric")):
        assert run(["inspect", str(path), "--tensors"]) == 0
        shown = capsys.readouterr().out
        assert "llama, 2 layers" in shown
        assert stored in shown
        assert "0-1" in shown
        assert "model.layers.1.mlp.down_proj.weight" in shown
        assert run(["inspect", str(path), "--json"]) == 0
        inspection = from_json(Inspection, capsys.readouterr().out)
        assert inspection.spec.layers == 2


def test_verify_records(checkpoint, copy, capsys):
    arguments = ["verify", str(copy), "--tokens", "256", "--window", "64", "--record"]
    assert run([*arguments, "--max-kld", "100", "--min-top1", "0"]) == 0
    shown = capsys.readouterr().out
    assert "pass  quality" in shown
    assert "windows of 64" in shown
    assert "accuracy level" in shown
    manifest = json.loads((copy / "edgekit.json").read_text())
    assert manifest["quality"]["window"] == 64


def test_verify_ends_with_3_when_a_gate_fails(copy, capsys):
    arguments = ["verify", str(copy), "--tokens", "128", "--window", "64", "--max-kld", "0"]
    assert run([*arguments, "--json"]) == 3
    captured = capsys.readouterr()
    verification = from_json(Verification, captured.out)
    assert not verification.passed
    assert [c.name for c in verification.checks if c.status == "fail"] == ["quality"]
    assert captured.err.startswith("error: ")
    assert "hint: " in captured.err


def test_verify_a_damaged_bundle_is_bad_input(copy, capsys):
    data = next(copy.rglob("*.onnx_data"))
    data.write_bytes(data.read_bytes()[:-1] + b"\xff")
    assert run(["verify", str(copy)]) == 1
    captured = capsys.readouterr()
    assert "onnx_data" in captured.err
    assert "fail  files" in captured.out


def test_run_answers_a_prompt(bundle, capsys):
    assert run(["run", str(bundle), "The quick", "--max-new-tokens", "4", "--raw"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert captured.err == ""


def test_run_json_holds_signals(bundle, capsys):
    arguments = ["run", str(bundle), "The quick", "--max-new-tokens", "4", "--signals", "--json", "--temperature", "1"]
    assert run([*arguments, "--seed", "3", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.01"]) == 0
    document = strict(capsys.readouterr().out)
    assert document["new_tokens"] == len(document["tokens"]) == 4
    assert document["finish"] == "length"
    assert all(token["logprob"] <= 0 <= token["margin"] for token in document["tokens"])
    assert all(0 <= token["lead"] <= 1 and 0 < token["entropy"] < log(384) for token in document["tokens"])


def test_run_json_tells_how_drafts_went(bundle, capsys):
    arguments = ["run", str(bundle), "the dog, the dog, the dog, the dog,", "--raw", "--json", "--max-new-tokens", "60"]
    documents = []
    for option in ("--lookup", "--no-lookup"):
        assert run([*arguments, option]) == 0
        documents.append(strict(capsys.readouterr().out))
    assert documents[0]["drafted"] >= documents[0]["accepted"] >= 0
    assert documents[1]["drafted"] == documents[1]["accepted"] == 0


def test_run_shows_signals_on_stderr(bundle, capsys):
    assert run(["run", str(bundle), "The quick", "--max-new-tokens", "3", "--signals"]) == 0
    told = capsys.readouterr()
    assert all(heading in told.err for heading in ("logprob", "margin", "lead", "entropy"))
    assert run(["run", str(bundle), "The quick", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == told.out


def test_run_takes_a_piped_prompt(bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The quick\nbrown fox\n"))
    assert run(["run", str(bundle), "--max-new-tokens", "2", "--json"]) == 0
    piped = strict(capsys.readouterr().out)
    assert run(["run", str(bundle), "The quick\nbrown fox", "--max-new-tokens", "2", "--json"]) == 0
    assert strict(capsys.readouterr().out)["text"] == piped["text"]


def test_run_refuses_an_empty_pipe_and_a_prompt_that_is_too_long(bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["run", str(bundle)]) == 1
    assert "no prompt" in capsys.readouterr().err
    assert run(["run", str(bundle), "fox " * 2000]) == 1
    assert "context" in capsys.readouterr().err


def test_bench_ends_with_one_line_of_json(copy, tmp_path, capsys):
    lines = tmp_path / "lines.jsonl"
    arguments = ["bench", str(copy), "--pp", "8,16", "--tg", "4", "--depth", "0,8", "--repetitions", "2"]
    assert run([*arguments, "--record", "--output", str(lines)]) == 0
    shown = capsys.readouterr().out
    measurement = from_json(Measurement, shown.splitlines()[-1])
    for name in ("pp8", "pp16", "tg4@0", "tg4@8", "ladder", "MBU", "peak RSS", "energy"):
        assert name in shown
    assert measurement.get("pp16").n == 2
    assert run([*arguments, "--json", "--output", str(lines)]) == 0
    document = capsys.readouterr().out
    assert len(document.splitlines()) == 1
    first, second = lines.read_text().splitlines()
    assert first == shown.splitlines()[-1]
    assert second == document.strip()
    assert json.loads((copy / "edgekit.json").read_text())["latency"]["workload"] == measurement.workload


def test_bench_refuses_what_is_no_number(bundle, capsys):
    assert run(["bench", str(bundle), "--depth", "0,deep"]) == 1
    assert capsys.readouterr().err.startswith("error: --depth is '0,deep'\nhint: ")


def test_report(bundle, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert run(["report", str(bundle), str(bundle), "-o", str(out), "--json"]) == 0
    assert strict(capsys.readouterr().out)["path"] == str(out)
    assert out.read_text().startswith("<!doctype html>")


def test_targets(capsys):
    assert run(["targets", "list"]) == 0
    assert "portable" in capsys.readouterr().out
    assert run(["targets", "show", "portable"]) == 0
    assert "lower/group_query_attention.py" in capsys.readouterr().out
    assert run(["targets", "show", "portable", "--json"]) == 0
    rewrites = {row["cures"]: row["file"] for row in strict(capsys.readouterr().out)["rewrites"]}
    assert rewrites["op:MatMulNBits"] == "lower/matmul_nbits.py"


def test_doctor(capsys):
    assert run(["doctor"]) == 0
    assert "processor" in capsys.readouterr().out
    assert run(["doctor", "--json"]) == 0
    assert len(strict(capsys.readouterr().out)["checks"]) > 10


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgekit ")
