"""Generation on a fake runner whose every next token is known: ends, stop strings, signals, cancelling."""

import math

import numpy as np
import pytest
import tokenizers

from edgekit.errors import RunError
from edgekit.run import Tokenizer, generate
from edgekit.run.generation import StopBuffer
from edgekit.testing import FakeRunner, tiny_tokenizer
from edgekit.types import Sampling

TEXT = "Paris is the capital of France, and Rome of Italy."


class Reciter(FakeRunner):
    """Continues with a given sequence of tokens, whatever it is fed."""

    def __init__(self, script, prompt_length=3, **options):
        super().__init__(**options)
        self._script = dict(enumerate(script, start=prompt_length))

    def _logits(self):
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self._script.get(self.length, 0)] = 5
        return logits

    def prefill(self, tokens):
        super().prefill(tokens)
        return self._logits()

    def step(self, token):
        super().step(token)
        return self._logits()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(tokenizers.Tokenizer.from_str(tiny_tokenizer()), eos_ids=[2])


def recite(tokenizer, text=TEXT, *, end=True, sampling=None, **options):
    script = tokenizer.encode(text) + ([2] if end else [])
    return generate(Reciter(script, **options), tokenizer, [5, 6, 7], sampling or Sampling())


def text_of(generation):
    return "".join(emitted.text for emitted in generation)


def test_ends_with_the_models_end_token(tokenizer):
    generation = recite(tokenizer)
    assert generation.finish is None
    emitted = list(generation)
    assert "".join(e.text for e in emitted) == TEXT
    assert [e.token for e in emitted] == generation.tokens == [*tokenizer.encode(TEXT), 2]
    assert generation.finish == "eos"
    assert all(map(math.isnan, (n for e in emitted for n in (e.logprob, e.logprob_margin, e.prob_margin, e.entropy))))


def test_max_new_tokens(tokenizer):
    generation = recite(tokenizer, sampling=Sampling(max_new_tokens=4))
    assert text_of(generation) == tokenizer.decode(tokenizer.encode(TEXT)[:4])
    assert (generation.finish, len(generation.tokens)) == ("length", 4)


def test_a_full_context_is_not_an_error_but_a_reason(tokenizer):
    generation = recite(tokenizer, context_length=8)
    list(generation)
    assert (generation.finish, len(generation.tokens)) == ("context", 6)


def test_a_prompt_that_fills_the_context_names_both_numbers(tokenizer):
    with pytest.raises(RunError, match=r"3 tokens.*context of 3"):
        next(recite(tokenizer, context_length=3))


@pytest.mark.parametrize("stop", ["capital", "f Fr", "of France, and", ",", "P", "y."])
def test_stop_strings_across_tokens(tokenizer, stop):
    generation = recite(tokenizer, sampling=Sampling(stop=("nowhere", stop)))
    shown = []
    for emitted in generation:
        shown.append(emitted.text)
        assert TEXT[: TEXT.index(stop)].startswith("".join(shown))
    assert "".join(shown) == TEXT[: TEXT.index(stop)]
    assert generation.finish == "stop"


def test_what_only_began_a_stop_string_is_shown_in_the_end(tokenizer):
    generation = recite(tokenizer, sampling=Sampling(stop=("Italy.!",)))
    assert text_of(generation) == TEXT
    assert generation.finish == "eos"


def test_stop_gate_against_a_search_of_the_whole_text():
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(500):
        text = "".join(random.choice(list("ab"), 12))
        stops = ["".join(random.choice(list("ab"), int(random.integers(2, 6)))) for _ in range(2)]
        gate, shown = StopBuffer(stops), ""
        for i, letter in enumerate(text):
            shown += gate.push(letter)
            ends = [text[: i + 1].find(s) for s in stops if s in text[: i + 1]]
            assert gate.hit == bool(ends)
            assert not any(s in shown for s in stops)
            if ends:
                hits += 1
                assert shown == text[: min(ends)]
                break
        else:
            assert shown + gate.finish() == text
    assert 100 < hits < 500


def test_an_incomplete_character_at_the_end_is_not_lost(tokenizer):
    script = tokenizer.encode("a🙂")[:-1]
    generation = generate(Reciter(script), tokenizer, [5, 6, 7], Sampling(max_new_tokens=len(script)))
    assert text_of(generation) == tokenizer.decode(script) == "a\ufffd"


def test_signals(tokenizer):
    script = tokenizer.encode("fox")
    generation = generate(
        Reciter(script), tokenizer, [5, 6, 7], Sampling(max_new_tokens=1, repetition_penalty=2.0), signals=True
    )
    (emitted,) = generation
    assert emitted.logprob_margin == pytest.approx(5.0)
    total = math.exp(5) + 383
    assert emitted.logprob == pytest.approx(5 - math.log(total))
    assert emitted.prob_margin == pytest.approx((math.exp(5) - 1) / total)
    assert emitted.entropy == pytest.approx(math.log(total) - 5 * math.exp(5) / total)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_signals_change_no_answer(tokenizer, temperature):
    sampling = Sampling(temperature=temperature, max_new_tokens=60, seed=4, stop=("fox",))
    plain, told = (
        list(generate(FakeRunner(seed=1), tokenizer, [5, 6, 7], sampling, signals=signals)) for signals in (False, True)
    )
    assert [(e.token, e.text) for e in plain] == [(e.token, e.text) for e in told]
    assert len(told) > 5
    assert not any(map(math.isnan, (n for e in told for n in (e.logprob, e.logprob_margin, e.prob_margin, e.entropy))))


def test_closing_cancels(tokenizer):
    generation = recite(tokenizer)
    next(generation)
    generation.close()
    assert generation.finish == "cancelled"
    assert list(generation) == []
    untouched = recite(tokenizer)
    untouched.close()
    assert untouched.finish == "cancelled"


def test_ctrl_c_cancels_and_is_passed_on(tokenizer):
    class Interrupted(FakeRunner):
        def step(self, token):
            raise KeyboardInterrupt

    generation = generate(Interrupted(), tokenizer, [5], Sampling())
    next(generation)
    with pytest.raises(KeyboardInterrupt):
        next(generation)
    assert generation.finish == "cancelled"


def test_a_seed_repeats_an_answer(tokenizer):
    def answer(seed):
        sampling = Sampling(temperature=1.0, seed=seed, max_new_tokens=20)
        return [e.token for e in generate(FakeRunner(), tokenizer, [5], sampling)]

    assert answer(1) == answer(1) != answer(2)


def test_repetition_penalty_sees_prompt_and_answer(tokenizer):
    logits = np.zeros(384, np.float32)
    logits[:8] = np.arange(8, 0, -1)

    class Stubborn(FakeRunner):
        def prefill(self, tokens):
            return logits

        def step(self, token):
            return logits

    sampling = Sampling(repetition_penalty=1000.0, max_new_tokens=3)
    generation = generate(Stubborn(), Tokenizer(tokenizers.Tokenizer.from_str(tiny_tokenizer())), [0, 2], sampling)
    assert [e.token for e in generation] == [1, 3, 4]


@pytest.mark.parametrize(
    ("stop", "shown", "finish"),
    [
        ("<|im_start|>", "Paris", "stop"),
        ("is<|im_start|>", "Par", "stop"),
        ("<|im_start|>The", "Paris", "stop"),
        ("aris<|im_start|>The q", "P", "stop"),
        ("m_start|>", "Paris", "stop"),
        ("<|im_start|><|im_start|>", "ParisThe quick fox.", "eos"),
        ("fox.<|im_end|>", "ParisThe quick ", "eos"),
        (".<|im_end|>!", "ParisThe quick fox.", "eos"),
        ("ParisThe", "ParisThe quick fox.", "eos"),
    ],
)
def test_stop_strings_are_looked_for_in_text_with_special_tokens(tokenizer, stop, shown, finish):
    script = [*tokenizer.encode("Paris"), 1, *tokenizer.encode("The quick fox."), 2]
    assert tokenizer.decode([1, 2], special=True) == "<|im_start|><|im_end|>"
    generation = generate(Reciter(script), tokenizer, [5, 6, 7], Sampling(stop=("nowhere", stop)))
    streamed = [emitted.text for emitted in generation]
    assert ("".join(streamed), generation.finish) == (shown, finish)


def test_without_a_stop_in_them_special_tokens_change_no_text(tokenizer):
    script = [*tokenizer.encode("a🙂")[:-1], 1, *tokenizer.encode("b🙂"), 3, 2]
    texts = []
    for stop in ((), ("nowhere",)):
        generation = generate(Reciter(script), tokenizer, [5, 6, 7], Sampling(stop=stop))
        texts.append(text_of(generation))
    assert texts[0] == texts[1] == tokenizer.decode(script)


def test_a_byte_before_a_special_token_is_part_of_a_stop_string():
    """SentencePiece's <0x0A> waits for the bytes that may follow it; a special token ends the wait."""
    codec = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {"<unk>": 0, "<0x0A>": 1, "a": 2}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    codec.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    codec.add_special_tokens(["<|end|>", "</s>"])
    tokenizer = Tokenizer(codec, eos_ids=[4])
    generation = generate(Reciter([2, 1, 3, 2, 4]), tokenizer, [2, 2, 2], Sampling(stop=("\n<|end|>",)))
    assert (text_of(generation), generation.finish) == ("a", "stop")


def test_stop_gate_with_hidden_text_against_a_search_of_the_whole_text():
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(500):
        pieces = [("".join(random.choice(list("ab"), 2)), bool(random.integers(2))) for _ in range(7)]
        stops = ["".join(random.choice(list("ab"), int(random.integers(3, 7)))) for _ in range(2)]
        whole, gate, said = "".join(text for text, _ in pieces), StopBuffer(stops), ""
        visible = [shown for text, shown in pieces for _ in text]
        for text, shown in pieces:
            said += gate.push(text, shown=shown)
        # Pieces come two letters at a time: the first string to be complete, not the first to begin, ends the text.
        ends = sorted((-(-(whole.find(s) + len(s)) // 2), whole.find(s)) for s in stops if s in whole)
        hits += bool(ends)
        end = min(at for done, at in ends if done == ends[0][0]) if ends else len(whole)
        assert gate.hit == bool(ends)
        assert said + gate.finish() == "".join(c for c, shown in zip(whole[:end], visible, strict=False) if shown)
    assert 100 < hits < 450
