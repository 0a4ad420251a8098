"""Texts to score on, prompts by stdin, and what is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case, write
from tests.fuzz.values import TEXTS, damaged_text, odd_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TEXT = "Paris is the capital of France, and Rome of Italy. " * 40
_VERIFY = ("verify", "bundle", "--source", "model", "--tokens", "32", "--window", "16", "--text", "mine.txt")
_RUN = ("run", "bundle", "--max-new-tokens", "2")


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """The file of ``--text`` and the stdin of ``run``."""
    del seed

    def scored(change: tuple) -> Case:
        how, steps, impossible = change
        return Case(
            f"text: {how}", _VERIFY, ("bundle", "model"), (write("mine.txt", _TEXT), *steps), refused=impossible
        )

    long = (
        "a" * 2_000_000,
        "a b " * 500_000,
        "\x00" * 1000,
        "\u0301" * 100_000,
        "<|im_end|>" * 10_000,
        "\udcff\udcfe",
        "\n",
    )

    def asked(text: str, options: tuple[str, ...]) -> Case:
        return Case(
            f"stdin: {text[:20]!r} of {len(text)} {' '.join(options)}", (*_RUN, *options), ("bundle",), stdin=text
        )

    typed = st.builds(
        asked, st.sampled_from((*TEXTS, *long)), st.sampled_from(((), ("--raw",), ("--json",), ("--signals",)))
    )
    return st.one_of(st.builds(scored, st.one_of(damaged_text("mine.txt", _TEXT), odd_files("mine.txt"))), typed)
