"""The tokens at which llama.cpp ends an answer: those that a GGUF file names, and those it knows by their text.

After llama.cpp's llama_vocab::impl::load, ``special_eog_ids``, in src/llama-vocab.cpp of 2026.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.source.gguf_file import GgufFile

END_TEXTS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    )
)
"""Whatever type the file gives them: converters got it wrong often enough."""

_FILL = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Marks between files of code, by the key that names one; the texts count where the key is absent."""


def stop_tokens(gguf: GgufFile, tokens: Sequence[str]) -> list[int]:
    """The ids that end an answer: first what the file names (end of text, of a turn, of a message), then by text.

    Args:
        gguf: the file.
        tokens: its vocabulary in the order of ids.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    named = [gguf.token(key) for key in ("eos", "eot", "eom")]
    texts = _by_text(ids)
    for key, known in _FILL.items():
        here = min((ids[text] for text in known if text in ids), default=None)
        named.append(here if gguf.token(key) is None else gguf.token(key))
    return list(dict.fromkeys(i for i in (*named[:3], *texts, *named[3:]) if i is not None))


def _by_text(ids: dict[str, int]) -> list[int]:
    """Tokens of END_TEXTS, by id. Two of them mean something else beside others, as llama.cpp has it."""
    found = {text: ids[text] for text in END_TEXTS if text in ids}
    calls = {"<|call|>", "<|calls|>"} & found.keys()
    if calls and ({"<|return|>", "<|flush|>"} & found.keys()):
        found.pop("<|end|>", None)  # the end of one of several messages of an answer
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return sorted(found.values())
