"""Requests made ready: tokens as each tier counts them, and the language."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from math import ceil
from threading import Event, Thread
from time import perf_counter

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from edgekit.build.pipeline import build_bundle
from edgekit.bundle import open_bundle
from edgekit.errors import ConfigError
from edgekit.routing.prepare import PER_MESSAGE, Counter, encode_prompt
from edgekit.run import Tokenizer
from edgekit.run.reach import find_reach
from edgekit.testing import tiny_checkpoint, tiny_tokenizer
from edgekit.types.routing import DEVICE, Message, OnDevice, Policy, Request
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
    with pytest.raises(ConfigError, match=r"tier 'box': the tokenizer .* cannot be read"):
        Counter.of(bundle, Policy("p", (replace(BOX, tokenizer=str(tmp_path / "absent.json")),)))


def test_messages_without_a_chat_template_cannot_be_counted_for_the_device(bundle) -> None:
    plain = Tokenizer(Tokenizer.of(bundle)._codec)
    request = Counter(plain, TWO).prepare(Request(ASKED))
    assert request.tokens_for(DEVICE) is None
    assert request.counted == frozenset()
    assert (request.unfit.check, request.fed) == ("no-template", ())
    assert request.unfit.reason.startswith("the model has no chat template")
    assert Counter(plain, TWO).prepare(Request(prompt="Once")).unfit is None
    texts = sum(len(plain.encode(m.content)) for m in ASKED)
    assert request.tokens_for("cloud") == texts + 3 * PER_MESSAGE
    assert request.tokens_for("box") == ceil(1.3 * (texts + 3 * PER_MESSAGE))


@pytest.mark.parametrize(
    ("template", "check", "said"),
    [
        ("{{ raise_exception('System role not supported') }}", "template", "System role not supported"),
        ("{{ 'a' + 1 }}", "template", "can only concatenate str"),
        ("{% for tool in tools %}{{ tool }}{% endfor %}", "template", "'NoneType' object is not iterable"),
        ("{{ messages[0]['content']['text'] + 1 }}", "template", "no attribute 'text'"),
        ("{{ messages[7]['content'].strip() }}", "template", "no element 7"),
        ("{{ 1 // 0 }}", "template", "division"),
        ("{{ '%d' % 'a' }}", "template", "number is required"),
        ("{{ [3, 'a'] | sort }}", "template", "'<' not supported"),
        ("{{ strftime_now(5) }}", "template", "must be str"),
        ("{% if false %}{% endif %}", "empty", "the prompt is empty"),
    ],
)
def test_a_template_says_in_its_own_words_why_it_takes_no_messages(bundle, template, check, said) -> None:
    tokenizer = Tokenizer(Tokenizer.of(bundle)._codec, template=template)
    request = Counter(tokenizer, TWO).prepare(Request(ASKED))
    assert request.unfit.check == check
    assert said in request.unfit.reason
    assert request.tokens_for(DEVICE) is None
    assert request.tokens_for("cloud")


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
    monkeypatch.setattr("edgekit.routing.prepare.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="py3langid") as caught:
        Counter.of(bundle, Policy("p", (replace(BOX, languages=frozenset({"en"})),)))
    assert "edgekit[serve]" in caught.value.hint


def test_a_bundle_is_not_changed_by_counting(bundle) -> None:
    Counter.of(bundle, TWO).prepare(Request(ASKED))
    assert open_bundle(bundle.path).sha256 == bundle.sha256


def bpe(**more) -> tokenizers.Tokenizer:
    """A byte-fallback tokenizer such as LLaMA 2's."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581": 256, "a": 257, "aa": 258}
    return tokenizers.Tokenizer(BPE(vocabulary, [("a", "a")], byte_fallback=True, **more))


def test_the_most_that_a_token_stands_for() -> None:
    byte_level = tokenizers.Tokenizer.from_str(tiny_tokenizer())
    longest = max(map(len, byte_level.get_vocab()))
    assert find_reach(byte_level) == longest
    byte_level.add_tokens(["ü" * longest])
    assert find_reach(byte_level) == 2 * longest
    fallback = bpe()
    fallback.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    assert find_reach(fallback) == len("<0x00>")
    for codec in (byte_level, fallback):
        for text in ("", " ", "a" * 1000, "über 🙂 " * 50, " " * 500, "\x00\u2581", "The fox jumps. " * 99):
            assert len(codec.encode(text, add_special_tokens=False).ids) * find_reach(codec) >= len(text.encode())


def test_nothing_is_claimed_of_tokenizers_that_drop_text() -> None:
    lossy = bpe()
    lossy.normalizer = normalizers.Strip()
    cutting = bpe()
    cutting.pre_tokenizer = pre_tokenizers.Whitespace()
    removing = bpe()
    removing.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    short = bpe()
    short.enable_truncation(5)
    swallowing = bpe()
    swallowing.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    unknown = tokenizers.Tokenizer(BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True))
    words = tokenizers.Tokenizer(WordLevel({"a": 0}, "a"))
    assert [find_reach(c) for c in (lossy, cutting, removing, short, swallowing, unknown, words)] == [None] * 7


def test_what_fits_nobody_is_ruled_out_before_it_is_cut(bundle, monkeypatch) -> None:
    tokenizer = Tokenizer.of(bundle)
    reach = tokenizer.reach or 0
    counter = Counter(tokenizer, replace(TWO, tiers=(replace(BOX, context=200),)), context=100)
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("it was cut into tokens"))
    for request in (
        Request(prompt="a" * (200 * reach + 1)),
        Request((Message("user", "a" * (200 * reach + 1)),)),
        Request(tuple(Message("user", "ab") for _ in range(100 * reach + 1))),
    ):
        ruled_out = counter.rule_out(request)
        assert ruled_out is not None
        assert (ruled_out.tokens_for(DEVICE) or 0) > 100
        assert (ruled_out.tokens_for("box") or 0) > 200
        assert not ruled_out.counted
    assert counter.rule_out(Request(prompt="a" * 200 * reach)) is None
    boundless = Counter(tokenizer, replace(TWO, tiers=(replace(BOX, context=None),)), context=100)
    assert boundless.rule_out(Request(prompt="a" * 10**6)) is None
    assert Counter(tokenizer, Policy("p")).rule_out(Request(prompt="a" * 10**6)) is None


def test_what_a_template_leaves_out_rules_nothing_out(bundle) -> None:
    trimming = Tokenizer(
        Tokenizer.of(bundle)._codec, template="{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    )
    counter = Counter(trimming, Policy("p"), context=100)
    request = Request((Message("user", " " * 10**6 + "hi"),))
    assert counter.rule_out(request) is None
    assert counter.prepare(request).tokens_for(DEVICE) == len(trimming.encode("hi"))


def test_others_go_on_while_a_long_text_is_cut(bundle) -> None:
    tokenizer, text = Tokenizer.of(bundle), "The quick brown fox. " * 20_000
    assert tokenizer.encode(text[:3000]) == tokenizer._codec.encode(text[:3000], add_special_tokens=False).ids
    counter, ticks, done = Counter(tokenizer, Policy("p")), [], Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(perf_counter())

    thread = Thread(target=tick)
    thread.start()
    began = perf_counter()
    counted = counter.prepare(Request(prompt=text))
    took = perf_counter() - began
    done.set()
    thread.join()
    assert (counted.tokens_for(DEVICE) or 0) > 10_000
    assert max(b - a for a, b in pairwise([began, *ticks])) < took / 2


def test_a_long_text_is_rendered_by_a_process_of_its_own(bundle, monkeypatch) -> None:
    tokenizer = Tokenizer.of(bundle)
    counter = Counter(tokenizer, Policy("p"))
    monkeypatch.setattr(tokenizer._renderer, "ask", lambda *_, **__: pytest.fail("others would wait"))
    assert (counter.prepare(Request((Message("user", "word " * 10_000),))).tokens_for(DEVICE) or 0) > 10_000
