"""Two models checking each other: another bundle says how likely it finds an answer."""

import json
import shutil
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest

from edgekit import build_bundle, open_bundle
from edgekit.bundle import record
from edgekit.cli import run
from edgekit.errors import ConfigError, RouteError, RunError
from edgekit.record import from_json
from edgekit.routing.binding import check_second
from edgekit.routing.device import LocalModel
from edgekit.routing.evaluation.bench import bench_routing
from edgekit.routing.evaluation.calibrate import Binding, Calibrated, fit_calibration
from edgekit.routing.evaluation.collect import add_second, collect_local
from edgekit.routing.evaluation.examples import read_examples
from edgekit.routing.router import Router, open_router
from edgekit.run import Tokenizer, load_runner
from edgekit.serve.assembly import Plan, _open_router
from edgekit.testing import tiny_checkpoint
from edgekit.types import Sampling
from edgekit.types.calibration import Calibration, Score
from edgekit.types.routing import DEVICE, AnswerRules, Example, Message, Policy, Request, Routed
from tests.route.answered import local_answers
from tests.test_route_bench import N, questions, write

SAMPLING = Sampling(max_new_tokens=8)
QUESTION = Request((Message("user", "Rome?"),), sampling=SAMPLING)
EXAMPLES = (
    Example("raw", Request(prompt="The quick brown", sampling=SAMPLING), ("fox",), "prefix"),
    Example("chat", QUESTION, ("Rome",), "contains"),
)
LENIENT = Policy("alone", answers=AnswerRules(cut_off=False, repetition=False))
OPINION = Score(("second_logprob",), (-1.0,), 0.0, "isotonic", ((0.0, 0.0), (10.0, 1.0)))
"""A tenth of what the second bundle finds unlikely, in nats a token."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(first, second, third). Do not write into them."""
    folder = tmp_path_factory.mktemp("second")
    return tuple(
        build_bundle(str(tiny_checkpoint(folder / f"m{i}", seed=i)), precision="int8", out=folder / f"b{i}")
        for i in range(3)
    )


@pytest.fixture
def bundle(built, tmp_path):
    """The first, calibrated with the second one's opinion; a copy."""
    first = open_bundle(shutil.copytree(built[0].path, tmp_path / "bundle"))
    binding = Binding.of(first)
    made = Calibration(
        binding.bundle_sha256, binding.provider, binding.runtime, binding.template_sha256, "2026-01-01", "dev.jsonl",
        "0" * 64, 100, 100, 100, OPINION, 0.9, None, None, (0.1, 0.9), None, 0.1, 0.2, built[1].sha256,
    )  # fmt: skip
    return record(first, calibration=made)


def by_hand(bundle, request, text) -> float:
    """Mean log-probability of a text after a request, one position after another."""
    tokenizer, runner = Tokenizer.of(bundle), load_runner(bundle)
    turns = [{"role": m.role, "content": m.content} for m in request.messages]
    asked = tokenizer.render_chat(turns) if turns else request.prompt
    prompt, answer = tokenizer.encode(asked, special=not turns), tokenizer.encode(text)
    rows = runner.logits([*prompt, *answer]).astype(np.float64)
    runner.close()
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return float(np.mean([rows[p, t] - np.log(np.exp(rows[p]).sum()) for p, t in zip(places, answer, strict=True)]))


# --- collecting and calibrating -----------------------------------------------------------------


def test_each_answer_gets_the_other_ones_opinion(built, tmp_path, monkeypatch):
    store = tmp_path / "store.jsonl"
    answers = collect_local(built[0], EXAMPLES, store=store)
    judged = add_second(built[1], EXAMPLES, answers, store=store)
    for example, before, after in zip(EXAMPLES, answers, judged, strict=True):
        expected = by_hand(built[1], example.request, before.text)
        assert after.signals.second_logprob == pytest.approx(expected, rel=1e-4)
        assert after.seconds > before.seconds
        assert replace(after, signals=before.signals, seconds=before.seconds) == before
    kept = store.read_bytes()
    assert add_second(built[1], EXAMPLES, answers, store=store) == judged
    assert collect_local(built[0], EXAMPLES, store=store) == answers
    assert store.read_bytes() == kept
    other = add_second(built[2], EXAMPLES, answers, store=store)
    assert [a.signals.second_logprob for a in other] != [a.signals.second_logprob for a in judged]
    kept = store.read_bytes()
    monkeypatch.setattr("edgekit.routing.binding.__version__", "9.9")
    add_second(built[1], EXAMPLES, answers, store=store)
    assert store.read_bytes() != kept, "an opinion of another edgekit was taken for this one's"


def opinionated(n: int):
    """Answers of which the second bundle knows what the first does not."""
    random = np.random.default_rng(1)
    return tuple(
        replace(a, signals=replace(a.signals, second_logprob=float(a.right - 2 + 0.3 * random.standard_normal())))
        for a in local_answers(n, noise=1.5)
    )


def test_a_calibration_names_the_bundle_that_it_rests_on(built, tmp_path):
    data = write(tmp_path / "dev.jsonl", [{}])
    made = fit_calibration(built[0], data, opinionated(600), second=built[1]).calibration
    assert "second_logprob" in made.score.features
    assert made.second_sha256 == built[1].sha256
    with pytest.raises(RouteError, match="opinion of another bundle"):
        fit_calibration(built[0], data, opinionated(600))
    assert fit_calibration(built[0], data, local_answers(600)).calibration.second_sha256 == ""


def test_an_opinion_that_adds_nothing_is_not_needed(built, tmp_path):
    answers = [replace(a, signals=replace(a.signals, second_logprob=-1.0)) for a in local_answers(600)]
    made = fit_calibration(built[0], write(tmp_path / "d.jsonl", [{}]), answers, second=built[1]).calibration
    assert "second_logprob" not in made.score.features
    assert made.second_sha256 == ""
    check_second(made, None)


def test_what_does_not_fit_is_refused(built, bundle):
    made = bundle.manifest.calibration
    check_second(made, built[1])
    for calibration, second, words, hint in (
        (made, None, "is missing", "`second`"),
        (made, built[2], "needs the opinion of bundle", "calibrate again"),
        (replace(made, second_sha256=""), built[1], "no such signal", "`second`"),
        (None, built[1], "the bundle has no calibration", "`second`"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            check_second(calibration, second)
        assert hint in raised.value.hint


# --- answering ----------------------------------------------------------------------------------


def ends(router, request=QUESTION) -> Routed:
    *_, last = router.answer(request)
    return last


def test_the_router_asks_the_second_before_it_judges(built, bundle):
    with open_router(bundle, LENIENT, second=built[1]) as router:
        last = ends(router)
        expected = by_hand(built[1], QUESTION, last.text)
        assert last.signals.second_logprob == pytest.approx(expected, rel=1e-4)
        assert last.wrong == pytest.approx(-expected / 10, rel=1e-4)
        assert last.verdict.tier == DEVICE


def test_its_time_is_the_devices(built, bundle, monkeypatch):
    from time import sleep

    with open_router(bundle, LENIENT, second=built[1]) as router:
        plain = ends(router).device_seconds
        judge = router._second.mean_logprob
        monkeypatch.setattr(router._second, "mean_logprob", lambda *a: sleep(plain + 0.2) or judge(*a))
        assert ends(router).device_seconds > plain + 0.2


def test_who_cannot_be_asked_leaves_an_answer_that_counts_as_wrong(built, bundle, monkeypatch):
    with open_router(bundle, LENIENT, second=built[1]) as router:

        def refuse(*_):
            raise RunError("it does not fit", "shorten it")

        monkeypatch.setattr(router._second, "mean_logprob", refuse)
        last = ends(router)
        assert last.signals.second_logprob is None
        assert last.wrong == 1.0
        assert last.verdict.degraded


def test_a_router_without_the_bundle_that_it_needs_is_not_opened(built, bundle):
    for second in (None, built[2]):
        with pytest.raises(ConfigError, match="the calibration needs the opinion"):
            open_router(bundle, LENIENT, second=second)
    with LocalModel(bundle) as local, pytest.raises(ConfigError, match="is missing"):
        Router(local, LENIENT)
    with pytest.raises(ConfigError, match="the bundle has no calibration"):
        open_router(built[0], LENIENT, second=built[1])


def test_a_model_that_is_asked_for_its_opinion_still_answers_as_before(built):
    """Its cache was used for something else: no answer may begin with what is left there."""
    long = Request((Message("user", "The quick brown fox jumps over the lazy dog. " * 12),), sampling=SAMPLING)
    with LocalModel(built[0]) as model:

        def answer():
            run = model.answer(long)
            return "".join(e.text for e in run)

        first = answer()
        opinions = []
        threads = [Thread(target=lambda: opinions.append(model.mean_logprob(QUESTION, "Paris"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(opinions)) == 1
        assert answer() == first


# --- the commands -------------------------------------------------------------------------------


def test_from_questions_to_a_calibration_a_bench_and_a_server(built, tmp_path, capsys):
    """What the first says is right where the second finds it likely: nothing tells that but its opinion."""
    first = open_bundle(shutil.copytree(built[0].path, tmp_path / "bundle"))
    store = tmp_path / "store.jsonl"
    rows = [{"id": i, "prompt": f"{i} and then", "raw": True, "answer": "none", "max_tokens": 6} for i in range(160)]
    data = write(tmp_path / "dev.jsonl", rows)
    examples = read_examples(data)
    said = add_second(built[1], examples, collect_local(first, examples, prefix_tokens=3))
    middle = sorted(a.signals.second_logprob for a in said)[80]
    for row, answer in zip(rows, said, strict=True):
        if answer.signals.second_logprob > middle:
            row["answer"] = answer.text
    write(data, rows)
    command = ["route", "calibrate", str(first.path), "--data", str(data), "--store", str(store), "--json"]
    assert run([*command, "--prefix-tokens", "0", "--second", str(built[1].path)]) == 0
    found = from_json(Calibrated, capsys.readouterr().out)
    assert found.calibration.second_sha256 == built[1].sha256
    assert run(["inspect", str(first.path)]) == 0
    assert f"needs bundle {built[1].sha256[:16]} as a second opinion" in capsys.readouterr().out

    test = write(tmp_path / "test.jsonl", questions())
    answers = write(tmp_path / "answers.jsonl", [{"id": f"q{i}", "answer": "none"} for i in range(N)])
    bench = ["route", "bench", str(first.path), "--data", str(test), "--cloud", str(answers)]
    assert run(bench) == 1
    assert "is missing" in capsys.readouterr().err
    assert run([*bench, "--second", str(built[2].path)]) == 1
    assert "needs the opinion of bundle" in capsys.readouterr().err
    assert run([*bench, "--second", str(built[1].path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == N
    opened = open_bundle(first.path)
    alone = bench_routing(replace(opened, manifest=replace(opened.manifest, calibration=replace(
        found.calibration, second_sha256="", score=replace(OPINION, features=("mean_logprob",))
    ))), test, answers)  # fmt: skip
    assert alone.n == N

    policy = tmp_path / "policy.toml"
    policy.write_text('name = "alone"\n')
    assert run(["serve", str(first.path), "--policy", str(policy), "--port", "0", "--history", "none"]) == 1
    assert "is missing" in capsys.readouterr().err
    with _open_router(Plan(first.path, policy, second=built[1].path), opened, LENIENT, 0.0) as router:
        assert ends(router).signals.second_logprob < 0
