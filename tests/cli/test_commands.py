"""Every command once, as a person would call it, on a tiny model."""

import io
import json
import shutil
from dataclasses import replace
from math import isnan, log

import pytest

from edgekit import open_bundle
from edgekit.cli import run, tables
from edgekit.cli.commands import SECTIONS
from edgekit.cli.console import emit, show
from edgekit.cli.documents import Answer, Built
from edgekit.record import from_json
from edgekit.types import Check, Inspection, Interval, Measurement, Verification
from tests import made

ANSWER = Answer("", "eos", 1, 1, 0.1, 0, 0, ())


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
    assert all(token["logprob"] <= 0 <= token["logprob_margin"] for token in document["tokens"])
    assert all(0 <= token["prob_margin"] <= 1 and 0 < token["entropy"] < log(384) for token in document["tokens"])


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
    assert all(heading in told.err for heading in ("logprob", "log p1/p2", "p1 - p2", "entropy"))
    assert run(["run", str(bundle), "The quick", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == told.out


def pipe(data):
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")


PIPED = "  def add(a, b):\r\n    return a\n\n\t "


@pytest.mark.parametrize(
    ("piped", "given", "raw"),
    [
        ("The quick\nbrown fox\n", "The quick\nbrown fox", False),
        ("The quick\r\n", "The quick", False),
        (" \n The quick \n\n", " \n The quick \n", False),
        (PIPED, PIPED, True),
        (f"{PIPED}\n", f"{PIPED}\n", True),
        (" \n", " \n", True),
    ],
)
def test_run_takes_a_piped_prompt(bundle, capsys, monkeypatch, piped, given, raw):
    """As it is with --raw; otherwise without the line end that a shell's echo adds."""
    seen = []
    monkeypatch.setattr("edgekit.cli.chat.Session.answer", lambda _, prompt, **__: seen.append(prompt) or ANSWER)
    monkeypatch.setattr("sys.stdin", pipe(piped.encode()))
    assert run(["run", str(bundle), "--json", *(["--raw"] if raw else [])]) == 0
    assert seen == [given]


def test_a_piped_prompt_has_the_tokens_of_the_same_argument(bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", pipe(PIPED.encode()))
    assert run(["run", str(bundle), "--raw", "--max-new-tokens", "2", "--json"]) == 0
    piped = strict(capsys.readouterr().out)
    assert run(["run", str(bundle), PIPED, "--raw", "--max-new-tokens", "2", "--json"]) == 0
    given = strict(capsys.readouterr().out)
    assert (piped["prompt_tokens"], piped["text"]) == (given["prompt_tokens"], given["text"])


def test_run_goes_on_to_the_end_of_the_context_unless_told(bundle, capsys):
    assert run(["run", str(bundle), "The quick", "--json"]) == 0
    answer = strict(capsys.readouterr().out)
    assert answer["finish"] in ("context", "eos")
    if answer["finish"] == "context":
        assert answer["prompt_tokens"] + answer["new_tokens"] == 512 + 1


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n", None])
def test_run_refuses_an_empty_pipe(bundle, capsys, monkeypatch, data):
    monkeypatch.setattr("sys.stdin", None if data is None else pipe(data))
    assert run(["run", str(bundle)]) == 1
    assert "no prompt" in capsys.readouterr().err


def test_run_refuses_a_prompt_that_is_too_long(bundle, capsys):
    assert run(["run", str(bundle), "fox " * 2000]) == 1
    assert "context" in capsys.readouterr().err


def test_help_lists_the_commands_in_the_order_of_use(capsys):
    from typer.main import get_command

    from edgekit.cli.app import app

    group = get_command(app)
    listed = [name for names in SECTIONS.values() for name in names]
    assert list(group.commands) == listed
    assert {info.name or info.callback.__name__ for info in app.registered_commands} < set(listed)
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"{section}:") for section in SECTIONS]
    assert places == sorted(places)
    rows = [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]
    assert [word for word in rows if word in listed] == listed


def test_bench_prints_its_table_or_one_document(copy, tmp_path, capsys):
    lines = tmp_path / "lines.jsonl"
    arguments = ["bench", str(copy), "--pp", "8,16", "--tg", "4", "--depth", "0,8", "--repetitions", "2"]
    assert run([*arguments, "--record", "--output", str(lines)]) == 0
    shown = capsys.readouterr().out
    assert "{" not in shown
    first = lines.read_text()
    measurement = from_json(Measurement, first)
    for name in ("pp8", "pp16", "tg4@0", "tg4@8", "ladder", "MBU", "peak RSS", "energy"):
        assert name in shown
    assert measurement.get("pp16").n == 2
    assert run([*arguments, "--json", "--output", str(lines)]) == 0
    document = capsys.readouterr().out
    assert len(document.splitlines()) == 1
    assert lines.read_text() == first + document
    assert json.loads((copy / "edgekit.json").read_text())["latency"]["workload"] == measurement.workload


def test_bench_refuses_what_is_no_number(bundle, capsys):
    assert run(["bench", str(bundle), "--depth", "0,deep"]) == 1
    assert capsys.readouterr().err.startswith("error: --depth is '0,deep'\nhint: ")


def overflown(quality):
    """As measured on a model whose logits lie far apart."""
    whole = Interval(float("inf"), 0.5, float("inf"))
    return replace(quality, ppl=float("inf"), reference_ppl=float("nan"), ppl_ratio=whole, kld_mean=whole)


def test_numbers_that_are_none_are_words_in_json_and_in_what_is_kept(copy, tmp_path, capsys, monkeypatch):
    quality = overflown(made.quality(0.1, 0.9))
    verification = Verification(str(copy), (Check("quality", "fail", "far off", "more bits"),), quality)
    monkeypatch.setattr("edgekit.verify.bundle.verify_bundle", lambda *_, **__: verification)
    assert run(["verify", str(copy), "--json", "--record"]) == 3
    told = strict(capsys.readouterr().out)["quality"]
    assert (told["ppl"], told["reference_ppl"]) == ("inf", "nan")
    assert told["ppl_ratio"] == {"value": "inf", "low": 0.5, "high": "inf"}
    kept = open_bundle(copy).manifest.quality
    assert (kept.ppl, kept.kld_mean, kept.top1) == (quality.ppl, quality.kld_mean, quality.top1)
    assert isnan(kept.reference_ppl)
    # What reads the bundle afterwards goes on, and says it.
    for arguments in (["inspect", str(copy)], ["report", str(copy), "-o", str(tmp_path / "r.html")]):
        assert run([*arguments, "--json"]) == 0
        strict(capsys.readouterr().out)
    page = (tmp_path / "r.html").read_text()
    assert "infinite" in page
    assert "undefined" in page


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_every_document_is_json_whatever_its_numbers(number, capsys):
    emit(replace(ANSWER, seconds=number))
    assert strict(capsys.readouterr().out)["seconds"] == str(number)
    emit(replace(made.measurement(1.0, "int4"), roofline=(("tg", number),)))
    assert strict(capsys.readouterr().out)["roofline"] == [["tg", str(number)]]


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
