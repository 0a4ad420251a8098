"""The valid inputs that cases start from. Each is made once a run, by its name, in a folder of that name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEEDS: dict[str, Callable[[Path], None]] = {}
"""Name to what writes it into a folder that does not exist yet."""


def seed(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a valid input under the function's name."""
    SEEDS[make.__name__] = make
    return make


@seed
def model(folder: Path) -> None:
    """A checkpoint: a Hugging Face folder."""
    from edgekit.testing import tiny_checkpoint

    tiny_checkpoint(folder)


@seed
def bundle(folder: Path) -> None:
    """A bundle of it with everything but the FP32 source's place."""
    from edgekit import build_bundle

    model(folder.with_name("model of the bundle"))
    build_bundle(str(folder.with_name("model of the bundle")), precision="int4", out=folder)


@seed
def policy(folder: Path) -> None:
    """A policy, and what it names."""
    folder.mkdir()
    (folder / "plain.toml").write_text(
        '[[tier]]\nname = "cloud"\ntrust = "third-party"\nurl = "http://127.0.0.1:9/v1"\nmodel = "m"\nretries = 0\n'
        'context = 4096\ntokenizer = ""\n'
    )


@seed
def questions(folder: Path) -> None:
    """Questions with known answers, and somebody's answers to them."""
    import json

    folder.mkdir()
    rows = [{"id": str(n), "prompt": f"What is {n} plus 1?", "answer": str(n + 1), "max_tokens": 2} for n in range(12)]
    given = [{"id": row["id"], "answer": row["answer"], "seconds": 0.5} for row in rows]
    for name, lines in (("questions", rows), ("answers", given)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@seed
def gguf(folder: Path) -> None:
    """A GGUF file, as llama.cpp's converter writes it."""
    from tests.source.ggufs import write_gguf

    folder.mkdir()
    write_gguf(folder / "m.gguf")
