"""edgekit, as its public API runs it. A variant is a row of data: what to build, and how to run it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.peers.contender import Command, Contender, Model, Place, Timing, feed_back

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Variant:
    """``build``: arguments of `edgekit build`; ``runner``: keywords of `load_runner` besides threads and context."""

    title: str
    build: tuple[str, ...] = ()
    runner: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "edgekit-int4": Variant("edgekit INT4", ("--precision", "int4")),
    "edgekit-int4-92": Variant("edgekit INT4, 92 MB", ("--precision", "int4", "--size-mb", "92")),
    "edgekit-fast": Variant("edgekit fast", ("--recipe", "fast")),
    "edgekit-small": Variant("edgekit small", ("--recipe", "small")),
    "edgekit-small-memory": Variant("edgekit small, little memory", ("--recipe", "small"), {"small_memory": True}),
    "edgekit-int8": Variant("edgekit INT8", ("--precision", "int8")),
}


class EdgekitModel:
    """A bundle, opened and checked."""

    def __init__(self, options: dict[str, Any], path: Path, threads: int, context: int) -> None:
        from edgekit import load_runner, open_bundle

        self._runner = load_runner(open_bundle(path), threads=threads, context=context, **options)

    def generate(self, prompt: list[int], new: int) -> Timing:
        """See Model."""
        self._runner.reset()
        return feed_back(self._runner.prefill, self._runner.step, prompt, new)

    def logits(self, tokens: list[int]) -> Any:
        """See Model."""
        return self._runner.logits(tokens)


def _build(arguments: tuple[str, ...], place: Place, source: Path, out: Path) -> list[Command]:
    return [[place.python, "-m", "edgekit", "build", str(source), "-o", str(out), *arguments]]


def _contender(name: str, variant: Variant) -> Contender:
    model: partial[Model] = partial(EdgekitModel, variant.runner)
    return Contender(
        name=name,
        title=variant.title,
        environment="",
        install=lambda _: [],
        convert=partial(_build, variant.build),
        imports=("edgekit.bundle", "edgekit.run"),
        open=model,
        packages=("edgekit", "onnxruntime"),
        changing=True,
    )


CONTENDERS = tuple(_contender(name, variant) for name, variant in VARIANTS.items())
