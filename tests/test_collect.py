"""Answers to questions with known answers: what is recorded, and that an interrupted run goes on."""

from dataclasses import replace

import pytest

from edgekit import build_bundle
from edgekit.errors import RouteError
from edgekit.routing.decision.signals import SignalTrail
from edgekit.routing.evaluation import collect
from edgekit.routing.evaluation.collect import collect_cloud, collect_local, read_collected
from edgekit.run import Tokenizer, generate, load_runner
from edgekit.testing import tiny_checkpoint
from edgekit.types import Sampling
from edgekit.types.routing import CloudAnswer, Example, Message, Request

SAMPLING = Sampling(max_new_tokens=6)
EXAMPLES = (
    Example("raw", Request(prompt="The quick brown", sampling=SAMPLING), ("fox",), "prefix"),
    Example("chat", Request(messages=(Message("user", "Paris"),), sampling=SAMPLING), ("Rome",), "contains"),
    Example("short", Request(prompt="Paris is", sampling=Sampling(max_new_tokens=2)), ("the",), "exact"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collect")
    return build_bundle(str(tiny_checkpoint(folder / "m")), precision="fp32", out=folder / "b")


@pytest.fixture(scope="module")
def said(bundle):
    """What the bundle answers, made by hand: prompt tokens, tokens as emitted."""
    tokenizer, runner = Tokenizer.of(bundle), load_runner(bundle)
    turns = [{"role": "user", "content": "Paris"}]
    prompts = (
        tokenizer.encode("The quick brown", special=True),
        tokenizer.encode(tokenizer.render_chat(turns)),
        tokenizer.encode("Paris is", special=True),
    )
    told = [
        (len(prompt), list(generate(runner, tokenizer, prompt, example.request.sampling, signals=True)))
        for prompt, example in zip(prompts, EXAMPLES, strict=True)
    ]
    runner.close()
    return told


def trail(tokens):
    trail = SignalTrail()
    for token in tokens:
        trail.push(token)
    return trail.read()


class Asked:
    """Counts what was really asked, and may be interrupted."""

    def __init__(self, monkeypatch, most=99):
        self.ids = []
        ask = collect._ask

        def counted(runner, tokenizer, example, *rest):
            if len(self.ids) == most:
                raise KeyboardInterrupt
            self.ids.append(example.id)
            return ask(runner, tokenizer, example, *rest)

        monkeypatch.setattr(collect, "_ask", counted)


def test_what_is_recorded_is_what_the_bundle_says(bundle, said):
    answers = collect_local(bundle, EXAMPLES, prefix_tokens=2, threads=1)
    assert [answer.id for answer in answers] == ["raw", "chat", "short"]
    for answer, (prompt_tokens, emitted) in zip(answers, said, strict=True):
        assert answer.text == "".join(e.text for e in emitted)
        assert answer.prompt_tokens == prompt_tokens
        assert answer.signals.tokens == len(emitted)
        assert answer.signals == trail(emitted)
        assert answer.finish == "length"
        assert 0 < answer.seconds_to_first <= answer.seconds
        if len(emitted) > 2:
            assert answer.prefix == trail(emitted[:2])
            assert answer.seconds_to_first <= answer.prefix_seconds < answer.seconds
    assert len(said[2][1]) == 2
    assert answers[2].prefix is None and answers[2].prefix_seconds is None


def test_answers_are_graded_as_the_example_says(bundle, said):
    text = "".join(e.text for e in said[0][1])
    right = replace(EXAMPLES[0], answers=("nothing of it", text), grading="exact")
    wrong = replace(EXAMPLES[0], id="wrong", answers=("nothing of it",), grading="exact")
    assert [answer.right for answer in collect_local(bundle, (right, wrong))] == [True, False]


def test_progress_is_told(bundle):
    told = []
    collect_local(bundle, EXAMPLES[:2], progress=lambda *report: told.append(report))
    assert told == [("answers", done, 2, "examples") for done in range(3)]


def test_an_interrupted_run_goes_on(bundle, tmp_path, monkeypatch):
    store = tmp_path / "new" / "answers.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Asked(patch, most=2)
        collect_local(bundle, EXAMPLES, store=store)
    before = read_collected(store)
    assert [answer.id for answer in before] == ["raw", "chat"]
    with store.open("a") as file:
        file.write('{"key":"cut off by a ki')
    assert read_collected(store) == before
    asked = Asked(monkeypatch)
    answers = collect_local(bundle, EXAMPLES, store=store)
    assert asked.ids == ["short"]
    assert answers[:2] == before
    assert read_collected(store) == answers
    assert collect_local(bundle, EXAMPLES[::-1], store=store) == answers[::-1]
    assert asked.ids == ["short"]


@pytest.mark.parametrize(
    "change",
    [
        {"answers": ("jumps",)},
        {"grading": "contains"},
        {"request": Request(prompt="The quick brown", sampling=replace(SAMPLING, max_new_tokens=5))},
        {"request": Request(prompt="The quick", sampling=SAMPLING)},
    ],
)
def test_another_question_is_asked_again(bundle, tmp_path, monkeypatch, change):
    asked, store = Asked(monkeypatch), tmp_path / "answers.jsonl"
    collect_local(bundle, EXAMPLES[:1], store=store)
    collect_local(bundle, (replace(EXAMPLES[0], **change),), store=store)
    assert asked.ids == ["raw", "raw"]
    assert len(read_collected(store)) == 1


def test_what_a_router_adds_to_a_request_asks_nothing_again(bundle, tmp_path, monkeypatch):
    asked, store = Asked(monkeypatch), tmp_path / "answers.jsonl"
    collect_local(bundle, EXAMPLES[:1], store=store)
    counted = replace(EXAMPLES[0].request, tokens=(("device", 3),), language="en")
    collect_local(bundle, (replace(EXAMPLES[0], request=counted),), store=store)
    assert asked.ids == ["raw"]


def test_another_bundle_or_prefix_is_asked_again(bundle, tmp_path, monkeypatch):
    asked, store = Asked(monkeypatch), tmp_path / "answers.jsonl"
    collect_local(bundle, EXAMPLES[:1], store=store)
    collect_local(bundle, EXAMPLES[:1], store=store, prefix_tokens=3)
    other = build_bundle(str(tiny_checkpoint(tmp_path / "m", seed=1)), precision="fp32", out=tmp_path / "b")
    collect_local(other, EXAMPLES[:1], store=store)
    assert asked.ids == ["raw"] * 3


@pytest.mark.parametrize(
    ("name", "other"), [("__version__", "9.9"), ("processor_class", lambda: "z80"), ("version", lambda _: "9.9")]
)
def test_another_edgekit_processor_or_runtime_is_asked_again(bundle, tmp_path, monkeypatch, name, other):
    asked, store = Asked(monkeypatch), tmp_path / "answers.jsonl"
    for _ in range(2):
        collect_local(bundle, EXAMPLES[:1], store=store)
    monkeypatch.setattr(f"edgekit.routing.binding.{name}", other)
    collect_local(bundle, EXAMPLES[:1], store=store)
    assert asked.ids == ["raw"] * 2


def test_a_file_of_another_kind_is_not_touched(bundle, tmp_path):
    store = tmp_path / "notes.txt"
    store.write_text('{"my": "notes"}\nwithout an end')
    with pytest.raises(RouteError, match=r"notes.txt:1: .*my"):
        collect_local(bundle, EXAMPLES, store=store)
    assert store.read_text() == '{"my": "notes"}\nwithout an end'
    with pytest.raises(RouteError, match="no such file"):
        read_collected(tmp_path / "none.jsonl")


def test_a_model_without_chat_template_says_which_example_needs_one(tmp_path):
    model = tiny_checkpoint(tmp_path / "m")
    config = model / "tokenizer_config.json"
    config.write_text(config.read_text().replace("chat_template", "no_chat_template"))
    bundle = build_bundle(str(model), precision="fp32", out=tmp_path / "b")
    assert collect_local(bundle, EXAMPLES[:1])[0].id == "raw"
    with pytest.raises(RouteError, match="'chat' is a conversation") as caught:
        collect_local(bundle, EXAMPLES)
    assert '"raw": true' in caught.value.hint


def test_no_examples(bundle):
    with pytest.raises(RouteError, match="no examples"):
        collect_local(bundle, ())


def test_a_cloud_is_asked_one_by_one():
    told = []

    def ask(example):
        return CloudAnswer(example.id, "x", True, None, None, None, None)

    answers = collect_cloud(ask, EXAMPLES, progress=lambda *report: told.append(report))
    assert [answer.id for answer in answers] == ["raw", "chat", "short"]
    assert told == [("cloud answers", done, 3, "examples") for done in range(4)]


def test_a_file_of_something_else_is_not_added_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("one line without its end")
    with pytest.raises(RouteError, match="not a file of collected answers"):
        collect_cloud(lambda _: pytest.fail("asked"), [], store=precious)
    assert precious.read_text() == "one line without its end"
