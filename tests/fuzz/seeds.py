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


@seed
def measured(folder: Path) -> None:
    """A bundle with all that can be measured on it, and kept in its manifest."""
    import shutil
    from dataclasses import replace

    from edgekit.bundle import open_bundle, record
    from edgekit.types import Settings, Tuning
    from edgekit.types.calibration import Guarantee
    from tests import made
    from tests.route.cases import calibration

    if not folder.with_name("bundle").exists():
        bundle(folder.with_name("bundle"))
    opened = open_bundle(shutil.copytree(folder.with_name("bundle"), folder))
    known = calibration(bundle_sha256=opened.sha256, template_sha256="ab" * 32, data_sha256="cd" * 32)
    settings = Settings(2, True, False, "decoder", 512, 8)
    record(
        opened,
        quality=made.quality(0.2, 0.8),
        latency=made.measurement(50.0, "int4"),
        calibration=replace(known, guarantee=Guarantee(0.05, 0.05, 100, 40, 0, 0.04, 0.4)),
        tuning=Tuning("some machine", "onnxruntime", settings, False, (), ("pinning: one core",), 0.1, "2026-01-02"),
    )
