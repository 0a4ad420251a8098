"""Tuning: noise keeps the defaults, a real gain is taken, and only the machine it was measured on uses it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from edgekit import measure
from edgekit.bench import tune
from edgekit.bench.latency import bench_bundle
from edgekit.bench.tune import tune_bundle, verdict, wins
from edgekit.build.pipeline import build_bundle
from edgekit.bundle import open_bundle, record
from edgekit.cli import run
from edgekit.errors import BundleError, MeasureError
from edgekit.inspect.model import inspect_bundle
from edgekit.record import from_json, to_json
from edgekit.run import default_settings, load_runner, machine_class, runtime_class
from edgekit.testing import tiny_checkpoint
from edgekit.types import Ceilings, Series, Settings, Trial, Tuning

OTHERS = Settings(
    threads=1, spinning=False, pinned=True, prompt_graph="decoder", prefill_chunk=64, decode_graph_max_tokens=2
)
SHARED = {"settings": OTHERS, "kept": False, "left_out": ("why",), "waited": 0.02, "time": "2026-01-01T00:00:00+00:00"}


def tuning(machine: str | None = None, runtime: str | None = None, **change: object) -> Tuning:
    trials = (Trial("prefill chunk 64", (Series("pp512", "x", (1.1, 1.2)),), True),)
    here = {"machine": machine or machine_class(), "runtime": runtime or runtime_class(), "trials": trials}
    return Tuning(**(here | SHARED | change))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    shape = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 64}
    return build_bundle(str(tiny_checkpoint(folder / "m", **shape)), target="cpu", recipe="fast", out=folder / "b")


@pytest.fixture
def bundle(built, tmp_path):
    return open_bundle(shutil.copytree(built.path, tmp_path / "b"))


# --- the choice is pure -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((1.1,) * 8, "faster"),
        ((1.1,) * 7 + (0.5,), "faster"),  # one outlier of eight
        ((1.1,) * 6 + (0.9,) * 2, "no difference"),
        ((1.1,) * 5, "faster"),
        ((1.1,) * 4, "no difference"),  # four tosses are heads once in sixteen
        ((3.0,), "no difference"),
        ((1.01,) * 8, "no difference"),  # sure, and worth nothing
        ((1.0,) * 8, "no difference"),
        ((0.9,) * 8, "slower"),
        ((0.9,) * 7 + (2.0,), "slower"),
        ((0.5, 2.0) * 4, "no difference"),
    ],
)
def test_a_verdict_needs_more_than_noise(ratios, said):
    assert verdict(ratios) == said


def test_a_change_that_costs_the_other_phase_is_not_taken():
    faster, slower, same = (Series("w", "x", (r,) * 8) for r in (1.2, 0.9, 1.0))
    assert wins((faster, same))
    assert wins((faster,))
    assert not wins((faster, slower))
    assert not wins((same, same))


def speeds(monkeypatch, speed):
    """Replace the stopwatch: a sample's ratio is what ``speed(settings, workload)`` says, the same in every round."""

    def compare(bench, change, base, other, workloads):
        return {w.name: [speed(other, w) / speed(base, w)] * bench.rounds for w in workloads}

    monkeypatch.setattr(tune, "_compare", compare)
    monkeypatch.setattr(tune, "core_cpus", lambda: (0, 1))


def test_where_nothing_matters_the_defaults_stay(built, monkeypatch):
    speeds(monkeypatch, lambda settings, workload: 1.0)
    found = tune_bundle(built, threads=2)
    assert found.kept
    assert found.settings == replace(default_settings(built.manifest), threads=2)
    assert not any(t.won for t in found.trials)
    assert {t.change for t in found.trials} == {
        "spinning off", "pinned to cores", "prompts on the decoder's graph", "prefill chunk 64",
        "prefill chunk 256", "prefill chunk 512",
        "decoder's graph up to 8", "decoder's graph up to 2",
    }  # fmt: skip
    assert any(words.startswith("threads: fixed at 2") for words in found.left_out)


def test_the_best_of_several_wins_and_is_confirmed(built, monkeypatch):
    def speed(settings, workload):
        if workload.kind == "short prompt":
            return (
                2.0 if settings.decode_graph_max_tokens >= workload.tokens else 1.0
            )  # the decoder's graph is faster up to any length
        gain = {64: 0.8, 128: 1.0, 256: 1.2, 512: 1.1}[settings.prefill_chunk] if workload.kind == "prompt" else 1.0
        return gain * (1.0 if settings.spinning else 1.3)

    speeds(monkeypatch, speed)
    found = tune_bundle(built, threads=1)
    assert found.settings == Settings(1, False, False, "own", 256, 16)
    assert not found.kept
    assert found.trials[-1].change == "all changes against the defaults"
    assert found.trials[-1].won
    assert "affinity: the only thread is the caller's" in found.left_out


def test_the_crossing_goes_down_where_the_prompts_graph_is_faster(built, monkeypatch):
    def speed(settings, workload):
        return 2.0 if workload.kind == "short prompt" and settings.decode_graph_max_tokens < workload.tokens else 1.0

    speeds(monkeypatch, speed)
    assert tune_bundle(built, threads=1).settings.decode_graph_max_tokens == 1


def test_the_crossing_stays_where_one_length_between_would_lose(built, monkeypatch):
    """Four tokens fill a tile of the decoder's kernels, three do not."""

    def speed(settings, workload):
        if workload.kind != "short prompt" or settings.decode_graph_max_tokens >= workload.tokens:
            return 1.0
        return 0.7 if workload.tokens == 4 else 1.2

    speeds(monkeypatch, speed)
    found = tune_bundle(built, threads=1)
    assert found.settings.decode_graph_max_tokens == 4
    assert [s.name for t in found.trials if t.change == "decoder's graph up to 2" for s in t.ratios] == [
        "pp3@480",
        "pp4@480",
    ]


def test_a_winner_that_does_not_win_again_is_dropped(built, monkeypatch):
    speeds(monkeypatch, lambda settings, workload: 1.0 if settings.spinning else 1.3)
    again = tune._compare

    def compare(bench, change, *rest):
        ratios = again(bench, change, *rest)
        return {name: [1.0] * bench.rounds for name in ratios} if change.startswith("all changes") else ratios

    monkeypatch.setattr(tune, "_compare", compare)
    found = tune_bundle(built, threads=1)
    assert [t.won for t in found.trials if t.change == "spinning off"] == [True]
    assert found.kept
    assert found.settings.spinning


def test_threads_that_slow_prompts_down_are_not_taken_for_decoding(built, monkeypatch):
    def speed(settings, workload):
        return 1.5 if (settings.threads == 1) == (workload.kind == "decode") else 1.0

    speeds(monkeypatch, speed)
    monkeypatch.setattr(tune, "choose_settings", lambda manifest, **_: replace(default_settings(manifest), threads=4))
    found = tune_bundle(built)
    assert {"threads 1", "threads 2"} <= {t.change for t in found.trials}
    assert found.settings.threads == 4
    assert "affinity: 4 threads, but 2 cores to pin them to" in found.left_out


# --- the record -------------------------------------------------------------------------------


def test_it_is_recorded_once_a_machine_and_the_bundle_keeps_its_hash(bundle):
    elsewhere, first, second = tuning("another"), tuning(), tuning(time="later")
    for one in (elsewhere, first, second):
        after = record(open_bundle(bundle.path), tuning=one)
    assert open_bundle(bundle.path) == after
    assert after.manifest.tunings == (elsewhere, second)
    assert after.sha256 == bundle.sha256
    assert inspect_bundle(after).tunings == (elsewhere, second)
    assert from_json(Tuning, to_json(second)) == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(surprise=1), "surprise"),
        (lambda t: t["settings"].pop("decode_graph_max_tokens"), "decode_graph_max_tokens"),
        (lambda t: t["settings"].update(prompt_graph="fastest"), "prompt_graph"),
        (lambda t: t["settings"].update(prefill_chunk=0), "expected a number from 1 to"),
        (lambda t: t["settings"].update(threads=-2), "expected a number from 1 to"),
    ],
)
def test_a_tampered_tuning_is_refused(bundle, change, message):
    record(bundle, tuning=tuning())
    path = bundle.path / "edgekit.json"
    data = json.loads(path.read_text())
    change(data["tunings"][0])
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle.path)


# --- what is loaded ---------------------------------------------------------------------------


def settings_of(bundle, **given):
    runner = load_runner(bundle, **given)
    runner.close()
    return runner.settings


def test_a_tuning_of_this_machine_is_applied_and_arguments_win(bundle):
    tuned = record(bundle, tuning=tuning())
    assert settings_of(tuned) == OTHERS
    assert settings_of(tuned, threads=2) == replace(OTHERS, threads=2)
    own = record(bundle, tuning=tuning(settings=replace(OTHERS, prompt_graph="own")))
    assert settings_of(own).prompt_graph == "own"
    assert settings_of(own, small_memory=True).prompt_graph == "decoder"
    assert settings_of(own, settings=OTHERS) == OTHERS


@pytest.mark.parametrize("where", [{"machine": "another"}, {"runtime": "onnxruntime 0.1"}])
def test_a_tuning_of_another_machine_or_runtime_is_ignored(bundle, where):
    assert settings_of(record(bundle, tuning=tuning(**where))) == default_settings(bundle.manifest)


def test_tuned_settings_do_what_they_say(bundle):
    """The same tokens on other settings: the session has them, and the logits are those of the decoder's graph."""
    tuned = load_runner(record(bundle, tuning=tuning()))
    plain = load_runner(bundle, small_memory=True, settings=default_settings(bundle.manifest))
    tokens = list(range(4, 204))
    try:
        options = tuned._tokens._handle.get_session_options()
        assert options.intra_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert abs(tuned.prefill(tokens) - plain.prefill(tokens)).max() < 1e-3
    finally:
        tuned.close()
        plain.close()


def test_threads_are_pinned_to_all_cores_but_the_first(bundle, monkeypatch):
    from edgekit.run import session

    monkeypatch.setattr(session, "core_cpus", lambda: (0, 0))  # CPU 0 is always there
    settings = replace(OTHERS, threads=2)
    runner = load_runner(bundle, settings=settings)
    options = runner._tokens._handle.get_session_options()
    assert options.get_session_config_entry("session.intra_op_thread_affinities") == "1"
    runner.close()


def test_a_bench_runs_on_the_tuned_settings_and_says_so(bundle, monkeypatch):
    wide = Ceilings(Series("read", "B/s", (1e18,)), Series("gemm", "FLOP/s", (1e18,)))
    monkeypatch.setattr(measure, "measure_ceilings", lambda *_: wide)
    monkeypatch.setattr(measure, "choose_meter", lambda: (None, "no meter here"))
    small = {"pp": (8,), "tg": (2,), "depth": (0,), "repetitions": 1}
    tuned = record(bundle, tuning=tuning())
    m = bench_bundle(tuned, **small)
    assert (m.settings, m.tuned, m.environment.threads) == (OTHERS, True, 1)
    m = bench_bundle(tuned, **small, threads=2)
    assert (m.settings, m.tuned, m.environment.threads) == (replace(OTHERS, threads=2), False, 2)


# --- for real ---------------------------------------------------------------------------------


def test_a_real_tuning_is_written_and_the_bundle_still_opens(bundle, capsys, monkeypatch):
    monkeypatch.setattr(tune, "BUSY", 1.0)  # the tests' machine may be busy
    arguments = ["bench", str(bundle.path), "--tune", "--pp", "48", "--repetitions", "2"]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    for words in ("spinning off", "prefill chunk 64", "pp48", "tg32@48", "not tried", "the defaults are kept"):
        assert words in shown
    opened = open_bundle(bundle.path)
    (found,) = opened.manifest.tunings
    assert found.kept  # two rounds can prove nothing
    assert all(s.n == 2 and min(s.samples) > 0 for t in found.trials for s in t.ratios)
    assert (found.machine, found.runtime) == (machine_class(), runtime_class())
    assert run(["inspect", str(bundle.path)]) == 0
    assert found.machine in capsys.readouterr().out
    assert run([*arguments, "--json", "--threads", "1"]) == 0
    assert from_json(Tuning, capsys.readouterr().out).settings.threads == 1


def test_a_lost_trial_ends_early(built, monkeypatch):
    seconds = iter([[1.0], [2.0]] * 20)  # whoever goes second is half as fast, the default first in odd rounds
    monkeypatch.setattr(tune, "_measure", lambda *_: next(seconds))
    bench = tune._Bench(built, tune._Workload("pp8", "prompt", 8, 0), None, 8, lambda *_: None, [])
    default = default_settings(built.manifest)
    trial = bench.trial("x", default, default, (bench.prompt,))
    assert trial.ratios[0].samples == (2.0, 0.5) * 2 + (2.0,)
    assert not trial.won


def test_what_was_found_on_a_busy_machine_is_shown_and_not_written(bundle, capsys, monkeypatch):
    times = iter([(1.0, 0.0), (2.0, 0.5)] + [(9.0, 9.0), (10.0, 9.0)] * 20)  # a third of the first trial is waiting
    monkeypatch.setattr(measure, "core_seconds", lambda: next(times))
    monkeypatch.setattr(tune, "_measure", lambda runner, tokens, workloads: [1.0] * len(workloads))
    assert run(["bench", str(bundle.path), "--tune", "--repetitions", "1"]) == 1
    captured = capsys.readouterr()
    assert "spinning off" in captured.out
    assert "nothing was written: the machine was busy, a trial spent 33 % of its time waiting" in captured.err
    assert open_bundle(bundle.path) == bundle


def test_options_that_tuning_does_not_take_are_refused(bundle, capsys):
    assert run(["bench", str(bundle.path), "--tune", "--depth", "0"]) == 1
    assert "--depth does not apply to --tune" in capsys.readouterr().err


def test_a_context_without_room_is_refused(tmp_path):
    model = tiny_checkpoint(tmp_path / "m", max_position_embeddings=60)
    small = build_bundle(str(model), precision="fp32", out=tmp_path / "b")
    with pytest.raises(MeasureError, match="context of 60"):
        tune_bundle(small)
