"""Chat templates render as in transformers; streamed text is the full text in pieces."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgekit.errors import RunError
from edgekit.run import Tokenizer
from edgekit.testing import tiny_tokenizer

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TEMPLATES = {path.stem: path.read_text() for path in Path(__file__).parent.glob("templates/*.jinja")}
CHATS = [
    [{"role": "user", "content": "Hello <b>you</b> & 'me'"}],
    [{"role": "system", "content": " Be  terse.\n"}, {"role": "user", "content": "中文 🙂"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": " two\n\n"},
        {"role": "user", "content": "{{ three }}"},
    ],
]


def byte_level() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tiny_tokenizer())


def sentencepiece(decoder: str) -> tokenizers.Tokenizer:
    """Pieces with ▁ for a space and 256 byte tokens, as in Llama 2 ("strip") and Mistral ("metaspace")."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁", "▁▁", "▁the", "he", "▁fox", "s", "中", "é", "🙂", "▁▁▁▁", ".", "\ufffd"]
    codec = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    codec.add_special_tokens(["<unk>", "<s>", "</s>"])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    metaspace = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    codec.decoder = decoders.Sequence(strip if decoder == "strip" else metaspace)
    codec.pre_tokenizer = pre_tokenizers.Metaspace()
    return codec


CODECS = {"byte level": byte_level, "strip": lambda: sentencepiece("strip"), "metaspace": lambda: sentencepiece("")}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_render_as_in_transformers(name, prompt):
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level(), chat_template=TEMPLATES[name], **SPECIALS)
    ours = Tokenizer(byte_level(), template=TEMPLATES[name], special_tokens=SPECIALS)
    for chat in CHATS:
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        assert ours.render_chat(chat, add_generation_prompt=prompt) == expected
        assert len(expected) > 10


def test_the_templates_are_there():
    assert set(TEMPLATES) == {"chatml", "llama-3", "mistral", "zephyr", "tools"}


def test_a_template_that_refuses_is_an_error_of_the_user():
    tokenizer = Tokenizer(byte_level(), template=TEMPLATES["mistral"], special_tokens=SPECIALS)
    with pytest.raises(RunError, match="roles must alternate"):
        tokenizer.render_chat([{"role": "assistant", "content": "x"}])
    with pytest.raises(RunError, match="no chat template"):
        Tokenizer(byte_level()).render_chat(CHATS[0])


def test_a_template_cannot_leave_the_sandbox():
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RunError, match="unsafe"):
        Tokenizer(byte_level(), template=escape).render_chat(CHATS[0])


@pytest.mark.parametrize("codec", CODECS)
def test_streamed_pieces_are_the_full_text(codec):
    tokenizer = Tokenizer(CODECS[codec]())
    size = CODECS[codec]().get_vocab_size()
    random = np.random.default_rng(5)
    broken = 0
    for _ in range(400):
        ids = random.integers(0, size, int(random.integers(1, 40))).tolist()
        full = tokenizer.decode(ids)
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.finish() == full
        assert "\ufffd" in full or not any("\ufffd" in piece for piece in pieces)
        broken += "\ufffd" in full
    assert 0 < broken < 400


@pytest.mark.parametrize("codec", ["byte level", "strip", "metaspace"])
@pytest.mark.parametrize(
    "text", ["👩‍👩‍👧‍👦 family", "naïve 中文 字符", "🇩🇪🇫🇷", "é\u0301\u200d🏽", "  two  spaces ", "a\n\n\tb"]
)
def test_no_piece_is_a_broken_character(codec, text):
    tokenizer = Tokenizer(CODECS[codec]())
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    pieces.append(stream.finish())
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_can():
    tokenizer = Tokenizer(byte_level())
    stream = tokenizer.stream()
    ids = tokenizer.encode("x🙂y")
    assert [stream.push(i) for i in ids] == ["x", "", "", "", "🙂", "y"]


def test_a_token_costs_the_same_however_long_the_text_is():
    decoded = []

    class Counting:
        def decode(self, ids, skip_special_tokens):
            decoded.append(len(ids))
            return codec.decode(ids, skip_special_tokens=skip_special_tokens)

    codec = byte_level()
    stream = Tokenizer(codec).stream()
    stream._codec = Counting()
    for token in codec.encode("The quick brown fox. " * 50).ids:
        stream.push(token)
    assert max(decoded) <= 2


def test_special_tokens_are_skipped_unless_asked_for():
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("<|im_start|>fox<|im_end|>")
    assert (tokenizer.decode(ids), tokenizer.decode(ids, special=True)) == ("fox", "<|im_start|>fox<|im_end|>")
