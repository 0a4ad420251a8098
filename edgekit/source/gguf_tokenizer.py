"""Make tokenizer.json and tokenizer_config.json from a GGUF file's metadata.

GGUF stores only the name of a byte-level tokenizer's pre-tokenizer, so a name that is not in SPLITS is refused: a
wrong split silently changes the tokens of numbers and punctuation. transformers' converters are not used because they
differ between versions and fall back to GPT-2's split for any name.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgekit.errors import SourceError
from edgekit.source.chat_templates import MAX_TEMPLATE
from edgekit.source.fields import shown
from edgekit.source.gguf_ends import END_TEXTS
from edgekit.source.sentencepiece_model import (
    CONTROL,
    MAX_SQUARES,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Pieces,
    build_tokenizer,
    building,
    surround,
)
from edgekit.strangers.tokenizer_file import GPT4O, LLAMA3, QWEN2, TEKKEN

if TYPE_CHECKING:
    from edgekit.source.gguf_file import GgufFile


@dataclass(frozen=True)
class Split:
    """A pre-tokenizer of byte-level BPE: a regular expression, None for GPT-2's.

    ``digits``: split off every digit first. ``whole``: a piece that is a token is not split by merges
    (``ignore_merges``). ``nfc``: normalize to NFC. ``bos``: prepend the bos token unless the file says otherwise.
    """

    regex: str | None = None
    digits: bool = False
    whole: bool = False
    nfc: bool = False
    bos: bool = False


# tokenizer.ggml.pre -> the pre-tokenizer in tokenizer.json of the models with that name.
SPLITS = {
    "gpt-2": Split(),
    "smollm": Split(digits=True),
    "starcoder": Split(digits=True),
    "refact": Split(digits=True),
    "llama-bpe": Split(LLAMA3, whole=True, bos=True),
    "llama3": Split(LLAMA3, whole=True, bos=True),
    "llama-v3": Split(LLAMA3, whole=True, bos=True),
    "smaug-bpe": Split(LLAMA3, whole=True),
    "dbrx": Split(LLAMA3),
    "qwen2": Split(QWEN2, nfc=True),
    "deepseek-r1-qwen": Split(QWEN2, nfc=True),
    "tekken": Split(TEKKEN, whole=True, bos=True),
    "gpt-4o": Split(GPT4O),
}


def make_tokenizer(gguf: GgufFile) -> str:
    """Make tokenizer.json of a GGUF file.

    Raises:
        SourceError: the file has no tokenizer, or one that is neither byte-level BPE with a known split nor
            SentencePiece BPE.
    """
    with building(f"{gguf.path} has a damaged tokenizer", "convert the model again, or download the file again"):
        return _build(gguf)


def _build(gguf: GgufFile) -> str:
    kind = gguf.text("tokenizer.ggml.model")
    tokens = tokens_of(gguf)
    if kind == "gpt2":
        tokenizer = _byte_level(gguf, tokens)
        begins = find_split(gguf).bos
    elif kind == "llama":
        tokenizer = _sentencepiece(gguf, tokens)
        begins = True
    else:
        raise SourceError(
            f"{gguf.path}: unsupported tokenizer {shown(kind)}; supported: gpt2, llama",
            "use the Hugging Face checkpoint, which has a tokenizer.json",
        )
    _add_tokens(tokenizer, gguf, tokens, sentencepiece=kind == "llama")
    surround(tokenizer, _outer(gguf, "bos", tokens, begins), _outer(gguf, "eos", tokens, False))
    return str(tokenizer.to_str())


def make_settings(gguf: GgufFile, context: int) -> dict[str, Any]:
    """Make tokenizer_config.json of a GGUF file, with a class that transformers 4 and 5 both load as is."""
    tokens = tokens_of(gguf)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = _special(gguf, key, tokens)
        if token is not None:
            settings[f"{name}_token"] = token
    settings |= {"model_max_length": context, "clean_up_tokenization_spaces": False}
    template = gguf.text("tokenizer.chat_template")
    if template is not None and len(template) > MAX_TEMPLATE:
        raise SourceError(
            f"{gguf.path}: the chat template has {len(template):,} characters (at most {MAX_TEMPLATE:,})",
            "download the file again",
        )
    return settings | ({"chat_template": template} if template else {})


def tokens_of(gguf: GgufFile) -> list[str]:
    """The vocabulary in id order. Raises SourceError if there is none."""
    tokens: list[str] = gguf.items("tokenizer.ggml.tokens", str)
    if not tokens:
        raise SourceError(
            f"{gguf.path} has no tokenizer", "use a GGUF file with a vocabulary, or the original checkpoint"
        )
    if sum(len(token) ** 2 for token in tokens) > MAX_SQUARES:
        raise SourceError(f"{gguf.path}: the tokens in its vocabulary are too long", "download the file again")
    return tokens


def _special(gguf: GgufFile, key: str, tokens: list[str]) -> str | None:
    """The token with the id ``tokenizer.ggml.<key>_token_id``, None if it is not set."""
    token = gguf.token(key)
    return None if token is None else tokens[token]


def merges_in(gguf: GgufFile) -> list[str]:
    """The merges of a byte-level tokenizer, best first."""
    return gguf.items("tokenizer.ggml.merges", str)


def types_of(gguf: GgufFile, count: int) -> list[int]:
    """The type of each token; NORMAL by default. Known stop tokens are CONTROL, as in llama.cpp."""
    types = gguf.items("tokenizer.ggml.token_type", int, count) or [NORMAL] * count
    tokens = gguf.items("tokenizer.ggml.tokens", str, count)
    return [CONTROL if token in END_TEXTS else kind for token, kind in zip(tokens, types, strict=True)]


def find_split(gguf: GgufFile) -> Split:
    """The row of SPLITS for a byte-level tokenizer. Raises SourceError for an unknown name."""
    name = gguf.text("tokenizer.ggml.pre")
    split = SPLITS.get(name or "")
    if split is None:
        said = "is missing" if name is None else f"is {shown(name)}, which is unknown"
        raise SourceError(
            f"{gguf.path}: 'tokenizer.ggml.pre' (the pre-tokenizer) {said}",
            f"known: {', '.join(SPLITS)}; convert the model again, or use the Hugging Face checkpoint",
        )
    return split


def _byte_level(gguf: GgufFile, tokens: list[str]) -> Tokenizer:
    split = find_split(gguf)
    merges = [merge.partition(" ")[::2] for merge in merges_in(gguf)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole))
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.regex is not None:
        steps.append(pre_tokenizers.Split(Regex(split.regex), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.regex is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(gguf: GgufFile, tokens: list[str]) -> Tokenizer:
    """SentencePiece BPE: spaces are U+2581, unknown bytes <0xNN>."""
    scores: list[float] = gguf.items("tokenizer.ggml.scores", float, len(tokens))
    if not scores or not all(isfinite(score) for score in scores):
        raise SourceError(
            f"{gguf.path}: the SentencePiece tokenizer has no valid token scores", "convert the model again"
        )
    prefix = gguf.flag("tokenizer.ggml.add_space_prefix", True)
    types = types_of(gguf, len(tokens))
    return build_tokenizer(Pieces(tokens, scores, types, unknown=_special(gguf, "unknown", tokens), prefix=prefix), {})


def _add_tokens(tokenizer: Tokenizer, gguf: GgufFile, tokens: list[str], *, sentencepiece: bool) -> None:
    """Add tokens recognized in text. Phi-3's turn markers strip the space after them, as in llama.cpp."""
    types = types_of(gguf, len(tokens))
    strips = sentencepiece and gguf.architecture == "phi3"
    plain = ("<s>", "<unk>", "<|endoftext|>")
    added = []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            special = kind != USER_DEFINED
            rstrip = strips and special and token not in plain
            added.append(AddedToken(token, special=special, normalized=False, rstrip=rstrip))
    tokenizer.add_tokens(added)


def _outer(gguf: GgufFile, name: str, tokens: list[str], default: bool) -> tuple[str, int] | None:
    """The bos or eos token if it is added around a text."""
    i = gguf.token(name)
    return (tokens[i], i) if gguf.flag(f"tokenizer.ggml.add_{name}_token", default) and i is not None else None
