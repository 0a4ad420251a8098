"""What a contender is. Standard library only: this is imported here and in every peer's own environment."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Command = list[str]


@dataclass(frozen=True)
class Timing:
    """One prompt and what followed it, greedy, batch 1.

    ``prefill_seconds`` end when the first token is known; ``decode_seconds`` cover the tokens after it, each fed back.
    """

    prefill_seconds: float
    decode_seconds: float
    tokens: tuple[int, ...]


class Model(Protocol):
    """A model that a contender holds open."""

    def generate(self, prompt: list[int], new: int) -> Timing:
        """The first token and ``new`` after it, whatever they are: the end of the text is not obeyed."""

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Logits [S,V] of every position, as the contender's runtime computes them; the last row may be missing."""


@dataclass(frozen=True)
class Place:
    """Where a contender lives: its interpreter, and a folder that its installation may fill."""

    python: str
    folder: Path


@dataclass(frozen=True)
class Contender:
    """One point of the picture: a tool at a setting.

    Attributes:
        name: as given on the command line, and of its folder.
        title: in tables.
        environment: contenders that name the same one share it; "" is the interpreter that runs the benchmark.
        install: the commands that fill a new environment.
        convert: from the FP32 folder to a folder that does not exist yet, as commands.
        imports: the modules that run it; importing them is timed apart from opening.
        open: (folder, threads, context) -> Model; runs in the environment.
        packages: whose versions are told.
        changing: True for what this checkout is: it is converted again in every run.
    """

    name: str
    title: str
    environment: str
    install: Callable[[Place], list[Command]]
    convert: Callable[[Place, Path, Path], list[Command]]
    imports: tuple[str, ...]
    open: Callable[[Path, int, int], Model]
    packages: tuple[str, ...]
    changing: bool = False


def pip_install(place: Place, *arguments: str) -> Command:
    """The pip call of an environment."""
    return [place.python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *arguments]


def feed_back(prefill: Callable[[list[int]], Any], step: Callable[[int], Any], prompt: list[int], new: int) -> Timing:
    """The greedy loop for a runtime that gives logits: numpy's argmax, one token at a time.

    Args:
        prefill: tokens -> the last position's logits [V].
        step: a token -> its logits [V].
        prompt: the tokens to start from.
        new: tokens after the first.
    """
    clock = time.perf_counter
    started = clock()
    token = int(prefill(prompt).argmax())
    first = clock()
    tokens = [token]
    for _ in range(new):
        token = int(step(token).argmax())
        tokens.append(token)
    return Timing(first - started, clock() - first, tuple(tokens))
