import json
import platform
import shutil
from dataclasses import replace

import pytest

import edgekit.routing.evaluation.calibrate
from edgekit import build_bundle, inspect_model, open_bundle
from edgekit.bundle import record
from edgekit.cli import run
from edgekit.errors import ConfigError, GateFailed, RouteError
from edgekit.host.processor import processor_class
from edgekit.record import from_json
from edgekit.routing.binding import check_binding, require_calibration
from edgekit.routing.evaluation.calibrate import (
    Binding,
    Calibrated,
    fit_calibration,
    parse_guarantee,
    require_guarantee,
)
from edgekit.routing.evaluation.collect import collect_local
from edgekit.routing.evaluation.examples import read_examples
from edgekit.testing import tiny_checkpoint
from tests.route.answered import local_answers


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Do not write into it."""
    model = tiny_checkpoint(tmp_path_factory.mktemp("calibrate") / "tiny")
    return build_bundle(str(model), precision="int4", out=model.parent / "bundle")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text("{}\n")
    return path


@pytest.fixture
def bundle(built, tmp_path):
    return open_bundle(shutil.copytree(built.path, tmp_path / "bundle"))


def test_a_calibration_is_bound_to_what_it_was_made_of(bundle, data):
    made = fit_calibration(bundle, data, local_answers(400)).calibration
    assert made.bundle_sha256 == bundle.sha256
    assert made.provider == bundle.manifest.cpu_target.provider
    assert {name for name, _ in made.runtime} == {"edgekit", "onnxruntime", "processor"}
    assert len(made.template_sha256) == len(made.data_sha256) == 64
    assert made.data == "dev.jsonl"
    assert dict(made.runtime)["processor"].endswith(processor_class())
    check_binding(bundle, made)


def test_a_calibration_of_another_class_of_processor_is_refused(bundle, data):
    made = fit_calibration(bundle, data, local_answers(400)).calibration
    runtime = dict(made.runtime) | {"processor": f"{platform.machine()} AVX9"}
    with pytest.raises(RouteError, match=r"another processor: \S+ AVX9, not") as caught:
        check_binding(bundle, replace(made, runtime=tuple(runtime.items())))
    assert "edgekit route calibrate" in caught.value.hint


def test_writing_it_into_the_bundle_does_not_make_it_another(bundle, data):
    """The calibration stands in edgekit.json, which is no part of the bundle's hash."""
    made = fit_calibration(bundle, data, local_answers(400), prefix_tokens=16).calibration
    record(bundle, calibration=made)
    again = open_bundle(bundle.path)
    assert require_calibration(again) == made
    assert inspect_model(bundle.path).calibration == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bundle_sha256": "0" * 64}, "another bundle: 0000000000000000, not"),
        ({"provider": "SomeProvider"}, "another execution provider: SomeProvider"),
        ({"runtime": (("onnxruntime", "1.2.3"), ("processor", "x86_64"))}, "another onnxruntime: 1.2"),
        ({"template_sha256": ""}, "another chat template: none"),
    ],
)
def test_a_calibration_of_something_else_is_refused(bundle, data, change, words):
    other = replace(fit_calibration(bundle, data, local_answers(400)).calibration, **change)
    with pytest.raises(RouteError, match=words) as raised:
        require_calibration(bundle, other)
    assert "edgekit route calibrate" in raised.value.hint


def test_of_another_processor_too(bundle, data):
    made = fit_calibration(bundle, data, local_answers(400)).calibration
    runtime = tuple((name, "z80" if name == "processor" else value) for name, value in made.runtime)
    with pytest.raises(RouteError, match="another processor: z80"):
        check_binding(bundle, replace(made, runtime=runtime))


def test_a_patch_of_the_runtime_or_of_edgekit_does_not_count(bundle, data):
    made = fit_calibration(bundle, data, local_answers(400)).calibration
    now = dict(made.runtime)
    patch = ".".join([*now["onnxruntime"].split(".")[:2], "99"])
    own = ".".join([*now["edgekit"].split(".")[:2], "99"])
    runtime = (("edgekit", own), ("onnxruntime", patch), ("processor", now["processor"]))
    check_binding(bundle, replace(made, runtime=runtime))
    with pytest.raises(RouteError, match=r"another edgekit: 0\.0, not") as raised:
        check_binding(bundle, replace(made, runtime=(("edgekit", "0.0.1"), *runtime[1:])))
    assert "edgekit route calibrate" in raised.value.hint


def test_another_bundle_of_the_same_model_refuses_it(bundle, data, tmp_path_factory):
    model = tiny_checkpoint(tmp_path_factory.mktemp("other") / "tiny")
    eight = build_bundle(str(model), precision="int8", out=model.parent / "eight")
    with pytest.raises(RouteError, match="another bundle"):
        check_binding(eight, fit_calibration(bundle, data, local_answers(400)).calibration)


def test_none_at_all_says_how_to_make_one(bundle):
    with pytest.raises(RouteError, match="no calibration") as raised:
        require_calibration(bundle)
    assert "edgekit route calibrate" in raised.value.hint


def test_a_model_without_a_template_has_no_hash_of_one(bundle):
    (bundle.path / "chat_template.jinja").unlink(missing_ok=True)
    config = bundle.path / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    assert Binding.of(bundle).template_sha256 == ""


def test_an_infeasible_guarantee_fails_the_gate_with_what_it_takes(bundle, data):
    found = fit_calibration(bundle, data, local_answers(300), guarantee=(0.03, 0.05))
    assert found.calibration is None
    with pytest.raises(GateFailed, match="at most 3 % of the answers served are wrong") as raised:
        require_guarantee(found)
    assert "examples" in raised.value.hint


def test_the_hint_counts_the_examples_of_both_parts(bundle, data):
    found = fit_calibration(bundle, data, local_answers(300), guarantee=(0.03, 0.05))
    missed = replace(found.fit.infeasible, served=100, failures=1, needed=200, examples=600)
    with pytest.raises(GateFailed) as raised:
        require_guarantee(replace(found, fit=replace(found.fit, infeasible=missed)))
    assert "200 served answers" in raised.value.hint
    assert "about 1,000 examples in all" in raised.value.hint
    hopeless = replace(missed, failures=10, needed=None, examples=None)
    with pytest.raises(GateFailed) as raised:
        require_guarantee(replace(found, fit=replace(found.fit, infeasible=hopeless)))
    assert "10.0 % of the surest are wrong, so more examples do not help" in raised.value.hint


def test_a_guarantee_in_words():
    assert parse_guarantee("0.05@0.95") == (0.05, 0.05)
    assert parse_guarantee("0.1@0.9") == (0.1, 0.1)
    for text in ("0.05", "5@95", "0@0.9", "a@b", "0.1@0.9@0.9", "nan@0.9"):
        with pytest.raises(ConfigError, match="`guarantee`"):
            parse_guarantee(text)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def answered(monkeypatch):
    """The bundle's answers are made up: what the command does with them is not."""

    def answer(bundle, data, *, threads, store, progress, **options):
        return fit_calibration(bundle, data, local_answers(1200), **options)

    monkeypatch.setattr(edgekit.routing.evaluation.calibrate, "calibrate_bundle", answer)


def test_the_command_shows_and_keeps_a_calibration(answered, bundle, data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["route", "calibrate", str(bundle.path), "--data", str(data), "--guarantee", "0.2@0.9"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "1,200: 480 for the fit",
        "AUROC",
        "raw mean_entropy",
        "raw mean_logprob",
        "ECE",
        "coverage",
        "confidence 90 %",
    ):
        assert words in shown
    kept = open_bundle(bundle.path).manifest.calibration
    assert kept.guarantee.alpha == 0.2
    assert run(["inspect", str(bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert "at most 20 % of the answers served are wrong, with confidence 90 %" in shown
    assert f"valid for this bundle on {kept.provider}, {' '.join(kept.runtime[1])}" in shown
    assert "abandoned after 16 tokens" in shown


def test_without_recording_the_bundle_stays_as_it_was(answered, bundle, data, capsys):
    before = (bundle.path / "edgekit.json").read_bytes()
    command = ["route", "calibrate", str(bundle.path), "--data", str(data), "--no-record", "--json"]
    assert run([*command, "--prefix-tokens", "0"]) == 0
    found = from_json(Calibrated, capsys.readouterr().out)
    assert found.calibration.threshold == 0.5
    assert found.calibration.prefix is None
    assert (bundle.path / "edgekit.json").read_bytes() == before


def test_an_infeasible_guarantee_exits_with_3_and_keeps_nothing(answered, bundle, data, capsys):
    assert run(["route", "calibrate", str(bundle.path), "--data", str(data), "--guarantee", "0.001@0.99"]) == 3
    captured = capsys.readouterr()
    assert "no answer is served" in captured.out
    assert "nothing was written" in captured.err
    assert open_bundle(bundle.path).manifest.calibration is None


def test_a_guarantee_that_is_none_is_refused_before_any_work(bundle, data, capsys):
    assert run(["route", "calibrate", str(bundle.path), "--data", str(data), "--guarantee", "5%"]) == 1
    assert "0.05@0.95" in capsys.readouterr().err


def test_from_questions_to_a_calibration(bundle, tmp_path, capsys):
    """The model's own answers are taken for the truth of every second question: those are right, the others wrong."""
    rows = [{"id": i, "prompt": f"{i} and then", "raw": True, "answer": "none", "max_tokens": 6} for i in range(80)]
    data, store = tmp_path / "dev.jsonl", tmp_path / "store.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = collect_local(bundle, read_examples(data), prefix_tokens=3)
    for row, answer in zip(rows[::2], said[::2], strict=True):
        row["answer"] = answer.text
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["route", "calibrate", str(bundle.path), "--data", str(data), "--store", str(store), "--json"]
    assert run([*command, "--prefix-tokens", "3"]) == 0
    found = from_json(Calibrated, capsys.readouterr().out)
    assert found.fit.right == 40
    assert found.calibration == require_calibration(open_bundle(bundle.path))
    kept = store.read_bytes()
    assert run([*command, "--prefix-tokens", "3"]) == 0
    assert from_json(Calibrated, capsys.readouterr().out).fit == found.fit
    assert store.read_bytes() == kept


def test_data_that_is_all_wrong_says_so(bundle, tmp_path, capsys):
    data = tmp_path / "dev.jsonl"
    row = {"prompt": "a", "raw": True, "answer": "none", "max_tokens": 2}
    data.write_text(f"{json.dumps(row)}\n" * 70)
    assert run(["route", "calibrate", str(bundle.path), "--data", str(data)]) == 1
    assert "all 70 answers are wrong" in capsys.readouterr().err
