"""The stop tokens that llama.cpp uses for a GGUF file: those that the file names, and those known by their text.

Source: ``special_eog_ids`` in llama.cpp's llama_vocab::impl::load, src/llama-vocab.cpp of 2026.
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
"""Stop tokens whatever type the file gives them, because converters often set it wrong."""

_FILL = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Fill-in-the-middle tokens by metadata key; the texts are used if the key is absent."""


def stop_tokens(gguf: GgufFile, tokens: Sequence[str]) -> list[int]:
    """Return the ids that end an answer: first those the file names (eos, eot, eom), then those known by text.

    Args:
        gguf: the file.
        tokens: its vocabulary in id order.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    named = [gguf.token(key) for key in ("eos", "eot", "eom")]
    texts = _by_text(ids)
    for key, known in _FILL.items():
        here = min((ids[text] for text in known if text in ids), default=None)
        named.append(here if gguf.token(key) is None else gguf.token(key))
    return list(dict.fromkeys(i for i in (*named[:3], *texts, *named[3:]) if i is not None))


def _by_text(ids: dict[str, int]) -> list[int]:
    """The ids of END_TEXTS, sorted. As in llama.cpp, two of them are dropped in the presence of others."""
    found = {text: ids[text] for text in END_TEXTS if text in ids}
    calls = {"<|call|>", "<|calls|>"} & found.keys()
    if calls and ({"<|return|>", "<|flush|>"} & found.keys()):
        found.pop("<|end|>", None)  # ends one of several messages of an answer
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return sorted(found.values())
