"""Requests made ready: tokens as each tier counts them, and the language."""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import ceil

import pytest

from edgekit.build import build_bundle
from edgekit.bundle import open_bundle
from edgekit.counting import PER_MESSAGE, Counter, encode_prompt
from edgekit.errors import ConfigError
from edgekit.routing import DEVICE, Message, OnDevice, Policy, Request
from edgekit.run import Tokenizer
from edgekit.testing import tiny_checkpoint
from tests.route.cases import BOX, CLOUD

ASKED = (Message("system", "Be brief."), Message("user", "What is the capital of France?"))
TWO = Policy("p", (BOX, replace(CLOUD, count_margin=0.0)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counting")
    return build_bundle(str(tiny_checkpoint(folder / "tiny")), precision="fp32", out=folder / "bundle")


def test_the_device_counts_what_the_model_is_fed_and_tiers_add_their_margin(bundle) -> None:
    counter, tokenizer = Counter.of(bundle, TWO), Tokenizer.of(bundle)
    request = counter.prepare(Request(ASKED))
    fed = tokenizer.encode(tokenizer.render_chat([{"role": m.role, "content": m.content} for m in ASKED]))
    assert encode_prompt(tokenizer, request) == fed
    assert request.tokens == ((DEVICE, len(fed)), ("box", ceil(1.3 * len(fed))), ("cloud", len(fed)))
    assert request.counted == {DEVICE}
    assert request.language is None
    bare = counter.prepare(Request(prompt="Once upon a time"))
    assert bare.tokens_for(DEVICE) == len(tokenizer.encode("Once upon a time", special=True))


def test_tools_and_a_schema_count_and_pictures_do_not(bundle) -> None:
    counter, tokenizer = Counter.of(bundle, TWO), Tokenizer.of(bundle)
    plain = counter.prepare(Request(ASKED))
    tools = '{"tools": [{"name": "look_up", "description": "Looks up a word."}]}'
    beside = counter.prepare(Request(ASKED, passthrough=tools, schema='{"type": "object"}'))
    assert beside.tokens_for(DEVICE) == plain.tokens_for(DEVICE)
    more = len(tokenizer.encode(tools + '\n{"type": "object"}'))
    assert beside.tokens_for("cloud") == (plain.tokens_for("cloud") or 0) + more
    picture = '{"image": "data:image/png;base64,%s"}'
    small, large = (counter.prepare(Request(ASKED, passthrough=picture % ("A" * n))) for n in (10, 10_000))
    assert small.tokens == large.tokens


def test_a_tier_counts_with_its_own_tokenizer(bundle, tmp_path) -> None:
    own = shutil.copy(bundle.path / "tokenizer.json", tmp_path / "t.json")
    counter = Counter.of(bundle, Policy("p", (replace(BOX, tokenizer=str(own)),)))
    tokenizer = Tokenizer.of(bundle)
    prompt = counter.prepare(Request(prompt="Once upon a time"))
    assert prompt.tokens_for("box") == prompt.tokens_for(DEVICE)
    assert prompt.counted == {DEVICE, "box"}
    asked = counter.prepare(Request(ASKED))
    assert asked.tokens_for("box") == sum(len(tokenizer.encode(m.content)) for m in ASKED) + 3 * PER_MESSAGE
    assert asked.counted == {DEVICE}
    with pytest.raises(ConfigError, match="tier 'box': its tokenizer cannot be read"):
        Counter.of(bundle, Policy("p", (replace(BOX, tokenizer=str(tmp_path / "absent.json")),)))


def test_messages_without_a_chat_template_cannot_be_counted_for_the_device(bundle) -> None:
    plain = Tokenizer(Tokenizer.of(bundle)._codec)
    request = Counter(plain, TWO).prepare(Request(ASKED))
    assert request.tokens_for(DEVICE) is None
    assert request.counted == frozenset()
    texts = sum(len(plain.encode(m.content)) for m in ASKED)
    assert request.tokens_for("cloud") == texts + 3 * PER_MESSAGE
    assert request.tokens_for("box") == ceil(1.3 * (texts + 3 * PER_MESSAGE))


def test_the_language_is_told_where_the_policy_asks_for_it(bundle) -> None:
    counter = Counter.of(bundle, replace(TWO, device=OnDevice(languages=frozenset({"en"}))))
    for text, language in (
        ("What is the capital of France?", "en"),
        ("Mikä on Suomen pääkaupunki?", "fi"),
        ("Quelle est la capitale de la France ?", "fr"),
        ("hi", None),
        ("12 + 4 =", None),
        ("", None),
    ):
        # The last thing that the user said, whatever stands before and behind it.
        said = (Message("user", "Bonjour tout le monde, comment allez-vous ?"), Message("user", text), ASKED[0])
        assert counter.prepare(Request(said)).language == language, text
    assert counter.prepare(Request(ASKED, language="de")).language == "de"


def test_languages_without_what_tells_them(bundle, monkeypatch) -> None:
    monkeypatch.setattr("edgekit.counting.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="py3langid") as caught:
        Counter.of(bundle, Policy("p", (replace(BOX, languages=frozenset({"en"})),)))
    assert "edgekit[serve]" in caught.value.hint


def test_a_bundle_is_not_changed_by_counting(bundle) -> None:
    Counter.of(bundle, TWO).prepare(Request(ASKED))
    assert open_bundle(bundle.path).sha256 == bundle.sha256
